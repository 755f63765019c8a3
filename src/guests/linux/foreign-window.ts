import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../../platform/index.js';
import { BANK_SHIFT, PAGE_IN_BANK } from '../../platform/sim/frame-table.js';
import type { ControlBlock } from './control-block.js';
import type { MmioHandler } from './machine.js';

/** Where pages of other memories appear to the processor: above any RAM, below v86's own devices. */
export const WINDOW_ADDRESS = 0xc800_0000;

/**
 * Pages of other memories as memory-mapped registers of the emulated processor, which cannot reach them: each access goes to
 * the other memory, at once and in order. Which page is where the host's thread says, in the control block.
 */
export class ForeignWindow implements MmioHandler {
  /** By number of the hypervisor's memory bank; 0 is machine memory. */
  private readonly banks: (Memory | null)[] = [];

  constructor(private readonly control: ControlBlock) {}

  /** A bank of memory is there, or no more. */
  setBank(bank: number, memory: Memory | null): void {
    this.banks[bank] = memory;
  }

  /** The memory behind a page of the window, or null. */
  private behind(address: number): Memory | null {
    const frame = this.control.window[(address - WINDOW_ADDRESS) >>> PAGE_SHIFT];
    return frame > 0 ? (this.banks[frame >>> BANK_SHIFT] ?? null) : null;
  }

  /** The byte address in that memory. */
  private at(address: number): number {
    const frame = this.control.window[(address - WINDOW_ADDRESS) >>> PAGE_SHIFT];
    return (frame & PAGE_IN_BANK) * PAGE_SIZE + (address & (PAGE_SIZE - 1));
  }

  read8(address: number): number {
    const memory = this.behind(address);
    return memory === null ? 0xff : Atomics.load(memory.u8, this.at(address));
  }

  write8(address: number, value: number): void {
    const memory = this.behind(address);
    if (memory !== null) Atomics.store(memory.u8, this.at(address), value);
  }

  read32(address: number): number {
    const memory = this.behind(address);
    if (memory === null) return -1;
    const at = this.at(address);
    if ((at & 3) === 0) return Atomics.load(memory.i32, at >>> 2);
    const { u8 } = memory;
    return u8[at] | (u8[at + 1] << 8) | (u8[at + 2] << 16) | (u8[at + 3] << 24);
  }

  write32(address: number, value: number): void {
    const memory = this.behind(address);
    if (memory === null) return;
    const at = this.at(address);
    if ((at & 3) === 0) Atomics.store(memory.i32, at >>> 2, value);
    else for (let i = 0; i < 4; i++) memory.u8[at + i] = value >>> (8 * i);
  }
}
