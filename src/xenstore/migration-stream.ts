import { XenStoreError } from './error.js';
import { latin1, putLatin1 } from './latin1.js';
import { get32, put32 } from './output.js';

/**
 * The stream in which one xenstored hands its state to the next (docs/designs/xenstore-migration.md and
 * tools/include/xen-tools/xenstore_state.h in Xen's tree): a header, then records of 8-byte alignment.
 */
const IDENT = 'xenstore';
const VERSION = 2;
const HEADER_BYTES = 16;
const RECORD_HEADER_BYTES = 8;
/** A record longer than this is no record. */
const RECORD_MAX_BYTES = 1 << 24;

export const RECORD = {
  END: 0,
  GLOBAL_DATA: 1,
  CONNECTION_DATA: 2,
  WATCH_DATA: 3,
  TRANSACTION_DATA: 4,
  NODE_DATA: 5,
  GLOBAL_QUOTA_DATA: 6,
  DOMAIN_DATA: 7,
  WATCH_DATA_EXTENDED: 8,
} as const;

/** conn-type of CONNECTION_DATA. */
export const CONNECTION_TYPE = { RING: 0, SOCKET: 1 } as const;
/**
 * `access` of NODE_DATA. The upper bits are ours. STALE: the transaction has lost already. BEGAN: the node as
 * the transaction found it when it began, where that is not as it is now. With READ, VALUE: only its value and
 * permissions were read; NAMES: only which children it has.
 */
export const NODE_ACCESS = {
  READ: 1,
  WRITE: 2,
  NAMES: 0x1000,
  VALUE: 0x2000,
  BEGAN: 0x4000,
  STALE: 0x8000,
} as const;
/** Flag of a permission that is to be ignored: its domain is gone. */
export const PERMISSION_IGNORE = 1;

/** Writes a stream record by record. */
export class StreamWriter {
  #bytes = new Uint8Array(1 << 16);
  #length = 0;
  #recordAt = 0;

  constructor() {
    this.text(IDENT);
    // Both in big-endian order: version, flags (0: little-endian).
    for (const byte of [0, 0, 0, VERSION, 0, 0, 0, 0]) this.u8(byte);
  }

  begin(type: number): this {
    this.#recordAt = this.#length;
    return this.u32(type).u32(0);
  }

  end(): void {
    put32(this.#bytes, this.#recordAt + 4, this.#length - this.#recordAt - RECORD_HEADER_BYTES);
    while (this.#length % 8 !== 0) this.u8(0);
  }

  u8(value: number): this {
    this.#room(1);
    this.#bytes[this.#length++] = value;
    return this;
  }

  u16(value: number): this {
    return this.u8(value).u8(value >>> 8);
  }

  u32(value: number): this {
    this.#room(4);
    put32(this.#bytes, this.#length, value);
    this.#length += 4;
    return this;
  }

  raw(bytes: Uint8Array): this {
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
    return this;
  }

  text(text: string): this {
    this.#room(text.length);
    this.#length = putLatin1(this.#bytes, this.#length, text);
    return this;
  }

  /** Takes what was written so far, between two records. */
  take(): Uint8Array {
    const taken = this.#bytes.slice(0, this.#length);
    this.#length = 0;
    return taken;
  }

  #room(length: number): void {
    if (this.#bytes.length - this.#length >= length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + length));
    larger.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = larger;
  }
}

/** One record, read field by field. @throws XenStoreError when the record is too short for them */
export class StreamRecord {
  #at: number;

  constructor(
    readonly type: number,
    readonly bytes: Uint8Array,
    start: number,
    readonly end: number,
  ) {
    this.#at = start;
  }

  u8(): number {
    return this.bytes[this.#take(1)];
  }

  u16(): number {
    const at = this.#take(2);
    return this.bytes[at] | (this.bytes[at + 1] << 8);
  }

  u32(): number {
    return get32(this.bytes, this.#take(4));
  }

  raw(length: number): Uint8Array {
    const at = this.#take(length);
    return this.bytes.slice(at, at + length);
  }

  /** A string of `length` bytes, its NUL included. */
  text(length: number): string {
    const at = this.#take(length);
    return latin1(this.bytes, at, at + Math.max(length - 1, 0));
  }

  /** The strings that are left, each with its NUL. */
  strings(): string[] {
    return latin1(this.raw(this.end - this.#at))
      .split('\0')
      .slice(0, -1);
  }

  #take(length: number): number {
    const at = this.#at;
    if (this.end - at < length) throw broken(`a record of type ${this.type} is too short`);
    this.#at = at + length;
    return at;
  }
}

/** The records of a stream, without END. @throws XenStoreError when it is no whole stream */
export function* readRecords(bytes: Uint8Array): IterableIterator<StreamRecord> {
  if (bytes.length < HEADER_BYTES || latin1(bytes, 0, 8) !== IDENT)
    throw broken('it does not begin like one');
  const version = bytes[11];
  if (version !== 1 && version !== 2) throw broken(`version ${version} is not known`);
  if (bytes[15] !== 0) throw broken('it is big-endian');
  let at = HEADER_BYTES;
  for (;;) {
    if (bytes.length - at < RECORD_HEADER_BYTES) throw broken('it ends without an END record');
    const type = get32(bytes, at);
    const length = get32(bytes, at + 4);
    if (type === RECORD.END) return;
    const start = at + RECORD_HEADER_BYTES;
    if (length > RECORD_MAX_BYTES || length > bytes.length - start) throw broken('a record is cut off');
    yield new StreamRecord(type, bytes, start, start + length);
    at = start + ((length + 7) & ~7);
  }
}

function broken(why: string): XenStoreError {
  return new XenStoreError('EINVAL', `this is no saved XenStore state: ${why}`);
}
