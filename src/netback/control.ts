import {
  NETIF_CTRL_SLOT_SIZE,
  NETIF_GREF_ENTRY_SIZE,
  XEN_NETIF_CTRL_STATUS as STATUS,
  XEN_NETIF_CTRL_TYPE as TYPE,
  XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_CTRLF_GREF_READONLY,
} from '../abi/netif.js';
import { BackRing } from '../abi/ring.js';
import type { Irqs } from '../events/index.js';
import { COPY_LOCAL, CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { GrantMapping, Platform } from '../platform/platform.js';
import { Task } from '../platform/scheduler.js';
import { dumpRing } from './dump-ring.js';
import { ALL_HASH_TYPES, HASH_KEY_SIZE, HASH_MAPPING_SIZE, type HashConfig } from './hash.js';
import type { StaticGrants } from './static-grants.js';

/** Requests answered in one go: each may map a page full of grants, and others want their turn. */
const SERVED_AT_ONCE = 8;

/** Where the control ring and its event channel are. */
export interface ControlConnection {
  readonly domid: number;
  readonly ring: GrantMapping;
  readonly port: number;
}

/** What the control ring changes and says. */
export interface ControlTarget {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly hash: HashConfig;
  /** One for each queue. */
  readonly staticGrants: readonly StaticGrants[];
  fatal(reason: string): void;
}

/**
 * Serves a frontend's control ring: hashing, and static grants. Whatever a request names is copied to
 * private memory, checked there, and only then put to use; a request that fails changes nothing.
 */
export class ControlRing {
  private readonly ring: BackRing;
  private readonly irq: number;
  private readonly page: number;
  private readonly batch = new CopyBatch(1);
  private readonly task: Task;
  /** The runs since the last end of interrupt answered something. */
  private worked = false;
  private stopped = false;
  /** `data` of the response to be written. */
  private data = 0;

  /** @throws as binding an event channel and allocating a page do; nothing stays behind then */
  constructor(
    private readonly target: ControlTarget,
    private readonly connection: ControlConnection,
    name: string,
  ) {
    const { platform, irqs } = target;
    const { ring, domid, port } = connection;
    this.ring = new BackRing(ring.memory, ring.address, NETIF_CTRL_SLOT_SIZE);
    this.ring.attach();
    this.task = new Task(`${name} control`, () => this.serve());
    this.page = platform.memory.allocPage();
    try {
      const handler = () => platform.scheduler.post(this.task);
      this.irq = irqs.bindInterdomainEvtchnToIrqhandlerLateeoi(domid, port, handler, `${name}-ctrl`).irq;
    } catch (error) {
      platform.memory.freePage(this.page);
      throw error;
    }
  }

  destroy(): void {
    this.stopped = true;
    this.target.irqs.unbindFromIrqhandler(this.irq);
    this.target.platform.memory.freePage(this.page);
  }

  /** The ring's indexes in the page and ours. */
  dump(): string {
    return dumpRing('control', this.ring);
  }

  /** Answers some of what is on the ring; with more there it posts itself again. */
  private serve(): void {
    const { ring } = this;
    if (this.stopped) return;
    const reqProd = ring.reqProd();
    if (ring.requestOverflow(reqProd)) {
      this.stopped = true;
      this.target.fatal(`the control ring claims ${(reqProd - ring.rspProdPvt) >>> 0} requests`);
      return;
    }
    const count = Math.min(ring.unconsumed(reqProd), SERVED_AT_ONCE);
    for (let i = 0; i < count && !this.stopped; i++) this.answer();
    if (this.stopped) return;
    if (count > 0) this.worked = true;
    if (ring.pushResponses()) this.target.irqs.notifyRemoteViaIrq(this.irq);
    if (ring.finalCheckForRequests()) {
      this.target.platform.scheduler.post(this.task);
      return;
    }
    this.target.irqs.lateEoi(this.irq, !this.worked);
    this.worked = false;
  }

  private answer(): void {
    const { ring } = this;
    const { u32 } = ring.memory;
    let at = ring.slot(ring.reqCons) >>> 2;
    ring.reqCons = (ring.reqCons + 1) | 0;
    const word0 = u32[at];
    const [a, b, c] = [u32[at + 1], u32[at + 2], u32[at + 3]];
    this.data = 0;
    const status = this.execute(word0 >>> 16, a, b, c);
    at = ring.slot(ring.rspProdPvt) >>> 2;
    ring.rspProdPvt = (ring.rspProdPvt + 1) | 0;
    u32[at] = word0;
    u32[at + 1] = status;
    u32[at + 2] = this.data;
  }

  private execute(type: number, a: number, b: number, c: number): number {
    const { hash } = this.target;
    const hasAlgorithm = hash.algorithm !== XEN_NETIF_CTRL_HASH_ALGORITHM_NONE;
    switch (type) {
      case TYPE.GET_HASH_FLAGS:
        if (!hasAlgorithm) return STATUS.NOT_SUPPORTED;
        this.data = ALL_HASH_TYPES;
        return STATUS.SUCCESS;
      case TYPE.SET_HASH_FLAGS:
        if (!hasAlgorithm || (a & ~ALL_HASH_TYPES) !== 0) return STATUS.INVALID_PARAMETER;
        hash.flags = a;
        return STATUS.SUCCESS;
      case TYPE.SET_HASH_KEY:
        return this.setKey(a, b);
      case TYPE.GET_HASH_MAPPING_SIZE:
        this.data = HASH_MAPPING_SIZE;
        return STATUS.SUCCESS;
      case TYPE.SET_HASH_MAPPING_SIZE:
        if (a > HASH_MAPPING_SIZE) return STATUS.INVALID_PARAMETER;
        hash.mappingSize = a;
        hash.mapping.fill(0);
        return STATUS.SUCCESS;
      case TYPE.SET_HASH_MAPPING:
        return this.setMapping(a, b, c);
      case TYPE.SET_HASH_ALGORITHM:
        if (a !== XEN_NETIF_CTRL_HASH_ALGORITHM_NONE && a !== XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ) {
          return STATUS.INVALID_PARAMETER;
        }
        hash.algorithm = a;
        return STATUS.SUCCESS;
      case TYPE.GET_GREF_MAPPING_SIZE:
      case TYPE.ADD_GREF_MAPPING:
      case TYPE.DEL_GREF_MAPPING:
        return this.grefMapping(type, a, b, c);
      default:
        return STATUS.NOT_SUPPORTED;
    }
  }

  private setKey(gref: number, length: number): number {
    if (length > HASH_KEY_SIZE) return STATUS.BUFFER_OVERFLOW;
    if (!this.fetch(gref, length)) return STATUS.INVALID_PARAMETER;
    const { key } = this.target.hash;
    const { u8 } = this.target.platform.memory.memory;
    const from = this.page << PAGE_SHIFT;
    key.fill(0);
    for (let i = 0; i < length; i++) key[i] = u8[from + i];
    return STATUS.SUCCESS;
  }

  private setMapping(gref: number, length: number, offset: number): number {
    const { hash } = this.target;
    // All three are u32 in doubles: no sum wraps.
    if (offset + length > hash.mappingSize || length * 4 > PAGE_SIZE) return STATUS.INVALID_PARAMETER;
    if (!this.fetch(gref, length * 4)) return STATUS.INVALID_PARAMETER;
    const { u32 } = this.target.platform.memory.memory;
    const from = (this.page << PAGE_SHIFT) >>> 2;
    const queues = this.target.staticGrants.length;
    for (let i = 0; i < length; i++) if (u32[from + i] >= queues) return STATUS.INVALID_PARAMETER;
    for (let i = 0; i < length; i++) hash.mapping[offset + i] = u32[from + i];
    return STATUS.SUCCESS;
  }

  private grefMapping(type: number, queue: number, gref: number, entries: number): number {
    const grants = this.target.staticGrants[queue];
    if (grants === undefined) return STATUS.INVALID_PARAMETER;
    if (type === TYPE.GET_GREF_MAPPING_SIZE) {
      this.data = grants.limit;
      return STATUS.SUCCESS;
    }
    const bytes = entries * NETIF_GREF_ENTRY_SIZE;
    if (entries === 0 || bytes > PAGE_SIZE || !this.fetch(gref, bytes)) return STATUS.INVALID_PARAMETER;
    const { u32, u16 } = this.target.platform.memory.memory;
    const list = Array.from({ length: entries }, (_, i) => {
      const at = (this.page << PAGE_SHIFT) + i * NETIF_GREF_ENTRY_SIZE;
      return { gref: u32[at >>> 2], readonly: (u16[(at + 4) >>> 1] & XEN_NETIF_CTRLF_GREF_READONLY) !== 0 };
    });
    if (type === TYPE.ADD_GREF_MAPPING) return grants.add(list) ? STATUS.SUCCESS : STATUS.INVALID_PARAMETER;
    for (const [i, entry] of list.entries()) {
      const removed = grants.remove(entry.gref);
      if (removed) this.data++;
      const at = (this.page << PAGE_SHIFT) + i * NETIF_GREF_ENTRY_SIZE;
      u16[(at + 6) >>> 1] = removed ? STATUS.SUCCESS : STATUS.INVALID_PARAMETER;
    }
    // Each entry's status goes back into the frontend's list.
    return this.copy(true, gref, bytes) ? STATUS.SUCCESS : STATUS.INVALID_PARAMETER;
  }

  /** Copies the first bytes of a granted page to the private one. */
  private fetch(gref: number, length: number): boolean {
    return length === 0 || this.copy(false, gref, length);
  }

  private copy(back: boolean, gref: number, length: number): boolean {
    const { batch, page } = this;
    const { domid } = this.connection;
    batch.clear();
    if (back) batch.add(COPY_LOCAL, page, 0, domid, gref, 0, length);
    else batch.add(domid, gref, 0, COPY_LOCAL, page, 0, length);
    this.target.platform.grants.copy(batch);
    return batch.status(0) === 0;
  }
}
