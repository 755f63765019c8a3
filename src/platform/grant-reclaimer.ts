import type { Platform } from './platform.js';
import type { Timer } from './scheduler.js';

/** How often a grant is tried again that the peer would not let go of. */
const RETRY_MS = 1000;

/**
 * Ends grants and frees their pages, however long the peer keeps them mapped: until then neither the page
 * nor the reference is used for anything else (gnttab_end_foreign_access with its deferred list).
 */
export class GrantReclaimer {
  private waiting: { gref: number; page: number }[] = [];
  private timer: Timer | null = null;

  constructor(private readonly platform: Platform) {}

  /** Grants that their peers still hold. */
  get pending(): number {
    return this.waiting.length;
  }

  /** Ends the grant and frees the page, now or when the peer lets go. */
  end(gref: number, page: number): void {
    if (this.tryEnd(gref, page)) return;
    // A peer that uses one may use hundreds: one line is for all.
    if (this.waiting.length === 0) {
      this.platform.log(`the peer still uses grant ${gref}: its page is kept until it does not`);
    }
    this.waiting.push({ gref, page });
    this.timer ??= this.platform.scheduler.after(RETRY_MS, () => this.retry());
  }

  /** Tries all that wait again now. */
  retry(): void {
    if (this.timer !== null) this.platform.scheduler.cancel(this.timer);
    this.timer = null;
    this.waiting = this.waiting.filter(({ gref, page }) => !this.tryEnd(gref, page));
    if (this.waiting.length > 0) this.timer = this.platform.scheduler.after(RETRY_MS, () => this.retry());
  }

  /** Gives up what still waits: its domain is gone. */
  stop(): void {
    if (this.timer !== null) this.platform.scheduler.cancel(this.timer);
    this.timer = null;
    this.waiting = [];
  }

  private tryEnd(gref: number, page: number): boolean {
    if (!this.platform.grants.endAccess(gref)) return false;
    this.platform.memory.freePage(page);
    return true;
  }
}
