import { PAGE_SHIFT } from '../memory.js';
import { LEAF_MASK, LEAF_SHIFT } from './domain-record.js';
import type { FrameTable } from './frame-table.js';
import type { MachineMemory } from './machine-memory.js';

/** Addresses of the records of domains, by domid, for code in WebAssembly (see domain-record.ts). */
export class DomainDirectory {
  private readonly top: number;

  constructor(
    private readonly memory: MachineMemory,
    private readonly frames: FrameTable,
  ) {
    this.top = frames.allocXen() << PAGE_SHIFT;
  }

  /** Byte address of the first level. */
  get address(): number {
    return this.top;
  }

  /** Whether `set` for that domid takes a frame. */
  needsFrame(domid: number): boolean {
    return this.memory.i32[(this.top >>> 2) + (domid >>> LEAF_SHIFT)] === 0;
  }

  /** @param record its byte address, 0 when there is no such domain any more @throws ENOMEM */
  set(domid: number, record: number): void {
    const { i32 } = this.memory;
    const at = (this.top >>> 2) + (domid >>> LEAF_SHIFT);
    if (i32[at] === 0) i32[at] = this.frames.allocXen() << PAGE_SHIFT;
    i32[(i32[at] >>> 2) + (domid & LEAF_MASK)] = record;
  }
}
