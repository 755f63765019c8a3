import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as abi from '../../../src/abi/index.js';
import { COPY_LOCAL, CopyBatch, GrantError, PAGE_SIZE } from '../../../src/platform/index.js';
import type { Domain } from '../../../src/platform/sim/index.js';
import { errno, makeDomains, makeHost } from './host.js';

const { GNTST } = abi;
const FLAGS_PINNED = abi.GTF_reading | abi.GTF_writing;

const status = (code: number) => (error: unknown) => error instanceof GrantError && error.status === code;

/** Flags of an entry, the v2 status bits among them. */
function flagsOf(domain: Domain, gref: number): number {
  const { memory } = domain.hypervisor;
  const table = domain.grantTable;
  const flags = memory.i32[table.entryWord(gref)] & 0xffff;
  return table.version === 2 ? flags | memory.u16[table.statusHalfword(gref)] : flags;
}

/** One copy by `domain`. @returns its status */
function copy(
  domain: Domain,
  source: [number, number, number],
  dest: [number, number, number],
  length: number,
): number {
  const batch = new CopyBatch(1);
  batch.add(...source, ...dest, length);
  domain.platform.grants.copy(batch);
  return batch.status(0);
}

for (const grantVersion of [1, 2] as const) {
  describe(`grant table v${grantVersion}`, () => {
    const setup = () => {
      const { hypervisor } = makeHost();
      return { hypervisor, memory: hypervisor.memory, ...makeDomains(hypervisor, { grantVersion }) };
    };

    test('an entry holds flags, domid and frame where the header says', () => {
      const { memory, a, b } = setup();
      const page = a.platform.memory.allocPage();
      const gref = a.platform.grants.grantAccess(b.domid, page, true);
      assert.equal(gref, abi.GNTTAB_NR_RESERVED_ENTRIES);
      const table = a.grantTable.frames[0] * PAGE_SIZE;
      const size = grantVersion === 1 ? abi.GRANT_ENTRY_V1.size : abi.GRANT_ENTRY_V2.size;
      const entry = new DataView(memory.buffer, table + gref * size, size);
      assert.equal(entry.getUint16(0, true), abi.GTF_permit_access | abi.GTF_readonly);
      assert.equal(entry.getUint16(2, true), b.domid);
      const gfn = a.platform.memory.gfn(page);
      if (grantVersion === 1) assert.equal(entry.getUint32(4, true), gfn);
      else assert.equal(entry.getBigUint64(8, true), BigInt(gfn));
      assert.equal(a.platform.grants.endAccess(gref), true);
      assert.equal(entry.getUint16(0, true), 0);
    });

    test('a mapping shows the same bytes to both, and keeps the grant in use', () => {
      const { memory, a, b } = setup();
      const page = a.platform.memory.allocPage();
      const gref = a.platform.grants.grantAccess(b.domid, page, false);
      const mapping = b.platform.grants.map(a.domid, gref, false);
      mapping.memory.u8[mapping.address + 5] = 77;
      assert.equal(memory.u8[page * PAGE_SIZE + 5], 77);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, FLAGS_PINNED);
      assert.equal(b.platform.grants.mapped, 1);
      assert.equal(a.platform.grants.end(gref), false);
      b.platform.grants.unmap(mapping);
      assert.equal(b.platform.grants.mapped, 0);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, 0);
      assert.equal(a.platform.grants.endAccess(gref), true);
      assert.throws(() => b.platform.grants.unmap(mapping), status(GNTST.bad_handle));
    });

    test('XSA-218, XSA-224: reading and writing bits are exact while the page is mapped twice', () => {
      const { a, b } = setup();
      const gref = a.platform.grants.grantAccess(b.domid, a.platform.memory.allocPage(), false);
      const reader = b.platform.grants.map(a.domid, gref, true);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, abi.GTF_reading);
      const writer = b.platform.grants.map(a.domid, gref, false);
      const reader2 = b.platform.grants.map(a.domid, gref, true);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, FLAGS_PINNED);
      b.platform.grants.unmap(writer);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, abi.GTF_reading);
      b.platform.grants.unmap(reader);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, abi.GTF_reading);
      b.platform.grants.unmap(reader2);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, 0);
      assert.equal(a.grantTable.pinned, 0);
    });

    test('XSA-224: host and device mapping of one handle end separately', () => {
      const { hypervisor, a, b } = setup();
      const gref = a.platform.grants.grantAccess(b.domid, a.platform.memory.allocPage(), false);
      const { handle } = hypervisor.grants.map(b, a.domid, gref, abi.GNTMAP_host_map | abi.GNTMAP_device_map);
      assert.equal(hypervisor.grants.unmap(b, handle, false, true), GNTST.okay);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, FLAGS_PINNED);
      assert.equal(hypervisor.grants.unmap(b, handle, true, false), GNTST.okay);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, 0);
      assert.equal(hypervisor.grants.unmap(b, handle), GNTST.bad_handle);
    });

    test('XSA-316: a map that fails has a negative status and holds nothing', () => {
      const { hypervisor, memory, a, b, dom0 } = setup();
      const page = a.platform.memory.allocPage();
      const gref = a.platform.grants.grantAccess(b.domid, page, true);
      const map = (domain: Domain, dom: number, ref: number, flags = abi.GNTMAP_host_map) =>
        hypervisor.grants.map(domain, dom, ref, flags).status;
      assert.equal(map(b, 999, gref), GNTST.bad_domain);
      assert.equal(map(b, abi.DOMID_SELF, gref), GNTST.bad_domain);
      assert.equal(map(b, a.domid, 0xffffffff), GNTST.bad_gntref);
      assert.equal(map(b, a.domid, a.grantTable.entries), GNTST.bad_gntref);
      assert.equal(map(b, a.domid, gref + 1), GNTST.general_error);
      assert.equal(map(dom0, a.domid, gref), GNTST.general_error);
      assert.equal(map(b, a.domid, gref), GNTST.general_error, 'a readonly grant for writing');
      assert.equal(map(b, a.domid, gref, abi.GNTMAP_readonly), GNTST.bad_gntref, 'no kind of mapping');
      const at = a.grantTable.entryWord(gref) + (grantVersion === 1 ? 1 : 2);
      for (const gfn of [0x7fffffff, -1, 5000]) {
        memory.i32[at] = gfn;
        assert.equal(map(b, a.domid, gref, 6), GNTST.bad_page);
      }
      assert.equal(a.grantTable.pinned, 0);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, 0);
      assert.equal(b.maptrack.used, 0);
    });

    test('copies between own memory and grants, in every direction', () => {
      const { memory, a, b, dom0 } = setup();
      const pa = a.platform.memory.allocPage();
      const pb = b.platform.memory.allocPage();
      const p0 = dom0.platform.memory.allocPage();
      const fromA = a.platform.grants.grantAccess(0, pa, true);
      const toB = b.platform.grants.grantAccess(0, pb, false);
      for (let i = 0; i < PAGE_SIZE; i++) memory.u8[pa * PAGE_SIZE + i] = i * 7;
      const bytes = (page: number, at: number, n: number) =>
        Array.from(memory.u8.slice(page * PAGE_SIZE + at, page * PAGE_SIZE + at + n));
      assert.equal(copy(dom0, [a.domid, fromA, 100], [COPY_LOCAL, p0, 200], 300), GNTST.okay);
      assert.deepEqual(bytes(p0, 200, 300), bytes(pa, 100, 300));
      assert.equal(copy(dom0, [COPY_LOCAL, p0, 200], [b.domid, toB, 0], 300), GNTST.okay);
      assert.deepEqual(bytes(pb, 0, 300), bytes(pa, 100, 300));
      assert.equal(copy(dom0, [a.domid, fromA, 0], [b.domid, toB, 0], PAGE_SIZE), GNTST.okay);
      assert.deepEqual(bytes(pb, 0, PAGE_SIZE), bytes(pa, 0, PAGE_SIZE));
      assert.equal(flagsOf(a, fromA) & FLAGS_PINNED, 0);
    });

    test('each copy has its own status', () => {
      const { a, b, dom0 } = setup();
      const page = a.platform.memory.allocPage();
      const readonly = a.platform.grants.grantAccess(0, page, true);
      const forB = a.platform.grants.grantAccess(b.domid, page, false);
      const p0 = dom0.platform.memory.allocPage();
      const batch = new CopyBatch(16);
      const expected: number[] = [];
      const add = (want: number, ...op: Parameters<CopyBatch['add']>) => {
        batch.add(...op);
        expected.push(want);
      };
      add(GNTST.okay, a.domid, readonly, 0, COPY_LOCAL, p0, 0, 64);
      add(GNTST.general_error, COPY_LOCAL, p0, 0, a.domid, readonly, 0, 64);
      add(GNTST.general_error, a.domid, forB, 0, COPY_LOCAL, p0, 0, 64);
      add(GNTST.bad_gntref, a.domid, 0xffffffff, 0, COPY_LOCAL, p0, 0, 64);
      add(GNTST.general_error, a.domid, forB + 1, 0, COPY_LOCAL, p0, 0, 64);
      add(GNTST.bad_domain, 999, readonly, 0, COPY_LOCAL, p0, 0, 64);
      add(GNTST.bad_copy_arg, a.domid, readonly, 4095, COPY_LOCAL, p0, 0, 2);
      add(GNTST.bad_copy_arg, a.domid, readonly, 0, COPY_LOCAL, p0, 4096, 1);
      add(GNTST.bad_copy_arg, a.domid, readonly, 0xffff, COPY_LOCAL, p0, 0, 0xffff);
      add(GNTST.okay, a.domid, readonly, 0, COPY_LOCAL, p0, 4095, 1);
      add(GNTST.bad_page, a.domid, readonly, 0, COPY_LOCAL, page, 0, 64);
      add(GNTST.bad_page, COPY_LOCAL, 0xffffffff, 0, COPY_LOCAL, p0, 0, 64);
      add(GNTST.okay, COPY_LOCAL, p0, 0, COPY_LOCAL, p0, 1, 64);
      dom0.platform.grants.copy(batch);
      assert.deepEqual(
        expected.map((_, i) => batch.status(i)),
        expected,
      );
      assert.equal(a.grantTable.pinned, 0);
    });

    test('XSA-448 follow-up: a copy of no bytes is okay whatever else it says', () => {
      const { dom0 } = setup();
      assert.equal(copy(dom0, [999, 0xffffffff, 0xffff], [COPY_LOCAL, 0xffffffff, 0xffff], 0), GNTST.okay);
    });

    test('a domain copies from its own grants to itself', () => {
      const { a } = setup();
      const page = a.platform.memory.allocPage();
      const gref = a.platform.grants.grantAccess(a.domid, page, false);
      assert.equal(copy(a, [abi.DOMID_SELF, gref, 0], [a.domid, gref, 8], 8), GNTST.okay);
    });

    test('XSA-500: a copy of a mapped grant goes by what the entry says now', () => {
      const { memory, a, b } = setup();
      const [first, second] = [a.platform.memory.allocPage(), a.platform.memory.allocPage()];
      memory.u8[first * PAGE_SIZE] = 1;
      memory.u8[second * PAGE_SIZE] = 2;
      const gref = a.platform.grants.grantAccess(b.domid, first, false);
      const mapping = b.platform.grants.map(a.domid, gref, false);
      const local = b.platform.memory.allocPage();
      assert.equal(copy(b, [a.domid, gref, 0], [COPY_LOCAL, local, 0], 1), GNTST.okay);
      assert.equal(memory.u8[local * PAGE_SIZE], 1);
      const at = a.grantTable.entryWord(gref);
      memory.i32[at + (grantVersion === 1 ? 1 : 2)] = a.platform.memory.gfn(second);
      assert.equal(copy(b, [a.domid, gref, 0], [COPY_LOCAL, local, 0], 1), GNTST.okay);
      assert.equal(memory.u8[local * PAGE_SIZE], 2);
      memory.i32[at] |= abi.GTF_readonly;
      assert.equal(copy(b, [COPY_LOCAL, local, 0], [a.domid, gref, 0], 1), GNTST.general_error);
      // The mapping is of the page that was granted when it was made.
      assert.equal(mapping.address, first * PAGE_SIZE);
      b.platform.grants.unmap(mapping);
      assert.equal(flagsOf(a, gref) & FLAGS_PINNED, 0);
    });

    test('a page that is freed while it is mapped is not used again before it is unmapped', () => {
      const { hypervisor, memory, a, b } = setup();
      const page = a.platform.memory.allocPage();
      memory.u8[page * PAGE_SIZE] = 9;
      const gref = a.platform.grants.grantAccess(b.domid, page, false);
      const mapping = b.platform.grants.map(a.domid, gref, false);
      const free = hypervisor.freePages;
      a.platform.memory.freePage(page);
      assert.equal(hypervisor.freePages, free);
      assert.notEqual(b.platform.memory.allocPage(), page);
      assert.equal(memory.u8[mapping.address], 9);
      assert.throws(() => a.platform.memory.freePage(page), errno('EINVAL'));
      b.platform.grants.unmap(mapping);
      assert.equal(hypervisor.freePages, free);
      const again = b.platform.memory.allocPage();
      assert.equal(again, page);
      assert.equal(memory.u8[again * PAGE_SIZE], 0, 'a reused page is all zero');
    });

    test('the table grows to its limit, then ENOSPC', () => {
      const { hypervisor } = makeHost({ memoryBytes: 16 << 20 });
      const domain = hypervisor.createDomain({ grantVersion, limits: { maxGrantFrames: 3 } });
      const perFrame = grantVersion === 1 ? 512 : 256;
      const { grants } = domain.platform;
      assert.equal(grants.available, 3 * perFrame - 8);
      const refs = new Set<number>();
      for (let i = abi.GNTTAB_NR_RESERVED_ENTRIES; i < 3 * perFrame; i++) refs.add(grants.alloc());
      assert.equal(refs.size, 3 * perFrame - 8);
      assert.equal(grants.allocated, refs.size);
      assert.equal(grants.available, 0);
      assert.throws(() => grants.alloc(), errno('ENOSPC'));
      assert.deepEqual(hypervisor.grants.querySize(domain, abi.DOMID_SELF), {
        status: GNTST.okay,
        frames: 3,
        maxFrames: 3,
      });
      for (const gref of refs) grants.free(gref);
      assert.equal(grants.allocated, 0);
      assert.throws(() => grants.free(8), errno('EINVAL'));
      assert.throws(() => grants.free(1), errno('EINVAL'), 'reserved');
    });

    test('XSA-300: a domain maps no more foreign pages than its limit', () => {
      const { hypervisor } = makeHost();
      const { a } = makeDomains(hypervisor, { grantVersion });
      const c = hypervisor.createDomain({ limits: { maxMappings: 3 } });
      const gref = a.platform.grants.grantAccess(c.domid, a.platform.memory.allocPage(), false);
      const mappings = [1, 2, 3].map(() => c.platform.grants.map(a.domid, gref, false));
      assert.throws(() => c.platform.grants.map(a.domid, gref, false), status(GNTST.no_device_space));
      assert.equal(a.grantTable.writers(gref), 3);
      c.platform.grants.unmap(mappings[1]);
      c.platform.grants.map(a.domid, gref, false);
    });

    test('XSA-134: swapping works on a fresh table, and not on entries in use', () => {
      const { hypervisor, a, b } = setup();
      const { grants } = a.platform;
      assert.equal(hypervisor.grants.swapGrantRef(a, 20, 21), GNTST.okay);
      assert.equal(hypervisor.grants.swapGrantRef(a, 20, a.grantTable.entries), GNTST.bad_gntref);
      const [x, y] = [a.platform.memory.allocPage(), a.platform.memory.allocPage()];
      const gx = grants.grantAccess(b.domid, x, false);
      const gy = grants.grantAccess(b.domid, y, false);
      assert.equal(hypervisor.grants.swapGrantRef(a, gx, gy), GNTST.okay);
      const mapping = b.platform.grants.map(a.domid, gx, false);
      assert.equal(mapping.address, y * PAGE_SIZE);
      assert.equal(hypervisor.grants.swapGrantRef(a, gx, gy), GNTST.eagain);
      assert.equal(hypervisor.grants.swapGrantRef(a, gx, gx), GNTST.okay);
    });

    test('a page of another domain, or the grant table itself, cannot be granted', () => {
      const { a, b } = setup();
      const page = a.platform.memory.allocPage();
      assert.throws(() => b.platform.grants.grantAccess(a.domid, page, false), errno('EINVAL'));
      assert.throws(() => b.platform.grants.grantAccess(a.domid, b.grantTable.frames[0], false));
      assert.equal(b.platform.grants.allocated, 0);
      assert.throws(() => a.platform.grants.grant(100, b.domid, page, false), errno('EINVAL'));
    });
  });
}

describe('grant table version 2 only', () => {
  const setup = () => {
    const { hypervisor } = makeHost();
    const domains = makeDomains(hypervisor, { grantVersion: 2 });
    const { a } = domains;
    const page = a.platform.memory.allocPage();
    const gref = a.platform.grants.grantAccess(0, page, false);
    const local = domains.dom0.platform.memory.allocPage();
    return { hypervisor, memory: hypervisor.memory, ...domains, page, gref, local };
  };

  test('a part of a page can be copied, within its bounds, and not be mapped', () => {
    const { memory, a, dom0, gref, local } = setup();
    const at = a.grantTable.entryWord(gref);
    memory.i32[at + 1] = 100 | (50 << 16);
    memory.i32[at] |= abi.GTF_sub_page;
    const from = (offset: number, length: number) =>
      copy(dom0, [a.domid, gref, offset], [COPY_LOCAL, local, 0], length);
    const to = (offset: number, length: number) =>
      copy(dom0, [COPY_LOCAL, local, 0], [a.domid, gref, offset], length);
    for (const op of [from, to]) {
      assert.equal(op(100, 50), GNTST.okay);
      assert.equal(op(149, 1), GNTST.okay);
      assert.equal(op(99, 2), GNTST.general_error);
      assert.equal(op(149, 2), GNTST.general_error);
      assert.equal(op(150, 1), GNTST.general_error);
    }
    memory.i32[at + 1] = 4000 | (0xffff << 16);
    assert.equal(from(4000, 96), GNTST.okay);
    assert.equal(from(4000, 97), GNTST.bad_copy_arg);
    assert.throws(() => dom0.platform.grants.map(a.domid, gref, true), status(GNTST.general_error));
    assert.equal(a.grantTable.pinned, 0);
  });

  test('XSA-226: a transitive grant is followed once, and never to its own granter', () => {
    const { memory, a, b, dom0, local } = setup();
    memory.u8.fill(5, local * PAGE_SIZE, local * PAGE_SIZE + 8);
    const page = a.platform.memory.allocPage();
    const toB = a.platform.grants.grantAccess(b.domid, page, true);
    const transitive = (domain: Domain, domid: number, transDomid: number, transGref: number) => {
      const gref = domain.platform.grants.alloc();
      const at = domain.grantTable.entryWord(gref);
      memory.i32[at + 1] = transDomid;
      memory.i32[at + 2] = transGref;
      memory.i32[at] = abi.GTF_transitive | (domid << 16);
      return gref;
    };
    const take = (domain: Domain, gref: number) =>
      copy(dom0, [domain.domid, gref, 0], [COPY_LOCAL, local, 0], 8);
    const viaB = transitive(b, 0, a.domid, toB);
    assert.equal(take(b, viaB), GNTST.okay);
    assert.equal(memory.u8[local * PAGE_SIZE], 0);
    const give = copy(dom0, [COPY_LOCAL, local, 0], [b.domid, viaB, 0], 8);
    assert.equal(give, GNTST.general_error, 'the grant behind it is readonly');
    const own = b.platform.grants.grantAccess(b.domid, b.platform.memory.allocPage(), true);
    assert.equal(take(b, transitive(b, 0, b.domid, own)), GNTST.general_error, 'its own');
    assert.equal(take(b, transitive(b, 0, 999, 8)), GNTST.general_error, 'no such domain');
    assert.equal(take(b, transitive(b, 0, a.domid, 0xffff)), GNTST.bad_gntref);
    const second = transitive(a, b.domid, b.domid, viaB);
    assert.equal(take(b, transitive(b, 0, a.domid, second)), GNTST.general_error, 'twice');
    assert.throws(() => dom0.platform.grants.map(b.domid, viaB, true), status(GNTST.general_error));
    assert.equal(a.grantTable.pinned + b.grantTable.pinned, 0);
  });

  test('a frame number of more than 32 bits is no page', () => {
    const { memory, a, dom0, gref, local } = setup();
    memory.i32[a.grantTable.entryWord(gref) + 3] = 1;
    assert.equal(copy(dom0, [a.domid, gref, 0], [COPY_LOCAL, local, 0], 1), GNTST.bad_page);
  });

  test('XSA-379: the status frames are told of within bounds, and only in version 2', () => {
    const { hypervisor, a, dom0 } = setup();
    assert.deepEqual(hypervisor.grants.getStatusFrames(a, abi.DOMID_SELF, 1), {
      status: GNTST.okay,
      frames: a.grantTable.statusFrames,
    });
    const refused = (caller: Domain, dom: number, frames: number) =>
      hypervisor.grants.getStatusFrames(caller, dom, frames).status;
    assert.equal(refused(a, abi.DOMID_SELF, 2), GNTST.general_error);
    assert.equal(refused(a, dom0.domid, 1), GNTST.permission_denied);
    assert.equal(refused(dom0, 999, 1), GNTST.bad_domain);
    assert.equal(refused(dom0, dom0.domid, 1), GNTST.general_error);
  });
});

describe('the version of a grant table', () => {
  test('changes when nothing but reserved entries is in use, and these survive', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const { grants } = hypervisor;
    assert.equal(grants.getVersion(a, abi.DOMID_SELF), 1);
    const ring = dom0.platform.grants.map(a.domid, abi.GNTTAB_RESERVED_XENSTORE, false);
    const gref = a.platform.grants.grantAccess(0, a.platform.memory.allocPage(), false);
    const mapping = dom0.platform.grants.map(a.domid, gref, false);
    assert.throws(() => grants.setVersion(a, 2), errno('EBUSY'));
    dom0.platform.grants.unmap(mapping);
    const free = hypervisor.freePages;
    grants.setVersion(a, 2);
    assert.equal(hypervisor.freePages, free - 1);
    assert.equal(grants.getVersion(dom0, a.domid), 2);
    assert.equal(a.grantTable.entries, 256);
    assert.equal(flagsOf(a, 1), abi.GTF_permit_access | FLAGS_PINNED);
    assert.equal(flagsOf(a, gref), 0, 'other entries are gone');
    grants.setVersion(a, 2);
    grants.setVersion(a, 1);
    assert.equal(hypervisor.freePages, free);
    assert.equal(flagsOf(a, 1), abi.GTF_permit_access | FLAGS_PINNED);
    dom0.platform.grants.unmap(ring);
    assert.equal(flagsOf(a, 1), abi.GTF_permit_access);
    const again = dom0.platform.grants.map(a.domid, abi.GNTTAB_RESERVED_XENSTORE, false);
    assert.equal(again.address, a.storePage * PAGE_SIZE);
  });

  test('XSA-255, XSA-379: going back to version 1 takes the status frames from the domain’s sight', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor, { grantVersion: 2 });
    const [statusFrame] = a.grantTable.statusFrames;
    a.addToPhysmap(200, statusFrame, false);
    a.addToPhysmap(201, a.grantTable.frames[0], false);
    const { i32 } = hypervisor.memory;
    const grant = (gref: number, gfn: number, flags: number) => {
      const at = a.grantTable.entryWord(gref);
      i32[at + (a.grantTable.version === 1 ? 1 : 2)] = gfn;
      i32[at] = flags;
    };
    const local = dom0.platform.memory.allocPage();
    const read = (gref: number) => copy(dom0, [a.domid, gref, 0], [COPY_LOCAL, local, 0], 8);
    for (const gfn of [200, 201]) {
      grant(20, gfn, abi.GTF_permit_access);
      assert.equal(read(20), GNTST.bad_page, 'what Xen shares with a domain is not its RAM');
    }
    hypervisor.grants.setVersion(a, 1);
    assert.equal(a.physmap.get(200), 0);
    assert.notEqual(a.physmap.get(201), 0, 'the table itself stays');
    assert.equal(dom0.platform.memory.allocPage(), statusFrame, 'the frame is free again');
    assert.equal(read(20), GNTST.general_error, 'the entry is gone');
  });

  test('is 1 or 2, as far as the domain may', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor, { maxGrantVersion: 1 });
    assert.throws(() => hypervisor.grants.setVersion(dom0, 3), errno('EINVAL'));
    assert.throws(() => hypervisor.grants.setVersion(dom0, 0), errno('EINVAL'));
    assert.throws(() => hypervisor.grants.setVersion(a, 2), errno('ENOSYS'));
    assert.throws(() => hypervisor.grants.getVersion(a, 0), errno('EPERM'));
    assert.throws(() => hypervisor.grants.getVersion(dom0, 77), errno('ESRCH'));
  });

  test('does not change while a reserved entry is of a kind that the other has not', () => {
    const { hypervisor } = makeHost();
    const { a } = makeDomains(hypervisor);
    const at = a.grantTable.entryWord(5);
    hypervisor.memory.i32[at] = abi.GTF_accept_transfer;
    assert.throws(() => hypervisor.grants.setVersion(a, 2), errno('ERANGE'));
    hypervisor.memory.i32[at] = 0;
    hypervisor.grants.setVersion(a, 2);
    const v2 = a.grantTable.entryWord(5);
    hypervisor.memory.i32[v2 + 3] = 1;
    hypervisor.memory.i32[v2] = abi.GTF_permit_access;
    assert.throws(() => hypervisor.grants.setVersion(a, 1), errno('ERANGE'));
  });

  test('a table is set up by its domain, or a privileged one, within its limit', () => {
    const { hypervisor } = makeHost();
    const { dom0, a, b } = makeDomains(hypervisor, { limits: { maxGrantFrames: 4 } });
    const { grants } = hypervisor;
    assert.equal(grants.setupTable(a, abi.DOMID_SELF, 3), GNTST.okay);
    assert.equal(a.grantTable.frames.length, 3);
    assert.equal(grants.setupTable(a, abi.DOMID_SELF, 5), GNTST.general_error);
    assert.equal(grants.setupTable(a, b.domid, 1), GNTST.permission_denied);
    assert.equal(grants.setupTable(dom0, b.domid, 2), GNTST.okay);
    assert.equal(grants.setupTable(dom0, 55, 2), GNTST.bad_domain);
    assert.equal(grants.querySize(a, b.domid).status, GNTST.permission_denied);
    assert.equal(grants.querySize(dom0, 55).status, GNTST.bad_domain);
    assert.equal(grants.querySize(dom0, b.domid).frames, 2);
  });
});

test('grants of a domain in another thread are pinned while a batch is copied, and nothing else is', () => {
  const { hypervisor } = makeHost();
  const { dom0, a, b } = makeDomains(hypervisor, {});
  for (const domain of [a, b]) domain.grantTable.plainEntries = 0;
  const [from, to] = [a, b].map(domain => domain.platform.memory.allocPage());
  hypervisor.memory.u8.fill(7, from * PAGE_SIZE, (from + 1) * PAGE_SIZE);
  const source = a.platform.grants.grantAccess(dom0.domid, from, true);
  const dest = b.platform.grants.grantAccess(dom0.domid, to, false);
  const local = dom0.platform.memory.allocPage();
  const batch = new CopyBatch(5);
  batch.add(a.domid, source, 0, b.domid, dest, 0, 64);
  batch.add(b.domid, dest, 0, COPY_LOCAL, local, 0, 64);
  // A page that is not dom0's, under a number that is a reference of the domain before.
  batch.add(COPY_LOCAL, dest, 0, COPY_LOCAL, local, 0, 64);
  batch.add(COPY_LOCAL, local, 0, a.domid, source, 0, 64);
  batch.add(a.domid, source, 0, COPY_LOCAL, local, PAGE_SIZE - 1, 1);
  dom0.platform.grants.copy(batch);
  assert.deepEqual(
    [0, 1, 2, 3, 4].map(i => batch.status(i)),
    [GNTST.okay, GNTST.okay, GNTST.bad_page, GNTST.general_error, GNTST.okay],
  );
  const at = local * PAGE_SIZE;
  assert.deepEqual([...hypervisor.memory.u8.subarray(at + 62, at + 66)], [7, 7, 0, 0]);
  assert.equal(hypervisor.memory.u8[at + PAGE_SIZE - 1], 7);
  assert.equal(a.grantTable.pinned + b.grantTable.pinned, 0);
  assert.equal(flagsOf(a, source) & FLAGS_PINNED, 0);
  assert.equal(flagsOf(b, dest) & FLAGS_PINNED, 0);
});
