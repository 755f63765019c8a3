import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzzHost } from './fuzz.js';

/** The short form of `npm run fuzz`: the same seeds every time. */
for (const seed of [1, 2, 23, 20328]) {
  for (const fastPath of [false, true]) {
    test(`random and mutated rings, both directions (seed ${seed}, fast path: ${fastPath})`, () => {
      const { cases, netbackFatal, netfrontBroken, delivered, fast } = fuzzHost(seed, 1500, fastPath);
      assert.equal(cases, 1500);
      assert.ok(netbackFatal > 10 && netfrontBroken > 10 && delivered > 50, 'the cases reach something');
      assert.ok(fastPath ? fast > 100 : fast === 0, `${fast} packets took the fast path`);
    });
  }
}
