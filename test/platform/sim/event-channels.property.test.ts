import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { EVTCHNSTAT } from '../../../src/abi/index.js';
import { Irqs } from '../../../src/events/index.js';
import { HypercallError } from '../../../src/platform/index.js';
import type { Domain } from '../../../src/platform/sim/index.js';
import { makeHost } from './host.js';

interface Port {
  readonly owner: Guest;
  readonly port: number;
  peer: Port | null;
  irq: number;
  /** Events sent to it since its handler last ran; the first that binds brings one of its own. */
  due: boolean;
  runs: number;
}

interface Guest {
  readonly domain: Domain;
  readonly irqs: Irqs;
  ports: Port[];
  alive: boolean;
}

const pick = <T>(list: readonly T[], n: number): T | undefined => list[n % Math.max(1, list.length)];

const operation = fc.tuple(fc.nat(6), fc.nat(100), fc.nat(100));

test('random opening, binding, sending, masking, closing and dying: no event is lost, none invented', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(),
      fc.array(operation, { minLength: 20, maxLength: 120 }),
      async (seed, operations) => {
        const { hypervisor, scheduler } = makeHost({}, seed);
        const guests: Guest[] = [];
        const create = () => {
          const domain = hypervisor.createDomain({ limits: { maxPorts: 12 } });
          guests.push({ domain, irqs: new Irqs(domain.platform), ports: [], alive: true });
        };
        for (let i = 0; i < 3; i++) create();
        const alive = () => guests.filter(guest => guest.alive);
        const handler = (port: Port) => () => {
          assert.ok(port.due, 'an event that nobody sent');
          port.due = false;
          port.runs++;
        };
        const ports = () => alive().flatMap(guest => guest.ports);
        const full = (guest: Guest) => guest.domain.platform.events.allocated === 11;
        const unpeer = (port: Port) => {
          if (port.peer) port.peer.peer = null;
        };

        for (const [op, a, b] of operations) {
          const guest = pick(alive(), a)!;
          const other = pick(alive(), b)!;
          const port = pick(ports(), b);
          if (op === 0) {
            const made: Port = { owner: guest, port: 0, peer: null, irq: 0, due: false, runs: 0 };
            const listen = () =>
              guest.irqs.bindListeningPortToIrqhandler(other.domain.domid, handler(made), 'port');
            if (full(guest)) {
              assert.throws(
                listen,
                (error: unknown) => error instanceof HypercallError && error.code === 'ENOSPC',
              );
            } else {
              guest.ports.push(Object.assign(made, listen()));
            }
          } else if (op === 1) {
            const open = other.ports.filter(p => p.peer === null);
            const remote = pick(open, a + b);
            if (!remote || full(guest)) continue;
            const { status, remoteDomid } = hypervisor.events.status(other.domain, 0x7ff0, remote.port);
            assert.equal(status, EVTCHNSTAT.unbound);
            const made: Port = { owner: guest, port: 0, peer: remote, irq: 0, due: true, runs: 0 };
            const bind = () =>
              guest.irqs.bindInterdomainEvtchnToIrqhandler(
                other.domain.domid,
                remote.port,
                handler(made),
                'port',
              );
            if (remoteDomid === guest.domain.domid) {
              guest.ports.push(Object.assign(made, bind()));
              remote.peer = made;
            } else {
              assert.throws(
                bind,
                (error: unknown) => error instanceof HypercallError && error.code === 'EINVAL',
              );
            }
          } else if (op === 2 || op === 3) {
            if (!port) continue;
            port.owner.irqs.notifyRemoteViaIrq(port.irq);
            if (port.peer) port.peer.due = true;
          } else if (op === 4) {
            if (!port) continue;
            port.owner.irqs.unbindFromIrqhandler(port.irq);
            port.owner.ports.splice(port.owner.ports.indexOf(port), 1);
            unpeer(port);
          } else if (op === 5) {
            await scheduler.runReady();
            for (const p of ports()) assert.equal(p.due, false, 'an event was lost');
          } else if (op === 6 && a % 10 === 0) {
            guest.domain.destroy();
            guest.alive = false;
            for (const p of guest.ports) unpeer(p);
            create();
          }
          for (const p of ports()) {
            const { status, remotePort } = hypervisor.events.status(p.owner.domain, 0x7ff0, p.port);
            assert.equal(status, p.peer ? EVTCHNSTAT.interdomain : EVTCHNSTAT.unbound);
            assert.equal(remotePort, p.peer ? p.peer.port : -1);
          }
          for (const g of alive()) assert.equal(g.domain.platform.events.allocated, g.ports.length + 2);
        }
        await scheduler.runReady();
        for (const p of ports()) assert.equal(p.due, false, 'an event was lost');
      },
    ),
    { numRuns: 60 },
  );
});
