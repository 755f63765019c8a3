import { ERRNO } from '../../abi/errno.js';
import {
  EVTCHN_ALLOC_UNBOUND,
  EVTCHN_BIND_INTERDOMAIN,
  EVTCHN_BIND_IPI,
  EVTCHN_BIND_VCPU,
  EVTCHN_BIND_VIRQ,
  EVTCHN_CLOSE,
  EVTCHN_RESET,
  EVTCHN_SEND,
  EVTCHN_STATUS,
  EVTCHN_UNMASK,
  EVTCHNOP,
  EVTCHNSTAT,
} from '../../abi/event-channel.js';
import {
  GNTCOPY_dest_gref,
  GNTCOPY_source_gref,
  GNTMAP_device_map,
  GNTMAP_host_map,
  GNTMAP_readonly,
  GNTST,
  GNTTAB_GET_VERSION,
  GNTTAB_MAP_GRANT_REF,
  GNTTAB_QUERY_SIZE,
  GNTTAB_SET_VERSION,
  GNTTAB_SWAP_GRANT_REF,
  GNTTAB_UNMAP_GRANT_REF,
  GNTTABOP,
} from '../../abi/grant-table.js';
import {
  CONSOLEIO,
  GNTTAB_COPY_32,
  HVM_NR_PARAMS,
  HVM_PARAM,
  HVM_PARAM_CALLBACK_TYPE_VECTOR,
  HVMOP,
  SCHEDOP,
  VCPU_REGISTER_VCPU_INFO,
  VCPUOP,
  XEN_ADD_TO_PHYSMAP,
  XEN_COMPILE_INFO,
  XEN_FEATURE_INFO,
  XEN_HVM_PARAM,
  XEN_MEMORY_RESERVATION,
  XENFEAT,
  XENMAPIDX_grant_table_status,
  XENMAPSPACE,
  XENMEM,
  XENVER,
} from '../../abi/hvm.js';
import { DOMID_SELF, HYPERVISOR, SHUTDOWN, type ShutdownReason } from '../../abi/xen.js';
import {
  COPY_LOCAL,
  CopyBatch,
  HypercallError,
  type Memory,
  PAGE_SHIFT,
  PAGE_SIZE,
} from '../../platform/index.js';
import type { Domain } from '../../platform/sim/index.js';
import { PAGE_IN_BANK } from '../../platform/sim/index.js';
import type { ForeignPages } from './foreign-pages.js';
import type { GuestMemory } from './guest-memory.js';
import { XEN_VERSION } from './xen-version.js';

/** Grant-table operations in one hypercall: Xen is interrupted in longer ones, and we are not. */
const MAX_GRANT_OPERATIONS = 8192;
/** Copies that are done at a time. */
const COPY_BATCH = 64;
const VCPU_INFO_BYTES = 64;

const shutdownReasons = Object.entries(SHUTDOWN) as [ShutdownReason, number][];

/** What of a guest's dealings with Xen is part of its saved state. */
export interface SavedHypercalls {
  /** HVM_PARAM_CALLBACK_IRQ. */
  readonly callback: number;
  readonly vector: number;
  /** RAM that it has given up. */
  readonly balloonedPages: readonly number[];
}

/** A hypercall that is to be made again, as its domain does not run now. */
export const AGAIN = Symbol('again');

export interface HypercallsOptions {
  readonly domain: Domain;
  /** The guest's RAM. */
  readonly ram: Memory;
  readonly memory: GuestMemory;
  readonly foreign: ForeignPages;
  /** Whether the guest's thread can reach a memory bank of the hypervisor's; if not, it soon will. */
  readonly reaches: (bank: number) => boolean;
  /** Gets what the guest writes to Xen's own console, a piece at a time. */
  readonly onConsole: (text: string) => void;
}

/**
 * The hypercalls of a 32-bit HVM guest: reads their argument structs from the guest's memory, calls the same
 * functions of the simulated hypervisor that a TypeScript domain's platform calls, writes the results back.
 */
export class Hypercalls {
  /** HVM parameters, by number. */
  readonly params = new Float64Array(HVM_NR_PARAMS);
  /** The interrupt vector for events; 0 until the guest has set one. */
  vector = 0;
  /** What the guest is told when the shutdown for which it waits is over: 0, or 1 when it was called off. */
  resumed: number | null = null;
  private readonly domain: Domain;
  private readonly guest: GuestMemory;
  private readonly batch = new CopyBatch(COPY_BATCH);
  /** The guest's page by handle of a mapping. */
  private readonly mappedAt = new Map<number, number>();

  constructor(private readonly options: HypercallsOptions) {
    const { domain } = options;
    this.domain = domain;
    this.guest = options.memory;
    const { frames } = domain.hypervisor;
    this.params[HVM_PARAM.STORE_PFN] = frames.gfn[domain.storePage];
    this.params[HVM_PARAM.STORE_EVTCHN] = domain.storePort;
    this.params[HVM_PARAM.CONSOLE_PFN] = frames.gfn[domain.consolePage];
    this.params[HVM_PARAM.CONSOLE_EVTCHN] = domain.consolePort;
  }

  /** What a restored guest takes up from the one that was saved; it sets up the rest again by itself. */
  get saved(): SavedHypercalls {
    const gone: number[] = [];
    for (let gfn = 0; gfn < this.domain.ramPages; gfn++)
      if (this.domain.physmap.get(gfn) === 0) gone.push(gfn);
    return { callback: this.params[HVM_PARAM.CALLBACK_IRQ], vector: this.vector, balloonedPages: gone };
  }

  /** Goes on from what was saved: the suspend that the guest waits in returns when it runs. */
  restore(saved: SavedHypercalls): void {
    this.params[HVM_PARAM.CALLBACK_IRQ] = saved.callback;
    this.vector = saved.vector;
    for (const gfn of saved.balloonedPages) this.domain.takeRam(gfn);
    this.resumed = 0;
  }

  /**
   * Does one hypercall. @returns its result, a negated errno when it failed as a whole; AGAIN when it must be
   * made again later
   */
  call(number: number, a: number, b: number, c: number): number | typeof AGAIN {
    try {
      switch (number) {
        case HYPERVISOR.memory_op:
          return this.memoryOp(a, b);
        case HYPERVISOR.xen_version:
          return this.xenVersion(a, b);
        case HYPERVISOR.console_io:
          return this.consoleIo(a, b, c);
        case HYPERVISOR.grant_table_op:
          return this.grantTableOp(a, b, c);
        case HYPERVISOR.vcpu_op:
          return this.vcpuOp(a, b, c);
        case HYPERVISOR.sched_op:
          return this.schedOp(a, b);
        case HYPERVISOR.event_channel_op:
          return this.eventChannelOp(a, b);
        case HYPERVISOR.hvm_op:
          return this.hvmOp(a, b);
        default:
          return -ERRNO.ENOSYS;
      }
    } catch (error) {
      if (error instanceof HypercallError) return -error.errno;
      throw error;
    }
  }

  // ---- memory_op ----

  private memoryOp(command: number, arg: number): number {
    const { guest, domain } = this;
    switch (command & 63) {
      case XENMEM.maximum_ram_page:
      case XENMEM.current_reservation:
      case XENMEM.maximum_reservation:
        return domain.pages;
      case XENMEM.decrease_reservation:
        return this.eachExtent(arg, gfn => domain.takeRam(gfn));
      case XENMEM.increase_reservation:
      case XENMEM.populate_physmap:
        return this.eachExtent(arg, gfn => domain.giveRam(gfn));
      case XENMEM.add_to_physmap:
        return this.addToPhysmap(
          guest.u32(arg + XEN_ADD_TO_PHYSMAP.space),
          guest.u32(arg + XEN_ADD_TO_PHYSMAP.idx),
          guest.u32(arg + XEN_ADD_TO_PHYSMAP.gpfn),
        );
      default:
        return -ERRNO.ENOSYS;
    }
  }

  /** @returns how many extents were done before one was not */
  private eachExtent(arg: number, change: (gfn: number) => boolean): number {
    const { guest } = this;
    const list = guest.u32(arg + XEN_MEMORY_RESERVATION.extent_start);
    const count = guest.u32(arg + XEN_MEMORY_RESERVATION.nr_extents);
    const order = guest.u32(arg + XEN_MEMORY_RESERVATION.extent_order);
    if (order > 9) return -ERRNO.EPERM;
    for (let done = 0; done < count; done++) {
      const first = guest.u32(list + 4 * done);
      for (let gfn = first; gfn < first + (1 << order); gfn++) if (!change(gfn)) return done;
    }
    return count;
  }

  private addToPhysmap(space: number, index: number, gfn: number): number {
    const { domain } = this;
    const { ram } = this.options;
    switch (space) {
      case XENMAPSPACE.shared_info:
        if (index !== 0 || !this.isRam(gfn)) return -ERRNO.EINVAL;
        ram.u8.fill(0, gfn << PAGE_SHIFT, (gfn + 1) << PAGE_SHIFT);
        domain.placeSharedInfo(ram, gfn << PAGE_SHIFT);
        return 0;
      case XENMAPSPACE.grant_table: {
        const table = domain.grantTable;
        const status = index >= XENMAPIDX_grant_table_status;
        const frame = status ? index - XENMAPIDX_grant_table_status : index;
        if (!status && frame >= table.frames.length && !table.grow(frame + 1)) return -ERRNO.EINVAL;
        const found = (status ? table.statusFrames : table.frames)[frame];
        if (found === undefined || gfn < domain.ramPages || gfn > PAGE_IN_BANK) return -ERRNO.EINVAL;
        this.options.foreign.hide(domain.hypervisor.frames.gfn[found]);
        domain.removeFromPhysmap(found);
        domain.addToPhysmap(gfn, found, false);
        return this.options.foreign.show(gfn, found) ? 0 : -ERRNO.ENOMEM;
      }
      default:
        return -ERRNO.EINVAL;
    }
  }

  /** Its rings are pages of the guest's, too, but not of its RAM. */
  private isRam(gfn: number): boolean {
    return gfn < this.domain.ramPages && this.domain.ramFrame(gfn) !== 0;
  }

  // ---- xen_version ----

  private xenVersion(command: number, arg: number): number {
    const { guest } = this;
    switch (command) {
      case XENVER.version:
        return (XEN_VERSION.major << 16) | XEN_VERSION.minor;
      case XENVER.extraversion:
        guest.setText(arg, XEN_VERSION.extra);
        return 0;
      case XENVER.compile_info:
        for (const offset of Object.values(XEN_COMPILE_INFO)) guest.setText(arg + offset, 'pvnet');
        return 0;
      case XENVER.capabilities:
        guest.setText(arg, 'hvm-3.0-x86_32 hvm-3.0-x86_32p ');
        return 0;
      case XENVER.changeset:
        guest.setText(arg, 'pvnet');
        return 0;
      case XENVER.platform_parameters:
        guest.setU32(arg, 0);
        return 0;
      case XENVER.get_features: {
        const features =
          (1 << XENFEAT.writable_page_tables) |
          (1 << XENFEAT.auto_translated_physmap) |
          (1 << XENFEAT.hvm_callback_vector);
        const first = guest.u32(arg + XEN_FEATURE_INFO.submap_idx) === 0;
        guest.setU32(arg + XEN_FEATURE_INFO.submap, first ? features : 0);
        return 0;
      }
      case XENVER.pagesize:
        return PAGE_SIZE;
      default:
        return -ERRNO.ENOSYS;
    }
  }

  private consoleIo(command: number, count: number, text: number): number {
    if (command !== CONSOLEIO.write) return -ERRNO.ENOSYS;
    const length = Math.min(count, PAGE_SIZE);
    this.options.onConsole(this.guest.text(text, length));
    return length;
  }

  // ---- grant_table_op ----

  private grantTableOp(command: number, arg: number, count: number): number | typeof AGAIN {
    const { guest, domain } = this;
    const { grants } = domain.hypervisor;
    if (count > MAX_GRANT_OPERATIONS) return -ERRNO.EINVAL;
    switch (command) {
      case GNTTABOP.map_grant_ref:
        if (!this.reachesGranters(arg, count)) return AGAIN;
        for (let i = 0; i < count; i++) this.map(arg + i * GNTTAB_MAP_GRANT_REF.size);
        return 0;
      case GNTTABOP.unmap_grant_ref:
        for (let i = 0; i < count; i++) this.unmap(arg + i * GNTTAB_UNMAP_GRANT_REF.size);
        return 0;
      case GNTTABOP.copy:
        this.copy(arg, count);
        return 0;
      case GNTTABOP.query_size: {
        const size = grants.querySize(domain, guest.u16(arg + GNTTAB_QUERY_SIZE.dom));
        guest.setU32(arg + GNTTAB_QUERY_SIZE.nr_frames, size.frames);
        guest.setU32(arg + GNTTAB_QUERY_SIZE.max_nr_frames, size.maxFrames);
        guest.setU16(arg + GNTTAB_QUERY_SIZE.status, size.status);
        return 0;
      }
      case GNTTABOP.set_version:
        grants.setVersion(domain, guest.u32(arg + GNTTAB_SET_VERSION.version));
        return 0;
      case GNTTABOP.get_version: {
        const version = grants.getVersion(domain, guest.u16(arg + GNTTAB_GET_VERSION.dom));
        guest.setU32(arg + GNTTAB_GET_VERSION.version, version);
        return 0;
      }
      case GNTTABOP.swap_grant_ref:
        for (let i = 0; i < count; i++) {
          const at = arg + i * GNTTAB_SWAP_GRANT_REF.size;
          const a = guest.u32(at + GNTTAB_SWAP_GRANT_REF.ref_a);
          const b = guest.u32(at + GNTTAB_SWAP_GRANT_REF.ref_b);
          guest.setU16(at + GNTTAB_SWAP_GRANT_REF.status, grants.swapGrantRef(domain, a, b));
        }
        return 0;
      default:
        return -ERRNO.ENOSYS;
    }
  }

  /** The guest's thread can reach the memory of all whose grants are to be mapped. */
  private reachesGranters(arg: number, count: number): boolean {
    const { guest, domain, options } = this;
    for (let i = 0; i < count; i++) {
      const dom = guest.u16(arg + i * GNTTAB_MAP_GRANT_REF.size + GNTTAB_MAP_GRANT_REF.dom);
      if (!options.reaches(domain.hypervisor.domain(dom)?.bank ?? 0)) return false;
    }
    return true;
  }

  private map(at: number): void {
    const { guest, domain } = this;
    const { hypervisor } = domain;
    const { grants } = hypervisor;
    const flags = guest.u32(at + GNTTAB_MAP_GRANT_REF.flags);
    const gfn = this.page(at + GNTTAB_MAP_GRANT_REF.host_addr);
    let { status, handle, frame } = grants.map(
      domain,
      guest.u16(at + GNTTAB_MAP_GRANT_REF.dom),
      guest.u32(at + GNTTAB_MAP_GRANT_REF.ref),
      flags,
    );
    if (status === GNTST.okay && (flags & GNTMAP_host_map) !== 0) {
      const readonly = (flags & GNTMAP_readonly) !== 0;
      const address = (frame & PAGE_IN_BANK) * PAGE_SIZE;
      if (this.options.foreign.map(gfn, frame, hypervisor.memoryOf(frame), address, readonly)) {
        this.mappedAt.set(handle, gfn);
      } else {
        grants.unmap(domain, handle);
        status = GNTST.general_error;
        handle = -1;
      }
    }
    guest.setU32(at + GNTTAB_MAP_GRANT_REF.handle, handle);
    if ((flags & GNTMAP_device_map) !== 0) {
      guest.setU64(at + GNTTAB_MAP_GRANT_REF.dev_bus_addr, gfn << PAGE_SHIFT, 0);
    } else {
      guest.setU64(at + GNTTAB_MAP_GRANT_REF.dev_bus_addr, 0, 0);
    }
    guest.setU16(at + GNTTAB_MAP_GRANT_REF.status, status);
  }

  private unmap(at: number): void {
    const { guest, domain } = this;
    const handle = guest.u32(at + GNTTAB_UNMAP_GRANT_REF.handle);
    const gfn = this.mappedAt.get(handle);
    const host = this.isSet(at + GNTTAB_UNMAP_GRANT_REF.host_addr);
    const device = this.isSet(at + GNTTAB_UNMAP_GRANT_REF.dev_bus_addr);
    const status = domain.hypervisor.grants.unmap(domain, handle, host, device);
    if (status === GNTST.okay && host && gfn !== undefined) {
      this.options.foreign.hide(gfn);
      this.mappedAt.delete(handle);
    }
    guest.setU16(at + GNTTAB_UNMAP_GRANT_REF.status, status);
  }

  /** The page of a 64-bit guest-physical address; one that is in no RAM when the address has more than 32 bits. */
  private page(at: number): number {
    return this.guest.u32(at + 4) === 0 ? this.guest.u32(at) >>> PAGE_SHIFT : PAGE_IN_BANK;
  }

  private isSet(at: number): boolean {
    return this.guest.u32(at) !== 0 || this.guest.u32(at + 4) !== 0;
  }

  private copy(arg: number, count: number): void {
    const { guest, domain, batch } = this;
    const { len, flags, source, dest, side, size, status } = GNTTAB_COPY_32;
    for (let first = 0; first < count; first += COPY_BATCH) {
      const end = Math.min(count, first + COPY_BATCH);
      batch.clear();
      for (let i = first; i < end; i++) {
        const at = arg + i * size;
        const bits = guest.u16(at + flags);
        batch.add(
          (bits & GNTCOPY_source_gref) !== 0 ? guest.u16(at + source + side.domid) : COPY_LOCAL,
          guest.u32(at + source + side.ref),
          guest.u16(at + source + side.offset),
          (bits & GNTCOPY_dest_gref) !== 0 ? guest.u16(at + dest + side.domid) : COPY_LOCAL,
          guest.u32(at + dest + side.ref),
          guest.u16(at + dest + side.offset),
          guest.u16(at + len),
        );
      }
      domain.hypervisor.grants.copy(domain, batch);
      for (let i = first; i < end; i++) guest.setU16(arg + i * size + status, batch.status(i - first));
    }
  }

  // ---- vcpu_op, sched_op ----

  private vcpuOp(command: number, vcpu: number, arg: number): number {
    const { guest, domain } = this;
    if (vcpu >= domain.vcpus.length) return -ERRNO.ENOENT;
    switch (command) {
      case VCPUOP.stop_periodic_timer:
        return 0;
      case VCPUOP.register_vcpu_info: {
        const gfn = guest.u32(arg + VCPU_REGISTER_VCPU_INFO.mfn);
        const offset = guest.u32(arg + VCPU_REGISTER_VCPU_INFO.offset);
        if (offset % 4 !== 0 || offset > PAGE_SIZE - VCPU_INFO_BYTES) return -ERRNO.EINVAL;
        if (!this.isRam(gfn)) return -ERRNO.EINVAL;
        domain.placeVcpuInfo(vcpu, this.options.ram, gfn * PAGE_SIZE + offset);
        return 0;
      }
      default:
        return -ERRNO.ENOSYS;
    }
  }

  private schedOp(command: number, arg: number): number | typeof AGAIN {
    switch (command) {
      case SCHEDOP.yield:
      case SCHEDOP.block:
        return 0;
      case SCHEDOP.shutdown: {
        if (this.resumed !== null) {
          const result = this.resumed;
          this.resumed = null;
          return result;
        }
        const code = this.guest.u32(arg);
        const reason = shutdownReasons.find(([, number]) => number === code);
        if (reason === undefined) return -ERRNO.EINVAL;
        this.domain.shutdown(reason[0]);
        return AGAIN;
      }
      default:
        return -ERRNO.ENOSYS;
    }
  }

  // ---- event_channel_op ----

  private eventChannelOp(command: number, arg: number): number {
    const { guest, domain } = this;
    const { events } = domain.hypervisor;
    switch (command) {
      case EVTCHNOP.send:
        events.send(domain, guest.u32(arg + EVTCHN_SEND.port));
        return 0;
      case EVTCHNOP.unmask:
        events.unmask(domain, guest.u32(arg + EVTCHN_UNMASK.port));
        return 0;
      case EVTCHNOP.alloc_unbound: {
        const port = events.allocUnbound(
          domain,
          guest.u16(arg + EVTCHN_ALLOC_UNBOUND.dom),
          guest.u16(arg + EVTCHN_ALLOC_UNBOUND.remote_dom),
        );
        guest.setU32(arg + EVTCHN_ALLOC_UNBOUND.port, port);
        return 0;
      }
      case EVTCHNOP.bind_interdomain: {
        const port = events.bindInterdomain(
          domain,
          guest.u16(arg + EVTCHN_BIND_INTERDOMAIN.remote_dom),
          guest.u32(arg + EVTCHN_BIND_INTERDOMAIN.remote_port),
        );
        guest.setU32(arg + EVTCHN_BIND_INTERDOMAIN.local_port, port);
        return 0;
      }
      case EVTCHNOP.bind_virq: {
        const port = events.bindVirq(
          domain,
          guest.u32(arg + EVTCHN_BIND_VIRQ.virq),
          guest.u32(arg + EVTCHN_BIND_VIRQ.vcpu),
        );
        guest.setU32(arg + EVTCHN_BIND_VIRQ.port, port);
        return 0;
      }
      case EVTCHNOP.bind_ipi: {
        const port = events.bindIpi(domain, guest.u32(arg + EVTCHN_BIND_IPI.vcpu));
        guest.setU32(arg + EVTCHN_BIND_IPI.port, port);
        return 0;
      }
      case EVTCHNOP.bind_vcpu:
        events.bindVcpu(
          domain,
          guest.u32(arg + EVTCHN_BIND_VCPU.port),
          guest.u32(arg + EVTCHN_BIND_VCPU.vcpu),
        );
        return 0;
      case EVTCHNOP.close:
        events.close(domain, guest.u32(arg + EVTCHN_CLOSE.port));
        return 0;
      case EVTCHNOP.status:
        this.eventChannelStatus(arg);
        return 0;
      case EVTCHNOP.reset:
        events.reset(domain, guest.u16(arg + EVTCHN_RESET.dom));
        return 0;
      default:
        return -ERRNO.ENOSYS;
    }
  }

  private eventChannelStatus(arg: number): void {
    const { guest, domain } = this;
    const found = domain.hypervisor.events.status(
      domain,
      guest.u16(arg + EVTCHN_STATUS.dom),
      guest.u32(arg + EVTCHN_STATUS.port),
    );
    guest.setU32(arg + EVTCHN_STATUS.status, found.status);
    guest.setU32(arg + EVTCHN_STATUS.vcpu, found.vcpu);
    switch (found.status) {
      case EVTCHNSTAT.unbound:
        guest.setU16(arg + EVTCHN_STATUS.unbound.dom, found.remoteDomid);
        break;
      case EVTCHNSTAT.interdomain:
        guest.setU16(arg + EVTCHN_STATUS.interdomain.dom, found.remoteDomid);
        guest.setU32(arg + EVTCHN_STATUS.interdomain.port, found.remotePort);
        break;
      case EVTCHNSTAT.virq:
        guest.setU32(arg + EVTCHN_STATUS.virq, found.virq);
        break;
    }
  }

  // ---- hvm_op ----

  private hvmOp(command: number, arg: number): number {
    const { guest, params } = this;
    if (command !== HVMOP.set_param && command !== HVMOP.get_param) return -ERRNO.ENOSYS;
    const domid = guest.u16(arg + XEN_HVM_PARAM.domid);
    if (domid !== DOMID_SELF && domid !== this.domain.domid) return -ERRNO.EPERM;
    const index = guest.u32(arg + XEN_HVM_PARAM.index);
    if (index >= HVM_NR_PARAMS) return -ERRNO.EINVAL;
    if (command === HVMOP.get_param) {
      const value = params[index];
      guest.setU64(arg + XEN_HVM_PARAM.value, value % 2 ** 32, Math.floor(value / 2 ** 32));
      return 0;
    }
    const low = guest.u32(arg + XEN_HVM_PARAM.value);
    const high = guest.u32(arg + XEN_HVM_PARAM.value + 4);
    // What the domain builder has set is not the guest's to change.
    if (index !== HVM_PARAM.CALLBACK_IRQ) return -ERRNO.EPERM;
    params[index] = high * 2 ** 32 + low;
    this.vector = high >>> 24 === HVM_PARAM_CALLBACK_TYPE_VECTOR ? low & 0xff : 0;
    return 0;
  }
}
