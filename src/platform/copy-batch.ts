import { GNTST } from '../abi/grant-table.js';
import {
  COPY_DST_DOMID,
  COPY_DST_OFFSET,
  COPY_DST_REF,
  COPY_LENGTH,
  COPY_SRC_DOMID,
  COPY_SRC_OFFSET,
  COPY_SRC_REF,
  COPY_STATUS,
  COPY_WORDS,
} from './copy-words.js';

export * from './copy-words.js';

/**
 * Many grant copies for one call (GNTTABOP_copy), filled, flushed and cleared without allocating. Neither side of a
 * copy may cross the end of its page.
 */
export class CopyBatch {
  count = 0;
  /** COPY_WORDS for each copy, half a cache line; references as int32. */
  readonly words: Int32Array;

  constructor(readonly capacity: number) {
    this.words = new Int32Array(capacity * COPY_WORDS);
  }

  get free(): number {
    return this.capacity - this.count;
  }

  clear(): void {
    this.count = 0;
  }

  /**
   * Adds a copy. @returns its index, to look up `status` with
   * @throws RangeError when the batch is full: the caller reserves room with `free` first
   */
  add(
    srcDomid: number,
    srcRef: number,
    srcOffset: number,
    dstDomid: number,
    dstRef: number,
    dstOffset: number,
    length: number,
  ): number {
    const i = this.count;
    if (i === this.capacity) throw new RangeError(`the copy batch holds ${this.capacity} copies, no more`);
    this.count = i + 1;
    const { words } = this;
    const at = i * COPY_WORDS;
    words[at + COPY_STATUS] = GNTST.general_error;
    words[at + COPY_LENGTH] = length;
    words[at + COPY_DST_OFFSET] = dstOffset;
    words[at + COPY_DST_REF] = dstRef;
    words[at + COPY_DST_DOMID] = dstDomid;
    words[at + COPY_SRC_OFFSET] = srcOffset;
    words[at + COPY_SRC_REF] = srcRef;
    words[at + COPY_SRC_DOMID] = srcDomid;
    return i;
  }

  /** GNTST status of a copy; valid after the flush. */
  status(index: number): number {
    return this.words[index * COPY_WORDS + COPY_STATUS];
  }

  setStatus(index: number, status: number): void {
    this.words[index * COPY_WORDS + COPY_STATUS] = status;
  }

  /** Gives all copies one status. */
  setAll(status: number): void {
    for (let i = 0; i < this.count; i++) this.setStatus(i, status);
  }

  /** Whether all of `count` copies from `first` on were done. */
  done(first: number, count: number): boolean {
    const { words } = this;
    for (let i = first; i < first + count; i++) {
      if (words[i * COPY_WORDS + COPY_STATUS] !== GNTST.okay) return false;
    }
    return true;
  }
}
