import {
  RING_HEADER_SIZE,
  RING_REQ_EVENT,
  RING_REQ_PROD,
  RING_RSP_EVENT,
  RING_RSP_PROD,
  ringSize,
} from '../abi/ring.js';
import { type Memory, PAGE_SIZE } from '../platform/memory.js';

/**
 * A ring page as somebody sees it who keeps to no rules: every index and every slot can be read and
 * written at any time, and nothing is checked. The indexes are unsigned 32-bit numbers.
 */
export class RawRing {
  /** Number of slots. */
  readonly size: number;

  /** @param address byte address of the ring page in `memory` */
  constructor(
    readonly memory: Memory,
    readonly address: number,
    readonly slotSize: number,
  ) {
    this.size = ringSize(PAGE_SIZE, slotSize);
  }

  get reqProd(): number {
    return this.memory.load(this.address + RING_REQ_PROD);
  }

  set reqProd(index: number) {
    this.memory.store(this.address + RING_REQ_PROD, index);
  }

  get reqEvent(): number {
    return this.memory.load(this.address + RING_REQ_EVENT);
  }

  set reqEvent(index: number) {
    this.memory.store(this.address + RING_REQ_EVENT, index);
  }

  get rspProd(): number {
    return this.memory.load(this.address + RING_RSP_PROD);
  }

  set rspProd(index: number) {
    this.memory.store(this.address + RING_RSP_PROD, index);
  }

  get rspEvent(): number {
    return this.memory.load(this.address + RING_RSP_EVENT);
  }

  set rspEvent(index: number) {
    this.memory.store(this.address + RING_RSP_EVENT, index);
  }

  /** Byte address of the slot of a free-running index. */
  slot(index: number): number {
    return this.address + RING_HEADER_SIZE + (index & (this.size - 1)) * this.slotSize;
  }

  /** The `n`-th 32-bit word of a slot, unsigned. */
  word(index: number, n: number): number {
    return this.memory.u32[(this.slot(index) >>> 2) + n];
  }

  /** Writes 32-bit words from the start of a slot on. */
  write(index: number, ...words: readonly number[]): void {
    for (let i = 0; i < words.length; i++) this.memory.u32[(this.slot(index) >>> 2) + i] = words[i];
  }

  /** A copy of the whole page. */
  bytes(): Uint8Array {
    return this.memory.u8.slice(this.address, this.address + PAGE_SIZE);
  }

  /** Overwrites the page from byte `offset` on. */
  scribble(bytes: Uint8Array, offset = 0): void {
    this.memory.u8.set(bytes, this.address + offset);
  }
}
