import type { BackRing } from '../abi/ring.js';
import type { NetDevice } from '../net/device.js';
import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import { VLAN_HLEN } from '../net/flags.js';
import { HypercallError } from '../platform/errors.js';
import { type Memory, PAGE_SHIFT } from '../platform/memory.js';
import type { Platform } from '../platform/platform.js';
import {
  BLOCK_ADDRESSES,
  BLOCK_ANSWERED,
  BLOCK_DOMID,
  BLOCK_FRAME_MAX,
  BLOCK_GSO_MAX,
  BLOCK_OFFLOADS,
  BLOCK_POLL,
  BLOCK_RESPONSES,
  BLOCK_ROUTES,
  BLOCK_RX_BYTES,
  BLOCK_RX_PACKETS,
  BLOCK_RX_REQ_CONS,
  BLOCK_RX_RING,
  BLOCK_RX_RSP_PVT,
  BLOCK_STOP,
  BLOCK_TX_BYTES,
  BLOCK_TX_FRAGMENTED,
  BLOCK_TX_OVERFLOWED,
  BLOCK_TX_REQ_CONS,
  BLOCK_TX_RING,
  BLOCK_TX_RSP_PVT,
  OFFLOAD_CSUM_V4,
  OFFLOAD_CSUM_V6,
  OFFLOAD_TSO_V4,
  OFFLOAD_TSO_V6,
  ROUTE_POLL,
  ROUTE_SIZE,
  ROUTE_TARGET,
  ROUTE_USED,
  ROUTES,
  STOP_EMPTY,
  STOP_ROUTE,
} from './fast-path-block.js';
import type { QueueStats } from './queue.js';
import { MODULE } from './wasm/fast-path.bytes.js';

/** Pages of work space: heads of packets, copies, packets, and their pieces; and one for their addresses. */
const WORK_PAGES = 11;
/** Polls that do not try after one in which the first packet was unusual; doubled each time, up to the most. */
const REST_MIN = 1;
const REST_MAX = 64;
const POLL_MAX = 0x3fffffff;
const FIRST_ROUTE = BLOCK_ROUTES >>> 2;
const ROUTE_WORDS = ROUTE_SIZE >>> 2;

interface Exports {
  start(record: number, pages: number): void;
  forward(block: number, limit: number): number;
  respond(block: number): number;
}

/** The code of wasm/fast-path.ts over the memory of one domain, with work space that all its queues share. */
export class FastPathModule {
  readonly memory: Memory;
  readonly forward: Exports['forward'];
  readonly respond: Exports['respond'];
  private readonly pages: number[];

  /** @returns null where the platform has no WebAssembly @throws ENOMEM */
  static load(platform: Platform): FastPathModule | null {
    const { instantiate } = platform.memory.memory;
    const { wasm } = platform.grants;
    if (instantiate === null || wasm === null) return null;
    const exports = instantiate(MODULE, { grants: wasm.functions }) as Exports;
    return new FastPathModule(platform, wasm.record, exports);
  }

  private constructor(
    private readonly platform: Platform,
    record: number,
    exports: Exports,
  ) {
    this.memory = platform.memory.memory;
    this.forward = exports.forward;
    this.respond = exports.respond;
    this.pages = Array.from({ length: WORK_PAGES + 1 }, () => platform.memory.allocPage());
    const [table, ...work] = this.pages.map(page => page << PAGE_SHIFT);
    work.forEach((address, i) => {
      this.memory.i32[(table >>> 2) + i] = address;
    });
    exports.start(record, table);
  }

  /** A block for a queue whose rings both lie in this memory; null for others, and when there is no page left. */
  block(domid: number, txRing: { memory: Memory; address: number }, rxRing: typeof txRing): Block | null {
    if (txRing.memory !== this.memory || rxRing.memory !== this.memory) return null;
    const page = this.allocPage();
    return page === 0 ? null : new Block(this, page, domid, txRing.address, rxRing.address);
  }

  private allocPage(): number {
    try {
      return this.platform.memory.allocPage();
    } catch (error) {
      if (error instanceof HypercallError) return 0;
      throw error;
    }
  }

  freePage(page: number): void {
    this.platform.memory.freePage(page);
  }
}

/** What the code knows of a queue (fast-path-block.ts). */
export class Block {
  readonly address: number;
  readonly words: Int32Array;
  /** See `TxRing`. */
  readonly responses: Int32Array;
  readonly answered: Uint8Array;

  constructor(
    readonly module: FastPathModule,
    private readonly page: number,
    domid: number,
    txRing: number,
    rxRing: number,
  ) {
    this.address = page << PAGE_SHIFT;
    const { buffer, byteOffset } = module.memory.u8;
    const at = byteOffset + this.address;
    this.words = new Int32Array(buffer, at, BLOCK_RESPONSES >>> 2);
    this.responses = new Int32Array(buffer, at + BLOCK_RESPONSES, (BLOCK_ANSWERED - BLOCK_RESPONSES) >>> 2);
    this.answered = new Uint8Array(buffer, at + BLOCK_ANSWERED, this.responses.length);
    this.words.fill(0);
    this.answered.fill(0);
    this.words[BLOCK_DOMID >>> 2] = domid;
    this.words[BLOCK_TX_RING >>> 2] = txRing;
    this.words[BLOCK_RX_RING >>> 2] = rxRing;
  }

  /** Writes the tx responses of the packets before which all are answered. @returns whether there were any */
  respond(ring: BackRing): boolean {
    this.words[BLOCK_TX_RSP_PVT >>> 2] = ring.rspProdPvt;
    if (this.module.respond(this.address) === 0) return false;
    ring.rspProdPvt = this.words[BLOCK_TX_RSP_PVT >>> 2];
    return true;
  }

  destroy(): void {
    this.module.freePage(this.page);
  }
}

/** What the fast path needs of the queue that it is of, and its vif. */
export interface FastPathQueue {
  readonly dev: NetDevice;
  readonly stats: QueueStats;
  readonly txRing: BackRing;
  readonly rxRing: BackRing;
  /** The guest's packets may be passed on as they are. */
  readonly sendsPlainly: boolean;
  /** Packets may be put on the guest's ring as they are, and none waits. */
  readonly receivesPlainly: boolean;
  /** Not 0 when GSO packets need more than an extra info. */
  readonly gsoPrefix: number;
  /** The queue that packets for a device go to, if it has one only and that has a fast path. */
  targetOf(device: NetDevice): FastPath | null;
  /** Packets were put on the rx ring: publishes them. */
  delivered(): void;
}

/**
 * The fast path of a queue: packets that need nothing but checks and copies go from its tx ring to another queue's rx ring
 * without becoming a `Packet`. What the bridge and both vifs have to say is asked once in each poll for each pair of
 * addresses, and holds for that poll.
 */
export class FastPath {
  private readonly words: Int32Array;
  private readonly targets = new Array<FastPath | null>(ROUTES).fill(null);
  /** Routes that were ever made: those behind are empty. */
  private made = 0;
  private nextRoute = 0;
  /** Number of the poll; a new block has routes of poll 0. */
  private poll = 1;
  /** The last poll that passed packets on. */
  private lastPassing = -1;
  /** Polls left that do not try, and how many the last rest had. */
  private resting = 0;
  private rest = 0;

  constructor(
    readonly block: Block,
    private readonly queue: FastPathQueue,
  ) {
    this.words = block.words;
  }

  /** Nothing more is in the ring than what it has passed on. */
  get drained(): boolean {
    return this.resting === 0 && this.words[BLOCK_STOP >>> 2] === STOP_EMPTY;
  }

  /** Passes on packets from the tx ring, up to the first one that is unusual. @returns how many */
  forward(limit: number): number {
    if (this.resting > 0) {
      this.resting--;
      if (this.resting > 0) return 0;
    }
    const { queue, words, block } = this;
    if (!queue.sendsPlainly) {
      this.takeRest();
      return 0;
    }
    this.begin();
    let done = 0;
    let bytes = 0;
    // A packet's addresses may be others each time that they are looked at: there is an end to it.
    let lookups = 0;
    do {
      done += block.module.forward(block.address, limit - done);
      bytes += words[BLOCK_TX_BYTES >>> 2];
    } while (words[BLOCK_STOP >>> 2] === STOP_ROUTE && lookups++ < limit && this.addRoute());
    if (done > 0) this.finish(done, bytes);
    else if (words[BLOCK_STOP >>> 2] !== STOP_EMPTY) this.takeRest();
    return done;
  }

  private takeRest(): void {
    this.rest = Math.min(Math.max(this.rest * 2, REST_MIN), REST_MAX);
    this.resting = this.rest + 1;
  }

  private begin(): void {
    const { words, queue } = this;
    if (this.poll === POLL_MAX) {
      // A number that comes again must not make an old route hold.
      words.fill(0, FIRST_ROUTE, FIRST_ROUTE + ROUTES * ROUTE_WORDS);
      this.poll = 0;
    }
    this.poll++;
    words[BLOCK_POLL >>> 2] = this.poll;
    words[BLOCK_TX_REQ_CONS >>> 2] = queue.txRing.reqCons;
    words[BLOCK_TX_RSP_PVT >>> 2] = queue.txRing.rspProdPvt;
    // What was used last will be now, too; polls that found nothing say nothing of it.
    for (let i = 0; i < this.made; i++) if (this.wasUsed(i, this.lastPassing)) this.confirm(i);
  }

  private wasUsed(route: number, poll: number): boolean {
    return this.words[FIRST_ROUTE + route * ROUTE_WORDS + (ROUTE_USED >>> 2)] === poll;
  }

  /** Looks up the addresses of the frame that has no route in this poll. @returns whether it has one now */
  private addRoute(): boolean {
    const { words } = this;
    const from = BLOCK_ADDRESSES >>> 2;
    let route = 0;
    while (route < this.made && !this.hasAddresses(route, from)) route++;
    if (route === this.made) {
      route = this.nextRoute;
      this.nextRoute = (route + 1) % ROUTES;
      this.made = Math.max(this.made, route + 1);
      this.close(route);
      const at = FIRST_ROUTE + route * ROUTE_WORDS;
      for (let i = 0; i < 3; i++) words[at + i] = words[from + i];
      words[at + (ROUTE_USED >>> 2)] = 0;
    }
    return this.confirm(route);
  }

  /** What came on a route in this poll is told: to whom it leads, and to the bridge. */
  private close(route: number): void {
    if (!this.wasUsed(route, this.poll)) return;
    this.targets[route]?.publish();
    const { words } = this;
    const { dev } = this.queue;
    const at = FIRST_ROUTE + route * ROUTE_WORDS;
    dev.forwarder?.came(dev, sourceHigh(words[at + 1]), sourceLow(words[at + 2]));
  }

  private hasAddresses(route: number, from: number): boolean {
    const { words } = this;
    const at = FIRST_ROUTE + route * ROUTE_WORDS;
    return (
      words[at] === words[from] && words[at + 1] === words[from + 1] && words[at + 2] === words[from + 2]
    );
  }

  /** Makes a route hold for this poll. @returns false when packets with its addresses take the other way */
  private confirm(route: number): boolean {
    const { words, poll } = this;
    const at = FIRST_ROUTE + route * ROUTE_WORDS;
    const target = this.find(words[at], words[at + 1], words[at + 2]);
    const holds =
      target !== null && target.block.module === this.block.module && !this.isMoved(route) && target.accept();
    this.targets[route] = holds ? target : null;
    words[at + (ROUTE_TARGET >>> 2)] = holds ? target.block.address : 0;
    words[at + (ROUTE_POLL >>> 2)] = holds ? poll : 0;
    return holds;
  }

  /** Whether the bridge learns from the packets of one of this poll's routes that those of the other go elsewhere. */
  private isMoved(route: number): boolean {
    const { words, poll } = this;
    for (let i = 0; i < this.made; i++) {
      const held = words[FIRST_ROUTE + i * ROUTE_WORDS + (ROUTE_POLL >>> 2)] === poll;
      if (held && (this.learns(i, route) || this.learns(route, i))) return true;
    }
    return false;
  }

  /** The source of one route is the destination of another. */
  private learns(from: number, to: number): boolean {
    const { words } = this;
    const source = FIRST_ROUTE + from * ROUTE_WORDS;
    const destination = FIRST_ROUTE + to * ROUTE_WORDS;
    return (
      sourceLow(words[source + 2]) === destinationLow(words[destination], words[destination + 1]) &&
      sourceHigh(words[source + 1]) === destinationHigh(words[destination])
    );
  }

  /** @param a @param b @param c the first 12 bytes of a frame, as they lie in memory */
  private find(a: number, b: number, c: number): FastPath | null {
    const { dev } = this.queue;
    const device =
      dev.forwarder?.route(dev, destinationHigh(a), destinationLow(a, b), sourceHigh(b), sourceLow(c)) ??
      null;
    return device === null ? null : this.queue.targetOf(device);
  }

  /** Gets ready to be given packets. @returns false when the guest cannot be given any as they are */
  private accept(): boolean {
    const { queue, words } = this;
    // Another route may have led here in this poll.
    this.publish();
    if (!queue.receivesPlainly) return false;
    const { dev, rxRing } = queue;
    const { features } = dev;
    if ((features & NETIF_F_SG) === 0) return false;
    words[BLOCK_RX_REQ_CONS >>> 2] = rxRing.reqCons;
    words[BLOCK_RX_RSP_PVT >>> 2] = rxRing.rspProdPvt;
    words[BLOCK_FRAME_MAX >>> 2] = dev.mtu + dev.hardHeaderLen + VLAN_HLEN;
    words[BLOCK_GSO_MAX >>> 2] = queue.gsoPrefix === 0 ? dev.gsoMaxSize : 0;
    words[BLOCK_OFFLOADS >>> 2] =
      ((features & NETIF_F_IP_CSUM) !== 0 ? OFFLOAD_CSUM_V4 : 0) |
      ((features & NETIF_F_IPV6_CSUM) !== 0 ? OFFLOAD_CSUM_V6 : 0) |
      ((features & NETIF_F_TSO) !== 0 ? OFFLOAD_TSO_V4 : 0) |
      ((features & NETIF_F_TSO6) !== 0 ? OFFLOAD_TSO_V6 : 0);
    return true;
  }

  private finish(packets: number, bytes: number): void {
    const { queue, words } = this;
    this.rest = 0;
    this.lastPassing = this.poll;
    queue.txRing.reqCons = words[BLOCK_TX_REQ_CONS >>> 2];
    const { stats } = queue.dev;
    stats.rxPackets += packets;
    stats.rxBytes += bytes;
    this.countFragments();
    for (let i = 0; i < this.made; i++) this.close(i);
  }

  private countFragments(): void {
    const { words, queue } = this;
    const { stats } = queue;
    const fragmented = words[BLOCK_TX_FRAGMENTED >>> 2];
    if (fragmented === 0) return;
    stats.txZerocopySent += fragmented;
    stats.txZerocopySuccess += fragmented;
    stats.txFragOverflow += words[BLOCK_TX_OVERFLOWED >>> 2];
    words[BLOCK_TX_FRAGMENTED >>> 2] = 0;
    words[BLOCK_TX_OVERFLOWED >>> 2] = 0;
  }

  /** Tells the guest of the packets that it was given. */
  private publish(): void {
    const { queue, words } = this;
    const packets = words[BLOCK_RX_PACKETS >>> 2];
    if (packets === 0) return;
    const { stats } = queue.dev;
    stats.txPackets += packets;
    stats.txBytes += words[BLOCK_RX_BYTES >>> 2];
    words[BLOCK_RX_PACKETS >>> 2] = 0;
    words[BLOCK_RX_BYTES >>> 2] = 0;
    queue.rxRing.reqCons = words[BLOCK_RX_REQ_CONS >>> 2];
    queue.rxRing.rspProdPvt = words[BLOCK_RX_RSP_PVT >>> 2];
    queue.delivered();
  }
}

/** @param a the first of the words of a frame's addresses */
function destinationHigh(a: number): number {
  return ((a & 0xff) << 8) | ((a >>> 8) & 0xff);
}

function destinationLow(a: number, b: number): number {
  return (((a >>> 16) & 0xff) << 24) | ((a >>> 24) << 16) | ((b & 0xff) << 8) | ((b >>> 8) & 0xff);
}

/** @param b the second */
function sourceHigh(b: number): number {
  return (((b >>> 16) & 0xff) << 8) | (b >>> 24);
}

/** @param c the third */
function sourceLow(c: number): number {
  return ((c & 0xff) << 24) | (((c >>> 8) & 0xff) << 16) | (((c >>> 16) & 0xff) << 8) | (c >>> 24);
}
