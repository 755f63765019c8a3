import { PAGE_SHIFT } from '../platform/memory.js';
import type { GrantMapping, Platform } from '../platform/platform.js';

/** Static grants that a queue may have at most: a ring of pages that the guest receives into, and two that it sends from. */
export const STATIC_GRANTS_MAX = 768;

/**
 * Pages that a frontend asked to keep mapped (ADD_GREF_MAPPING): moving a packet from or to one of them
 * is a copy in the backend's own memory, without a hypercall, if the other side is local, too.
 */
export class StaticGrants {
  private readonly mappings = new Map<number, GrantMapping>();

  constructor(
    private readonly platform: Platform,
    private readonly domid: number,
    readonly limit = STATIC_GRANTS_MAX,
  ) {}

  get size(): number {
    return this.mappings.size;
  }

  /** Maps all of the entries, or none. @returns whether it did */
  add(entries: readonly { gref: number; readonly: boolean }[]): boolean {
    if (this.mappings.size + entries.length > this.limit) return false;
    const added: number[] = [];
    for (const { gref, readonly } of entries) {
      if (this.mappings.has(gref) || !this.map(gref, readonly)) {
        for (const done of added) this.remove(done);
        return false;
      }
      added.push(gref);
    }
    return true;
  }

  /** Unmaps one. @returns false when it was not mapped */
  remove(gref: number): boolean {
    const mapping = this.mappings.get(gref);
    if (mapping === undefined) return false;
    this.mappings.delete(gref);
    this.platform.grants.unmap(mapping);
    return true;
  }

  /**
   * Copies from the page that a grant is mapped at. A grant copy could not: to Xen the page is not ours.
   * @param offset in that page; `page` and `at` say where in our memory the bytes go
   * @returns false, having done nothing, when it is not mapped
   */
  read(gref: number, offset: number, page: number, at: number, length: number): boolean {
    const mapping = this.mappings.get(gref >>> 0);
    if (mapping === undefined) return false;
    mapping.memory.copy((page << PAGE_SHIFT) + at, mapping.address + offset, length);
    return true;
  }

  /** Copies to the page that a grant is mapped at. @returns false, having done nothing, when it is not, or readonly */
  write(gref: number, offset: number, page: number, at: number, length: number): boolean {
    const mapping = this.mappings.get(gref >>> 0);
    if (mapping === undefined || mapping.readonly) return false;
    mapping.memory.copy(mapping.address + offset, (page << PAGE_SHIFT) + at, length);
    return true;
  }

  destroy(): void {
    for (const gref of [...this.mappings.keys()]) this.remove(gref);
  }

  private map(gref: number, readonly: boolean): boolean {
    let mapping: GrantMapping;
    try {
      mapping = this.platform.grants.map(this.domid, gref, readonly);
    } catch {
      return false;
    }
    // A page in other memory than ours (an emulated PC's RAM) cannot be named as a local one.
    if (mapping.memory.buffer !== this.platform.memory.memory.buffer) {
      this.platform.grants.unmap(mapping);
      return false;
    }
    this.mappings.set(gref, mapping);
    return true;
  }
}
