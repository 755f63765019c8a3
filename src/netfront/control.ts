import { ErrnoError } from '../abi/errno.js';
import {
  NETIF_CTRL_SLOT_SIZE,
  NETIF_GREF_ENTRY_SIZE,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_CTRL_STATUS,
  XEN_NETIF_CTRL_TYPE,
  XEN_NETIF_CTRLF_GREF_READONLY,
} from '../abi/netif.js';
import { FrontRing, initSharedRing } from '../abi/ring.js';
import type { Irqs } from '../events/index.js';
import type { GrantReclaimer } from '../platform/grant-reclaimer.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { Platform } from '../platform/platform.js';

/** Grants that one request can name: a page of them. */
const GREFS_PER_LIST = PAGE_SIZE / NETIF_GREF_ENTRY_SIZE;

/** What the control ring needs of its device. */
export interface ControlDevice {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly reclaimer: GrantReclaimer;
  readonly backendId: number;
  broken(reason: string): void;
}

export interface ControlResponse {
  /** XEN_NETIF_CTRL_STATUS. */
  readonly status: number;
  readonly data: number;
}

/** How packets to this guest are to be hashed. */
export interface HashSettings {
  /** Mask of 1 << XEN_NETIF_CTRL_HASH_TYPE; 0 ends hashing. */
  readonly flags: number;
  /** Up to 40 octets. */
  readonly key: Uint8Array;
  /** The queue for each value of hash modulo its length; without it, the hash modulo the queues. */
  readonly mapping?: readonly number[];
}

/** A frontend's control ring: requests to its backend about hashing and static grants. */
export class Control {
  /** For xenstore: ctrl-ring-ref and event-channel-ctrl. */
  readonly ringRef: number;
  readonly port: number;
  private readonly ring: FrontRing;
  private readonly page: number;
  private readonly irq: number;
  private readonly waiting = new Map<
    number,
    { type: number; resolve: (response: ControlResponse) => void }
  >();
  private lastId = 0;
  private stopped = false;

  /** @throws ENOSPC, ENOMEM; nothing stays behind then */
  constructor(
    private readonly device: ControlDevice,
    name: string,
  ) {
    const { platform, irqs, backendId } = device;
    this.page = platform.memory.allocPage();
    const { memory } = platform.memory;
    initSharedRing(memory, this.page << PAGE_SHIFT);
    this.ring = new FrontRing(memory, this.page << PAGE_SHIFT, NETIF_CTRL_SLOT_SIZE);
    let ringRef = -1;
    try {
      ringRef = platform.grants.grantAccess(backendId, this.page, false);
      const bound = irqs.bindListeningPortToIrqhandlerLateeoi(backendId, () => this.handle(), `${name}-ctrl`);
      this.irq = bound.irq;
      this.port = bound.port;
    } catch (error) {
      if (ringRef >= 0) platform.grants.endAccess(ringRef);
      platform.memory.freePage(this.page);
      throw error;
    }
    this.ringRef = ringRef;
  }

  /**
   * Sends a request. @param type one of XEN_NETIF_CTRL_TYPE
   * @returns NOT_SUPPORTED when the connection ends before the answer
   * @throws EBUSY when the ring is full, ENOTCONN when it is closed
   */
  request(type: number, a = 0, b = 0, c = 0): Promise<ControlResponse> {
    if (this.stopped) return Promise.reject(new ErrnoError('ENOTCONN', 'the control ring is closed'));
    const { ring } = this;
    if (ring.free === 0) return Promise.reject(new ErrnoError('EBUSY', 'the control ring is full'));
    do this.lastId = (this.lastId + 1) & 0xffff;
    while (this.waiting.has(this.lastId));
    const { u32 } = ring.memory;
    const at = ring.slot(ring.reqProdPvt) >>> 2;
    u32[at] = this.lastId | (type << 16);
    u32[at + 1] = a;
    u32[at + 2] = b;
    u32[at + 3] = c;
    ring.reqProdPvt = (ring.reqProdPvt + 1) | 0;
    const answer = new Promise<ControlResponse>(resolve => this.waiting.set(this.lastId, { type, resolve }));
    if (ring.pushRequests()) this.device.irqs.notifyRemoteViaIrq(this.irq);
    return answer;
  }

  /** Sets the Toeplitz hash up. @throws EINVAL with the request that the backend refused */
  async setHash(settings: HashSettings): Promise<void> {
    const T = XEN_NETIF_CTRL_TYPE;
    await this.must(T.SET_HASH_ALGORITHM, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ);
    await this.withPage(settings.key, gref => this.must(T.SET_HASH_KEY, gref, settings.key.length));
    const mapping = Uint32Array.from(settings.mapping ?? []);
    await this.must(T.SET_HASH_MAPPING_SIZE, mapping.length);
    if (mapping.length > 0) {
      const bytes = new Uint8Array(mapping.buffer);
      await this.withPage(bytes, gref => this.must(T.SET_HASH_MAPPING, gref, mapping.length, 0));
    }
    await this.must(T.SET_HASH_FLAGS, settings.flags);
  }

  /** Pages of one queue that the backend keeps mapped if it is asked to; 0 when it maps none. */
  async mappableGrants(queue: number): Promise<number> {
    const { status, data } = await this.request(XEN_NETIF_CTRL_TYPE.GET_GREF_MAPPING_SIZE, queue);
    return status === XEN_NETIF_CTRL_STATUS.SUCCESS ? data : 0;
  }

  /**
   * Has the backend keep pages mapped for packets of one queue: moving those costs it no grant operation.
   * @param grefs all granted until the connection ends @param readonly whether it may read them only
   * @throws EINVAL when the backend refuses them
   */
  async mapGrants(queue: number, grefs: readonly number[], readonly: boolean): Promise<void> {
    const T = XEN_NETIF_CTRL_TYPE;
    const flags = readonly ? XEN_NETIF_CTRLF_GREF_READONLY : 0;
    for (let at = 0; at < grefs.length; at += GREFS_PER_LIST) {
      const list = grefs.slice(at, at + GREFS_PER_LIST);
      // struct xen_netif_gref: the reference, then flags and a status of 16 bits each.
      const words = Uint32Array.from(list.flatMap(gref => [gref, flags]));
      await this.withPage(new Uint8Array(words.buffer), gref =>
        this.must(T.ADD_GREF_MAPPING, queue, gref, list.length),
      );
    }
  }

  destroy(): void {
    this.stop();
    this.device.irqs.unbindFromIrqhandler(this.irq);
    this.device.reclaimer.end(this.ringRef, this.page);
  }

  private async must(type: number, a = 0, b = 0, c = 0): Promise<number> {
    const { status, data } = await this.request(type, a, b, c);
    if (status === XEN_NETIF_CTRL_STATUS.SUCCESS) return data;
    const name = Object.entries(XEN_NETIF_CTRL_TYPE).find(([, value]) => value === type)?.[0];
    throw new ErrnoError('EINVAL', `the backend answered ${name}(${a}, ${b}, ${c}) with status ${status}`);
  }

  /** Grants a page with these bytes for the time of `use`. */
  private async withPage(bytes: Uint8Array, use: (gref: number) => Promise<number>): Promise<void> {
    const { platform, backendId, reclaimer } = this.device;
    if (bytes.length > PAGE_SIZE)
      throw new ErrnoError('EINVAL', `${bytes.length} bytes do not fit into a page`);
    const page = platform.memory.allocPage();
    platform.memory.memory.u8.set(bytes, page << PAGE_SHIFT);
    let gref: number;
    try {
      gref = platform.grants.grantAccess(backendId, page, true);
    } catch (error) {
      platform.memory.freePage(page);
      throw error;
    }
    try {
      await use(gref);
    } finally {
      reclaimer.end(gref, page);
    }
  }

  /** From a backend that broke the protocol no event is taken any more. */
  private handle(): void {
    const before = this.ring.rspCons;
    this.take();
    if (!this.stopped) this.device.irqs.lateEoi(this.irq, this.ring.rspCons === before);
  }

  /** Takes the responses; the backend may answer in any order. */
  private take(): void {
    const { ring } = this;
    do {
      const rspProd = ring.rspProd();
      if (ring.responseOverflow(rspProd)) {
        this.broken(`control rsp_prod ${rspProd >>> 0} is beyond req_prod ${ring.reqProdPvt >>> 0}`);
      }
      while (!this.stopped && ring.rspCons !== rspProd) this.takeOne();
    } while (!this.stopped && ring.finalCheckForResponses());
  }

  private takeOne(): void {
    const { ring, waiting } = this;
    const { u32 } = ring.memory;
    const at = ring.slot(ring.rspCons) >>> 2;
    ring.rspCons = (ring.rspCons + 1) | 0;
    const word0 = u32[at];
    const id = word0 & 0xffff;
    const request = waiting.get(id);
    if (request === undefined || request.type !== word0 >>> 16) {
      this.broken(`a control response for request ${id}, which is not outstanding`);
      return;
    }
    waiting.delete(id);
    request.resolve({ status: u32[at + 1], data: u32[at + 2] });
  }

  private broken(reason: string): void {
    this.stop();
    this.device.broken(reason);
  }

  /** Nothing is sent or taken any more; who waits for an answer hears that there is none. */
  private stop(): void {
    this.stopped = true;
    for (const { resolve } of this.waiting.values()) {
      resolve({ status: XEN_NETIF_CTRL_STATUS.NOT_SUPPORTED, data: 0 });
    }
    this.waiting.clear();
  }
}
