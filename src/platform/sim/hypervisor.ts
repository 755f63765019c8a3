import {
  GNTTAB_RESERVED_CONSOLE,
  GNTTAB_RESERVED_XENSTORE,
  GTF_permit_access,
} from '../../abi/grant-table.js';
import { DOMID_FIRST_RESERVED, VIRQ, XEN_LEGACY_MAX_VCPUS } from '../../abi/xen.js';
import { HypercallError } from '../errors.js';
import type { Memory } from '../memory.js';
import { PAGE_SHIFT } from '../memory.js';
import { type Scheduler, Task } from '../scheduler.js';
import { Domain, type DomainLimits, type DomainOptions, type MemoryBank } from './domain.js';
import { DomainDirectory } from './domain-directory.js';
import { LEAF_MASK, RECORD_FRAMES_MAX } from './domain-record.js';
import { EventChannelOperations } from './event-channels.js';
import { BANK_SHIFT, FrameTable } from './frame-table.js';
import { GrantOperations } from './grant-operations.js';
import { MachineMemory } from './machine-memory.js';

/** Banks at a time: frame numbers are positive 32-bit integers. */
const MAX_BANKS = 1 << (31 - BANK_SHIFT);

const DEFAULT_MEMORY_BYTES = 1 << 30;

/**
 * Machine memory that each domain needs: its record, two levels of physmap, shared info, grant table with pins and status,
 * xenstore and console ring.
 */
const FRAMES_TO_START = 9;

/** Xen's defaults (xen/common: max_grant_frames 64, max_maptrack_frames 1024 of 256 entries). */
const DEFAULT_LIMITS: DomainLimits = {
  maxPages: Number.MAX_SAFE_INTEGER,
  maxGrantFrames: 64,
  maxMappings: 1024 * 256,
  maxPorts: 4096,
};

export interface HypervisorOptions {
  scheduler: Scheduler;
  /** Numbers in [0, 1): the only source of chance; Math.random */
  random?: () => number;
  /** Machine memory: a multiple of 64 KiB below 2 GiB. The system commits what is touched; 1 GiB */
  memoryBytes?: number;
  /** Limits of domains that do not name their own. */
  limits?: Partial<DomainLimits>;
  /** Gets each line that a domain's kernel logs. */
  onLog?: (domain: Domain, line: string) => void;
}

/** A simulated Xen: machine memory, domains, and the hypercalls that they make. */
export class Hypervisor {
  readonly scheduler: Scheduler;
  readonly random: () => number;
  readonly memory: MachineMemory;
  readonly frames: FrameTable;
  readonly grants: GrantOperations;
  readonly events: EventChannelOperations;
  readonly onLog: ((domain: Domain, line: string) => void) | null;
  /** Domains that run or have shut down, by domid; what hot paths look in. */
  readonly byDomid: (Domain | null)[];
  /** The same for WebAssembly. */
  readonly directory: DomainDirectory;
  private readonly limits: DomainLimits;
  /** Domains that were destroyed but have pages, which others map or they themselves use until their task returns. */
  private readonly zombies = new Map<number, Domain>();
  private readonly banks: (MemoryBank | null)[] = [null];
  private readonly listeners = new Set<(domain: Domain) => void>();
  private nextDomid = 0;

  constructor(options: HypervisorOptions) {
    this.scheduler = options.scheduler;
    this.random = options.random ?? Math.random;
    this.memory = new MachineMemory(options.memoryBytes ?? DEFAULT_MEMORY_BYTES);
    this.frames = new FrameTable(this.memory);
    this.byDomid = new Array<Domain | null>(DOMID_FIRST_RESERVED + 16).fill(null);
    this.directory = new DomainDirectory(this.memory, this.frames);
    this.grants = new GrantOperations(this);
    this.events = new EventChannelOperations(this);
    this.onLog = options.onLog ?? null;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
  }

  /** Domains that run or have shut down, in the order of their domids. */
  get domains(): Domain[] {
    return this.byDomid.filter(domain => domain !== null);
  }

  /** Domains that were destroyed but whose pages others still map, or their own task that has not returned uses. */
  get dyingDomains(): Domain[] {
    return [...this.zombies.values()];
  }

  /** The domain that runs or has shut down under that number, or null. */
  domain(domid: number): Domain | null {
    return this.byDomid[domid] ?? null;
  }

  /** What xenstored needs to know of a domain. */
  domainState(domid: number): 'alive' | 'shutdown' | 'dying' | 'absent' {
    const domain = this.domain(domid);
    if (domain !== null) return domain.state === 'running' ? 'alive' : 'shutdown';
    return this.zombies.has(domid) ? 'dying' : 'absent';
  }

  /** The domain of a reference that outlives it: a mapping's granter, a channel's other end. */
  domainOrZombie(domid: number): Domain {
    return this.byDomid[domid] ?? this.zombies.get(domid)!;
  }

  /**
   * A new domain, running, with its xenstore and console rings: pages granted to domain 0 as the reserved
   * references 1 and 0, and ports that domain 0 may bind to.
   * @throws EEXIST when the domid is in use; EINVAL when it is none, or for what no domain can have; ENOMEM
   */
  createDomain(options: DomainOptions = {}): Domain {
    const domid = options.domid ?? this.freeDomid();
    const limits = { ...this.limits, ...options.limits };
    // Before anything is taken, so that there is nothing to give back.
    requireRange('domid', domid, 0, DOMID_FIRST_RESERVED - 1);
    requireRange('vcpus', options.vcpus ?? 1, 1, XEN_LEGACY_MAX_VCPUS);
    requireRange('maxGrantFrames', limits.maxGrantFrames, 1, RECORD_FRAMES_MAX);
    if (this.domain(domid) !== null || this.zombies.has(domid)) {
      throw new HypercallError('EEXIST', `there is a domain ${domid} already`);
    }
    if (options.maxPages !== undefined) limits.maxPages = options.maxPages;
    const bankPages = options.bank?.pages ?? 0;
    const needed =
      FRAMES_TO_START + Math.ceil(bankPages / (LEAF_MASK + 1)) + (this.directory.needsFrame(domid) ? 1 : 0);
    if (limits.maxPages < bankPages + 2 || this.frames.available < needed) {
      throw new HypercallError('ENOMEM', `no memory for domain ${domid}`);
    }
    const bank = options.bank === undefined ? 0 : this.addBank(options.bank);
    const domain = new Domain(this, domid, options, limits, bank);
    this.byDomid[domid] = domain;
    this.directory.set(domid, domain.record);
    this.grantReserved(domain, GNTTAB_RESERVED_XENSTORE, domain.storePage);
    this.grantReserved(domain, GNTTAB_RESERVED_CONSOLE, domain.consolePage);
    if (domid >= this.nextDomid) this.nextDomid = domid + 1;
    return domain;
  }

  private freeDomid(): number {
    for (let tries = 0; tries < DOMID_FIRST_RESERVED; tries++) {
      const domid = this.nextDomid % DOMID_FIRST_RESERVED;
      if (this.domain(domid) === null && !this.zombies.has(domid)) return domid;
      this.nextDomid = domid + 1;
    }
    throw new HypercallError('ENOMEM', 'every domid is in use');
  }

  private addBank(bank: MemoryBank): number {
    for (let i = 1; i < MAX_BANKS; i++) {
      if (this.banks[i] === undefined || this.banks[i] === null) {
        this.banks[i] = bank;
        return i;
      }
    }
    throw new HypercallError('ENOMEM', `there are ${MAX_BANKS - 1} memory banks already`);
  }

  /** What the domain builder does for the toolstack, before the guest runs. */
  private grantReserved(domain: Domain, gref: number, page: number): void {
    const { i32 } = this.memory;
    const at = domain.grantTable.entryWord(gref);
    i32[at + (domain.grantTable.version === 1 ? 1 : 2)] = this.frames.gfn[page];
    Atomics.store(i32, at, GTF_permit_access);
  }

  /** The memory that holds a frame; the frame's page in it is `frame & PAGE_IN_BANK`. */
  memoryOf(frame: number): Memory {
    const bank = frame >>> BANK_SHIFT;
    return bank === 0 ? this.memory : this.banks[bank]!.memory;
  }

  /** Tells the emulator behind a bank that its RAM was written to. */
  written(bank: number, address: number, length: number): void {
    if (bank !== 0) this.banks[bank]?.written?.(address, length);
  }

  /** A page of `granter` is mapped by another domain. */
  holdFrame(granter: Domain, frame: number): void {
    granter.mappedByOthers++;
    if (frame >>> BANK_SHIFT === 0) this.frames.get(frame);
  }

  /** The mapping is gone; with the last one a dying domain goes, too. */
  dropFrame(granter: Domain, frame: number): void {
    granter.mappedByOthers--;
    if (frame >>> BANK_SHIFT === 0) this.frames.put(frame);
    if (granter.mappedByOthers === 0 && granter.released) this.bury(granter);
  }

  /** Calls `listener` whenever a domain shuts down or dies. @returns what ends that */
  onDomainChange(listener: (domain: Domain) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** A domain shut down or died: VIRQ_DOM_EXC for domain 0, and whoever else listens. */
  domainChanged(domain: Domain): void {
    this.events.sendGlobalVirq(VIRQ.DOM_EXC);
    for (const listener of this.listeners) listener(domain);
  }

  /**
   * Ends a domain at any moment: it runs no more, its ports are closed (their other ends become unbound), nobody finds it or
   * its grants, what it mapped is unmapped, its memory is freed. Pages that others map stay, and the domain with them, dying.
   */
  destroyDomain(domain: Domain): void {
    if (domain.dying) return;
    const { domid } = domain;
    domain.state = 'dying';
    domain.scheduler.stop();
    this.events.closeAll(domain);
    this.byDomid[domid] = null;
    this.directory.set(domid, 0);
    this.zombies.set(domid, domain);
    // Its code goes on to the end of what it is doing, and may touch all that it had.
    if (!domain.scheduler.running) this.relinquish(domain);
    else this.scheduler.post(new Task(`d${domid} end`, () => this.relinquish(domain)));
    if (domain.state === 'dying') this.domainChanged(domain);
  }

  private relinquish(domain: Domain): void {
    for (const handle of domain.maptrack.handles()) this.grants.unmap(domain, handle);
    domain.releaseMemory();
    if (domain.mappedByOthers === 0) this.bury(domain);
  }

  private bury(domain: Domain): void {
    domain.state = 'dead';
    domain.releaseTables();
    this.zombies.delete(domain.domid);
    if (domain.bank !== 0) this.banks[domain.bank] = null;
    this.domainChanged(domain);
  }

  /** Frames of machine memory that are not in use. */
  get freePages(): number {
    return this.frames.available;
  }

  /** Bytes of machine memory. */
  get memoryBytes(): number {
    return this.memory.pages << PAGE_SHIFT;
  }
}

function requireRange(what: string, value: number, low: number, high: number): void {
  if (Number.isInteger(value) && value >= low && value <= high) return;
  throw new HypercallError('EINVAL', `${what} ${value}: it is from ${low} to ${high}`);
}
