import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Path } from '../../src/xenstore/path.js';
import { type Located, PathTable } from '../../src/xenstore/path-table.js';

/** An item with a hash that many others have too. */
class Item implements Located {
  constructor(
    readonly text: string,
    readonly hash: number,
  ) {}

  isAt(path: Path, count: number): boolean {
    return path.prefixIs(count, this.text);
  }

  fetch(): number {
    return 1;
  }
}

test('a table by path is as a map, with few and with many items of one hash', () => {
  const path = new Path(1);
  const hashOf = (text: string, ways: number) => {
    path.set(text);
    // What a table looks at: the upper bits choose a part, the lower ones the slot.
    path.prefixHashes[1] = (path.prefixHashes[1] >>> 0) % ways;
    return path.prefixHashes[1];
  };
  const step = fc.record({
    kind: fc.constantFrom('add', 'add', 'add', 'remove', 'replace'),
    name: fc.integer({ min: 0, max: 149 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400 }), fc.constantFrom(1, 7, 40, 2 ** 32), (steps, ways) => {
      const table = new PathTable<Item>();
      const model = new Map<string, Item>();
      for (const { kind, name } of steps) {
        const text = `/n${name}`;
        const known = model.get(text);
        const item = new Item(text, hashOf(text, ways));
        if (kind === 'remove') {
          if (known !== undefined) table.remove(known);
          model.delete(text);
        } else if (known === undefined) {
          table.add(item);
          model.set(text, item);
        } else if (kind === 'replace') {
          table.replace(known, item);
          model.set(text, item);
        }
      }
      assert.equal(table.size, model.size);
      for (let i = 0; i < 150; i++) {
        hashOf(`/n${i}`, ways);
        assert.equal(table.find(path, 1), model.get(`/n${i}`));
      }
    }),
    { numRuns: 100 },
  );
});
