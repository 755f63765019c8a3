import {
  NETIF_RSP_ERROR,
  NETIF_RSP_OKAY,
  NETIF_TX_SLOT_SIZE,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
} from '../abi/netif.js';
import { BackRing } from '../abi/ring.js';
import { CHECKSUM_UNNECESSARY, GSO_NONE, type Packet, type PacketOwner } from '../net/packet.js';
import { setupChecksum, setupGso } from '../net/xmit.js';
import { CopyBatch } from '../platform/copy-batch.js';
import { Memory, PAGE_SIZE } from '../platform/memory.js';
import type { GrantMapping } from '../platform/platform.js';
import { CreditLimiter, type Rate } from './credit.js';
import type { QueueStats, QueueVif } from './queue.js';
import type { StaticGrants } from './static-grants.js';
import {
  buildPacket,
  readTxPacket,
  respondToRead,
  respondTx,
  TX_DROP,
  TX_FATAL,
  TX_INCOMPLETE,
  TX_SLOTS_MAX,
  TxPacket,
} from './tx-slots.js';

/** Packets taken from the ring with one batch of copies, and the copies that a batch holds. */
const BATCH_PACKETS = 64;
const BATCH_COPIES = 256;

/** The backend's end of a tx ring: what the guest sends, and the answers that it is owed. */
export class TxRing implements PacketOwner {
  readonly ring: BackRing;
  /** Packets read whose heads are being copied. */
  private readonly read = Array.from({ length: BATCH_PACKETS }, () => new TxPacket());
  private readonly built = new Array<Packet | null>(BATCH_PACKETS).fill(null);
  private builtCount = 0;
  private readonly firstCopy = new Int32Array(BATCH_PACKETS + 1);
  private readonly batch = new CopyBatch(BATCH_COPIES);

  /**
   * Responses by the index of their requests, until all before them are there. The page holds requests from rsp_prod
   * on, whatever happens to this backend: the next one can go on there, and answers each request once.
   */
  private readonly answers: BackRing;
  /** 1 for a slot of `answers` that is to be published. */
  private readonly answered: Uint8Array;
  /** Ring index of the first request of each packet in `built`. */
  private readonly starts = new Int32Array(BATCH_PACKETS);

  /** Packets whose fragments still are the guest's grants; their responses are owed by record number. */
  private readonly recordStarts: Int32Array;
  private readonly recordIds: Uint16Array;
  private readonly recordSlots: Uint8Array;
  private readonly recordExtras: Uint8Array;
  private readonly freeRecords: Int32Array;
  private freeRecordCount: number;

  private credit: CreditLimiter | null = null;
  /** The next packet has to wait for credit: no event is to be asked for meanwhile. */
  throttled = false;
  private receiving = false;
  private stopped = false;

  /**
   * @param domid who granted the ring and the pages on it
   * @param onPacket takes each packet that the guest sent, and its reference
   * @param onAnswered responses were written outside of `receive`: they are to be pushed
   * @param onFatal the frontend broke the protocol
   */
  constructor(
    private readonly vif: QueueVif,
    mapping: GrantMapping,
    private readonly domid: number,
    private readonly staticGrants: StaticGrants,
    private readonly stats: QueueStats,
    private readonly onPacket: (packet: Packet) => void,
    private readonly onAnswered: () => void,
    private readonly onFatal: (reason: string) => void,
  ) {
    this.ring = new BackRing(mapping.memory, mapping.address, NETIF_TX_SLOT_SIZE);
    this.ring.attach();
    const records = this.ring.size;
    this.answers = new BackRing(new Memory(new ArrayBuffer(PAGE_SIZE)), 0, NETIF_TX_SLOT_SIZE);
    this.answered = new Uint8Array(records);
    this.recordStarts = new Int32Array(records);
    this.recordIds = new Uint16Array(records * TX_SLOTS_MAX);
    this.recordSlots = new Uint8Array(records);
    this.recordExtras = new Uint8Array(records);
    this.freeRecords = Int32Array.from({ length: records }, (_, i) => i);
    this.freeRecordCount = records;
  }

  /** Packets from the guest whose responses are owed. */
  get inFlight(): number {
    return this.freeRecords.length - this.freeRecordCount;
  }

  /** Bounds what the guest sends from now on; null for no bound. @param resume called when there is credit again */
  setRate(rate: Rate | null, resume: () => void): void {
    this.credit?.stop();
    const onCredit = () => {
      this.throttled = false;
      resume();
    };
    this.credit = rate === null ? null : new CreditLimiter(this.vif.platform.scheduler, rate, onCredit);
    onCredit();
  }

  /** Nothing more is read or written. */
  stop(): void {
    this.stopped = true;
    this.credit?.stop();
  }

  /**
   * Takes packets from the ring and hands them to the vif.
   * @param budget packets at most
   * @returns how many were taken
   */
  receive(budget: number): number {
    this.receiving = true;
    const work = this.receiveAll(budget);
    this.receiving = false;
    return work;
  }

  private receiveAll(budget: number): number {
    let work = 0;
    while (work < budget && !this.stopped) {
      const taken = this.readRequests(Math.min(budget - work, BATCH_PACKETS));
      if (this.builtCount > 0) {
        this.vif.platform.grants.copy(this.batch);
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
    const { ring, batch } = this;
    const reqProd = ring.reqProd();
    if (ring.requestOverflow(reqProd)) {
      this.fatal(
        `the tx ring claims ${(reqProd - ring.rspProdPvt) >>> 0} requests, it has ${ring.size} slots`,
      );
      return 0;
    }
    let available = ring.unconsumed(reqProd);
    batch.clear();
    let taken = 0;
    while (available > 0 && taken < limit && batch.free >= TX_SLOTS_MAX) {
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
      const start = ring.reqCons;
      ring.reqCons = (start + tx.consumed) | 0;
      available -= tx.consumed;
      taken++;
      if (tx.verdict === TX_DROP) this.refuse(tx, start);
      else if (tx.infos.multicast !== 0) this.answerRead(tx, start, !this.vif.changeMulticast(tx.infos));
      else this.build(tx, start);
    }
    return taken;
  }

  private refuse(tx: TxPacket, start: number): void {
    this.stats.txErrors++;
    this.vif.dev.stats.rxErrors++;
    this.answerRead(tx, start, true);
  }

  private answerRead(tx: TxPacket, start: number, error = false): void {
    this.answers.rspProdPvt = start;
    respondToRead(this.answers, tx, error);
    this.markAnswered(start);
  }

  private markAnswered(start: number): void {
    const { answers, answered } = this;
    for (let i = start; i !== answers.rspProdPvt; i = (i + 1) | 0) answered[i & (answers.size - 1)] = 1;
  }

  /** Publishes the responses of packets before which all are answered. @returns whether the guest wants an event */
  push(): boolean {
    const { ring, answers, answered } = this;
    const to = ring.memory.i32;
    const from = answers.memory.i32;
    let at = ring.rspProdPvt;
    for (; answered[at & (ring.size - 1)] === 1; at = (at + 1) | 0) {
      answered[at & (ring.size - 1)] = 0;
      to[ring.slot(at) >>> 2] = from[answers.slot(at) >>> 2];
    }
    if (at === ring.rspProdPvt) return false;
    ring.rspProdPvt = at;
    return ring.pushResponses();
  }

  /** Makes the packet: its head is to be copied, the rest stays in the guest's pages. */
  private build(tx: TxPacket, start: number): void {
    const packet = this.vif.net.packets.tryGet();
    if (packet === null) {
      this.refuse(tx, start);
      return;
    }
    this.starts[this.builtCount] = start;
    this.firstCopy[this.builtCount] = this.batch.count;
    buildPacket(tx, packet, this.domid, this.batch, this.staticGrants);
    this.firstCopy[this.builtCount + 1] = this.batch.count;
    this.built[this.builtCount++] = packet;
  }

  private deliver(index: number, packet: Packet): void {
    const tx = this.read[index];
    const start = this.starts[index];
    const failed = this.failedSlot(index, tx);
    if (failed >= 0) {
      this.stats.txErrors++;
      this.vif.dev.stats.rxErrors++;
      this.answers.rspProdPvt = start;
      respondTx(this.answers, tx.id, 0, tx.slots, tx.infos.count, NETIF_RSP_ERROR, failed);
      this.markAnswered(start);
      packet.release();
      return;
    }
    if (packet.fragments === 0) this.answerRead(tx, start);
    else this.own(packet, tx, start);
    const { dev } = this.vif;
    if (!this.takeOffloads(packet, tx)) {
      dev.stats.rxErrors++;
      packet.release();
      return;
    }
    dev.stats.rxPackets++;
    dev.stats.rxBytes += packet.length;
    this.onPacket(packet);
  }

  /** @returns the data slot whose copy failed, or -1 */
  private failedSlot(index: number, tx: TxPacket): number {
    const { status } = this.batch;
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
  private own(packet: Packet, tx: TxPacket, start: number): void {
    const record = this.freeRecords[--this.freeRecordCount];
    const first = record * TX_SLOTS_MAX;
    for (let i = 0; i < tx.slots; i++) this.recordIds[first + i] = tx.id[i];
    this.recordStarts[record] = start;
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
    const start = this.recordStarts[record];
    const first = record * TX_SLOTS_MAX;
    this.answers.rspProdPvt = start;
    respondTx(this.answers, this.recordIds, first, slots, this.recordExtras[record], status);
    this.markAnswered(start);
    if (!this.receiving) this.onAnswered();
  }

  private fatal(reason: string): void {
    if (!this.stopped) this.onFatal(reason);
  }
}
