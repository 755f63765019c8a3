import assert from 'node:assert/strict';
import { test } from 'node:test';
import { matchesVif } from '../../src/linux/index.js';

const WEB = { vif: 'vif5.0', domain: 'web-1', bridge: 'xenbr0' };

test('a pattern is held against the domain, the bridge or the interface', () => {
  const cases: [string, boolean][] = [
    ['web-1', true],
    ['web-?', true],
    ['web*', true],
    ['*', true],
    ['web', false],
    ['eb-1', false],
    ['domain=web*', true],
    ['bridge=xenbr0', true],
    ['bridge=xenbr?', true],
    ['bridge=web*', false],
    ['vif=vif5.*', true],
    ['vif=vif5x0', false],
    ['vif=vif6.*', false],
  ];
  for (const [pattern, expected] of cases) assert.equal(matchesVif(pattern, WEB), expected, pattern);
});

test('characters of regular expressions stand for themselves', () => {
  assert.equal(matchesVif('a.c', { ...WEB, domain: 'abc' }), false);
  assert.equal(matchesVif('a(c', { ...WEB, domain: 'a(c' }), true);
});
