import { RING_HEADER_SIZE } from '../abi/ring.js';
import { Memory, PAGE_SIZE } from '../platform/memory.js';

type View = Uint8Array | Uint16Array | Int16Array | Uint32Array | Int32Array;

/**
 * Memory with one page whose other user is as hostile as can be: it changes every byte right after it was
 * read, so that who reads a byte twice gets two values. Reads are counted, too.
 *
 * Only slots change, not the ring's header: a consumer has to read producer indexes again and again. Pass
 * it as `GrantMapping.memory`, or as a frontend's own memory; the peer writes through the memory beneath,
 * and says `rearm` when it has written slots that were read before.
 */
export class DoubleFetchMemory extends Memory {
  override readonly u8: Uint8Array;
  override readonly u16: Uint16Array;
  override readonly i16: Int16Array;
  override readonly u32: Uint32Array;
  override readonly i32: Int32Array;
  /** Reads of each byte of the page since `rearm`. */
  readonly reads = new Uint32Array(PAGE_SIZE);

  /** @param address byte address of the ring page */
  constructor(
    private readonly inner: Memory,
    readonly address: number,
  ) {
    super(inner.buffer);
    this.u8 = this.watch(inner.u8);
    this.u16 = this.watch(inner.u16);
    this.i16 = this.watch(inner.i16);
    this.u32 = this.watch(inner.u32);
    this.i32 = this.watch(inner.i32);
  }

  /** How often the slot byte that was read most was read. */
  get mostReads(): number {
    return Math.max(...this.reads.subarray(RING_HEADER_SIZE));
  }

  /** Slot bytes that were read. */
  get bytesRead(): number {
    return this.reads.subarray(RING_HEADER_SIZE).reduce((sum, count) => sum + (count > 0 ? 1 : 0), 0);
  }

  /** Starts to count anew. */
  rearm(): void {
    this.reads.fill(0);
  }

  override load(address: number): number {
    const value = this.inner.load(address);
    this.wasRead(address & ~3, 4);
    return value;
  }

  override store(address: number, value: number): void {
    this.inner.store(address, value);
  }

  override copy(to: number, from: number, length: number): void {
    this.inner.copy(to, from, length);
    this.wasRead(from, length);
  }

  private wasRead(address: number, length: number): void {
    for (let at = address; at < address + length; at++) {
      const offset = at - this.address;
      if (offset < 0 || offset >= PAGE_SIZE) continue;
      this.reads[offset]++;
      if (offset >= RING_HEADER_SIZE) this.inner.u8[at] ^= 0xa5;
    }
  }

  private watch<T extends View>(view: T): T {
    const { BYTES_PER_ELEMENT: bytes } = view;
    return new Proxy(view, {
      get: (target, key) => {
        const index = elementIndex(key);
        if (index >= 0) {
          const value = target[index];
          this.wasRead(index * bytes, bytes);
          return value;
        }
        const value: unknown = Reflect.get(target, key, target);
        return typeof value === 'function' ? value.bind(target) : value;
      },
      set: (target, key, value) => {
        const index = elementIndex(key);
        if (index < 0) return Reflect.set(target, key, value, target);
        target[index] = value;
        return true;
      },
    });
  }
}

function elementIndex(key: string | symbol): number {
  return typeof key === 'string' && /^\d+$/.test(key) ? Number(key) : -1;
}
