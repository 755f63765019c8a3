import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import { formatAddress, type NetDevice, type Packet } from '../../src/net/index.js';
import type { Vif } from '../../src/netback/index.js';
import { registerNetfront } from '../../src/netfront/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import type { DomainLimits } from '../../src/platform/sim/index.js';
import { buildFrame } from '../net/frames.js';
import { Host } from '../support/host.js';
import { packetFrom } from '../support/packets.js';

const QUEUES = 4;

/** A packet in a page of those that are sent from; null without one left. */
function inPool(dev: NetDevice, bytes: Uint8Array): Packet | null {
  const pool = dev.txPool!;
  const index = pool.alloc();
  if (index < 0) return null;
  const packet = dev.net.packets.get();
  const { length } = bytes;
  const data = pool.pages[index] * PAGE_SIZE;
  packet.memory.u8.set(bytes, data);
  return Object.assign(packet, { pool, linearPoolIndex: index, data, linear: length, length });
}

/** A guest that wants four queues and has not enough for them, and one that sends to it. */
class Scene {
  private constructor(
    readonly host: Host,
    readonly guest: Awaited<ReturnType<Host['bootDomain']>>,
  ) {}

  static async make(limits: Partial<DomainLimits>): Promise<Scene> {
    const host = await Host.boot(51, { netback: { maxQueues: QUEUES } });
    const guest = await host.bootDomain({ name: 'a', limits });
    await host.run(registerNetfront(guest.kernel, { maxQueues: QUEUES }));
    return new Scene(host, guest);
  }

  /** Leaves so many ports. */
  usePorts(left: number): void {
    const { events } = this.guest.platform;
    while (events.allocated < events.maxPorts - 1 - left) events.allocUnbound(0);
  }

  private get held() {
    const { grants, events } = this.guest.platform;
    return { grants: grants.allocated, ports: events.allocated };
  }

  /** Connects, has packets pass both ways, and disconnects. @returns what the backend was given, by queue */
  async run(): Promise<string[]> {
    const { host, guest } = this;
    const other = await host.createGuest('b');
    const peer = await host.connectVif(other);
    const before = this.held;
    const eth0 = await host.connectVif(guest);
    const { queues } = host.dom0.net.byName(`vif${guest.domid}.0`)!.priv as Vif;
    const front = host.frontPath(guest);
    const keys: string[] = [];
    for (let i = 0; i < queues.length; i++) {
      const path = queues.length === 1 ? front : `${front}/queue-${i}`;
      const channels = (await host.run(host.xs.directory(path))).filter(key =>
        key.startsWith('event-channel'),
      );
      keys.push(
        channels
          .filter(key => key !== 'event-channel-ctrl')
          .sort()
          .join(' '),
      );
    }
    for (const [from, to] of [
      [eth0, peer],
      [peer, eth0],
    ]) {
      let got = 0;
      to.rxHandler = packet => {
        got++;
        packet.release();
      };
      for (let port = 0; port < 50; port++) {
        const addresses = { source: [...from.address], destination: [...to.address] };
        const frame = buildFrame({ ...addresses, sourcePort: port, payload: new Uint8Array(500) });
        from.xmit(packetFrom(from, frame));
      }
      await host.scheduler.runFor(1000);
      assert.equal(got, 50, `to ${formatAddress(to.address)}`);
    }
    await host.detachVif(guest);
    await host.until(() => guest.kernel.reclaimer.pending === 0);
    assert.deepEqual(this.held, before);
    return keys;
  }
}

const ONE = 'event-channel';
const SPLIT = 'event-channel-rx event-channel-tx';

describe('a frontend that wants four queues has as many as there are means for', () => {
  // With a port more there is a control ring, too.
  for (const [left, channels] of [
    [9, [SPLIT, SPLIT, SPLIT, SPLIT]],
    [8, [SPLIT, SPLIT, SPLIT, SPLIT]],
    [7, [SPLIT, SPLIT, SPLIT, ONE]],
    [6, [SPLIT, SPLIT, SPLIT]],
    [5, [SPLIT, SPLIT, ONE]],
    [2, [SPLIT]],
    [1, [ONE]],
  ] as const) {
    test(`ports left: ${left}`, async () => {
      const scene = await Scene.make({ maxPorts: 32 });
      scene.usePorts(left);
      assert.deepEqual(await scene.run(), channels);
    });
  }

  // A queue needs 514 grants, 258 of them at once; a frame of the table has 512, of which the first keeps 8.
  for (const [maxGrantFrames, queues] of [
    [5, 4],
    [4, 3],
    [3, 2],
    [2, 1],
    [1, 1],
  ] as const) {
    test(`frames of grants: ${maxGrantFrames}`, async () => {
      const scene = await Scene.make({ maxGrantFrames });
      assert.deepEqual(await scene.run(), Array(queues).fill(SPLIT));
      const lines = scene.guest.domain.dmesg.filter(line => line.includes('grants'));
      const left = 512 * maxGrantFrames - 8;
      const said = `eth0: only ${queues} of 4 queues: a queue needs 514 grants, and ${left} are left`;
      assert.equal(lines.length, queues < 4 ? 1 : 0);
      for (const line of lines) assert.ok(line.endsWith(said), line);
    });
  }

  test('grants for less than one, of which each packet that is sent finds one', async () => {
    const { host, guest } = await Scene.make({ maxGrantFrames: 1 });
    const peer = await host.connectVif(await host.createGuest('b'));
    const eth0 = await host.connectVif(guest);
    let got = 0;
    peer.rxHandler = packet => {
      got++;
      packet.release();
    };
    const addresses = { source: [...eth0.address], destination: [...peer.address] };
    // As many at a time as the pool has pages when there are grants enough.
    for (let i = 0; i < 2 * 512; i++) {
      const bytes = buildFrame({ ...addresses, udp: true, payload: new Uint8Array(1000) });
      eth0.xmit(inPool(eth0, bytes) ?? packetFrom(eth0, bytes));
      if (i % 512 === 511) await host.scheduler.runFor(1000);
    }
    assert.equal(eth0.stats.txDropped, 0);
    assert.equal(got, 2 * 512);
    assert.ok(guest.platform.grants.allocated <= 504);
  });

  test('a table without room for one queue’s rings', async () => {
    const { host, guest } = await Scene.make({ maxGrantFrames: 1 });
    const { grants, memory } = guest.platform;
    const page = memory.allocPage();
    while (grants.available > 100) grants.grantAccess(0, page, true);
    await host.addVif(guest);
    await host.hotplug(guest);
    await host.scheduler.runFor(100);
    assert.match(guest.domain.dmesg.join('\n'), /connecting to the backend/);
  });

  test('says it once, and again when there are more or fewer', async () => {
    const { host, guest } = await Scene.make({ maxGrantFrames: 4 });
    const { grants, memory } = guest.platform;
    const eth0 = await host.connectVif(guest);
    const [xbdev] = guest.kernel.xenbus.devices;
    const reconnect = async (): Promise<string[]> => {
      await host.run(xbdev.switchState(XenbusState.Closing));
      await host.until(() => !eth0.carrierOk);
      await host.until(() => eth0.carrierOk);
      return guest.domain.dmesg.filter(line => line.includes('514 grants'));
    };
    assert.equal((await reconnect()).length, 1);
    const page = memory.allocPage();
    const others = Array.from({ length: 900 }, () => grants.grantAccess(0, page, true));
    assert.match((await reconnect())[1], /only 2 of 4 queues/);
    assert.equal((await reconnect()).length, 2);
    for (const gref of others) grants.endAccess(gref);
    assert.match((await reconnect())[2], /only 3 of 4 queues/);
  });

  test('says how many it has', async () => {
    const scene = await Scene.make({ maxPorts: 32 });
    scene.usePorts(4);
    await scene.run();
    assert.match(scene.guest.domain.dmesg.join('\n'), /eth0: only 2 of 4 queues: /);
  });
});
