import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const tests = fileURLToPath(new URL('../../../test/', import.meta.url));

/** Xen's security advisories that concern a network backend or frontend, event channels, or grant tables. */
const ADVISORIES = {
  netback: [39, 90, 155, 216, 270, 332, 349, 361, 362, 365, 367, 374, 392, 406, 423, 424, 432, 441, 448],
  netfront: [376, 391, 396, 403, 405, 457, 465],
  'event channels': [107, 221, 331, 340, 342, 343, 344, 358, 359, 496, 505],
  'grant tables': [
    134, 218, 224, 226, 228, 230, 232, 236, 255, 268, 300, 316, 318, 379, 380, 382, 384, 394, 411, 486, 500,
    501,
  ],
};

function* sources(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* sources(path);
    else if (entry.name.endsWith('.test.ts')) yield readFileSync(path, 'utf8');
  }
}

/** A call, at the start of a line, of what makes a test or a group of them, here and in the files of tests, with its name. */
const NAMED = /^ *(?:test|describe|both|broken|dropped|fatal)\(\s*(['`"])(.*?)\1/gm;

/** The advisories that the names of a source's tests have: a comment or a message tests nothing. */
function numbersInNames(source: string): number[] {
  const names = Array.from(source.matchAll(NAMED), ([, , name]) => name);
  return names.flatMap(name => Array.from(name.matchAll(/XSA-(\d+)/g), ([, number]) => Number(number)));
}

test('an advisory counts when the name of a test has it', () => {
  const names = ["  test('XSA-1: a', () => {", 'describe(`XSA-2, XSA-3: b`', "  both(\n    'XSA-4: c',"];
  assert.deepEqual(numbersInNames(names.join('\n')), [1, 2, 3, 4]);
  const others = [
    '// XSA-1',
    "// test('XSA-2: a'",
    '/** XSA-3 */',
    " * test('XSA-4'",
    "test.skip('XSA-5'",
    "ok(a, 'XSA-6')",
  ];
  assert.deepEqual(numbersInNames(others.join('\n')), []);
});

const named = new Set([...sources(tests)].flatMap(numbersInNames));
for (const [what, numbers] of Object.entries(ADVISORIES)) {
  test(`every advisory about ${what} has a test that is named after it`, () => {
    assert.deepEqual(
      numbers.filter(number => !named.has(number)),
      [],
    );
  });
}
