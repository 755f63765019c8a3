import {
  ExtraInfos,
  NETIF_RSP_ERROR,
  NETIF_RSP_NULL,
  NETIF_RSP_OKAY,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
  XEN_NETIF_NR_SLOTS_MIN,
} from '../abi/netif.js';
import type { BackRing } from '../abi/ring.js';
import { PACKET_LINEAR_MAX, type Packet } from '../net/packet.js';
import { COPY_LOCAL, type CopyBatch } from '../platform/copy-batch.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { StaticGrants } from './static-grants.js';

/**
 * The steps from a tx ring to packets. Each works on a ring view and a private start index, and changes
 * nothing shared; only the queue that calls them publishes indexes.
 *
 *     requests → readTxPacket → TxPacket → gatherTx → copy batch → … → respondTx → responses
 */

/** Continuation slots that a packet may have: with the first, 19 data slots. */
export const LEGACY_SLOTS_MAX = XEN_NETIF_NR_SLOTS_MIN;
/** With more continuation slots than this the frontend is broken; between the two the packet is dropped. */
export const FATAL_SLOTS_MAX = 20;
/** Data slots that are read and answered at most. */
export const TX_SLOTS_MAX = FATAL_SLOTS_MAX + 1;
/**
 * Bytes of a larger packet that are copied to its linear part: all headers that are looked at fit, with
 * VLAN tags and options. Smaller packets are copied whole.
 */
export const TX_HEAD_BYTES = 192;
/** Shortest packet: an Ethernet header. */
export const ETH_HLEN = 14;

/** The requests of a packet are all there and sound. */
export const TX_OK = 0;
/** The ring ends before the packet does; nothing was consumed. */
export const TX_INCOMPLETE = 1;
/** The packet is unusable: its slots are consumed and answered with ERROR. */
export const TX_DROP = 2;
/** As TX_DROP, and no sound frontend does this: the vif is to be disabled. */
export const TX_FATAL = 3;

/** The requests of one packet, each field read once; reused from packet to packet. */
export class TxPacket {
  verdict = TX_INCOMPLETE;
  /** What was wrong, for the log. */
  reason = '';
  /** Ring slots that the packet takes, extra infos included. */
  consumed = 0;
  /** Data slots. */
  slots = 0;
  /** Flags of the first request. */
  flags = 0;
  /** Bytes of the packet. */
  size = 0;
  readonly gref = new Uint32Array(TX_SLOTS_MAX);
  readonly offset = new Uint16Array(TX_SLOTS_MAX);
  readonly id = new Uint16Array(TX_SLOTS_MAX);
  /** Bytes in each data slot; the first's is what the others leave of `size`. */
  readonly bytes = new Int32Array(TX_SLOTS_MAX);
  readonly infos = new ExtraInfos();
  /** Ring index of the first request. */
  start = 0;
}

function fail(tx: TxPacket, verdict: number, reason: string): void {
  if (tx.verdict >= verdict) return;
  tx.verdict = verdict;
  tx.reason = reason;
}

/**
 * Reads the requests of one packet.
 * @param available requests from `start` on that may be consumed
 * @param tx takes the result; after TX_INCOMPLETE `consumed` and `slots` are 0
 */
export function readTxPacket(ring: BackRing, start: number, available: number, tx: TxPacket): void {
  if (available === 0) {
    incomplete(tx, 'no request');
    return;
  }
  const { i32 } = ring.memory;
  const at = ring.slot(start) >>> 2;
  takeRequests(ring, start, available, i32[at], i32[at + 1], i32[at + 2], tx);
}

/** `readTxPacket` for who has read the words of the first request, of `available` ones that are there. */
export function takeRequests(
  ring: BackRing,
  start: number,
  available: number,
  gref: number,
  word1: number,
  word2: number,
  tx: TxPacket,
): void {
  tx.verdict = TX_OK;
  if (tx.infos.count !== 0) tx.infos.clear();
  tx.start = start;
  tx.gref[0] = gref;
  tx.offset[0] = word1;
  const flags = word1 >>> 16;
  tx.flags = flags;
  tx.id[0] = word2;
  const size = word2 >>> 16;
  tx.size = size;
  tx.slots = 1;
  tx.consumed = 1;
  tx.bytes[0] = size;
  if ((flags & (NETTXF_EXTRA_INFO | NETTXF_MORE_DATA)) === 0) checkFirstSlot(tx, size);
  else readRest(ring, start, available, tx);
}

/** Reads what is behind the first request of a packet: extra infos, and more data. */
function readRest(ring: BackRing, start: number, available: number, tx: TxPacket): void {
  const { i32 } = ring.memory;
  const { flags } = tx;
  tx.reason = '';
  let next = 1;
  if ((flags & NETTXF_EXTRA_INFO) !== 0) {
    next = readTxExtras(ring, start, available, tx);
    if (next === 0) return;
  }
  let slots = 1;
  let rest = tx.size;
  let more = (flags & NETTXF_MORE_DATA) !== 0 && tx.infos.multicast === 0;
  while (more) {
    if (slots > FATAL_SLOTS_MAX) {
      fail(tx, TX_FATAL, `a packet of more than ${TX_SLOTS_MAX} slots`);
      break;
    }
    if (next >= available) {
      incomplete(tx, 'more_data past the last request');
      return;
    }
    if (slots > LEGACY_SLOTS_MAX) fail(tx, TX_DROP, `a packet of more than ${LEGACY_SLOTS_MAX + 1} slots`);
    const at = ring.slot(start + next) >>> 2;
    tx.gref[slots] = i32[at];
    const w1 = i32[at + 1];
    const w2 = i32[at + 2];
    const offset = w1 & 0xffff;
    const bytes = w2 >>> 16;
    tx.offset[slots] = offset;
    tx.id[slots] = w2;
    tx.bytes[slots] = bytes;
    rest -= bytes;
    if (rest < 0) fail(tx, TX_DROP, 'fragments of more bytes than the packet has');
    if (offset + bytes > PAGE_SIZE) fail(tx, TX_FATAL, `a fragment at ${offset}+${bytes} crosses its page`);
    more = ((w1 >>> 16) & NETTXF_MORE_DATA) !== 0;
    slots++;
    next++;
  }
  tx.slots = slots;
  tx.consumed = next;
  tx.bytes[0] = rest;
  if (tx.infos.multicast === 0 && tx.verdict === TX_OK) checkFirstSlot(tx, rest);
}

function checkFirstSlot(tx: TxPacket, bytes: number): void {
  if (bytes < ETH_HLEN) fail(tx, TX_DROP, `a first slot of ${bytes} bytes, less than an Ethernet header`);
  if (tx.offset[0] + bytes > PAGE_SIZE) {
    fail(tx, TX_FATAL, `the first slot at ${tx.offset[0]}+${bytes} crosses its page`);
  }
}

function incomplete(tx: TxPacket, reason: string): void {
  tx.verdict = TX_INCOMPLETE;
  tx.reason = reason;
  tx.slots = 0;
  tx.consumed = 0;
}

/** @returns the ring slots read so far, or 0 when the chain runs past the last request */
function readTxExtras(ring: BackRing, start: number, available: number, tx: TxPacket): number {
  const { i32 } = ring.memory;
  let next = 1;
  let more = true;
  while (more) {
    if (next >= available) {
      incomplete(tx, 'extra_info without an extra info behind it');
      return 0;
    }
    const at = ring.slot(start + next) >>> 2;
    const word0 = i32[at];
    if (!tx.infos.take(word0, i32[at + 1])) {
      fail(tx, TX_FATAL, `an extra info of type ${word0 & 0xff} that is unknown or unsound`);
    }
    more = ((word0 >>> 8) & XEN_NETIF_EXTRA_FLAG_MORE) !== 0;
    next++;
  }
  return next;
}

/**
 * Adds the copies that bring `length` bytes of a packet, from byte `skip` on, to local memory. Slots
 * without bytes are passed over: their grants are never touched.
 *
 * @param domid who granted the slots
 * @param page local page number; the bytes must fit behind `offset` in it
 * @param statics grants that are mapped, whose pages are read directly
 * @returns how many copies were added; the caller made room for one a slot
 */
export function gatherTx(
  tx: TxPacket,
  domid: number,
  skip: number,
  length: number,
  batch: CopyBatch,
  page: number,
  offset: number,
  statics: StaticGrants | null = null,
): number {
  const before = batch.count;
  for (let i = 0; length > 0 && i < tx.slots; i++) {
    const bytes = tx.bytes[i];
    if (skip >= bytes) {
      skip -= bytes;
      continue;
    }
    const take = Math.min(bytes - skip, length);
    const gref = tx.gref[i];
    const from = tx.offset[i] + skip;
    const done = statics?.read(gref, from, page, offset, take) ?? false;
    // What is done keeps its place in the batch, as a copy of nothing: there is one for each slot.
    batch.add(domid, gref, from, COPY_LOCAL, page, offset, done ? 0 : take);
    skip = 0;
    offset += take;
    length -= take;
  }
  return batch.count - before;
}

/**
 * Makes the packet of some requests: its head, or all of a small packet, is to be copied to the packet's own
 * buffer, and the rest stays in the guest's pages as fragments.
 * @param packet a new one
 */
export function buildPacket(
  tx: TxPacket,
  packet: Packet,
  domid: number,
  batch: CopyBatch,
  statics: StaticGrants | null = null,
): void {
  const linear = tx.size <= PACKET_LINEAR_MAX ? tx.size : TX_HEAD_BYTES;
  packet.linear = linear;
  packet.length = linear;
  const { data } = packet;
  gatherTx(tx, domid, 0, linear, batch, data >>> PAGE_SHIFT, data & (PAGE_SIZE - 1), statics);
  let skip = linear;
  for (let i = 0; i < tx.slots && packet.length < tx.size; i++) {
    const bytes = tx.bytes[i];
    if (skip >= bytes) skip -= bytes;
    else {
      packet.addFragment(domid, tx.gref[i], tx.offset[i] + skip, bytes - skip);
      skip = 0;
    }
  }
}

/**
 * The responses owed to a packet that `readTxPacket` consumed, by the ring indexes of its requests: OKAY for each data
 * slot of a sound packet, else ERROR, and NULL for each extra info.
 * @param responses first words, one for each slot of the ring
 */
export function respondTx(responses: Int32Array, tx: TxPacket, error = false): void {
  const mask = responses.length - 1;
  const { start, slots } = tx;
  const status = error || tx.verdict !== TX_OK ? NETIF_RSP_ERROR << 16 : NETIF_RSP_OKAY << 16;
  if (slots === 0) return;
  responses[start & mask] = tx.id[0] | status;
  const extras = tx.infos.count;
  for (let i = 1; i <= extras; i++) responses[(start + i) & mask] = NETIF_RSP_NULL << 16;
  for (let i = 1; i < slots; i++) responses[(start + extras + i) & mask] = tx.id[i] | status;
}

/** Ring index of a data slot: the first has the extra infos behind it. */
export function indexOfSlot(tx: TxPacket, slot: number): number {
  return slot === 0 ? tx.start : tx.start + tx.infos.count + slot;
}

/** Makes the response at a ring index an ERROR, unless it is to an extra info. */
export function failResponse(responses: Int32Array, index: number): void {
  const at = index & (responses.length - 1);
  const word = responses[at];
  if (word >> 16 !== NETIF_RSP_NULL) responses[at] = (word & 0xffff) | (NETIF_RSP_ERROR << 16);
}
