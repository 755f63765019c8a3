import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as abi from '../../../src/abi/index.js';
import type { Domain } from '../../../src/platform/sim/index.js';
import { errno, makeDomains, makeHost } from './host.js';

const { EVTCHNSTAT, VIRQ, DOMID_SELF } = abi;

for (const wordBits of [64, 32] as const) {
  describe(`event channels of ${wordBits}-bit guests`, () => {
    const setup = () => {
      const { hypervisor, scheduler } = makeHost();
      const domains = makeDomains(hypervisor, { wordBits });
      return { hypervisor, scheduler, events: hypervisor.events, ...domains };
    };

    /** A connected channel between two domains: [port of a, port of b]. */
    const connect = (a: Domain, b: Domain): [number, number] => {
      const port = a.platform.events.allocUnbound(b.domid);
      return [port, b.platform.events.bindInterdomain(a.domid, port)];
    };

    /** Reads a domain's bits where the header says they are. */
    const bits = (domain: Domain) => {
      const { delivery } = domain.platform.events;
      assert.ok(delivery.kind === 'shared-info');
      const { sharedInfo } = delivery;
      const { u8 } = delivery.memory;
      const bit = (at: number, n: number) => (u8[sharedInfo + at + (n >>> 3)] >>> (n & 7)) & 1;
      return {
        pending: (port: number) => bit(2048, port),
        mask: (port: number) => bit(wordBits === 64 ? 2560 : 2176, port),
        selected: (port: number) => bit(wordBits === 64 ? 8 : 4, Math.floor(port / wordBits)),
        upcall: () => u8[sharedInfo],
        setUpcallMask: (value: number) => {
          u8[sharedInfo + 1] = value;
        },
        /** What a guest does first in its upcall. */
        take: () => {
          u8[sharedInfo] = 0;
          u8.fill(0, sharedInfo + (wordBits === 64 ? 8 : 4), sharedInfo + 16);
        },
        clear: (port: number) => {
          u8[sharedInfo + 2048 + (port >>> 3)] &= ~(1 << (port & 7));
        },
      };
    };

    test('an event sets the pending bit, the selector, upcall_pending, and makes one upcall', async () => {
      const { scheduler, a, b } = setup();
      let upcalls = 0;
      a.onUpcall(0, () => upcalls++);
      const ports = Array.from({ length: 130 }, () => connect(a, b));
      await scheduler.runReady();
      assert.equal(upcalls, 0, 'only the end that binds gets an event');
      const [port, sender] = ports[127];
      const at = bits(a);
      b.platform.events.notify(sender);
      assert.deepEqual([at.pending(port), at.selected(port), at.upcall()], [1, 1, 1]);
      assert.equal(upcalls, 0, 'never inside the sender');
      b.platform.events.notify(sender);
      b.platform.events.notify(ports[3][1]);
      await scheduler.runReady();
      assert.equal(upcalls, 1);
      at.take();
      at.clear(port);
      b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.equal(upcalls, 2);
    });

    test('a pending port is not signalled again before the guest clears it', async () => {
      const { scheduler, a, b } = setup();
      let upcalls = 0;
      a.onUpcall(0, () => upcalls++);
      const [port, sender] = connect(a, b);
      const at = bits(a);
      b.platform.events.notify(sender);
      await scheduler.runReady();
      at.take();
      b.platform.events.notify(sender);
      assert.equal(at.upcall(), 0);
      at.clear(port);
      b.platform.events.notify(sender);
      assert.equal(at.upcall(), 1);
    });

    test('a masked port becomes pending silently, and is delivered by unmask', async () => {
      const { scheduler, a, b } = setup();
      let upcalls = 0;
      a.onUpcall(0, () => upcalls++);
      const [port, sender] = connect(a, b);
      a.platform.events.mask(port);
      b.platform.events.notify(sender);
      const at = bits(a);
      assert.deepEqual([at.pending(port), at.mask(port), at.selected(port), at.upcall()], [1, 1, 0, 0]);
      a.platform.events.unmask(port);
      assert.deepEqual([at.mask(port), at.selected(port), at.upcall()], [0, 1, 1]);
      await scheduler.runReady();
      assert.equal(upcalls, 1);
      at.take();
      at.clear(port);
      a.platform.events.mask(port);
      a.platform.events.unmask(port);
      assert.equal(at.upcall(), 0, 'nothing was pending');
    });

    test('no upcall while upcall_mask is set', async () => {
      const { scheduler, a, b } = setup();
      let upcalls = 0;
      a.onUpcall(0, () => upcalls++);
      const [, sender] = connect(a, b);
      const at = bits(a);
      at.setUpcallMask(1);
      b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.deepEqual([upcalls, at.upcall()], [0, 1]);
    });

    test('events from before the kernel set its upcall are delivered then', async () => {
      const { scheduler, a, b } = setup();
      const [, sender] = connect(a, b);
      b.platform.events.notify(sender);
      let upcalls = 0;
      a.onUpcall(0, () => upcalls++);
      await scheduler.runReady();
      assert.equal(upcalls, 1);
    });

    test('bind_interdomain makes the local port pending, never the remote one', () => {
      const { a, b } = setup();
      const [pa, pb] = connect(a, b);
      assert.equal(bits(b).pending(pb), 1);
      assert.equal(bits(a).pending(pa), 0);
    });

    test('statuses, as a channel is opened, bound and closed', () => {
      const { events, a, b, dom0 } = setup();
      const pa = a.platform.events.allocUnbound(b.domid);
      const status = (domain: Domain, port: number) => {
        const { status, remoteDomid, remotePort } = events.status(domain, DOMID_SELF, port);
        return [status, remoteDomid, remotePort];
      };
      assert.deepEqual(status(a, pa), [EVTCHNSTAT.unbound, b.domid, -1]);
      b.platform.events.notify(b.storePort);
      assert.throws(() => dom0.platform.events.bindInterdomain(a.domid, pa), errno('EINVAL'));
      const pb = b.platform.events.bindInterdomain(a.domid, pa);
      assert.deepEqual(status(a, pa), [EVTCHNSTAT.interdomain, b.domid, pb]);
      assert.deepEqual(status(b, pb), [EVTCHNSTAT.interdomain, a.domid, pa]);
      assert.throws(() => b.platform.events.bindInterdomain(a.domid, pa), errno('EINVAL'));
      b.platform.events.close(pb);
      assert.deepEqual(status(a, pa), [EVTCHNSTAT.unbound, b.domid, -1]);
      assert.deepEqual(status(b, pb), [EVTCHNSTAT.closed, -1, -1]);
      assert.equal(bits(b).pending(pb), 0, 'a closed port is not pending');
      a.platform.events.notify(pa);
      const again = b.platform.events.bindInterdomain(a.domid, pa);
      assert.equal(again, pb, 'the lowest closed port is taken');
      a.platform.events.close(pa);
      assert.deepEqual(status(b, again), [EVTCHNSTAT.unbound, a.domid, -1]);
      assert.throws(() => events.status(a, b.domid, again), errno('EPERM'));
      assert.equal(events.status(dom0, b.domid, again).status, EVTCHNSTAT.unbound);
      assert.throws(() => events.status(dom0, 99, 1), errno('ESRCH'));
    });

    test('XSA-221: ports that are not open are refused', () => {
      const { events, a, b } = setup();
      const limit = a.platform.events.maxPorts;
      assert.equal(limit, wordBits ** 2);
      for (const port of [0, -1, 40, limit - 1, limit, limit + 1, 0x7fffffff, 1.5]) {
        assert.throws(() => a.platform.events.notify(port), errno('EINVAL'), `send ${port}`);
        assert.throws(() => a.platform.events.close(port), errno('EINVAL'), `close ${port}`);
        assert.throws(() => a.platform.events.unmask(port), errno('EINVAL'), `unmask ${port}`);
        assert.throws(() => events.bindVcpu(a, port, 0), errno('EINVAL'), `bind_vcpu ${port}`);
        assert.throws(() => b.platform.events.bindInterdomain(a.domid, port), errno('EINVAL'));
      }
      for (const port of [0, -1, limit]) {
        assert.throws(() => events.status(a, DOMID_SELF, port), errno('EINVAL'));
      }
      assert.equal(events.status(a, DOMID_SELF, limit - 1).status, EVTCHNSTAT.closed);
      assert.throws(() => b.platform.events.bindInterdomain(99, 1), errno('ESRCH'));
    });

    test('every port but 0 can be taken, then ENOSPC', () => {
      const { a, b } = setup();
      const { events } = a.platform;
      const before = events.allocated;
      const taken = new Set<number>();
      while (events.allocated < events.maxPorts - 1) taken.add(events.allocUnbound(b.domid));
      assert.equal(taken.size, events.maxPorts - 1 - before);
      assert.ok(!taken.has(0));
      assert.throws(() => events.allocUnbound(b.domid), errno('ENOSPC'));
      events.close(77);
      assert.equal(events.allocUnbound(b.domid), 77);
    });

    test('XSA-340, XSA-343: reset closes every port, and sending to one afterwards is refused', () => {
      const { events, a, b } = setup();
      const [pa, pb] = connect(a, b);
      events.reset(a, DOMID_SELF);
      assert.equal(a.platform.events.allocated, 0);
      assert.throws(() => a.platform.events.notify(pa), errno('EINVAL'));
      b.platform.events.notify(pb);
      assert.equal(events.status(b, DOMID_SELF, pb).status, EVTCHNSTAT.unbound);
      assert.equal(a.platform.events.allocUnbound(b.domid), 1);
      assert.throws(() => events.reset(a, b.domid), errno('EPERM'));
    });
  });
}

describe('event channels', () => {
  test('XSA-107, XSA-505: the FIFO ABI is refused, so that guests stay with two levels', () => {
    const { hypervisor } = makeHost();
    assert.throws(() => hypervisor.events.initControl(), errno('ENOSYS'));
    assert.throws(() => hypervisor.events.expandArray(), errno('ENOSYS'));
    assert.throws(() => hypervisor.events.setPriority(), errno('ENOSYS'));
  });

  test('a domain opens ports for another only when privileged', () => {
    const { hypervisor } = makeHost();
    const { dom0, a, b } = makeDomains(hypervisor);
    const { events } = hypervisor;
    const port = events.allocUnbound(dom0, a.domid, DOMID_SELF);
    assert.equal(events.status(a, DOMID_SELF, port).remoteDomid, 0);
    assert.throws(() => events.allocUnbound(a, b.domid, a.domid), errno('EPERM'));
    assert.throws(() => events.allocUnbound(dom0, 99, 0), errno('ESRCH'));
    const own = events.allocUnbound(a, DOMID_SELF, DOMID_SELF);
    assert.equal(events.status(a, DOMID_SELF, own).remoteDomid, a.domid);
  });

  test('a domain can have both ends', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { a } = makeDomains(hypervisor);
    const { events } = a.platform;
    const first = events.allocUnbound(a.domid);
    const second = events.bindInterdomain(a.domid, first);
    await scheduler.runReady();
    events.notify(second);
    assert.equal(a.isPending(first), true);
    events.close(second);
    assert.equal(hypervisor.events.status(a, DOMID_SELF, first).status, EVTCHNSTAT.unbound);
    events.close(first);
  });

  test('VIRQs: numbers, vcpus, one port each', () => {
    const { hypervisor } = makeHost();
    const dom0 = hypervisor.createDomain({ vcpus: 2 });
    const { events } = dom0.platform;
    assert.throws(() => events.bindVirq(abi.NR_VIRQS, 0), errno('EINVAL'));
    assert.throws(() => events.bindVirq(-1, 0), errno('EINVAL'));
    assert.throws(() => events.bindVirq(VIRQ.DOM_EXC, 1), errno('EINVAL'), 'global');
    assert.throws(() => events.bindVirq(VIRQ.TIMER, 2), errno('ENOENT'));
    const port = events.bindVirq(VIRQ.TIMER, 1);
    assert.throws(() => events.bindVirq(VIRQ.TIMER, 1), errno('EEXIST'));
    const other = events.bindVirq(VIRQ.TIMER, 0);
    hypervisor.events.sendVirq(dom0, VIRQ.TIMER, 1);
    assert.deepEqual([dom0.isPending(port), dom0.isPending(other)], [true, false]);
    const { info, memory } = dom0.vcpus[1];
    assert.equal(info - dom0.sharedInfo, 64);
    assert.equal(memory.u8[info], 1);
    assert.throws(() => events.notify(port), errno('EINVAL'));
    events.close(port);
    assert.equal(dom0.isPending(port), false);
    events.close(events.bindVirq(VIRQ.TIMER, 1));
    const dying = events.bindVirq(VIRQ.DOM_EXC, 0);
    hypervisor.events.bindVcpu(dom0, dying, 1);
    events.close(dying);
    events.bindVirq(VIRQ.DOM_EXC, 0);
  });

  test('a global VIRQ can be given to another domain than 0', () => {
    const { hypervisor } = makeHost();
    const { dom0, a } = makeDomains(hypervisor);
    const ports = [dom0, a].map(domain => domain.platform.events.bindVirq(VIRQ.DOM_EXC, 0));
    hypervisor.events.setVirqHandler(VIRQ.DOM_EXC, a.domid);
    hypervisor.events.sendGlobalVirq(VIRQ.DOM_EXC);
    assert.deepEqual([dom0.isPending(ports[0]), a.isPending(ports[1])], [false, true]);
    a.destroy();
    assert.equal(dom0.isPending(ports[0]), false);
  });

  test('XSA-496: a VIRQ for which no port is left is ENOSPC and can be bound later', () => {
    const { hypervisor } = makeHost();
    const dom0 = hypervisor.createDomain({ limits: { maxPorts: 6 } });
    const { events } = dom0.platform;
    while (events.allocated < 5) events.allocUnbound(0);
    assert.throws(() => events.bindVirq(VIRQ.DOM_EXC, 0), errno('ENOSPC'));
    events.close(5);
    assert.equal(events.bindVirq(VIRQ.DOM_EXC, 0), 5);
  });

  test('IPIs go to the domain itself, and stay on their vcpu', () => {
    const { hypervisor } = makeHost();
    const dom0 = hypervisor.createDomain({ vcpus: 2 });
    const port = hypervisor.events.bindIpi(dom0, 1);
    dom0.platform.events.notify(port);
    assert.equal(dom0.isPending(port), true);
    assert.equal(dom0.vcpus[1].memory.u8[dom0.vcpus[1].info], 1);
    assert.throws(() => hypervisor.events.bindVcpu(dom0, port, 0), errno('EINVAL'));
    assert.throws(() => hypervisor.events.bindIpi(dom0, 2), errno('ENOENT'));
  });

  test('bind_vcpu sends the events of a port to another virtual CPU', async () => {
    const { hypervisor, scheduler } = makeHost();
    const dom0 = hypervisor.createDomain({ vcpus: 2 });
    const { events } = dom0.platform;
    const a = events.allocUnbound(0);
    const b = events.bindInterdomain(0, a);
    hypervisor.events.bindVcpu(dom0, a, 1);
    assert.throws(() => hypervisor.events.bindVcpu(dom0, a, 2), errno('ENOENT'));
    let upcalls = 0;
    dom0.onUpcall(1, () => upcalls++);
    events.notify(b);
    await scheduler.runReady();
    assert.equal(upcalls, 1);
  });

  test('shared info and vcpu info move to where an emulated guest wants them', async () => {
    const { hypervisor, scheduler } = makeHost();
    const { a, b } = makeDomains(hypervisor, { wordBits: 32 });
    const port = a.platform.events.allocUnbound(b.domid);
    const sender = b.platform.events.bindInterdomain(a.domid, port);
    a.mask(port);
    b.platform.events.notify(sender);
    const page = a.platform.memory.allocPage() * 4096;
    const { memory } = hypervisor;
    a.placeSharedInfo(memory, page);
    assert.equal((memory.u8[page + 2048] >>> port) & 1, 1, 'what was pending stays so');
    let upcalls = 0;
    a.onUpcall(0, () => upcalls++);
    a.unmask(port);
    await scheduler.runReady();
    assert.equal(upcalls, 1);
    assert.equal(memory.u8[page], 1);
    const info = page + 3072;
    a.placeVcpuInfo(0, memory, info);
    await scheduler.runReady();
    assert.equal(upcalls, 2, 'nothing is lost in the move');
    assert.equal(memory.u8[info], 1);
    assert.equal(memory.u32[(info + 4) >>> 2], 0xffffffff);
  });
});
