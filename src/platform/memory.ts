import { ringNeedsNotify } from '../abi/ring.js';

/** Bytes in a page of every ring protocol (XEN_PAGE_SIZE), whatever page size the guest has. */
export const PAGE_SIZE = 4096;
export const PAGE_SHIFT = 12;

/**
 * Memory as the drivers see it: views over one buffer or a part of it, made once. A byte address is an index into `u8`,
 * address >>> 1 into `u16`/`i16`, address >>> 2 into `u32`/`i32`; a page number is address >>> 12.
 *
 * Whatever a peer can write is read through this object only, so that a test can pass one that counts or
 * changes what is read.
 */
export class Memory {
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly i16: Int16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;

  /**
   * @param start where byte 0 is in the buffer: a multiple of 4
   * @param bytes how much of the buffer it is: a multiple of 4; by default all of the rest
   */
  constructor(
    readonly buffer: ArrayBufferLike,
    start = 0,
    bytes = buffer.byteLength - start,
  ) {
    this.u8 = new Uint8Array(buffer, start, bytes);
    this.u16 = new Uint16Array(buffer, start, bytes >>> 1);
    this.i16 = new Int16Array(buffer, start, bytes >>> 1);
    this.u32 = new Uint32Array(buffer, start, bytes >>> 2);
    this.i32 = new Int32Array(buffer, start, bytes >>> 2);
  }

  /**
   * Makes an instance of a WebAssembly module over this memory, which its code finds as its own: byte addresses are the
   * same. @returns its exports; null where the memory is none of WebAssembly's, or is to be read through this object only
   */
  readonly instantiate:
    | ((module: Uint8Array, imports: Record<string, Record<string, unknown>>) => unknown)
    | null = null;

  /** Reads the u32 at a byte address that another domain may be writing; a full barrier. */
  load(address: number): number {
    return Atomics.load(this.u32, address >>> 2);
  }

  /** Writes the u32 at a byte address that another domain may be reading; a full barrier. */
  store(address: number, value: number): void {
    Atomics.store(this.u32, address >>> 2, value);
  }

  /**
   * Writes a producer index for a consumer that may be in another thread.
   * @param address of the index @param event address of the index at which the consumer asked to be woken
   * @returns whether it must be notified (RING_PUSH_*_AND_CHECK_NOTIFY of xen/include/public/io/ring.h)
   */
  publish(address: number, index: number, event: number): boolean {
    const before = this.load(address);
    this.store(address, index);
    return ringNeedsNotify(before, index, this.load(event));
  }

  /** Writes a u32, and reads another one after everybody can see it. */
  storeThenLoad(address: number, value: number, other: number): number {
    this.store(address, value);
    return this.load(other);
  }

  /** Clears a range. */
  zero(address: number, length: number): void {
    this.u8.fill(0, address, address + length);
  }

  /** Copies inside this memory; the ranges may overlap. */
  copy(to: number, from: number, length: number): void {
    this.u8.copyWithin(to, from, from + length);
  }
}
