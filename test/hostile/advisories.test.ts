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

/** The numbers that the names of tests have. */
function numbersInNames(): Set<number> {
  const numbers = new Set<number>();
  for (const source of sources(tests)) {
    for (const [, number] of source.matchAll(/XSA-(\d+)/g)) numbers.add(Number(number));
  }
  return numbers;
}

const named = numbersInNames();
for (const [what, numbers] of Object.entries(ADVISORIES)) {
  test(`every advisory about ${what} has a test that is named after it`, () => {
    assert.deepEqual(
      numbers.filter(number => !named.has(number)),
      [],
    );
  });
}
