import { GNTST } from '../abi/grant-table.js';
import { COPY_LOCAL, CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { Grants } from '../platform/platform.js';
import type { Packet, PacketPool } from './packet.js';
import {
  FRAGMENT_LOCAL,
  MAX_FRAGMENTS,
  PACKET_BUFFER_SIZE,
  PACKET_HEADROOM,
  PACKET_LINEAR_MAX,
} from './packet.js';
import type { PagePool } from './page-pool.js';

/** Packets whose copies go into one batch. */
const BATCH_PACKETS = 32;
/** One packet must always fit: a fragment takes a copy, one that is larger than a page another. */
const BATCH_COPIES = 512;

/** Fetch only what lies in other domains. */
const FOREIGN = 0;
/** Fetch everything that is not the packet's own to free. */
const NOT_OWNED = 1;

/** The work space of a batch, which all kernels share: every call leaves it as empty as it found it. */
const SCRATCH = {
  batch: new CopyBatch(BATCH_COPIES),
  pending: [] as Packet[],
  firstCopy: new Int32Array(BATCH_PACKETS + 1),
  /** The layout that each pending packet gets when its copies worked. */
  newCount: new Int32Array(BATCH_PACKETS),
  newRef: new Uint32Array(BATCH_PACKETS * MAX_FRAGMENTS),
  newOffset: new Int32Array(BATCH_PACKETS * MAX_FRAGMENTS),
  newSize: new Int32Array(BATCH_PACKETS * MAX_FRAGMENTS),
  newPoolIndex: new Int32Array(BATCH_PACKETS * MAX_FRAGMENTS),
  /** Whether the data goes behind the linear part, into the packet's own buffer. */
  intoHead: new Uint8Array(BATCH_PACKETS),
  /** Whether a new fragment's page was taken for it, or was the packet's before. */
  isNew: new Uint8Array(BATCH_PACKETS * MAX_FRAGMENTS),
};

/**
 * Brings packet data home: fragments that are grants of another domain go into pages of a pool, as many
 * whole ones into a page as fit, by one batch of grant copies for many packets.
 */
export class Materialiser {
  private readonly batch = SCRATCH.batch;
  private readonly pending = SCRATCH.pending;
  private readonly firstCopy = SCRATCH.firstCopy;
  private readonly newCount = SCRATCH.newCount;
  private readonly newRef = SCRATCH.newRef;
  private readonly newOffset = SCRATCH.newOffset;
  private readonly newSize = SCRATCH.newSize;
  private readonly newPoolIndex = SCRATCH.newPoolIndex;
  private readonly intoHead = SCRATCH.intoHead;
  private readonly isNew = SCRATCH.isNew;

  /**
   * @param pool where pages come from for a packet that has no pool of its own yet
   */
  constructor(
    private readonly grants: Grants,
    private readonly packets: PacketPool,
    readonly pool: PagePool,
  ) {}

  /**
   * Makes every byte of `count` packets local. A packet for which there is no page, or whose copy the
   * hypervisor refused, gets `failed` set and keeps the fragments it had. The bytes stay the same, so this
   * may be done to packets that others hold too. The owner of a packet that only the caller holds is told
   * at once.
   * @returns how many packets failed
   */
  materialise(packets: readonly Packet[], count = packets.length): number {
    let failed = 0;
    for (let i = 0; i < count; i++) {
      const packet = packets[i];
      if (packet.isLocal) continue;
      if (!this.add(packet, FOREIGN)) failed++;
    }
    return failed + this.flush();
  }

  /** `materialise` for one packet. @returns false when it failed */
  materialiseOne(packet: Packet): boolean {
    if (packet.isLocal) return true;
    if (!this.add(packet, FOREIGN)) return false;
    return this.flush() === 0;
  }

  /**
   * Makes a packet independent of other domains and of its owner, so that it can wait in a queue without
   * holding anyone's slots: its data is in pages of ours, and the owner has been told.
   * Takes the caller's reference.
   * @returns a packet with one reference (another one when others hold the given one too), or null when
   *   that failed
   */
  own(packet: Packet): Packet | null {
    if (packet.references > 1) {
      const copy = this.share(packet);
      if (copy === null) return null;
      packet = copy;
    }
    if (isIndependent(packet)) return packet;
    if (!this.add(packet, NOT_OWNED) || this.flush() !== 0) {
      packet.release();
      return null;
    }
    packet.detach();
    return packet;
  }

  /**
   * A packet with a head of its own over the same fragments; the given one is its parent and is let go of
   * with it. Takes the caller's reference.
   * @returns null when a packet has too many fragments to be shared, or there is no memory; the reference is
   *   gone then too
   */
  share(packet: Packet): Packet | null {
    const copy = this.packets.tryGet();
    if (copy === null) {
      packet.release();
      return null;
    }
    const inHead = Math.min(packet.linear, PACKET_LINEAR_MAX);
    const rest = packet.linear - inHead;
    if (rest > 0 && packet.fragments === MAX_FRAGMENTS) {
      copy.release();
      packet.release();
      return null;
    }
    packet.memory.copy(copy.buffer + PACKET_HEADROOM, packet.data, inHead);
    copy.linear = inHead;
    copy.length = inHead;
    if (rest > 0) {
      const at = packet.data + inHead;
      copy.addFragment(FRAGMENT_LOCAL, at >>> PAGE_SHIFT, at & (PAGE_SIZE - 1), rest);
    }
    for (let i = 0; i < packet.fragments; i++) {
      copy.addFragment(packet.source[i], packet.ref[i], packet.offset[i], packet.size[i]);
    }
    copyMetadata(packet, copy);
    copy.parent = packet;
    return copy;
  }

  /**
   * A packet whose head may be changed: the given one when nobody else holds it, otherwise one that shares
   * its data. Takes the caller's reference. @returns null as `share`
   */
  unshare(packet: Packet): Packet | null {
    return packet.references === 1 ? packet : this.share(packet);
  }

  /**
   * Moves bytes from the fragments to the linear part until that has `length` of them (pskb_may_pull). The
   * packet must be the caller's to change.
   * @returns false when the packet is shorter, when the linear part cannot hold that much, or when the data
   *   could not be fetched
   */
  pull(packet: Packet, length: number): boolean {
    if (packet.linear >= length) return true;
    if (length > packet.length) return false;
    const limit =
      packet.linearPoolIndex < 0
        ? packet.buffer + PACKET_BUFFER_SIZE - packet.data
        : PAGE_SIZE - (packet.data & (PAGE_SIZE - 1));
    if (length > limit || !this.materialiseOne(packet)) return false;
    let emptied = 0;
    while (packet.linear < length) {
      const missing = length - packet.linear;
      const take = Math.min(missing, packet.size[emptied]);
      packet.memory.copy(
        packet.data + packet.linear,
        (packet.ref[emptied] << PAGE_SHIFT) + packet.offset[emptied],
        take,
      );
      packet.linear += take;
      packet.offset[emptied] += take;
      packet.size[emptied] -= take;
      if (packet.size[emptied] === 0) emptied++;
    }
    if (emptied > 0) dropFragments(packet, emptied);
    return true;
  }

  /**
   * Puts all data into the linear part, for a device without scatter-gather. The packet must be the
   * caller's to change.
   * @returns false when it has more than a page of data, or there is no page
   */
  linearise(packet: Packet): boolean {
    if (packet.fragments === 0) return true;
    if (!this.materialiseOne(packet)) return false;
    if (packet.linearPoolIndex < 0 && packet.length > packet.buffer + PACKET_BUFFER_SIZE - packet.data) {
      if (packet.length > PAGE_SIZE - PACKET_HEADROOM) return false;
      const pool = packet.pool ?? this.pool;
      const index = pool.alloc();
      if (index < 0) return false;
      packet.pool = pool;
      const data = (pool.pages[index] << PAGE_SHIFT) + PACKET_HEADROOM;
      packet.memory.copy(data, packet.data, packet.linear);
      packet.data = data;
      packet.linearPoolIndex = index;
    }
    return this.pull(packet, packet.length);
  }

  /** Queues the copies of one packet. @returns false, with `failed` set, when there are no pages for it */
  private add(packet: Packet, which: number): boolean {
    if (this.pending.length === BATCH_PACKETS || this.batch.free < 2 * MAX_FRAGMENTS) this.flush();
    const { batch } = this;
    const pool = packet.pool ?? this.pool;
    const slot = this.pending.length;
    const base = slot * MAX_FRAGMENTS;
    const first = batch.count;
    this.intoHead[slot] = 0;
    if (this.addIntoHead(packet, slot)) return true;
    let made = 0;
    /** The entry that copied data is being appended to, or -1. */
    let open = -1;
    for (let i = 0; i < packet.fragments; i++) {
      const local = packet.source[i] === FRAGMENT_LOCAL;
      if (local && (which === FOREIGN || packet.poolIndex[i] >= 0)) {
        const entry = base + made++;
        this.newRef[entry] = packet.ref[i];
        this.newOffset[entry] = packet.offset[i];
        this.newSize[entry] = packet.size[i];
        this.newPoolIndex[entry] = packet.poolIndex[i];
        this.isNew[entry] = 0;
        open = -1;
        continue;
      }
      let offset = packet.offset[i];
      let left = packet.size[i];
      while (left > 0) {
        // A fragment that does not fit behind the one before it begins a page: one copy for it, not two.
        const room = open < 0 ? 0 : PAGE_SIZE - this.newSize[open];
        if (room === 0 || (left > room && left <= PAGE_SIZE)) {
          const index = made === MAX_FRAGMENTS ? -1 : pool.alloc();
          if (index < 0) {
            this.giveBack(base, made, pool);
            batch.count = first;
            packet.failed = true;
            return false;
          }
          open = base + made++;
          this.newRef[open] = pool.pages[index];
          this.newOffset[open] = 0;
          this.newSize[open] = 0;
          this.newPoolIndex[open] = index;
          this.isNew[open] = 1;
        }
        const at = this.newSize[open];
        const take = Math.min(left, PAGE_SIZE - at);
        const from = local ? COPY_LOCAL : packet.source[i];
        batch.add(from, packet.ref[i], offset, COPY_LOCAL, this.newRef[open], at, take);
        this.newSize[open] = at + take;
        offset += take;
        left -= take;
      }
    }
    this.newCount[slot] = made;
    this.firstCopy[slot] = first;
    this.pending.push(packet);
    return true;
  }

  /** A packet that is small as a whole needs no page. @returns false when this one is not such a packet */
  private addIntoHead(packet: Packet, slot: number): boolean {
    if (packet.references !== 1 || packet.linearPoolIndex >= 0) return false;
    if (packet.length > packet.buffer + PACKET_BUFFER_SIZE - packet.data) return false;
    for (let i = 0; i < packet.fragments; i++) if (packet.poolIndex[i] >= 0) return false;
    const { batch } = this;
    this.firstCopy[slot] = batch.count;
    this.intoHead[slot] = 1;
    let to = packet.data + packet.linear;
    for (let i = 0; i < packet.fragments; i++) {
      const size = packet.size[i];
      // A packet's buffer lies in one page.
      const at = to & (PAGE_SIZE - 1);
      batch.add(packet.source[i], packet.ref[i], packet.offset[i], COPY_LOCAL, to >>> PAGE_SHIFT, at, size);
      to += size;
    }
    this.pending.push(packet);
    return true;
  }

  private giveBack(base: number, made: number, pool: PagePool): void {
    for (let entry = base; entry < base + made; entry++) {
      if (this.isNew[entry] === 1) pool.free(this.newPoolIndex[entry]);
    }
  }

  /** Does the queued copies and gives each packet its new fragments. @returns how many packets failed */
  private flush(): number {
    const { batch, pending } = this;
    if (pending.length === 0) return 0;
    this.grants.copy(batch);
    let failed = 0;
    this.firstCopy[pending.length] = batch.count;
    for (let slot = 0; slot < pending.length; slot++) {
      const packet = pending[slot];
      const pool = packet.pool ?? this.pool;
      const base = slot * MAX_FRAGMENTS;
      const made = this.newCount[slot];
      let okay = true;
      for (let i = this.firstCopy[slot]; i < this.firstCopy[slot + 1]; i++) {
        if (batch.status(i) !== GNTST.okay) okay = false;
      }
      if (!okay) {
        if (this.intoHead[slot] === 0) this.giveBack(base, made, pool);
        packet.failed = true;
        failed++;
        continue;
      }
      if (this.intoHead[slot] === 1) {
        packet.linear = packet.length;
        packet.fragments = 0;
        packet.detach();
        continue;
      }
      for (let i = 0; i < made; i++) {
        packet.source[i] = FRAGMENT_LOCAL;
        packet.ref[i] = this.newRef[base + i];
        packet.offset[i] = this.newOffset[base + i];
        packet.size[i] = this.newSize[base + i];
        packet.poolIndex[i] = this.newPoolIndex[base + i];
      }
      packet.fragments = made;
      packet.pool = pool;
      if (packet.references === 1 && ownsFragments(packet)) packet.detach();
    }
    pending.length = 0;
    batch.clear();
    return failed;
  }
}

function ownsFragments(packet: Packet): boolean {
  for (let i = 0; i < packet.fragments; i++) if (packet.poolIndex[i] < 0) return false;
  return true;
}

/** True when nobody outside waits for the packet: it and its parents are local and have no owner. */
function isIndependent(packet: Packet): boolean {
  for (let p: Packet | null = packet; p !== null; p = p.parent) {
    if (p.owner !== null || !p.isLocal) return false;
  }
  return true;
}

/** Copies all that a packet says about itself, but not its data. */
export function copyMetadata(from: Packet, to: Packet): void {
  to.checksum = from.checksum;
  to.csumStart = from.csumStart;
  to.csumOffset = from.csumOffset;
  to.gsoType = from.gsoType;
  to.gsoSize = from.gsoSize;
  to.hashType = from.hashType;
  to.hash = from.hash;
  to.priority = from.priority;
  to.queue = from.queue;
}

/** Removes the first fragments, which have been emptied, and frees their pages. */
function dropFragments(packet: Packet, count: number): void {
  for (let i = 0; i < count; i++) if (packet.poolIndex[i] >= 0) packet.pool!.free(packet.poolIndex[i]);
  const left = packet.fragments - count;
  packet.source.copyWithin(0, count);
  packet.ref.copyWithin(0, count);
  packet.offset.copyWithin(0, count);
  packet.size.copyWithin(0, count);
  packet.poolIndex.copyWithin(0, count);
  packet.fragments = left;
}
