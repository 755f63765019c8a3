import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import type { NetDevice } from '../../src/net/index.js';
import { buildFrame } from '../net/frames.js';
import { type GuestDomain, Host } from '../support/host.js';
import { packetFrom } from '../support/packets.js';

const { Connected, Closing, Closed } = XenbusState;

async function pair(
  seed: number,
): Promise<{ host: Host; guest: GuestDomain; eth0: NetDevice; peer: NetDevice }> {
  const host = await Host.boot(seed);
  const guest = await host.createGuest('a');
  const other = await host.createGuest('b');
  const eth0 = await host.connectVif(guest);
  const peer = await host.connectVif(other);
  return { host, guest, eth0, peer };
}

function send(from: NetDevice, to: NetDevice, length: number): void {
  const payload = new Uint8Array(length);
  const frame = buildFrame({ source: [...from.address], destination: [...to.address], payload });
  from.xmit(packetFrom(from, frame));
}

/** Grants, mappings and ports of all domains. */
function held(host: Host): Record<string, { grants: number }> {
  const domains = Object.entries(host.allHoldings());
  return Object.fromEntries(domains.map(([domid, { pages: _, ...rest }]) => [domid, rest]));
}

describe('a frontend that resumes', () => {
  for (const state of [Closing, Closed, XenbusState.Unknown, Connected]) {
    test(`while its backend is in state ${state}, and is removed then (XSA-465)`, async () => {
      const { host, guest, eth0, peer } = await pair(71 + state);
      const { domain, kernel } = guest;
      await host.run(kernel.xenbus.suspend());
      domain.shutdown('suspend');
      await host.run(host.xs.write(`${host.backPath(guest)}/online`, '0'));
      await host.run(host.xs.write(`${host.backPath(guest)}/state`, String(state)));
      domain.resume();
      const resumed = kernel.xenbus.resume();
      // A driver's queues are gone by now; its device is still used.
      for (let i = 0; i < 20; i++) {
        send(eth0, peer, 1000);
        send(peer, eth0, 1000);
        await host.scheduler.runFor(0.05);
      }
      await host.run(resumed);
      await host.scheduler.runFor(100);
      await host.detachVif(guest);
      await host.until(() => !eth0.registered);
      await host.until(() => kernel.reclaimer.pending === 0);
      // What it holds for xenstore.
      assert.equal(held(host)[domain.domid].grants, 0);
      assert.deepEqual(
        domain.dmesg.filter(line => /TypeError/.test(line)),
        [],
      );
    });
  }
});

test('60 reconnects under load: nothing grows (XSA-374, XSA-457)', async () => {
  const { host, guest, eth0, peer } = await pair(81);
  const back = host.dom0.xenbus.backend.devices.get(`backend/vif/${guest.domain.domid}/0`)!;
  let before: object | null = null;
  for (let round = 0; round < 60; round++) {
    for (let i = 0; i < 8; i++) {
      send(eth0, peer, 60 + ((round * 131) % 1400));
      send(peer, eth0, 60 + ((round * 37) % 1400));
    }
    await host.scheduler.runFor((round % 7) / 20);
    await host.run(
      round % 2 === 0 ? back.switchState(Closing) : guest.kernel.xenbus.devices[0].switchState(Closing),
    );
    await host.until(() => !eth0.carrierOk);
    await host.until(() => eth0.carrierOk && host.states(guest).every(state => state === Connected));
    await host.until(() => guest.kernel.reclaimer.pending === 0);
    await host.scheduler.runFor(50);
    before ??= held(host);
    if (round % 10 === 9) assert.deepEqual(held(host), before, `round ${round}`);
  }
});

test('a connection that ends with its ring full leaves no queue stopped for the next', async () => {
  const { host, guest, eth0, peer } = await pair(82);
  const [queue] = eth0.txQueues;
  // What a driver does when its ring is full, and what the byte limit does.
  queue.stop();
  queue.sent(queue.dql.minLimit + 1);
  assert.ok(queue.stopped);
  await host.run(guest.kernel.xenbus.devices[0].switchState(Closing));
  await host.until(() => !eth0.carrierOk);
  await host.until(() => eth0.carrierOk && host.states(guest).every(state => state === Connected));
  assert.ok(!queue.stopped);
  assert.equal(queue.dql.inflight, 0);
  const { rxPackets } = peer.stats;
  send(eth0, peer, 1000);
  await host.until(() => peer.stats.rxPackets === rxPackets + 1);
});
