import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { patchV86, V86_VERSION, V86PatchError, XEN_GLOBALS } from '../../src/guests/linux/v86-module.js';
import { webAssembly } from '../../src/guests/linux/webassembly.js';

const packageFolder = join(dirname(createRequire(import.meta.url).resolve('v86')), '..');
const EXPLANATION =
  'The patch of v86.wasm rests on names and code of one version of v86. After an update of the package, check ' +
  'each site as docs/linux-guests.md tells under "A new v86", boot a guest, then change what is expected here.';

describe('the patch of v86.wasm', () => {
  const original = readFileSync(join(packageFolder, 'build/v86.wasm'));

  test('is made for the version that is installed', () => {
    const { version } = JSON.parse(readFileSync(join(packageFolder, 'package.json'), 'utf8')) as {
      version: string;
    };
    assert.equal(version, V86_VERSION, EXPLANATION);
  });

  test('takes hold where it did', () => {
    const { sites } = patchV86(original, 8192);
    assert.deepEqual(
      sites,
      {
        functions: {
          instr_0FA2: 2210,
          instr_0F30: 2160,
          instr_0F32: 2161,
          '3cpu3cpu10trigger_ud': 2055,
          '3cpu3pic19pic_acknowledge_irq': 3086,
          '3cpu3cpu12do_page_walk': 1624,
        },
        translationAt: 1683,
      },
      EXPLANATION,
    );
  });

  test('gives a module that compiles, with shared memory and our globals', () => {
    const module = new webAssembly.Module(patchV86(original, 8192).module);
    const names = webAssembly.Module.exports(module).map(({ name }) => name);
    for (const name of XEN_GLOBALS) assert.ok(names.includes(name), name);
  });

  test('refuses a module that is another', () => {
    const other = Uint8Array.from(original);
    const at = Buffer.from(other).indexOf('12do_page_walk');
    other[at + 2] = 'D'.charCodeAt(0);
    assert.throws(() => patchV86(other, 8192), V86PatchError);
  });
});
