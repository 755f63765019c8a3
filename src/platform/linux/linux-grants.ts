import { readFileSync } from 'node:fs';
import { GNTST } from '../../abi/grant-table.js';
import {
  COPY_DST_OFFSET,
  COPY_DST_REF,
  COPY_LENGTH,
  COPY_SRC_OFFSET,
  COPY_SRC_REF,
  COPY_STATUS,
  COPY_WORDS,
  type CopyBatch,
} from '../copy-batch.js';
import { GrantError, HypercallError } from '../errors.js';
import { type Memory, PAGE_SHIFT } from '../memory.js';
import type { GrantMapping, Grants } from '../platform.js';
import { CopySegments, type ForeignPages, SEGMENT_BYTES } from './copy-segments.js';
import { openXenDevice } from './devices.js';
import { CStruct, checked, errno, errnoName, libc, type SystemError } from './libc.js';
import type { LinuxMemory } from './linux-memory.js';

/** include/uapi/xen/gntdev.h */
const IOCTL_GNTDEV_MAP_GRANT_REF = 0x184700;
const IOCTL_GNTDEV_UNMAP_GRANT_REF = 0x104701;
const IOCTL_GNTDEV_GRANT_COPY = 0x104708;
/** include/uapi/xen/gntalloc.h */
const IOCTL_GNTALLOC_ALLOC_GREF = 0x184705;
const IOCTL_GNTALLOC_DEALLOC_GREF = 0x104706;
const GNTALLOC_FLAG_WRITABLE = 1;

/** Copies that go into one ioctl. */
const SEGMENTS = 512;
const GNTALLOC_LIMIT = '/sys/module/xen_gntalloc/parameters/limit';

/** Calls into the kernel, by what they were for. */
export class GrantCounts {
  /** IOCTL_GNTDEV_GRANT_COPY calls, and the copies in them. */
  copyIoctls = 0;
  copies = 0;
  copyBytes = 0;
  /** Copies from grant to grant, part of `copies`: payload that never was in this domain's memory. */
  grantToGrant = 0;
  /** Copies inside our own memory, which need no call. */
  localCopies = 0;
  maps = 0;
  unmaps = 0;
}

class LinuxMapping implements GrantMapping {
  mapped = true;

  constructor(
    readonly domid: number,
    readonly gref: number,
    readonly readonly: boolean,
    readonly memory: Memory,
    readonly page: number,
    readonly offset: number,
  ) {}

  get address(): number {
    return this.page << PAGE_SHIFT;
  }
}

/** Grants as a process has them: /dev/xen/gntdev for other domains', /dev/xen/gntalloc for its own. */
export class LinuxGrants implements Grants, ForeignPages {
  /** Copies are the kernel's. */
  readonly wasm = null;
  readonly regrantable = false;
  readonly counts = new GrantCounts();
  private readonly gntdev: number;
  /** Opened when the first page is granted: a backend needs none. */
  private gntalloc = -1;
  private readonly argument = new CStruct(32);
  /** Of the copy ioctl, which always gets the same array. */
  private readonly copyArgument = new CStruct(16);
  private readonly segmentArray = new CStruct(SEGMENTS * SEGMENT_BYTES);
  private readonly segments: CopySegments;
  /** What is mapped at each page: -1, or the domain. */
  private readonly foreignDomid: Int16Array;
  private readonly foreignGref: Uint32Array;
  private readonly copyLocal = ({ words }: CopyBatch, index: number): void => {
    const at = index * COPY_WORDS;
    const from = (words[at + COPY_SRC_REF] << PAGE_SHIFT) + words[at + COPY_SRC_OFFSET];
    const to = (words[at + COPY_DST_REF] << PAGE_SHIFT) + words[at + COPY_DST_OFFSET];
    this.own.memory.copy(to, from, words[at + COPY_LENGTH]);
    words[at + COPY_STATUS] = GNTST.okay;
    this.counts.localCopies++;
  };
  private readonly granted = new Map<number, { page: number; offset: number }>();
  private mappings = 0;
  private failures = 0;

  /** @throws SystemError that says what to do */
  constructor(
    private readonly own: LinuxMemory,
    private readonly log: (line: string) => void,
  ) {
    this.gntdev = openXenDevice('/dev/xen/gntdev');
    const words = new Uint32Array(this.segmentArray.u8.buffer);
    this.copyArgument.view.setBigUint64(8, BigInt(this.segmentArray.address), true);
    this.segments = new CopySegments(words, own.base, this);
    this.foreignDomid = new Int16Array(own.memory.pages).fill(-1);
    this.foreignGref = new Uint32Array(own.memory.pages);
  }

  get allocated(): number {
    return this.granted.size;
  }

  /** Infinite where the kernel does not say; other processes take from the same. */
  get available(): number {
    try {
      return Math.max(0, Number(readFileSync(GNTALLOC_LIMIT, 'latin1')) - this.granted.size);
    } catch {
      return Number.POSITIVE_INFINITY;
    }
  }

  get mapped(): number {
    return this.mappings;
  }

  domidAt(page: number): number {
    return this.foreignDomid[page];
  }

  grefAt(page: number): number {
    return this.foreignGref[page];
  }

  alloc(): number {
    throw tied('alloc');
  }

  free(): void {
    throw tied('free');
  }

  grant(): void {
    throw tied('grant');
  }

  end(): boolean {
    throw tied('end');
  }

  /** Puts a page that the kernel grants in the place of `page`, with the same content. */
  grantAccess(domid: number, page: number, readonly: boolean): number {
    if (this.gntalloc < 0) this.gntalloc = openXenDevice('/dev/xen/gntalloc');
    const { view, address } = this.argument;
    view.setUint16(0, domid, true);
    view.setUint16(2, readonly ? 0 : GNTALLOC_FLAG_WRITABLE, true);
    view.setUint32(4, 1, true);
    if (libc().ioctl(this.gntalloc, IOCTL_GNTALLOC_ALLOC_GREF, address) < 0) {
      const code = errnoName(errno());
      throw new HypercallError(
        code,
        `no grant for domain ${domid}, ${this.granted.size} are in use; ${GNTALLOC_LIMIT} bounds them`,
      );
    }
    const offset = Number(view.getBigUint64(8, true));
    const gref = view.getUint32(16, true);
    const { memory } = this.own;
    const kept = memory.u8.slice(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT);
    try {
      this.own.replace(page, this.gntalloc, offset, true);
    } catch (error) {
      this.dealloc(offset);
      throw error;
    }
    memory.u8.set(kept, page << PAGE_SHIFT);
    this.granted.set(gref, { page, offset });
    return gref;
  }

  /** The page becomes another one, with nothing in it: the peer may go on with the old one, and harms nobody. */
  endAccess(gref: number): boolean {
    const grant = this.granted.get(gref);
    if (grant === undefined) throw new HypercallError('EINVAL', `grant reference ${gref} is not ours`);
    this.granted.delete(gref);
    this.own.restore(grant.page);
    this.dealloc(grant.offset);
    return true;
  }

  map(domid: number, gref: number, readonly: boolean): GrantMapping {
    const { view, address } = this.argument;
    view.setUint32(0, 1, true);
    view.setUint32(16, domid, true);
    view.setUint32(20, gref, true);
    const what = `mapping grant ${gref} of domain ${domid}`;
    // First, as it may fail: gntdev keeps what it has mapped until it is told.
    const page = this.own.allocPage();
    let offset = -1;
    try {
      checked(libc().ioctl(this.gntdev, IOCTL_GNTDEV_MAP_GRANT_REF, address), 'asking gntdev');
      offset = Number(view.getBigUint64(8, true));
      this.own.replace(page, this.gntdev, offset, !readonly);
    } catch (error) {
      if (offset >= 0) {
        this.own.restore(page);
        this.forget(offset);
      }
      this.own.freePage(page);
      throw new GrantError(GNTST.general_error, `${what}: ${(error as SystemError).message}`);
    }
    this.counts.maps++;
    this.mappings++;
    this.foreignDomid[page] = domid;
    this.foreignGref[page] = gref;
    return new LinuxMapping(domid, gref, readonly, this.own.memory, page, offset);
  }

  unmap(mapping: GrantMapping): void {
    const mine = mapping as LinuxMapping;
    if (!mine.mapped) {
      throw new GrantError(
        GNTST.bad_handle,
        `grant ${mine.gref} of domain ${mine.domid} was unmapped before`,
      );
    }
    mine.mapped = false;
    this.own.restore(mine.page);
    this.forget(mine.offset);
    this.foreignDomid[mine.page] = -1;
    this.own.freePage(mine.page);
    this.mappings--;
    this.counts.unmaps++;
  }

  copy(batch: CopyBatch): void {
    const { segments, counts } = this;
    for (let done = 0; done < batch.count; ) {
      done = segments.encode(batch, done, this.copyLocal);
      if (segments.count === 0) continue;
      counts.copyIoctls++;
      counts.copies += segments.count;
      counts.copyBytes += segments.bytes;
      counts.grantToGrant += segments.grantToGrant;
      const { view, address } = this.copyArgument;
      view.setUint32(0, segments.count, true);
      if (libc().ioctl(this.gntdev, IOCTL_GNTDEV_GRANT_COPY, address) === 0) segments.finish(batch);
      else {
        const code = errnoName(errno());
        if (this.failures++ === 0) this.log(`gntdev refused a batch of ${segments.count} copies: ${code}`);
        segments.fail(batch);
      }
    }
  }

  /** Ends all grants and mappings. */
  close(): void {
    for (const gref of [...this.granted.keys()]) this.endAccess(gref);
    libc().close(this.gntdev);
    if (this.gntalloc >= 0) libc().close(this.gntalloc);
  }

  private forget(offset: number): void {
    const { view, address } = this.argument;
    view.setBigUint64(0, BigInt(offset), true);
    view.setUint32(8, 1, true);
    checked(libc().ioctl(this.gntdev, IOCTL_GNTDEV_UNMAP_GRANT_REF, address), 'unmapping a grant');
  }

  private dealloc(offset: number): void {
    const { view, address } = this.argument;
    view.setBigUint64(0, BigInt(offset), true);
    view.setUint32(8, 1, true);
    checked(libc().ioctl(this.gntalloc, IOCTL_GNTALLOC_DEALLOC_GREF, address), 'giving a grant back');
  }
}

function tied(operation: string): HypercallError {
  return new HypercallError(
    'EOPNOTSUPP',
    `${operation}: a process's grants are tied to their pages from grantAccess to endAccess`,
  );
}
