import { HypercallError } from '../errors.js';
import { PAGE_SHIFT } from '../memory.js';
import { LEAF_MASK, LEAF_SHIFT } from './domain-record.js';
import type { FrameTable } from './frame-table.js';
import type { MachineMemory } from './machine-memory.js';

/** Guest frame numbers that a domain can have: all of 4 GiB. */
export const GFNS_MAX = 1 << (2 * LEAF_SHIFT);

/**
 * A domain's frames by guest frame number: 0 where there is none, negative for a frame that the domain sees but that is
 * not its RAM (shared info, grant table), so that it cannot be granted. Two levels in frames of the hypervisor's own.
 */
export class Physmap {
  /** The first level: a leaf's address by the upper bits of the number. */
  private readonly top: number;

  /** @throws ENOMEM */
  constructor(
    private readonly memory: MachineMemory,
    private readonly frames: FrameTable,
  ) {
    this.top = frames.allocXen();
  }

  /** Byte address of the first level. */
  get address(): number {
    return this.top << PAGE_SHIFT;
  }

  private leaf(gfn: number): number {
    return this.memory.i32[(this.address >>> 2) + (gfn >>> LEAF_SHIFT)];
  }

  get(gfn: number): number {
    if (!(gfn >= 0 && gfn < GFNS_MAX)) return 0;
    const leaf = this.leaf(gfn);
    return leaf === 0 ? 0 : this.memory.i32[(leaf >>> 2) + (gfn & LEAF_MASK)];
  }

  /** @throws EINVAL beyond GFNS_MAX, ENOMEM */
  set(gfn: number, frame: number): void {
    if (!(gfn >= 0 && gfn < GFNS_MAX)) {
      throw new HypercallError('EINVAL', `guest frame number ${gfn}: they are 0 … ${GFNS_MAX - 1}`);
    }
    const { i32 } = this.memory;
    if (this.leaf(gfn) === 0) {
      i32[(this.address >>> 2) + (gfn >>> LEAF_SHIFT)] = this.frames.allocXen() << PAGE_SHIFT;
    }
    i32[(this.leaf(gfn) >>> 2) + (gfn & LEAF_MASK)] = frame;
  }

  /** Calls `visit` with every frame that is RAM. */
  forEachRam(visit: (frame: number) => void): void {
    for (let gfn = 0; gfn < GFNS_MAX; gfn += 1 << LEAF_SHIFT) {
      if (this.leaf(gfn) === 0) continue;
      for (let i = gfn; i < gfn + (1 << LEAF_SHIFT); i++) {
        const frame = this.get(i);
        if (frame > 0) visit(frame);
      }
    }
  }

  /** Forgets all. */
  clear(): void {
    for (const leaf of this.leaves()) this.memory.clearPage(leaf);
  }

  /** The domain is gone. */
  destroy(): void {
    for (const leaf of this.leaves()) this.frames.release(leaf);
    this.frames.release(this.top);
  }

  /** Frames of the second level. */
  private leaves(): number[] {
    const first = this.address >>> 2;
    const addresses = [...this.memory.i32.subarray(first, first + LEAF_MASK + 1)];
    return addresses.filter(address => address !== 0).map(address => address >>> PAGE_SHIFT);
  }
}
