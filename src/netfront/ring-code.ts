import type { FrontRing } from '../abi/ring.js';
import { GSO_NONE, MAX_FRAGMENTS, type Packet } from '../net/packet.js';
import type { PagePool } from '../net/page-pool.js';
import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { DomainMemory, Platform } from '../platform/platform.js';
import {
  RING_BACKEND,
  RING_BATCH,
  RING_BROKEN,
  RING_BYTES,
  RING_DATA,
  RING_DONE,
  RING_ENTRY,
  RING_EXTRAS,
  RING_FLAGS,
  RING_FRAGMENTS,
  RING_FRAME,
  RING_FREE_ID,
  RING_FREE_IDS,
  RING_GREFS,
  RING_GSO_SIZE,
  RING_GSO_TYPE,
  RING_INDEX,
  RING_LENGTH,
  RING_OFFSET,
  RING_PAGE,
  RING_POSTED,
  RING_RECORD,
  RING_RX,
  RING_RX_REQ_PROD,
  RING_RX_RSP_CONS,
  RING_SEND,
  RING_SHORT_FLAGS,
  RING_SIZE,
  RING_SPARE,
  RING_TO_POST,
  RING_TX,
  RING_TX_REQ_PROD,
  RING_TX_RSP_CONS,
  RING_TX_SLOTS,
} from './ring-block.js';
import { MODULE } from './wasm/rings.bytes.js';

interface Exports {
  reclaim(block: number, rspProd: number): number;
  send(
    block: number,
    fragments: number,
    count: number,
    offset: number,
    length: number,
    flags: number,
    gso: number,
  ): number;
  receive(block: number, posts: number, rspProd: number, limit: number): number;
  receiveLong(block: number, posts: number, fragments: number, rspProd: number): number;
  post(block: number, posts: number, count: number): void;
}

const SLOTS = 256;

/** Packets of one slot: index of the page, byte address, bytes, and the response's flags. */
export type Shorts = Readonly<Record<'index' | 'data' | 'bytes' | 'flags', Int32Array>>;

/** What a queue knows of its slots, in arrays; those of `RingCode` lie where its code finds them. */
export class SlotBooks {
  /** Ids that no slot has, the next one last. */
  readonly freeIds: Uint16Array;
  /** By id of a tx slot: SLOT_*, and the id of its packet's first slot, which counts those that are unanswered. */
  readonly slots: Int32Array;
  /** By id of a frame's slot: the index of its page. */
  readonly frames: Uint16Array;
  /** By slot of the rx ring: the index of the page posted there, or -1, and its grant reference. */
  readonly posted: Int32Array;
  readonly grefs: Int32Array;

  /** @param block @param posts where they lie in `memory`; by default they are arrays of their own */
  constructor(memory: Memory | null = null, block = 0, posts = 0) {
    const buffer = memory?.buffer ?? new ArrayBuffer(2 * (1 << PAGE_SHIFT));
    const base = memory?.u8.byteOffset ?? 0;
    const first = base + block;
    const second = memory === null ? 1 << PAGE_SHIFT : base + posts;
    this.freeIds = new Uint16Array(buffer, first + RING_FREE_ID, SLOTS);
    this.slots = new Int32Array(buffer, first + RING_TX_SLOTS, SLOTS);
    this.frames = new Uint16Array(buffer, first + RING_FRAME, SLOTS);
    this.posted = new Int32Array(buffer, second + RING_POSTED, SLOTS).fill(-1);
    this.grefs = new Int32Array(buffer, second + RING_GREFS, SLOTS);
    for (let i = 0; i < SLOTS; i++) this.freeIds[i] = SLOTS - 1 - i;
  }
}

/**
 * A queue's loops over the slots of its rings in WebAssembly (wasm/rings.ts), for rings in memory that has it, where a
 * reference can be granted for one page and then another.
 */
export class RingCode {
  readonly books: SlotBooks;
  /** What `receive` has taken. */
  readonly shorts: Shorts;
  /** Grant references of the pages of the packet that `send` is called for: its linear part's, then its fragments'. */
  readonly grefs: Int32Array;
  /** What `reclaim` found to be answered: first ids of packets, and indexes of frames' pages with DONE_FRAME. */
  readonly done: Uint16Array;
  private readonly words: Int32Array;
  private readonly toPost: Int32Array;
  /** Guest frame numbers by index of the pool's pages. */
  private readonly gfns: number[] = [];
  private readonly block: number;
  private readonly posts: number;

  /** @returns null where the platform has no WebAssembly, or another grant table @throws ENOMEM */
  static make(platform: Platform, backendId: number, tx: FrontRing, rx: FrontRing): RingCode | null {
    const { memory } = platform.memory;
    const { wasm } = platform.grants;
    if (memory.instantiate === null || wasm === null) return null;
    if (!platform.grants.regrantable || !wasm.regrantable) return null;
    if (tx.size !== SLOTS || rx.size !== SLOTS) return null;
    const pages: number[] = [];
    try {
      while (pages.length < 2) pages.push(platform.memory.allocPage());
    } catch (error) {
      for (const page of pages) platform.memory.freePage(page);
      throw error;
    }
    const exports = instanceOf(memory, wasm.functions);
    const code = new RingCode(platform.memory, exports, pages);
    code.words[RING_RECORD >>> 2] = wasm.record;
    code.words[RING_BACKEND >>> 2] = backendId;
    code.words[RING_TX >>> 2] = tx.address;
    code.words[RING_RX >>> 2] = rx.address;
    return code;
  }

  private constructor(
    private readonly memory: DomainMemory,
    private readonly exports: Exports,
    private readonly pages: readonly number[],
  ) {
    const all = memory.memory;
    [this.block, this.posts] = pages.map(page => page << PAGE_SHIFT);
    const array = (at: number, words: number) => new Int32Array(all.buffer, all.u8.byteOffset + at, words);
    this.books = new SlotBooks(all, this.block, this.posts);
    this.words = array(this.block, RING_TX_SLOTS >>> 2);
    this.done = new Uint16Array(all.buffer, all.u8.byteOffset + this.block + RING_DONE, SLOTS);
    this.shorts = {
      index: array(this.block + RING_INDEX, RING_BATCH),
      data: array(this.block + RING_DATA, RING_BATCH),
      bytes: array(this.block + RING_LENGTH, RING_BATCH),
      flags: array(this.block + RING_SHORT_FLAGS, RING_BATCH),
    };
    this.grefs = array(this.block + RING_SEND, MAX_FRAGMENTS + 1);
    this.toPost = array(this.posts + RING_TO_POST, (RING_BATCH * RING_ENTRY) >>> 2);
  }

  destroy(): void {
    for (const page of this.pages) this.memory.freePage(page);
  }

  get extras(): number {
    return this.words[RING_EXTRAS >>> 2];
  }

  /** Id of the response that `reclaim` found to answer nothing; -1. */
  get broken(): number {
    return this.words[RING_BROKEN >>> 2];
  }

  /**
   * Takes the tx responses up to `rspProd`.
   * @param extras extra infos that are unanswered @param freeIds how many ids are free; both are brought up to date
   * @returns how many packets and frames are answered: `done`
   */
  reclaim(ring: FrontRing, rspProd: number, extras: number, freeIds: number): number {
    const { words } = this;
    words[RING_EXTRAS >>> 2] = extras;
    words[RING_FREE_IDS >>> 2] = freeIds;
    words[RING_TX_RSP_CONS >>> 2] = ring.rspCons;
    const done = this.exports.reclaim(this.block, rspProd);
    ring.rspCons = words[RING_TX_RSP_CONS >>> 2];
    return done;
  }

  /**
   * Writes the requests of a packet with a linear part, which there must be room for.
   * @param flags that tell of its checksum @param extras @param freeIds as `reclaim`
   * @returns the id of its first slot
   */
  send(ring: FrontRing, packet: Packet, flags: number, extras: number, freeIds: number): number {
    const { words } = this;
    const { gsoType, gsoSize } = packet;
    words[RING_EXTRAS >>> 2] = extras;
    words[RING_FREE_IDS >>> 2] = freeIds;
    words[RING_TX_REQ_PROD >>> 2] = ring.reqProdPvt;
    const first = this.exports.send(
      this.block,
      packet.fragmentsAt,
      packet.fragments,
      packet.data & (PAGE_SIZE - 1),
      packet.length,
      flags,
      gsoType === GSO_NONE ? 0 : gsoSize | (gsoType << 16),
    );
    ring.reqProdPvt = words[RING_TX_REQ_PROD >>> 2];
    return first;
  }

  get freeIds(): number {
    return this.words[RING_FREE_IDS >>> 2];
  }

  /** Takes packets of one slot, up to RING_BATCH. @returns how many, in `shorts` */
  receive(ring: FrontRing, rspProd: number, limit: number): number {
    const { words } = this;
    words[RING_RX_RSP_CONS >>> 2] = ring.rspCons;
    const count = this.exports.receive(this.block, this.posts, rspProd, Math.min(limit, RING_BATCH));
    ring.rspCons = words[RING_RX_RSP_CONS >>> 2];
    return count;
  }

  /**
   * Takes a packet of several slots.
   * @param pool where its pages are from @param spare gets the index of the page of an extra info's slot
   * @returns false, having done nothing, for one that is not usual, or not sound
   */
  receiveLong(
    ring: FrontRing,
    rspProd: number,
    packet: Packet,
    pool: PagePool,
    spare: (index: number) => void,
  ): boolean {
    const { words } = this;
    words[RING_RX_RSP_CONS >>> 2] = ring.rspCons;
    if (this.exports.receiveLong(this.block, this.posts, packet.fragmentsAt, rspProd) === 0) return false;
    ring.rspCons = words[RING_RX_RSP_CONS >>> 2];
    const index = words[RING_PAGE >>> 2];
    packet.pool = pool;
    packet.linearPoolIndex = index;
    packet.data = (pool.pages[index] << PAGE_SHIFT) + words[RING_OFFSET >>> 2];
    packet.linear = words[RING_BYTES >>> 2];
    packet.length = words[RING_SIZE >>> 2];
    packet.fragments = words[RING_FRAGMENTS >>> 2];
    if (words[RING_SPARE >>> 2] >= 0) spare(words[RING_SPARE >>> 2]);
    return true;
  }

  /** Of the packet that `receiveLong` has taken. */
  get flags(): number {
    return this.words[RING_FLAGS >>> 2];
  }

  get gsoType(): number {
    return this.words[RING_GSO_TYPE >>> 2];
  }

  get gsoSize(): number {
    return this.words[RING_GSO_SIZE >>> 2];
  }

  /**
   * Posts pages of the pool until `until`, or as many as there are.
   * @param clean makes each all zero: whoever had it before may have written to it
   */
  post(ring: FrontRing, pool: PagePool, until: number, clean: boolean): void {
    for (let left = (until - ring.reqProdPvt) | 0; left > 0; left -= RING_BATCH) {
      const wanted = Math.min(left, RING_BATCH);
      if (this.postSome(ring, pool, wanted, clean) < wanted) return;
    }
  }

  /** @returns how many it posted */
  private postSome(ring: FrontRing, pool: PagePool, wanted: number, clean: boolean): number {
    const { words, toPost } = this;
    let count = 0;
    for (; count < wanted; count++) {
      const index = pool.alloc();
      if (index < 0) break;
      if (index >= this.gfns.length) this.noteFrames(pool, index);
      const page = pool.pages[index];
      if (clean) this.memory.memory.zero(page << PAGE_SHIFT, PAGE_SIZE);
      toPost[3 * count] = index;
      toPost[3 * count + 1] = this.gfns[index];
      toPost[3 * count + 2] = page;
    }
    words[RING_RX_REQ_PROD >>> 2] = ring.reqProdPvt;
    this.exports.post(this.block, this.posts, count);
    ring.reqProdPvt = words[RING_RX_REQ_PROD >>> 2];
    return count;
  }

  /** A pool makes its pages in the order of their indexes. */
  private noteFrames(pool: PagePool, last: number): void {
    for (let index = this.gfns.length; index <= last; index++)
      this.gfns.push(this.memory.gfn(pool.pages[index]));
  }
}

/** One instance for each memory. */
const instances = new WeakMap<Memory, Exports>();

function instanceOf(memory: Memory, grants: Readonly<Record<string, unknown>>): Exports {
  const known = instances.get(memory);
  if (known !== undefined) return known;
  const made = memory.instantiate!(MODULE, { grants }) as Exports;
  instances.set(memory, made);
  return made;
}
