import { ErrnoError } from '../abi/errno.js';
import { PagePool } from '../net/page-pool.js';
import type { GrantReclaimer } from '../platform/grant-reclaimer.js';
import type { Platform } from '../platform/platform.js';

/**
 * Pages that are granted to the backend when they are first used, and stay so until the connection ends: those that
 * a frontend sends from, read-only. Sending costs no grant operation then, and the backend never sees more than
 * packets that were sent to it. Those that it receives into, too, where a grant is tied to its page, or the backend
 * keeps them mapped.
 */
export class GrantedPool {
  readonly pages: PagePool;
  /** Grant reference of each page, 0 before its first use. */
  private readonly grefs: Int32Array;

  constructor(
    private readonly platform: Platform,
    private readonly reclaimer: GrantReclaimer,
    private readonly backendId: number,
    limit: number,
    private readonly readonly = true,
  ) {
    this.pages = new PagePool(platform.memory, limit);
    this.grefs = new Int32Array(limit);
  }

  /** The reference of a page in use. @throws ENOSPC when the grant table is full */
  grefOf(index: number): number {
    const gref = this.grefs[index];
    return gref !== 0 ? gref : this.grant(index);
  }

  /** `grefOf`, but 0 when the grant table is full. */
  tryGrefOf(index: number): number {
    try {
      return this.grefOf(index);
    } catch {
      return 0;
    }
  }

  /** The reference of a page, 0 before its first use. */
  knownGref(index: number): number {
    return this.grefs[index];
  }

  /**
   * Makes and grants so many pages, or as many as the pool has left, ahead of their use.
   * @returns their references @throws ENOSPC when the grant table is full
   */
  grantAhead(count: number): number[] {
    const indexes: number[] = [];
    try {
      for (let i = 0; i < count; i++) {
        const index = this.pages.alloc();
        if (index < 0) break;
        indexes.push(index);
      }
      return indexes.map(index => this.grefOf(index));
    } finally {
      for (const index of indexes) this.pages.free(index);
    }
  }

  /**
   * Makes and grants all pages.
   * @returns their references, of those in use, too @throws ENOSPC when the grant table is full, ENOMEM
   */
  grantAll(): number[] {
    const { limit } = this.pages;
    this.grantAhead(limit);
    const grefs = Array.from(this.grefs).filter(gref => gref !== 0);
    if (grefs.length < limit) throw new ErrnoError('ENOMEM', `only ${grefs.length} of ${limit} pages`);
    return grefs;
  }

  /** Gives all pages back: those in use when their packets are released, or the backend lets go of them. */
  retire(): void {
    this.pages.retire((page, index) => {
      if (this.grefs[index] === 0) this.platform.memory.freePage(page);
      else this.reclaimer.end(this.grefs[index], page);
    });
  }

  private grant(index: number): number {
    const gref = this.platform.grants.grantAccess(this.backendId, this.pages.pages[index], this.readonly);
    this.grefs[index] = gref;
    return gref;
  }
}
