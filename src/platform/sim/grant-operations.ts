import {
  GNTMAP_device_map,
  GNTMAP_host_map,
  GNTMAP_readonly,
  GNTST,
  GRANT_ENTRIES_PER_FRAME_V1,
  GRANT_ENTRY_V2,
  GTF_permit_access,
  GTF_readonly,
  GTF_sub_page,
  GTF_transitive,
  GTF_type_mask,
} from '../../abi/grant-table.js';
import { DOMID_SELF } from '../../abi/xen.js';
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
  type CopyBatch,
} from '../copy-batch.js';
import { HypercallError } from '../errors.js';
import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../memory.js';
import type { Domain } from './domain.js';
import { BANK_SHIFT, PAGE_IN_BANK } from './frame-table.js';
import type { GrantTable } from './grant-table.js';
import type { Hypervisor } from './hypervisor.js';

const V1_ENTRY_IN_FRAME = GRANT_ENTRIES_PER_FRAME_V1 - 1;
const V1_FRAME_SHIFT = 9;
/**
 * Copies that are allowed and still to be done are listed in frame 0, which is never anybody's, as `copyList` takes
 * them: so many words each, up to the last that fits.
 */
const LIST_WORDS = 3;
const LIST_END = LIST_WORDS * Math.floor(PAGE_SIZE / 4 / LIST_WORDS);

/** What GNTTABOP_map_grant_ref answers; one object, valid until the next call. */
export interface MapResult {
  status: number;
  handle: number;
  /** The frame that is now mapped, in the hypervisor's numbering (see `Hypervisor.memoryOf`). */
  frame: number;
}

/** One side of a copy that was checked the long way. */
class CopySide {
  bank = 0;
  memory!: Memory;
  /** Byte address of the page. */
  address = 0;
  /** Bytes of the page that may be touched: [start, end). */
  start = 0;
  end = 0;
  /** Whose grant is pinned, and in its middle one a transitive grant's. */
  granter: Domain | null = null;
  gref = 0;
  via: Domain | null = null;
  viaGref = 0;
}

const NO_WORDS = new Int32Array(0);
/** No domid, not even COPY_LOCAL. */
const NOBODY = -2;

/** What copies look at of the domain that the last one on this side named, at hand. */
class PlainSide {
  domid = NOBODY;
  /** Entries that plain reads suffice to check. */
  entries = 0;
  table: GrantTable | null = null;
  frameWords: Int32Array = NO_WORDS;
  physmap: Int32Array = NO_WORDS;

  select(domid: number, granter: Domain | null): void {
    this.domid = domid;
    this.entries = 0;
    this.table = null;
    if (granter === null) return;
    this.table = granter.grantTable;
    this.entries = granter.grantTable.plainEntries;
    this.frameWords = granter.grantTable.frameWords;
    this.physmap = granter.physmap;
  }
}

/**
 * The grant-table hypercalls, GNTTABOP by GNTTABOP, for any caller: a TypeScript domain through its
 * Platform, or an adapter that decodes the argument structs of an emulated guest.
 */
export class GrantOperations {
  private readonly mapResult: MapResult = { status: 0, handle: 0, frame: 0 };
  private readonly source = new CopySide();
  private readonly dest = new CopySide();
  private readonly plainSource = new PlainSide();
  private readonly plainDest = new PlainSide();
  /** Pins that last until the listed copies are done: a domid, and a reference with 1 in its lowest bit to write. */
  private readonly pins = new Int32Array(2 * 2 * (LIST_END / LIST_WORDS));
  private pinWords = 0;
  /** What a copy looks at, at hand. */
  private readonly i32: Int32Array;
  private readonly owner: Uint16Array;
  private readonly byDomid: (Domain | null)[];
  constructor(private readonly hypervisor: Hypervisor) {
    this.i32 = hypervisor.memory.i32;
    this.owner = hypervisor.frames.owner;
    this.byDomid = hypervisor.byDomid;
  }

  /** The domain that `dom` names in an operation on a whole table, or null. */
  private subject(caller: Domain, dom: number): Domain | null {
    return dom === DOMID_SELF ? caller : this.hypervisor.domain(dom);
  }

  /**
   * GNTTABOP_setup_table: makes the table at least `frames` long.
   * @returns GNTST status; the frames are then in `domain.grantTable.frames`
   */
  setupTable(caller: Domain, dom: number, frames: number): number {
    const domain = this.subject(caller, dom);
    if (domain === null) return GNTST.bad_domain;
    if (domain !== caller && !caller.privileged) return GNTST.permission_denied;
    return domain.grantTable.grow(frames) ? GNTST.okay : GNTST.general_error;
  }

  /** GNTTABOP_query_size. */
  querySize(caller: Domain, dom: number): { status: number; frames: number; maxFrames: number } {
    const domain = this.subject(caller, dom);
    if (domain === null) return { status: GNTST.bad_domain, frames: 0, maxFrames: 0 };
    if (domain !== caller && !caller.privileged) {
      return { status: GNTST.permission_denied, frames: 0, maxFrames: 0 };
    }
    const { frames, maxFrames } = domain.grantTable;
    return { status: GNTST.okay, frames: frames.length, maxFrames };
  }

  /**
   * GNTTABOP_set_version, for the caller's own table.
   * @throws EINVAL for another version than 1 and 2; ENOSYS where only 1 is allowed; EBUSY, ERANGE as
   *   `GrantTable.setVersion` says
   */
  setVersion(caller: Domain, version: number): void {
    if (version !== 1 && version !== 2) {
      throw new HypercallError('EINVAL', `grant table version ${version}: there are 1 and 2`);
    }
    if (version > caller.maxGrantVersion) {
      throw new HypercallError('ENOSYS', `grant table version ${version} is switched off for this domain`);
    }
    const table = caller.grantTable;
    if (version === table.version) return;
    for (const frame of table.statusFrames) caller.removeFromPhysmap(frame);
    table.setVersion(version);
  }

  /** GNTTABOP_get_version. @throws ESRCH, EPERM */
  getVersion(caller: Domain, dom: number): number {
    const domain = this.subject(caller, dom);
    if (domain === null) throw new HypercallError('ESRCH', `there is no domain ${dom}`);
    if (domain !== caller && !caller.privileged) {
      throw new HypercallError('EPERM', `domain ${caller.domid} may not ask about domain ${dom}`);
    }
    return domain.grantTable.version;
  }

  /** GNTTABOP_get_status_frames: the first `frames` frames of the status array. */
  getStatusFrames(caller: Domain, dom: number, frames: number): { status: number; frames: number[] } {
    const domain = this.subject(caller, dom);
    if (domain === null) return { status: GNTST.bad_domain, frames: [] };
    if (domain !== caller && !caller.privileged) return { status: GNTST.permission_denied, frames: [] };
    const { version, statusFrames } = domain.grantTable;
    if (version !== 2 || frames > statusFrames.length) return { status: GNTST.general_error, frames: [] };
    return { status: GNTST.okay, frames: statusFrames.slice(0, frames) };
  }

  /** GNTTABOP_swap_grant_ref, for the caller's own table. */
  swapGrantRef(caller: Domain, refA: number, refB: number): number {
    const table = caller.grantTable;
    if (refA >= table.entries || refB >= table.entries) return GNTST.bad_gntref;
    if (refA === refB) return GNTST.okay;
    if (table.isPinned(refA) || table.isPinned(refB)) return GNTST.eagain;
    const { i32 } = this.hypervisor.memory;
    const a = table.entryWord(refA);
    const b = table.entryWord(refB);
    const words = table.version === 1 ? 2 : 4;
    for (let i = 0; i < words; i++) {
      const word = i32[a + i];
      i32[a + i] = i32[b + i];
      i32[b + i] = word;
    }
    return GNTST.okay;
  }

  /**
   * GNTTABOP_map_grant_ref.
   * @param flags GNTMAP bits; a host or device mapping must be asked for
   */
  map(caller: Domain, dom: number, gref: number, flags: number): MapResult {
    const result = this.mapResult;
    result.handle = -1;
    result.frame = 0;
    result.status = this.tryMap(caller, dom, gref, flags, result);
    return result;
  }

  private tryMap(caller: Domain, dom: number, gref: number, flags: number, result: MapResult): number {
    if ((flags & (GNTMAP_host_map | GNTMAP_device_map)) === 0) return GNTST.bad_gntref;
    const granter = this.hypervisor.domain(dom);
    if (granter === null) return GNTST.bad_domain;
    const table = granter.grantTable;
    if (gref >= table.entries) return GNTST.bad_gntref;
    const write = (flags & GNTMAP_readonly) === 0;
    const status = table.pin(gref, caller.domid, write, true);
    if (status !== GNTST.okay) return status;
    const frame = granter.ramFrame(this.grantedGfn(granter, gref));
    if (frame === 0) {
      table.unpin(gref, write);
      return GNTST.bad_page;
    }
    const kept = flags & (GNTMAP_host_map | GNTMAP_device_map | GNTMAP_readonly);
    const handle = caller.maptrack.add(dom, gref, kept, frame);
    if (handle < 0) {
      table.unpin(gref, write);
      return GNTST.no_device_space;
    }
    this.hypervisor.holdFrame(granter, frame);
    result.handle = handle;
    result.frame = frame;
    return GNTST.okay;
  }

  /** The guest frame number in an entry; -1 when it has more than 32 bits. */
  private grantedGfn(granter: Domain, gref: number): number {
    const table = granter.grantTable;
    const { u32 } = this.hypervisor.memory;
    const at = table.entryWord(gref);
    if (table.version === 1) return u32[at + 1];
    const frame = at + (GRANT_ENTRY_V2.full_page.frame >> 2);
    return u32[frame + 1] === 0 ? u32[frame] : -1;
  }

  /**
   * GNTTABOP_unmap_grant_ref: ends the host mapping, the device mapping, or both.
   * @returns GNTST status
   */
  unmap(caller: Domain, handle: number, host = true, device = true): number {
    const { maptrack } = caller;
    if (!maptrack.isUsed(handle)) return GNTST.bad_handle;
    const flags = maptrack.flags[handle];
    const ends = (host ? GNTMAP_host_map : 0) | (device ? GNTMAP_device_map : 0);
    const left = flags & ~ends;
    if ((left & (GNTMAP_host_map | GNTMAP_device_map)) !== 0) {
      maptrack.flags[handle] = left;
      return GNTST.okay;
    }
    const granter = this.hypervisor.domainOrZombie(maptrack.domid[handle]);
    const gref = maptrack.gref[handle];
    const frame = maptrack.frame[handle];
    maptrack.remove(handle);
    granter.grantTable.unpin(gref, (flags & GNTMAP_readonly) === 0);
    this.hypervisor.dropFrame(granter, frame);
    return GNTST.okay;
  }

  /**
   * GNTTABOP_copy for each entry of the batch; the local sides are pages of the caller's memory. Every
   * copy gets its own status, and a failed one changes nothing else.
   */
  copy(caller: Domain, batch: CopyBatch): void {
    const { words } = batch;
    const { i32, plainSource, plainDest } = this;
    const end = batch.count * COPY_WORDS;
    plainSource.domid = NOBODY;
    plainDest.domid = NOBODY;
    let list = 0;
    for (let at = 0; at < end; at += COPY_WORDS) {
      const bytes = words[at + COPY_LENGTH];
      const from = words[at + COPY_SRC_OFFSET];
      const to = words[at + COPY_DST_OFFSET];
      if (from + bytes <= PAGE_SIZE && to + bytes <= PAGE_SIZE) {
        let source = this.plainAddress(
          plainSource,
          caller,
          words[at + COPY_SRC_DOMID],
          words[at + COPY_SRC_REF],
          0,
        );
        let dest = this.plainAddress(
          plainDest,
          caller,
          words[at + COPY_DST_DOMID],
          words[at + COPY_DST_REF],
          GTF_readonly,
        );
        if (source < 0)
          source = this.pinnedAddress(
            plainSource,
            caller,
            words[at + COPY_SRC_DOMID],
            words[at + COPY_SRC_REF],
            false,
          );
        if (dest < 0)
          dest = this.pinnedAddress(
            plainDest,
            caller,
            words[at + COPY_DST_DOMID],
            words[at + COPY_DST_REF],
            true,
          );
        if ((source | dest) >= 0) {
          i32[list] = dest + to;
          i32[list + 1] = source + from;
          i32[list + 2] = bytes;
          list += LIST_WORDS;
          words[at + COPY_STATUS] = GNTST.okay;
          if (list < LIST_END) continue;
        }
      }
      // The copies stay in their order.
      this.copyListed(list);
      if (list < LIST_END) words[at + COPY_STATUS] = this.copySlowly(caller, words, at);
      list = 0;
    }
    this.copyListed(list);
  }

  private copyListed(end: number): void {
    if (end > 0) this.hypervisor.memory.copyList(0, end << 2);
    if (this.pinWords > 0) this.unpinListed();
  }

  private unpinListed(): void {
    const { pins, byDomid } = this;
    for (let i = 0; i < this.pinWords; i += 2) {
      byDomid[pins[i]]!.grantTable.unpin(pins[i + 1] >>> 1, (pins[i + 1] & 1) !== 0);
    }
    this.pinWords = 0;
  }

  /**
   * `plainAddress` for a v1 entry of a domain in another thread: pins it until the listed copies are done.
   * @param side as `plainAddress` has left it
   */
  private pinnedAddress(side: PlainSide, caller: Domain, domid: number, ref: number, write: boolean): number {
    const { table, physmap } = side;
    // The side still is of another domain when the copy names a page of the caller's own.
    if (domid !== side.domid || table === null || table.version !== 1) return -1;
    if (ref < 0 || ref >= table.entries) return -1;
    if (table.pin(ref, caller.domid, write, false) !== GNTST.okay) return -1;
    const gfn = this.i32[table.entryWord(ref) + 1];
    const frame = gfn < 0 || gfn >= physmap.length ? 0 : physmap[gfn];
    if (frame <= 0 || frame >>> BANK_SHIFT !== 0) {
      table.unpin(ref, write);
      return -1;
    }
    this.pins[this.pinWords++] = side.domid;
    this.pins[this.pinWords++] = (ref << 1) | (write ? 1 : 0);
    return frame << PAGE_SHIFT;
  }

  /**
   * The byte address in machine memory of one side of a copy, when plain reads suffice to allow it: a page
   * of the caller's own, or a v1 entry of a domain in our thread. Otherwise -1, which only means that it
   * takes the long way.
   *
   * No reading or writing bit is set: the granter cannot run before the copy is done, so it could not see it.
   * @param ref as int32; a negative one, which is beyond every table, takes the long way
   * @param refused flags that the entry must not have
   */
  private plainAddress(side: PlainSide, caller: Domain, domid: number, ref: number, refused: number): number {
    if (ref < 0) return -1;
    if (domid === COPY_LOCAL) {
      return this.owner[ref] === caller.domid && caller.bank === 0 ? ref << PAGE_SHIFT : -1;
    }
    if (domid !== side.domid) side.select(domid, this.byDomid[domid] ?? null);
    if (ref >= side.entries) return -1;
    const { i32 } = this;
    const at = side.frameWords[ref >>> V1_FRAME_SHIFT] + ((ref & V1_ENTRY_IN_FRAME) << 1);
    const head = i32[at];
    if ((head & (0xffff0000 | GTF_type_mask | refused)) !== ((caller.domid << 16) | GTF_permit_access)) {
      return -1;
    }
    const { physmap } = side;
    const gfn = i32[at + 1];
    if (gfn < 0 || gfn >= physmap.length) return -1;
    const frame = physmap[gfn];
    return frame > 0 && frame >>> BANK_SHIFT === 0 ? frame << PAGE_SHIFT : -1;
  }

  /** Does the copy at `at` of a batch's words. @returns its status */
  private copySlowly(caller: Domain, words: Int32Array, at: number): number {
    const { source, dest, hypervisor } = this;
    const bytes = words[at + COPY_LENGTH];
    if (bytes === 0) return GNTST.okay;
    let status = this.claim(
      source,
      caller,
      words[at + COPY_SRC_DOMID],
      words[at + COPY_SRC_REF] >>> 0,
      false,
    );
    if (status !== GNTST.okay) return status;
    status = this.claim(dest, caller, words[at + COPY_DST_DOMID], words[at + COPY_DST_REF] >>> 0, true);
    if (status === GNTST.okay) {
      const from = words[at + COPY_SRC_OFFSET];
      const to = words[at + COPY_DST_OFFSET];
      if (from + bytes > PAGE_SIZE || to + bytes > PAGE_SIZE) status = GNTST.bad_copy_arg;
      else if (from < source.start || from + bytes > source.end) status = GNTST.general_error;
      else if (to < dest.start || to + bytes > dest.end) status = GNTST.general_error;
      else if (source.memory === dest.memory) {
        dest.memory.copy(dest.address + to, source.address + from, bytes);
      } else {
        const at = source.address + from;
        dest.memory.u8.set(source.memory.u8.subarray(at, at + bytes), dest.address + to);
      }
      if (status === GNTST.okay) hypervisor.written(dest.bank, dest.address + to, bytes);
      this.unclaim(dest, true);
    }
    this.unclaim(source, false);
    return status;
  }

  /** Pins one side and finds its page; nothing is held when the status is not okay. */
  private claim(side: CopySide, caller: Domain, domid: number, ref: number, write: boolean): number {
    side.granter = null;
    side.via = null;
    side.start = 0;
    side.end = PAGE_SIZE;
    const at = write ? this.plainDest : this.plainSource;
    const plain = this.plainAddress(at, caller, domid, ref | 0, write ? GTF_readonly : 0);
    if (plain >= 0) {
      side.bank = 0;
      side.memory = this.hypervisor.memory;
      side.address = plain;
      return GNTST.okay;
    }
    if (domid === COPY_LOCAL) {
      const frame = caller.ownFrame(ref);
      if (frame === 0) return GNTST.bad_page;
      this.place(side, frame);
      return GNTST.okay;
    }
    const granter = this.subject(caller, domid);
    if (granter === null) return GNTST.bad_domain;
    return this.claimGrant(side, granter, ref, caller.domid, write, true);
  }

  private claimGrant(
    side: CopySide,
    granter: Domain,
    gref: number,
    domid: number,
    write: boolean,
    allowTransitive: boolean,
  ): number {
    const table = granter.grantTable;
    if (gref >= table.entries) return GNTST.bad_gntref;
    let status = table.pin(gref, domid, write, false);
    if (status !== GNTST.okay) return status;
    const v2 = table.version === 2;
    const flags = v2 ? Atomics.load(this.i32, table.entryWord(gref)) : 0;
    if (v2 && (flags & GTF_type_mask) === GTF_transitive) {
      status = allowTransitive ? this.claimTransitive(side, granter, gref, write) : GNTST.general_error;
      if (status !== GNTST.okay) table.unpin(gref, write);
      return status;
    }
    const frame = granter.ramFrame(this.grantedGfn(granter, gref));
    if (frame === 0) {
      table.unpin(gref, write);
      return GNTST.bad_page;
    }
    if (v2 && (flags & GTF_sub_page) !== 0) {
      const range = this.i32[table.entryWord(gref) + 1];
      side.start = range & 0xffff;
      side.end = Math.min(PAGE_SIZE, side.start + (range >>> 16));
    }
    this.place(side, frame);
    side.granter = granter;
    side.gref = gref;
    return GNTST.okay;
  }

  /** A grant of a grant: one level, and not of the granter's own (XSA-226). */
  private claimTransitive(side: CopySide, granter: Domain, gref: number, write: boolean): number {
    const at = granter.grantTable.entryWord(gref);
    const { i32, u32 } = this.hypervisor.memory;
    const transDomid = i32[at + 1] & 0xffff;
    const transGref = u32[at + (GRANT_ENTRY_V2.transitive.gref >> 2)];
    if (transDomid === granter.domid) return GNTST.general_error;
    const owner = this.hypervisor.domain(transDomid);
    if (owner === null) return GNTST.general_error;
    const status = this.claimGrant(side, owner, transGref, granter.domid, write, false);
    if (status !== GNTST.okay) return status;
    side.via = granter;
    side.viaGref = gref;
    return GNTST.okay;
  }

  private place(side: CopySide, frame: number): void {
    side.bank = frame >>> BANK_SHIFT;
    side.memory = this.hypervisor.memoryOf(frame);
    side.address = (frame & PAGE_IN_BANK) * PAGE_SIZE;
  }

  private unclaim(side: CopySide, write: boolean): void {
    if (side.granter !== null) side.granter.grantTable.unpin(side.gref, write);
    if (side.via !== null) side.via.grantTable.unpin(side.viaGref, write);
  }
}
