import {
  NETIF_RSP_NULL,
  NETIF_RX_SLOT_SIZE,
  NETIF_TX_SLOT_SIZE,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  XEN_NETIF_MAX_TX_SIZE,
} from '../abi/netif.js';
import { FrontRing, initSharedRing } from '../abi/ring.js';
import type { Irqs } from '../events/index.js';
import type { NetDevice } from '../net/device.js';
import { copyMetadata } from '../net/materialise.js';
import type { Napi } from '../net/napi.js';
import type { Net } from '../net/net.js';
import { CHECKSUM_UNNECESSARY, FRAGMENT_LOCAL, GSO_NONE, MAX_FRAGMENTS, type Packet } from '../net/packet.js';
import { PagePool } from '../net/page-pool.js';
import { NETDEV_TX_BUSY, NETDEV_TX_OK, type TxQueue } from '../net/tx-queue.js';
import { setupChecksum, setupGso } from '../net/xmit.js';
import type { GrantReclaimer } from '../platform/grant-reclaimer.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { Platform } from '../platform/platform.js';
import type { Timer } from '../platform/scheduler.js';
import { GrantedPool } from './granted-pool.js';
import { RingCode, SlotBooks } from './ring-code.js';
import { RX_SLOTS_MAX, RxPacket, readRxPacket } from './rx-slots.js';
import { txChecksumFlags, txSlotsNeeded, writeMulticast, writeTxPacket, writeTxRequest } from './tx-slots.js';

/** Slots of a packet at most: what every backend must take, and a GSO extra info. */
const TX_SLOTS_MAX = 19;
/** Requests that are posted to begin with, and at least. */
const RX_TARGET_MIN = 32;
/** Headers that the linear part of a received packet has, if the packet has that many bytes. */
const RX_PULL_BYTES = 128;
const RX_REFILL_RETRY_MS = 100;
const ETH_HLEN = 14;
/** Flags that say something of the checksum. */
const CHECKSUM_FLAGS = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;

/** What the device tells a queue and hears from it. */
export interface QueueDevice {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly dev: NetDevice;
  readonly reclaimer: GrantReclaimer;
  readonly backendId: number;
  /** Whether the backend may see more of a granted page than the packet in it. */
  readonly trusted: boolean;
  /** Called once, when the backend broke the protocol: the device is unusable until it reconnects. */
  broken(reason: string): void;
}

/** What goes into xenstore for the backend. */
export interface QueuePublication {
  readonly txRef: number;
  readonly rxRef: number;
  readonly txPort: number;
  /** The same as `txPort` without split event channels. */
  readonly rxPort: number;
}

/** Counters under the names that ethtool shows. */
export class QueueStats {
  rxGsoChecksumFixup = 0;
  /** Packets copied because their data was not in pages that the backend may read. */
  txBounced = 0;
}

/**
 * One queue of a frontend: its two rings, their pages, grants and event channels. Lives from the backend's
 * InitWait to the next disconnect.
 */
export class Queue {
  readonly stats = new QueueStats();
  readonly publication: QueuePublication;
  private readonly txPool: PagePool;
  /** The pool whose pages are sent as they are; null when all is copied, since who filled a page may have left more in it. */
  private readonly directPool: PagePool | null;
  private readonly txQueue: TxQueue;
  private readonly tx: FrontRing;
  private readonly rx: FrontRing;
  private readonly txPage: number;
  private readonly rxPage: number;
  private readonly txIrq: number;
  private readonly rxIrq: number;
  private readonly napi: Napi;

  /** The loops over slots in WebAssembly; null where the rings lie elsewhere. */
  private readonly code: RingCode | null;
  private readonly books: SlotBooks;
  private freeIdCount: number;
  /** The packet whose first slot has this id. */
  private readonly txPackets: (Packet | null)[];
  private readonly slotGrefs: Int32Array;
  private readonly slotIds = new Uint16Array(MAX_FRAGMENTS + 1);

  /** Pages of received packets. */
  private readonly rxPool: PagePool;
  /**
   * Where a grant is tied to its page: the pages that are posted. They stay the backend's to write, so what it
   * received is copied out of them. Null where a page's grant ends when it is answered.
   */
  private readonly rxGranted: GrantedPool | null;
  /** Pages to post: those of `rxGranted` or of `rxPool`. */
  private readonly rxPages: PagePool;
  private rxTarget = RX_TARGET_MIN;
  private readonly response = new RxPacket();
  private readonly freeSpare = (index: number): void => this.rxPool.free(index);

  private txPublished = 0;
  /** Bytes of the packets that the current look at the responses completed. */
  private completedBytes = 0;
  private extrasUnanswered = 0;
  private refillTimer: Timer | null = null;
  private carrying = false;
  /** The polls since the last end of interrupt found something to do. */
  private worked = false;
  private stopped = false;
  /** Packets are being handed on or released, which may end in `destroy`. */
  private polling = false;
  private destroyed = false;

  /** @throws HypercallError, GrantError ENOSPC or ENOMEM; nothing stays behind then */
  constructor(
    private readonly device: QueueDevice,
    readonly index: number,
    split: boolean,
    private readonly granted: GrantedPool,
  ) {
    const { platform, dev, irqs, backendId } = device;
    const undo: (() => void)[] = [];
    try {
      const ringPage = (): [page: number, gref: number] => {
        const page = platform.memory.allocPage();
        undo.push(() => platform.memory.freePage(page));
        initSharedRing(platform.memory.memory, page << PAGE_SHIFT);
        const gref = platform.grants.grantAccess(backendId, page, false);
        undo.push(() => platform.grants.endAccess(gref));
        return [page, gref];
      };
      const [txPage, txRef] = ringPage();
      const [rxPage, rxRef] = ringPage();
      this.txPage = txPage;
      this.rxPage = rxPage;
      const { memory } = platform.memory;
      this.tx = new FrontRing(memory, txPage << PAGE_SHIFT, NETIF_TX_SLOT_SIZE);
      this.rx = new FrontRing(memory, rxPage << PAGE_SHIFT, NETIF_RX_SLOT_SIZE);
      const code = RingCode.make(platform, backendId, this.tx, this.rx);
      undo.push(() => code?.destroy());
      this.code = code;
      this.books = code?.books ?? new SlotBooks();
      this.slotGrefs = code?.grefs ?? new Int32Array(MAX_FRAGMENTS + 1);
      for (let i = 0; i < this.rx.size && platform.grants.regrantable; i++) {
        const gref = platform.grants.alloc();
        undo.push(() => platform.grants.free(gref));
        this.books.grefs[i] = gref;
      }
      this.napi = dev.napiAdd(budget => this.poll(budget));
      undo.push(() => dev.napiDel(this.napi));
      const bind = (suffix: string) => {
        const name = `${dev.name}${suffix}`;
        const bound = irqs.bindListeningPortToIrqhandlerLateeoi(backendId, () => this.napi.schedule(), name);
        undo.push(() => irqs.unbindFromIrqhandler(bound.irq));
        return bound;
      };
      const txChannel = bind(split ? `-q${index}-tx` : `-q${index}`);
      const rxChannel = split ? bind(`-q${index}-rx`) : txChannel;
      this.txIrq = txChannel.irq;
      this.rxIrq = rxChannel.irq;
      this.publication = { txRef, rxRef, txPort: txChannel.port, rxPort: rxChannel.port };
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
    const slots = this.tx.size;
    this.txPool = granted.pages;
    this.directPool = device.trusted ? this.txPool : null;
    this.txQueue = dev.txQueues[index];
    this.freeIdCount = slots;
    this.txPackets = new Array<Packet | null>(slots).fill(null);
    this.rxPool = new PagePool(platform.memory, 2 * this.rx.size);
    this.rxGranted = platform.grants.regrantable
      ? null
      : new GrantedPool(platform, device.reclaimer, backendId, this.rx.size, false);
    this.rxPages = this.rxGranted?.pages ?? this.rxPool;
  }

  /** Posts the first rx requests and lets packets through: the backend is to be told of this state next. */
  start(): void {
    this.carrying = true;
    // A connection before this one may have ended with its ring full.
    this.txQueue.wake();
    this.napi.enable();
    this.refill();
    this.napi.schedule();
  }

  /**
   * Stops for good and gives everything back: pages that the backend still has mapped as soon as it does
   * not, pages in packets on their way up as soon as those are released.
   */
  destroy(): void {
    this.stopped = true;
    this.carrying = false;
    const { dev, irqs, reclaimer, platform } = this.device;
    this.txQueue.resetLimit();
    this.napi.disable();
    dev.napiDel(this.napi);
    irqs.unbindFromIrqhandler(this.txIrq);
    if (this.rxIrq !== this.txIrq) irqs.unbindFromIrqhandler(this.rxIrq);
    if (this.refillTimer !== null) platform.scheduler.cancel(this.refillTimer);
    for (let id = 0; id < this.txPackets.length; id++) {
      const packet = this.txPackets[id];
      this.txPackets[id] = null;
      packet?.release();
    }
    const { posted, grefs } = this.books;
    for (let slot = 0; slot < posted.length; slot++) {
      if (this.rxGranted !== null) {
        if (posted[slot] >= 0) this.rxPages.free(posted[slot]);
      } else if (posted[slot] < 0) platform.grants.free(grefs[slot]);
      else reclaimer.end(grefs[slot], this.rxPool.pages[posted[slot]]);
    }
    if (!this.polling) this.code?.destroy();
    this.destroyed = true;
    this.rxGranted?.retire();
    this.rxPool.retire(page => platform.memory.freePage(page));
    reclaimer.end(this.publication.txRef, this.txPage);
    reclaimer.end(this.publication.rxRef, this.rxPage);
  }

  /** The backend broke the protocol, on this queue or another: nothing more is read or written. */
  stop(): void {
    this.stopped = true;
    this.carrying = false;
  }

  private broken(reason: string): void {
    if (this.stopped) return;
    this.stop();
    this.device.broken(reason);
  }

  private poll(budget: number): number {
    if (this.stopped) {
      this.napi.complete(0);
      return 0;
    }
    this.polling = true;
    try {
      return this.pollRings(budget);
    } finally {
      this.polling = false;
      if (this.destroyed) this.code?.destroy();
    }
  }

  private pollRings(budget: number): number {
    const answered = this.reclaim();
    const work = this.stopped ? 0 : this.receive(budget);
    if (answered + work > 0) this.worked = true;
    this.refill();
    if (this.stopped || (work >= budget && this.rx.hasResponses)) return work;
    // A whole budget that emptied the ring is no reason to poll again.
    const done = Math.min(work, budget - 1);
    if (!this.napi.complete(done)) return done;
    if (this.rx.finalCheckForResponses() || this.askForTxEvent()) this.napi.schedule();
    else this.endOfInterrupt();
    return done;
  }

  private endOfInterrupt(): void {
    const { irqs } = this.device;
    const spurious = !this.worked;
    this.worked = false;
    irqs.lateEoi(this.txIrq, spurious);
    if (this.rxIrq !== this.txIrq) irqs.lateEoi(this.rxIrq, spurious);
  }

  // ---- tx ----

  /** ndo_start_xmit: writes the requests; `flush` publishes them. */
  startXmit(packet: Packet): number {
    const { tx, txQueue } = this;
    const room = tx.free >= TX_SLOTS_MAX && this.freeIdCount >= TX_SLOTS_MAX;
    if (!this.carrying || !room || !this.sendOne(packet)) return this.startXmitAny(packet);
    const { stats } = this.device.dev;
    stats.txPackets++;
    stats.txBytes += packet.length;
    txQueue.sent(packet.length);
    if (tx.free < TX_SLOTS_MAX) txQueue.stop();
    return NETDEV_TX_OK;
  }

  /**
   * Writes the request of a packet that is just one page; what `startXmitAny` would do, without anything that such a
   * packet does not need.
   * @returns false, having done nothing, for any other packet
   */
  private sendOne(packet: Packet): boolean {
    const { linearPoolIndex: index, linear } = packet;
    if (packet.pool !== this.directPool || packet.fragments > 0 || packet.gsoType !== GSO_NONE) return false;
    const gref = index >= 0 && linear > 0 ? this.granted.knownGref(index) : 0;
    if (gref === 0) return false;
    const { tx, books } = this;
    const id = books.freeIds[--this.freeIdCount];
    this.txPackets[id] = packet;
    books.outstanding[id] = 1;
    books.firstId[id] = id;
    books.unanswered[id] = 1;
    const offset = packet.data & (PAGE_SIZE - 1);
    writeTxRequest(tx, tx.reqProdPvt, gref, offset, txChecksumFlags(packet), id, linear);
    tx.reqProdPvt = (tx.reqProdPvt + 1) | 0;
    return true;
  }

  private startXmitAny(packet: Packet): number {
    const { dev } = this.device;
    if (!this.carrying) return this.drop(packet);
    const { txQueue: queue } = this;
    // The first request tells the size in 16 bits.
    if (packet.length > XEN_NETIF_MAX_TX_SIZE) return this.drop(packet);
    const inPool = this.isGranted(packet);
    const pages = inPool ? 0 : (packet.length + PAGE_SIZE - 1) >>> PAGE_SHIFT;
    if (this.tx.free < TX_SLOTS_MAX || this.freeIdCount < TX_SLOTS_MAX || this.txPool.available < pages) {
      queue.stop();
      return NETDEV_TX_BUSY;
    }
    const sendable = inPool ? packet : this.bounce(packet);
    if (sendable === null) return this.drop(packet);
    if (!this.grantPages(sendable)) return this.drop(sendable);
    this.write(sendable);
    dev.stats.txPackets++;
    dev.stats.txBytes += sendable.length;
    queue.sent(sendable.length);
    if (this.tx.free < TX_SLOTS_MAX) queue.stop();
    return NETDEV_TX_OK;
  }

  private drop(packet: Packet): number {
    this.device.dev.stats.txDropped++;
    packet.release();
    return NETDEV_TX_OK;
  }

  /**
   * Asks the backend to pass on what is sent to a group, or no longer to.
   * @returns false when there is no room on the ring, or no memory
   */
  requestMulticast(address: Uint8Array, add: boolean): boolean {
    if (!this.carrying || this.tx.free < TX_SLOTS_MAX || this.freeIdCount === 0) return false;
    // What stands for the request until it is answered: a packet of nothing.
    const dummy = this.device.net.packets.tryGet();
    if (dummy === null) return false;
    const id = this.books.freeIds[this.freeIdCount - 1];
    this.takeId(0, id);
    this.txPackets[id] = dummy;
    this.books.unanswered[id] = 1;
    this.extrasUnanswered++;
    writeMulticast(this.tx, address, add, id);
    this.flush();
    return true;
  }

  /** Publishes what `startXmit` wrote. */
  flush(): void {
    if (this.tx.reqProdPvt === this.txPublished || this.stopped) return;
    this.txPublished = this.tx.reqProdPvt;
    if (this.tx.pushRequests()) this.device.irqs.notifyRemoteViaIrq(this.txIrq);
  }

  /** True when every byte is in pages of `txPool`, and not in more of them than a packet may have slots. */
  private isGranted(packet: Packet): boolean {
    if (packet.pool !== this.directPool || txSlotsNeeded(packet) > TX_SLOTS_MAX) return false;
    if (packet.linear > 0 && packet.linearPoolIndex < 0) return false;
    for (let i = 0; i < packet.fragments; i++) {
      if (packet.source[i] !== FRAGMENT_LOCAL || packet.poolIndex[i] < 0) return false;
    }
    return true;
  }

  /**
   * Copies a packet into pages of `txPool`, which must have enough, and lets go of it.
   * @returns null, with the packet still the caller's, when its data cannot be fetched or memory is used up
   */
  private bounce(packet: Packet): Packet | null {
    const { net, platform } = this.device;
    if (!net.materialiser.materialiseOne(packet)) return null;
    const copy = net.packets.tryGet();
    if (copy === null) return null;
    copy.pool = this.txPool;
    const { memory } = platform.memory;
    let to = 0;
    let room = 0;
    for (let i = -1; i < packet.fragments; i++) {
      let from = i < 0 ? packet.data : (packet.ref[i] << PAGE_SHIFT) + packet.offset[i];
      let left = i < 0 ? packet.linear : packet.size[i];
      while (left > 0) {
        if (room === 0) {
          to = this.appendPage(copy, packet.length - copy.length);
          if (to < 0) {
            copy.release();
            return null;
          }
          room = PAGE_SIZE;
        }
        const take = Math.min(left, room);
        memory.copy(to, from, take);
        to += take;
        from += take;
        left -= take;
        room -= take;
      }
    }
    if (!this.device.trusted) memory.zero(to, room);
    copyMetadata(packet, copy);
    this.stats.txBounced++;
    packet.release();
    return copy;
  }

  /** Adds a page for up to `bytes` more bytes: the first is the linear part. @returns its address, or -1 */
  private appendPage(copy: Packet, bytes: number): number {
    const index = this.txPool.alloc();
    if (index < 0) return -1;
    const page = this.txPool.pages[index];
    const size = Math.min(bytes, PAGE_SIZE);
    if (copy.length === 0) {
      copy.linearPoolIndex = index;
      copy.data = page << PAGE_SHIFT;
      copy.linear = size;
      copy.length = size;
    } else {
      copy.addFragment(FRAGMENT_LOCAL, page, 0, size, index);
    }
    return page << PAGE_SHIFT;
  }

  /** Looks up the grants of the packet's pages. @returns false when the grant table is full */
  private grantPages(packet: Packet): boolean {
    const { granted } = this;
    let slots = 0;
    try {
      if (packet.linear > 0) this.slotGrefs[slots++] = granted.grefOf(packet.linearPoolIndex);
      for (let i = 0; i < packet.fragments; i++) {
        this.slotGrefs[slots++] = granted.grefOf(packet.poolIndex[i]);
      }
    } catch {
      return false;
    }
    return true;
  }

  private write(packet: Packet): void {
    const { code } = this;
    if (code !== null && packet.linear > 0) {
      const first = code.send(
        this.tx,
        packet,
        txChecksumFlags(packet),
        this.extrasUnanswered,
        this.freeIdCount,
      );
      this.extrasUnanswered = code.extras;
      this.freeIdCount = code.freeIds;
      this.txPackets[first] = packet;
      return;
    }
    const first = this.books.freeIds[this.freeIdCount - 1];
    const slots = (packet.linear > 0 ? 1 : 0) + packet.fragments;
    for (let i = 0; i < slots; i++) this.takeId(i, first);
    this.txPackets[first] = packet;
    this.books.unanswered[first] = slots;
    if (packet.gsoType !== GSO_NONE) this.extrasUnanswered++;
    writeTxPacket(this.tx, packet, this.slotGrefs, this.slotIds, packet.data & (PAGE_SIZE - 1));
  }

  private takeId(slot: number, first: number): void {
    const { freeIds, outstanding, firstId } = this.books;
    const id = freeIds[--this.freeIdCount];
    this.slotIds[slot] = id;
    outstanding[id] = 1;
    firstId[id] = first;
  }

  /** Takes the tx responses. @returns how many there were */
  private reclaim(): number {
    const ring = this.tx;
    const rspProd = ring.rspProd();
    if (ring.responseOverflow(rspProd)) {
      this.broken(`tx rsp_prod ${rspProd >>> 0} is beyond req_prod ${ring.reqProdPvt >>> 0}`);
      return 0;
    }
    const start = ring.rspCons;
    if (start === rspProd) return 0;
    if (this.code !== null) this.reclaimBy(this.code, rspProd);
    else this.reclaimEach(rspProd);
    if (this.carrying) this.completed();
    return (rspProd - start) | 0;
  }

  private reclaimBy(code: RingCode, rspProd: number): void {
    const ring = this.tx;
    const count = code.reclaim(ring, rspProd, this.extrasUnanswered, this.freeIdCount);
    this.extrasUnanswered = code.extras;
    this.freeIdCount = code.freeIds;
    for (let i = 0; i < count && !this.stopped; i++) this.answeredAll(code.done[i]);
    if (code.broken >= 0) this.notOutstanding((ring.rspCons - 1) | 0, code.broken);
  }

  private reclaimEach(rspProd: number): void {
    const ring = this.tx;
    const { i32 } = ring.memory;
    for (let cons = ring.rspCons; cons !== rspProd && !this.stopped; cons = (cons + 1) | 0) {
      const word = i32[ring.slot(cons) >>> 2];
      ring.rspCons = (cons + 1) | 0;
      if (word >> 16 === NETIF_RSP_NULL && this.extrasUnanswered > 0) this.extrasUnanswered--;
      else if (!this.answered(word & 0xffff)) {
        this.notOutstanding(cons, word & 0xffff);
        break;
      }
    }
  }

  private notOutstanding(index: number, id: number): void {
    this.broken(`tx response ${index >>> 0} has id ${id}, which is not outstanding`);
  }

  private answered(id: number): boolean {
    const { outstanding, firstId, freeIds, unanswered } = this.books;
    // Beyond the array there is nothing.
    if (outstanding[id] !== 1) return false;
    outstanding[id] = 0;
    const first = firstId[id];
    // The first id counts for the whole packet: slots may be answered in any order, so it comes back last.
    if (id !== first) freeIds[this.freeIdCount++] = id;
    if (--unanswered[first] === 0) {
      freeIds[this.freeIdCount++] = first;
      this.answeredAll(first);
    }
    return true;
  }

  private answeredAll(first: number): void {
    const packet = this.txPackets[first]!;
    this.txPackets[first] = null;
    this.completedBytes += packet.length;
    packet.release();
  }

  /** Tells the stack what it may send again, once for all responses. */
  private completed(): void {
    const { txQueue: queue } = this;
    queue.completed(this.completedBytes);
    this.completedBytes = 0;
    if (queue.stopped && this.tx.free >= TX_SLOTS_MAX && this.freeIdCount >= TX_SLOTS_MAX) queue.wake();
  }

  /** Asks for an event when half of what is outstanding is answered. @returns whether responses are there */
  private askForTxEvent(): boolean {
    const ring = this.tx;
    const half = (((ring.reqProdPvt - ring.rspCons) >>> 1) + 1) | 0;
    return ring.finalCheckForResponses(half);
  }

  // ---- rx ----

  private receive(budget: number): number {
    const ring = this.rx;
    const rspProd = ring.rspProd();
    if (ring.responseOverflow(rspProd)) {
      this.broken(`rx rsp_prod ${rspProd >>> 0} is beyond req_prod ${ring.reqProdPvt >>> 0}`);
      return 0;
    }
    let work = 0;
    while (work < budget && ring.rspCons !== rspProd && !this.stopped) {
      if (this.code !== null) work += this.receiveShort(this.code, rspProd, budget - work);
      if (work === budget || ring.rspCons === rspProd || this.stopped) break;
      work++;
      if (this.code === null || !this.takeLong(this.code, rspProd)) this.takeAny(rspProd);
    }
    if (work > 0) this.aim((ring.reqProdPvt - rspProd) | 0);
    return work;
  }

  /**
   * Posts more when few requests were left, or less than a packet may take, and slowly fewer when most were: pages that
   * are filled one after the other, each when all others have been, are out of the processor's cache.
   * @param left requests that the backend has not answered
   */
  private aim(left: number): void {
    const { rxTarget } = this;
    let next = rxTarget;
    if (left === 0) next = 2 * rxTarget;
    else if (left < Math.max(rxTarget >>> 2, RX_SLOTS_MAX)) next = rxTarget + (rxTarget >>> 2);
    else if (left > rxTarget - (rxTarget >>> 2)) next = rxTarget - 1;
    this.rxTarget = Math.min(Math.max(next, RX_TARGET_MIN), this.rx.size);
  }

  private give(packet: Packet): void {
    const { stats } = this.device.dev;
    stats.rxPackets++;
    stats.rxBytes += packet.length;
    this.napi.receive(packet);
  }

  /** Takes packets of one slot, up to the first of another kind. @returns how many */
  private receiveShort(code: RingCode, rspProd: number, limit: number): number {
    const count = code.receive(this.rx, rspProd, limit);
    const { shorts } = code;
    const { rxPool, device, napi } = this;
    const { packets } = device.net;
    const { pages } = rxPool;
    const { stats } = device.dev;
    let bytes = 0;
    let next = 0;
    try {
      while (next < count && !this.stopped) {
        const at = 3 * next++;
        const index = shorts[at];
        const word = shorts[at + 2];
        const packet = packets.tryGet();
        if (packet === null) {
          stats.rxErrors++;
          rxPool.free(index);
          continue;
        }
        packet.pool = rxPool;
        packet.linearPoolIndex = index;
        packet.data = (pages[index] << PAGE_SHIFT) + shorts[at + 1];
        packet.linear = word >> 16;
        packet.length = word >> 16;
        if ((word & CHECKSUM_FLAGS) !== 0 && !this.takeChecksum(packet, word)) {
          this.refuse(packet);
          continue;
        }
        stats.rxPackets++;
        bytes += word >> 16;
        napi.receive(packet);
      }
    } finally {
      stats.rxBytes += bytes;
      // Whoever received one has stopped us, or thrown: nobody else knows of these pages.
      for (; next < count; next++) rxPool.free(shorts[3 * next]);
    }
    return count;
  }

  /** Takes a packet of several slots, if it is usual. @returns whether it did */
  private takeLong(code: RingCode, rspProd: number): boolean {
    const packet = this.device.net.packets.tryGet();
    if (packet === null) return false;
    if (!code.receiveLong(this.rx, rspProd, packet, this.rxPool, this.freeSpare)) {
      packet.release();
      return false;
    }
    if (this.takeGso(packet, code.flags, code.gsoType, code.gsoSize)) this.give(packet);
    else this.refuse(packet);
    return true;
  }

  private refuse(packet: Packet): void {
    this.device.dev.stats.rxErrors++;
    packet.release();
  }

  /** Takes any packet, unless the backend turns out to be broken. */
  private takeAny(rspProd: number): void {
    const { rx: ring, response } = this;
    readRxPacket(ring, ring.rspCons, (rspProd - ring.rspCons) | 0, response);
    if (!this.revoke(response.consumed)) return;
    const packet = response.reason === '' ? this.build() : null;
    this.recycle(ring.rspCons, response.consumed);
    ring.rspCons = (ring.rspCons + response.consumed) | 0;
    if (packet === null) this.device.dev.stats.rxErrors++;
    else this.give(packet);
  }

  /** Ends the grants of the next slots: only then are their pages safe from the backend. */
  private revoke(count: number): boolean {
    if (this.rxGranted !== null) return true;
    const ring = this.rx;
    const { grants } = this.device.platform;
    for (let i = 0; i < count; i++) {
      const slot = (ring.rspCons + i) & (ring.size - 1);
      const gref = this.books.grefs[slot];
      if (grants.end(gref)) continue;
      this.broken(`the backend answered rx request ${slot} and still uses its grant ${gref}`);
      return false;
    }
    return true;
  }

  /** Makes a packet of the pages of `response`; those that it takes are posted no longer. */
  private build(): Packet | null {
    const { response, rxPool } = this;
    if (response.size < ETH_HLEN) return null;
    const packet = this.device.net.packets.tryGet();
    if (packet === null) return null;
    packet.pool = rxPool;
    const inPlace = response.bytes[0] >= Math.min(response.size, RX_PULL_BYTES);
    for (let i = 0; i < response.slots; i++) {
      const bytes = response.bytes[i];
      if (bytes === 0) continue;
      const slot = response.index[i] & (this.rx.size - 1);
      const index = this.takePage(slot, response.offset[i], bytes);
      if (index < 0) {
        packet.release();
        return null;
      }
      const page = rxPool.pages[index];
      if (i === 0 && inPlace) {
        packet.linearPoolIndex = index;
        packet.data = (page << PAGE_SHIFT) + response.offset[0];
        packet.linear = bytes;
        packet.length = bytes;
      } else packet.addFragment(FRAGMENT_LOCAL, page, response.offset[i], bytes, index);
    }
    if (this.pull(packet) && this.takeOffloads(packet)) return packet;
    packet.release();
    return null;
  }

  /** The index in `rxPool` of a page with what the backend put into the one posted at `slot`; -1 without one left. */
  private takePage(slot: number, offset: number, bytes: number): number {
    const { posted } = this.books;
    const granted = posted[slot];
    if (this.rxGranted === null) {
      posted[slot] = -1;
      return granted;
    }
    const index = this.rxPool.alloc();
    if (index < 0) return -1;
    const from = (this.rxPages.pages[granted] << PAGE_SHIFT) + offset;
    const to = (this.rxPool.pages[index] << PAGE_SHIFT) + offset;
    this.device.platform.memory.memory.copy(to, from, bytes);
    return index;
  }

  private pull(packet: Packet): boolean {
    return this.device.net.materialiser.pull(packet, Math.min(packet.length, RX_PULL_BYTES));
  }

  /** @returns false when the packet claims an offload that its headers do not allow */
  private takeOffloads(packet: Packet): boolean {
    const { flags, infos } = this.response;
    packet.hashType = infos.hashType;
    packet.hash = infos.hash;
    return this.takeGso(packet, flags, infos.gsoType, infos.gsoSize);
  }

  private takeGso(packet: Packet, flags: number, gsoType: number, gsoSize: number): boolean {
    if (gsoType === GSO_NONE) return this.takeChecksum(packet, flags);
    const blank = (flags & NETRXF_CSUM_BLANK) !== 0;
    if (!blank) this.stats.rxGsoChecksumFixup++;
    return setupGso(packet, gsoType, gsoSize, !blank, this.device.net.materialiser);
  }

  /** @returns false when the packet has no checksum where one is said to be blank */
  private takeChecksum(packet: Packet, flags: number): boolean {
    if ((flags & NETRXF_CSUM_BLANK) !== 0) return setupChecksum(packet, false, this.device.net.materialiser);
    if ((flags & NETRXF_DATA_VALIDATED) !== 0) packet.checksum = CHECKSUM_UNNECESSARY;
    return true;
  }

  /** Gives the pages back that no packet took. */
  private recycle(start: number, count: number): void {
    const { posted } = this.books;
    for (let i = 0; i < count; i++) {
      const slot = (start + i) & (this.rx.size - 1);
      if (posted[slot] >= 0) this.rxPages.free(posted[slot]);
      posted[slot] = -1;
    }
  }

  private refill(): void {
    if (this.stopped) return;
    const ring = this.rx;
    const until = (ring.rspCons + this.rxTarget) | 0;
    const before = ring.reqProdPvt;
    if (this.code !== null) this.code.post(ring, this.rxPool, until, !this.device.trusted);
    else this.postEach(until);
    if (ring.reqProdPvt !== before && ring.pushRequests()) this.device.irqs.notifyRemoteViaIrq(this.rxIrq);
    // Without a page now and without requests outstanding, no event would ever come to try again.
    if (((ring.reqProdPvt - ring.rspCons) | 0) < RX_SLOTS_MAX) this.refillLater();
  }

  private postEach(until: number): void {
    const ring = this.rx;
    const { i32 } = ring.memory;
    const { posted, grefs } = this.books;
    while (((until - ring.reqProdPvt) | 0) > 0) {
      const index = this.rxPages.alloc();
      if (index < 0) break;
      const slot = ring.reqProdPvt & (ring.size - 1);
      if (!this.grantRx(slot, index)) break;
      posted[slot] = index;
      const at = ring.slot(ring.reqProdPvt) >>> 2;
      i32[at] = slot;
      i32[at + 1] = grefs[slot];
      ring.reqProdPvt = (ring.reqProdPvt + 1) | 0;
    }
  }

  /** Lets the backend write to a page at `slot`. @returns false, with the page given back, when there is no grant left */
  private grantRx(slot: number, index: number): boolean {
    const { platform, backendId } = this.device;
    const page = this.rxPages.pages[index];
    // Whoever had the page before may have written to it.
    if (!this.device.trusted) platform.memory.memory.zero(page << PAGE_SHIFT, PAGE_SIZE);
    if (this.rxGranted === null) {
      platform.grants.grant(this.books.grefs[slot], backendId, page, false);
      return true;
    }
    try {
      this.books.grefs[slot] = this.rxGranted.grefOf(index);
      return true;
    } catch {
      this.rxPages.free(index);
      return false;
    }
  }

  private refillLater(): void {
    this.refillTimer ??= this.device.platform.scheduler.after(RX_REFILL_RETRY_MS, () => {
      this.refillTimer = null;
      this.refill();
    });
  }
}
