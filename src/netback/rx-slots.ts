import {
  gsoExtraWord0,
  gsoExtraWord1,
  hashExtraWord0,
  NETIF_RSP_ERROR,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_MORE_DATA,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_NR_SLOTS_MIN,
  xdpExtraWord0,
} from '../abi/netif.js';
import type { BackRing } from '../abi/ring.js';
import {
  CHECKSUM_PARTIAL,
  CHECKSUM_UNNECESSARY,
  FRAGMENT_LOCAL,
  GSO_NONE,
  type Packet,
} from '../net/packet.js';
import { COPY_LOCAL, type CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { StaticGrants } from './static-grants.js';

/**
 * The steps from a packet to an rx ring, the mirror of tx-slots.ts.
 *
 *     packet → rxSlotsNeeded → planRx → copy batch → … → respondRx → responses
 */

/** Data slots that every frontend takes of a packet. A 64 KiB packet has 16, 17 with a VLAN tag. */
const RX_DATA_SLOTS_MAX = XEN_NETIF_NR_SLOTS_MIN;
/** Data slots and one for each of the three extra infos. */
export const RX_SLOTS_MAX = RX_DATA_SLOTS_MAX + 3;
/** The headroom that pages really get at most: they must have room for data, too. The extra info tells it. */
export const XDP_HEADROOM_MAX = PAGE_SIZE / 2;

/** Extra infos that a packet has: of its GSO, its hash when the frontend wants that, and the XDP headroom. */
function extraInfos(packet: Packet, headroom: number): number {
  return (packet.gsoType === GSO_NONE ? 0 : 1) + (packet.hashType < 0 ? 0 : 1) + (headroom === 0 ? 0 : 1);
}

function dataSlots(packet: Packet, headroom: number): number {
  if (headroom === 0) return (packet.length + PAGE_SIZE - 1) >>> PAGE_SHIFT;
  return Math.ceil(packet.length / (PAGE_SIZE - headroom));
}

/** rx requests that a packet takes: a page each, and one for each extra info. */
export function rxSlotsNeeded(packet: Packet, headroom = 0): number {
  return dataSlots(packet, headroom) + extraInfos(packet, headroom);
}

/** The longest packet that frontends take with that headroom. */
export function rxBytesMax(headroom: number): number {
  return RX_DATA_SLOTS_MAX * (PAGE_SIZE - headroom);
}

/** Copies that a packet of `fragments` fragments needs at most: a new one at each source and each slot. */
export function rxCopiesAtMost(packet: Packet, headroom = 0): number {
  return 1 + packet.fragments + dataSlots(packet, headroom);
}

/** What `planRx` decided for one packet; reused from packet to packet. */
export class RxPlan {
  /** Index of the first rx request. */
  start = 0;
  /** rx requests taken, the extra info's included. */
  slots = 0;
  firstCopy = 0;
  copies = 0;
  /** Bytes before the data of each page. */
  headroom = 0;
  packet: Packet | null = null;
  readonly id = new Uint16Array(RX_SLOTS_MAX);
}

/**
 * Reads the rx requests for a packet, each once, and adds the copies that fill their pages. The caller
 * made sure that `rxSlotsNeeded` requests and `rxCopiesAtMost` places in the batch are free.
 *
 * @param domid who granted the rx pages
 * @param statics grants that are mapped, whose pages are written directly
 * @param headroom bytes to leave before the data of each page
 */
export function planRx(
  packet: Packet,
  ring: BackRing,
  start: number,
  domid: number,
  batch: CopyBatch,
  plan: RxPlan,
  statics: StaticGrants | null = null,
  headroom = 0,
): void {
  const { i32 } = ring.memory;
  const extras = extraInfos(packet, headroom);
  plan.packet = packet;
  plan.headroom = headroom;
  plan.start = start;
  plan.firstCopy = batch.count;
  let at = ring.slot(start) >>> 2;
  plan.id[0] = i32[at];
  let gref = i32[at + 1];
  let slots = 1;
  // An extra info's request gives up its place in the ring; its page stays untouched.
  for (; slots <= extras; slots++) plan.id[slots] = i32[ring.slot(start + slots) >>> 2];
  let filled = headroom;
  for (let i = -1; i < packet.fragments; i++) {
    const local = i < 0 || packet.source[i] === FRAGMENT_LOCAL;
    const source = local ? COPY_LOCAL : packet.source[i];
    const ref = i < 0 ? packet.data >>> PAGE_SHIFT : packet.ref[i];
    let offset = i < 0 ? packet.data & (PAGE_SIZE - 1) : packet.offset[i];
    let left = i < 0 ? packet.linear : packet.size[i];
    while (left > 0) {
      if (filled === PAGE_SIZE) {
        at = ring.slot(start + slots) >>> 2;
        plan.id[slots++] = i32[at];
        gref = i32[at + 1];
        filled = headroom;
      }
      const take = Math.min(left, PAGE_SIZE - filled);
      const mapped = statics === null ? -1 : statics.pageOf(gref, true);
      batch.add(
        source,
        ref,
        offset,
        mapped < 0 ? domid : COPY_LOCAL,
        mapped < 0 ? gref : mapped,
        filled,
        take,
      );
      filled += take;
      offset += take;
      left -= take;
    }
  }
  plan.slots = slots;
  plan.copies = batch.count - plan.firstCopy;
}

/** True when every copy of the plan was done. */
export function rxCopied(plan: RxPlan, batch: CopyBatch): boolean {
  return batch.done(plan.firstCopy, plan.copies);
}

function checksumFlags(packet: Packet): number {
  if (packet.checksum === CHECKSUM_PARTIAL) return NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;
  return packet.checksum === CHECKSUM_UNNECESSARY ? NETRXF_DATA_VALIDATED : 0;
}

/**
 * Writes the responses of one planned packet at the ring indexes of its requests. Only `rspProdPvt` moves.
 * When a copy failed this is one ERROR response for the first request, and the others are left alone.
 *
 * @returns the requests that are answered
 */
export function respondRx(ring: BackRing, plan: RxPlan, copied: boolean): number {
  const { i32 } = ring.memory;
  const packet = plan.packet!;
  const { headroom } = plan;
  let at = ring.slot(plan.start) >>> 2;
  if (!copied) {
    i32[at] = plan.id[0];
    i32[at + 1] = NETIF_RSP_ERROR << 16;
    ring.rspProdPvt = (plan.start + 1) | 0;
    return 1;
  }
  const extras = extraInfos(packet, headroom);
  let left = packet.length;
  let flags = checksumFlags(packet) | (extras > 0 ? NETRXF_EXTRA_INFO : 0);
  for (let i = 0; i < plan.slots; i++) {
    at = ring.slot(plan.start + i) >>> 2;
    if (i > 0 && i <= extras) {
      if (i === extras && headroom > 0) {
        i32[at] = xdpExtraWord0(headroom);
        i32[at + 1] = 0;
      } else writeExtraInfo(i32, at, packet, i === 1 && packet.gsoType !== GSO_NONE, i < extras);
      continue;
    }
    const bytes = Math.min(left, PAGE_SIZE - headroom);
    left -= bytes;
    if (left > 0) flags |= NETRXF_MORE_DATA;
    i32[at] = plan.id[i] | (headroom << 16);
    i32[at + 1] = flags | (bytes << 16);
    flags = 0;
  }
  ring.rspProdPvt = (plan.start + plan.slots) | 0;
  return plan.slots;
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

/** Answers `slots` requests from `plan.id[first]` on with ERROR, each as a packet of its own. */
export function respondRxError(ring: BackRing, plan: RxPlan, first: number): void {
  const { i32 } = ring.memory;
  for (let i = first; i < plan.slots; i++) {
    const at = ring.slot(plan.start + i) >>> 2;
    i32[at] = plan.id[i];
    i32[at + 1] = NETIF_RSP_ERROR << 16;
  }
  ring.rspProdPvt = (plan.start + plan.slots) | 0;
}
