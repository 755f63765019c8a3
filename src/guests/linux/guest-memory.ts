import { PAGE_SIZE } from '../../platform/index.js';
import type { Machine } from './machine.js';

const OFFSET_IN_PAGE = PAGE_SIZE - 1;

/**
 * The guest's memory by its kernel's virtual addresses: where it keeps the argument structs of its
 * hypercalls. A struct may cross a page, and the next virtual page be anywhere.
 */
export class GuestMemory {
  private readonly scratch = new DataView(new ArrayBuffer(8));

  constructor(private readonly machine: Machine) {}

  u16(virtual: number): number {
    this.load(virtual, 2);
    return this.scratch.getUint16(0, true);
  }

  u32(virtual: number): number {
    if ((virtual & 3) === 0) return this.machine.ram.u32[this.machine.physical(virtual) >>> 2];
    this.load(virtual, 4);
    return this.scratch.getUint32(0, true);
  }

  setU16(virtual: number, value: number): void {
    this.scratch.setUint16(0, value & 0xffff, true);
    this.store(virtual, 2);
  }

  setU32(virtual: number, value: number): void {
    this.scratch.setUint32(0, value >>> 0, true);
    this.store(virtual, 4);
  }

  /** A u64, the low half first. */
  setU64(virtual: number, low: number, high: number): void {
    this.setU32(virtual, low);
    this.setU32(virtual + 4, high);
  }

  /** Bytes as Latin-1 text. */
  text(virtual: number, length: number): string {
    const { u8 } = this.machine.ram;
    let text = '';
    for (let i = 0; i < length; i++) text += String.fromCharCode(u8[this.machine.physical(virtual + i)]);
    return text;
  }

  /** ASCII text with a zero behind it. */
  setText(virtual: number, text: string): void {
    for (let i = 0; i <= text.length; i++) {
      this.scratch.setUint8(0, i < text.length ? text.charCodeAt(i) : 0);
      this.store(virtual + i, 1);
    }
  }

  private load(virtual: number, bytes: number): void {
    const { u8 } = this.machine.ram;
    let physical = this.machine.physical(virtual);
    for (let i = 0; i < bytes; i++) {
      if (i > 0 && ((virtual + i) & OFFSET_IN_PAGE) === 0) physical = this.machine.physical(virtual + i) - i;
      this.scratch.setUint8(i, u8[physical + i]);
    }
  }

  private store(virtual: number, bytes: number): void {
    const { u8 } = this.machine.ram;
    let physical = this.machine.physical(virtual);
    for (let i = 0; i < bytes; i++) {
      if (i > 0 && ((virtual + i) & OFFSET_IN_PAGE) === 0) physical = this.machine.physical(virtual + i) - i;
      u8[physical + i] = this.scratch.getUint8(i);
    }
  }
}
