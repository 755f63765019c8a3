import { Memory, PAGE_SHIFT, PAGE_SIZE } from '../memory.js';

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
  copyList(list: number, end: number): void;
}

/** Bytes of a WebAssembly page. */
const WASM_PAGE_SIZE = 65536;

/** Machine memory ends below 2 GiB, so that every byte address in it is a small integer. */
export const MAX_MACHINE_MEMORY = 0x8000_0000 - WASM_PAGE_SIZE;

/**
 * The whole module: (import "m" "m" (memory 1 65536 shared)), and functions over that memory. "copy" is one
 * `memory.copy` and "fill" one `memory.fill`; "copyList" does a `memory.copy` for each three words (to, from, length) of
 * a list that is not empty. JavaScript has nothing as fast for shared memory, and each call costs as much as a small copy.
 */
// biome-ignore format: one section of the module a line
const BULK_MEMORY_MODULE = [
  0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00,
  0x01, 0x0c, 0x02, 0x60, 0x03, 0x7f, 0x7f, 0x7f, 0x00, 0x60, 0x02, 0x7f, 0x7f, 0x00,
  0x02, 0x0b, 0x01, 0x01, 0x6d, 0x01, 0x6d, 0x02, 0x03, 0x01, 0x80, 0x80, 0x04,
  0x03, 0x04, 0x03, 0x00, 0x00, 0x01,
  0x07, 0x1a, 0x03, 0x04, 0x63, 0x6f, 0x70, 0x79, 0x00, 0x00, 0x04, 0x66, 0x69, 0x6c, 0x6c, 0x00, 0x01,
  0x08, 0x63, 0x6f, 0x70, 0x79, 0x4c, 0x69, 0x73, 0x74, 0x00, 0x02,
  0x0a, 0x3f, 0x03,
  0x0c, 0x00, 0x20, 0x00, 0x20, 0x01, 0x20, 0x02, 0xfc, 0x0a, 0x00, 0x00, 0x0b,
  0x0b, 0x00, 0x20, 0x00, 0x20, 0x01, 0x20, 0x02, 0xfc, 0x0b, 0x00, 0x0b,
  0x24, 0x00, 0x03, 0x40,
  0x20, 0x00, 0x28, 0x02, 0x00, 0x20, 0x00, 0x28, 0x02, 0x04, 0x20, 0x00, 0x28, 0x02, 0x08, 0xfc, 0x0a, 0x00, 0x00,
  0x20, 0x00, 0x41, 0x0c, 0x6a, 0x22, 0x00, 0x20, 0x01, 0x49, 0x0d, 0x00,
  0x0b, 0x0b,
];

/**
 * The machine's memory: one shared WebAssembly.Memory, which the operating system backs with real pages
 * only where they are touched.
 */
export class MachineMemory extends Memory {
  /** `copy` as a plain function, for loops that copy much. */
  readonly copyBytes: (to: number, from: number, length: number) => void;
  /** Does the copies of a list: three words (to, from, length) each, from byte address `list` to before `end`. */
  readonly copyList: (list: number, end: number) => void;
  private readonly fillBytes: (at: number, value: number, length: number) => void;
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
    const module = new api.Module(new Uint8Array(BULK_MEMORY_MODULE));
    const bulk = new api.Instance(module, { m: { m: memory } }).exports as BulkMemory;
    this.copyBytes = bulk.copy;
    this.fillBytes = bulk.fill;
    this.copyList = bulk.copyList;
    this.pages = bytes >>> PAGE_SHIFT;
  }

  override copy(to: number, from: number, length: number): void {
    this.copyBytes(to, from, length);
  }

  /** Makes a page all zero. */
  clearPage(page: number): void {
    this.fillBytes(page << PAGE_SHIFT, 0, PAGE_SIZE);
  }
}
