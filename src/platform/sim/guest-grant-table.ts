import {
  GNTST,
  GNTTAB_NR_RESERVED_ENTRIES,
  GTF_permit_access,
  GTF_reading,
  GTF_readonly,
  GTF_writing,
} from '../../abi/grant-table.js';
import { DOMID_SELF } from '../../abi/xen.js';
import { HypercallError } from '../errors.js';
import type { Domain } from './domain.js';
import type { GrantTable } from './grant-table.js';

/**
 * The guest kernel's side of its grant table: the list of free references, and the entries it writes.
 * The kernel and the hypervisor share a thread, so plain stores do where a guest on another processor needs a
 * barrier; the order is kept all the same, flags last.
 */
export class GuestGrantTable {
  private readonly i32: Int32Array;
  private readonly gfn: Int32Array;
  private readonly owner: Uint16Array;
  private readonly table: GrantTable;
  /** Free references, the next one last. */
  private freeList = new Int32Array(0);
  private freeCount = 0;
  /** 1 for a reference that was taken. */
  private taken = new Uint8Array(0);
  private known = GNTTAB_NR_RESERVED_ENTRIES;

  constructor(protected readonly domain: Domain) {
    const { hypervisor } = domain;
    this.i32 = hypervisor.memory.i32;
    this.gfn = hypervisor.frames.gfn;
    this.owner = hypervisor.frames.owner;
    this.table = domain.grantTable;
  }

  get allocated(): number {
    return this.known - GNTTAB_NR_RESERVED_ENTRIES - this.freeCount;
  }

  get available(): number {
    return this.table.maxEntries - GNTTAB_NR_RESERVED_ENTRIES - this.allocated;
  }

  alloc(): number {
    if (this.freeCount === 0) this.expand();
    const gref = this.freeList[--this.freeCount];
    this.taken[gref] = 1;
    return gref;
  }

  free(gref: number): void {
    // Whoever takes a driver down by then may find anything in pages that were the domain's.
    if (this.domain.dying) return;
    if (this.taken[gref] !== 1) throw new HypercallError('EINVAL', `grant reference ${gref} was not taken`);
    this.taken[gref] = 0;
    this.freeList[this.freeCount++] = gref;
  }

  grant(gref: number, domid: number, page: number, readonly: boolean): void {
    const { domain, table } = this;
    if (domain.dying) return;
    if (this.owner[page] !== domain.domid || this.taken[gref] !== 1) this.refuse(gref, page);
    const { i32 } = this;
    const at = table.entryWord(gref);
    const flags = readonly ? GTF_permit_access | GTF_readonly : GTF_permit_access;
    if (table.version === 1) {
      i32[at + 1] = this.gfn[page];
    } else {
      i32[at + 1] = 0;
      i32[at + 2] = this.gfn[page];
      i32[at + 3] = 0;
    }
    i32[at] = (domid << 16) | flags;
  }

  end(gref: number): boolean {
    const { table, i32 } = this;
    // Beyond the table, or the domain was destroyed and the table with it.
    if (gref >= table.entries || this.domain.dying) return true;
    const at = table.entryWord(gref);
    if (table.version === 1) {
      if ((i32[at] & (GTF_reading | GTF_writing)) !== 0) return false;
      i32[at] = 0;
      return true;
    }
    i32[at] = 0;
    const status = this.domain.hypervisor.memory.u16[table.statusHalfword(gref)];
    return (status & (GTF_reading | GTF_writing)) === 0;
  }

  grantAccess(domid: number, page: number, readonly: boolean): number {
    const gref = this.alloc();
    try {
      this.grant(gref, domid, page, readonly);
    } catch (error) {
      this.free(gref);
      throw error;
    }
    return gref;
  }

  endAccess(gref: number): boolean {
    if (!this.end(gref)) return false;
    this.free(gref);
    return true;
  }

  private refuse(gref: number, page: number): never {
    throw new HypercallError(
      'EINVAL',
      this.taken[gref] === 1
        ? `page ${page} is not of domain ${this.domain.domid}, so it cannot grant it`
        : `grant reference ${gref} was not taken`,
    );
  }

  /** Makes the entries usable that the table has gained, after asking for another frame if need be. */
  private expand(): void {
    const { domain, table } = this;
    if (this.known === table.entries) {
      const more = table.frames.length + 1;
      const status = domain.dying
        ? GNTST.general_error
        : domain.hypervisor.grants.setupTable(domain, DOMID_SELF, more);
      if (status !== GNTST.okay) {
        throw new HypercallError(
          'ENOSPC',
          `domain ${domain.domid} has used all ${table.entries} entries of its grant table`,
        );
      }
    }
    const { known } = this;
    const { entries } = table;
    const free = new Int32Array(entries);
    free.set(this.freeList);
    const taken = new Uint8Array(entries);
    taken.set(this.taken);
    this.freeList = free;
    this.taken = taken;
    // The lowest is handed out first.
    for (let gref = entries - 1; gref >= known; gref--) this.freeList[this.freeCount++] = gref;
    this.known = entries;
  }
}
