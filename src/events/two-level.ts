import { type SharedInfoLayout, sharedInfoLayout } from '../abi/xen.js';
import type { Memory } from '../platform/memory.js';

/**
 * The guest's side of the two-level event bitmaps in struct shared_info: a selector bit for each word of the
 * pending bitmap, a pending and a mask bit for each port.
 *
 * A scan begins behind the port where the last one ended, so that busy low ports do not starve high ones
 * (as Linux's events_2l.c does).
 */
export class TwoLevelBitmap {
  private readonly layout: SharedInfoLayout;
  /** Index of the first word in `memory.i32`. */
  private readonly pending: number;
  private readonly mask: number;
  private readonly selector: number;
  /** Byte address of evtchn_upcall_pending. */
  private readonly upcallPending: number;
  /** 32-bit words that a selector bit stands for. */
  private readonly halves: number;
  private readonly selectors = new Int32Array(2);
  /** Where the next scan begins. */
  private start = 0;

  constructor(
    private readonly memory: Memory,
    sharedInfo: number,
    wordBits: 32 | 64,
    vcpu: number,
  ) {
    const layout = sharedInfoLayout(wordBits);
    this.layout = layout;
    const info = sharedInfo + layout.vcpu_info + vcpu * layout.vcpu.size;
    this.pending = (sharedInfo + layout.evtchn_pending) >>> 2;
    this.mask = (sharedInfo + layout.evtchn_mask) >>> 2;
    this.selector = (info + layout.vcpu.evtchn_pending_sel) >>> 2;
    this.upcallPending = info + layout.vcpu.evtchn_upcall_pending;
    this.halves = wordBits / 32;
  }

  /** Masks every port, as a kernel does before it binds any. */
  maskAll(): void {
    const words = this.layout.nrEventChannels / 32;
    this.memory.i32.fill(-1, this.mask, this.mask + words);
  }

  clearPending(port: number): void {
    this.memory.i32[this.pending + (port >>> 5)] &= ~(1 << (port & 31));
  }

  /**
   * Calls `handle` for each port that is pending and not masked: one pass over the words that were selected.
   * An event that comes meanwhile raises another upcall.
   */
  scan(handle: (port: number) => void): void {
    const { memory, selectors, selector, halves } = this;
    memory.u8[this.upcallPending] = 0;
    let any = 0;
    for (let i = 0; i < halves; i++) {
      selectors[i] = memory.i32[selector + i];
      memory.i32[selector + i] = 0;
      any |= selectors[i];
    }
    if (any === 0) return;
    // The first word is looked at twice: from the start position on, and at the end what lies before.
    const first = this.start >>> 5;
    const before = ~(-1 << (this.start & 31));
    for (let word = this.nextSelected(first); word >= 0; word = this.nextSelected(word + 1)) {
      this.scanWord(word, word === first ? ~before : -1, handle);
    }
    for (let word = this.nextSelected(0); word >= 0 && word <= first; word = this.nextSelected(word + 1)) {
      this.scanWord(word, word === first ? before : -1, handle);
    }
  }

  /** The lowest 32-bit word from `word` on whose selector bit was set, or -1. */
  private nextSelected(word: number): number {
    const { selectors, halves } = this;
    const selector = halves === 2 ? word >>> 1 : word;
    let i = selector >>> 5;
    let bits = i < halves ? selectors[i] & (-1 << (selector & 31)) : 0;
    while (bits === 0) {
      if (++i >= halves) return -1;
      bits = selectors[i];
    }
    const found = (i << 5) | (31 - Math.clz32(bits & -bits));
    return halves === 2 ? Math.max(word, found << 1) : found;
  }

  private scanWord(word: number, bits: number, handle: (port: number) => void): void {
    const { i32 } = this.memory;
    let active = bits;
    for (;;) {
      active &= i32[this.pending + word] & ~i32[this.mask + word];
      if (active === 0) return;
      const bit = 31 - Math.clz32(active & -active);
      const port = (word << 5) | bit;
      this.start = (port + 1) % this.layout.nrEventChannels;
      handle(port);
      // Only ports above remain for this pass.
      active = bit === 31 ? 0 : bits & (-2 << bit);
    }
  }
}
