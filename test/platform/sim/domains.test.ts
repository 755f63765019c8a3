import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as abi from '../../../src/abi/index.js';
import { CopyBatch, Memory, PAGE_SIZE, sleep, Task } from '../../../src/platform/index.js';
import {
  type Domain,
  EventLoopScheduler,
  Hypervisor,
  MachineMemory,
} from '../../../src/platform/sim/index.js';
import { errno, makeDomains, makeHost } from './host.js';

const { GNTST, VIRQ } = abi;

describe('machine memory', () => {
  test('copies inside itself, overlapping or not', () => {
    const memory = new MachineMemory(1 << 17);
    for (let i = 0; i < 100; i++) memory.u8[i] = i;
    memory.copy(70000, 10, 50);
    assert.deepEqual(Array.from(memory.u8.slice(70000, 70050)), Array.from(memory.u8.slice(10, 60)));
    memory.copy(2, 0, 98);
    assert.deepEqual([memory.u8[2], memory.u8[3], memory.u8[99]], [0, 1, 97]);
    assert.throws(() => memory.copy((1 << 17) - 1, 0, 2));
    assert.ok(memory.buffer instanceof SharedArrayBuffer);
  });

  test('has a size that WebAssembly can have', () => {
    for (const bytes of [0, -65536, 65537, 2 ** 31, Number.NaN]) {
      assert.throws(() => new MachineMemory(bytes), RangeError);
    }
  });
});

describe('a domain', () => {
  test('gets zeroed pages, up to its limit', () => {
    const { hypervisor } = makeHost();
    const domain = hypervisor.createDomain({ maxPages: 10 });
    const { memory } = domain.platform;
    const pages = Array.from({ length: 8 }, () => memory.allocPage());
    assert.equal(memory.allocated, 8);
    assert.equal(new Set(pages.map(page => memory.gfn(page))).size, 8);
    assert.throws(() => memory.allocPage(), errno('ENOMEM'));
    memory.memory.u8[pages[0] * PAGE_SIZE + 4095] = 1;
    memory.freePage(pages[0]);
    const again = memory.allocPage();
    assert.equal(again, pages[0]);
    assert.equal(memory.memory.u8[again * PAGE_SIZE + 4095], 0);
    assert.throws(() => memory.freePage(0), errno('EINVAL'));
    assert.throws(() => memory.freePage(1e9), errno('EINVAL'));
    assert.throws(() => memory.gfn(0), errno('EINVAL'));
  });

  test('the machine runs out of memory without harm', () => {
    const { hypervisor } = makeHost({ memoryBytes: 1 << 17 });
    const a = hypervisor.createDomain();
    const pages: number[] = [];
    assert.throws(() => {
      for (;;) pages.push(a.platform.memory.allocPage());
    }, errno('ENOMEM'));
    assert.equal(hypervisor.freePages, 0);
    assert.throws(() => hypervisor.createDomain(), errno('ENOMEM'));
    for (let i = 8; i < 512; i++) a.platform.grants.alloc();
    assert.throws(() => a.platform.grants.alloc(), errno('ENOSPC'));
    for (const page of pages) a.platform.memory.freePage(page);
    assert.equal(hypervisor.freePages, pages.length);
    hypervisor.createDomain();
    assert.throws(() => hypervisor.createDomain({ maxPages: 1 }), errno('ENOMEM'));
  });

  test('gets a domid, the lowest that was not used before', () => {
    const { hypervisor } = makeHost();
    const { dom0, a, b } = makeDomains(hypervisor);
    assert.deepEqual([dom0.domid, a.domid, b.domid], [0, 1, 2]);
    assert.deepEqual([dom0.privileged, a.privileged], [true, false]);
    b.destroy();
    assert.equal(hypervisor.createDomain().domid, 3);
    assert.equal(hypervisor.createDomain({ domid: 2 }).domid, 2);
    assert.throws(() => hypervisor.createDomain({ domid: 2 }), errno('EEXIST'));
    assert.throws(() => hypervisor.createDomain({ domid: 0x7ff0 }), errno('EINVAL'));
    assert.throws(() => hypervisor.createDomain({ domid: -1 }), errno('EINVAL'));
    hypervisor.createDomain({ domid: 0x7fef });
    assert.equal(hypervisor.createDomain().domid, 4, 'after the last domid, those free again');
  });

  test('is refused what no domain can have, and nothing is taken for it', () => {
    const { hypervisor } = makeHost();
    hypervisor.createDomain();
    const { freePages } = hypervisor;
    // Of more, struct vcpu_info would lie where events are pending.
    for (const vcpus of [0, 33]) assert.throws(() => hypervisor.createDomain({ vcpus }), errno('EINVAL'));
    for (const maxGrantFrames of [0, 505]) {
      assert.throws(() => hypervisor.createDomain({ limits: { maxGrantFrames } }), errno('EINVAL'));
    }
    assert.equal(hypervisor.freePages, freePages);
  });

  test('has a xenstore ring and a port, which domain 0 can map and bind to', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    for (const domain of [dom0, a]) {
      const ring = domain.platform.xenstore;
      assert.ok(ring.kind === 'ring');
      const mapping = dom0.platform.grants.map(domain.domid, abi.GNTTAB_RESERVED_XENSTORE, false);
      assert.equal(mapping.address, ring.address);
      const port = dom0.platform.events.bindInterdomain(domain.domid, ring.port);
      dom0.platform.events.notify(port);
      assert.equal(domain.isPending(ring.port), true);
      dom0.platform.grants.map(domain.domid, abi.GNTTAB_RESERVED_CONSOLE, false);
      dom0.platform.events.bindInterdomain(domain.domid, domain.consolePort);
    }
  });

  test('keeps the last lines of its log', () => {
    const lines: string[] = [];
    const { hypervisor } = makeHost({ onLog: (domain, line) => lines.push(`${domain.name}: ${line}`) });
    const domain = hypervisor.createDomain({ name: 'guest' });
    for (let i = 0; i < 1001; i++) domain.platform.log(`line ${i}`);
    assert.equal(domain.dmesg.length, 1000);
    assert.match(domain.dmesg[0], /^\[ {4}0\.000000\] line 1$/);
    assert.equal(lines[0], 'guest: line 0');
  });

  test('that shut down keeps what it has, runs no more, and raises VIRQ_DOM_EXC', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const virq = dom0.platform.events.bindVirq(VIRQ.DOM_EXC, 0);
    const changes: string[] = [];
    const stop = hypervisor.onDomainChange(domain => changes.push(`${domain.domid} ${domain.state}`));
    let ran = 0;
    const task = new Task('task', () => ran++);
    a.platform.scheduler.post(task);
    a.platform.scheduler.after(1, () => ran++);
    a.shutdown('poweroff');
    a.shutdown('crash');
    assert.equal(dom0.isPending(virq), true);
    assert.deepEqual(
      [a.state, a.shutdownReason, hypervisor.domainState(a.domid)],
      ['shutdown', 'poweroff', 'shutdown'],
    );
    await scheduler.runFor(10);
    a.platform.scheduler.post(task);
    await scheduler.runFor(10);
    assert.equal(ran, 0);
    assert.throws(() => a.resume(), errno('EINVAL'));
    assert.equal(a.inspect().ports.length, 2);
    a.destroy();
    assert.equal(hypervisor.domainState(a.domid), 'absent');
    assert.deepEqual(changes, ['1 shutdown', '1 dead']);
    stop();
  });

  test('that was suspended goes on, with the events that came meanwhile', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { a, b } = makeDomains(hypervisor);
    let upcalls = 0;
    a.onUpcall(0, () => upcalls++);
    const port = a.platform.events.allocUnbound(b.domid);
    const sender = b.platform.events.bindInterdomain(a.domid, port);
    a.shutdown('suspend');
    b.platform.events.notify(sender);
    await scheduler.runFor(1);
    assert.equal(upcalls, 0);
    a.resume();
    await scheduler.runFor(1);
    assert.equal(upcalls, 1);
  });

  test('can cancel its timers', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { a } = makeDomains(hypervisor);
    let fired = 0;
    const timer = a.platform.scheduler.after(1, () => fired++);
    a.platform.scheduler.after(2, () => fired++);
    a.platform.scheduler.cancel(timer);
    await scheduler.runFor(5);
    a.platform.scheduler.cancel(timer);
    assert.equal(fired, 1);
    assert.ok(a.platform.random() < 1);
  });

  test('that is destroyed leaves nothing behind', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const base = hypervisor.freePages;
    const c = hypervisor.createDomain({ name: 'c' });
    for (let i = 0; i < 20; i++) c.platform.grants.grantAccess(a.domid, c.platform.memory.allocPage(), false);
    for (let i = 0; i < 600; i++) c.platform.grants.alloc();
    const gref = a.platform.grants.grantAccess(c.domid, a.platform.memory.allocPage(), false);
    const own = c.platform.grants.grantAccess(c.domid, c.platform.memory.allocPage(), false);
    const mapping = c.platform.grants.map(a.domid, gref, false);
    c.platform.grants.map(c.domid, own, false);
    const port = a.platform.events.allocUnbound(c.domid);
    const bound = c.platform.events.bindInterdomain(a.domid, port);
    c.platform.events.bindInterdomain(c.domid, c.platform.events.allocUnbound(c.domid));
    assert.equal(a.platform.grants.end(gref), false);
    let ran = false;
    void sleep(c.platform.scheduler, 5).then(() => {
      ran = true;
    });
    c.destroy();
    c.destroy();
    assert.equal(c.state, 'dead');
    assert.equal(hypervisor.freePages, base - 1, 'but the page that a granted');
    assert.equal(a.platform.grants.endAccess(gref), true);
    assert.equal(hypervisor.events.status(a, abi.DOMID_SELF, port).status, abi.EVTCHNSTAT.unbound);
    a.platform.events.notify(port);
    assert.deepEqual(hypervisor.dyingDomains, []);
    assert.deepEqual(hypervisor.domains, [dom0, a, hypervisor.domain(2)!]);
    await scheduler.runReady();
    assert.equal(scheduler.idle, true, 'its timers are gone, too');
    c.platform.scheduler.after(1, () => {
      ran = true;
    });
    await scheduler.runFor(10);
    assert.equal(ran, false, 'it runs no more');

    // Its kernel may still call; nothing comes of it.
    c.platform.events.notify(bound);
    c.platform.events.close(bound);
    c.platform.events.mask(bound);
    c.platform.events.unmask(bound);
    c.platform.grants.unmap(mapping);
    assert.equal(c.platform.grants.endAccess(own), true);
    c.platform.grants.grant(c.platform.grants.alloc(), a.domid, 1, false);
    c.platform.memory.freePage(1);
    assert.throws(() => c.platform.memory.allocPage(), errno('ENOMEM'));
    assert.throws(() => c.platform.events.allocUnbound(0), errno('ENOSPC'));
    assert.throws(() => c.platform.grants.map(a.domid, gref, false));
    const batch = new CopyBatch(1);
    batch.add(-1, 1, 0, -1, 1, 0, 10);
    c.platform.grants.copy(batch);
    assert.equal(batch.status(0), GNTST.general_error);
    assert.equal(hypervisor.freePages, base - 1);
  });

  test('whose pages are mapped stays, dying, until they are not', () => {
    const { hypervisor } = makeHost();
    const { dom0, a, b } = makeDomains(hypervisor);
    const virq = dom0.platform.events.bindVirq(VIRQ.DOM_EXC, 0);
    const page = b.platform.memory.allocPage();
    hypervisor.memory.u8[page * PAGE_SIZE] = 42;
    const gref = b.platform.grants.grantAccess(a.domid, page, false);
    const other = b.platform.grants.grantAccess(a.domid, b.platform.memory.allocPage(), false);
    const first = a.platform.grants.map(b.domid, gref, false);
    const second = a.platform.grants.map(b.domid, gref, true);
    const before = hypervisor.freePages;
    b.destroy();
    assert.equal(b.state, 'dying');
    assert.equal(hypervisor.domainState(b.domid), 'dying');
    assert.equal(dom0.isPending(virq), true);
    assert.equal(hypervisor.freePages, before + 3, 'the other page and the two rings');
    assert.throws(() => hypervisor.createDomain({ domid: b.domid }), errno('EEXIST'));
    assert.throws(() => a.platform.grants.map(b.domid, other, false), /bad_domain/);
    assert.equal(hypervisor.memory.u8[first.address], 42);
    assert.notEqual(a.platform.memory.allocPage(), page);
    dom0.clearPending(virq);
    a.platform.grants.unmap(first);
    assert.equal(b.state, 'dying');
    a.platform.grants.unmap(second);
    assert.equal(b.state, 'dead');
    assert.equal(dom0.isPending(virq), true, 'once more, when it is really gone');
    assert.equal(hypervisor.domainState(b.domid), 'absent');
    hypervisor.createDomain({ domid: b.domid });
  });

  /** Ways for a domain's own code to run `work`. */
  const OWN_CODE: Record<string, (domain: Domain, work: () => void) => void> = {
    task: ({ scheduler }, work) => scheduler.post(new Task('own', work)),
    timer: ({ scheduler }, work) => void scheduler.after(1, work),
    upcall(domain, work) {
      domain.onUpcall(0, work);
      domain.setPending(domain.storePort);
    },
  };

  for (const [what, runIn] of Object.entries(OWN_CODE)) {
    test(`that is destroyed in its own ${what} has its memory until that has returned`, async () => {
      const { hypervisor, scheduler } = makeHost();
      const { dom0, a, b } = makeDomains(hypervisor);
      const free = hypervisor.freePages;
      const c = hypervisor.createDomain();
      const { memory, grants, events } = c.platform;
      const page = memory.allocPage();
      const gref = grants.grantAccess(a.domid, page, false);
      const mapping = a.platform.grants.map(c.domid, gref, false);
      const foreign = b.platform.grants.grantAccess(c.domid, b.platform.memory.allocPage(), false);
      grants.map(b.domid, foreign, false);
      const port = a.platform.events.allocUnbound(c.domid);
      events.bindInterdomain(a.domid, port);
      const virq = dom0.platform.events.bindVirq(VIRQ.DOM_EXC, 0);
      const states: string[] = [];
      hypervisor.onDomainChange(domain => states.push(domain.state));
      let ran = false;
      runIn(c, () => {
        ran = true;
        const before = hypervisor.freePages;
        c.platform.scheduler.after(0, () => assert.fail('it runs no more'));
        c.destroy();
        // Gone, for all others …
        assert.deepEqual([c.state, hypervisor.domainState(c.domid)], ['dying', 'dying']);
        assert.deepEqual([hypervisor.domain(c.domid), hypervisor.dyingDomains], [null, [c]]);
        assert.equal(dom0.isPending(virq), true);
        assert.throws(() => a.platform.grants.map(c.domid, gref, false), /bad_domain/);
        assert.equal(hypervisor.events.status(a, abi.DOMID_SELF, port).status, abi.EVTCHNSTAT.unbound);
        assert.throws(() => hypervisor.createDomain({ domid: c.domid }), errno('EEXIST'));
        // … but nobody gets what its code can still write to, be it its own or not.
        a.platform.grants.unmap(mapping);
        memory.freePage(page);
        assert.equal(b.platform.grants.endAccess(foreign), false);
        assert.equal(hypervisor.freePages, before);
        assert.equal(hypervisor.frames.owner[page], c.domid);
        if (what === 'task') throw new Error('enough');
      });
      if (what === 'task') await assert.rejects(scheduler.runFor(5), /enough/);
      await scheduler.runFor(5);
      assert.equal(ran, true);
      assert.equal(c.state, 'dead');
      assert.deepEqual(states, ['dying', 'dead']);
      assert.equal(b.platform.grants.endAccess(foreign), true);
      assert.equal(hypervisor.freePages, free - 1, 'but the page of b');
    });
  }

  test('that maps itself and is destroyed in its own task is gone once', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { a, b } = makeDomains(hypervisor);
    const { grants, memory } = a.platform;
    for (let i = 0; i < 2; i++)
      grants.map(a.domid, grants.grantAccess(a.domid, memory.allocPage(), false), false);
    const states: string[] = [];
    hypervisor.onDomainChange(domain => states.push(`${domain.domid} ${domain.state}`));
    a.scheduler.post(
      new Task('own', () => {
        // What does not run goes at once.
        b.destroy();
        a.destroy();
        assert.equal(a.inspect().pages, 4);
      }),
    );
    await scheduler.runReady();
    assert.deepEqual(states, [`${b.domid} dead`, `${a.domid} dying`, `${a.domid} dead`]);
  });

  test('that is destroyed in its own task on an event loop is gone in the next', () => {
    const scheduler = new EventLoopScheduler({
      setImmediate,
      setTimeout,
      clearTimeout: () => {},
      now: () => 0,
    });
    const hypervisor = new Hypervisor({ scheduler, memoryBytes: 4 << 20 });
    const { a, b } = makeDomains(hypervisor);
    const states: string[] = [];
    a.scheduler.post(
      new Task('own', () => {
        a.destroy();
        states.push(a.state);
      }),
    );
    b.scheduler.post(new Task('other', () => states.push(a.state)));
    scheduler.drain();
    states.push(a.state);
    assert.deepEqual(states, ['dying', 'dying', 'dead']);
    b.destroy();
    assert.equal(b.state, 'dead', 'outside of tasks at once');
  });

  test('that maps a dying one can be destroyed too', () => {
    const { hypervisor } = makeHost();
    const { a, b } = makeDomains(hypervisor);
    const free = hypervisor.freePages;
    const x = a.platform.grants.grantAccess(b.domid, a.platform.memory.allocPage(), false);
    const y = b.platform.grants.grantAccess(a.domid, b.platform.memory.allocPage(), false);
    a.platform.grants.map(b.domid, y, false);
    b.platform.grants.map(a.domid, x, false);
    a.destroy();
    assert.equal(a.state, 'dying');
    b.destroy();
    assert.deepEqual([a.state, b.state], ['dead', 'dead']);
    assert.equal(hypervisor.freePages, free + 16, 'each had eight frames to start with');
  });

  test('can be inspected', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const page = a.platform.memory.allocPage();
    const gref = a.platform.grants.grantAccess(0, page, true);
    dom0.platform.grants.map(a.domid, gref, true);
    const port = a.platform.events.allocUnbound(0);
    dom0.platform.events.notify(dom0.platform.events.bindInterdomain(a.domid, port));
    const info = a.inspect();
    assert.equal(info.name, 'a');
    assert.equal(info.pages, 3);
    assert.equal(info.mappedByOthers, 1);
    assert.deepEqual(
      info.grants.map(grant => [grant.gref, grant.domid, grant.readonly, grant.readers, grant.writers]),
      [
        [0, 0, false, 0, 0],
        [1, 0, false, 0, 0],
        [gref, 0, true, 1, 0],
      ],
    );
    assert.equal(info.grants[2].gfn, a.platform.memory.gfn(page));
    assert.deepEqual(info.ports[2], {
      port,
      status: abi.EVTCHNSTAT.interdomain,
      vcpu: 0,
      remoteDomid: 0,
      remotePort: 3,
      virq: -1,
      pending: true,
      masked: false,
    });
    assert.deepEqual(dom0.inspect().mappings, [{ handle: 0, domid: a.domid, gref, readonly: true }]);
  });
});

describe('a domain whose RAM is an emulated PC’s', () => {
  const setup = (threaded: boolean) => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const writes: [number, number][] = [];
    const ram = new Memory(new ArrayBuffer(16 * PAGE_SIZE));
    const pc = hypervisor.createDomain({
      wordBits: 32,
      storeGfn: 0xfef00,
      consoleGfn: 0xfef01,
      bank: { memory: ram, pages: 16, threaded, written: (at, length) => writes.push([at, length]) },
    });
    /** What the guest's kernel writes into its table. */
    const grant = (gref: number, domid: number, gfn: number, flags: number) => {
      const at = pc.grantTable.entryWord(gref);
      hypervisor.memory.i32[at + 1] = gfn;
      Atomics.store(hypervisor.memory.i32, at, (domid << 16) | flags);
    };
    return { hypervisor, dom0, a, pc, ram, writes, grant };
  };

  for (const threaded of [false, true]) {
    test(`grants its pages, ${threaded ? 'from another thread' : 'in this thread'}`, () => {
      const { dom0, a, pc, ram, writes, grant } = setup(threaded);
      assert.equal(pc.grantTable.plainEntries > 0, !threaded);
      grant(8, 0, 3, abi.GTF_permit_access);
      grant(9, 0, 16, abi.GTF_permit_access);
      grant(10, 0, 4, abi.GTF_permit_access | abi.GTF_readonly);
      const page = a.platform.memory.allocPage();
      const toA = a.platform.grants.grantAccess(0, page, false);
      const fromA = a.platform.grants.grantAccess(0, page, true);
      dom0.platform.memory.memory.u8.fill(7, page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
      const batch = new CopyBatch(8);
      batch.add(a.domid, fromA, 0, pc.domid, 8, 100, 50);
      batch.add(pc.domid, 8, 100, a.domid, toA, 2000, 60);
      batch.add(pc.domid, 8, 0, pc.domid, 10, 0, 1);
      batch.add(pc.domid, 9, 0, a.domid, toA, 0, 1);
      batch.add(pc.domid, 8, 100, pc.domid, 8, 200, 50);
      dom0.platform.grants.copy(batch);
      assert.deepEqual(
        [0, 1, 2, 3, 4].map(i => batch.status(i)),
        [GNTST.okay, GNTST.okay, GNTST.general_error, GNTST.bad_page, GNTST.okay],
      );
      assert.equal(ram.u8[3 * PAGE_SIZE + 149], 7);
      assert.equal(ram.u8[3 * PAGE_SIZE + 249], 7);
      const { u8 } = dom0.platform.memory.memory;
      assert.deepEqual([u8[page * PAGE_SIZE + 2049], u8[page * PAGE_SIZE + 2050]], [7, 0]);
      assert.deepEqual(writes, [
        [3 * PAGE_SIZE + 100, 50],
        [3 * PAGE_SIZE + 200, 50],
      ]);
      assert.equal(pc.grantTable.pinned, 0);
    });
  }

  test('maps and is mapped', () => {
    const { hypervisor, dom0, a, pc, ram, grant } = setup(true);
    grant(8, 0, 3, abi.GTF_permit_access);
    const mapping = dom0.platform.grants.map(pc.domid, 8, false);
    assert.equal(mapping.memory, ram);
    assert.equal(mapping.address, 3 * PAGE_SIZE);
    const gref = a.platform.grants.grantAccess(pc.domid, a.platform.memory.allocPage(), false);
    const { status, frame } = hypervisor.grants.map(pc, a.domid, gref, abi.GNTMAP_host_map);
    assert.equal(status, GNTST.okay);
    assert.equal(hypervisor.memoryOf(frame), hypervisor.memory);
    const ring = dom0.platform.grants.map(pc.domid, abi.GNTTAB_RESERVED_XENSTORE, false);
    assert.equal(ring.memory, hypervisor.memory);
    pc.destroy();
    assert.equal(pc.state, 'dying');
    assert.equal(a.platform.grants.endAccess(gref), true);
    dom0.platform.grants.unmap(mapping);
    dom0.platform.grants.unmap(ring);
    assert.equal(pc.state, 'dead');
  });

  test('copies between its own frames and grants, by page of its RAM', () => {
    const { hypervisor, a, pc, ram } = setup(true);
    const page = a.platform.memory.allocPage();
    hypervisor.memory.u8.fill(9, page * PAGE_SIZE, page * PAGE_SIZE + 10);
    const gref = a.platform.grants.grantAccess(pc.domid, page, true);
    const batch = new CopyBatch(2);
    batch.add(a.domid, gref, 0, -1, 5, 0, 10);
    batch.add(a.domid, gref, 0, -1, 16, 0, 10);
    hypervisor.grants.copy(pc, batch);
    assert.deepEqual([batch.status(0), batch.status(1)], [GNTST.okay, GNTST.bad_page]);
    assert.equal(ram.u8[5 * PAGE_SIZE + 9], 9);
  });
});

test('a machine of the default size costs little until it is used', () => {
  const { scheduler } = makeHost();
  const hypervisor = new Hypervisor({ scheduler });
  assert.equal(hypervisor.memoryBytes, 1 << 30);
  // Frame 0, the owners of all frames, the directory of domains, and two for copies.
  assert.equal(hypervisor.freePages, (1 << 18) - 1 - 128 - 3);
});
