import type { Memory } from '../platform/memory.js';

/**
 * Shared I/O rings (xen/include/public/io/ring.h). The page starts with a header, the slots follow:
 *
 *     0 req_prod   4 req_event   8 rsp_prod   12 rsp_event   16 private area (48)   64 slot 0 …
 *
 * All indexes run freely modulo 2^32 and are kept here as int32, so that they stay small integers.
 */
export const RING_REQ_PROD = 0;
export const RING_REQ_EVENT = 4;
export const RING_RSP_PROD = 8;
export const RING_RSP_EVENT = 12;
export const RING_HEADER_SIZE = 64;
/** Bytes of a ring of one page, as those of network devices are. */
export const RING_BYTES = 4096;

/** Slots of a ring in `bytes` bytes (whole pages): the largest power of two that fits. */
export function ringSize(bytes: number, slotSize: number): number {
  // Shifted, not raised: the result of ** is a floating-point number, and with it each index masked by it.
  return 1 << (31 - Math.clz32((bytes - RING_HEADER_SIZE) / slotSize));
}

/**
 * Whether a producer that moved its index from `from` to `to` must notify a consumer that asked to be
 * woken at `event` (RING_PUSH_*_AND_CHECK_NOTIFY).
 */
export function ringNeedsNotify(from: number, to: number, event: number): boolean {
  return (to - event) >>> 0 < (to - from) >>> 0;
}

/** SHARED_RING_INIT: what a frontend does to a ring page before it grants it. */
export function initSharedRing(memory: Memory, address: number): void {
  const at = address >>> 2;
  memory.u32.fill(0, at, at + RING_HEADER_SIZE / 4);
  memory.store(address + RING_REQ_EVENT, 1);
  memory.store(address + RING_RSP_EVENT, 1);
}

abstract class Ring {
  /** Number of slots, a power of two. */
  readonly size: number;
  protected readonly mask: number;
  private readonly slots: number;

  /**
   * @param address byte address of the ring page in `memory`
   * @param slotSize bytes of the larger of request and response
   */
  constructor(
    readonly memory: Memory,
    readonly address: number,
    readonly slotSize: number,
  ) {
    this.size = ringSize(RING_BYTES, slotSize);
    this.mask = this.size - 1;
    this.slots = address + RING_HEADER_SIZE;
  }

  /** Byte address of the slot of a free-running index. */
  slot(index: number): number {
    return this.slots + (index & this.mask) * this.slotSize;
  }
}

/** A frontend's end of a ring: it produces requests and consumes responses. */
export class FrontRing extends Ring {
  /** Requests written, published or not. */
  reqProdPvt = 0;
  /** Responses consumed. */
  rspCons = 0;

  /** Slots that requests can still be written to. */
  get free(): number {
    return this.size - (this.reqProdPvt - this.rspCons);
  }

  /** The backend's producer index. */
  rspProd(): number {
    return this.memory.load(this.address + RING_RSP_PROD) | 0;
  }

  /** True when the backend has published responses that are not consumed. */
  get hasResponses(): boolean {
    return this.rspProd() !== this.rspCons;
  }

  /** True when `rspProd` cannot be right: more responses than requests are outstanding. */
  responseOverflow(rspProd: number): boolean {
    return (rspProd - this.rspCons) >>> 0 > (this.reqProdPvt - this.rspCons) >>> 0;
  }

  /** Publishes the requests written. @returns whether the backend must be notified */
  pushRequests(): boolean {
    const { memory, address } = this;
    return memory.publish(address + RING_REQ_PROD, this.reqProdPvt, address + RING_REQ_EVENT);
  }

  /** The request at which the backend asked to be woken is published. It may have been woken, and not have come round to it. */
  get eventIsDue(): boolean {
    return ((this.reqProdPvt - this.memory.load(this.address + RING_REQ_EVENT)) | 0) >= 0;
  }

  /** Asks for an event at the `after`-th response from now. @returns whether one is there already */
  finalCheckForResponses(after = 1): boolean {
    if (this.hasResponses) return true;
    const { memory, address, rspCons } = this;
    return (
      (memory.storeThenLoad(address + RING_RSP_EVENT, rspCons + after, address + RING_RSP_PROD) | 0) !==
      rspCons
    );
  }
}

/** A backend's end of a ring: it consumes requests and produces responses. */
export class BackRing extends Ring {
  /** Responses written, published or not. */
  rspProdPvt = 0;
  /** Requests consumed. */
  reqCons = 0;

  /** Starts at the response index that the page holds, as a backend that attaches to a used ring must. */
  attach(): void {
    this.rspProdPvt = this.memory.load(this.address + RING_RSP_PROD) | 0;
    this.reqCons = this.rspProdPvt;
  }

  /** The frontend's producer index. */
  reqProd(): number {
    return this.memory.load(this.address + RING_REQ_PROD) | 0;
  }

  /** True when `reqProd` cannot be right: more requests than the ring has slots. */
  requestOverflow(reqProd: number): boolean {
    return (reqProd - this.rspProdPvt) >>> 0 > this.size;
  }

  /** Requests up to `reqProd` that may be consumed: never more than the ring has unanswered. */
  unconsumed(reqProd: number): number {
    const published = (reqProd - this.reqCons) >>> 0;
    const room = (this.size - ((this.reqCons - this.rspProdPvt) >>> 0)) >>> 0;
    return Math.min(published, room);
  }

  /** True when there are requests that may be consumed. */
  get hasRequests(): boolean {
    return this.unconsumed(this.reqProd()) !== 0;
  }

  /** True when everything consumed so far fills the ring with unanswered requests. */
  consumerOverflow(reqCons = this.reqCons): boolean {
    return (reqCons - this.rspProdPvt) >>> 0 >= this.size;
  }

  /** Publishes the responses written. @returns whether the frontend must be notified */
  pushResponses(): boolean {
    const { memory, address } = this;
    return memory.publish(address + RING_RSP_PROD, this.rspProdPvt, address + RING_RSP_EVENT);
  }

  /** The response at which the frontend asked to be woken is published. It may have been woken, and not have come round to it. */
  get eventIsDue(): boolean {
    return ((this.rspProdPvt - this.memory.load(this.address + RING_RSP_EVENT)) | 0) >= 0;
  }

  /**
   * Asks for an event at the `after`-th request from now. @returns whether one is there already that may be
   * consumed: a producer index that claims more than the ring has unanswered is no reason to look again
   */
  finalCheckForRequests(after = 1): boolean {
    if (this.hasRequests) return true;
    const { memory, address } = this;
    const event = address + RING_REQ_EVENT;
    return (
      this.unconsumed(memory.storeThenLoad(event, this.reqCons + after, address + RING_REQ_PROD) | 0) !== 0
    );
  }
}
