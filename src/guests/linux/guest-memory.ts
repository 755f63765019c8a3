import { HypercallError, type Memory, PAGE_SHIFT, PAGE_SIZE } from '../../platform/index.js';

const OFFSET_IN_PAGE = PAGE_SIZE - 1;
const NO_PAGE = -1;

/** Bits of control registers and page-table entries (Intel SDM volume 3, chapter 4). */
const CR0_PG = 0x8000_0000 | 0;
const CR4_PSE = 0x10;
const CR4_PAE = 0x20;
const PRESENT = 0x01;
const LARGE = 0x80;

/**
 * The guest's memory by its kernel's virtual addresses: where it keeps the argument structs of its
 * hypercalls. A struct may cross a page, and the next virtual page be anywhere. The guest's processor waits in the
 * hypercall meanwhile, so its page tables do not change.
 */
export class GuestMemory {
  private readonly scratch = new DataView(new ArrayBuffer(8));
  private cr0 = 0;
  private cr3 = 0;
  private cr4 = 0;
  /** The page that was found last, virtual and physical. */
  private virtualPage = NO_PAGE;
  private physicalPage = 0;

  constructor(private readonly ram: Memory) {}

  /** Before each hypercall: the processor's control registers. */
  setRegisters(cr0: number, cr3: number, cr4: number): void {
    this.cr0 = cr0;
    this.cr3 = cr3;
    this.cr4 = cr4;
    this.virtualPage = NO_PAGE;
  }

  u16(virtual: number): number {
    this.load(virtual, 2);
    return this.scratch.getUint16(0, true);
  }

  u32(virtual: number): number {
    if ((virtual & 3) === 0) return this.ram.u32[this.physical(virtual) >>> 2];
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
    const { u8 } = this.ram;
    let text = '';
    for (let i = 0; i < length; i++) text += String.fromCharCode(u8[this.physical(virtual + i)]);
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
    const { u8 } = this.ram;
    for (let i = 0; i < bytes; i++) this.scratch.setUint8(i, u8[this.physical(virtual + i)]);
  }

  private store(virtual: number, bytes: number): void {
    const { u8 } = this.ram;
    for (let i = 0; i < bytes; i++) u8[this.physical(virtual + i)] = this.scratch.getUint8(i);
  }

  /** The guest-physical address. @throws HypercallError EFAULT when nothing is mapped there, or what is no RAM */
  private physical(virtual: number): number {
    const page = virtual >>> PAGE_SHIFT;
    if (page !== this.virtualPage) {
      this.physicalPage = this.walk(page) >>> 0;
      if (this.physicalPage * PAGE_SIZE >= this.ram.u8.length) fault(virtual);
      this.virtualPage = page;
    }
    return this.physicalPage * PAGE_SIZE + (virtual & OFFSET_IN_PAGE);
  }

  /** The physical page behind a virtual one, by the guest's own page tables. */
  private walk(page: number): number {
    if ((this.cr0 & CR0_PG) === 0) return page;
    if ((this.cr4 & CR4_PAE) === 0) return this.walk32(page);
    const directory = this.entry((this.cr3 & ~0x1f) >>> 0, page >>> 18, 8, page);
    const table = this.entry(frameOf(directory), (page >>> 9) & 511, 8, page);
    if ((table & LARGE) !== 0) return ((table >>> PAGE_SHIFT) & ~511) | (page & 511);
    return this.entry(frameOf(table), page & 511, 8, page) >>> PAGE_SHIFT;
  }

  /** Two levels, without PAE. */
  private walk32(page: number): number {
    const table = this.entry(frameOf(this.cr3), page >>> 10, 4, page);
    if ((table & LARGE) !== 0 && (this.cr4 & CR4_PSE) !== 0) {
      return ((table >>> PAGE_SHIFT) & ~1023) | (page & 1023);
    }
    return this.entry(frameOf(table), page & 1023, 4, page) >>> PAGE_SHIFT;
  }

  /** The low half of an entry of a page table: there is no RAM above 4 GiB. */
  private entry(table: number, index: number, bytes: 4 | 8, page: number): number {
    const { u32 } = this.ram;
    const at = (table + index * bytes) / 4;
    const low = at < u32.length ? u32[at] : 0;
    if ((low & PRESENT) === 0 || (bytes === 8 && (u32[at + 1] & 0x7fff_ffff) !== 0)) fault(page * PAGE_SIZE);
    return low;
  }
}

function frameOf(entry: number): number {
  return (entry & ~OFFSET_IN_PAGE) >>> 0;
}

function fault(virtual: number): never {
  throw new HypercallError('EFAULT', `there is no memory of the guest’s at 0x${virtual.toString(16)}`);
}
