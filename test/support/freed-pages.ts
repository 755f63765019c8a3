import assert from 'node:assert/strict';
import { DOMID_INVALID } from '../../src/abi/xen.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import type { Domain } from '../../src/platform/sim/index.js';

const POISON = 0xa5;

/** Fills each page that a domain gives back, so that who still reads it comes to harm, and who writes to it is found. */
export class FreedPages {
  private readonly pages = new Set<number>();

  constructor(private readonly domain: Domain) {
    const freePage = domain.freePage.bind(domain);
    domain.freePage = page => {
      freePage(page);
      if (!this.isFree(page)) return;
      this.pages.add(page);
      this.bytes(page).fill(POISON);
    };
  }

  private isFree(page: number): boolean {
    return this.domain.hypervisor.frames.owner[page] === DOMID_INVALID;
  }

  private bytes(page: number): Uint8Array {
    return this.domain.hypervisor.memory.u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  }

  /** Fails when a page was written to while nobody had it. */
  check(): void {
    for (const page of this.pages) {
      if (!this.isFree(page)) continue;
      assert.ok(
        this.bytes(page).every(byte => byte === POISON),
        `page ${page} was written to after it was freed`,
      );
    }
  }
}
