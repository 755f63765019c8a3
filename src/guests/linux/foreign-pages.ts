import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../../platform/index.js';
import type { Machine, MmioHandler } from './machine.js';

/** Where pages of other domains appear to the processor: above any RAM, below v86's own devices. */
const WINDOW = 0xc800_0000;
/** Pages of the window: a real netback maps two ring pages a queue, and what is in flight. */
const WINDOW_PAGES = 1 << 15;
const FIRST_WINDOW_PAGE = WINDOW / PAGE_SIZE;
const NONE = -1;

/**
 * Grants of other domains that the guest has mapped over pages of its own address space.
 *
 * Another domain's page lies in another memory, which the emulated processor cannot reach. A page that is
 * mapped writable (a ring) is therefore served as memory-mapped registers: the processor's page walk is told to
 * use a page of a window in place of the guest's, and every access there goes to the other memory, at once
 * and in order. A page that is mapped read-only (a frame that netback is to send) is copied when it is
 * mapped: whoever granted it must not change it meanwhile, and if it does, the receiver sees one state of it.
 */
export class ForeignPages implements MmioHandler {
  /** Page to use in place of the guest's, by guest-physical page. */
  private readonly replaced: Int32Array;
  /** Replaced pages. */
  private count = 0;
  private readonly memories: (Memory | null)[] = [];
  private readonly addresses: number[] = [];
  private readonly freeSlots: number[] = [];

  constructor(private readonly machine: Machine) {
    this.replaced = new Int32Array(machine.pages).fill(NONE);
    machine.mapMmio(WINDOW, WINDOW_PAGES * PAGE_SIZE, this);
  }

  /** Pages that are mapped writable. */
  get mapped(): number {
    return this.count;
  }

  /**
   * Shows the guest a page of `memory` at its page `gfn`.
   * @returns false when it cannot: `gfn` is beyond its RAM, or the window is full
   */
  map(gfn: number, memory: Memory, address: number, readonly: boolean): boolean {
    const { machine, replaced } = this;
    if (gfn >= machine.pages || replaced[gfn] !== NONE) return false;
    if (readonly) {
      machine.ram.u8.set(memory.u8.subarray(address, address + PAGE_SIZE), gfn * PAGE_SIZE);
      machine.written(gfn * PAGE_SIZE, PAGE_SIZE);
      return true;
    }
    const slot = this.freeSlots.pop() ?? this.memories.length;
    if (slot === WINDOW_PAGES) return false;
    this.memories[slot] = memory;
    this.addresses[slot] = address;
    replaced[gfn] = FIRST_WINDOW_PAGE + slot;
    this.count++;
    machine.setForeign(true);
    return true;
  }

  /** The guest has its own page at `gfn` again. */
  unmap(gfn: number): void {
    const page = this.replaced[gfn];
    if (page === undefined || page === NONE) return;
    const slot = page - FIRST_WINDOW_PAGE;
    this.replaced[gfn] = NONE;
    this.memories[slot] = null;
    this.freeSlots.push(slot);
    this.count--;
    this.machine.setForeign(this.count > 0);
  }

  /** The memory and byte address behind a guest page that is mapped writable; null for another page. */
  behind(gfn: number): { memory: Memory; address: number } | null {
    const page = this.replaced[gfn];
    if (page === undefined || page === NONE) return null;
    const slot = page - FIRST_WINDOW_PAGE;
    return { memory: this.memories[slot]!, address: this.addresses[slot] };
  }

  translatePage(page: number): number {
    const replaced = page < this.replaced.length ? this.replaced[page] : NONE;
    return replaced === NONE ? page : replaced;
  }

  read8(address: number): number {
    const slot = (address - WINDOW) >>> PAGE_SHIFT;
    const memory = this.memories[slot];
    if (memory === null || memory === undefined) return 0xff;
    return memory.u8[this.addresses[slot] + (address & (PAGE_SIZE - 1))];
  }

  write8(address: number, value: number): void {
    const slot = (address - WINDOW) >>> PAGE_SHIFT;
    const memory = this.memories[slot];
    if (memory === null || memory === undefined) return;
    memory.u8[this.addresses[slot] + (address & (PAGE_SIZE - 1))] = value;
  }

  read32(address: number): number {
    const slot = (address - WINDOW) >>> PAGE_SHIFT;
    const memory = this.memories[slot];
    if (memory === null || memory === undefined) return -1;
    const at = this.addresses[slot] + (address & (PAGE_SIZE - 1));
    if ((at & 3) === 0) return memory.i32[at >>> 2];
    const { u8 } = memory;
    return u8[at] | (u8[at + 1] << 8) | (u8[at + 2] << 16) | (u8[at + 3] << 24);
  }

  write32(address: number, value: number): void {
    const slot = (address - WINDOW) >>> PAGE_SHIFT;
    const memory = this.memories[slot];
    if (memory === null || memory === undefined) return;
    const at = this.addresses[slot] + (address & (PAGE_SIZE - 1));
    if ((at & 3) === 0) {
      memory.i32[at >>> 2] = value;
      return;
    }
    for (let i = 0; i < 4; i++) memory.u8[at + i] = value >>> (8 * i);
  }
}
