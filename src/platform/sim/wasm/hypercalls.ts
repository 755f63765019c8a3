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
/** Longer copies are `memory.copy`'s, whose call costs more than copying them. */
const SHORT_COPY: u32 = 256;

let directory: usize = 0;
let owners: usize = 0;
let frames: u32 = 0;

/** @param owner address of the owner of each frame, 16 bits each; @param count of frames */
export function start(domids: usize, owner: usize, count: u32): void {
  directory = domids;
  owners = owner;
  frames = count;
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
  if (gfn >>> (2 * LEAF_SHIFT) !== 0) return 0;
  const leaf = load<usize>(<usize>word(record, RECORD_PHYSMAP) + ((gfn >>> LEAF_SHIFT) << 2));
  if (leaf === 0) return 0;
  const frame = load<i32>(leaf + ((gfn & LEAF_MASK) << 2));
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
 * Page address of a grant that plain reads suffice to check; 0 otherwise. No reading or writing bit is set: the granter
 * runs in our thread, so it cannot look before the copy is done.
 */
function plainPage(record: usize, domid: i32, gref: u32, refused: i32): usize {
  if (gref >= <u32>word(record, RECORD_PLAIN)) return 0;
  const at = entryAt(record, gref);
  const head = load<i32>(at);
  if ((head & (<i32>0xffff0000 | GTF_type_mask | refused)) !== ((domid << 16) | GTF_permit_access)) return 0;
  return pageOf(record, load<u32>(at + 4));
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
 * Does the copies of a batch from the one at `first` on, in their order, each with its status.
 * @param caller the record of the domain whose memory local sides are
 * @param words address of the batch's words
 * @returns the number of the first copy that takes the long way, which is not done; `count` when there is none
 */
export function copy(caller: usize, words: usize, first: i32, count: i32): i32 {
  const domid = word(caller, RECORD_DOMID);
  let srcDomid = NOBODY;
  let dstDomid = NOBODY;
  let srcRecord: usize = 0;
  let dstRecord: usize = 0;
  for (let i = first; i < count; i++) {
    const at = words + i * (COPY_WORDS << 2);
    const bytes = load<u32>(at + (COPY_LENGTH << 2));
    const from = load<u32>(at + (COPY_SRC_OFFSET << 2));
    const to = load<u32>(at + (COPY_DST_OFFSET << 2));
    if (bytes > PAGE_SIZE || from > PAGE_SIZE - bytes || to > PAGE_SIZE - bytes) return i;
    const srcRef = load<u32>(at + (COPY_SRC_REF << 2));
    const dstRef = load<u32>(at + (COPY_DST_REF << 2));
    const src = load<i32>(at + (COPY_SRC_DOMID << 2));
    const dst = load<i32>(at + (COPY_DST_DOMID << 2));
    let pinned = 0;
    let source: usize;
    if (src === COPY_LOCAL) source = ownPage(caller, srcRef);
    else {
      if (src !== srcDomid) {
        srcDomid = src;
        srcRecord = recordOf(src);
      }
      if (srcRecord === 0) return i;
      source = plainPage(srcRecord, domid, srcRef, 0);
      if (source === 0) {
        source = pinnedPage(srcRecord, domid, srcRef, false);
        pinned = 1;
      }
    }
    if (source === 0) return i;
    let dest: usize;
    if (dst === COPY_LOCAL) dest = ownPage(caller, dstRef);
    else {
      if (dst !== dstDomid) {
        dstDomid = dst;
        dstRecord = recordOf(dst);
      }
      dest = dstRecord === 0 ? 0 : plainPage(dstRecord, domid, dstRef, GTF_readonly);
      if (dest === 0 && dstRecord !== 0) {
        dest = pinnedPage(dstRecord, domid, dstRef, true);
        if (dest !== 0) pinned |= 2;
      }
    }
    if (dest !== 0) copyBytes(dest + to, source + from, bytes);
    if ((pinned & 1) !== 0) unpin(srcRecord, srcRef, false);
    if (dest === 0) return i;
    if ((pinned & 2) !== 0) unpin(dstRecord, dstRef, true);
    store<i32>(at + (COPY_STATUS << 2), 0);
  }
  return count;
}

/** `Grants.grant` of a version 1 table, for a page whose guest frame number is known. Flags last. */
export function grant(record: usize, gref: u32, domid: i32, gfn: u32, readonly: bool): void {
  const at = entryAt(record, gref);
  store<u32>(at + 4, gfn);
  store<i32>(at, (domid << 16) | (readonly ? GTF_permit_access | GTF_readonly : GTF_permit_access));
}

/** `Grants.end` of a version 1 table. @returns false while the peer has the page mapped or pinned */
export function end(record: usize, gref: u32): bool {
  const at = entryAt(record, gref);
  if ((load<i32>(at) & (GTF_reading | GTF_writing)) !== 0) return false;
  store<i32>(at, 0);
  return true;
}
