import { GNTST } from '../abi/grant-table.js';

/** Marks a side of a copy that is the caller's own memory. */
export const COPY_LOCAL = -1;

/**
 * Many grant copies for one call (GNTTABOP_copy), as a struct of arrays that is filled, flushed and
 * cleared without allocating. A side is either local (`domid` COPY_LOCAL, `ref` a page number of the
 * caller's memory) or another domain's grant (`domid`, `ref` a grant reference). Neither side may cross
 * the end of its page.
 */
export class CopyBatch {
  count = 0;
  readonly srcDomid: Int32Array;
  readonly srcRef: Uint32Array;
  readonly srcOffset: Uint16Array;
  readonly dstDomid: Int32Array;
  readonly dstRef: Uint32Array;
  readonly dstOffset: Uint16Array;
  readonly length: Uint16Array;
  /** GNTST status of each copy; valid after the flush. */
  readonly status: Int16Array;

  constructor(readonly capacity: number) {
    this.srcDomid = new Int32Array(capacity);
    this.srcRef = new Uint32Array(capacity);
    this.srcOffset = new Uint16Array(capacity);
    this.dstDomid = new Int32Array(capacity);
    this.dstRef = new Uint32Array(capacity);
    this.dstOffset = new Uint16Array(capacity);
    this.length = new Uint16Array(capacity);
    this.status = new Int16Array(capacity);
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
    this.srcDomid[i] = srcDomid;
    this.srcRef[i] = srcRef;
    this.srcOffset[i] = srcOffset;
    this.dstDomid[i] = dstDomid;
    this.dstRef[i] = dstRef;
    this.dstOffset[i] = dstOffset;
    this.length[i] = length;
    this.status[i] = GNTST.general_error;
    return i;
  }
}
