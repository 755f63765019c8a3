import { NETIF_RX_SLOT_SIZE } from '../abi/netif.js';
import { BackRing, RING_REQ_EVENT, ringSize } from '../abi/ring.js';
import { GSO_NONE, type Packet } from '../net/packet.js';
import type { TxQueue } from '../net/tx-queue.js';
import { COPY_LOCAL, CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { GrantMapping } from '../platform/platform.js';
import { Task, type Timer } from '../platform/scheduler.js';
import { PacketQueue } from './packet-queue.js';
import type { QueueStats, QueueVif } from './queue.js';
import {
  fitsFrontends,
  planRx,
  RX_DATA_SLOTS_MAX,
  respondRx,
  respondRxError,
  rxChecksumFlags,
  rxCopiesAtMost,
  rxSlotsNeeded,
} from './rx-slots.js';
import type { StaticGrants } from './static-grants.js';

/** Packets put on the ring with one batch of copies, and the copies that a batch holds. */
const BATCH_PACKETS = 64;
const BATCH_COPIES = 512;
/** Bytes that may wait for rx requests: half a ring of full pages, as Linux's netback. */
export const RX_QUEUE_BYTES_MAX = 128 * PAGE_SIZE;
/** Packets that may: each takes at least a buffer, however few bytes it has. */
export const RX_QUEUE_PACKETS_MAX = 1024;
/** How long a packet may wait for rx requests (rx_drain_timeout_msecs), … */
const RX_DRAIN_MS = 10_000;
/** … and after how long without enough of them the guest counts as stalled (rx_stall_timeout_msecs). */
export const RX_STALL_MS = 60_000;
/** A frontend without feature-rx-notify does not tell of new requests: the ring is looked at, but not for long. */
const RX_DRAIN_POLLED_MS = 30;
const RX_POLL_MS = 5;

/** The work space of a batch, which all rings share: nothing in it is of use from one look at a ring to the next. */
const SCRATCH = {
  plans: new Array<Packet | null>(BATCH_PACKETS).fill(null),
  slots: new Uint8Array(BATCH_PACKETS),
  firstCopy: new Int32Array(BATCH_PACKETS + 1),
  batch: new CopyBatch(BATCH_COPIES),
  requests: new Uint32Array(ringSize(PAGE_SIZE, NETIF_RX_SLOT_SIZE)),
};

/** The backend's end of an rx ring: what goes to the guest, and what waits until the guest takes it. */
export class RxRing {
  readonly ring: BackRing;
  readonly waiting = new PacketQueue();
  /** Packets that are being copied: each with the rx requests that it takes, and its first copy. */
  private readonly plans = SCRATCH.plans;
  private readonly slots = SCRATCH.slots;
  private readonly firstCopy = SCRATCH.firstCopy;
  private readonly batch = SCRATCH.batch;
  private planned = 0;
  /** Ids of the requests that were read and the bytes for their pages, by the slot of the ring. */
  private readonly requests = SCRATCH.requests;
  /** The frontend's producer index when an event was last accounted for. */
  private reqProdSeen = 0;
  /** Slots that the last head of the queue wanted in vain, 0 when it had enough; and since when. */
  private wanted = 0;
  private wantedSince = 0;
  private isStalled = false;
  /** The event that was asked for last, and how many were. */
  private reqEvent = 0;
  asked = 0;
  private timer: Timer | null = null;
  private stopped = false;
  private readonly task: Task;

  /**
   * @param queue the device's queue that packets for this ring come from
   * @param domid who granted the ring and the pages on it
   * @param onServed called at the end of each look at the ring; with true the guest is to be notified
   * @param onFatal the frontend broke the protocol
   */
  constructor(
    private readonly vif: QueueVif,
    private readonly queue: TxQueue,
    mapping: GrantMapping,
    private readonly domid: number,
    name: string,
    private readonly staticGrants: StaticGrants,
    private readonly stats: QueueStats,
    private readonly onServed: (notify: boolean) => void,
    private readonly onFatal: (reason: string) => void,
  ) {
    this.ring = new BackRing(mapping.memory, mapping.address, NETIF_RX_SLOT_SIZE);
    this.ring.attach();
    this.task = new Task(`${name} rx`, () => this.run());
  }

  /** Looks at the ring soon. */
  schedule(): void {
    if (!this.task.queued) this.vif.platform.scheduler.post(this.task);
  }

  /** Nothing more is read or written; packets that wait, which hold slots of their senders, are let go. */
  stop(): void {
    this.stopped = true;
    if (this.timer !== null) this.vif.platform.scheduler.cancel(this.timer);
    this.timer = null;
    for (let packet = this.waiting.shift(); packet !== null; packet = this.waiting.shift()) packet.release();
    this.queue.resetLimit();
  }

  /** Takes back what it said of a guest that stalled. */
  forgetStall(): void {
    if (this.isStalled) this.vif.rxStalled(false);
    this.isStalled = false;
  }

  /** No packet waits for the guest, and it does not get them in a way of its own. */
  get plain(): boolean {
    return (
      this.waiting.length === 0 &&
      this.wanted === 0 &&
      !this.stopped &&
      this.staticGrants.size === 0 &&
      this.vif.xdpHeadroom === 0 &&
      this.queue.idle
    );
  }

  private get full(): boolean {
    const { length, bytes } = this.waiting;
    return bytes > RX_QUEUE_BYTES_MAX || length >= RX_QUEUE_PACKETS_MAX;
  }

  /** Takes a packet for the guest; drops it when too many bytes wait already. Takes the reference. */
  enqueue(packet: Packet): void {
    // A sender's whole ring is forwarded in one go: what it brought may fill the queue before the task has run.
    if (this.full) this.run();
    if (this.stopped || this.full) {
      this.drop(packet);
      return;
    }
    this.waiting.push(packet);
    this.queue.sent(packet.length);
    // What holds the queue may be that this has not been looked at yet.
    if (this.queue.stopped) this.run();
    else this.schedule();
  }

  private drop(packet: Packet): void {
    this.stats.rxQueueDrops++;
    this.vif.dev.stats.txDropped++;
    packet.release();
  }

  private run(): void {
    if (this.stopped) return;
    const { ring, waiting, batch } = this;
    const { xdpHeadroom, gsoPrefix } = this.vif;
    const before = ring.rspProdPvt;
    const usual = xdpHeadroom === 0 && this.staticGrants.size === 0;
    let available = 0;
    for (let packet = waiting.head; packet !== null; packet = waiting.head) {
      const one = usual && packet.length <= PAGE_SIZE && packet.gsoType === GSO_NONE && packet.hashType < 0;
      const needed = one ? 1 : rxSlotsNeeded(packet, xdpHeadroom);
      // Here, as the headroom may have grown while it waited.
      if (needed > RX_DATA_SLOTS_MAX && !fitsFrontends(packet, xdpHeadroom)) {
        waiting.shift();
        this.drop(packet);
        continue;
      }
      if (needed > available) {
        available = this.available(needed);
        if (needed > available) break;
      }
      const copies = one ? 1 + packet.fragments : rxCopiesAtMost(packet);
      if (this.planned === BATCH_PACKETS || batch.free < copies) this.copy();
      waiting.shift();
      if (one) this.planOne(packet);
      else {
        planRx(
          packet,
          ring,
          ring.reqCons,
          this.domid,
          batch,
          this.requests,
          this.staticGrants,
          xdpHeadroom,
          gsoPrefix,
        );
      }
      this.plans[this.planned] = packet;
      this.slots[this.planned++] = needed;
      this.firstCopy[this.planned] = batch.count;
      ring.reqCons = (ring.reqCons + needed) | 0;
      available -= needed;
    }
    const taken = ring.reqCons;
    this.copy();
    if (this.stopped) return;
    // A copy that failed may have left requests that the next packet wants.
    if (ring.reqCons !== taken && waiting.length > 0) this.schedule();
    if (waiting.length > 0 || this.wanted > 0) this.supervise(ring.rspProdPvt !== before);
    this.queue.completed(this.queue.dql.inflight - waiting.bytes);
    this.onServed(ring.rspProdPvt !== before && ring.pushResponses());
  }

  /** rx requests that are there; asks for an event when that is less than `needed`, and is 0 when they cannot be. */
  private available(needed: number): number {
    const { ring } = this;
    let reqProd = ring.reqProd();
    if (needed > ring.unconsumed(reqProd)) {
      this.requestEvent(needed);
      reqProd = ring.reqProd();
    }
    if (!ring.requestOverflow(reqProd)) return ring.unconsumed(reqProd);
    if (needed <= ring.unconsumed(reqProd)) {
      this.copy();
      const claimed = (reqProd - ring.rspProdPvt) >>> 0;
      this.fatal(`the rx ring claims ${claimed} requests, it has ${ring.size} slots`);
    }
    return 0;
  }

  /** `planRx` for a packet that goes into one page, without anything that such a packet does not need. */
  private planOne(packet: Packet): void {
    const { ring, batch, domid } = this;
    const { i32 } = ring.memory;
    const at = ring.slot(ring.reqCons) >>> 2;
    const gref = i32[at + 1];
    const { data, linear, fragments } = packet;
    this.requests[ring.reqCons & (ring.size - 1)] = i32[at] & 0xffff;
    batch.add(COPY_LOCAL, data >>> PAGE_SHIFT, data & (PAGE_SIZE - 1), domid, gref, 0, linear);
    let filled = linear;
    for (let i = 0; i < fragments; i++) {
      const size = packet.size[i];
      batch.add(packet.source[i], packet.ref[i], packet.offset[i], domid, gref, filled, size);
      filled += size;
    }
  }

  /**
   * Some packets wait, or did until they had for too long: notes a guest that has stalled, or goes on, and drops
   * what has waited for too long. The timer runs only while there is something to wait for.
   * @param moved whether the guest got a packet just now
   */
  private supervise(moved: boolean): void {
    const { ring, waiting, vif } = this;
    const { scheduler } = vif.platform;
    const now = scheduler.now();
    if (waiting.length > 0) this.keepWaiting(now);
    if (moved || ring.unconsumed(ring.reqProd()) >= this.wanted) this.hasEnough(now);
    const drain = vif.rxNotify ? RX_DRAIN_MS : RX_DRAIN_POLLED_MS;
    let expired = false;
    for (let packet = waiting.head; packet !== null; packet = waiting.head) {
      this.wanted = rxSlotsNeeded(packet, vif.xdpHeadroom);
      if (now < waiting.headTime + drain) break;
      waiting.shift();
      packet.release();
      this.stats.rxExpired++;
      vif.dev.stats.txDropped++;
      expired = true;
    }
    // The next one may need fewer slots than there are.
    if (expired && waiting.length > 0) scheduler.post(this.task);
    let next = waiting.length > 0 ? waiting.headTime + drain : Number.POSITIVE_INFINITY;
    if (!vif.rxNotify) {
      if (waiting.length > 0) next = Math.min(next, now + RX_POLL_MS);
    } else if (this.wanted > 0 && !this.isStalled) {
      const stallsAt = this.wantedSince + RX_STALL_MS;
      if (now >= stallsAt) {
        this.isStalled = true;
        this.stats.rxStalls++;
        vif.rxStalled(true);
        // It may have missed that there is something on its ring.
        this.onServed(true);
      } else next = Math.min(next, stallsAt);
    }
    this.superviseAt(next);
  }

  private hasEnough(now: number): void {
    this.wanted = 0;
    this.wantedSince = now;
    if (!this.isStalled) return;
    this.isStalled = false;
    this.vif.rxStalled(false);
  }

  private superviseAt(time: number): void {
    const { scheduler } = this.vif.platform;
    if (this.timer !== null) {
      if (this.timer.at <= time) return;
      scheduler.cancel(this.timer);
      this.timer = null;
    }
    if (time === Number.POSITIVE_INFINITY) return;
    // A whole millisecond at least: what a sum of fractions has lost must not make the timer fire too early,
    // again and again.
    this.timer = scheduler.after(Math.max(1, Math.ceil(time - scheduler.now())), () => {
      this.timer = null;
      this.run();
    });
  }

  /** Whether the guest posted rx requests since the last call: an event without any is a spurious one. */
  requestsCame(): boolean {
    const reqProd = this.ring.reqProd();
    const came = reqProd !== this.reqProdSeen;
    this.reqProdSeen = reqProd;
    return came;
  }

  /** Asks to be notified when there are requests enough for the packet at the head. */
  private requestEvent(needed: number): void {
    const { memory, address, reqCons } = this.ring;
    const reqEvent = (reqCons + needed) | 0;
    if (reqEvent !== this.reqEvent) this.asked++;
    this.reqEvent = reqEvent;
    memory.store(address + RING_REQ_EVENT, reqEvent);
  }

  /** Does the planned copies, writes the responses and lets go of the packets. */
  private copy(): void {
    const { ring, batch, plans, planned, slots, firstCopy } = this;
    if (planned === 0) return;
    this.vif.platform.grants.copy(batch);
    const { i32 } = ring.memory;
    const { xdpHeadroom, gsoPrefix } = this.vif;
    let at = ring.rspProdPvt;
    let packets = 0;
    let bytes = 0;
    for (let i = 0; i < planned; i++) {
      const packet = plans[i]!;
      const copy = firstCopy[i];
      if (!batch.done(copy, firstCopy[i + 1] - copy)) {
        at = this.refuse(packet, at, slots[i], i === planned - 1);
        continue;
      }
      if (slots[i] === 1) {
        const word = ring.slot(at) >>> 2;
        i32[word] = this.requests[at & (ring.size - 1)] & 0xffff;
        i32[word + 1] = rxChecksumFlags(packet) | (packet.length << 16);
      } else respondRx(ring, packet, at, slots[i], this.requests, xdpHeadroom, gsoPrefix);
      at = (at + slots[i]) | 0;
      packets++;
      bytes += packet.length;
      packet.release();
    }
    ring.rspProdPvt = at;
    const { stats } = this.vif.dev;
    stats.txPackets += packets;
    stats.txBytes += bytes;
    this.planned = 0;
    batch.clear();
  }

  /**
   * A copy failed: the guest gets an ERROR for the packet's first request, at `start`.
   * @param last whether no other packet's requests are behind
   * @returns the index behind what was answered
   */
  private refuse(packet: Packet, start: number, slots: number, last: boolean): number {
    this.stats.rxCopyErrors++;
    this.vif.dev.stats.txErrors++;
    // Either side's grant can be the bad one: a sender that granted nothing gets ERROR, too.
    this.vif.net.materialiser.materialiseOne(packet);
    packet.release();
    // Requests with others planned behind them must be answered where they are; the last can be kept.
    const answered = last ? 1 : slots;
    respondRxError(this.ring, start, answered, this.requests);
    const end = (start + answered) | 0;
    if (last) this.ring.reqCons = end;
    return end;
  }

  /**
   * Packets that stay must not hold other guests' slots: their data comes home, or they are dropped. They are, too,
   * when those that wait for this guest hold as many pages as half of what is free: however many guests take nothing,
   * and however much is sent to them, there are pages left for the others.
   */
  private keepWaiting(now: number): void {
    const { waiting, vif } = this;
    const { pages, materialiser } = vif.net;
    const others = vif.waitingPages - waiting.pages;
    const keep = (packet: Packet): Packet | null => {
      if (others + waiting.pages <= pages.available >>> 1) return materialiser.own(packet);
      packet.release();
      return null;
    };
    const dropped = waiting.replace(keep, now);
    this.stats.rxQueueDrops += dropped;
    this.vif.dev.stats.txDropped += dropped;
  }

  private fatal(reason: string): void {
    if (!this.stopped) this.onFatal(reason);
  }
}
