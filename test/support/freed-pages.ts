import assert from 'node:assert/strict';
import { DOMID_INVALID } from '../../src/abi/xen.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import type { Domain, Hypervisor } from '../../src/platform/sim/index.js';

const POISON = 0xa5;

/** Fills pages that were given back, so that who still reads them comes to harm, and who writes to them is found. */
class Poison {
  private readonly pages = new Set<number>();

  constructor(private readonly hypervisor: Hypervisor) {}

  private isFree(page: number): boolean {
    return this.hypervisor.frames.owner[page] === DOMID_INVALID;
  }

  private bytes(page: number): Uint8Array {
    return this.hypervisor.memory.u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  }

  /** Fills a page unless somebody still has it. */
  protected freed(page: number): void {
    if (!this.isFree(page)) return;
    this.pages.add(page);
    this.bytes(page).fill(POISON);
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

/** The pages that one domain gives back. */
export class FreedPages extends Poison {
  constructor(domain: Domain) {
    super(domain.hypervisor);
    const freePage = domain.freePage.bind(domain);
    domain.freePage = page => {
      freePage(page);
      this.freed(page);
    };
  }
}

/** The frames that anybody gives back, and those of domains that are destroyed. */
export class FreedFrames extends Poison {
  constructor(hypervisor: Hypervisor) {
    super(hypervisor);
    const { frames } = hypervisor;
    for (const name of ['release', 'put'] as const) {
      const inner = frames[name].bind(frames);
      frames[name] = frame => {
        const free = inner(frame);
        if (free) this.freed(frame);
        return free;
      };
    }
  }
}
