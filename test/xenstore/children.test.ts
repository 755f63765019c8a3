import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  type Children,
  childrenInOrder,
  Directory,
  findChild,
  putChild,
  removeChild,
} from '../../src/xenstore/children.js';
import { StoreNode } from '../../src/xenstore/node.js';
import { Path } from '../../src/xenstore/path.js';
import { PERM_NONE, type Permissions } from '../../src/xenstore/permissions.js';

const path = new Path(1);
const NOBODY: Permissions = [{ domid: 0, access: PERM_NONE, incarnation: 0 }];

function nodeOf(name: string, epoch: number, created: number): StoreNode {
  path.set(`/${name}`);
  return new StoreNode(name, '/', path.prefixHashes[1], epoch, '', NOBODY, created, created);
}

function parentOf(children: Children | null): StoreNode {
  const parent = new StoreNode('', '', 0, 0, '', NOBODY, 0, 0);
  parent.directory = new Directory('/', 0);
  parent.directory.children = children;
  return parent;
}

test('children, from one to many: as a map, and snapshots stay as they were', () => {
  const step = fc.record({
    kind: fc.constantFrom('put', 'put', 'put', 'remove', 'snapshot', 'many'),
    name: fc.integer({ min: 0, max: 399 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), steps => {
      const model = new Map<string, StoreNode>();
      const snapshots: { children: Children | null; nodes: StoreNode[] }[] = [];
      let children: Children | null = null;
      let epoch = 0;
      let created = 0;
      const put = (name: string): void => {
        const old = model.get(name);
        const node = nodeOf(name, epoch, old?.created ?? created++);
        children = putChild(children, node, old, epoch);
        model.set(name, node);
      };
      const inOrder = () => [...model.values()].sort((a, b) => a.created - b.created);
      for (const { kind, name } of steps) {
        if (kind === 'put') put(`n${name}`);
        else if (kind === 'many') for (let i = 0; i < name; i++) put(`n${i}`);
        else if (kind === 'snapshot') {
          snapshots.push({ children, nodes: inOrder() });
          epoch++;
        } else {
          const node = model.get(`n${name}`);
          if (node === undefined) continue;
          children = removeChild(children!, node, epoch);
          model.delete(`n${name}`);
        }
      }
      const parent = parentOf(children);
      for (let i = 0; i < 400; i++) {
        path.set(`/n${i}`);
        assert.equal(findChild(parent, path, 0), model.get(`n${i}`));
      }
      for (const { children: then, nodes } of [...snapshots, { children, nodes: inOrder() }]) {
        assert.deepEqual(
          childrenInOrder(parentOf(then)).map(node => nodes.indexOf(node)),
          nodes.map((_, i) => i),
        );
      }
    }),
    { numRuns: 60 },
  );
});
