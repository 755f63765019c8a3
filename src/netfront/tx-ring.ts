import { NETIF_RSP_NULL, XEN_NETIF_MAX_TX_SIZE, XEN_NETIF_NR_SLOTS_MIN } from '../abi/netif.js';
import type { FrontRing } from '../abi/ring.js';
import { copyMetadata } from '../net/materialise.js';
import { FRAGMENT_LOCAL, GSO_NONE, MAX_FRAGMENTS, type Packet } from '../net/packet.js';
import type { PagePool } from '../net/page-pool.js';
import { NETDEV_TX_BUSY, NETDEV_TX_OK, type TxQueue } from '../net/tx-queue.js';
import type { XdpFrames } from '../net/xdp.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { GrantedPool } from './granted-pool.js';
import type { QueueDevice, QueueStats } from './queue.js';
import {
  DONE_FRAME,
  SLOT_FRAME,
  SLOT_LEFT,
  SLOT_OUTSTANDING,
  SLOT_SINGLE,
  SLOT_UNANSWERED,
} from './ring-block.js';
import type { RingCode, SlotBooks } from './ring-code.js';
import { txChecksumFlags, txDataSlots, writeMulticast, writeTxPacket, writeTxRequest } from './tx-slots.js';

/** Slots of a packet at most: those with data that every backend must take, and a GSO extra info. */
const TX_SLOTS_MAX = XEN_NETIF_NR_SLOTS_MIN + 1;
/** Of what `SlotBooks.slots` says of a slot. */
const FIRST_ID_MASK = 0xffff;

/** The frontend's end of a tx ring: what the guest sends, and the responses that it waits for. */
export class TxRing {
  /** The pool whose pages are sent as they are; null when all is copied, since who filled a page may have left more in it. */
  private readonly directPool: PagePool | null;
  private readonly pool: PagePool;
  private freeIdCount: number;
  /** The packet whose first slot has this id. */
  private readonly packets: (Packet | null)[];
  private readonly slotGrefs: Int32Array;
  private readonly slotIds = new Uint16Array(MAX_FRAGMENTS + 1);
  private published = 0;
  /** Bytes of the packets that the current look at the responses completed. */
  private completedBytes = 0;
  private extrasUnanswered = 0;
  private carrying = false;

  /**
   * @param code the loops over slots in WebAssembly; null where the ring lies elsewhere
   * @param notify hears of requests that were published, and whether the backend wanted to be told
   * @param onBroken the backend broke the protocol
   */
  constructor(
    private readonly device: QueueDevice,
    readonly ring: FrontRing,
    private readonly queue: TxQueue,
    private readonly granted: GrantedPool,
    private readonly books: SlotBooks,
    private readonly code: RingCode | null,
    private readonly stats: QueueStats,
    private readonly notify: (wanted: boolean) => void,
    private readonly onBroken: (reason: string) => void,
  ) {
    this.pool = granted.pages;
    this.directPool = device.trusted ? granted.pages : null;
    this.freeIdCount = ring.size;
    this.packets = new Array<Packet | null>(ring.size).fill(null);
    this.slotGrefs = code?.grefs ?? new Int32Array(MAX_FRAGMENTS + 1);
  }

  /** Lets packets through. */
  start(): void {
    this.carrying = true;
    // A connection before this one may have ended with its ring full.
    this.queue.wake();
  }

  /** From now on nothing is written or read. */
  stop(): void {
    this.carrying = false;
  }

  /** After `stop`: lets go of what the backend has not answered. */
  destroy(): void {
    this.queue.resetLimit();
    for (let id = 0; id < this.packets.length; id++) {
      const packet = this.packets[id];
      this.packets[id] = null;
      packet?.release();
      if ((this.books.slots[id] & SLOT_FRAME) !== 0) this.pool.free(this.books.frames[id]);
    }
  }

  /** ndo_start_xmit: writes the requests; `flush` publishes them. */
  startXmit(packet: Packet): number {
    const { ring, queue } = this;
    const room = ring.free >= TX_SLOTS_MAX && this.freeIdCount >= TX_SLOTS_MAX;
    if (!this.carrying || !room || !this.sendOne(packet)) return this.startXmitAny(packet);
    const { stats } = this.device.dev;
    stats.txPackets++;
    stats.txBytes += packet.length;
    queue.sent(packet.length);
    if (ring.free < TX_SLOTS_MAX) queue.stop();
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
    const { ring, books } = this;
    const id = books.freeIds[--this.freeIdCount];
    this.packets[id] = packet;
    books.slots[id] = SLOT_SINGLE | id;
    const offset = packet.data & (PAGE_SIZE - 1);
    writeTxRequest(ring, ring.reqProdPvt, gref, offset, txChecksumFlags(packet), id, linear);
    ring.reqProdPvt = (ring.reqProdPvt + 1) | 0;
    return true;
  }

  private startXmitAny(packet: Packet): number {
    const { dev } = this.device;
    if (!this.carrying) return this.drop(packet);
    const { queue } = this;
    // The first request tells the size in 16 bits.
    if (packet.length > XEN_NETIF_MAX_TX_SIZE) return this.drop(packet);
    const inPool = this.isGranted(packet);
    const pages = inPool ? 0 : (packet.length + PAGE_SIZE - 1) >>> PAGE_SHIFT;
    if (this.ring.free < TX_SLOTS_MAX || this.freeIdCount < TX_SLOTS_MAX || this.pool.available < pages) {
      // Without responses to come, nobody would start it again: others keep all pages.
      if (this.ring.reqProdPvt === this.ring.rspCons) return this.drop(packet);
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
    if (this.ring.free < TX_SLOTS_MAX) queue.stop();
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
    if (!this.carrying || this.ring.free < TX_SLOTS_MAX || this.freeIdCount === 0) return false;
    // What stands for the request until it is answered: a packet of nothing.
    const dummy = this.device.net.packets.tryGet();
    if (dummy === null) return false;
    const id = this.books.freeIds[this.freeIdCount - 1];
    this.takeId(0, id);
    this.packets[id] = dummy;
    this.books.slots[id] += SLOT_UNANSWERED;
    this.extrasUnanswered++;
    writeMulticast(this.ring, address, add, id);
    this.flush();
    return true;
  }

  /**
   * Writes the requests of frames, as many from the first on as there is room for, and publishes them. When the ring is full,
   * the queue is stopped until responses have made room.
   * @returns how many
   */
  xdpXmit(frames: XdpFrames): number {
    const { ring } = this;
    if (!this.carrying || frames.pool !== this.directPool) return 0;
    const room = Math.min(ring.free, this.freeIdCount);
    const sent = this.sendFrames(frames, Math.min(frames.count, room));
    // Without responses to come, nobody would start it again: a grant table that is full is no reason.
    if (room < frames.count) this.queue.stop();
    this.stats.xdpXmit += sent;
    this.flush();
    return sent;
  }

  /** @returns how many, less than `count` when the grant table is full */
  private sendFrames({ page, offset, bytes }: XdpFrames, count: number): number {
    const { ring, granted } = this;
    const { freeIds, slots, frames } = this.books;
    let ids = this.freeIdCount;
    let prod = ring.reqProdPvt;
    let sent = 0;
    let sum = 0;
    for (; sent < count; sent++) {
      const index = page[sent];
      const gref = granted.tryGrefOf(index);
      if (gref === 0) break;
      const id = freeIds[--ids];
      frames[id] = index;
      slots[id] = SLOT_SINGLE | SLOT_FRAME | id;
      writeTxRequest(ring, prod, gref, offset[sent], 0, id, bytes[sent]);
      prod = (prod + 1) | 0;
      sum += bytes[sent];
    }
    this.freeIdCount = ids;
    ring.reqProdPvt = prod;
    const { stats } = this.device.dev;
    stats.txPackets += sent;
    stats.txBytes += sum;
    return sent;
  }

  /** Publishes what `startXmit` wrote. */
  flush(): void {
    if (this.ring.reqProdPvt === this.published || !this.carrying) return;
    this.published = this.ring.reqProdPvt;
    this.notify(this.ring.pushRequests());
  }

  /** True when every byte is in pages of the pool, and not in more of them than a packet may have slots. */
  private isGranted(packet: Packet): boolean {
    if (packet.pool !== this.directPool || txDataSlots(packet) > XEN_NETIF_NR_SLOTS_MIN) return false;
    if (packet.linear > 0 && packet.linearPoolIndex < 0) return false;
    for (let i = 0; i < packet.fragments; i++) {
      if (packet.source[i] !== FRAGMENT_LOCAL || packet.poolIndex[i] < 0) return false;
    }
    return true;
  }

  /**
   * Copies a packet into pages of the pool, which must have enough, and lets go of it.
   * @returns null, with the packet still the caller's, when its data cannot be fetched or memory is used up
   */
  private bounce(packet: Packet): Packet | null {
    const { net, platform } = this.device;
    if (!net.materialiser.materialiseOne(packet)) return null;
    const copy = net.packets.tryGet();
    if (copy === null) return null;
    copy.pool = this.pool;
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
    const index = this.pool.alloc();
    if (index < 0) return -1;
    const page = this.pool.pages[index];
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
    const { granted, slotGrefs } = this;
    let slots = 0;
    for (let i = packet.linear > 0 ? -1 : 0; i < packet.fragments; i++) {
      const gref = granted.tryGrefOf(i < 0 ? packet.linearPoolIndex : packet.poolIndex[i]);
      if (gref === 0) return false;
      slotGrefs[slots++] = gref;
    }
    return true;
  }

  private write(packet: Packet): void {
    const { code } = this;
    if (code !== null && packet.linear > 0) {
      const first = code.send(
        this.ring,
        packet,
        txChecksumFlags(packet),
        this.extrasUnanswered,
        this.freeIdCount,
      );
      this.extrasUnanswered = code.extras;
      this.freeIdCount = code.freeIds;
      this.packets[first] = packet;
      return;
    }
    const first = this.books.freeIds[this.freeIdCount - 1];
    const slots = txDataSlots(packet);
    for (let i = 0; i < slots; i++) this.takeId(i, first);
    this.packets[first] = packet;
    this.books.slots[first] += slots * SLOT_UNANSWERED;
    if (packet.gsoType !== GSO_NONE) this.extrasUnanswered++;
    writeTxPacket(this.ring, packet, this.slotGrefs, this.slotIds, packet.data & (PAGE_SIZE - 1));
  }

  private takeId(slot: number, first: number): void {
    const { freeIds, slots } = this.books;
    const id = freeIds[--this.freeIdCount];
    this.slotIds[slot] = id;
    slots[id] = SLOT_OUTSTANDING | first;
  }

  /** Takes the tx responses. @returns how many there were */
  reclaim(): number {
    const { ring } = this;
    const rspProd = ring.rspProd();
    if (ring.responseOverflow(rspProd)) {
      this.onBroken(`tx rsp_prod ${rspProd >>> 0} is beyond req_prod ${ring.reqProdPvt >>> 0}`);
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
    const { ring } = this;
    const count = code.reclaim(ring, rspProd, this.extrasUnanswered, this.freeIdCount);
    this.extrasUnanswered = code.extras;
    this.freeIdCount = code.freeIds;
    for (let i = 0; i < count; i++) {
      const one = code.done[i];
      if ((one & DONE_FRAME) !== 0) this.pool.free(one & ~DONE_FRAME);
      // A packet that is let go of may end the queue, which then lets go of those that are left.
      else if (this.carrying) this.complete(one);
    }
    if (code.broken >= 0) this.notOutstanding((ring.rspCons - 1) | 0, code.broken);
  }

  private reclaimEach(rspProd: number): void {
    const { ring } = this;
    const { i32 } = ring.memory;
    for (let cons = ring.rspCons; cons !== rspProd && this.carrying; cons = (cons + 1) | 0) {
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
    this.onBroken(`tx response ${index >>> 0} has id ${id}, which is not outstanding`);
  }

  private answered(id: number): boolean {
    const { slots, freeIds, frames } = this.books;
    // Beyond the array there is nothing.
    if ((slots[id] & SLOT_OUTSTANDING) === 0) return false;
    const first = slots[id] & FIRST_ID_MASK;
    slots[id] -= SLOT_OUTSTANDING;
    // The first id counts for the whole packet: slots may be answered in any order, so it comes back last.
    if (id !== first) freeIds[this.freeIdCount++] = id;
    slots[first] -= SLOT_UNANSWERED;
    if ((slots[first] & SLOT_LEFT) !== 0) return true;
    const frame = (slots[first] & SLOT_FRAME) !== 0;
    slots[first] = 0;
    freeIds[this.freeIdCount++] = first;
    if (frame) this.pool.free(frames[first]);
    else this.complete(first);
    return true;
  }

  /** All slots of the packet with that first id are answered. */
  private complete(first: number): void {
    const packet = this.packets[first]!;
    this.packets[first] = null;
    this.completedBytes += packet.length;
    packet.release();
  }

  /** Tells the stack what it may send again, once for all responses. */
  private completed(): void {
    const { queue } = this;
    queue.completed(this.completedBytes);
    this.completedBytes = 0;
    if (queue.stopped && this.ring.free >= TX_SLOTS_MAX && this.freeIdCount >= TX_SLOTS_MAX) queue.wake();
  }

  /** Asks for an event when half of what is outstanding is answered. @returns whether responses are there */
  askForEvent(): boolean {
    const { ring } = this;
    const half = (((ring.reqProdPvt - ring.rspCons) >>> 1) + 1) | 0;
    return ring.finalCheckForResponses(half);
  }
}
