import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import { formatAddress, NETDEV_TX_OK, type NetDevice, parseAddress } from '../../src/net/index.js';
import { buildFrame } from '../net/frames.js';
import { Host } from '../support/host.js';
import { collect, packetFrom } from '../support/packets.js';

const { Initialising, InitWait, Connected, Closing, Closed } = XenbusState;

function frame(from: NetDevice, to: NetDevice, length = 100): Uint8Array {
  return buildFrame({
    source: [...from.address],
    destination: [...to.address],
    payload: Uint8Array.from({ length }, (_, i) => i & 0xff),
  });
}

/** Sends `count` frames one by one and says whether all arrived. */
async function exchange(host: Host, from: NetDevice, to: NetDevice, count = 5): Promise<void> {
  const got = collect(to);
  for (let i = 0; i < count; i++) {
    from.xmit(packetFrom(from, frame(from, to, 40 + i * 300)));
    await host.until(() => got.length === i + 1);
    assert.deepEqual(got[i], frame(from, to, 40 + i * 300));
  }
}

/** The lines of the trace that tell of a vif, in order. */
function states(host: Host, path: string): string[] {
  return host.trace.filter(line => line.includes(` ${path} `) && line.includes('->'));
}

test('every vif has the address that a bridge takes last for its own', async () => {
  const host = await Host.boot(40);
  for (const name of ['a', 'b']) await host.connectVif(await host.createGuest(name));
  const { net } = host.dom0;
  const address = (name: string) => formatAddress(net.byName(name)!.address);
  assert.deepEqual(['vif1.0', 'vif2.0'].map(address), Array(2).fill('fe:ff:ff:ff:ff:ff'));
  assert.equal(address('xenbr0'), 'fe:ff:ff:ff:ff:ff');
  const uplink = net.allocEtherdev('uplink', { startXmit: () => NETDEV_TX_OK });
  uplink.address.set(parseAddress('fe:ff:ff:ff:ff:fe'));
  net.register(uplink as NetDevice);
  host.bridge.addPort(uplink as NetDevice);
  assert.equal(address('xenbr0'), 'fe:ff:ff:ff:ff:fe');
});

describe('a vif from nothing to traffic and back to nothing', () => {
  for (const seed of [1, 2, 3]) {
    test(`probe, InitWait, rings and event channels, Connected, traffic, Closing, Closed (seed ${seed})`, async () => {
      const host = await Host.boot(seed);
      const guest = await host.createGuest('a');
      const other = await host.createGuest('b');
      const before = host.allHoldings();

      // Probe: netback publishes what it can do and waits; netfront has nothing to show yet.
      await host.addVif(guest);
      await host.until(() => host.states(guest)[1] === InitWait);
      const back = host.backPath(guest);
      for (const [key, value] of Object.entries({
        'feature-sg': '1',
        'feature-gso-tcpv4': '1',
        'feature-gso-tcpv6': '1',
        'feature-ipv6-csum-offload': '1',
        'feature-rx-copy': '1',
        'feature-rx-flip': '0',
        'feature-split-event-channels': '1',
      })) {
        assert.equal(await host.run(host.xs.read(`${back}/${key}`)), value, key);
      }

      // The frontend answers with rings and event channels, and is Connected.
      await host.until(() => host.states(guest)[0] === Connected);
      const front = host.frontPath(guest);
      for (const key of ['tx-ring-ref', 'rx-ring-ref', 'event-channel-tx', 'event-channel-rx']) {
        assert.match(await host.run(host.xs.read(`${front}/${key}`)), /^[1-9]\d*$/, key);
      }
      for (const key of ['request-rx-copy', 'feature-rx-notify', 'feature-sg', 'feature-gso-tcpv4']) {
        assert.equal(await host.run(host.xs.read(`${front}/${key}`)), '1', key);
      }

      // The backend has mapped the rings, but is Connected only when the hotplug script is done.
      await host.until(() => host.dom0.net.byName(`vif${guest.domain.domid}.0`)?.carrierOk === true);
      await host.scheduler.runFor(100);
      const device = host.dom0.xenbus.backend.devices.get(`backend/vif/${guest.domain.domid}/0`)!;
      assert.equal(device.state, InitWait);
      assert.match(device.waitingFor() ?? '', /hotplug script: hotplug-status is ""/);
      await host.hotplug(guest);
      await host.until(() => host.states(guest).every(state => state === Connected));
      assert.equal(device.waitingFor(), null);

      // Traffic, both ways.
      const eth0 = guest.kernel.net.byName('eth0')!;
      const peer = await host.connectVif(other);
      await exchange(host, eth0, peer);
      await exchange(host, peer, eth0);

      // The toolstack takes the vifs away.
      await host.detachVif(guest);
      await host.detachVif(other);
      const path = `backend/vif/${guest.domain.domid}/0`;
      assert.deepEqual(
        states(host, path).filter(line => !line.includes('sees')),
        [
          `d0 ${path} Initialising -> InitWait`,
          `d0 ${path} InitWait -> Connected`,
          `d0 ${path} Connected -> Closing`,
          `d0 ${path} Closing -> Closed`,
        ],
      );
      assert.deepEqual(
        host.trace.filter(
          line => line.startsWith(`d${guest.domain.domid} device/vif/0 `) && !line.includes('sees'),
        ),
        [
          `d${guest.domain.domid} device/vif/0 Initialising -> Connected`,
          `d${guest.domain.domid} device/vif/0 Connected -> Closed`,
        ],
      );
      assert.equal(guest.kernel.net.byName('eth0'), undefined);
      assert.equal(host.dom0.net.byName(`vif${guest.domain.domid}.0`), undefined);
      // netfront let go of its rings before netback did: they come back a moment later.
      await host.until(() => guest.kernel.reclaimer.pending + other.kernel.reclaimer.pending === 0);
      assertSameButPages(host.allHoldings(), before);
    });
  }
});

/** Grants, mappings and ports are as before; pools of packets keep pages for the next use. */
function assertSameButPages(after: object, before: object): void {
  const strip = (holdings: object) =>
    Object.fromEntries(Object.entries(holdings).map(([domid, { pages: _, ...rest }]) => [domid, rest]));
  assert.deepEqual(strip(after), strip(before));
}

describe('either end may come, go and come back at any time', () => {
  test('a frontend that reconnects: Closing, Closed, Initialising, and traffic again', async () => {
    const host = await Host.boot(31);
    const [guest, other] = [await host.createGuest('a'), await host.createGuest('b')];
    let eth0 = await host.connectVif(guest);
    const peer = await host.connectVif(other);
    await exchange(host, eth0, peer);
    const driver = guest.kernel.xenbus.frontend.drivers[0];
    const grants = guest.domain.platform.grants.allocated;
    for (let round = 0; round < 3; round++) {
      await host.run(guest.kernel.xenbus.unregisterDriver(driver));
      await host.until(() => host.states(guest)[1] === Closed);
      await host.run(host.xs.write(`${host.frontPath(guest)}/state`, String(Initialising)));
      await host.run(guest.kernel.xenbus.registerFrontend(driver));
      await host.until(() => host.states(guest).every(state => state === Connected));
      eth0 = guest.kernel.net.byName('eth0')!;
      await exchange(host, eth0, peer);
      assert.equal(guest.domain.platform.grants.allocated <= grants + 20, true);
    }
  });

  test('a close before the connect (the cycle of Windows): 5 is answered with 5, 6 with 6, 1 with 2', async () => {
    const host = await Host.boot(32);
    const guest = await host.createGuest('windows', null);
    await host.addVif(guest);
    const back = `${host.backPath(guest)}/state`;
    const front = `${host.frontPath(guest)}/state`;
    const reaches = async (state: number) => {
      await host.until(() => host.states(guest)[1] === state);
      assert.equal(await host.run(host.xs.read(back)), String(state));
    };
    for (let round = 0; round < 3; round++) {
      await reaches(InitWait);
      await host.run(host.xs.write(front, String(Closing)));
      await reaches(Closing);
      await host.run(host.xs.write(front, String(Closed)));
      await reaches(Closed);
      await host.run(host.xs.write(front, String(Initialising)));
    }
    await reaches(InitWait);
  });

  test('a frontend that goes straight to Closed', async () => {
    const host = await Host.boot(33);
    const guest = await host.createGuest('a', null);
    await host.addVif(guest);
    await host.until(() => host.states(guest)[1] === InitWait);
    await host.run(host.xs.write(`${host.frontPath(guest)}/state`, String(Closed)));
    await host.until(() => host.states(guest)[1] === Closed);
  });

  test('a close while the backend is on its way up is not written over', async () => {
    const host = await Host.boot(41);
    const guest = await host.createGuest('a');
    const vif = { type: 'vif', front: guest, back: host.dom0 };
    // From when netback has its interface to when both ends are connected.
    for (const steps of [0, 25, 50, 75, 100, 125, 150, 200, 250]) {
      await host.addVif(guest);
      await host.hotplug(guest);
      let step = 0;
      await host.until(() => step++ === steps);
      assert.ok(await host.unplug(vif), `after ${steps} steps`);
      await host.until(() => host.states(guest).every(state => state === -1));
    }
  });

  test('a guest that is destroyed in the middle of traffic leaves nothing in dom0', async () => {
    const host = await Host.boot(34);
    const [guest, other] = [await host.createGuest('a'), await host.createGuest('b')];
    const before = host.allHoldings() as Record<string, object>;
    const eth0 = await host.connectVif(guest);
    const peer = await host.connectVif(other);
    collect(peer);
    for (let i = 0; i < 200; i++) eth0.xmit(packetFrom(eth0, frame(eth0, peer, 1400)));
    await host.scheduler.runFor(0.01);
    guest.domain.destroy();
    // xenstored may have removed what belonged to the domain before the toolstack does.
    for (const path of [host.frontPath(guest), host.backPath(guest)]) {
      await host.run(host.xs.rm(path).catch(error => assert.equal(error.code, 'ENOENT')));
    }
    await host.until(() => host.states(guest)[1] === -1);
    await host.detachVif(other);
    const after = host.allHoldings() as Record<string, { grants: number; mapped: number; ports: number }>;
    assert.deepEqual(Object.keys(after), ['0', String(other.domain.domid)]);
    const { grants, mapped } = before['0'] as { grants: number; mapped: number };
    assert.equal(after['0'].grants, grants);
    assert.equal(after['0'].mapped, mapped - 1, "the guest's xenstore ring is unmapped, too");
    assert.equal(host.hypervisor.dyingDomains.length, 0);
  });

  for (const seed of [35, 36, 37, 38])
    test(`a backend that goes away and comes back: the frontend reconnects by itself (seed ${seed})`, async () => {
      const host = await Host.boot(seed);
      const [guest, other] = [await host.createGuest('a'), await host.createGuest('b')];
      const eth0 = await host.connectVif(guest);
      const peer = await host.connectVif(other);
      await exchange(host, eth0, peer);
      const driver = host.dom0.xenbus.backend.drivers[0];
      await host.run(host.xs.write(`${host.backPath(guest)}/state`, String(Closing)));
      await host.run(host.xs.write(`${host.backPath(other)}/state`, String(Closing)));
      await host.run(host.dom0.xenbus.unregisterDriver(driver));
      for (const domain of [guest, other]) {
        await host.run(host.xs.write(`${host.backPath(domain)}/state`, String(Initialising)));
      }
      await host.run(host.dom0.xenbus.registerBackend(driver));
      await host.hotplug(guest);
      await host.hotplug(other);
      await host.until(() =>
        [guest, other].every(domain => host.states(domain).every(state => state === Connected)),
      );
      await exchange(host, guest.kernel.net.byName('eth0')!, other.kernel.net.byName('eth0')!);
    });
});

describe('several queues', () => {
  for (const [front, back, used] of [
    [4, 8, 4],
    [8, 2, 2],
    [1, 8, 1],
  ]) {
    test(`a frontend that wants ${front} and a backend that offers ${back} use ${used}`, async () => {
      const host = await Host.boot(51, { netback: { maxQueues: back } });
      const guest = await host.createGuest('a', { maxQueues: front });
      const other = await host.createGuest('b', { maxQueues: front });
      const eth0 = await host.connectVif(guest);
      const peer = await host.connectVif(other);
      const dir = host.frontPath(guest);
      assert.equal(await host.run(host.xs.read(`${dir}/multi-queue-num-queues`)), String(used));
      assert.equal(await host.run(host.xs.exists(`${dir}/queue-${used - 1}/tx-ring-ref`)), used > 1);
      assert.equal(await host.run(host.xs.exists(`${dir}/tx-ring-ref`)), used === 1);
      assert.equal(eth0.realNumTxQueues, used);
      assert.equal(host.dom0.net.byName(`vif${guest.domain.domid}.0`)?.realNumTxQueues, used);
      await exchangeFlows(host, eth0, peer, used);
      await host.detachVif(guest);
      await host.detachVif(other);
    });
  }

  test('a frontend that asks for more queues than there are gets none', async () => {
    const host = await Host.boot(52, { netback: { maxQueues: 2 } });
    const guest = await host.createGuest('evil', null);
    await host.addVif(guest);
    await host.until(() => host.states(guest)[1] === InitWait);
    await host.publishFrontend(guest, { 'multi-queue-num-queues': '3' });
    await host.until(() => host.states(guest)[1] === Closing);
  });
});

/** Events so far of each tx channel of the first guest's vif. */
function queueEvents(host: Host): Record<string, number> {
  const channels = host.dom0.irqs.counts.filter(({ name }) => /^vif1\.0(-q\d)?-tx$/.test(name));
  return Object.fromEntries(channels.map(({ name, count }) => [name, count]));
}

/** Sends many flows and checks that every queue got some, and that each flow stayed in order on one queue. */
async function exchangeFlows(host: Host, from: NetDevice, to: NetDevice, queues: number): Promise<void> {
  const got = collect(to);
  const flows = 64;
  const before = queueEvents(host);
  for (let i = 0; i < 3; i++) {
    for (let sourcePort = 1; sourcePort <= flows; sourcePort++) {
      const payload = Uint8Array.of(i, sourcePort);
      const bytes = buildFrame({
        source: [...from.address],
        destination: [...to.address],
        payload,
        sourcePort,
      });
      from.xmit(packetFrom(from, bytes));
    }
  }
  await host.until(() => got.length === 3 * flows);
  const ofFlow = (port: number) => got.filter(bytes => bytes[bytes.length - 1] === port);
  for (let port = 1; port <= flows; port++) {
    assert.deepEqual(
      ofFlow(port).map(bytes => bytes[bytes.length - 2]),
      [0, 1, 2],
    );
  }
  const events = queueEvents(host);
  const used = Object.keys(events).filter(name => events[name] > before[name]);
  assert.equal(used.length, queues, `queues in use: ${used}`);
}

describe('what a hostile or broken frontend writes to xenstore', () => {
  const cases: [string, Record<string, string>][] = [
    ['no ring', { 'tx-ring-ref': '' }],
    ['a ring that was never granted', { 'tx-ring-ref': '400000' }],
    ['a ring reference that is no number', { 'rx-ring-ref': '12x' }],
    ['what a terminal would obey', { 'tx-ring-ref': `\u001b[2J\n1${'0'.repeat(1000)}` }],
    ['a reference beyond 32 bits', { 'rx-ring-ref': '99999999999' }],
    ['an event channel that does not exist', { 'event-channel-tx': '4000' }],
    ['a negative event channel', { 'event-channel-rx': '-1' }],
    ['no rx-copy', { 'request-rx-copy': '0' }],
  ];
  test('a state that it never has: the vif is closed, and one line tells so', async () => {
    const host = await Host.boot(42);
    const guest = await host.createGuest('evil', null);
    await host.addVif(guest);
    await host.until(() => host.states(guest)[1] === InitWait);
    const path = `/local/domain/${guest.domain.domid}/device/vif/0/state`;
    for (let i = 0; i < 40; i++) {
      await host.write(path, i % 2 === 0 ? XenbusState.Reconfigured : XenbusState.Reconfiguring);
      await host.settle();
    }
    assert.equal(host.states(guest)[1], Closing);
    const told = host.dom0.domain.dmesg.filter(line => line.includes('never in Reconfigured'));
    assert.equal(told.length, 1);
  });

  for (const [what, keys] of cases) {
    test(`${what}: the vif does not connect, the error is in xenstore, and nothing is left mapped`, async () => {
      const host = await Host.boot(41);
      const guest = await host.createGuest('evil', null);
      const healthy = await host.createGuest('healthy');
      await host.addVif(guest);
      await host.until(() => host.states(guest)[1] === InitWait);
      const before = host.allHoldings() as Record<string, { mapped: number; ports: number }>;
      await host.publishFrontend(guest, keys);
      await host.until(() => host.states(guest)[1] === Closing);
      const error = await host.run(
        host.xs.read(`/local/domain/0/error/backend/vif/${guest.domain.domid}/0/error`),
      );
      assert.match(error, /^\d+ .*vif\d+\.0/);
      for (const line of host.dom0.domain.dmesg) assert.match(line, /^[ -~…]{1,300}$/);
      const after = host.allHoldings() as typeof before;
      assert.equal(after['0'].mapped, before['0'].mapped);
      assert.equal(after['0'].ports, before['0'].ports);
      const eth0 = await host.connectVif(healthy);
      assert.equal(eth0.carrierOk, true);
    });
  }
});
