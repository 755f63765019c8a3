import { seededRandom } from '../../src/platform/sim/random.js';

/** Draws for a fuzzer, all from one seed. */
export class Draw {
  readonly next: () => number;

  constructor(readonly seed: number) {
    this.next = seededRandom(seed);
  }

  /** 0 … n - 1. */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** True once in `n` times. */
  oneIn(n: number): boolean {
    return this.next() * n < 1;
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }

  u32(): number {
    return this.oneIn(2) ? this.of(EDGES_32) : (this.next() * 0x1_0000_0000) >>> 0;
  }

  u16(): number {
    return this.oneIn(2) ? this.of(EDGES_16) : this.below(0x10000);
  }

  /** A word in the place of `old`: any, or one with a bit or a half of it changed. */
  changed(old: number): number {
    return this.of([
      this.u32(),
      (old ^ (1 << this.below(32))) >>> 0,
      ((old & 0xffff) | (this.u16() << 16)) >>> 0,
      ((old & 0xffff0000) | this.u16()) >>> 0,
    ]);
  }

  /** An index that is near `near`, or anywhere. */
  index(near: number): number {
    return this.oneIn(8) ? this.u32() : (near + this.below(600) - 300) >>> 0;
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.below(256));
  }
}

const EDGES_16 = [0, 1, 2, 13, 14, 15, 54, 60, 127, 128, 129, 191, 192, 193, 480, 481].concat([
  1514, 4081, 4082, 4095, 4096, 4097, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff,
]);
const EDGES_32 = [0, 1, 2, 8, 255, 256, 257, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffff00].concat([
  0xfffffffe, 0xffffffff,
]);
