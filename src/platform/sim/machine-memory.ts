import { Memory, PAGE_SHIFT, PAGE_SIZE } from '../memory.js';
import { MODULE as BULK } from './wasm/bulk.bytes.js';

/** The part of the JavaScript API to WebAssembly that is used; a portable folder knows no such global. */
interface WebAssemblyApi {
  Memory: new (descriptor: {
    initial: number;
    maximum: number;
    shared: boolean;
  }) => { readonly buffer: ArrayBufferLike };
  Module: new (bytes: Uint8Array) => object;
  Instance: new (
    module: object,
    imports: Record<string, Record<string, unknown>>,
  ) => { readonly exports: unknown };
}

interface BulkMemory {
  copy(to: number, from: number, length: number): void;
  fill(at: number, value: number, length: number): void;
  publish(address: number, index: number, event: number): number;
  storeThenLoad(address: number, value: number, other: number): number;
}

/** Modules by their bytes: each is compiled once. */
const modules = new Map<Uint8Array, object>();

function compiled(api: WebAssemblyApi, bytes: Uint8Array): object {
  const module = modules.get(bytes) ?? new api.Module(bytes);
  modules.set(bytes, module);
  return module;
}

/** Bytes of a WebAssembly page. */
const WASM_PAGE_SIZE = 65536;

/** Machine memory ends below 2 GiB, so that every byte address in it is a small integer. */
export const MAX_MACHINE_MEMORY = 0x8000_0000 - WASM_PAGE_SIZE;

/**
 * The machine's memory: one shared WebAssembly.Memory, which the operating system backs with real pages
 * only where they are touched.
 */
export class MachineMemory extends Memory {
  override readonly instantiate: (
    module: Uint8Array,
    imports: Record<string, Record<string, unknown>>,
  ) => unknown;
  private readonly bulk: BulkMemory;
  /** Pages of PAGE_SIZE. */
  readonly pages: number;

  /** @throws RangeError when the size is not a positive multiple of 64 KiB below 2 GiB */
  constructor(bytes: number) {
    if (!(bytes > 0 && bytes <= MAX_MACHINE_MEMORY && bytes % WASM_PAGE_SIZE === 0)) {
      throw new RangeError(`machine memory of ${bytes} bytes: want a multiple of 65536 below 2 GiB`);
    }
    const api = (globalThis as unknown as { WebAssembly: WebAssemblyApi }).WebAssembly;
    const size = bytes / WASM_PAGE_SIZE;
    const memory = new api.Memory({ initial: size, maximum: size, shared: true });
    super(memory.buffer);
    this.instantiate = (module, imports) =>
      new api.Instance(compiled(api, module), { ...imports, env: { memory } }).exports;
    this.bulk = this.instantiate(BULK, {}) as BulkMemory;
    this.pages = bytes >>> PAGE_SHIFT;
  }

  override copy(to: number, from: number, length: number): void {
    this.bulk.copy(to, from, length);
  }

  override publish(address: number, index: number, event: number): boolean {
    return this.bulk.publish(address, index, event) !== 0;
  }

  override storeThenLoad(address: number, value: number, other: number): number {
    return this.bulk.storeThenLoad(address, value, other);
  }

  /** Makes a page all zero. */
  clearPage(page: number): void {
    this.bulk.fill(page << PAGE_SHIFT, 0, PAGE_SIZE);
  }
}
