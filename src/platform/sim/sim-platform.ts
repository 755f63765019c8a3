import { GNTMAP_host_map, GNTMAP_readonly, GNTST } from '../../abi/grant-table.js';
import { DOMID_SELF } from '../../abi/xen.js';
import type { CopyBatch } from '../copy-batch.js';
import { GrantError, HypercallError } from '../errors.js';
import type { Memory } from '../memory.js';
import { PAGE_SIZE } from '../memory.js';
import type {
  DomainMemory,
  EventChannels,
  EventDelivery,
  GrantMapping,
  Grants,
  GrantsWasm,
  Platform,
  XenStoreAccess,
} from '../platform.js';
import type { Scheduler } from '../scheduler.js';
import type { Domain } from './domain.js';
import { PAGE_IN_BANK } from './frame-table.js';
import { GuestGrantTable } from './guest-grant-table.js';

/** One simulated domain's view of Xen. */
export class SimPlatform implements Platform {
  readonly domid: number;
  readonly memory: DomainMemory;
  readonly grants: Grants;
  readonly events: EventChannels;
  readonly xenstore: XenStoreAccess;
  readonly scheduler: Scheduler;

  constructor(private readonly domain: Domain) {
    this.domid = domain.domid;
    this.memory = new SimMemory(domain);
    this.grants = new SimGrants(domain);
    this.events = new SimEvents(domain);
    this.scheduler = domain.scheduler;
    this.xenstore = {
      kind: 'ring',
      memory: domain.hypervisor.memory,
      address: domain.storePage * PAGE_SIZE,
      port: domain.storePort,
    };
  }

  looselyOrdered(domid: number): boolean {
    return this.domain.hypervisor.domain(domid)?.threaded ?? false;
  }

  random(): number {
    return this.domain.hypervisor.random();
  }

  log(line: string): void {
    this.domain.log(line);
  }
}

class SimMemory implements DomainMemory {
  readonly memory: Memory;
  /** Pages that the domain has without asking for them. */
  private readonly initial: number;

  constructor(private readonly domain: Domain) {
    this.memory = domain.hypervisor.memory;
    this.initial = domain.pages;
  }

  get allocated(): number {
    return Math.max(0, this.domain.pages - this.initial);
  }

  allocPage(): number {
    return this.domain.allocPage();
  }

  freePage(page: number): void {
    if (!this.domain.dying) this.domain.freePage(page);
  }

  gfn(page: number): number {
    const { frames } = this.domain.hypervisor;
    if (frames.owner[page] !== this.domain.domid || frames.gfn[page] < 0) {
      throw new HypercallError('EINVAL', `page ${page} is not of domain ${this.domain.domid}`);
    }
    return frames.gfn[page];
  }
}

class SimMapping implements GrantMapping {
  mapped = true;

  constructor(
    readonly domid: number,
    readonly gref: number,
    readonly readonly: boolean,
    readonly memory: Memory,
    readonly address: number,
    readonly handle: number,
  ) {}
}

class SimGrants extends GuestGrantTable implements Grants {
  readonly regrantable = true;
  private mappings = 0;

  get mapped(): number {
    return this.mappings;
  }

  get wasm(): GrantsWasm {
    const { record, hypervisor, grantTable } = this.domain;
    return { record, regrantable: grantTable.version === 1, functions: hypervisor.grants.hypercalls };
  }

  map(domid: number, gref: number, readonly: boolean): GrantMapping {
    const { domain } = this;
    const { grants } = domain.hypervisor;
    const flags = readonly ? GNTMAP_host_map | GNTMAP_readonly : GNTMAP_host_map;
    const { status, handle, frame } = domain.dying
      ? { status: GNTST.general_error, handle: -1, frame: 0 }
      : grants.map(domain, domid, gref, flags);
    if (status !== GNTST.okay) {
      throw new GrantError(
        status,
        `domain ${domain.domid} cannot map grant ${gref} of domain ${domid}${readonly ? ' (readonly)' : ''}`,
      );
    }
    this.mappings++;
    const memory = domain.hypervisor.memoryOf(frame);
    return new SimMapping(domid, gref, readonly, memory, (frame & PAGE_IN_BANK) * PAGE_SIZE, handle);
  }

  unmap(mapping: GrantMapping): void {
    const { mapped, handle } = mapping as SimMapping;
    if (!mapped) {
      throw new GrantError(
        GNTST.bad_handle,
        `grant ${mapping.gref} of domain ${mapping.domid} was unmapped before`,
      );
    }
    (mapping as SimMapping).mapped = false;
    this.mappings--;
    // A destroyed domain's mappings went with it.
    if (!this.domain.dying) this.domain.hypervisor.grants.unmap(this.domain, handle);
  }

  copy(batch: CopyBatch): void {
    if (this.domain.dying) batch.setAll(GNTST.general_error);
    else this.domain.hypervisor.grants.copy(this.domain, batch);
  }
}

class SimEvents implements EventChannels {
  readonly maxPorts: number;
  readonly delivery: EventDelivery;

  constructor(private readonly domain: Domain) {
    this.maxPorts = domain.ports.limit;
    this.delivery = {
      kind: 'shared-info',
      memory: domain.sharedMemory,
      sharedInfo: domain.sharedInfo,
      wordBits: domain.layout.wordBits,
      vcpu: 0,
      onUpcall: upcall => domain.onUpcall(0, upcall),
    };
  }

  get allocated(): number {
    return this.domain.ports.used;
  }

  allocUnbound(remoteDomid: number): number {
    return this.domain.hypervisor.events.allocUnbound(this.domain, DOMID_SELF, remoteDomid);
  }

  bindInterdomain(remoteDomid: number, remotePort: number): number {
    return this.domain.hypervisor.events.bindInterdomain(this.domain, remoteDomid, remotePort);
  }

  bindVirq(virq: number, vcpu: number): number {
    return this.domain.hypervisor.events.bindVirq(this.domain, virq, vcpu);
  }

  close(port: number): void {
    // A destroyed domain's ports went with it.
    if (!this.domain.dying) this.domain.hypervisor.events.close(this.domain, port);
  }

  notify(port: number): void {
    if (!this.domain.dying) this.domain.hypervisor.events.send(this.domain, port);
  }

  mask(port: number): void {
    if (port > 0 && port < this.maxPorts && !this.domain.dying) this.domain.mask(port);
  }

  unmask(port: number): void {
    if (!this.domain.dying) this.domain.hypervisor.events.unmask(this.domain, port);
  }
}
