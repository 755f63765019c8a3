/**
 * GNTTABOP_copy and the guest's side of its grant table, over machine memory: AssemblyScript, which `scripts/wasm.mjs`
 * compiles. Whatever is not the usual case is left to `GrantOperations`.
 */
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
} from '../../copy-words';
import {
  LEAF_MASK,
  LEAF_SHIFT,
  RECORD_DOMID,
  RECORD_ENTRIES,
  RECORD_IN_MACHINE,
  RECORD_PHYSMAP,
  RECORD_PINS,
  RECORD_PLAIN,
  RECORD_TABLE,
} from '../domain-record';

const PAGE_SHIFT = 12;
const PAGE_SIZE: u32 = 4096;
/** Entries of a version 1 table in a frame, and their size. */
const FRAME_SHIFT = 9;
const ENTRY_IN_FRAME = 511;
const GTF_permit_access = 1;
const GTF_type_mask = 3;
const GTF_readonly = 4;
const GTF_reading = 8;
const GTF_writing = 16;
/** Times that a pin starts over because the granter changed its entry meanwhile, as in Xen. */
const PIN_RETRIES = 5;
/** Frames of machine memory are below; others are emulated PCs' RAM. */
const BANK_SHIFT = 20;
/** No domid, not even COPY_LOCAL. */
const NOBODY = -2;
/** Guest frame numbers are below. */
const GFNS_MAX: u32 = 1 << (2 * LEAF_SHIFT);
/** Longer copies are `memory.copy`'s, whose call costs more than copying them. */
const SHORT_COPY: u32 = 256;

let directory: usize = 0;
let owners: usize = 0;
let frames: u32 = 0;
/** Where the pages of both sides of each copy are noted. */
let found: usize = 0;

/**
 * @param owner address of the owner of each frame, 16 bits each
 * @param count of frames
 * @param scratch address of a frame for the time of a call
 */
export function start(domids: usize, owner: usize, count: u32, scratch: usize): void {
  directory = domids;
  owners = owner;
  frames = count;
  found = scratch;
}

function word(record: usize, field: usize): i32 {
  return load<i32>(record + field);
}

function recordOf(domid: u32): usize {
  if (domid > 0xffff) return 0;
  const leaf = load<usize>(directory + ((domid >>> LEAF_SHIFT) << 2));
  return leaf === 0 ? 0 : load<usize>(leaf + ((domid & LEAF_MASK) << 2));
}

function entryAt(record: usize, gref: u32): usize {
  return load<usize>(record + RECORD_TABLE + ((gref >>> FRAME_SHIFT) << 2)) + ((gref & ENTRY_IN_FRAME) << 3);
}

/** Byte address of a page that a domain granted; 0 when the gfn is none of its RAM, or that is not in machine memory. */
function pageOf(record: usize, gfn: u32): usize {
  if (gfn >= GFNS_MAX) return 0;
  const leaf = load<usize>(<usize>word(record, RECORD_PHYSMAP) + ((gfn >>> LEAF_SHIFT) << 2));
  return leaf === 0 ? 0 : pageOfFrame(load<i32>(leaf + ((gfn & LEAF_MASK) << 2)));
}

/** 0 for a frame that is not RAM, or not in machine memory. */
function pageOfFrame(frame: i32): usize {
  return frame > 0 && frame >>> BANK_SHIFT === 0 ? (<usize>frame) << PAGE_SHIFT : 0;
}

/** Page address of an own page, 0 when it is not the caller's. */
function ownPage(caller: usize, page: u32): usize {
  if (page >= frames || word(caller, RECORD_IN_MACHINE) === 0) return 0;
  return load<u16>(owners + (page << 1)) === <u16>word(caller, RECORD_DOMID)
    ? (<usize>page) << PAGE_SHIFT
    : 0;
}

/**
 * Finds the pages of one side of each copy, as far as plain reads suffice for it. No reading or writing bit is set: the
 * granter runs in our thread, so it cannot look before the copies are done.
 * @param words address of the side's first word, the domid, in the first copy
 * @param pages where the pages' addresses go, 8 bytes apart; 0 for a copy that has to be looked at by itself
 * @param refused flags that an entry must not have
 */
function findPlain(caller: usize, words: usize, count: i32, pages: usize, refused: i32): void {
  const wanted = (word(caller, RECORD_DOMID) << 16) | GTF_permit_access;
  const mask = <i32>0xffff0000 | GTF_type_mask | refused;
  let domid = NOBODY;
  let record: usize = 0;
  let entries: u32 = 0;
  let physmap: usize = 0;
  let leafNumber: u32 = 0xffffffff;
  let leaf: usize = 0;
  for (let i = 0; i < count; i++, words += COPY_WORDS << 2, pages += 8) {
    const whose = load<i32>(words);
    const ref = load<u32>(words + 4);
    if (whose === COPY_LOCAL) {
      store<usize>(pages, ownPage(caller, ref));
      continue;
    }
    if (whose !== domid) {
      domid = whose;
      record = recordOf(whose);
      entries = record === 0 ? 0 : <u32>word(record, RECORD_PLAIN);
      physmap = record === 0 ? 0 : <usize>word(record, RECORD_PHYSMAP);
      leafNumber = 0xffffffff;
    }
    let page: usize = 0;
    if (ref < entries) {
      const at = entryAt(record, ref);
      const gfn = load<u32>(at + 4);
      if ((load<i32>(at) & mask) === wanted && gfn < GFNS_MAX) {
        // A domain has most of its pages under one leaf.
        if (gfn >>> LEAF_SHIFT !== leafNumber) {
          leafNumber = gfn >>> LEAF_SHIFT;
          leaf = load<usize>(physmap + (leafNumber << 2));
        }
        if (leaf !== 0) page = pageOfFrame(load<i32>(leaf + ((gfn & LEAF_MASK) << 2)));
      }
    }
    store<usize>(pages, page);
  }
}

function clearBits(at: usize, pins: usize): void {
  const writing = load<i32>(pins + 4) > 0;
  const reading = writing || load<i32>(pins) > 0;
  const clear = (writing ? 0 : GTF_writing) | (reading ? 0 : GTF_reading);
  if (clear !== 0) atomic.and<i32>(at, ~clear);
}

function pinsAt(record: usize, gref: u32): usize {
  return load<usize>(record + RECORD_PINS + ((gref >>> FRAME_SHIFT) << 2)) + ((gref & ENTRY_IN_FRAME) << 3);
}

function unpin(record: usize, gref: u32, write: bool): void {
  const pins = pinsAt(record, gref) + (write ? 4 : 0);
  store<i32>(pins, load<i32>(pins) - 1);
  clearBits(entryAt(record, gref), pinsAt(record, gref));
}

/**
 * Takes a grant of a domain that may run in another thread and change its entry at any moment: sets the reading and, to
 * write, writing bit by compare-and-exchange over flags and domid together. @returns its page's address, or 0
 */
function pinnedPage(record: usize, domid: i32, gref: u32, write: bool): usize {
  if (gref >= <u32>word(record, RECORD_ENTRIES)) return 0;
  const at = entryAt(record, gref);
  const refused = write ? GTF_readonly : 0;
  const bits = write ? GTF_reading | GTF_writing : GTF_reading;
  // Read plainly: the exchange finds out whether it was right.
  let head = load<i32>(at);
  for (let tries = 0; ; tries++) {
    if (tries === PIN_RETRIES) return 0;
    if ((head & (<i32>0xffff0000 | GTF_type_mask | refused)) !== ((domid << 16) | GTF_permit_access))
      return 0;
    const seen = atomic.cmpxchg<i32>(at, head, head | bits);
    if (seen === head) break;
    head = seen;
  }
  const pins = pinsAt(record, gref) + (write ? 4 : 0);
  store<i32>(pins, load<i32>(pins) + 1);
  const page = pageOf(record, load<u32>(at + 4));
  if (page === 0) unpin(record, gref, write);
  return page;
}

function copyBytes(to: usize, from: usize, bytes: u32): void {
  if (bytes > SHORT_COPY || bytes < 16 || to - from < bytes || from - to < bytes) {
    memory.copy(to, from, bytes);
    return;
  }
  const last = bytes - 16;
  for (let at: u32 = 0; at < last; at += 16) v128.store(to + at, v128.load(from + at));
  v128.store(to + last, v128.load(from + last));
}

/**
 * Does the copies of a batch in their order, each with its status.
 * @param caller the record of the domain whose memory local sides are
 * @param words address of the batch's words
 * @param first 0, or to go on with the same batch the one behind that at which it has stopped
 * @param count copies in the batch, COPIES_AT_ONCE at most
 * @returns the number of the first copy that takes the long way, which is not done; `count` when there is none
 */
export function copy(caller: usize, words: usize, first: i32, count: i32): i32 {
  let at = words + first * (COPY_WORDS << 2);
  let pages = found + (first << 3);
  if (first === 0) {
    findPlain(caller, at + (COPY_SRC_DOMID << 2), count, found, 0);
    findPlain(caller, at + (COPY_DST_DOMID << 2), count, found + 4, GTF_readonly);
  }
  for (let i = first; i < count; i++, at += COPY_WORDS << 2, pages += 8) {
    const bytes = load<u32>(at + (COPY_LENGTH << 2));
    const from = load<u32>(at + (COPY_SRC_OFFSET << 2));
    const to = load<u32>(at + (COPY_DST_OFFSET << 2));
    if (bytes > PAGE_SIZE || from > PAGE_SIZE - bytes || to > PAGE_SIZE - bytes) return i;
    const source = load<usize>(pages);
    const dest = load<usize>(pages + 4);
    if (source !== 0 && dest !== 0) copyBytes(dest + to, source + from, bytes);
    else if (!copyPinned(caller, at, source, from, dest, to, bytes)) return i;
    store<i32>(at + (COPY_STATUS << 2), 0);
  }
  return count;
}

/**
 * Does one copy with pins for the sides whose pages are not known yet.
 * @returns false, having done nothing, when there is no such page
 */
function copyPinned(
  caller: usize,
  at: usize,
  source: usize,
  from: u32,
  dest: usize,
  to: u32,
  bytes: u32,
): bool {
  const domid = word(caller, RECORD_DOMID);
  const srcRef = load<u32>(at + (COPY_SRC_REF << 2));
  const dstRef = load<u32>(at + (COPY_DST_REF << 2));
  let srcRecord: usize = 0;
  let dstRecord: usize = 0;
  if (source === 0) {
    srcRecord = recordOf(load<u32>(at + (COPY_SRC_DOMID << 2)));
    if (srcRecord !== 0) source = pinnedPage(srcRecord, domid, srcRef, false);
    if (source === 0) return false;
  }
  if (dest === 0) {
    dstRecord = recordOf(load<u32>(at + (COPY_DST_DOMID << 2)));
    if (dstRecord !== 0) dest = pinnedPage(dstRecord, domid, dstRef, true);
  }
  if (dest !== 0) copyBytes(dest + to, source + from, bytes);
  if (srcRecord !== 0) unpin(srcRecord, srcRef, false);
  if (dest !== 0 && dstRecord !== 0) unpin(dstRecord, dstRef, true);
  return dest !== 0;
}

/** `Grants.grant` of a version 1 table, to write, for pages whose guest frame numbers are known. Flags last. */
export function grantAll(
  record: usize,
  domid: i32,
  grefs: usize,
  gfns: usize,
  stride: usize,
  count: i32,
): void {
  const head = (domid << 16) | GTF_permit_access;
  for (let i = 0; i < count; i++, grefs += 4, gfns += stride) {
    const at = entryAt(record, load<u32>(grefs));
    store<u32>(at + 4, load<u32>(gfns));
    store<i32>(at, head);
  }
}

/** `Grants.end` of a version 1 table. @returns the number of the first that the peer has mapped or pinned, or `count` */
export function endAll(record: usize, grefs: usize, count: i32): i32 {
  for (let i = 0; i < count; i++, grefs += 4) {
    const at = entryAt(record, load<u32>(grefs));
    if ((load<i32>(at) & (GTF_reading | GTF_writing)) !== 0) return i;
    store<i32>(at, 0);
  }
  return count;
}
