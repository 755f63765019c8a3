import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../../platform/index.js';
import { BANK_SHIFT, PAGE_IN_BANK } from '../../platform/sim/frame-table.js';
import { type ControlBlock, WINDOW_PAGES } from './control-block.js';
import type { MmioWindow } from './machine.js';

/** Where pages of other memories appear to the processor: above any RAM, below v86's own devices. */
export const WINDOW_ADDRESS = 0xc800_0000;
const SHIFT = Math.log2(WINDOW_PAGES * PAGE_SIZE);
const OFFSET_IN_PAGE = PAGE_SIZE - 1;

/**
 * Pages of other memories as memory-mapped registers of the emulated processor, which cannot reach them: each access goes to
 * the other memory, at once and in order. Which page is where the host's thread says, in the control block.
 */
export class ForeignWindow implements MmioWindow {
  readonly number = WINDOW_ADDRESS >>> SHIFT;
  readonly shift = SHIFT;
  /** By number of the hypervisor's memory bank; 0 is machine memory. */
  private readonly banks: (Memory | undefined)[] = [];
  private control: ControlBlock | null = null;
  /** What the last address was found to be: its byte address in that memory. */
  private at = 0;

  /** Until then there is nothing in it. */
  attach(control: ControlBlock): void {
    this.control = control;
  }

  /** A bank of memory is there, or no more. */
  setBank(bank: number, memory: Memory | null): void {
    this.banks[bank] = memory ?? undefined;
  }

  /** The memory behind an address, and `at`; nothing where there is none. */
  private find(address: number): Memory | undefined {
    const frame = this.control?.window[(address >>> PAGE_SHIFT) & (WINDOW_PAGES - 1)] ?? 0;
    if (frame === 0) return undefined;
    this.at = (frame & PAGE_IN_BANK) * PAGE_SIZE + (address & OFFSET_IN_PAGE);
    return this.banks[frame >>> BANK_SHIFT];
  }

  read8(address: number): number {
    const memory = this.find(address);
    return memory === undefined ? 0xff : memory.u8[this.at];
  }

  write8(address: number, value: number): void {
    const memory = this.find(address);
    if (memory !== undefined) memory.u8[this.at] = value;
  }

  write16(address: number, value: number): void {
    const memory = this.find(address);
    if (memory === undefined) return;
    const { at } = this;
    if ((at & 1) === 0) {
      memory.u16[at >>> 1] = value;
      return;
    }
    this.write8(address, value);
    this.write8(address + 1, value >>> 8);
  }

  read32(address: number): number {
    const memory = this.find(address);
    if (memory === undefined) return -1;
    const { at } = this;
    if ((at & 3) === 0) return memory.i32[at >>> 2];
    const { u8 } = memory;
    return u8[at] | (u8[at + 1] << 8) | (u8[at + 2] << 16) | (u8[at + 3] << 24);
  }

  write32(address: number, value: number): void {
    const memory = this.find(address);
    if (memory === undefined) return;
    const { at } = this;
    if ((at & 3) === 0) memory.i32[at >>> 2] = value;
    else for (let i = 0; i < 4; i++) memory.u8[at + i] = value >>> (8 * i);
  }
}
