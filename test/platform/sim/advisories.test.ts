import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as abi from '../../../src/abi/index.js';
import { COPY_LOCAL, CopyBatch, PAGE_SIZE } from '../../../src/platform/index.js';
import type { Domain } from '../../../src/platform/sim/index.js';
import { errno, makeDomains, makeHost } from './host.js';

// Advisories about event channels and grants whose lesson is about more than one operation; those about one are beside
// the tests of that operation.

const { GNTST, DOMID_SELF, EVTCHNSTAT } = abi;

/** Lets `domain` grant `count` pages to `to`. */
function grantPages(domain: Domain, to: Domain, count: number): number[] {
  return Array.from({ length: count }, () =>
    domain.platform.grants.grantAccess(to.domid, domain.platform.memory.allocPage(), false),
  );
}

describe('event channels', () => {
  test('XSA-342, XSA-344: thousands of ports are closed at once, and used again at once', () => {
    const { hypervisor } = makeHost();
    const { a, b } = makeDomains(hypervisor);
    const { events } = a.platform;
    const fill = () => {
      const ports: [number, number][] = [];
      while (events.allocated < events.maxPorts - 1 && b.platform.events.allocated < events.maxPorts - 1) {
        const port = events.allocUnbound(b.domid);
        ports.push([port, b.platform.events.bindInterdomain(a.domid, port)]);
      }
      return ports;
    };
    const ports = fill();
    assert.ok(ports.length > 4000);
    hypervisor.events.reset(a, DOMID_SELF);
    assert.equal(events.allocated, 0);
    for (const [port, peer] of ports) {
      assert.throws(() => events.notify(port), errno('EINVAL'));
      assert.equal(hypervisor.events.status(b, DOMID_SELF, peer).status, EVTCHNSTAT.unbound);
      b.platform.events.notify(peer);
    }
    // What the peer sent to a port that was closed is not found in the one that is there now.
    const fresh = events.allocUnbound(b.domid);
    assert.equal(a.isPending(fresh), false);
    hypervisor.events.reset(b, DOMID_SELF);
    const again = fill();
    assert.ok(again.length > 4000);
    a.destroy();
    for (const [, peer] of again) {
      assert.equal(hypervisor.events.status(b, DOMID_SELF, peer).status, EVTCHNSTAT.unbound);
    }
  });

  test('XSA-358, XSA-359: asking for the FIFO ABI while events are sent loses none', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { a, b } = makeDomains(hypervisor);
    let upcalls = 0;
    a.onUpcall(0, () => upcalls++);
    const port = a.platform.events.allocUnbound(b.domid);
    const peer = b.platform.events.bindInterdomain(a.domid, port);
    b.platform.events.notify(peer);
    assert.throws(() => hypervisor.events.initControl(), errno('ENOSYS'));
    assert.throws(() => hypervisor.events.expandArray(), errno('ENOSYS'));
    assert.equal(a.isPending(port), true);
    await scheduler.runReady();
    assert.equal(upcalls, 1);
  });
});

describe('grants', () => {
  test('XSA-318: of a batch every copy has its own status, and nothing beyond it is written', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const [gref] = grantPages(a, dom0, 1);
    const local = dom0.platform.memory.allocPage();
    const batch = new CopyBatch(8);
    for (const ref of [gref, 0xffff, gref, 9, gref]) batch.add(a.domid, ref, 0, COPY_LOCAL, local, 0, 8);
    for (let i = 0; i < batch.capacity; i++) batch.setStatus(i, 77);
    dom0.platform.grants.copy(batch);
    const { okay, bad_gntref, general_error } = GNTST;
    assert.deepEqual(
      Array.from({ length: 8 }, (_, i) => batch.status(i)),
      [okay, bad_gntref, okay, general_error, okay, 77, 77, 77],
    );
    assert.equal(a.grantTable.pinned, 0);
  });

  test('XSA-228: no handle is handed out twice, and none is ended twice', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const [gref] = grantPages(a, dom0, 1);
    const map = () => hypervisor.grants.map(dom0, a.domid, gref, abi.GNTMAP_host_map).handle;
    const handles = Array.from({ length: 1000 }, map);
    assert.equal(new Set(handles).size, handles.length);
    for (const handle of handles.filter((_, i) => i % 3 === 0)) {
      assert.equal(hypervisor.grants.unmap(dom0, handle), GNTST.okay);
      assert.equal(hypervisor.grants.unmap(dom0, handle), GNTST.bad_handle);
    }
    const again = Array.from({ length: 334 }, map);
    const inUse = handles.filter((_, i) => i % 3 !== 0);
    assert.equal(new Set([...again, ...inUse]).size, 1000, 'only those that were ended are used again');
    assert.equal(a.grantTable.writers(gref), 1000);
    for (const handle of [...again, ...inUse]) hypervisor.grants.unmap(dom0, handle);
    assert.equal(a.grantTable.pinned, 0);
  });

  test('XSA-230, XSA-236: a map that fails late, or a page that goes, leaves the pins right', () => {
    const { hypervisor } = makeHost();
    const { a } = makeDomains(hypervisor);
    const c = hypervisor.createDomain({ limits: { maxMappings: 1 } });
    const [gref] = grantPages(a, c, 1);
    const mapping = c.platform.grants.map(a.domid, gref, true);
    assert.deepEqual([a.grantTable.readers(gref), a.grantTable.writers(gref)], [1, 0]);
    assert.throws(() => c.platform.grants.map(a.domid, gref, false), /map grant/);
    assert.deepEqual([a.grantTable.readers(gref), a.grantTable.writers(gref)], [1, 0]);
    const free = hypervisor.freePages;
    a.platform.memory.freePage(mapping.address / PAGE_SIZE);
    assert.equal(hypervisor.freePages, free, 'the page stays while it is mapped');
    c.platform.grants.unmap(mapping);
    assert.equal(hypervisor.freePages, free + 1);
    assert.equal(a.platform.grants.endAccess(gref), true);
    assert.throws(() => c.platform.grants.map(a.domid, gref, true), /map grant/);
    assert.equal(a.grantTable.pinned, 0);
  });

  test('XSA-232: no operation takes a system domain for one with a grant table', () => {
    const { hypervisor } = makeHost();
    const { dom0 } = makeDomains(hypervisor);
    const local = dom0.platform.memory.allocPage();
    for (const domid of [abi.DOMID_XEN, abi.DOMID_IO, abi.DOMID_COW, abi.DOMID_INVALID, abi.DOMID_IDLE]) {
      assert.equal(hypervisor.grants.map(dom0, domid, 8, abi.GNTMAP_host_map).status, GNTST.bad_domain);
      assert.equal(hypervisor.grants.setupTable(dom0, domid, 1), GNTST.bad_domain);
      assert.equal(hypervisor.grants.getStatusFrames(dom0, domid, 1).status, GNTST.bad_domain);
      const batch = new CopyBatch(1);
      batch.add(domid, 8, 0, COPY_LOCAL, local, 0, 1);
      dom0.platform.grants.copy(batch);
      assert.equal(batch.status(0), GNTST.bad_domain);
    }
  });

  test('XSA-268, XSA-384: a table that changes its version a hundred times keeps no frame, and shows none', () => {
    const { hypervisor } = makeHost();
    const { a } = makeDomains(hypervisor);
    const free = hypervisor.freePages;
    for (let i = 0; i < 100; i++) {
      hypervisor.grants.setVersion(a, 2);
      a.addToPhysmap(200, a.grantTable.statusFrames[0], false);
      assert.notEqual(a.physmap.get(200), 0);
      hypervisor.grants.setVersion(a, 1);
      assert.equal(a.physmap.get(200), 0);
      assert.equal(hypervisor.grants.getStatusFrames(a, DOMID_SELF, 1).status, GNTST.general_error);
    }
    assert.equal(hypervisor.freePages, free);
  });

  test('XSA-380, XSA-394, XSA-406: many thousand mappings are ended in any order, or with their domain', () => {
    const { hypervisor } = makeHost();
    const { dom0, a, b } = makeDomains(hypervisor);
    const grefs = { [dom0.domid]: grantPages(a, dom0, 100), [b.domid]: grantPages(a, b, 100) };
    const mapAll = (domain: Domain) =>
      Array.from({ length: 20_000 }, (_, i) =>
        domain.platform.grants.map(a.domid, grefs[domain.domid][i % 100], i % 2 === 0),
      );
    const mine = mapAll(dom0);
    mapAll(b);
    assert.equal(a.mappedByOthers, 40_000);
    // Every seventh of what is left, round after round.
    while (mine.length > 0)
      for (let i = mine.length - 1; i >= 0; i -= 7) dom0.platform.grants.unmap(mine.splice(i, 1)[0]);
    assert.equal(dom0.platform.grants.mapped, 0);
    assert.equal(a.mappedByOthers, 20_000);
    b.destroy();
    assert.equal(a.mappedByOthers, 0);
    assert.equal(a.grantTable.pinned, 0);
    a.destroy();
    assert.deepEqual(hypervisor.dyingDomains, []);
  });

  test('XSA-382, XSA-486: no array is read beyond its capacity, however large the number', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor, { grantVersion: 2 });
    for (const frames of [2, 3, 64, 0x7fffffff, 0xffffffff]) {
      assert.equal(hypervisor.grants.getStatusFrames(a, DOMID_SELF, frames).status, GNTST.general_error);
    }
    for (const frames of [65, 0x7fffffff, 0xffffffff]) {
      assert.equal(hypervisor.grants.setupTable(a, DOMID_SELF, frames), GNTST.general_error);
    }
    for (const gref of [256, 257, 0x7fffffff, 0x80000000, 0xffffffff]) {
      assert.equal(hypervisor.grants.map(dom0, a.domid, gref, abi.GNTMAP_host_map).status, GNTST.bad_gntref);
      assert.equal(hypervisor.grants.swapGrantRef(a, 8, gref), GNTST.bad_gntref);
      assert.equal(hypervisor.grants.unmap(dom0, gref), GNTST.bad_handle);
    }
  });

  test('XSA-411: two domains whose transitive grants lead to each other get an answer', () => {
    const { hypervisor } = makeHost();
    const { dom0, a, b } = makeDomains(hypervisor, { grantVersion: 2 });
    const { memory } = hypervisor;
    const local = dom0.platform.memory.allocPage();
    const [fromA, fromB] = [a, b].map(domain => domain.platform.grants.alloc());
    const point = (domain: Domain, gref: number, to: Domain, toGref: number, reader: Domain) => {
      const at = domain.grantTable.entryWord(gref);
      memory.i32[at + 1] = to.domid;
      memory.i32[at + 2] = toGref;
      memory.i32[at] = abi.GTF_transitive | (reader.domid << 16);
    };
    point(a, fromA, b, fromB, dom0);
    point(b, fromB, a, fromA, a);
    const batch = new CopyBatch(2);
    batch.add(a.domid, fromA, 0, COPY_LOCAL, local, 0, 8);
    batch.add(b.domid, fromB, 0, a.domid, fromA, 0, 8);
    dom0.platform.grants.copy(batch);
    assert.ok(batch.status(0) < 0 && batch.status(1) < 0);
    assert.equal(a.grantTable.pinned + b.grantTable.pinned, 0);
  });

  test('XSA-501: the version does not change under a mapping, and references are checked against the new table', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const grefs = grantPages(a, dom0, 300);
    const high = Math.max(...grefs);
    assert.ok(high >= abi.GRANT_ENTRIES_PER_FRAME_V2);
    const mapping = dom0.platform.grants.map(a.domid, high, false);
    assert.throws(() => hypervisor.grants.setVersion(a, 2), errno('EBUSY'));
    assert.equal(a.grantTable.version, 1);
    dom0.platform.grants.unmap(mapping);
    hypervisor.grants.setVersion(a, 2);
    const batch = new CopyBatch(1);
    batch.add(a.domid, high, 0, COPY_LOCAL, dom0.platform.memory.allocPage(), 0, 8);
    dom0.platform.grants.copy(batch);
    assert.equal(batch.status(0), GNTST.bad_gntref, 'a frame has half as many entries now');
  });
});
