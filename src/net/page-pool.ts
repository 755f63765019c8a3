import type { DomainMemory } from '../platform/platform.js';

/** Pages that a pool has room for at first. */
const INITIAL_PAGES = 64;

/**
 * A bounded pool of pages, each known by its index (0 … limit - 1) and allocated when first needed. Who
 * takes a page owns it until it frees it; a page's content is whatever its last user left.
 */
export class PagePool {
  /** Page number by index; another array when the pool has grown. */
  pages: Int32Array;
  private freeList: Int32Array;
  private freeCount = 0;
  private made = 0;
  private dispose: ((page: number, index: number) => void) | null = null;

  constructor(
    private readonly memory: DomainMemory,
    readonly limit: number,
  ) {
    this.pages = new Int32Array(Math.min(limit, INITIAL_PAGES));
    this.freeList = new Int32Array(this.pages.length);
  }

  /** Pages that `alloc` can still hand out. */
  get available(): number {
    return this.freeCount + this.limit - this.made;
  }

  /** Pages handed out and not yet freed. */
  get used(): number {
    return this.made - this.freeCount;
  }

  /** @returns the index of a page, or -1 when all are in use, the domain's memory is, or the pool retired */
  alloc(): number {
    if (this.dispose !== null) return -1;
    if (this.freeCount > 0) return this.freeList[--this.freeCount];
    if (this.made === this.limit) return -1;
    let page: number;
    try {
      page = this.memory.allocPage();
    } catch {
      return -1;
    }
    if (this.made === this.pages.length) this.grow();
    this.pages[this.made] = page;
    return this.made++;
  }

  free(index: number): void {
    this.freeList[this.freeCount++] = index;
    if (this.dispose !== null) this.dispose(this.pages[index], index);
  }

  /** Hands every page to `dispose`: those that are free now, the others when their users free them. */
  retire(dispose: (page: number, index: number) => void): void {
    this.dispose = dispose;
    for (let i = 0; i < this.freeCount; i++) dispose(this.pages[this.freeList[i]], this.freeList[i]);
  }

  private grow(): void {
    const size = Math.min(this.limit, this.made * 2);
    const { pages } = this;
    this.pages = new Int32Array(size);
    this.pages.set(pages);
    // All pages are in use when another one is made: there is nothing on the list.
    this.freeList = new Int32Array(size);
  }
}
