import { XS_HEADER_SIZE } from '../abi/xs-wire.js';

const FIRST_SIZE = 4096;
/** A buffer that grew beyond this is given up when it is empty. */
const KEEP_SIZE = 1 << 16;

/** Messages on their way out, in one growing buffer. */
export class Output {
  bytes = new Uint8Array(FIRST_SIZE);
  start = 0;
  end = 0;

  get length(): number {
    return this.end - this.start;
  }

  /** Writes a header and makes room for `length` bytes of payload. @returns where the payload goes */
  begin(type: number, reqId: number, txId: number, length: number): number {
    const size = XS_HEADER_SIZE + length;
    if (this.bytes.length - this.end < size) this.#grow(size);
    const { bytes } = this;
    const at = this.end;
    put32(bytes, at, type);
    put32(bytes, at + 4, reqId);
    put32(bytes, at + 8, txId);
    put32(bytes, at + 12, length);
    this.end = at + size;
    return at + XS_HEADER_SIZE;
  }

  /** Forgets the first `length` bytes: they were taken. */
  take(length: number): void {
    this.start += length;
    if (this.start < this.end) return;
    this.start = 0;
    this.end = 0;
    if (this.bytes.length > KEEP_SIZE) this.bytes = new Uint8Array(FIRST_SIZE);
  }

  /** Adds bytes that are whole messages, or the rest of one. */
  append(bytes: Uint8Array): void {
    if (this.bytes.length - this.end < bytes.length) this.#grow(bytes.length);
    this.bytes.set(bytes, this.end);
    this.end += bytes.length;
  }

  clear(): void {
    this.start = 0;
    this.end = 0;
  }

  #grow(size: number): void {
    const { bytes, start, end } = this;
    const length = end - start;
    let target = bytes;
    if (bytes.length < length + size || start < length) {
      target = new Uint8Array(Math.max(bytes.length * 2, length + size));
    }
    target.set(bytes.subarray(start, end));
    this.bytes = target;
    this.start = 0;
    this.end = length;
  }
}

export function put32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

/** The little-endian u32 at `at`. */
export function get32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}
