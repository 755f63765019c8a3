import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { formatAddress } from '../../src/net/index.js';
import type { Vif } from '../../src/netback/index.js';
import { registerNetfront } from '../../src/netfront/index.js';
import type { DomainLimits } from '../../src/platform/sim/index.js';
import { buildFrame } from '../net/frames.js';
import { Host } from '../support/host.js';
import { packetFrom } from '../support/packets.js';

const QUEUES = 4;

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

  // A queue takes 258 grants, a frame of the table has 512.
  for (const [maxGrantFrames, queues] of [
    [3, 4],
    [2, 3],
    [1, 1],
  ] as const) {
    test(`frames of grants: ${maxGrantFrames}`, async () => {
      const scene = await Scene.make({ maxGrantFrames });
      assert.deepEqual(await scene.run(), Array(queues).fill(SPLIT));
    });
  }

  test('says how many it has', async () => {
    const scene = await Scene.make({ maxPorts: 32 });
    scene.usePorts(4);
    await scene.run();
    assert.match(scene.guest.domain.dmesg.join('\n'), /eth0: only 2 of 4 queues: /);
  });
});
