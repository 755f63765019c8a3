import { DOMID_INVALID, DOMID_XEN } from '../../abi/xen.js';
import { HypercallError } from '../errors.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../memory.js';
import type { MachineMemory } from './machine-memory.js';

/**
 * The hypervisor numbers frames as (bank << BANK_SHIFT) | page: bank 0 is machine memory, the others are
 * emulated PCs' RAM.
 */
export const BANK_SHIFT = 20;
export const PAGE_IN_BANK = (1 << BANK_SHIFT) - 1;

/** `gfn` of a frame that is in no physmap. */
export const NO_GFN = -1;

/**
 * Who owns each frame of machine memory (Xen's page_info): a frame is free, a domain's, or the
 * hypervisor's own. A frame that a peer still maps when its owner gives it up stays allocated until the
 * last mapping goes.
 */
export class FrameTable {
  /**
   * Owner by frame: a domid, DOMID_XEN for the hypervisor's own, DOMID_INVALID for a free one. It lies in the first frames
   * behind frame 0.
   */
  readonly owner: Uint16Array;
  /** Guest frame number by frame (Xen's M2P table), or NO_GFN. */
  readonly gfn: Int32Array;
  /** Mappings by other domains. */
  private readonly references: Int32Array;
  /** 1 for a frame that its owner gave up while it was mapped. */
  private readonly released: Uint8Array;
  private readonly freeFrames: Int32Array;
  private freeCount = 0;
  /** Frames below were handed out before; those from here on are untouched, and zero. */
  private fresh: number;

  constructor(private readonly memory: MachineMemory) {
    const { pages } = memory;
    const ownFrames = Math.ceil((pages * Uint16Array.BYTES_PER_ELEMENT) / PAGE_SIZE);
    this.fresh = 1 + ownFrames;
    this.owner = new Uint16Array(memory.buffer, this.ownerAddress, pages).fill(DOMID_INVALID);
    this.owner.fill(DOMID_XEN, 1, this.fresh);
    this.gfn = new Int32Array(pages).fill(NO_GFN);
    this.references = new Int32Array(pages);
    this.released = new Uint8Array(pages);
    this.freeFrames = new Int32Array(pages);
  }

  /** Byte address of `owner`. */
  get ownerAddress(): number {
    return 1 << PAGE_SHIFT;
  }

  /** A frame of zeros for the hypervisor. @throws ENOMEM */
  allocXen(): number {
    return this.alloc(DOMID_XEN);
  }

  /** Frames that can still be allocated. Frame 0 never is: no valid page is at address 0. */
  get available(): number {
    return this.freeCount + this.memory.pages - this.fresh;
  }

  /** A frame of zeros. @throws ENOMEM when the machine has none left */
  alloc(owner: number): number {
    let frame: number;
    if (this.freeCount > 0) {
      frame = this.freeFrames[--this.freeCount];
      this.memory.clearPage(frame);
    } else if (this.fresh < this.memory.pages) {
      frame = this.fresh++;
    } else {
      throw new HypercallError('ENOMEM', `all ${this.memory.pages} frames of the machine are in use`);
    }
    this.owner[frame] = owner;
    return frame;
  }

  /**
   * The owner gives the frame up.
   * @returns false when it is still mapped: `put` frees it later
   */
  release(frame: number): boolean {
    this.gfn[frame] = NO_GFN;
    if (this.references[frame] > 0) {
      this.released[frame] = 1;
      return false;
    }
    this.free(frame);
    return true;
  }

  /** A domain maps the frame. */
  get(frame: number): void {
    this.references[frame]++;
  }

  /** A mapping goes. @returns true when that freed a frame which its owner had given up */
  put(frame: number): boolean {
    if (--this.references[frame] > 0 || this.released[frame] === 0) return false;
    this.released[frame] = 0;
    this.free(frame);
    return true;
  }

  private free(frame: number): void {
    this.owner[frame] = DOMID_INVALID;
    this.freeFrames[this.freeCount++] = frame;
  }
}
