/**
 * Passes packets from one guest's tx ring to another's rx ring, as long as nothing about them is unusual: the same checks
 * and copies as tx-ring.ts and rx-ring.ts make, in one go. It decides nothing: routes are TypeScript's, who also takes every
 * packet at which this stops, as if it had not been read. AssemblyScript, compiled by `scripts/wasm.mjs`.
 */
import {
  ETH_HLEN,
  EXTRA_INFO,
  EXTRA_TYPE_GSO,
  GSO_TCPV4,
  GSO_TCPV6,
  MORE_DATA,
  PAGE_SHIFT,
  PAGE_SIZE,
  RING_MASK,
  RING_SIZE,
  RSP_NULL,
  RXF_CSUM_BLANK,
  RXF_DATA_VALIDATED,
  rxSlot,
  TXF_CSUM_BLANK,
  TXF_DATA_VALIDATED,
  txSlot,
} from '../../abi/wasm/netif';
import {
  COPY_DST_DOMID,
  COPY_DST_OFFSET,
  COPY_DST_REF,
  COPY_LENGTH,
  COPY_LOCAL,
  COPY_SRC_DOMID,
  COPY_SRC_OFFSET,
  COPY_SRC_REF,
  COPY_STATUS,
  COPY_WORDS,
} from '../../platform/copy-words';
import { copy } from '../../platform/wasm/grants';
import { fetch16, fetch32 } from '../../platform/wasm/shared';
import {
  BLOCK_ADDRESSES,
  BLOCK_ANSWERED,
  BLOCK_DOMID,
  BLOCK_FRAME_MAX,
  BLOCK_GSO_MAX,
  BLOCK_OFFLOADS,
  BLOCK_POLL,
  BLOCK_REQUESTS,
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
  SKB_FRAGS_MAX,
  STOP_EMPTY,
  STOP_FULL,
  STOP_ROUTE,
  STOP_UNUSUAL,
} from '../fast-path-block';

/** As tx-slots.ts and packet.ts have them. */
const CONTINUATIONS_MAX = 18;
const HEAD_BYTES: u32 = 192;
const LINEAR_MAX: u32 = 480;
const HEAD_SHIFT = 9;
const RX_DATA_SLOTS_MAX: u32 = 18;

/** Packets at a time, and the copies that a page of words holds. */
const BATCH = 64;
const COPIES = 128;
const COPY_BYTES = COPY_WORDS << 2;

/** What is known of a packet between its steps, in a page: 64 bytes each. */
const PACKET_SHIFT = 6;
const P_START = 0;
const P_CONSUMED = 4;
const P_FLAGS = 8;
const P_LENGTH = 12;
const P_LINEAR = 16;
const P_HEAD = 20;
const P_GSO_TYPE = 24;
const P_GSO_SIZE = 28;
/** Its pieces in the guest's pages behind the head: where the first is, and how many. */
const P_PIECES = 32;
const P_PIECE_COUNT = 36;
const P_TARGET = 40;
const P_RX_START = 44;
const P_RX_SLOTS = 48;
const P_LAST_COPY = 52;
const P_RX_FLAGS = 56;
const P_ROUTE = 60;
/** A piece: reference, offset, bytes. */
const PIECE = 12;

let backend: usize = 0;
/** Addresses of the pages with 8 heads each. */
let heads: usize = 0;
let words: usize = 0;
let packets: usize = 0;
let pieces: usize = 0;

/**
 * @param record of the backend's domain
 * @param pages addresses of 11 pages of its own: 8 for heads, then for copies, packets and pieces
 */
export function start(record: usize, pages: usize): void {
  backend = record;
  heads = pages;
  words = load<usize>(pages + 32);
  packets = load<usize>(pages + 36);
  pieces = load<usize>(pages + 40);
}

/**
 * Passes on up to `limit` packets from the tx ring of the queue with that block.
 * @returns how many; BLOCK_STOP tells why not more
 */
export function forward(block: usize, limit: u32): u32 {
  let done: u32 = 0;
  store<i32>(block + BLOCK_TX_BYTES, 0);
  store<i32>(block + BLOCK_STOP, STOP_EMPTY);
  while (done < limit) {
    const count = read(block, min<u32>(limit - done, BATCH));
    const passed = count === 0 ? 0 : pass(block, count);
    done += passed;
    if (passed === 0 || load<i32>(block + BLOCK_STOP) !== STOP_EMPTY) break;
  }
  return done;
}

function stop(block: usize, why: i32): void {
  store<i32>(block + BLOCK_STOP, why);
}

function pageOf(address: usize): u32 {
  return <u32>(address >>> PAGE_SHIFT);
}

function offsetOf(address: usize): u32 {
  return <u32>address & (PAGE_SIZE - 1);
}

function packetAt(i: u32): usize {
  return packets + (i << PACKET_SHIFT);
}

// ---- from the tx ring ----

/** Reads up to `limit` packets, each word once, and plans the copies of their heads. @returns how many */
function read(block: usize, limit: u32): u32 {
  const ring = load<usize>(block + BLOCK_TX_RING);
  const rspPvt = load<u32>(block + BLOCK_TX_RSP_PVT);
  const reqProd = atomic.load<u32>(ring);
  let cons = load<u32>(block + BLOCK_TX_REQ_CONS);
  if (reqProd - rspPvt > RING_SIZE) {
    stop(block, STOP_UNUSUAL);
    return 0;
  }
  // Never more than the ring has unanswered.
  let available = min<u32>(reqProd - cons, RING_SIZE - (cons - rspPvt));
  const domid = load<i32>(block + BLOCK_DOMID);
  let piece = pieces;
  let copies = 0;
  let count: u32 = 0;
  while (count < limit && available > 0) {
    const p = packetAt(count);
    const end = readOne(block, ring, cons, available, p, piece);
    if (end === 0) {
      stop(block, STOP_UNUSUAL);
      break;
    }
    const slots = (end - piece) / PIECE;
    // On the rx ring: the head, and each piece.
    if (copies + <i32>slots + 1 > COPIES) break;
    copies += <i32>slots + 1;
    const consumed = load<u32>(p + P_CONSUMED);
    planHead(p, count, domid, piece);
    if (load<u32>(piece + 8) === 0) {
      store<usize>(p + P_PIECES, piece + PIECE);
      store<i32>(p + P_PIECE_COUNT, <i32>slots - 1);
    } else {
      store<usize>(p + P_PIECES, piece);
      store<i32>(p + P_PIECE_COUNT, <i32>slots);
    }
    piece = end;
    cons += consumed;
    available -= consumed;
    count++;
  }
  return count;
}

/**
 * Reads the requests of one packet, and notes their responses.
 * @param p where the packet goes, and `piece` where its pieces do: the first still with the head
 * @returns the end of the pieces; 0 for a packet that TypeScript must take
 */
function readOne(block: usize, ring: usize, start: u32, available: u32, p: usize, piece: usize): usize {
  const at = txSlot(ring, start);
  const gref = fetch32(at);
  const word1 = fetch32(at + 4);
  const word2 = fetch32(at + 8);
  const flags = word1 >>> 16;
  const length = word2 >>> 16;
  const offset = word1 & 0xffff;
  const responses = block + BLOCK_RESPONSES;
  let next = start + 1;
  store<u32>(p + P_GSO_TYPE, 0);
  if ((flags & EXTRA_INFO) !== 0) {
    if (available < 2) return 0;
    const extra = txSlot(ring, next);
    const extra0 = fetch32(extra);
    const extra1 = fetch32(extra + 4);
    const type = extra1 & 0xff;
    // One of GSO, with none behind it.
    if ((extra0 & 0xffff) !== EXTRA_TYPE_GSO || extra0 >>> 16 === 0) return 0;
    if (type !== GSO_TCPV4 && type !== GSO_TCPV6) return 0;
    store<u32>(p + P_GSO_TYPE, type);
    store<u32>(p + P_GSO_SIZE, extra0 >>> 16);
    store<i32>(responses + ((next & RING_MASK) << 2), RSP_NULL << 16);
    next++;
  }
  let rest = length;
  let end = piece + PIECE;
  let more = (flags & MORE_DATA) !== 0;
  for (let slots = 0; more; slots++) {
    if (slots === CONTINUATIONS_MAX || next - start >= available) return 0;
    const slot = txSlot(ring, next);
    const slotGref = fetch32(slot);
    const slot1 = fetch32(slot + 4);
    const slot2 = fetch32(slot + 8);
    const bytes = slot2 >>> 16;
    const begin = slot1 & 0xffff;
    if (bytes === 0 || bytes > rest || begin + bytes > PAGE_SIZE) return 0;
    rest -= bytes;
    store<u32>(end, slotGref);
    store<u32>(end + 4, begin);
    store<u32>(end + 8, bytes);
    store<i32>(responses + ((next & RING_MASK) << 2), slot2 & 0xffff);
    end += PIECE;
    next++;
    more = ((slot1 >>> 16) & MORE_DATA) !== 0;
  }
  const linear = length <= LINEAR_MAX ? length : HEAD_BYTES;
  // A head in more than one slot is rare.
  if (rest < ETH_HLEN || rest < linear || offset + rest > PAGE_SIZE) return 0;
  store<u32>(piece, gref);
  store<u32>(piece + 4, offset);
  store<u32>(piece + 8, rest);
  store<i32>(responses + ((start & RING_MASK) << 2), word2 & 0xffff);
  store<u32>(p + P_START, start);
  store<u32>(p + P_CONSUMED, next - start);
  store<u32>(p + P_FLAGS, flags);
  store<u32>(p + P_LENGTH, length);
  store<u32>(p + P_LINEAR, linear);
  return end;
}

/** Plans the copy of a packet's head, and takes it from the first piece. */
function planHead(p: usize, i: u32, domid: i32, piece: usize): void {
  const head = load<usize>(heads + ((i >>> 3) << 2)) + ((i & 7) << HEAD_SHIFT);
  const linear = load<u32>(p + P_LINEAR);
  const offset = load<u32>(piece + 4);
  store<usize>(p + P_HEAD, head);
  addCopy(i, domid, load<u32>(piece), offset, COPY_LOCAL, pageOf(head), offsetOf(head), linear);
  store<u32>(piece + 4, offset + linear);
  store<u32>(piece + 8, load<u32>(piece + 8) - linear);
}

function addCopy(
  i: i32,
  srcDomid: i32,
  srcRef: u32,
  srcOffset: u32,
  dstDomid: i32,
  dstRef: u32,
  dstOffset: u32,
  bytes: u32,
): void {
  const at = words + i * COPY_BYTES;
  store<i32>(at + (COPY_SRC_DOMID << 2), srcDomid);
  store<u32>(at + (COPY_SRC_REF << 2), srcRef);
  store<u32>(at + (COPY_SRC_OFFSET << 2), srcOffset);
  store<i32>(at + (COPY_DST_DOMID << 2), dstDomid);
  store<u32>(at + (COPY_DST_REF << 2), dstRef);
  store<u32>(at + (COPY_DST_OFFSET << 2), dstOffset);
  store<u32>(at + (COPY_LENGTH << 2), bytes);
  store<i32>(at + (COPY_STATUS << 2), -1);
}

// ---- on its way ----

/** Passes on the packets that were read, up to the first that is unusual. @returns how many */
function pass(block: usize, count: u32): u32 {
  const copied = <u32>copy(backend, words, 0, count);
  if (copied < count) {
    stop(block, STOP_UNUSUAL);
    count = copied;
  }
  const domid = load<i32>(block + BLOCK_DOMID);
  let planned: u32 = 0;
  let copies = 0;
  for (; planned < count; planned++) {
    const p = packetAt(planned);
    const way = route(block, load<usize>(p + P_HEAD));
    const target: usize = way === 0 ? 0 : load<usize>(way + ROUTE_TARGET);
    const why = way === 0 ? STOP_ROUTE : admit(target, p);
    if (why !== STOP_EMPTY) {
      stop(block, why);
      break;
    }
    const end = plan(p, target, domid, copies);
    if (end < 0) {
      stop(block, -end);
      break;
    }
    copies = end;
    store<usize>(p + P_ROUTE, way);
    store<i32>(p + P_LAST_COPY, copies);
  }
  const done = copy(backend, words, 0, copies);
  let passed: u32 = 0;
  for (; passed < planned && load<i32>(packetAt(passed) + P_LAST_COPY) <= done; passed++) {
    finish(block, packetAt(passed));
  }
  if (passed < planned) {
    stop(block, STOP_UNUSUAL);
    // The requests that the others took are there again.
    for (let i = planned; i > passed; i--) {
      const p = packetAt(i - 1);
      store<u32>(load<usize>(p + P_TARGET) + BLOCK_RX_REQ_CONS, load<u32>(p + P_RX_START));
    }
  }
  return passed;
}

/** The address of the route that a frame takes; 0 when there is none, or it was not confirmed in this poll. */
function route(block: usize, head: usize): usize {
  const address0 = load<i32>(head);
  const address1 = load<i32>(head + 4);
  const address2 = load<i32>(head + 8);
  const poll = load<i32>(block + BLOCK_POLL);
  for (let i = 0; i < ROUTES; i++) {
    const at = block + BLOCK_ROUTES + i * ROUTE_SIZE;
    if (load<i32>(at) !== address0 || load<i32>(at + 4) !== address1 || load<i32>(at + 8) !== address2)
      continue;
    if (load<i32>(at + ROUTE_POLL) !== poll) break;
    return at;
  }
  store<i32>(block + BLOCK_ADDRESSES, address0);
  store<i32>(block + BLOCK_ADDRESSES + 4, address1);
  store<i32>(block + BLOCK_ADDRESSES + 8, address2);
  return 0;
}

/** Whether the receiver takes the packet as it is. @returns STOP_EMPTY, or STOP_UNUSUAL */
function admit(target: usize, p: usize): i32 {
  const flags = load<u32>(p + P_FLAGS);
  const length = load<u32>(p + P_LENGTH);
  const gsoType = load<u32>(p + P_GSO_TYPE);
  if (length > load<u32>(target + (gsoType === 0 ? BLOCK_FRAME_MAX : BLOCK_GSO_MAX))) return STOP_UNUSUAL;
  const blank = (flags & TXF_CSUM_BLANK) !== 0;
  const validated = (flags & TXF_DATA_VALIDATED) !== 0;
  let rxFlags = blank ? RXF_CSUM_BLANK | RXF_DATA_VALIDATED : validated ? RXF_DATA_VALIDATED : 0;
  store<i32>(p + P_RX_FLAGS, rxFlags);
  if (!blank) return gsoType === 0 ? STOP_EMPTY : STOP_UNUSUAL;
  const version = transport(load<usize>(p + P_HEAD), load<u32>(p + P_LINEAR), length);
  if (version === 0) return STOP_UNUSUAL;
  let needed = (version & 0xf) === 4 ? OFFLOAD_CSUM_V4 : OFFLOAD_CSUM_V6;
  const tcp = version > 0xf;
  if (gsoType !== 0) {
    if (!tcp || (version & 0xf) !== (gsoType === GSO_TCPV4 ? 4 : 6)) return STOP_UNUSUAL;
    needed |= gsoType === GSO_TCPV4 ? OFFLOAD_TSO_V4 : OFFLOAD_TSO_V6;
    rxFlags |= EXTRA_INFO;
  }
  if ((load<i32>(target + BLOCK_OFFLOADS) & needed) !== needed) return STOP_UNUSUAL;
  store<i32>(p + P_RX_FLAGS, rxFlags);
  return STOP_EMPTY;
}

function be16(at: usize): u32 {
  return ((<u32>load<u8>(at)) << 8) | load<u8>(at + 1);
}

/**
 * Finds a TCP or UDP header that lies whole in the linear part of an untagged frame, every length as `Headers` checks it.
 * @returns the version of IP, with 16 more for TCP; 0 for whatever else
 */
function transport(head: usize, linear: u32, length: u32): i32 {
  const type = be16(head + 12);
  const ip = head + ETH_HLEN;
  let version: i32 = 0;
  let l4: u32 = 0;
  let end: u32 = 0;
  let protocol: i32 = 0;
  if (type === 0x0800) {
    if (linear < ETH_HLEN + 20) return 0;
    const first = load<u8>(ip);
    const bytes = (<u32>first & 15) << 2;
    const total = be16(ip + 2);
    if (first >>> 4 !== 4 || bytes < 20 || total < bytes || total > length - ETH_HLEN) return 0;
    if ((be16(ip + 6) & 0x3fff) !== 0) return 0;
    version = 4;
    l4 = ETH_HLEN + bytes;
    end = ETH_HLEN + total;
    protocol = load<u8>(ip + 9);
  } else if (type === 0x86dd) {
    if (linear < ETH_HLEN + 40 || load<u8>(ip) >>> 4 !== 6) return 0;
    const total: u32 = 40 + be16(ip + 4);
    if (total > length - ETH_HLEN) return 0;
    version = 6;
    l4 = ETH_HLEN + 40;
    end = ETH_HLEN + total;
    protocol = load<u8>(ip + 6);
  } else return 0;
  if (protocol === 17) return l4 + 8 > end || l4 + 8 > linear ? 0 : version;
  if (protocol !== 6 || l4 + 20 > end || l4 + 20 > linear) return 0;
  const header = (<u32>load<u8>(head + l4 + 12) >>> 4) << 2;
  if (header < 20 || l4 + header > end || l4 + header > linear) return 0;
  return version | 16;
}

// ---- to the rx ring ----

/**
 * Takes rx requests for a packet, each read once, and plans the copies that fill their pages: each piece goes whole into one
 * page. @param copies those that are planned @returns how many are planned now, or less STOP_*
 */
function plan(p: usize, target: usize, domid: i32, copies: i32): i32 {
  const ring = load<usize>(target + BLOCK_RX_RING);
  const start = load<u32>(target + BLOCK_RX_REQ_CONS);
  const count = load<i32>(p + P_PIECE_COUNT);
  const extras: u32 = load<u32>(p + P_GSO_TYPE) !== 0 ? 1 : 0;
  const list = load<usize>(p + P_PIECES);
  const needed = slotsNeeded(p, list, count) + extras;
  if (needed > RX_DATA_SLOTS_MAX + extras) return -STOP_UNUSUAL;
  const rspPvt = load<u32>(target + BLOCK_RX_RSP_PVT);
  const reqProd = atomic.load<u32>(ring);
  if (reqProd - rspPvt > RING_SIZE) return -STOP_UNUSUAL;
  // The index may have gone back since the last packet.
  if (needed > min<u32>(reqProd - start, RING_SIZE - (start - rspPvt))) return -STOP_FULL;
  const requests = target + BLOCK_REQUESTS;
  const guest = load<i32>(target + BLOCK_DOMID);
  let next = start;
  let slot = rxSlot(ring, next);
  let request = requests + ((next++ & RING_MASK) << 2);
  let id = fetch16(slot);
  let gref = fetch32(slot + 4);
  // An extra info's request gives up its place in the ring; its page stays untouched.
  if (extras !== 0) {
    store<u32>(requests + ((next & RING_MASK) << 2), fetch16(rxSlot(ring, next)));
    next++;
  }
  const head = load<usize>(p + P_HEAD);
  let filled = load<u32>(p + P_LINEAR);
  addCopy(copies++, COPY_LOCAL, pageOf(head), offsetOf(head), guest, gref, 0, filled);
  for (let i = 0; i < count; i++) {
    const at = list + i * PIECE;
    const bytes = load<u32>(at + 8);
    if (filled + bytes > PAGE_SIZE) {
      store<u32>(request, id | (filled << 16));
      slot = rxSlot(ring, next);
      request = requests + ((next++ & RING_MASK) << 2);
      id = fetch16(slot);
      gref = fetch32(slot + 4);
      filled = 0;
    }
    addCopy(copies++, domid, load<u32>(at), load<u32>(at + 4), guest, gref, filled, bytes);
    filled += bytes;
  }
  store<u32>(request, id | (filled << 16));
  store<usize>(p + P_TARGET, target);
  store<u32>(p + P_RX_START, start);
  store<u32>(p + P_RX_SLOTS, next - start);
  store<u32>(target + BLOCK_RX_REQ_CONS, next);
  return copies;
}

function slotsNeeded(p: usize, list: usize, count: i32): u32 {
  let slots: u32 = 1;
  let filled = load<u32>(p + P_LINEAR);
  for (let i = 0; i < count; i++) {
    const bytes = load<u32>(list + i * PIECE + 8);
    if (filled + bytes > PAGE_SIZE) {
      slots++;
      filled = 0;
    }
    filled += bytes;
  }
  return slots;
}

/** Writes the responses on both sides, and counts. Publishes nothing. */
function finish(block: usize, p: usize): void {
  const target = load<usize>(p + P_TARGET);
  const ring = load<usize>(target + BLOCK_RX_RING);
  const start = load<u32>(p + P_RX_START);
  const slots = load<u32>(p + P_RX_SLOTS);
  const length = load<u32>(p + P_LENGTH);
  const gsoType = load<u32>(p + P_GSO_TYPE);
  let flags = load<u32>(p + P_RX_FLAGS);
  let left = length;
  for (let i: u32 = 0; i < slots; i++) {
    const at = rxSlot(ring, start + i);
    if (i === 1 && gsoType !== 0) {
      store<u32>(at, EXTRA_TYPE_GSO | (load<u32>(p + P_GSO_SIZE) << 16));
      store<u32>(at + 4, gsoType);
      continue;
    }
    const request = load<u32>(target + BLOCK_REQUESTS + (((start + i) & RING_MASK) << 2));
    left -= request >>> 16;
    if (left > 0) flags |= MORE_DATA;
    store<u32>(at, request & 0xffff);
    store<u32>(at + 4, flags | (request & 0xffff0000));
    flags = 0;
  }
  store<u32>(target + BLOCK_RX_RSP_PVT, start + slots);
  store<u32>(target + BLOCK_RX_PACKETS, load<u32>(target + BLOCK_RX_PACKETS) + 1);
  store<u32>(target + BLOCK_RX_BYTES, load<u32>(target + BLOCK_RX_BYTES) + length);
  store<u32>(block + BLOCK_TX_BYTES, load<u32>(block + BLOCK_TX_BYTES) + length);
  const fragments = load<i32>(p + P_PIECE_COUNT);
  if (fragments > 0) {
    store<u32>(block + BLOCK_TX_FRAGMENTED, load<u32>(block + BLOCK_TX_FRAGMENTED) + 1);
    if (fragments > SKB_FRAGS_MAX)
      store<u32>(block + BLOCK_TX_OVERFLOWED, load<u32>(block + BLOCK_TX_OVERFLOWED) + 1);
  }
  store<i32>(load<usize>(p + P_ROUTE) + ROUTE_USED, load<i32>(block + BLOCK_POLL));
  const first = load<u32>(p + P_START);
  const consumed = load<u32>(p + P_CONSUMED);
  for (let i: u32 = 0; i < consumed; i++) store<u8>(block + BLOCK_ANSWERED + ((first + i) & RING_MASK), 1);
  store<u32>(block + BLOCK_TX_REQ_CONS, first + consumed);
}

/** Writes the responses of the packets before which all are answered. @returns whether there were any */
export function respond(block: usize): bool {
  const ring = load<usize>(block + BLOCK_TX_RING);
  const start = load<u32>(block + BLOCK_TX_RSP_PVT);
  let at = start;
  for (; load<u8>(block + BLOCK_ANSWERED + (at & RING_MASK)) !== 0; at++) {
    store<u8>(block + BLOCK_ANSWERED + (at & RING_MASK), 0);
    store<u32>(txSlot(ring, at), load<u32>(block + BLOCK_RESPONSES + ((at & RING_MASK) << 2)));
  }
  store<u32>(block + BLOCK_TX_RSP_PVT, at);
  return at !== start;
}
