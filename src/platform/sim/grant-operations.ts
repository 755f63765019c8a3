import {
  GNTMAP_device_map,
  GNTMAP_host_map,
  GNTMAP_readonly,
  GNTST,
  GRANT_ENTRY_V2,
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
import type { Hypervisor } from './hypervisor.js';
import { MODULE } from './wasm/hypercalls.bytes.js';

/** Copies of a batch that are done by one call into WebAssembly: their words are put into a frame for it. */
const COPIES_AT_ONCE = PAGE_SIZE / 4 / COPY_WORDS;

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

/** What `wasm/hypercalls.ts` exports. */
interface Hypercalls {
  start(directory: number, owner: number, frames: number, scratch: number): void;
  copy(caller: number, words: number, first: number, count: number): number;
}

/**
 * The grant-table hypercalls, GNTTABOP by GNTTABOP, for any caller: a TypeScript domain through its
 * Platform, or an adapter that decodes the argument structs of an emulated guest.
 */
export class GrantOperations {
  private readonly mapResult: MapResult = { status: 0, handle: 0, frame: 0 };
  private readonly source = new CopySide();
  private readonly dest = new CopySide();
  /** The functions of wasm/hypercalls.ts over machine memory: also for drivers' modules to import. */
  readonly hypercalls: Record<string, unknown>;
  private readonly copyUsual: Hypercalls['copy'];
  /** Byte address of the words of copies that are being made. */
  private readonly staged: number;
  /** Byte address of the frame in which the code notes their pages. */
  readonly found: number;
  private readonly i32: Int32Array;

  constructor(private readonly hypervisor: Hypervisor) {
    const { memory, frames, directory } = hypervisor;
    this.i32 = memory.i32;
    this.staged = frames.allocXen() << PAGE_SHIFT;
    this.hypercalls = memory.instantiate(MODULE, {}) as Record<string, unknown>;
    const { start, copy } = this.hypercalls as unknown as Hypercalls;
    this.found = frames.allocXen() << PAGE_SHIFT;
    start(directory.address, frames.ownerAddress, memory.pages, this.found);
    this.copyUsual = copy;
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
    for (let first = 0; first < batch.count; first += COPIES_AT_ONCE) {
      this.copySome(caller, batch.words, first * COPY_WORDS, Math.min(COPIES_AT_ONCE, batch.count - first));
    }
  }

  private copySome(caller: Domain, words: Int32Array, from: number, count: number): void {
    const { i32, staged } = this;
    const to = staged >>> 2;
    for (let i = 0; i < count * COPY_WORDS; i++) i32[to + i] = words[from + i];
    for (let i = 0; ; i++) {
      i = this.copyUsual(caller.record, staged, i, count);
      if (i >= count) break;
      const at = from + i * COPY_WORDS;
      i32[to + i * COPY_WORDS + COPY_STATUS] = this.copySlowly(caller, words, at);
    }
    for (let i = COPY_STATUS; i < count * COPY_WORDS; i += COPY_WORDS) words[from + i] = i32[to + i];
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
