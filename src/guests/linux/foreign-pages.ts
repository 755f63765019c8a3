import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../../platform/index.js';
import { type ControlBlock, WINDOW_PAGES, WORD } from './control-block.js';
import { WINDOW_ADDRESS } from './foreign-window.js';

const FIRST_WINDOW_PAGE = WINDOW_ADDRESS >>> PAGE_SHIFT;

/**
 * Pages of other memories that a guest sees at pages of its own address space: its rings and grant table in machine
 * memory, and grants of other domains that it has mapped. The emulated processor cannot reach another memory.
 *
 * A page that the guest may write, a ring, is therefore served as memory-mapped registers: the processor's page walk
 * finds a page of a window in place of the guest's (see ForeignWindow). A page that is mapped read-only (a frame that
 * netback is to send) is copied when it is mapped: whoever granted it must not change it meanwhile, and if it does, the
 * receiver sees one state of it.
 */
export class ForeignPages {
  private readonly freeSlots: number[] = [];
  private used = 0;

  /** @param written is told which part of the RAM was written to */
  constructor(
    private readonly ram: Memory,
    private readonly control: ControlBlock,
    private readonly written: (address: number, bytes: number) => void,
  ) {}

  /** Pages that are served as registers. */
  get shown(): number {
    return this.used - this.freeSlots.length;
  }

  /**
   * Shows the guest a frame at its page `gfn`, live.
   * @param frame in the hypervisor's numbering
   * @returns false when another one is there, or the window is full
   */
  show(gfn: number, frame: number): boolean {
    const { window, pages, words } = this.control;
    if (gfn >= pages.length || pages[gfn] !== 0) return false;
    const slot = this.freeSlots.pop() ?? this.used++;
    if (slot >= WINDOW_PAGES) {
      this.used = WINDOW_PAGES;
      return false;
    }
    window[slot] = frame;
    pages[gfn] = gfn ^ (FIRST_WINDOW_PAGE + slot);
    Atomics.add(words, WORD.pagesChanged, 1);
    return true;
  }

  /** The guest has its own page at `gfn` again, if it has not already. @param gfn any number */
  hide(gfn: number): void {
    const { window, pages, words } = this.control;
    const shown = pages[gfn] ?? 0;
    if (shown === 0) return;
    const slot = (shown ^ gfn) - FIRST_WINDOW_PAGE;
    window[slot] = 0;
    pages[gfn] = 0;
    this.freeSlots.push(slot);
    Atomics.add(words, WORD.pagesChanged, 1);
  }

  /**
   * Maps a grant at a page of the guest's RAM.
   * @param memory that holds the frame, at byte `address`
   * @returns false when it cannot: `gfn` is beyond its RAM, or as `show`
   */
  map(gfn: number, frame: number, memory: Memory, address: number, readonly: boolean): boolean {
    const { ram, control } = this;
    if ((gfn + 1) * PAGE_SIZE > ram.u8.length || control.pages[gfn] !== 0) return false;
    if (!readonly) return this.show(gfn, frame);
    ram.u8.set(memory.u8.subarray(address, address + PAGE_SIZE), gfn * PAGE_SIZE);
    this.written(gfn * PAGE_SIZE, PAGE_SIZE);
    return true;
  }
}
