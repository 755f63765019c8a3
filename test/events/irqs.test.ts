import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as abi from '../../src/abi/index.js';
import { DYNIRQ_BASE, Irqs } from '../../src/events/index.js';
import type { EventChannels, Platform } from '../../src/platform/index.js';
import { errno, makeDomains, makeHost } from '../platform/sim/host.js';

for (const wordBits of [64, 32] as const) {
  describe(`the IRQs of a ${wordBits}-bit kernel`, () => {
    const setup = (seed = 1) => {
      const { hypervisor, scheduler } = makeHost({}, seed);
      const domains = makeDomains(hypervisor, { wordBits });
      const { a, b } = domains;
      const irqs = new Irqs(a.platform);
      const peer = new Irqs(b.platform);
      return { hypervisor, scheduler, ...domains, irqs, peer };
    };

    test('a listening port and the other end: events go both ways, one handler run for each', async () => {
      const { scheduler, a, b, irqs, peer } = setup();
      const seen: string[] = [];
      const front = irqs.bindListeningPortToIrqhandler(b.domid, irq => seen.push(`front ${irq}`), 'eth0');
      assert.equal(front.irq, DYNIRQ_BASE);
      const back = peer.bindInterdomainEvtchnToIrqhandler(
        a.domid,
        front.port,
        irq => seen.push(`back ${irq}`),
        'vif1.0',
      );
      await scheduler.runReady();
      assert.deepEqual(seen, [`back ${back.irq}`], 'the end that binds gets one that means nothing');
      peer.notifyRemoteViaIrq(back.irq);
      peer.notifyRemoteViaIrq(back.irq);
      irqs.notifyRemoteViaIrq(front.irq);
      assert.equal(seen.length, 1, 'never inside the sender');
      await scheduler.runReady();
      assert.deepEqual(seen.slice(1).sort(), [`back ${back.irq}`, `front ${front.irq}`]);
      assert.equal(irqs.evtchnFromIrq(front.irq), front.port);
      assert.equal(irqs.irqFromEvtchn(front.port), front.irq);
      irqs.unbindFromIrqhandler(front.irq);
      peer.unbindFromIrqhandler(back.irq);
      assert.equal(irqs.irqFromEvtchn(front.port), -1);
      assert.deepEqual([irqs.counts, peer.counts], [[], []]);
      assert.equal(a.platform.events.allocated, 2, 'the store and console ports');
    });

    test('an event that comes before the handler is bound waits for it', async () => {
      const { scheduler, a, b, irqs } = setup();
      const port = a.platform.events.allocUnbound(b.domid);
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      b.platform.events.notify(sender);
      await scheduler.runReady();
      let runs = 0;
      irqs.bindCallerPortToIrqhandler(port, () => runs++, 'late');
      await scheduler.runReady();
      assert.equal(runs, 1);
    });

    test('every port of the bitmaps is found', async () => {
      const { scheduler, a, b, irqs } = setup();
      const hits = new Map<number, number>();
      const senders: number[] = [];
      const ports: number[] = [];
      while (a.platform.events.allocated < a.platform.events.maxPorts - 1) {
        const { port } = irqs.bindListeningPortToIrqhandler(
          b.domid,
          irq => hits.set(irqs.evtchnFromIrq(irq), (hits.get(irqs.evtchnFromIrq(irq)) ?? 0) + 1),
          'x',
        );
        ports.push(port);
        if (ports.length <= 200 || ports.length % 7 === 0) {
          senders.push(b.platform.events.bindInterdomain(a.domid, port));
        }
        if (senders.length === b.platform.events.maxPorts - 3) break;
      }
      for (const sender of senders) b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.equal(hits.size, senders.length);
      for (const runs of hits.values()) assert.equal(runs, 1);
    });

    test('a scan goes on behind where the last one ended', async () => {
      const { scheduler, a, b, irqs } = setup();
      const order: number[] = [];
      const channels = Array.from({ length: 100 }, () => {
        const { port } = irqs.bindListeningPortToIrqhandler(
          b.domid,
          irq => order.push(irqs.evtchnFromIrq(irq)),
          'x',
        );
        return { port, sender: b.platform.events.bindInterdomain(a.domid, port) };
      });
      const send = async (...which: number[]) => {
        order.length = 0;
        for (const i of which) b.platform.events.notify(channels[i].sender);
        await scheduler.runReady();
        return order.map(port => channels.findIndex(channel => channel.port === port));
      };
      assert.deepEqual(await send(70, 5, 6), [5, 6, 70]);
      assert.deepEqual(await send(5, 70, 71, 99), [71, 99, 5, 70]);
      assert.deepEqual(await send(40), [40]);
      assert.deepEqual(await send(39, 40, 41, 0, 99), [41, 99, 0, 39, 40]);
    });

    test('XSA-331: an event for a port that is being unbound is ignored', async () => {
      const { scheduler, a, b, irqs } = setup();
      const seen: string[] = [];
      const second = irqs.bindListeningPortToIrqhandler(b.domid, () => seen.push('second'), 'second');
      const first = irqs.bindListeningPortToIrqhandler(b.domid, () => seen.push('first'), 'first');
      const senders = [first, second].map(({ port }) => b.platform.events.bindInterdomain(a.domid, port));
      for (const sender of senders) b.platform.events.notify(sender);
      irqs.unbindFromIrqhandler(first.irq);
      await scheduler.runReady();
      assert.deepEqual(seen, ['second']);
      // A pending bit without an IRQ, as when unbinding lost the race.
      const port = a.platform.events.allocUnbound(b.domid);
      b.platform.events.notify(b.platform.events.bindInterdomain(a.domid, port));
      a.platform.events.unmask(port);
      await scheduler.runReady();
      assert.equal(a.isMasked(port), true);
      assert.equal(a.isPending(port), false);
    });

    test('XSA-441: a handler may unbind its own IRQ, and that of a port that is pending too', async () => {
      const { scheduler, a, b, irqs } = setup();
      let runs = 0;
      const bound = [0, 1].map(() =>
        irqs.bindListeningPortToIrqhandler(
          b.domid,
          () => {
            runs++;
            for (const { irq } of bound) irqs.unbindFromIrqhandler(irq);
          },
          'x',
        ),
      );
      const senders = bound.map(({ port }) => b.platform.events.bindInterdomain(a.domid, port));
      for (const sender of senders) b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.equal(runs, 1);
      for (const sender of senders) b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.equal(runs, 1);
      assert.deepEqual(irqs.counts, []);
    });

    test('disabling holds an event back until as many enables', async () => {
      const { scheduler, a, b, irqs } = setup();
      let runs = 0;
      const { irq, port } = irqs.bindListeningPortToIrqhandler(b.domid, () => runs++, 'x');
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      irqs.disableIrq(irq);
      irqs.disableIrq(irq);
      b.platform.events.notify(sender);
      irqs.enableIrq(irq);
      await scheduler.runReady();
      assert.equal(runs, 0);
      irqs.enableIrq(irq);
      await scheduler.runReady();
      assert.equal(runs, 1);
      assert.throws(() => irqs.enableIrq(irq), errno('EINVAL'));
    });

    test('a handler that throws is logged and hurts nobody', async () => {
      const { scheduler, a, b, irqs } = setup();
      let good = 0;
      const bad = irqs.bindListeningPortToIrqhandler(
        b.domid,
        () => {
          throw new Error('out of order');
        },
        'bad',
      );
      const fine = irqs.bindListeningPortToIrqhandler(b.domid, () => good++, 'fine');
      for (const { port } of [bad, fine]) {
        b.platform.events.notify(b.platform.events.bindInterdomain(a.domid, port));
      }
      await scheduler.runReady();
      assert.equal(good, 1);
      assert.match(a.dmesg[0], /irq 256 \(bad\): handler failed: .*out of order/);
    });

    test('late EOI: no further event until the handler says so', async () => {
      const { scheduler, a, b, irqs } = setup();
      let runs = 0;
      const { irq, port } = irqs.bindListeningPortToIrqhandlerLateeoi(b.domid, () => runs++, 'x');
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.equal(runs, 1);
      for (let i = 0; i < 10; i++) {
        b.platform.events.notify(sender);
        await scheduler.runReady();
      }
      assert.equal(runs, 1);
      irqs.lateEoi(irq);
      irqs.lateEoi(irq);
      await scheduler.runReady();
      assert.equal(runs, 2, 'the event that came meanwhile');
      irqs.lateEoi(irq);
      await scheduler.runReady();
      assert.equal(runs, 2);
    });

    test('XSA-332: spurious events come ever more slowly, others at once', async () => {
      const { scheduler, a, b, irqs } = setup();
      let runs = 0;
      let spurious = true;
      const { irq, port } = irqs.bindListeningPortToIrqhandlerLateeoi(
        b.domid,
        () => {
          runs++;
          irqs.lateEoi(irq, spurious);
        },
        'x',
      );
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      const flood = async (ms: number) => {
        const before = runs;
        const end = scheduler.now() + ms;
        while (scheduler.now() < end) {
          for (let i = 0; i < 100; i++) b.platform.events.notify(sender);
          await scheduler.runFor(1);
        }
        return runs - before;
      };
      assert.ok((await flood(100)) <= 12);
      assert.ok((await flood(10_000)) <= 14, 'at most one a second in the end');
      spurious = false;
      await flood(1100);
      assert.ok((await flood(20)) >= 20, 'forgiven after one that was not');
      spurious = true;
      assert.ok((await flood(10)) >= 4, 'and forgotten');
    });

    test('the delays of spurious events, in ms', async () => {
      const { scheduler, a, b, irqs } = setup();
      const times: number[] = [];
      const { irq, port } = irqs.bindListeningPortToIrqhandlerLateeoi(
        b.domid,
        () => times.push(scheduler.now()),
        'x',
      );
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      for (let i = 0; i < 40; i++) {
        const start = scheduler.now();
        b.platform.events.notify(sender);
        await scheduler.runUntil(() => times.length === i + 1);
        times[i] -= start;
        irqs.lateEoi(irq, true);
      }
      const delays = times.map(ms => Math.round(ms));
      assert.deepEqual(delays.slice(0, 12), [0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
      assert.deepEqual(new Set(delays.slice(12)), new Set([1000]));
      irqs.unbindFromIrqhandler(irq);
      await scheduler.runFor(2000);
    });

    test('a second end of the same event does not end the delay of the first', async () => {
      const { scheduler, a, b, irqs } = setup();
      let runs = 0;
      const { irq, port } = irqs.bindListeningPortToIrqhandlerLateeoi(b.domid, () => runs++, 'x');
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      const event = async () => {
        b.platform.events.notify(sender);
        await scheduler.runReady();
      };
      for (let i = 0; i < 6; i++) {
        await event();
        irqs.lateEoi(irq, true);
        await scheduler.runFor(i === 5 ? 0 : 100);
      }
      await event();
      for (const spurious of [false, true]) {
        irqs.lateEoi(irq, spurious);
        await scheduler.runReady();
        assert.equal(runs, 6);
      }
      const start = scheduler.now();
      await scheduler.runUntil(() => runs === 7);
      assert.equal(Math.round(scheduler.now() - start), 16);
      irqs.lateEoi(irq, true);
      await scheduler.runFor(31);
      await event();
      assert.equal(runs, 7, 'the next delay is twice as long');
    });

    test('ENOSPC when no IRQ is left, and then no port is left open', () => {
      const { a, b } = setup();
      const irqs = new Irqs(a.platform, { nrDynirqs: 3 });
      const open = () => irqs.bindListeningPortToIrqhandler(b.domid, () => {}, 'x');
      const bound = [open(), open(), open()];
      assert.deepEqual(
        bound.map(({ irq }) => irq),
        [256, 257, 258],
      );
      const ports = a.platform.events.allocated;
      assert.throws(open, errno('ENOSPC'));
      assert.throws(() => irqs.bindVirqToIrqhandler(abi.VIRQ.TIMER, 0, () => {}, 'timer'), errno('ENOSPC'));
      assert.throws(() => irqs.bindCallerPortToIrqhandler(a.storePort, () => {}, 'x'), errno('ENOSPC'));
      assert.equal(a.platform.events.allocated, ports);
      irqs.unbindFromIrqhandler(257);
      assert.equal(open().irq, 257);
      assert.throws(() => irqs.unbindFromIrqhandler(300), errno('EINVAL'));
      assert.throws(() => irqs.notifyRemoteViaIrq(255), errno('EINVAL'));
    });

    test('bind counts: a shared port stays until its last user leaves', async () => {
      const { scheduler, a, b, irqs } = setup();
      const port = a.platform.events.allocUnbound(b.domid);
      const sender = b.platform.events.bindInterdomain(a.domid, port);
      const seen: string[] = [];
      const first = () => seen.push('first');
      const second = () => seen.push('second');
      const irq = irqs.bindCallerPortToIrqhandler(port, first, 'x', { shared: true });
      assert.throws(() => irqs.bindCallerPortToIrqhandler(port, second, 'y'), errno('EBUSY'));
      assert.equal(irqs.bindCallerPortToIrqhandler(port, second, 'x', { shared: true }), irq);
      b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.deepEqual(seen, ['first', 'second']);
      irqs.unbindFromIrqhandler(irq, first);
      assert.throws(() => irqs.unbindFromIrqhandler(irq, first), errno('EINVAL'));
      b.platform.events.notify(sender);
      await scheduler.runReady();
      assert.deepEqual(seen, ['first', 'second', 'second']);
      irqs.unbindFromIrqhandler(irq);
      assert.throws(() => a.platform.events.notify(port), errno('EINVAL'));
    });

    test('a port that belongs to somebody else is left open', () => {
      const { a, irqs } = setup();
      const irq = irqs.bindCallerPortToIrqhandler(a.storePort, () => {}, 'xenbus', { keepPort: true });
      irqs.unbindFromIrqhandler(irq);
      a.platform.events.notify(a.storePort);
      assert.throws(() => irqs.bindCallerPortToIrqhandler(0, () => {}, 'x'), errno('EINVAL'));
      assert.throws(() => irqs.bindCallerPortToIrqhandler(700, () => {}, 'x'), errno('EINVAL'));
      assert.throws(
        () => irqs.bindCallerPortToIrqhandler(a.platform.events.maxPorts, () => {}, 'x'),
        errno('EINVAL'),
      );
      assert.deepEqual(irqs.counts, []);
    });

    test('/proc/interrupts', async () => {
      const { scheduler, hypervisor, dom0, b } = setup();
      const irqs = new Irqs(dom0.platform);
      irqs.bindVirqToIrqhandler(abi.VIRQ.DOM_EXC, 0, () => {}, 'xenstored');
      const { port } = irqs.bindListeningPortToIrqhandlerLateeoi(b.domid, () => {}, 'vif2.0');
      irqs.bindCallerPortToIrqhandler(dom0.storePort, () => {}, 'xenbus', { keepPort: true });
      b.platform.events.notify(b.platform.events.bindInterdomain(0, port));
      hypervisor.domain(1)!.destroy();
      await scheduler.runReady();
      assert.equal(
        irqs.interrupts(),
        [
          '                CPU0',
          '  256:             1  xen-percpu      -virq   xenstored',
          '  257:             1  xen-dyn-lateeoi -event  vif2.0',
          '  258:             0  xen-dyn         -event  xenbus',
          '',
        ].join('\n'),
      );
    });
  });
}

test('a VIRQ has one IRQ, shared only by agreement', () => {
  const { hypervisor } = makeHost();
  const irqs = new Irqs(hypervisor.createDomain().platform);
  const bind = (shared: boolean) =>
    irqs.bindVirqToIrqhandler(abi.VIRQ.DOM_EXC, 0, () => {}, 'xenstored', { shared });
  const irq = bind(true);
  assert.equal(bind(true), irq);
  assert.throws(() => bind(false), errno('EBUSY'));
  irqs.unbindFromIrqhandler(irq);
  irqs.unbindFromIrqhandler(irq);
  assert.equal(bind(false), irq);
});

describe('the IRQs of a process, to which /dev/xen/evtchn hands out ports', () => {
  /** The device: a port is masked when it is handed out, until it is written back. */
  const setup = () => {
    const { hypervisor, scheduler } = makeHost();
    const { a } = makeDomains(hypervisor);
    let deliver: (port: number) => void = () => {};
    const masked = new Set<number>();
    const pending = new Set<number>();
    const hand = (port: number) => {
      masked.add(port);
      deliver(port);
    };
    const events: EventChannels = {
      maxPorts: 100,
      delivery: {
        kind: 'ports',
        onPort: listener => {
          deliver = listener;
        },
      },
      allocUnbound: () => 7,
      bindInterdomain: () => 8,
      bindVirq: () => 9,
      close: () => {},
      notify: () => {},
      mask: () => {},
      unmask: port => {
        masked.delete(port);
        if (pending.delete(port)) hand(port);
      },
      allocated: 0,
    };
    const platform: Platform = {
      domid: 0,
      memory: a.platform.memory,
      grants: a.platform.grants,
      events,
      xenstore: a.platform.xenstore,
      scheduler,
      random: () => 0,
      log: () => {},
    };
    const event = (port: number) => {
      if (masked.has(port)) pending.add(port);
      else hand(port);
    };
    return { scheduler, irqs: new Irqs(platform), event, masked };
  };

  test('a port is given back when its handler returned, or at its late EOI', () => {
    const { irqs, event, masked } = setup();
    let runs = 0;
    const { port } = irqs.bindListeningPortToIrqhandler(1, () => runs++, 'x');
    event(port);
    assert.deepEqual([runs, masked.size], [1, 0]);
    let late = 0;
    const lateIrq = irqs.bindInterdomainEvtchnToIrqhandlerLateeoi(1, 1, () => late++, 'y');
    event(lateIrq.port);
    event(lateIrq.port);
    assert.deepEqual([late, masked.size], [1, 1]);
    irqs.lateEoi(lateIrq.irq);
    assert.equal(late, 2);
    event(50);
  });

  test('an event that comes while the IRQ is disabled is kept', async () => {
    const { irqs, event, scheduler, masked } = setup();
    let runs = 0;
    const { irq, port } = irqs.bindListeningPortToIrqhandler(1, () => runs++, 'x');
    irqs.disableIrq(irq);
    event(port);
    assert.equal(runs, 0);
    irqs.enableIrq(irq);
    await scheduler.runReady();
    assert.deepEqual([runs, masked.size], [1, 0]);
  });

  test('an event that was kept is not for who binds the port next', async () => {
    const { irqs, event, scheduler } = setup();
    const { irq, port } = irqs.bindListeningPortToIrqhandler(1, () => {}, 'x');
    irqs.disableIrq(irq);
    event(port);
    irqs.enableIrq(irq);
    irqs.unbindFromIrqhandler(irq);
    let runs = 0;
    irqs.bindListeningPortToIrqhandler(1, () => runs++, 'y');
    await scheduler.runReady();
    assert.equal(runs, 0);
  });
});
