import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { runSelftest } from '../../src/netback/selftest.js';
import { UNIT_VECTORS } from '../../src/netback/unit-vectors.js';

describe("FreeBSD netback's unit vectors, as pvnet selftest runs them", () => {
  for (const { name, failure } of runSelftest()) test(name, () => assert.equal(failure, null));

  test('all 48 that concern the data path are there', () => {
    assert.equal(new Set(UNIT_VECTORS.map(({ name }) => name)).size, 48);
  });

  for (const group of new Set(UNIT_VECTORS.map(vector => vector.group))) {
    test(`a wrong expectation of ${group} is noticed`, () => {
      const ofGroup = UNIT_VECTORS.filter(vector => vector.group === group);
      const wrong = ofGroup.map(vector => ({ ...vector, expect: spoilt(vector.expect) }));
      assert.ok(runSelftest(wrong).some(({ failure }) => failure !== null));
    });
  }
});

/** Every number one more, every truth the other, every packet with another last byte. */
function spoilt(value: unknown): unknown {
  if (typeof value === 'number') return value + 1;
  if (typeof value === 'boolean') return !value;
  if (typeof value === 'string') return value.replace(/[0-9a-f]$/, last => (last === '0' ? '1' : '0'));
  if (Array.isArray(value)) return value.map(spoilt);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, spoilt(field)]));
}
