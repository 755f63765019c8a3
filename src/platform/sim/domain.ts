import { EVTCHNSTAT } from '../../abi/event-channel.js';
import { GNTMAP_readonly, GTF_permit_access, GTF_readonly, GTF_type_mask } from '../../abi/grant-table.js';
import {
  DOMID_XEN,
  NR_VIRQS,
  type SharedInfoLayout,
  type ShutdownReason,
  sharedInfoLayout,
} from '../../abi/xen.js';
import { HypercallError } from '../errors.js';
import { type Memory, PAGE_SHIFT } from '../memory.js';
import type { Platform } from '../platform.js';
import { Task } from '../scheduler.js';
import { RECORD_DOMID, RECORD_IN_MACHINE, RECORD_PHYSMAP } from './domain-record.js';
import { DomainScheduler } from './domain-scheduler.js';
import { type PortStatus, PortTable } from './event-channels.js';
import { BANK_SHIFT, PAGE_IN_BANK } from './frame-table.js';
import { GrantTable } from './grant-table.js';
import type { Hypervisor } from './hypervisor.js';
import { Maptrack } from './maptrack.js';
import { Physmap } from './physmap.js';
import { SimPlatform } from './sim-platform.js';

/** The log of a domain's kernel keeps its last lines. */
const DMESG_LINES = 1000;

/** What a domain may use at most. Xen's own defaults, but for the pages. */
export interface DomainLimits {
  /** Pages of its own; without a limit the machine's memory is. */
  maxPages: number;
  /** Frames of its grant table, RECORD_FRAMES_MAX at most: 512 entries each in version 1. */
  maxGrantFrames: number;
  /** Foreign grants that it maps at a time. */
  maxMappings: number;
  /** Event channels, at most what the two-level ABI of its width has. */
  maxPorts: number;
}

/** RAM that is not machine memory: that of an emulated PC. */
export interface MemoryBank {
  /** Its first byte is guest-physical address 0. */
  readonly memory: Memory;
  /** Pages of RAM; guest frame numbers below are RAM. */
  readonly pages: number;
  /** Another thread runs the guest, and touches the memory while we do. */
  readonly threaded: boolean;
  /** Is told what the hypervisor wrote, so that an emulator drops code it has translated from there. */
  written?(address: number, length: number): void;
  /**
   * Is told of events for ports of the domain, and sets the bits in its struct shared_info: for an emulated processor in
   * another thread whose locked instructions are not atomic to us.
   */
  deliver?(port: number): void;
}

export interface DomainOptions {
  name?: string;
  /** @default the lowest above all used before */
  domid?: number;
  /** The width of the guest: the layout of its shared_info; 64 */
  wordBits?: 32 | 64;
  /** As many as struct shared_info has room for, XEN_LEGACY_MAX_VCPUS at most; 1 */
  vcpus?: number;
  /** May act on other domains, as domain 0 may. */
  privileged?: boolean;
  /** The version that its grant table starts with, and the highest that it may have; 1 and 2. */
  grantVersion?: 1 | 2;
  maxGrantVersion?: 1 | 2;
  maxPages?: number;
  limits?: Partial<DomainLimits>;
  /** An emulated PC's RAM instead of pages of machine memory. */
  bank?: MemoryBank;
  /** Guest frame numbers of the xenstore and console rings, for a guest that expects them somewhere. */
  storeGfn?: number;
  consoleGfn?: number;
}

export type DomainState = 'running' | 'shutdown' | 'dying' | 'dead';

/** A virtual CPU, as far as events go. */
export class Vcpu {
  /** Port by VIRQ, 0 for none. */
  readonly virqPort = new Int32Array(NR_VIRQS);
  /** Where its struct vcpu_info is. */
  memory: Memory;
  info: number;
  upcall: (() => void) | null = null;
  readonly task: Task;

  constructor(
    readonly id: number,
    domain: Domain,
    memory: Memory,
    info: number,
  ) {
    this.memory = memory;
    this.info = info;
    this.task = new Task(`d${domain.domid}v${id} upcall`, () => {
      if (this.upcall !== null && domain.state === 'running') this.upcall();
    });
  }
}

export interface PortInfo extends PortStatus {
  readonly port: number;
  readonly pending: boolean;
  readonly masked: boolean;
}

export interface GrantInfo {
  readonly gref: number;
  readonly domid: number;
  /** Flags of the entry. */
  readonly flags: number;
  readonly readonly: boolean;
  readonly gfn: number;
  /** Mappings of it, by what they may do. */
  readonly readers: number;
  readonly writers: number;
}

export interface MappingInfo {
  readonly handle: number;
  readonly domid: number;
  readonly gref: number;
  readonly readonly: boolean;
}

/** A domain at a glance. */
export interface DomainInfo {
  readonly domid: number;
  readonly name: string;
  readonly state: DomainState;
  readonly shutdownReason: ShutdownReason | null;
  /** Pages of its own, the xenstore and console rings among them. */
  readonly pages: number;
  /** Its pages that other domains map. */
  readonly mappedByOthers: number;
  readonly grantVersion: 1 | 2;
  readonly ports: PortInfo[];
  readonly grants: GrantInfo[];
  readonly mappings: MappingInfo[];
}

/**
 * A domain as the hypervisor keeps it. The kernel that runs in it sees `platform` only; what else is public
 * here is for the toolstack, for tests, and for adapters of emulated guests.
 */
export class Domain {
  readonly domid: number;
  readonly name: string;
  readonly privileged: boolean;
  readonly layout: SharedInfoLayout;
  readonly maxGrantVersion: 1 | 2;
  readonly limits: DomainLimits;
  /** Number of its memory bank; 0 is machine memory. */
  readonly bank: number;
  readonly scheduler: DomainScheduler;
  readonly grantTable: GrantTable;
  readonly maptrack: Maptrack;
  readonly ports: PortTable;
  readonly vcpus: Vcpu[] = [];
  readonly platform: Platform;
  state: DomainState = 'running';
  shutdownReason: ShutdownReason | null = null;
  readonly physmap: Physmap;
  /** Byte address of what WebAssembly knows of it (domain-record.ts), in a frame of its own. */
  readonly record: number;
  /** Pages of its own. */
  pages = 0;
  /** Mappings of its pages by other domains. */
  mappedByOthers = 0;
  /** Its memory was taken from it, but for what others map. */
  released = false;
  /** Lines of the kernel's log, oldest first. */
  readonly dmesg: string[] = [];
  /** The xenstore ring, in machine memory, and its port. */
  readonly storePage: number;
  readonly storePort: number;
  readonly consolePage: number;
  readonly consolePort: number;
  /** Where struct shared_info is. */
  sharedMemory: Memory;
  sharedInfo: number;
  private readonly sharedFrame: number;
  private readonly freeGfns: number[] = [];
  private nextGfn = 0;
  private bankMemory: MemoryBank | null;
  /** Its kernel runs in another thread. */
  readonly threaded: boolean;
  private readonly deliver: ((port: number) => void) | null;

  /** Only the hypervisor makes domains. */
  constructor(
    readonly hypervisor: Hypervisor,
    domid: number,
    options: DomainOptions,
    limits: DomainLimits,
    bank: number,
  ) {
    this.domid = domid;
    this.name = options.name ?? `Domain-${domid}`;
    this.privileged = options.privileged ?? domid === 0;
    this.layout = sharedInfoLayout(options.wordBits ?? 64);
    this.maxGrantVersion = options.maxGrantVersion ?? 2;
    this.limits = limits;
    this.bank = bank;
    this.bankMemory = options.bank ?? null;
    this.deliver = options.bank?.deliver ?? null;
    this.scheduler = new DomainScheduler(hypervisor.scheduler);
    const { memory, frames } = hypervisor;
    this.threaded = options.bank?.threaded ?? false;
    this.record = frames.allocXen() << PAGE_SHIFT;
    this.physmap = new Physmap(memory, frames);
    const words = memory.i32.subarray(this.record >>> 2);
    words[RECORD_DOMID >>> 2] = domid;
    words[RECORD_PHYSMAP >>> 2] = this.physmap.address;
    words[RECORD_IN_MACHINE >>> 2] = bank === 0 ? 1 : 0;
    this.grantTable = new GrantTable(memory, frames, this.record, limits.maxGrantFrames, this.threaded);
    this.maptrack = new Maptrack(limits.maxMappings);
    this.ports = new PortTable(Math.min(limits.maxPorts, this.layout.nrEventChannels));
    this.sharedFrame = frames.allocXen();
    this.sharedMemory = memory;
    this.sharedInfo = this.sharedFrame << PAGE_SHIFT;
    const vcpus = options.vcpus ?? 1;
    for (let i = 0; i < vcpus; i++) {
      const info = this.sharedInfo + this.layout.vcpu_info + i * this.layout.vcpu.size;
      this.vcpus.push(new Vcpu(i, this, memory, info));
    }
    if (options.bank !== undefined) this.mapBank(options.bank);
    if (options.grantVersion === 2) this.grantTable.setVersion(2);
    this.storePage = this.allocPage(options.storeGfn);
    this.consolePage = this.allocPage(options.consoleGfn);
    this.storePort = this.ports.take(EVTCHNSTAT.unbound);
    this.consolePort = this.ports.take(EVTCHNSTAT.unbound);
    this.ports.remoteDomid[this.storePort] = 0;
    this.ports.remoteDomid[this.consolePort] = 0;
    this.platform = new SimPlatform(this);
  }

  get dying(): boolean {
    return this.state === 'dying' || this.state === 'dead';
  }

  // ---- memory ----

  private mapBank(bank: MemoryBank): void {
    for (let gfn = 0; gfn < bank.pages; gfn++) this.physmap.set(gfn, (this.bank << BANK_SHIFT) | gfn);
    this.nextGfn = bank.pages;
    this.pages = bank.pages;
  }

  /**
   * A zeroed page of machine memory.
   * @param gfn where the domain sees it; by default where there is room
   * @returns its frame
   * @throws ENOMEM beyond the domain's pages, or the machine's
   */
  allocPage(gfn = -1): number {
    if (this.dying) throw new HypercallError('ENOMEM', `domain ${this.domid} is being destroyed`);
    if (this.pages >= this.limits.maxPages) {
      throw new HypercallError(
        'ENOMEM',
        `domain ${this.domid} has its ${this.limits.maxPages} pages already`,
      );
    }
    const { frames } = this.hypervisor;
    const frame = frames.alloc(this.domid);
    const free = this.freeGfns.length;
    try {
      this.addToPhysmap(gfn >= 0 ? gfn : free > 0 ? this.freeGfns[free - 1] : this.nextGfn, frame, true);
    } catch (error) {
      frames.release(frame);
      throw error;
    }
    if (gfn < 0 && free > 0) this.freeGfns.pop();
    else if (gfn < 0) this.nextGfn++;
    this.pages++;
    return frame;
  }

  /** @throws EINVAL for a page that is not the domain's */
  freePage(frame: number): void {
    const { frames } = this.hypervisor;
    const gfn = frames.owner[frame] === this.domid ? frames.gfn[frame] : -1;
    if (gfn < 0) throw new HypercallError('EINVAL', `page ${frame} is not of domain ${this.domid}`);
    this.physmap.set(gfn, 0);
    this.freeGfns.push(gfn);
    this.pages--;
    frames.release(frame);
  }

  /**
   * Shows the domain a frame of machine memory at `gfn` (XENMEM_add_to_physmap).
   * @param ram the frame is memory of the domain's own; otherwise it cannot be granted, nor copied from by number
   * @throws as `Physmap.set`
   */
  addToPhysmap(gfn: number, frame: number, ram: boolean): void {
    this.physmap.set(gfn, ram ? frame : -frame);
    const { frames } = this.hypervisor;
    // A foreign frame keeps the number that its owner knows it by.
    if (ram || frames.owner[frame] === DOMID_XEN) frames.gfn[frame] = gfn;
  }

  /** Takes a frame of machine memory out of the domain's sight. */
  removeFromPhysmap(frame: number): void {
    const gfn = this.hypervisor.frames.gfn[frame];
    if (gfn < 0) return;
    this.physmap.set(gfn, 0);
    this.hypervisor.frames.gfn[frame] = -1;
  }

  /** The frame behind a guest frame number; 0 when that is not RAM of the domain. */
  ramFrame(gfn: number): number {
    return Math.max(0, this.physmap.get(gfn));
  }

  /** The frame of a page of the domain's memory; 0 when it is not its own. */
  ownFrame(page: number): number {
    if (this.bank !== 0) return page < this.bankMemory!.pages ? (this.bank << BANK_SHIFT) | page : 0;
    return this.hypervisor.frames.owner[page] === this.domid ? page : 0;
  }

  /** Pages of an emulated PC's RAM; 0 for a domain in machine memory. */
  get ramPages(): number {
    return this.bankMemory?.pages ?? 0;
  }

  /**
   * Takes a page of an emulated PC's RAM from its domain, which gave it up (XENMEM_decrease_reservation): nobody
   * can be granted it any more. @returns false when the domain does not have it
   */
  takeRam(gfn: number): boolean {
    if (!(gfn < this.ramPages) || this.physmap.get(gfn) === 0) return false;
    this.physmap.set(gfn, 0);
    this.pages--;
    return true;
  }

  /** Gives the page back (XENMEM_populate_physmap). @returns false when there is none, or it has it already */
  giveRam(gfn: number): boolean {
    if (!(gfn < this.ramPages) || this.physmap.get(gfn) !== 0) return false;
    this.physmap.set(gfn, (this.bank << BANK_SHIFT) | gfn);
    this.pages++;
    return true;
  }

  // ---- event delivery: the two-level bitmaps in struct shared_info ----

  /** An event for `port`: sets its pending bit and, unless it is masked, wakes its virtual CPU. */
  setPending(port: number): void {
    if (this.deliver !== null) {
      this.deliver(port);
      return;
    }
    const { i32 } = this.sharedMemory;
    const bit = 1 << (port & 31);
    const pending = ((this.sharedInfo + this.layout.evtchn_pending) >>> 2) + (port >>> 5);
    if ((this.setBits(i32, pending, bit) & bit) !== 0) return;
    const mask = ((this.sharedInfo + this.layout.evtchn_mask) >>> 2) + (port >>> 5);
    if ((i32[mask] & bit) === 0) this.select(port);
  }

  clearPending(port: number): void {
    const pending = ((this.sharedInfo + this.layout.evtchn_pending) >>> 2) + (port >>> 5);
    this.clearBits(this.sharedMemory.i32, pending, 1 << (port & 31));
  }

  isPending(port: number): boolean {
    const pending = ((this.sharedInfo + this.layout.evtchn_pending) >>> 2) + (port >>> 5);
    return (this.sharedMemory.i32[pending] & (1 << (port & 31))) !== 0;
  }

  isMasked(port: number): boolean {
    const mask = ((this.sharedInfo + this.layout.evtchn_mask) >>> 2) + (port >>> 5);
    return (this.sharedMemory.i32[mask] & (1 << (port & 31))) !== 0;
  }

  mask(port: number): void {
    const mask = ((this.sharedInfo + this.layout.evtchn_mask) >>> 2) + (port >>> 5);
    this.setBits(this.sharedMemory.i32, mask, 1 << (port & 31));
  }

  unmask(port: number): void {
    const { i32 } = this.sharedMemory;
    const bit = 1 << (port & 31);
    const mask = ((this.sharedInfo + this.layout.evtchn_mask) >>> 2) + (port >>> 5);
    if ((this.clearBits(i32, mask, bit) & bit) !== 0 && this.isPending(port)) this.select(port);
  }

  private select(port: number): void {
    const vcpu = this.vcpus[this.ports.vcpu[port]];
    const { i32, u8 } = vcpu.memory;
    const selector = this.layout.wordBits === 64 ? port >>> 6 : port >>> 5;
    const bit = 1 << (selector & 31);
    const at = ((vcpu.info + this.layout.vcpu.evtchn_pending_sel) >>> 2) + (selector >>> 5);
    if ((this.setBits(i32, at, bit) & bit) !== 0) return;
    const upcall = vcpu.info + this.layout.vcpu.evtchn_upcall_pending;
    if (this.threaded) {
      if (Atomics.exchange(u8, upcall, 1) === 0) this.kick(vcpu);
      return;
    }
    if (u8[upcall] !== 0) return;
    u8[upcall] = 1;
    this.kick(vcpu);
  }

  /** @returns the word before; one that the kernel changes in another thread is changed atomically */
  private setBits(i32: Int32Array, at: number, bits: number): number {
    if (this.threaded) return Atomics.or(i32, at, bits);
    const before = i32[at];
    i32[at] = before | bits;
    return before;
  }

  private clearBits(i32: Int32Array, at: number, bits: number): number {
    if (this.threaded) return Atomics.and(i32, at, ~bits);
    const before = i32[at];
    i32[at] = before & ~bits;
    return before;
  }

  /** Makes the virtual CPU look at its pending events, unless it holds upcalls off. */
  private kick(vcpu: Vcpu): void {
    if (vcpu.upcall === null) return;
    const masked = vcpu.memory.u8[vcpu.info + this.layout.vcpu.evtchn_upcall_mask] !== 0;
    if (!masked) this.scheduler.post(vcpu.task);
  }

  /** Sets what runs when the virtual CPU has events; it runs at once when some are pending. */
  onUpcall(vcpu: number, upcall: () => void): void {
    const target = this.vcpus[vcpu];
    target.upcall = upcall;
    if (target.memory.u8[target.info + this.layout.vcpu.evtchn_upcall_pending] !== 0) this.kick(target);
  }

  /** Moves struct shared_info to where an emulated guest wants it, with what it holds. */
  placeSharedInfo(memory: Memory, address: number): void {
    const size = this.layout.evtchn_mask + this.layout.nrEventChannels / 8;
    memory.u8.set(this.sharedMemory.u8.subarray(this.sharedInfo, this.sharedInfo + size), address);
    for (const vcpu of this.vcpus) {
      const inShared = vcpu.memory === this.sharedMemory && vcpu.info - this.sharedInfo;
      if (inShared !== false && inShared >= 0 && inShared < size) {
        vcpu.memory = memory;
        vcpu.info = address + inShared;
      }
    }
    this.sharedMemory = memory;
    this.sharedInfo = address;
  }

  /** Moves one struct vcpu_info (VCPUOP_register_vcpu_info), with what it holds. */
  placeVcpuInfo(vcpu: number, memory: Memory, address: number): void {
    const target = this.vcpus[vcpu];
    const { size } = this.layout.vcpu;
    memory.u8.set(target.memory.u8.subarray(target.info, target.info + size), address);
    target.memory = memory;
    target.info = address;
    // An event that came while it was elsewhere must not be lost: Xen marks them all pending.
    const words = this.layout.wordBits / 32;
    const at = (address + this.layout.vcpu.evtchn_pending_sel) >>> 2;
    for (let i = 0; i < words; i++) Atomics.store(memory.i32, at + i, -1);
    Atomics.store(memory.u8, address + this.layout.vcpu.evtchn_upcall_pending, 1);
    this.kick(target);
  }

  // ---- life ----

  /**
   * SCHEDOP_shutdown: the domain stops; its memory, ports and grants stay until the toolstack destroys it.
   * After "suspend", `resume` lets it run on.
   */
  shutdown(reason: ShutdownReason): void {
    if (this.state !== 'running') return;
    this.state = 'shutdown';
    this.shutdownReason = reason;
    if (reason !== 'suspend') this.scheduler.stop();
    this.hypervisor.domainChanged(this);
  }

  /** Lets a suspended domain go on. @throws EINVAL when it is not suspended */
  resume(): void {
    if (this.state !== 'shutdown' || this.shutdownReason !== 'suspend') {
      throw new HypercallError('EINVAL', `domain ${this.domid} is not suspended but ${this.state}`);
    }
    this.state = 'running';
    this.shutdownReason = null;
    for (const vcpu of this.vcpus) {
      if (vcpu.memory.u8[vcpu.info + this.layout.vcpu.evtchn_upcall_pending] !== 0) this.kick(vcpu);
    }
  }

  /**
   * Ends the domain, whatever it is doing. Pages that others still map stay until they are unmapped; in the domain's own
   * task or timer all pages stay until that has returned.
   */
  destroy(): void {
    this.hypervisor.destroyDomain(this);
  }

  /** Gives all memory back that nobody maps; called once, by the hypervisor. */
  releaseMemory(): void {
    const { frames } = this.hypervisor;
    this.physmap.forEachRam(frame => {
      if (frame >>> BANK_SHIFT === 0) frames.release(frame & PAGE_IN_BANK);
    });
    this.physmap.clear();
    this.freeGfns.length = 0;
    this.pages = 0;
    this.released = true;
  }

  /** Gives back what a domain keeps until its last page is unmapped. */
  releaseTables(): void {
    this.grantTable.destroy();
    this.physmap.destroy();
    this.hypervisor.frames.release(this.sharedFrame);
    this.hypervisor.frames.release(this.record >>> PAGE_SHIFT);
    this.bankMemory = null;
  }

  /** One line for the kernel's log. */
  log(line: string): void {
    if (this.dmesg.length === DMESG_LINES) this.dmesg.shift();
    const stamped = `[${(this.scheduler.now() / 1000).toFixed(6).padStart(12)}] ${line}`;
    this.dmesg.push(stamped);
    this.hypervisor.onLog?.(this, line);
  }

  /** What the domain holds at this moment. */
  inspect(): DomainInfo {
    const ports: PortInfo[] = [];
    for (const port of this.ports.open()) {
      const status = this.ports.status(port);
      ports.push({ port, ...status, pending: this.isPending(port), masked: this.isMasked(port) });
    }
    const grants: GrantInfo[] = [];
    const { grantTable } = this;
    const { i32 } = this.hypervisor.memory;
    for (let gref = 0; gref < grantTable.entries; gref++) {
      const at = grantTable.entryWord(gref);
      const word = i32[at];
      if ((word & GTF_type_mask) === 0 && !grantTable.isPinned(gref)) continue;
      grants.push({
        gref,
        domid: word >>> 16,
        flags: word & 0xffff,
        readonly: (word & (GTF_type_mask | GTF_readonly)) === (GTF_permit_access | GTF_readonly),
        gfn: i32[at + (grantTable.version === 1 ? 1 : 2)] >>> 0,
        readers: grantTable.readers(gref),
        writers: grantTable.writers(gref),
      });
    }
    const mappings: MappingInfo[] = [];
    for (const handle of this.maptrack.handles()) {
      mappings.push({
        handle,
        domid: this.maptrack.domid[handle],
        gref: this.maptrack.gref[handle],
        readonly: (this.maptrack.flags[handle] & GNTMAP_readonly) !== 0,
      });
    }
    return {
      domid: this.domid,
      name: this.name,
      state: this.state,
      shutdownReason: this.shutdownReason,
      pages: this.pages,
      mappedByOthers: this.mappedByOthers,
      grantVersion: grantTable.version,
      ports,
      grants,
      mappings,
    };
  }
}
