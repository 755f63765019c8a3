import { GNTST } from '../../abi/grant-table.js';
import {
  COPY_DST_DOMID,
  COPY_LENGTH,
  COPY_LOCAL,
  COPY_SRC_DOMID,
  COPY_WORDS,
  type CopyBatch,
} from '../copy-batch.js';
import { PAGE_SIZE } from '../memory.js';

/**
 * struct gntdev_grant_copy_segment (Linux, include/uapi/xen/gntdev.h), 24 bytes:
 *
 *     word 0  source: address, low half    | grant reference
 *     word 1          address, high half   | offset u16, domid u16
 *     word 2, 3 destination, the same
 *     word 4  length u16, flags u16
 *     word 5  status s16
 */
export const SEGMENT_BYTES = 24;
const SEGMENT_WORDS = SEGMENT_BYTES / 4;
/** GNTCOPY_*: which sides are grants. */
const SOURCE_GREF = 1 << 16;
const DEST_GREF = 1 << 17;

/** Grants that are mapped at pages of ours: the kernel cannot copy from or to such a page as a local one. */
export interface ForeignPages {
  /** Domain that granted what lies at `page`, or -1 for a page of our own. */
  domidAt(page: number): number;
  grefAt(page: number): number;
}

/** Encodes copies of a batch for IOCTL_GNTDEV_GRANT_COPY, and takes the results back. */
export class CopySegments {
  /** Segments encoded. */
  count = 0;
  /** Bytes that they copy, and how many of them are from grant to grant. */
  bytes = 0;
  grantToGrant = 0;
  /** Batch index of each. */
  private readonly index: Int32Array;

  /**
   * @param words where the segments go
   * @param base address in the process of local page 0
   */
  constructor(
    private readonly words: Uint32Array,
    private readonly base: number,
    private readonly foreign: ForeignPages,
  ) {
    this.index = new Int32Array(Math.floor(words.length / SEGMENT_WORDS));
  }

  /**
   * Encodes the copies from `from` on that have a grant on a side; `copyLocal` gets the others.
   * @returns the index behind the last copy that was taken: less than the batch's count when the segments are full
   */
  encode(batch: CopyBatch, from: number, copyLocal: (batch: CopyBatch, index: number) => void): number {
    const { words, index } = this;
    const copies = batch.words;
    let count = 0;
    let bytes = 0;
    let grantToGrant = 0;
    let i = from;
    for (; i < batch.count && count < index.length; i++) {
      const copy = i * COPY_WORDS;
      const fromGrant = copies[copy + COPY_SRC_DOMID] !== COPY_LOCAL;
      const toGrant = copies[copy + COPY_DST_DOMID] !== COPY_LOCAL;
      if (!fromGrant && !toGrant) {
        copyLocal(batch, i);
        continue;
      }
      if (fromGrant && toGrant) grantToGrant++;
      const at = count * SEGMENT_WORDS;
      const length = copies[copy + COPY_LENGTH];
      bytes += length;
      let flags = length;
      if (this.side(at, copies, copy + COPY_SRC_DOMID)) flags |= SOURCE_GREF;
      if (this.side(at + 2, copies, copy + COPY_DST_DOMID)) flags |= DEST_GREF;
      words[at + 4] = flags;
      words[at + 5] = GNTST.general_error;
      index[count++] = i;
    }
    this.count = count;
    this.bytes = bytes;
    this.grantToGrant = grantToGrant;
    return i;
  }

  /** Takes over the statuses that the kernel wrote. */
  finish(batch: CopyBatch): void {
    const { words, index, count } = this;
    for (let n = 0; n < count; n++) batch.setStatus(index[n], (words[n * SEGMENT_WORDS + 5] << 16) >> 16);
  }

  /** The ioctl as a whole was refused. */
  fail(batch: CopyBatch): void {
    for (let n = 0; n < this.count; n++) batch.setStatus(this.index[n], GNTST.general_error);
  }

  /** Encodes the side of a copy that begins at `from`. @returns whether it is a grant */
  private side(at: number, copy: Int32Array, from: number): boolean {
    const { words, foreign } = this;
    let domid = copy[from];
    let ref = copy[from + 1] >>> 0;
    const offset = copy[from + 2];
    if (domid === COPY_LOCAL) {
      domid = foreign.domidAt(ref);
      if (domid < 0) {
        const address = this.base + ref * PAGE_SIZE + offset;
        words[at] = address;
        words[at + 1] = address / 0x1_0000_0000;
        return false;
      }
      ref = foreign.grefAt(ref);
    }
    words[at] = ref;
    words[at + 1] = offset | (domid << 16);
    return true;
  }
}
