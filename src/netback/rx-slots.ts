import {
  gsoExtraWord0,
  gsoExtraWord1,
  hashExtraWord0,
  NETIF_RSP_ERROR,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_GSO_PREFIX,
  NETRXF_MORE_DATA,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_NR_SLOTS_MIN,
  xdpExtraWord0,
} from '../abi/netif.js';
import type { BackRing } from '../abi/ring.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, FRAGMENT_LOCAL, GSO_NONE, type Packet } from '../net/packet.js';
import { COPY_LOCAL, type CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { StaticGrants } from './static-grants.js';

/**
 * The steps from a packet to an rx ring, the mirror of tx-slots.ts.
 *
 *     packet → rxSlotsNeeded → planRx → copy batch → … → respondRx → responses
 */

/** Data slots that every frontend takes of a packet. A 64 KiB packet has 16, 17 with a VLAN tag. */
export const RX_DATA_SLOTS_MAX = XEN_NETIF_NR_SLOTS_MIN;
/** Data slots and one for each of the three extra infos, of which GSO's can be a prefix. */
const RX_SLOTS_MAX = RX_DATA_SLOTS_MAX + 3;
/** The headroom that pages really get at most: they must have room for data, too. The extra info tells it. */
export const XDP_HEADROOM_MAX = PAGE_SIZE / 2;

/** Slots without data: of a packet's GSO, its hash when the frontend wants that, and the XDP headroom. */
function extraInfos(packet: Packet, headroom: number): number {
  return (packet.gsoType === GSO_NONE ? 0 : 1) + (packet.hashType < 0 ? 0 : 1) + (headroom === 0 ? 0 : 1);
}

/**
 * Data slots of a packet whose fragments of other domains each go into one page whole, and so take one copy: filling
 * every page to its end takes two for most.
 * @returns 0 for a packet without such fragments, or that needs more slots so than frontends take
 */
function wholeSlots(packet: Packet, room: number): number {
  if (packet.length <= room || packet.isLocal) return 0;
  const { source, size, fragments } = packet;
  let slots = 1;
  let free = room;
  for (let i = -1; i < fragments; i++) {
    let left = i < 0 ? packet.linear : size[i];
    if (left > free && left <= room && i >= 0 && source[i] !== FRAGMENT_LOCAL) free = 0;
    for (; left > free; slots++) {
      left -= free;
      free = room;
    }
    free -= left;
  }
  return slots <= RX_DATA_SLOTS_MAX ? slots : 0;
}

function dataSlots(packet: Packet, headroom: number): number {
  const room = PAGE_SIZE - headroom;
  const whole = wholeSlots(packet, room);
  if (whole > 0) return whole;
  return headroom === 0 ? (packet.length + PAGE_SIZE - 1) >>> PAGE_SHIFT : Math.ceil(packet.length / room);
}

/** Whether a packet's data is in no more slots than every frontend takes: with a large headroom there is little room in each. */
export function fitsFrontends(packet: Packet, headroom: number): boolean {
  return dataSlots(packet, headroom) <= RX_DATA_SLOTS_MAX;
}

/** rx requests that a packet takes: one for each page of data, and one for each extra info. */
export function rxSlotsNeeded(packet: Packet, headroom = 0): number {
  return dataSlots(packet, headroom) + extraInfos(packet, headroom);
}

/** The longest packet that frontends take with that headroom. */
export function rxBytesMax(headroom: number): number {
  return RX_DATA_SLOTS_MAX * (PAGE_SIZE - headroom);
}

/** Copies that a packet needs at most: a new one at each source and each slot. */
export function rxCopiesAtMost(packet: Packet): number {
  return 1 + packet.fragments + RX_SLOTS_MAX;
}

/**
 * Reads the rx requests for a packet, each once, and adds the copies that fill their pages. The caller
 * made sure that `rxSlotsNeeded` requests and `rxCopiesAtMost` places in the batch are free.
 *
 * @param domid who granted the rx pages
 * @param requests takes the id of each request and, in the upper half, the bytes that go into its page; by the slot of
 *   the ring
 * @param statics grants that are mapped, whose pages are written directly
 * @param headroom bytes to leave before the data of each page
 * @param gsoPrefix GSO types, a bit each, whose packets have a prefix instead of an extra info
 * @returns rx requests taken, those for extra infos and a prefix included
 */
export function planRx(
  packet: Packet,
  ring: BackRing,
  start: number,
  domid: number,
  batch: CopyBatch,
  requests: Uint32Array,
  statics: StaticGrants | null = null,
  headroom = 0,
  gsoPrefix = 0,
): number {
  const { i32 } = ring.memory;
  const { source, ref, offset, size } = packet;
  const mask = ring.size - 1;
  const room = PAGE_SIZE - headroom;
  const whole = wholeSlots(packet, room) > 0;
  const first = start + ((gsoPrefix >>> packet.gsoType) & 1);
  const end = start + 1 + extraInfos(packet, headroom);
  // A prefix' or an extra info's request gives up its place in the ring; its page stays untouched.
  if (first !== start) requests[start & mask] = i32[ring.slot(start) >>> 2] & 0xffff;
  let at = ring.slot(first) >>> 2;
  let slot = first & mask;
  let id = i32[at] & 0xffff;
  let gref = i32[at + 1];
  let next = first + 1;
  for (; next < end; next++) requests[next & mask] = i32[ring.slot(next) >>> 2] & 0xffff;
  let filled = headroom;
  for (let i = -1; i < packet.fragments; i++) {
    const from = i < 0 || source[i] === FRAGMENT_LOCAL ? COPY_LOCAL : source[i];
    const page = i < 0 ? packet.data >>> PAGE_SHIFT : ref[i];
    let begin = i < 0 ? packet.data & (PAGE_SIZE - 1) : offset[i];
    let left = i < 0 ? packet.linear : size[i];
    while (left > 0) {
      const free = PAGE_SIZE - filled;
      if (free === 0 || (whole && from !== COPY_LOCAL && left > free && left <= room)) {
        requests[slot] = id | ((filled - headroom) << 16);
        at = ring.slot(next) >>> 2;
        slot = next++ & mask;
        id = i32[at] & 0xffff;
        gref = i32[at + 1];
        filled = headroom;
      }
      const take = Math.min(left, PAGE_SIZE - filled);
      const done = from === COPY_LOCAL && (statics?.write(gref, filled, page, begin, take) ?? false);
      if (!done) batch.add(from, page, begin, domid, gref, filled, take);
      filled += take;
      begin += take;
      left -= take;
    }
  }
  requests[slot] = id | ((filled - headroom) << 16);
  return (next - start) | 0;
}

/** Flags of a packet's first response that tell what is known of its checksum. */
export function rxChecksumFlags(packet: Packet): number {
  const { checksum } = packet;
  if (checksum === CHECKSUM_NONE) return 0;
  return checksum === CHECKSUM_PARTIAL ? NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED : NETRXF_DATA_VALIDATED;
}

/**
 * Writes the responses of one packet, at the indexes of its requests from `start` on. Publishes nothing.
 * @param requests as `planRx` left them
 */
export function respondRx(
  ring: BackRing,
  packet: Packet,
  start: number,
  slots: number,
  requests: Uint32Array,
  headroom = 0,
  gsoPrefix = 0,
): void {
  const { i32 } = ring.memory;
  const mask = ring.size - 1;
  const first = (gsoPrefix >>> packet.gsoType) & 1;
  const last = extraInfos(packet, headroom);
  const extras = last - first;
  if (first === 1) {
    const at = ring.slot(start) >>> 2;
    i32[at] = (requests[start & mask] & 0xffff) | (packet.gsoSize << 16);
    i32[at + 1] = NETRXF_GSO_PREFIX | NETRXF_MORE_DATA | ((slots - extras) << 16);
  }
  let left = packet.length;
  let flags = rxChecksumFlags(packet) | (extras > 0 ? NETRXF_EXTRA_INFO : 0);
  for (let i = first; i < slots; i++) {
    const at = ring.slot(start + i) >>> 2;
    if (i > first && i <= last) {
      if (i === last && headroom > 0) {
        i32[at] = xdpExtraWord0(headroom);
        i32[at + 1] = 0;
      } else writeExtraInfo(i32, at, packet, i === 1 && packet.gsoType !== GSO_NONE, i < last);
      continue;
    }
    const request = requests[(start + i) & mask];
    const bytes = request >>> 16;
    left -= bytes;
    if (left > 0) flags |= NETRXF_MORE_DATA;
    i32[at] = (request & 0xffff) | (headroom << 16);
    i32[at + 1] = flags | (bytes << 16);
    flags = 0;
  }
}

function writeExtraInfo(i32: Int32Array, at: number, packet: Packet, gso: boolean, more: boolean): void {
  if (gso) {
    i32[at] = gsoExtraWord0(packet.gsoSize, more);
    i32[at + 1] = gsoExtraWord1(packet.gsoType);
  } else {
    i32[at] = hashExtraWord0(packet.hashType, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, more);
    i32[at + 1] = packet.hash;
  }
}

/** Answers so many requests with ERROR, each as a packet of its own. */
export function respondRxError(ring: BackRing, start: number, slots: number, requests: Uint32Array): void {
  const { i32 } = ring.memory;
  for (let i = 0; i < slots; i++) {
    const at = ring.slot(start + i) >>> 2;
    i32[at] = requests[(start + i) & (ring.size - 1)] & 0xffff;
    i32[at + 1] = NETIF_RSP_ERROR << 16;
  }
}
