import { SHARED_INFO_32 } from '../../abi/xen.js';
import type { Memory } from '../../platform/index.js';

const { evtchn_pending, evtchn_mask, vcpu } = SHARED_INFO_32;
const NOWHERE = -1;

/**
 * Event delivery into the two-level bitmaps of a 32-bit guest with one virtual CPU. Done in the guest's thread, between
 * two of its instructions, as the emulated processor's locked instructions are not atomic to other threads.
 */
export class SharedInfo {
  private pending = 0;
  private mask = 0;
  private selector = 0;
  private upcall = NOWHERE;

  constructor(private readonly ram: Memory) {}

  /** @param info,vcpuInfo guest-physical addresses of the structs; -1 for one that the guest has not placed */
  place(info: number, vcpuInfo: number): void {
    this.pending = (info + evtchn_pending) >>> 2;
    this.mask = (info + evtchn_mask) >>> 2;
    this.selector = (vcpuInfo + vcpu.evtchn_pending_sel) >>> 2;
    this.upcall = info < 0 || vcpuInfo < 0 ? NOWHERE : vcpuInfo + vcpu.evtchn_upcall_pending;
  }

  /** Address of the byte that says whether events are pending; -1 until both structs are placed. */
  get upcallPending(): number {
    return this.upcall;
  }

  /** The guest has events to handle. */
  get isPending(): boolean {
    return this.upcall !== NOWHERE && this.ram.u8[this.upcall] !== 0;
  }

  /** Events for the ports of one word of the bitmap. */
  deliver(word: number, ports: number): void {
    const { i32 } = this.ram;
    const fresh = ports & ~i32[this.pending + word];
    i32[this.pending + word] |= fresh;
    if ((fresh & ~i32[this.mask + word]) !== 0) this.select(word);
  }

  /** EVTCHNOP_unmask: an event that came meanwhile is delivered now. */
  unmask(port: number): void {
    const { i32 } = this.ram;
    const word = port >>> 5;
    const bit = 1 << (port & 31);
    if ((i32[this.mask + word] & bit) === 0) return;
    i32[this.mask + word] &= ~bit;
    if ((i32[this.pending + word] & bit) !== 0) this.select(word);
  }

  private select(word: number): void {
    const { i32 } = this.ram;
    const bit = 1 << word;
    if ((i32[this.selector] & bit) !== 0) return;
    i32[this.selector] |= bit;
    this.ram.u8[this.upcall] = 1;
  }
}
