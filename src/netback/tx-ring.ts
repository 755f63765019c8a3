import {
  NETIF_RSP_ERROR,
  NETIF_RSP_NULL,
  NETIF_TX_SLOT_SIZE,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
} from '../abi/netif.js';
import { BackRing } from '../abi/ring.js';
import { CHECKSUM_UNNECESSARY, GSO_NONE, type Packet, type PacketOwner } from '../net/packet.js';
import { setupChecksum, setupGso } from '../net/xmit.js';
import { CopyBatch } from '../platform/copy-batch.js';
import type { GrantMapping } from '../platform/platform.js';
import { CreditLimiter, type Rate } from './credit.js';
import type { QueueStats, QueueVif } from './queue.js';
import type { StaticGrants } from './static-grants.js';
import {
  buildPacket,
  failTxSlot,
  readTxPacket,
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
/** In a packet's cookie: where the first of its slots is, and from here on how many there are. */
const COOKIE_SHIFT = 16;
const COOKIE_START = 1 << COOKIE_SHIFT;

/**
 * The work space of a batch. Between two polls nothing in it is of use, and no poll begins inside another: all rings
 * have the same one, which stays in the processor's cache.
 */
const SCRATCH = {
  read: Array.from({ length: BATCH_PACKETS }, () => new TxPacket()),
  batch: new CopyBatch(BATCH_COPIES),
};

/** The backend's end of a tx ring: what the guest sends, and the answers that it is owed. */
export class TxRing implements PacketOwner {
  readonly ring: BackRing;
  /** Packets read, of which the first `builtCount` are packets whose heads are being copied. */
  private readonly read = SCRATCH.read;
  private builtCount = 0;
  private readonly batch = SCRATCH.batch;

  /**
   * First words of the responses by the index of their requests, and 1 for each that is to be published when all
   * before it are. The page holds requests from rsp_prod on, whatever happens to this backend: the next one can go on
   * there, and answers each request once.
   */
  private readonly responses: Int32Array;
  private readonly answered: Uint8Array;
  /** Packets from the guest whose responses are owed: their fragments still are its grants. */
  inFlight = 0;

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
    this.responses = new Int32Array(this.ring.size);
    this.answered = new Uint8Array(this.ring.size);
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
    const { read, builtCount } = this;
    this.builtCount = 0;
    for (let i = 0; i < builtCount; i++) this.deliver(read[i]);
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
      ring.reqCons = (ring.reqCons + tx.consumed) | 0;
      available -= tx.consumed;
      taken++;
      respondTx(this.responses, tx);
      if (tx.verdict === TX_DROP) this.refuse(tx);
      else if (tx.infos.multicast !== 0) this.changeMulticast(tx);
      else this.build(tx);
    }
    return taken;
  }

  private refuse(tx: TxPacket): void {
    this.stats.txErrors++;
    this.vif.dev.stats.rxErrors++;
    respondTx(this.responses, tx, true);
    this.answer(tx.start, tx.consumed);
  }

  private changeMulticast(tx: TxPacket): void {
    respondTx(this.responses, tx, !this.vif.changeMulticast(tx.infos));
    this.answer(tx.start, tx.consumed);
  }

  /** The responses to so many requests may be published. */
  private answer(start: number, slots: number): void {
    const { answered } = this;
    for (let i = 0; i < slots; i++) answered[(start + i) & (answered.length - 1)] = 1;
  }

  /** Publishes the responses of packets before which all are answered. @returns whether the guest wants an event */
  push(): boolean {
    const { ring, responses, answered } = this;
    const { i32 } = ring.memory;
    const mask = answered.length - 1;
    let at = ring.rspProdPvt;
    for (; answered[at & mask] === 1; at = (at + 1) | 0) {
      answered[at & mask] = 0;
      i32[ring.slot(at) >>> 2] = responses[at & mask];
    }
    if (at === ring.rspProdPvt) return false;
    ring.rspProdPvt = at;
    return ring.pushResponses();
  }

  /** Makes the packet: its head is to be copied, the rest stays in the guest's pages. */
  private build(tx: TxPacket): void {
    const packet = this.vif.net.packets.tryGet();
    if (packet === null) {
      this.refuse(tx);
      return;
    }
    buildPacket(tx, packet, this.domid, this.batch, this.staticGrants);
    this.builtCount++;
  }

  private deliver(tx: TxPacket): void {
    const packet = tx.packet!;
    const { dev } = this.vif;
    tx.packet = null;
    const failed = this.failedSlot(tx);
    if (failed >= 0) {
      this.stats.txErrors++;
      dev.stats.rxErrors++;
      failTxSlot(this.responses, tx, failed);
      this.answer(tx.start, tx.consumed);
      packet.release();
      return;
    }
    if (packet.fragments === 0) this.answer(tx.start, tx.consumed);
    else this.own(packet, tx);
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
  private failedSlot(tx: TxPacket): number {
    const { batch } = this;
    if (batch.done(tx.firstCopy, tx.copies)) return -1;
    let failed = tx.firstCopy;
    while (batch.status(failed) === 0) failed++;
    let slot = -1;
    for (let i = tx.firstCopy; i <= failed; i++) {
      do slot++;
      while (tx.bytes[slot] === 0);
    }
    return slot;
  }

  /** The responses are owed when the packet's fragments are no longer needed: the cookie says which. */
  private own(packet: Packet, tx: TxPacket): void {
    this.inFlight++;
    packet.owner = this;
    packet.ownerCookie = (tx.start & (this.ring.size - 1)) | (tx.consumed << COOKIE_SHIFT);
  }

  /** @returns false when the packet claims an offload that its headers do not allow */
  private takeOffloads(packet: Packet, tx: TxPacket): boolean {
    const { infos } = tx;
    const { materialiser } = this.vif.net;
    const blank = (tx.flags & NETTXF_CSUM_BLANK) !== 0;
    if (infos.count > 0) {
      const { gsoType, gsoSize } = infos;
      packet.hashType = infos.hashType;
      packet.hash = infos.hash;
      if (gsoType !== GSO_NONE) {
        if (!blank) this.stats.rxGsoChecksumFixup++;
        return setupGso(packet, gsoType, gsoSize, !blank, materialiser);
      }
    }
    if (blank) return setupChecksum(packet, false, materialiser);
    if ((tx.flags & NETTXF_DATA_VALIDATED) !== 0) packet.checksum = CHECKSUM_UNNECESSARY;
    return true;
  }

  packetDone(packet: Packet): void {
    this.inFlight--;
    if (this.stopped) return;
    const start = packet.ownerCookie & (COOKIE_START - 1);
    const slots = packet.ownerCookie >>> COOKIE_SHIFT;
    if (packet.failed) this.failAll(start, slots);
    this.answer(start, slots);
    if (!this.receiving) this.onAnswered();
  }

  /** Makes the responses to a packet's data slots ERROR. */
  private failAll(start: number, slots: number): void {
    const { responses } = this;
    for (let i = 0; i < slots; i++) {
      const at = (start + i) & (responses.length - 1);
      const word = responses[at];
      if (word >> 16 !== NETIF_RSP_NULL) responses[at] = (word & 0xffff) | (NETIF_RSP_ERROR << 16);
    }
  }

  private fatal(reason: string): void {
    if (!this.stopped) this.onFatal(reason);
  }
}
