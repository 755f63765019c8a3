import {
  NETIF_TX_SLOT_SIZE,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
} from '../abi/netif.js';
import { BackRing } from '../abi/ring.js';
import { takesPacket } from '../kernel/peer-offloads.js';
import type { Napi } from '../net/napi.js';
import {
  CHECKSUM_UNNECESSARY,
  GSO_NONE,
  PACKET_LINEAR_MAX,
  type Packet,
  type PacketOwner,
} from '../net/packet.js';
import { setupChecksum, setupGso } from '../net/xmit.js';
import { COPY_LOCAL, CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { GrantMapping } from '../platform/platform.js';
import type { Block } from './fast-path.js';
import { SKB_FRAGS_MAX } from './fast-path-block.js';
import type { QueueStats, QueueVif } from './queue.js';
import type { StaticGrants } from './static-grants.js';
import {
  buildPacket,
  ETH_HLEN,
  failResponse,
  indexOfSlot,
  respondTx,
  TX_DROP,
  TX_FATAL,
  TX_HEAD_BYTES,
  TX_INCOMPLETE,
  TX_SLOTS_MAX,
  TxPacket,
  takeRequests,
} from './tx-slots.js';

/** Packets taken from the ring with one batch of copies, and the copies that a batch holds. */
const BATCH_PACKETS = 64;
const BATCH_COPIES = 256;
/** In a packet's cookie: where the first of its slots is, and from here on how many there are. */
const COOKIE_SHIFT = 16;
const COOKIE_START = 1 << COOKIE_SHIFT;
/** Flags of a first request that has others behind it. */
const SEVERAL_SLOTS = NETTXF_MORE_DATA | NETTXF_EXTRA_INFO;
/** Flags that say something of the checksum. */
const CHECKSUM_FLAGS = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;

/**
 * The work space of a batch. Between two polls nothing in it is of use, and no poll begins inside another: all rings
 * have the same one, which stays in the processor's cache.
 */
const SCRATCH = {
  built: new Array<Packet | null>(BATCH_PACKETS).fill(null),
  flags: new Uint16Array(BATCH_PACKETS),
  firstCopy: new Int32Array(BATCH_PACKETS + 1),
  batch: new CopyBatch(BATCH_COPIES),
  copySlot: new Uint16Array(BATCH_COPIES),
  tx: new TxPacket(),
};

/** The backend's end of a tx ring: what the guest sends, and the answers that it is owed. */
export class TxRing implements PacketOwner {
  readonly ring: BackRing;
  /** Packets read whose heads are being copied: each with the flags of its first request and its first copy. */
  private readonly built = SCRATCH.built;
  private readonly flags = SCRATCH.flags;
  private readonly firstCopy = SCRATCH.firstCopy;
  private builtCount = 0;
  private readonly batch = SCRATCH.batch;
  /** Ring index, less what is beyond its size, of the slot that each copy reads. */
  private readonly copySlot = SCRATCH.copySlot;
  /** The requests of a packet that is not just one. */
  private readonly tx = SCRATCH.tx;

  /**
   * First words of the responses by the index of their requests, and 1 for each that is to be published when all
   * before it are. The page holds requests from rsp_prod on, whatever happens to this backend: the next one can go on
   * there, and answers each request once.
   */
  private responses: Int32Array;
  private answered: Uint8Array;
  /** Packets from the guest whose responses are owed: their fragments still are its grants. */
  inFlight = 0;

  /** The next packet has to wait for credit: no event is to be asked for meanwhile. */
  throttled = false;
  private receiving = false;
  private stopped = false;

  /**
   * @param domid who granted the ring and the pages on it
   * @param onCredit the packet that had to wait for credit may be tried again
   * @param onAnswered responses were written outside of `receive`: they are to be pushed
   * @param onFatal the frontend broke the protocol
   * @param block where the fast path finds what is owed, if the queue has one
   */
  constructor(
    private readonly vif: QueueVif,
    mapping: GrantMapping,
    private readonly domid: number,
    private readonly staticGrants: StaticGrants,
    private readonly stats: QueueStats,
    private readonly onCredit: () => void,
    private readonly onAnswered: () => void,
    private readonly onFatal: (reason: string) => void,
    private readonly block: Block | null,
  ) {
    this.ring = new BackRing(mapping.memory, mapping.address, NETIF_TX_SLOT_SIZE);
    this.ring.attach();
    this.responses = block?.responses ?? new Int32Array(this.ring.size);
    this.answered = block?.answered ?? new Uint8Array(this.ring.size);
  }

  /** Requests are taken without anything that has to be kept in mind for this guest. */
  get usual(): boolean {
    return this.vif.credit === null && this.staticGrants.size === 0;
  }

  private readonly goOn = (): void => {
    this.throttled = false;
    this.onCredit();
  };

  /** Nothing more is read or written. */
  stop(): void {
    this.stopped = true;
  }

  /** The block is to be given back, when it has stopped. A poll that is going on meanwhile has other places to write to. */
  detach(): void {
    this.responses = new Int32Array(this.ring.size);
    this.answered = new Uint8Array(this.ring.size);
  }

  /**
   * Takes packets from the ring and hands them to the vif.
   * @param budget packets at most
   * @param napi whose poll it is
   * @returns how many were taken
   */
  receive(budget: number, napi: Napi): number {
    this.receiving = true;
    try {
      return this.receiveAll(budget, napi);
    } finally {
      this.receiving = false;
    }
  }

  private receiveAll(budget: number, napi: Napi): number {
    let work = 0;
    while (work < budget && !this.stopped) {
      const taken = this.readRequests(Math.min(budget - work, BATCH_PACKETS));
      if (this.builtCount > 0) {
        this.vif.platform.grants.copy(this.batch);
        this.deliverBuilt(napi);
      }
      if (taken === 0) break;
      work += taken;
    }
    return work;
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
    const { i32 } = ring.memory;
    const { usual } = this;
    let available = ring.unconsumed(reqProd);
    batch.clear();
    let taken = 0;
    while (available > 0 && taken < limit && batch.free >= TX_SLOTS_MAX) {
      const at = ring.slot(ring.reqCons) >>> 2;
      const gref = i32[at];
      const word1 = i32[at + 1];
      const word2 = i32[at + 2];
      let consumed = 1;
      if (!usual || ((word1 >>> 16) & SEVERAL_SLOTS) !== 0 || !this.takeOne(gref, word1, word2)) {
        consumed = this.take(available, gref, word1, word2);
        if (consumed === 0) break;
      }
      ring.reqCons = (ring.reqCons + consumed) | 0;
      available -= consumed;
      taken++;
    }
    return taken;
  }

  /**
   * Makes the packet of one request; what `take` would do, without anything that the request does not need.
   * @returns false, having done nothing, when the request is not sound, or there is no packet left
   */
  private takeOne(gref: number, word1: number, word2: number): boolean {
    const offset = word1 & 0xffff;
    const size = word2 >>> 16;
    if (size < ETH_HLEN || offset + size > PAGE_SIZE) return false;
    const packet = this.vif.net.packets.tryGet();
    if (packet === null) return false;
    const linear = size <= PACKET_LINEAR_MAX ? size : TX_HEAD_BYTES;
    const { data } = packet;
    const { domid, batch, responses } = this;
    packet.linear = linear;
    packet.length = linear;
    if (linear < size) packet.addFragment(domid, gref, offset + linear, size - linear);
    const copy = batch.add(
      domid,
      gref,
      offset,
      COPY_LOCAL,
      data >>> PAGE_SHIFT,
      data & (PAGE_SIZE - 1),
      linear,
    );
    const slot = this.ring.reqCons & (responses.length - 1);
    responses[slot] = word2 & 0xffff;
    this.copySlot[copy] = slot;
    this.note(packet, copy, word1 >>> 16, slot | (1 << COOKIE_SHIFT));
    return true;
  }

  private note(packet: Packet, firstCopy: number, flags: number, cookie: number): void {
    const i = this.builtCount++;
    packet.ownerCookie = cookie;
    this.built[i] = packet;
    this.flags[i] = flags;
    this.firstCopy[i] = firstCopy;
    this.firstCopy[i + 1] = this.batch.count;
  }

  /**
   * Takes any packet, from the words of its first request on.
   * @returns the requests that were consumed: none when the packet has to wait, or the frontend is broken
   */
  private take(available: number, gref: number, word1: number, word2: number): number {
    const { ring, tx, responses } = this;
    takeRequests(ring, ring.reqCons, available, gref, word1, word2, tx);
    if (tx.verdict === TX_INCOMPLETE || tx.verdict === TX_FATAL) {
      this.fatal(`tx request ${ring.reqCons >>> 0}: ${tx.reason}`);
      return 0;
    }
    const { credit } = this.vif;
    if (credit !== null && !credit.take(tx.size, this.goOn)) {
      this.throttled = true;
      return 0;
    }
    respondTx(responses, tx);
    const { taken } = this.vif;
    if (tx.verdict === TX_DROP || (taken?.sg === false && tx.slots > 1)) this.refuse(tx);
    else if (tx.infos.multicast !== 0) this.changeMulticast(tx);
    else this.build(tx);
    return tx.consumed;
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

  /** Makes the packet: its head is to be copied, the rest stays in the guest's pages. */
  private build(tx: TxPacket): void {
    const packet = this.vif.net.packets.tryGet();
    if (packet === null) {
      this.refuse(tx);
      return;
    }
    const { batch, ring } = this;
    const firstCopy = batch.count;
    buildPacket(tx, packet, this.domid, batch, this.staticGrants);
    for (let copy = firstCopy, slot = 0; copy < batch.count; slot++) {
      if (tx.bytes[slot] > 0) this.copySlot[copy++] = indexOfSlot(tx, slot) & (ring.size - 1);
    }
    packet.gsoType = tx.infos.gsoType;
    packet.gsoSize = tx.infos.gsoSize;
    packet.hashType = tx.infos.hashType;
    packet.hash = tx.infos.hash;
    this.note(packet, firstCopy, tx.flags, (tx.start & (ring.size - 1)) | (tx.consumed << COOKIE_SHIFT));
  }

  private deliverBuilt(napi: Napi): void {
    const { built, flags, firstCopy, builtCount, batch, vif } = this;
    const { stats } = vif.dev;
    this.builtCount = 0;
    let packets = 0;
    let bytes = 0;
    let i = 0;
    try {
      for (; i < builtCount; i++) {
        const packet = built[i]!;
        const copy = firstCopy[i];
        if (!batch.done(copy, firstCopy[i + 1] - copy)) {
          this.dropUncopied(packet, copy);
          continue;
        }
        const cookie = packet.ownerCookie;
        if (packet.fragments > 0) this.own(packet);
        else if (cookie >>> COOKIE_SHIFT === 1) this.answered[cookie & (COOKIE_START - 1)] = 1;
        else this.answer(cookie & (COOKIE_START - 1), cookie >>> COOKIE_SHIFT);
        const unusual = (flags[i] & CHECKSUM_FLAGS) | packet.gsoType;
        if (unusual !== 0 && !this.takeOffloads(packet, flags[i])) {
          stats.rxErrors++;
          packet.release();
          continue;
        }
        packets++;
        bytes += packet.length;
        vif.receive(packet, napi);
      }
    } finally {
      stats.rxPackets += packets;
      stats.rxBytes += bytes;
      // Whoever received one has thrown: nobody else knows of those behind it.
      for (i++; i < builtCount; i++) this.abandon(built[i]!);
    }
  }

  private abandon(packet: Packet): void {
    this.vif.dev.stats.rxDropped++;
    this.answer(packet.ownerCookie & (COOKIE_START - 1), packet.ownerCookie >>> COOKIE_SHIFT);
    packet.release();
  }

  /** The response is owed when the packet's fragments are no longer needed: the cookie says which. */
  private own(packet: Packet): void {
    this.inFlight++;
    this.stats.txZerocopySent++;
    if (packet.fragments > SKB_FRAGS_MAX) this.stats.txFragOverflow++;
    packet.owner = this;
  }

  /** A copy of the packet failed, the first being `copy`: the slot that it read is answered with ERROR. */
  private dropUncopied(packet: Packet, copy: number): void {
    let failed = copy;
    while (this.batch.status(failed) === 0) failed++;
    this.stats.txErrors++;
    this.vif.dev.stats.rxErrors++;
    failResponse(this.responses, this.copySlot[failed]);
    this.answer(packet.ownerCookie & (COOKIE_START - 1), packet.ownerCookie >>> COOKIE_SHIFT);
    packet.release();
  }

  /** @returns false when the packet claims an offload that its headers do not allow, or that was not offered */
  private takeOffloads(packet: Packet, flags: number): boolean {
    const { materialiser } = this.vif.net;
    const blank = (flags & NETTXF_CSUM_BLANK) !== 0;
    const { taken } = this.vif;
    if (packet.gsoType !== GSO_NONE) {
      if (!blank) this.stats.rxGsoChecksumFixup++;
      const sound = setupGso(packet, packet.gsoType, packet.gsoSize, !blank, materialiser);
      return sound && takesPacket(taken, packet);
    }
    if (blank) return setupChecksum(packet, false, materialiser) && takesPacket(taken, packet);
    packet.checksum = CHECKSUM_UNNECESSARY;
    return true;
  }

  packetDone(packet: Packet): void {
    const start = packet.ownerCookie & (COOKIE_START - 1);
    const slots = packet.ownerCookie >>> COOKIE_SHIFT;
    this.inFlight--;
    if (packet.isLocal) this.stats.txZerocopyFail++;
    else this.stats.txZerocopySuccess++;
    if (this.stopped) return;
    if (packet.failed) for (let i = 0; i < slots; i++) failResponse(this.responses, start + i);
    this.answer(start, slots);
    if (!this.receiving) this.onAnswered();
  }

  /** The responses to so many requests may be published. */
  private answer(start: number, slots: number): void {
    const { answered } = this;
    for (let i = 0; i < slots; i++) answered[(start + i) & (answered.length - 1)] = 1;
  }

  /** Publishes the responses of packets before which all are answered. @returns whether the guest wants an event */
  push(): boolean {
    const { ring, responses, answered, block } = this;
    if (block !== null) return block.respond(ring) && ring.pushResponses();
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

  private fatal(reason: string): void {
    if (!this.stopped) this.onFatal(reason);
  }
}
