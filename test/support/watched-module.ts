import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PAGE_SIZE } from '../../src/platform/index.js';
import type { MachineMemory } from '../../src/platform/sim/index.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
/** What shared.ts is while a module for a test is compiled. */
const SHARED = `
  export declare function fetch16(at: usize): u32;
  export declare function fetch32(at: usize): u32;`;

interface Compiler {
  main(
    argv: string[],
    api: {
      readFile(name: string, baseDir: string): string | null;
      writeFile(name: string, contents: Uint8Array): void;
      listFiles(): string[];
    },
  ): Promise<{ error: Error | null }>;
}

/** Compiles a module that imports what it reads memory with which it shares. @param entry its source, from the root on */
export async function compileWatched(entry: string): Promise<Uint8Array> {
  // Types of neither are known: the compiler names its own by a scheme, and the build is no TypeScript.
  const [compiler, build] = ['node_modules/assemblyscript/dist/asc.js', 'scripts/wasm.mjs'];
  const { FLAGS }: { FLAGS: string[] } = await import(join(root, build));
  const { main }: Compiler = await import(join(root, compiler));
  let bytes = new Uint8Array(0);
  const argv = [entry, '--baseDir', root, '--outFile', 'module.wasm', ...FLAGS];
  const { error } = await main(argv, {
    readFile(name, baseDir) {
      if (name.endsWith('platform/wasm/shared.ts')) return SHARED;
      const path = join(baseDir, name);
      return existsSync(path) ? readFileSync(path, 'utf8') : null;
    },
    writeFile(_, contents) {
      bytes = Uint8Array.from(contents);
    },
    listFiles: () => [],
  });
  assert.equal(error, null);
  return bytes;
}

/** A peer that changes each byte of a slot right after it was read. */
export class ChangingSlots {
  /** Off while a test brings its scene about. */
  on = false;
  /** Reads of each byte of a slot since `clear`, and what it was before. */
  private readonly reads = new Map<number, { count: number; was: number }>();

  constructor(private readonly memory: MachineMemory) {}

  /** For a module that was compiled with `compileWatched` to import. */
  get imports(): Record<string, (at: number) => number> {
    return { fetch16: at => this.fetch(at, 2), fetch32: at => this.fetch(at, 4) };
  }

  private fetch(at: number, length: number): number {
    const { u8 } = this.memory;
    let value = 0;
    for (let i = length - 1; i >= 0; i--) value = (value << 8) | u8[at + i];
    if (this.on) for (let i = 0; i < length; i++) this.wasRead(at + i);
    return value;
  }

  private wasRead(at: number): void {
    const { u8 } = this.memory;
    const before = this.reads.get(at);
    if (before === undefined) this.reads.set(at, { count: 1, was: u8[at] });
    else before.count++;
    u8[at] ^= 0xa5;
  }

  clear(): void {
    this.reads.clear();
  }

  checkOnce(): void {
    for (const [at, { count }] of this.reads) assert.equal(count, 1, `reads of the byte at ${at}`);
  }

  /** Makes bytes what they were before they were read. */
  restore(from: number, to: number): void {
    for (const [at, { was }] of this.reads) if (at >= from && at < to) this.memory.u8[at] = was;
  }
}

/**
 * Looks at the first `pages` of memory.
 * @param allowed byte addresses [from, to) that may change
 * @returns what fails when anything else has changed since
 */
export function unchangedBut(
  { u8 }: MachineMemory,
  pages: number,
  allowed: readonly (readonly [from: number, to: number])[],
): () => void {
  const before = Buffer.from(u8.subarray(0, pages * PAGE_SIZE));
  return () => {
    const now = Buffer.from(u8.buffer, u8.byteOffset, pages * PAGE_SIZE);
    for (const [from, to] of allowed) now.copy(before, from, from, to);
    if (now.equals(before)) return;
    const at = now.findIndex((byte, i) => byte !== before[i]);
    assert.fail(`byte ${at % PAGE_SIZE} of page ${Math.floor(at / PAGE_SIZE)} has changed`);
  };
}
