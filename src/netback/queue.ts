import {
  type ExtraInfos,
  NETIF_RSP_ERROR,
  NETIF_RSP_OKAY,
  NETIF_RX_SLOT_SIZE,
  NETIF_TX_SLOT_SIZE,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
} from '../abi/netif.js';
import { BackRing, RING_REQ_EVENT, RING_REQ_PROD, RING_RSP_EVENT, RING_RSP_PROD } from '../abi/ring.js';
import type { Irqs } from '../events/index.js';
import type { NetDevice } from '../net/device.js';
import { NetError } from '../net/error.js';
import type { Napi } from '../net/napi.js';
import type { Net } from '../net/net.js';
import {
  CHECKSUM_UNNECESSARY,
  GSO_NONE,
  PACKET_LINEAR_MAX,
  type Packet,
  type PacketOwner,
} from '../net/packet.js';
import { setupChecksum, setupGso } from '../net/xmit.js';
import { CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { GrantMapping, Platform } from '../platform/platform.js';
import { Task, type Timer } from '../platform/scheduler.js';
import { CreditLimiter, type Rate } from './credit.js';
import { PacketQueue } from './packet-queue.js';
import {
  planRx,
  RX_SLOTS_MAX,
  RxPlan,
  respondRx,
  respondRxError,
  rxCopied,
  rxCopiesAtMost,
  rxSlotsNeeded,
} from './rx-slots.js';
import { StaticGrants } from './static-grants.js';
import {
  gatherTx,
  readTxPacket,
  respondToRead,
  respondTx,
  TX_DROP,
  TX_FATAL,
  TX_INCOMPLETE,
  TX_SLOTS_MAX,
  TxPacket,
} from './tx-slots.js';

/** Packets taken from, or put on, a ring with one batch of copies. */
const BATCH_PACKETS = 64;
const TX_BATCH_COPIES = 256;
const RX_BATCH_COPIES = 512;
/**
 * Bytes of a larger packet that are copied to its linear part: all headers that are looked at fit, with
 * VLAN tags and options. Smaller packets are copied whole.
 */
export const TX_HEAD_BYTES = 192;
/** Bytes that may wait for rx requests: half a ring of full pages, as Linux's netback. */
export const RX_QUEUE_BYTES_MAX = 128 * PAGE_SIZE;
/** Packets that may: each takes at least a buffer, however few bytes it has. */
export const RX_QUEUE_PACKETS_MAX = 1024;
/** How long a packet may wait for rx requests (rx_drain_timeout_msecs), … */
const RX_DRAIN_MS = 10_000;
/** … and after how long without enough of them the guest counts as stalled (rx_stall_timeout_msecs). */
const RX_STALL_MS = 60_000;
/** A frontend without feature-rx-notify does not tell of new requests: the ring is looked at, but not for long. */
const RX_DRAIN_POLLED_MS = 30;
const RX_POLL_MS = 5;

/** Where a queue's rings and event channels are. */
export interface QueueConnection {
  readonly domid: number;
  readonly txRing: GrantMapping;
  readonly rxRing: GrantMapping;
  readonly txPort: number;
  readonly rxPort: number;
}

/** What the vif tells a queue and hears from it. */
export interface QueueVif {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly dev: NetDevice;
  /** The frontend tells when it has posted the rx requests that it was asked for. */
  readonly rxNotify: boolean;
  /** Bytes to leave before the data of each rx page. */
  readonly xdpHeadroom: number;
  /** The guest has not posted the rx requests that it needs for too long, or does so again. */
  rxStalled(stalled: boolean): void;
  /** Takes a packet that the guest sent; the reference too. */
  receive(packet: Packet): void;
  /** Handles a request to change the multicast filter. @returns false when it cannot be met */
  changeMulticast(infos: ExtraInfos): boolean;
  /** Called once, when the frontend broke the protocol. */
  fatal(reason: string): void;
}

/** Counters under the names that ethtool shows. */
export class QueueStats {
  rxGsoChecksumFixup = 0;
  txFragOverflow = 0;
  txErrors = 0;
  rxQueueDrops = 0;
  /** Packets that waited for rx requests for too long. */
  rxExpired = 0;
  /** How often the guest stalled. */
  rxStalls = 0;
  rxCopyErrors = 0;
}

/**
 * One queue of a vif: a tx ring that the guest sends on and an rx ring that it receives on (tx and rx are
 * seen from the frontend). Lives from connect to disconnect.
 */
export class Queue implements PacketOwner {
  readonly stats = new QueueStats();
  /** Grants that the frontend asked to keep mapped. */
  readonly staticGrants: StaticGrants;
  private readonly tx: BackRing;
  private readonly rx: BackRing;
  private readonly txIrq: number;
  private readonly rxIrq: number;
  private readonly split: boolean;
  private readonly napi: Napi;

  /** Packets read from the tx ring whose heads are being copied. */
  private readonly read = Array.from({ length: BATCH_PACKETS }, () => new TxPacket());
  private readonly built = new Array<Packet | null>(BATCH_PACKETS).fill(null);
  private builtCount = 0;
  private readonly firstCopy = new Int32Array(BATCH_PACKETS + 1);
  private readonly txBatch = new CopyBatch(TX_BATCH_COPIES);

  /** Packets whose fragments still are the guest's grants; their responses are owed by record number. */
  private readonly recordIds: Uint16Array;
  private readonly recordSlots: Uint8Array;
  private readonly recordExtras: Uint8Array;
  private readonly freeRecords: Int32Array;
  private freeRecordCount: number;

  private readonly waiting = new PacketQueue();
  private readonly plans = Array.from({ length: BATCH_PACKETS }, () => new RxPlan());
  private planned = 0;
  private readonly rxBatch = new CopyBatch(RX_BATCH_COPIES);
  /** The frontend's rx producer index when an event was last accounted for. */
  private rxReqProdSeen = 0;
  private rxEventOwed = false;
  /** Slots that the last head of the queue wanted in vain, 0 when it had enough; and since when. */
  private rxWanted = 0;
  private rxWantedSince = 0;
  private rxIsStalled = false;
  private rxTimer: Timer | null = null;

  private credit: CreditLimiter | null = null;
  /** The next packet has to wait for credit: no event is asked for meanwhile. */
  private throttled = false;
  private polling = false;
  /** The polls since the last end of interrupt found something to do. */
  private worked = false;
  private stopped = false;
  private readonly pushTask: Task;
  private readonly rxTask: Task;

  constructor(
    private readonly vif: QueueVif,
    private readonly connection: QueueConnection,
    name: string,
  ) {
    const { txRing, rxRing, domid } = connection;
    this.tx = new BackRing(txRing.memory, txRing.address, NETIF_TX_SLOT_SIZE);
    this.rx = new BackRing(rxRing.memory, rxRing.address, NETIF_RX_SLOT_SIZE);
    this.staticGrants = new StaticGrants(vif.platform, domid);
    for (const ring of [this.tx, this.rx]) {
      ring.attach();
      const reqProd = ring.reqProd();
      if (ring.requestOverflow(reqProd)) {
        const claimed = (reqProd - ring.rspProdPvt) >>> 0;
        throw new NetError(
          'EIO',
          `${name}: a ring claims ${claimed} requests at once, it has ${ring.size} slots`,
        );
      }
    }
    const records = this.tx.size;
    this.recordIds = new Uint16Array(records * TX_SLOTS_MAX);
    this.recordSlots = new Uint8Array(records);
    this.recordExtras = new Uint8Array(records);
    this.freeRecords = Int32Array.from({ length: records }, (_, i) => i);
    this.freeRecordCount = records;
    this.pushTask = new Task(`${name} tx responses`, () => this.pushTx());
    this.rxTask = new Task(`${name} rx`, () => this.runRx());
    this.napi = vif.dev.napiAdd(budget => this.poll(budget));
    const { irqs } = vif;
    this.split = connection.txPort !== connection.rxPort;
    const onTx = () => this.napi.schedule();
    const onRx = () => {
      this.rxEventOwed = true;
      vif.platform.scheduler.post(this.rxTask);
    };
    const bound: number[] = [];
    const bind = (port: number, handler: () => void, suffix: string) => {
      const { irq } = irqs.bindInterdomainEvtchnToIrqhandlerLateeoi(domid, port, handler, `${name}${suffix}`);
      bound.push(irq);
      return irq;
    };
    try {
      if (this.split) {
        this.txIrq = bind(connection.txPort, onTx, '-tx');
        this.rxIrq = bind(connection.rxPort, onRx, '-rx');
      } else {
        const onBoth = () => {
          onTx();
          vif.platform.scheduler.post(this.rxTask);
        };
        this.txIrq = bind(connection.txPort, onBoth, '');
        this.rxIrq = this.txIrq;
      }
    } catch (error) {
      for (const irq of bound) irqs.unbindFromIrqhandler(irq);
      vif.dev.napiDel(this.napi);
      throw error;
    }
  }

  /** Starts to serve the rings, which may hold requests already. */
  start(): void {
    this.napi.enable();
    this.napi.schedule();
    // A backend before this one may have answered and died before it said so.
    this.vif.irqs.notifyRemoteViaIrq(this.txIrq);
    if (this.split) this.vif.irqs.notifyRemoteViaIrq(this.rxIrq);
  }

  /** Packets from the guest whose responses are owed. */
  get inFlight(): number {
    return this.freeRecords.length - this.freeRecordCount;
  }

  /** The rings' indexes in the page and ours, a line a ring, and what waits. */
  dump(): string[] {
    const hex = (index: number): string => (index >>> 0).toString(16);
    const ring = (name: string, { memory, address, rspProdPvt, reqCons, size }: BackRing): string => {
      const at = (field: number): string => hex(memory.load(address + field));
      return (
        `${name}: ${size} slots, req_prod ${at(RING_REQ_PROD)} req_cons ${hex(reqCons)} req_event ${at(RING_REQ_EVENT)}` +
        `, rsp_prod ${at(RING_RSP_PROD)} (private ${hex(rspProdPvt)}) rsp_event ${at(RING_RSP_EVENT)}`
      );
    };
    return [
      `${ring('tx', this.tx)}; ${this.inFlight} packets on their way`,
      `${ring('rx', this.rx)}; ${this.waiting.length} packets, ${this.waiting.bytes} bytes wait`,
    ];
  }

  /** Reads no more requests; what was read goes its way. */
  pause(): void {
    this.napi.disable();
  }

  /** Bounds what the guest sends from now on; null for no bound. */
  setRate(rate: Rate | null): void {
    this.credit?.stop();
    this.credit = rate === null ? null : new CreditLimiter(this.vif.platform.scheduler, rate, this.resume);
    this.resume();
  }

  private readonly resume = (): void => {
    this.throttled = false;
    this.napi.schedule();
  };

  /** Stops for good and lets go of the ports; the rings may be unmapped afterwards. */
  destroy(): void {
    this.stopped = true;
    this.credit?.stop();
    if (this.napi.enabled) this.napi.disable();
    this.vif.dev.napiDel(this.napi);
    const { irqs } = this.vif;
    irqs.unbindFromIrqhandler(this.txIrq);
    if (this.rxIrq !== this.txIrq) irqs.unbindFromIrqhandler(this.rxIrq);
    this.dropWaiting();
    if (this.rxIsStalled) this.vif.rxStalled(false);
    this.staticGrants.destroy();
  }

  /** The frontend broke the protocol, on this queue or another: nothing more is read, written or kept. */
  stop(): void {
    this.stopped = true;
    this.dropWaiting();
  }

  /** Packets that wait hold slots of their senders. */
  private dropWaiting(): void {
    if (this.rxTimer !== null) this.vif.platform.scheduler.cancel(this.rxTimer);
    this.rxTimer = null;
    for (let packet = this.waiting.shift(); packet !== null; packet = this.waiting.shift()) packet.release();
  }

  private fatal(reason: string): void {
    if (this.stopped) return;
    this.stopped = true;
    this.vif.fatal(reason);
  }

  // ---- tx: from the guest ----

  private poll(budget: number): number {
    if (this.stopped) {
      this.napi.complete(0);
      return 0;
    }
    this.polling = true;
    const work = this.receive(budget);
    this.polling = false;
    this.pushTx();
    if (work > 0) this.worked = true;
    if (this.stopped || work >= budget) return work;
    if (!this.napi.complete(work) || this.throttled) return work;
    if (this.tx.finalCheckForRequests()) this.napi.schedule();
    else this.endOfInterrupt();
    return work;
  }

  private endOfInterrupt(): void {
    const spurious = !this.worked && (this.split || !this.rxRequestsCame());
    this.worked = false;
    this.vif.irqs.lateEoi(this.txIrq, spurious);
  }

  private receive(budget: number): number {
    let work = 0;
    while (work < budget && !this.stopped) {
      const taken = this.readRequests(Math.min(budget - work, BATCH_PACKETS));
      if (this.builtCount > 0) {
        this.vif.platform.grants.copy(this.txBatch);
        this.deliverBuilt();
      }
      if (taken === 0) break;
      work += taken;
    }
    return work;
  }

  private deliverBuilt(): void {
    const { built, builtCount } = this;
    for (let i = 0; i < builtCount; i++) {
      const packet = built[i]!;
      built[i] = null;
      this.deliver(i, packet);
    }
    this.builtCount = 0;
  }

  /** Reads up to `limit` packets from the ring and plans the copies of their heads. */
  private readRequests(limit: number): number {
    const { tx: ring, txBatch } = this;
    const reqProd = ring.reqProd();
    if (ring.requestOverflow(reqProd)) {
      this.fatal(
        `the tx ring claims ${(reqProd - ring.rspProdPvt) >>> 0} requests, it has ${ring.size} slots`,
      );
      return 0;
    }
    let available = ring.unconsumed(reqProd);
    txBatch.clear();
    let taken = 0;
    while (available > 0 && taken < limit && txBatch.free >= TX_SLOTS_MAX) {
      const tx = this.read[this.builtCount];
      readTxPacket(ring, ring.reqCons, available, tx);
      if (tx.verdict === TX_INCOMPLETE || tx.verdict === TX_FATAL) {
        this.fatal(`tx request ${ring.reqCons >>> 0}: ${tx.reason}`);
        return taken;
      }
      if (this.credit !== null && !this.credit.take(tx.size)) {
        this.throttled = true;
        break;
      }
      ring.reqCons = (ring.reqCons + tx.consumed) | 0;
      available -= tx.consumed;
      taken++;
      if (tx.verdict === TX_DROP) this.refuse(tx);
      else if (tx.infos.multicast !== 0) respondToRead(ring, tx, !this.vif.changeMulticast(tx.infos));
      else this.build(tx);
    }
    return taken;
  }

  private refuse(tx: TxPacket): void {
    this.stats.txErrors++;
    this.vif.dev.stats.rxErrors++;
    respondToRead(this.tx, tx, true);
  }

  /** Makes the packet: its head is to be copied, the rest stays in the guest's pages. */
  private build(tx: TxPacket): void {
    const packet = this.vif.net.packets.tryGet();
    if (packet === null) {
      this.refuse(tx);
      return;
    }
    const { domid } = this.connection;
    const linear = tx.size <= PACKET_LINEAR_MAX ? tx.size : TX_HEAD_BYTES;
    packet.linear = linear;
    packet.length = linear;
    this.firstCopy[this.builtCount] = this.txBatch.count;
    const { data } = packet;
    const offset = data & (PAGE_SIZE - 1);
    gatherTx(tx, domid, 0, linear, this.txBatch, data >>> PAGE_SHIFT, offset, this.staticGrants);
    this.firstCopy[this.builtCount + 1] = this.txBatch.count;
    if (linear < tx.size) addGranted(packet, tx, domid, linear);
    this.built[this.builtCount++] = packet;
  }

  private deliver(index: number, packet: Packet): void {
    const tx = this.read[index];
    const failed = this.failedSlot(index, tx);
    if (failed >= 0) {
      this.stats.txErrors++;
      this.vif.dev.stats.rxErrors++;
      respondTx(this.tx, tx.id, 0, tx.slots, tx.infos.count, NETIF_RSP_ERROR, failed);
      packet.release();
      return;
    }
    if (packet.fragments === 0) respondToRead(this.tx, tx);
    else this.own(packet, tx);
    const { dev } = this.vif;
    if (!this.takeOffloads(packet, tx)) {
      dev.stats.rxErrors++;
      packet.release();
      return;
    }
    dev.stats.rxPackets++;
    dev.stats.rxBytes += packet.length;
    this.vif.receive(packet);
  }

  /** @returns the data slot whose copy failed, or -1 */
  private failedSlot(index: number, tx: TxPacket): number {
    const { status } = this.txBatch;
    const first = this.firstCopy[index];
    const end = this.firstCopy[index + 1];
    let failed = first;
    while (failed < end && status[failed] === 0) failed++;
    if (failed === end) return -1;
    let slot = -1;
    for (let i = first; i <= failed; i++) {
      do slot++;
      while (tx.bytes[slot] === 0);
    }
    return slot;
  }

  /** Notes the responses that are owed when the packet's fragments are no longer needed. */
  private own(packet: Packet, tx: TxPacket): void {
    const record = this.freeRecords[--this.freeRecordCount];
    const first = record * TX_SLOTS_MAX;
    for (let i = 0; i < tx.slots; i++) this.recordIds[first + i] = tx.id[i];
    this.recordSlots[record] = tx.slots;
    this.recordExtras[record] = tx.infos.count;
    packet.owner = this;
    packet.ownerCookie = record;
  }

  /** @returns false when the packet claims an offload that its headers do not allow */
  private takeOffloads(packet: Packet, tx: TxPacket): boolean {
    const { gsoType, gsoSize } = tx.infos;
    const { materialiser } = this.vif.net;
    const blank = (tx.flags & NETTXF_CSUM_BLANK) !== 0;
    packet.hashType = tx.infos.hashType;
    packet.hash = tx.infos.hash;
    if (gsoType !== GSO_NONE) {
      if (!blank) this.stats.rxGsoChecksumFixup++;
      return setupGso(packet, gsoType, gsoSize, !blank, materialiser);
    }
    if (blank) return setupChecksum(packet, false, materialiser);
    if ((tx.flags & NETTXF_DATA_VALIDATED) !== 0) packet.checksum = CHECKSUM_UNNECESSARY;
    return true;
  }

  packetDone(packet: Packet): void {
    const record = packet.ownerCookie;
    this.freeRecords[this.freeRecordCount++] = record;
    if (this.stopped) return;
    const status = packet.failed ? NETIF_RSP_ERROR : NETIF_RSP_OKAY;
    const slots = this.recordSlots[record];
    respondTx(this.tx, this.recordIds, record * TX_SLOTS_MAX, slots, this.recordExtras[record], status);
    if (!this.polling) this.vif.platform.scheduler.post(this.pushTask);
  }

  private pushTx(): void {
    if (this.stopped) return;
    if (this.tx.pushResponses()) this.vif.irqs.notifyRemoteViaIrq(this.txIrq);
  }

  // ---- rx: to the guest ----

  private get full(): boolean {
    const { length, bytes } = this.waiting;
    return bytes > RX_QUEUE_BYTES_MAX || length >= RX_QUEUE_PACKETS_MAX;
  }

  /** Takes a packet for the guest; drops it when too many bytes wait already. Takes the reference. */
  enqueue(packet: Packet): void {
    // A sender's whole ring is forwarded in one go: what it brought may fill the queue before the task has run.
    if (this.full) this.runRx();
    if (this.stopped || this.full || rxSlotsNeeded(packet, this.vif.xdpHeadroom) > RX_SLOTS_MAX) {
      this.stats.rxQueueDrops++;
      this.vif.dev.stats.txDropped++;
      packet.release();
      return;
    }
    this.waiting.push(packet);
    this.vif.platform.scheduler.post(this.rxTask);
  }

  private runRx(): void {
    if (this.stopped) return;
    const { rx: ring, waiting } = this;
    const { xdpHeadroom } = this.vif;
    const before = ring.rspProdPvt;
    let reqProd = ring.reqProd();
    for (let packet = waiting.head; packet !== null; packet = waiting.head) {
      const needed = rxSlotsNeeded(packet, xdpHeadroom);
      if (needed > ring.unconsumed(reqProd)) {
        reqProd = ring.reqProd();
        if (needed > ring.unconsumed(reqProd)) {
          this.requestRxEvent(needed);
          reqProd = ring.reqProd();
          if (needed > ring.unconsumed(reqProd)) break;
        }
      }
      if (ring.requestOverflow(reqProd)) {
        this.fatal(
          `the rx ring claims ${(reqProd - ring.rspProdPvt) >>> 0} requests, it has ${ring.size} slots`,
        );
        break;
      }
      if (this.planned === BATCH_PACKETS || this.rxBatch.free < rxCopiesAtMost(packet, xdpHeadroom)) {
        this.copyRx();
      }
      waiting.shift();
      const plan = this.plans[this.planned++];
      const { domid } = this.connection;
      planRx(packet, ring, ring.reqCons, domid, this.rxBatch, plan, this.staticGrants, xdpHeadroom);
      ring.reqCons = (ring.reqCons + needed) | 0;
    }
    this.copyRx();
    if (this.stopped) return;
    if (waiting.length > 0 || this.rxWanted > 0) this.superviseRx(ring.rspProdPvt !== before);
    if (ring.rspProdPvt !== before && ring.pushResponses()) this.vif.irqs.notifyRemoteViaIrq(this.rxIrq);
    if (this.rxEventOwed) {
      this.rxEventOwed = false;
      this.vif.irqs.lateEoi(this.rxIrq, !this.rxRequestsCame());
    }
  }

  /**
   * Some packets wait, or did until they had for too long: notes a guest that has stalled, or goes on, and drops
   * what has waited for too long. The timer runs only while there is something to wait for.
   * @param moved whether the guest got a packet just now
   */
  private superviseRx(moved: boolean): void {
    const { rx: ring, waiting, vif } = this;
    const { scheduler } = vif.platform;
    const now = scheduler.now();
    if (waiting.length > 0) this.keepWaiting(now);
    if (moved || ring.unconsumed(ring.reqProd()) >= this.rxWanted) this.rxHasEnough(now);
    const drain = vif.rxNotify ? RX_DRAIN_MS : RX_DRAIN_POLLED_MS;
    let expired = false;
    for (let packet = waiting.head; packet !== null; packet = waiting.head) {
      this.rxWanted = rxSlotsNeeded(packet, vif.xdpHeadroom);
      if (now < waiting.headTime + drain) break;
      waiting.shift();
      packet.release();
      this.stats.rxExpired++;
      vif.dev.stats.txDropped++;
      expired = true;
    }
    // The next one may need fewer slots than there are.
    if (expired && waiting.length > 0) scheduler.post(this.rxTask);
    let next = waiting.length > 0 ? waiting.headTime + drain : Number.POSITIVE_INFINITY;
    if (!vif.rxNotify) {
      if (waiting.length > 0) next = Math.min(next, now + RX_POLL_MS);
    } else if (this.rxWanted > 0 && !this.rxIsStalled) {
      const stallsAt = this.rxWantedSince + RX_STALL_MS;
      if (now >= stallsAt) {
        this.rxIsStalled = true;
        this.stats.rxStalls++;
        vif.rxStalled(true);
      } else next = Math.min(next, stallsAt);
    }
    this.superviseAt(next);
  }

  private rxHasEnough(now: number): void {
    this.rxWanted = 0;
    this.rxWantedSince = now;
    if (!this.rxIsStalled) return;
    this.rxIsStalled = false;
    this.vif.rxStalled(false);
  }

  private superviseAt(time: number): void {
    const { scheduler } = this.vif.platform;
    if (this.rxTimer !== null) {
      if (this.rxTimer.at <= time) return;
      scheduler.cancel(this.rxTimer);
      this.rxTimer = null;
    }
    if (time === Number.POSITIVE_INFINITY) return;
    this.rxTimer = scheduler.after(Math.max(0, time - scheduler.now()), () => {
      this.rxTimer = null;
      this.runRx();
    });
  }

  /** Whether the guest posted rx requests since the last call: an event without any is a spurious one. */
  private rxRequestsCame(): boolean {
    const reqProd = this.rx.reqProd();
    const came = reqProd !== this.rxReqProdSeen;
    this.rxReqProdSeen = reqProd;
    return came;
  }

  /** Asks to be notified when there are requests enough for the packet at the head. */
  private requestRxEvent(needed: number): void {
    const { rx } = this;
    rx.memory.store(rx.address + RING_REQ_EVENT, rx.reqCons + needed);
  }

  /** Does the planned copies, writes the responses and lets go of the packets. */
  private copyRx(): void {
    const { rxBatch, plans, planned } = this;
    if (planned === 0) return;
    this.vif.platform.grants.copy(rxBatch);
    const { stats } = this.vif.dev;
    for (let i = 0; i < planned; i++) {
      const plan = plans[i];
      const packet = plan.packet!;
      if (this.finishRx(plan, packet, i === planned - 1)) {
        stats.txPackets++;
        stats.txBytes += packet.length;
      } else {
        this.stats.rxCopyErrors++;
        stats.txErrors++;
      }
      plan.packet = null;
      packet.release();
    }
    this.planned = 0;
    rxBatch.clear();
  }

  /** @returns whether the guest got the packet */
  private finishRx(plan: RxPlan, packet: Packet, last: boolean): boolean {
    const copied = rxCopied(plan, this.rxBatch);
    const answered = respondRx(this.rx, plan, copied);
    if (copied) return true;
    // Either side's grant can be the bad one: a sender that granted nothing gets ERROR, too.
    this.vif.net.materialiser.materialiseOne(packet);
    if (answered === plan.slots) return false;
    // Requests with others planned behind them must be answered where they are; the last can be kept.
    if (last) this.rx.reqCons = (plan.start + answered) | 0;
    else respondRxError(this.rx, plan, answered);
    return false;
  }

  /** Packets that stay must not hold other guests' slots: their data comes home, or they are dropped. */
  private keepWaiting(now: number): void {
    const { waiting } = this;
    const dropped = waiting.replace(packet => this.vif.net.materialiser.own(packet), now);
    this.stats.rxQueueDrops += dropped;
    this.vif.dev.stats.txDropped += dropped;
  }
}

/** Makes fragments of the granted bytes from byte `skip` on. */
function addGranted(packet: Packet, tx: TxPacket, domid: number, skip: number): void {
  for (let i = 0; i < tx.slots; i++) {
    const bytes = tx.bytes[i];
    if (skip >= bytes) skip -= bytes;
    else {
      packet.addFragment(domid, tx.gref[i], tx.offset[i] + skip, bytes - skip);
      skip = 0;
    }
  }
}
