import { ErrnoError } from '../abi/errno.js';
import type { Memory } from '../platform/memory.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { DomainMemory } from '../platform/platform.js';
import type { PagePool } from './page-pool.js';

/** Bytes of the buffer that each packet owns: room for a header in front, then the linear data. */
export const PACKET_BUFFER_SIZE = 512;
/** Bytes left free before the data, for a virtio-net header or a VLAN tag. */
export const PACKET_HEADROOM = 32;
/** The longest linear part that the packet's own buffer takes. */
export const PACKET_LINEAR_MAX = PACKET_BUFFER_SIZE - PACKET_HEADROOM;
/** Fragments a packet can have: 19 slots are the most that a frontend may send (netback's limit). */
export const MAX_FRAGMENTS = 20;
/** Bytes in memory for a packet's fragments: five arrays of MAX_FRAGMENTS words. */
const FRAGMENTS_SIZE = 512;
/** `source` of a fragment in local memory; otherwise it is the domid whose grant the fragment is. */
export const FRAGMENT_LOCAL = -1;

/** What is known of a packet's transport checksum; the values are Linux's ip_summed. */
export const CHECKSUM_NONE = 0;
export const CHECKSUM_UNNECESSARY = 1;
export const CHECKSUM_PARTIAL = 3;

export const GSO_NONE = 0;
export const GSO_TCPV4 = 1;
export const GSO_TCPV6 = 2;
/** What a driver says to `setupGso` whose peer does not tell the type; never a packet's. */
export const GSO_AS_HEADERS = -1;

/** Who must learn that the last user of a packet's data is done. */
export interface PacketOwner {
  packetDone(packet: Packet): void;
}

/**
 * A network packet: our sk_buff. A linear part in local memory, in which headers are read, and up to
 * MAX_FRAGMENTS fragments behind it, each in local memory or still in another domain's granted page.
 *
 * Packets are pooled: who holds a reference calls `release` once, and the last release returns the pages,
 * tells the owner, and puts the packet back. A packet with more than one reference is read-only.
 */
export class Packet {
  /** Byte address of the first linear byte. */
  data = 0;
  /** Bytes in the linear part. */
  linear = 0;
  /** Bytes in all: the linear part and every fragment. */
  length = 0;

  fragments = 0;
  /** Per fragment: FRAGMENT_LOCAL, or the domid that granted it. */
  readonly source: Int32Array;
  /**
   * Per fragment: page number in local memory, or grant reference, as int32: what is read from a Uint32Array may
   * become a floating-point number.
   */
  readonly ref: Int32Array;
  readonly offset: Int32Array;
  readonly size: Int32Array;
  /** Per local fragment: its index in `pool`, or -1 when the page is not the packet's to free. */
  readonly poolIndex: Int32Array;
  /** The pool that local pages of this packet come from, the linear part's too. */
  pool: PagePool | null = null;
  /** Index in `pool` of the page that holds the linear part, or -1 when that is the packet's own buffer. */
  linearPoolIndex = -1;

  checksum = CHECKSUM_NONE;
  /** For CHECKSUM_PARTIAL only: offset from `data` where the sum starts, and where in that it is stored. */
  csumStart = 0;
  csumOffset = 0;
  gsoType = GSO_NONE;
  /** Payload bytes of each segment; means nothing without a GSO type. */
  gsoSize = 0;
  /** A NETIF hash type's bit index, or -1 without a hash. */
  hashType = -1;
  hash = 0;
  /** Priority of the sender, 0 … 15 (TC_PRIO). */
  priority = 0;
  /** The queue that it came from or goes to. */
  queue = 0;

  owner: PacketOwner | null = null;
  /** For the owner's use. */
  ownerCookie = 0;
  /** The packet that keeps the data alive which fragments of this one point into; held until the release. */
  parent: Packet | null = null;
  /** Set when a grant copy failed to fetch this packet's fragments: drop it, its data cannot be read. */
  failed = false;
  /** For whoever has the packet in a list. */
  next: Packet | null = null;
  references = 0;

  constructor(
    readonly memory: Memory,
    /** Byte address of the packet's own buffer. */
    readonly buffer: number,
    /**
     * Byte address of `source`, `ref`, `offset`, `size` and `poolIndex`, one behind the other: in memory, where drivers' code
     * in WebAssembly finds them.
     */
    readonly fragmentsAt: number,
    private readonly home: PacketPool,
  ) {
    const { byteOffset } = memory.u8;
    const array = (i: number) =>
      new Int32Array(memory.buffer, byteOffset + fragmentsAt + i * MAX_FRAGMENTS * 4, MAX_FRAGMENTS);
    this.source = array(0);
    this.ref = array(1);
    this.offset = array(2);
    this.size = array(3);
    this.poolIndex = array(4);
  }

  /** True when every byte is in local memory. */
  get isLocal(): boolean {
    for (let i = 0; i < this.fragments; i++) if (this.source[i] !== FRAGMENT_LOCAL) return false;
    return true;
  }

  /** Appends a fragment. @throws RangeError beyond MAX_FRAGMENTS */
  addFragment(source: number, ref: number, offset: number, size: number, poolIndex = -1): void {
    const i = this.fragments;
    if (i === MAX_FRAGMENTS) throw new RangeError(`a packet has at most ${MAX_FRAGMENTS} fragments`);
    this.source[i] = source;
    this.ref[i] = ref;
    this.offset[i] = offset;
    this.size[i] = size;
    this.poolIndex[i] = poolIndex;
    this.fragments = i + 1;
    this.length += size;
  }

  hold(): void {
    this.references++;
  }

  release(): void {
    if (--this.references > 0) return;
    if (this.references < 0) throw new Error('a packet was released more often than it was held');
    this.detach();
    this.freePages();
    this.home.put(this);
  }

  /** Lets go of the owner and the parent: no fragment of this packet points into their pages any more. */
  detach(): void {
    const { owner, parent } = this;
    if (owner !== null) {
      this.owner = null;
      owner.packetDone(this);
    }
    if (parent !== null) {
      this.parent = null;
      parent.release();
    }
  }

  /** Gives the pages back that the packet took from `pool`; it has no fragments afterwards. */
  freePages(): void {
    const { pool } = this;
    if (pool !== null) {
      for (let i = 0; i < this.fragments; i++) {
        if (this.source[i] === FRAGMENT_LOCAL && this.poolIndex[i] >= 0) pool.free(this.poolIndex[i]);
      }
      if (this.linearPoolIndex >= 0) pool.free(this.linearPoolIndex);
    }
    this.fragments = 0;
    this.linearPoolIndex = -1;
    this.pool = null;
  }

  /**
   * Makes a pooled packet new again. The release has taken its fragments, pages, owner and parent from it, and
   * what belongs to a checksum, GSO or a hash means nothing without one.
   */
  reset(): void {
    this.data = this.buffer + PACKET_HEADROOM;
    this.linear = 0;
    this.length = 0;
    this.checksum = CHECKSUM_NONE;
    this.gsoType = GSO_NONE;
    this.hashType = -1;
    this.priority = 0;
    this.queue = 0;
    this.failed = false;
    this.next = null;
    this.references = 1;
  }
}

/** Packets to reuse, with their buffers in the domain's own pages. */
export class PacketPool {
  private freeList: Packet | null = null;
  /** Pages that buffers were made in; they are kept. */
  pages = 0;
  /** Packets handed out and not yet released. */
  used = 0;

  constructor(private readonly memory: DomainMemory) {}

  /** @throws ENOMEM when the domain's memory is used up */
  get(): Packet {
    let packet = this.freeList;
    if (packet === null) packet = this.grow();
    this.freeList = packet.next;
    this.used++;
    packet.reset();
    return packet;
  }

  /** `get`, but null when the domain's memory is used up: for the data path, which drops then. */
  tryGet(): Packet | null {
    if (this.freeList !== null) return this.get();
    try {
      return this.get();
    } catch (error) {
      if (error instanceof ErrnoError) return null;
      throw error;
    }
  }

  /** Takes a packet back; only `Packet.release` calls it. */
  put(packet: Packet): void {
    packet.next = this.freeList;
    this.freeList = packet;
    this.used--;
  }

  private grow(): Packet {
    const page = this.memory.allocPage();
    this.pages++;
    let first: Packet | null = this.freeList;
    const each = PACKET_BUFFER_SIZE + FRAGMENTS_SIZE;
    for (let at = PAGE_SIZE - each; at >= 0; at -= each) {
      const buffer = (page << PAGE_SHIFT) + at;
      const packet = new Packet(this.memory.memory, buffer, buffer + PACKET_BUFFER_SIZE, this);
      packet.next = first;
      first = packet;
    }
    return first!;
  }
}
