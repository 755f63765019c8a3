// Compiles the AssemblyScript in `wasm` folders of src: NAME.ts becomes NAME.bytes.ts, a module of bytes that TypeScript
// imports.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';

/** Each becomes a module; what they import is compiled into it. */
const ENTRIES = [
  'platform/sim/wasm/bulk',
  'platform/sim/wasm/hypercalls',
  'netback/wasm/fast-path',
  'netfront/wasm/rings',
];
/** What MachineMemory has at most, in WebAssembly pages. */
const MAXIMUM_PAGES = 32768;
export const FLAGS = [
  ...['-O3', '--converge', '--noAssert', '--runtime', 'stub', '--use', 'abort='],
  ...['--importMemory', '--noExportMemory', '--sharedMemory'],
  ...['--initialMemory', '1', '--maximumMemory', String(MAXIMUM_PAGES)],
  ...['--enable', 'threads', '--enable', 'simd', '--enable', 'bulk-memory'],
];
/** What AssemblyScript may be compiled from: itself, and the layouts that it shares with TypeScript. */
const SOURCE = /(wasm\/[^.]+|-words|-record|-block)\.ts$/;

/** Compiles what is older than any of the sources. @param root the project's folder */
export function buildWasm(root) {
  const src = join(root, 'src');
  const sources = readdirSync(src, { recursive: true }).filter(name => SOURCE.test(name));
  const newest = Math.max(...sources.map(name => statSync(join(src, name)).mtimeMs));
  for (const entry of ENTRIES) {
    const target = join(src, `${entry}.bytes.ts`);
    if (!existsSync(target) || statSync(target).mtimeMs < newest)
      compile(root, join(src, `${entry}.ts`), target);
  }
}

function compile(root, source, target) {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-wasm-'));
  const out = join(folder, 'module.wasm');
  const asc = join(root, 'node_modules/assemblyscript/bin/asc.js');
  try {
    const argv = [asc, source, '--outFile', out, ...FLAGS];
    const { status, stderr } = spawnSync(process.execPath, argv, { cwd: root, encoding: 'utf8' });
    // Otherwise it has no more to say than how far it could optimise.
    if (status !== 0 || stderr.includes('WARNING')) console.error(stderr);
    if (status !== 0) process.exit(status ?? 1);
    const bytes = [...readFileSync(out)].join(', ');
    writeFileSync(
      target,
      `// Compiled from ${basename(source)}.\nexport const MODULE: Uint8Array = new Uint8Array([${bytes}]);\n`,
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
