import {
  GNTST,
  GNTTAB_NR_RESERVED_ENTRIES,
  GRANT_ENTRIES_PER_FRAME_V1,
  GRANT_ENTRIES_PER_FRAME_V2,
  GRANT_ENTRY_V2,
  GRANT_STATUS_PER_FRAME,
  GTF_invalid,
  GTF_permit_access,
  GTF_reading,
  GTF_readonly,
  GTF_sub_page,
  GTF_transitive,
  GTF_type_mask,
  GTF_writing,
} from '../../abi/grant-table.js';
import { HypercallError } from '../errors.js';
import { PAGE_SHIFT } from '../memory.js';
import { RECORD_ENTRIES, RECORD_PINS, RECORD_PLAIN, RECORD_TABLE } from './domain-record.js';
import type { FrameTable } from './frame-table.js';
import type { MachineMemory } from './machine-memory.js';

/** Times that a pin starts over because the granter changed its entry meanwhile, as in Xen. */
const PIN_RETRIES = 5;
/** From a frame's number to the index of its first word. */
const WORD_SHIFT = PAGE_SHIFT - 2;
const V1_FRAME_SHIFT = 9;
const V2_FRAME_SHIFT = 8;
const STATUS_FRAME_SHIFT = 11;

/**
 * What Xen keeps of one domain's grants: the table's frames, in which the domain writes its entries, and
 * how often each entry is pinned by mappings and copies.
 *
 * The granting domain may run in another thread and change an entry at any moment, so pins set and clear
 * the reading and writing bits by compare-and-exchange over flags and domid together, and every field is
 * read once.
 */
export class GrantTable {
  version: 1 | 2 = 1;
  /** Machine frames of the table, in order; the domain's memory map shows the same frames. */
  readonly frames: number[] = [];
  /** Machine frames of the v2 status array; none in v1. */
  readonly statusFrames: number[] = [];
  /** Frames with the pins of the entries of each table frame: two words an entry, how often to read and to write. */
  private readonly pinFrames: number[] = [];
  /** Entries that exist: references are below this. */
  entries = 0;
  /** Pins of all entries together, but those of copies that are being made. */
  pinned = 0;

  constructor(
    private readonly memory: MachineMemory,
    private readonly frameTable: FrameTable,
    /** Byte address of the domain's record (domain-record.ts). */
    private readonly record: number,
    /** Frames that the table may grow to, at most RECORD_FRAMES_MAX. */
    readonly maxFrames: number,
    /** The domain's kernel runs in another thread. */
    private readonly threaded: boolean,
  ) {
    this.grow(1);
  }

  /** Entries that the table may grow to. */
  get maxEntries(): number {
    return this.maxFrames * this.entriesPerFrame;
  }

  private get entriesPerFrame(): number {
    return this.version === 2 ? GRANT_ENTRIES_PER_FRAME_V2 : GRANT_ENTRIES_PER_FRAME_V1;
  }

  /**
   * `entries` if copies may check an entry with plain reads and leave its pin bits alone: version 1, and the
   * domain runs in our thread, so that nobody can look while a copy is made. Otherwise 0.
   */
  get plainEntries(): number {
    return this.memory.i32[(this.record + RECORD_PLAIN) >>> 2];
  }

  set plainEntries(entries: number) {
    this.memory.i32[(this.record + RECORD_PLAIN) >>> 2] = entries;
  }

  /** Makes the table at least `frames` long. @returns false when it may not, or memory lacks */
  grow(frames: number): boolean {
    if (frames > this.maxFrames) return false;
    // Each frame of the table needs one for pins, and at most one of the status array.
    if (this.frameTable.available < 3 * (frames - this.frames.length)) return false;
    while (this.frames.length < frames) {
      this.addFrame(this.frames, RECORD_TABLE);
      this.addFrame(this.pinFrames, RECORD_PINS);
    }
    this.resize();
    return true;
  }

  /** Grows the status array with it. */
  private resize(): void {
    const v2 = this.version === 2;
    this.entries = this.frames.length * this.entriesPerFrame;
    if (v2) {
      const status = Math.ceil(this.entries / GRANT_STATUS_PER_FRAME);
      while (this.statusFrames.length < status) this.statusFrames.push(this.frameTable.allocXen());
    }
    this.memory.i32[(this.record + RECORD_ENTRIES) >>> 2] = v2 ? 0 : this.entries;
    this.plainEntries = v2 || this.threaded ? 0 : this.entries;
  }

  private addFrame(list: number[], field: number): void {
    const frame = this.frameTable.allocXen();
    this.memory.i32[((this.record + field) >>> 2) + list.length] = frame << PAGE_SHIFT;
    list.push(frame);
  }

  /** Index in `memory.i32` of an entry's first word: flags in the low half, domid in the high one. */
  entryWord(gref: number): number {
    return this.version === 1
      ? (this.frames[gref >>> V1_FRAME_SHIFT] << WORD_SHIFT) +
          ((gref & (GRANT_ENTRIES_PER_FRAME_V1 - 1)) << 1)
      : (this.frames[gref >>> V2_FRAME_SHIFT] << WORD_SHIFT) +
          ((gref & (GRANT_ENTRIES_PER_FRAME_V2 - 1)) << 2);
  }

  /** Index in `memory.i32` of how often an entry is pinned to read; how often to write is behind it. */
  private pinWord(gref: number): number {
    return this.version === 1
      ? (this.pinFrames[gref >>> V1_FRAME_SHIFT] << WORD_SHIFT) +
          ((gref & (GRANT_ENTRIES_PER_FRAME_V1 - 1)) << 1)
      : (this.pinFrames[gref >>> V2_FRAME_SHIFT] << WORD_SHIFT) +
          ((gref & (GRANT_ENTRIES_PER_FRAME_V2 - 1)) << 1);
  }

  /** Index in `memory.u16` of an entry's status (v2). */
  statusHalfword(gref: number): number {
    const frame = this.statusFrames[gref >>> STATUS_FRAME_SHIFT];
    return (frame << (PAGE_SHIFT - 1)) + (gref & (GRANT_STATUS_PER_FRAME - 1));
  }

  /** True while a mapping or a copy holds the entry. */
  isPinned(gref: number): boolean {
    return this.readers(gref) !== 0 || this.writers(gref) !== 0;
  }

  readers(gref: number): number {
    return this.memory.i32[this.pinWord(gref)];
  }

  writers(gref: number): number {
    return this.memory.i32[this.pinWord(gref) + 1];
  }

  /**
   * Takes a grant for `domid`: checks the entry and sets its reading and, for a writer, writing bit.
   * @param gref below `entries`
   * @param mapping to map the page: a part of a page or a transitive grant will not do
   * @returns GNTST_okay, or why not, and then nothing has changed
   */
  pin(gref: number, domid: number, write: boolean, mapping: boolean): number {
    const status =
      this.version === 1 ? this.pinV1(gref, domid, write) : this.pinV2(gref, domid, write, mapping);
    if (status === GNTST.okay) {
      this.memory.i32[this.pinWord(gref) + (write ? 1 : 0)]++;
      this.pinned++;
    }
    return status;
  }

  private pinV1(gref: number, domid: number, write: boolean): number {
    const { i32 } = this.memory;
    const at = this.entryWord(gref);
    const wanted = (domid << 16) | GTF_permit_access;
    const bits = write ? GTF_reading | GTF_writing : GTF_reading;
    // Read plainly: the exchange finds out whether it was right.
    let word = i32[at];
    for (let tries = 0; tries < PIN_RETRIES; tries++) {
      if ((word & (0xffff0000 | GTF_type_mask)) !== wanted) return GNTST.general_error;
      if (write && (word & GTF_readonly) !== 0) return GNTST.general_error;
      const seen = Atomics.compareExchange(i32, at, word, word | bits);
      if (seen === word) return GNTST.okay;
      word = seen;
    }
    return GNTST.general_error;
  }

  private pinV2(gref: number, domid: number, write: boolean, mapping: boolean): number {
    const { i32, u16 } = this.memory;
    const at = this.entryWord(gref);
    const statusAt = this.statusHalfword(gref);
    const mask = mapping ? GTF_type_mask | GTF_sub_page : GTF_type_mask;
    const word = Atomics.load(i32, at);
    const type = word & mask;
    if (type !== GTF_permit_access && (mapping || type !== GTF_transitive)) return GNTST.general_error;
    if (word >>> 16 !== domid) return GNTST.general_error;
    if (write && (word & GTF_readonly) !== 0) return GNTST.general_error;
    Atomics.or(u16, statusAt, write ? GTF_reading | GTF_writing : GTF_reading);
    // The granter revokes by clearing flags, then looking at the status: look again, after setting it.
    if (Atomics.load(i32, at) === word) return GNTST.okay;
    this.clearBits(gref);
    return GNTST.general_error;
  }

  /** Ends one pin, and clears the bits that no other pin needs. */
  unpin(gref: number, write: boolean): void {
    this.memory.i32[this.pinWord(gref) + (write ? 1 : 0)]--;
    this.pinned--;
    this.clearBits(gref);
  }

  private clearBits(gref: number): void {
    const writing = this.writers(gref) > 0;
    const reading = writing || this.readers(gref) > 0;
    const keep = ~((writing ? 0 : GTF_writing) | (reading ? 0 : GTF_reading));
    if (keep === -1) return;
    if (this.version === 1) Atomics.and(this.memory.i32, this.entryWord(gref), keep);
    else Atomics.and(this.memory.u16, this.statusHalfword(gref), keep & 0xffff);
  }

  /**
   * GNTTABOP_set_version. Entries beyond the reserved ones are lost.
   * @throws EBUSY while one of those is in use; ERANGE for a reserved entry that the other version cannot hold
   */
  setVersion(version: 1 | 2): void {
    if (version === this.version) return;
    const { i32 } = this.memory;
    for (let gref = GNTTAB_NR_RESERVED_ENTRIES; gref < this.entries; gref++) {
      if (this.isPinned(gref)) {
        throw new HypercallError('EBUSY', `grant ${gref} is in use, so the table's version cannot change`);
      }
    }
    const reserved: { flags: number; domid: number; frame: number }[] = [];
    for (let gref = 0; gref < GNTTAB_NR_RESERVED_ENTRIES; gref++) {
      const at = this.entryWord(gref);
      const word = i32[at];
      const type = word & GTF_type_mask;
      const fits =
        (type === GTF_invalid || type === GTF_permit_access) &&
        (this.version === 1 || ((word & GTF_sub_page) === 0 && i32[at + 3] === 0));
      if (!fits)
        throw new HypercallError(
          'ERANGE',
          `reserved grant ${gref} has flags ${word & 0xffff}: of another kind`,
        );
      let flags = word & 0xffff;
      if (this.version === 2) flags |= this.memory.u16[this.statusHalfword(gref)];
      const frame = i32[this.version === 1 ? at + 1 : at + (GRANT_ENTRY_V2.full_page.frame >> 2)];
      reserved.push({ flags: type === GTF_invalid ? 0 : flags, domid: word >>> 16, frame });
    }
    for (const frame of this.frames) this.memory.clearPage(frame);
    for (const frame of this.statusFrames) this.frameTable.release(frame);
    this.statusFrames.length = 0;
    this.version = version;
    this.resize();
    reserved.forEach(({ flags, domid, frame }, gref) => {
      if (flags === 0) return;
      const at = this.entryWord(gref);
      if (version === 1) {
        i32[at + 1] = frame;
        Atomics.store(i32, at, flags | (domid << 16));
      } else {
        const pins = GTF_reading | GTF_writing;
        i32[at + 2] = frame;
        this.memory.u16[this.statusHalfword(gref)] = flags & pins;
        Atomics.store(i32, at, (flags & ~pins) | (domid << 16));
      }
    });
  }

  /** Gives the table's frames back; the domain is gone. */
  destroy(): void {
    for (const frame of this.frames) this.frameTable.release(frame);
    for (const frame of this.statusFrames) this.frameTable.release(frame);
    for (const frame of this.pinFrames) this.frameTable.release(frame);
    this.frames.length = 0;
    this.statusFrames.length = 0;
    this.pinFrames.length = 0;
    this.entries = 0;
  }
}
