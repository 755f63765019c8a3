/**
 * A frontend's loops over the slots of its rings: the same steps as tx-ring.ts and rx-ring.ts have for rings in other memory.
 * AssemblyScript, compiled by `scripts/wasm.mjs`.
 */
import {
  ETH_HLEN,
  EXTRA_INFO,
  EXTRA_TYPE_GSO,
  GSO_PREFIX,
  MORE_DATA,
  PAGE_SHIFT,
  PAGE_SIZE,
  RING_MASK,
  RING_SIZE as RING_SLOTS,
  RSP_NULL,
  rxSlot,
  txSlot,
} from '../../abi/wasm/netif';
import { endAll, grantAll } from '../../platform/wasm/grants';
import { fetch32 } from '../../platform/wasm/shared';
import {
  DONE_FRAME,
  FRAGMENT_BYTES,
  RING_BACKEND,
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
  RING_PAGES,
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
  SLOT_FRAME,
  SLOT_LEFT,
  SLOT_OUTSTANDING,
  SLOT_SINGLE,
  SLOT_UNANSWERED,
} from '../ring-block';

/** As rx-slots.ts and rx-ring.ts have them. */
const SLOTS_MAX = 19;
const PULL_BYTES = 128;
const LOCAL = -1;

function slotAt(block: usize, id: u32): usize {
  return block + RING_TX_SLOTS + (id << 2);
}

function word(at: usize): i32 {
  return load<i32>(at);
}

/**
 * Takes the tx responses up to `rspProd`.
 * @returns packets and frames of which all slots are answered now: RING_DONE; RING_BROKEN tells of a response that answers nothing
 */
export function reclaim(block: usize, rspProd: u32): i32 {
  const ring = <usize>word(block + RING_TX);
  let extras = word(block + RING_EXTRAS);
  let free = word(block + RING_FREE_IDS);
  let cons = <u32>word(block + RING_TX_RSP_CONS);
  let done = 0;
  store<i32>(block + RING_BROKEN, -1);
  for (; cons !== rspProd; cons++) {
    const response = fetch32(txSlot(ring, cons));
    if (<i32>response >> 16 === RSP_NULL && extras > 0) {
      extras--;
      continue;
    }
    const id = response & 0xffff;
    const slot = id > RING_MASK ? 0 : load<u32>(slotAt(block, id));
    if ((slot & SLOT_OUTSTANDING) === 0) {
      store<i32>(block + RING_BROKEN, id);
      cons++;
      break;
    }
    const first = slot & RING_MASK;
    if ((slot & (SLOT_OUTSTANDING | SLOT_LEFT)) !== SLOT_SINGLE) {
      store<u32>(slotAt(block, id), slot - SLOT_OUTSTANDING);
      // The first id counts for the whole packet: slots may be answered in any order, so it comes back last.
      if (id !== first) store<u16>(block + RING_FREE_ID + (free++ << 1), <u16>id);
      const left = load<u32>(slotAt(block, first)) - SLOT_UNANSWERED;
      store<u32>(slotAt(block, first), left);
      if ((left & SLOT_LEFT) !== 0) continue;
    }
    store<u32>(slotAt(block, first), 0);
    store<u16>(block + RING_FREE_ID + (free++ << 1), <u16>first);
    const frame = (slot & SLOT_FRAME) !== 0;
    const answered = frame ? DONE_FRAME | load<u16>(block + RING_FRAME + (first << 1)) : <u16>first;
    store<u16>(block + RING_DONE + (done++ << 1), answered);
  }
  store<i32>(block + RING_EXTRAS, extras);
  store<i32>(block + RING_FREE_IDS, free);
  store<u32>(block + RING_TX_RSP_CONS, cons);
  return done;
}

/**
 * Writes the requests of a packet with fragments, whose grant references are at RING_SEND. Publishes nothing.
 * @param fragments where its fragments are, and @param count how many
 * @param offset of its linear part in its page
 * @param flags of the first request, as far as they tell of the checksum
 * @param gso the two words of an extra info in one: size, and type in the upper half; 0 without one
 * @returns the id of its first slot
 */
export function send(
  block: usize,
  fragments: usize,
  count: i32,
  offset: u32,
  length: u32,
  flags: u32,
  gso: u32,
): u32 {
  const ring = <usize>word(block + RING_TX);
  let prod = <u32>word(block + RING_TX_REQ_PROD);
  let free = word(block + RING_FREE_IDS);
  let list = block + RING_SEND;
  const first = <u32>load<u16>(block + RING_FREE_ID + (--free << 1));
  let at = txSlot(ring, prod++);
  store<u32>(slotAt(block, first), first + SLOT_OUTSTANDING + (count + 1) * SLOT_UNANSWERED);
  // The first request tells the size of the whole packet, the others their own.
  const more = count > 0 ? MORE_DATA : 0;
  store<u32>(at, load<u32>(list));
  store<u32>(at + 4, offset | ((flags | more | (gso !== 0 ? EXTRA_INFO : 0)) << 16));
  store<u32>(at + 8, first | (length << 16));
  if (gso !== 0) {
    at = txSlot(ring, prod++);
    store<u32>(at, EXTRA_TYPE_GSO | (gso << 16));
    store<u32>(at + 4, gso >>> 16);
    store<i32>(block + RING_EXTRAS, word(block + RING_EXTRAS) + 1);
  }
  for (let i = 1; i <= count; i++) {
    const id = <u32>load<u16>(block + RING_FREE_ID + (--free << 1));
    list += 4;
    store<u32>(slotAt(block, id), first + SLOT_OUTSTANDING);
    at = txSlot(ring, prod++);
    store<u32>(at, load<u32>(list));
    store<u32>(at + 4, load<u32>(fragments + 2 * FRAGMENT_BYTES) | (i < count ? MORE_DATA << 16 : 0));
    store<u32>(at + 8, id | (load<u32>(fragments + 3 * FRAGMENT_BYTES) << 16));
    fragments += 4;
  }
  store<i32>(block + RING_FREE_IDS, free);
  store<u32>(block + RING_TX_REQ_PROD, prod);
  return first;
}

/**
 * Takes packets of one slot up to `rspProd`, and ends the grants of their pages.
 * @param posts the second page
 * @returns how many, at RING_INDEX and the others; the next response is of another kind when there are less than there could be
 */
export function receive(block: usize, posts: usize, rspProd: u32, limit: u32): u32 {
  const start = <u32>word(block + RING_RX_RSP_CONS);
  const wanted = min(limit, rspProd - start);
  const straight = min(wanted, RING_SLOTS - (start & RING_MASK));
  let count = receiveStraight(block, posts, start, straight, block);
  // Lists by slot begin anew.
  if (count === straight && count < wanted)
    count += receiveStraight(block, posts, start + count, wanted - count, block + (count << 2));
  store<u32>(block + RING_RX_RSP_CONS, start + count);
  return count;
}

/** @param count responses in slots in a row @param out where the first packet goes, as `block` */
function receiveStraight(block: usize, posts: usize, start: u32, count: u32, out: usize): u32 {
  const first = start & RING_MASK;
  const usual = readShort(<usize>word(block + RING_RX), posts, first, count, out);
  const list = posts + (first << 2);
  const ended = <u32>endAll(word(block + RING_RECORD), list + RING_GREFS, usual);
  for (let i: u32 = 0; i < ended; i++) store<i32>(list + RING_POSTED + (i << 2), -1);
  return ended;
}

/** Reads responses up to the first that is not a packet of one slot. @returns how many */
function readShort(ring: usize, posts: usize, first: u32, count: u32, out: usize): u32 {
  for (let i: u32 = 0; i < count; i++, out += 4) {
    const slot = first + i;
    const word0 = fetch32(rxSlot(ring, slot));
    const word1 = fetch32(rxSlot(ring, slot) + 4);
    const offset = <i32>(word0 >>> 16);
    const bytes = <i32>word1 >> 16;
    if (
      (word1 & (MORE_DATA | EXTRA_INFO | GSO_PREFIX)) !== 0 ||
      bytes < <i32>ETH_HLEN ||
      <u32>(offset + bytes) > PAGE_SIZE
    )
      return i;
    store<i32>(out + RING_INDEX, word(posts + RING_POSTED + (slot << 2)));
    store<i32>(out + RING_DATA, (word(posts + RING_PAGES + (slot << 2)) << PAGE_SHIFT) + offset);
    store<i32>(out + RING_LENGTH, bytes);
    store<u32>(out + RING_SHORT_FLAGS, word1 & 0xffff);
  }
  return count;
}

/**
 * Takes one packet of several slots, and ends the grants of its pages: the first slot is its linear part.
 * @param fragments where its fragments go
 * @returns responses taken; 0, and nothing is changed, for a packet that is not usual, or not sound
 */
export function receiveLong(block: usize, posts: usize, fragments: usize, rspProd: u32): u32 {
  const ring = <usize>word(block + RING_RX);
  const start = <u32>word(block + RING_RX_RSP_CONS);
  const available = rspProd - start;
  const word0 = fetch32(rxSlot(ring, start));
  let word1 = fetch32(rxSlot(ring, start) + 4);
  let size = <i32>word1 >> 16;
  const first = size;
  const offset = <i32>(word0 >>> 16);
  if (first <= 0 || <u32>(offset + first) > PAGE_SIZE || (word1 & GSO_PREFIX) !== 0) return 0;
  let next: u32 = 1;
  let gsoType: u32 = 0;
  store<i32>(block + RING_FLAGS, word1 & 0xffff);
  store<i32>(block + RING_SPARE, -1);
  if ((word1 & EXTRA_INFO) !== 0) {
    if (available < 2) return 0;
    const slot = (start + 1) & RING_MASK;
    const extra = fetch32(rxSlot(ring, slot));
    gsoType = fetch32(rxSlot(ring, slot) + 4) & 0xff;
    if ((extra & 0xffff) !== EXTRA_TYPE_GSO || extra >>> 16 === 0 || gsoType === 0 || gsoType > 2) return 0;
    store<i32>(block + RING_GSO_SIZE, extra >>> 16);
    store<i32>(block + RING_SPARE, word(posts + RING_POSTED + (slot << 2)));
    next = 2;
  }
  let count = 0;
  for (; (word1 & MORE_DATA) !== 0; count++) {
    if (next >= available || count === SLOTS_MAX - 1) return 0;
    const slot = (start + next++) & RING_MASK;
    const begin = <i32>(fetch32(rxSlot(ring, slot)) >>> 16);
    word1 = fetch32(rxSlot(ring, slot) + 4);
    const bytes = <i32>word1 >> 16;
    if (bytes <= 0 || <u32>(begin + bytes) > PAGE_SIZE) return 0;
    const at = fragments + (count << 2);
    store<i32>(at, LOCAL);
    store<i32>(at + FRAGMENT_BYTES, word(posts + RING_PAGES + (slot << 2)));
    store<i32>(at + 2 * FRAGMENT_BYTES, begin);
    store<i32>(at + 3 * FRAGMENT_BYTES, bytes);
    store<i32>(at + 4 * FRAGMENT_BYTES, word(posts + RING_POSTED + (slot << 2)));
    size += bytes;
  }
  // Otherwise its headers have to be brought together.
  if (size < <i32>ETH_HLEN || first < min(size, PULL_BYTES)) return 0;
  if (!endSlots(word(block + RING_RECORD), posts + RING_GREFS, start & RING_MASK, next)) return 0;
  store<i32>(block + RING_PAGE, word(posts + RING_POSTED + ((start & RING_MASK) << 2)));
  store<i32>(block + RING_OFFSET, offset);
  store<i32>(block + RING_BYTES, first);
  store<i32>(block + RING_FRAGMENTS, count);
  store<i32>(block + RING_SIZE, size);
  store<i32>(block + RING_GSO_TYPE, gsoType);
  for (let i: u32 = 0; i < next; i++) store<i32>(posts + RING_POSTED + (((start + i) & RING_MASK) << 2), -1);
  store<u32>(block + RING_RX_RSP_CONS, start + next);
  return next;
}

/** Only then are the pages safe from the backend. @returns false when it still uses one: it is broken */
function endSlots(record: usize, grefs: usize, first: u32, count: u32): bool {
  const straight = min(count, RING_SLOTS - first);
  if (<u32>endAll(record, grefs + (first << 2), straight) < straight) return false;
  return straight === count || <u32>endAll(record, grefs, count - straight) === count - straight;
}

/** Posts the `count` pages at RING_TO_POST, each granted to the backend. Publishes nothing. */
export function post(block: usize, posts: usize, count: u32): void {
  const start = <u32>word(block + RING_RX_REQ_PROD);
  const straight = min(count, RING_SLOTS - (start & RING_MASK));
  const entries = posts + RING_TO_POST;
  postStraight(block, posts, start & RING_MASK, entries, straight);
  postStraight(block, posts, 0, entries + straight * RING_ENTRY, count - straight);
  store<u32>(block + RING_RX_REQ_PROD, start + count);
}

function postStraight(block: usize, posts: usize, first: u32, entry: usize, count: u32): void {
  const ring = <usize>word(block + RING_RX);
  const list = posts + (first << 2);
  grantAll(
    word(block + RING_RECORD),
    word(block + RING_BACKEND),
    list + RING_GREFS,
    entry + 4,
    RING_ENTRY,
    count,
  );
  for (let i: u32 = 0; i < count; i++, entry += RING_ENTRY) {
    const at = list + (i << 2);
    const slot = rxSlot(ring, first + i);
    store<i32>(at + RING_POSTED, word(entry));
    store<i32>(at + RING_PAGES, word(entry + 8));
    store<u32>(slot, first + i);
    store<i32>(slot + 4, word(at + RING_GREFS));
  }
}
