import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RpcRegistry } from '../../src/cli/rpc.js';
import { registerVifMethods } from '../../src/cli/vif-methods.js';
import type { Net, NetDevice } from '../../src/net/index.js';
import { type Vif, vifsOf } from '../../src/netback/index.js';
import type { Netfront } from '../../src/netfront/index.js';
import type { Domain } from '../../src/platform/sim/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Host } from '../support/host.js';
import { Attacker, quiet } from '../support/hostile.js';
import { packetFrom } from '../support/packets.js';

/** Sent in a row, until the byte queue limit holds the rest back. */
const PACKETS = 60;

/** More than a ring has slots. */
const MANY = 300;

/** Two guests, the first of which sends to the second, which counts. */
class Scene {
  got = 0;
  isLost: (from: number, to: number) => boolean = () => false;

  private constructor(
    readonly host: Host,
    readonly guest: Domain,
    readonly eth0: NetDevice,
    readonly peer: NetDevice,
  ) {
    const { events } = host.hypervisor;
    const deliver = events.send.bind(events);
    events.send = (caller: Domain, port: number) => {
      if (!this.isLost(caller.domid, caller.ports.remoteDomid[port])) deliver(caller, port);
    };
    peer.rxHandler = packet => {
      this.got++;
      packet.release();
    };
  }

  static async make(): Promise<Scene> {
    const host = await Host.boot(31);
    const [a, b] = [await host.createGuest('a'), await host.createGuest('b')];
    const eth0 = await host.connectVif(a);
    return new Scene(host, a.domain, eth0, await host.connectVif(b));
  }

  send(packets = PACKETS): void {
    const { eth0, peer } = this;
    const addresses = { source: [...eth0.address], destination: [...peer.address] };
    const bytes = buildFrame({ ...addresses, payload: new Uint8Array(1000) });
    for (let i = 0; i < packets; i++) eth0.xmit(packetFrom(eth0, bytes));
  }

  get waitingFor(): string | null {
    return (this.eth0.priv as Netfront).waitingFor();
  }

  run(seconds: number): Promise<void> {
    return this.host.scheduler.runFor(seconds * 1000);
  }
}

describe('an event that was lost does not stop a device for good', () => {
  for (const [lost, isLost] of [
    ["of the frontend's requests", (from: number) => from === 1],
    ["of the backend's responses", (_: number, to: number) => to === 1],
    ['of either', () => true],
  ] as const) {
    test(`${lost}: the sender's watchdog looks, and reminds the backend`, async () => {
      const scene = await Scene.make();
      const [queue] = scene.eth0.txQueues;
      scene.isLost = isLost;
      scene.send();
      await scene.run(20);
      assert.equal(scene.waitingFor, null);
      await scene.run(9);
      scene.isLost = () => false;
      assert.ok(queue.stopped);
      assert.ok(scene.got < PACKETS);

      await scene.run(11);
      assert.equal(scene.got, PACKETS);
      assert.equal(scene.waitingFor, null);
      assert.equal(queue.timeouts, 1);
      const said = scene.guest.dmesg.join('\n');
      assert.match(said, /NETDEV WATCHDOG: eth0 \(vif\): transmit queue 0 timed out 30000 ms/);

      scene.send();
      await scene.run(100);
      assert.equal(scene.got, 2 * PACKETS);
      assert.equal(queue.timeouts, 1, 'one look was enough');
    });
  }

  test('a backend that answers nothing: vif-list says so, every 30 s it is reminded, and all goes on when it does', async () => {
    const scene = await Scene.make();
    scene.isLost = () => true;
    scene.send();
    await scene.run(100);
    assert.equal(
      scene.waitingFor,
      'connected; the backend has answered no tx requests of queue 0 for more than 30 s',
    );
    assert.equal(scene.eth0.txQueues[0].timeouts, 3);
    scene.isLost = () => false;
    await scene.run(30);
    assert.equal(scene.got, PACKETS);
    assert.equal(scene.waitingFor, null);
  });

  test('of packets for a guest that sends nothing: the backend reminds it when it counts as stalled', async () => {
    const scene = await Scene.make();
    const vif = scene.host.dom0.net.byName('vif2.0') as NetDevice;
    scene.isLost = (_, to) => to === 2;
    for (let i = 0; i < 3; i++) {
      scene.send();
      await scene.run(5);
    }
    scene.isLost = () => false;
    assert.equal(scene.got, 0);
    await scene.run(60);
    assert.equal((vif.priv as Vif).queues[0].stats.rxStalls, 1);
    assert.ok(scene.got > 0);
    assert.ok(vif.carrierOk, 'it takes packets again');
    const { got } = scene;
    scene.send();
    await scene.run(1);
    assert.equal(scene.got, got + PACKETS);
  });
});

describe('pvnet poke makes go on what waits for an event that was lost, as often as it is called', () => {
  function poker(net: Net): (vif: string) => Promise<unknown> {
    const registry = new RpcRegistry();
    registerVifMethods(registry, () => vifsOf(net));
    const context = { emit() {}, signal: new AbortController().signal };
    return vif => registry.call('poke', { vif }, context);
  }

  for (const [waits, vif, packets, isLost] of [
    ['the backend, for packets', 'vif1.0', MANY, (from: number) => from === 1],
    ['the frontend, for responses', 'vif1.0', MANY, (_: number, to: number) => to === 1],
    ['the frontend, for packets', 'vif2.0', PACKETS, (_: number, to: number) => to === 2],
  ] as const) {
    test(waits, async () => {
      const scene = await Scene.make();
      const poke = poker(scene.host.dom0.net);
      for (let round = 1; round <= 3; round++) {
        scene.isLost = isLost;
        scene.send(packets);
        await scene.run(1);
        scene.isLost = () => false;
        await scene.run(1);
        assert.ok(scene.got < round * packets, `round ${round}: ${scene.got} packets have come all the same`);
        await poke(vif);
        await scene.run(0.5);
        assert.equal(scene.got, round * packets);
      }
    });
  }

  test('the backend, for rx requests', async () => {
    const path = new DataPath(32);
    const guest = path.guest();
    const attacker = new Attacker(path);
    const front = attacker.connect();
    const poke = poker(path.dom0.net);
    await quiet(path);
    for (let round = 1; round <= 3; round++) {
      const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(100) });
      guest.dev.xmit(packetFrom(guest.dev, bytes));
      await quiet(path);
      front.postRx(1);
      front.push();
      await quiet(path);
      assert.deepEqual(front.rxPackets(), []);
      await poke(attacker.vif.name);
      await quiet(path);
      assert.equal(front.rxPackets().length, 1);
    }
  });

  test('a frontend on either of its ports', async () => {
    const path = new DataPath(33);
    const attacker = new Attacker(path);
    const { txPort, rxPort } = attacker.connect().publication;
    const { domain } = attacker;
    const poke = poker(path.dom0.net);
    await quiet(path);
    for (let round = 0; round < 3; round++) {
      for (const port of [txPort, rxPort]) domain.clearPending(port);
      await poke(attacker.vif.name);
      assert.deepEqual(
        [txPort, rxPort].map(port => domain.isPending(port)),
        [true, true],
      );
    }
  });

  test('is refused for a vif that there is none of', async () => {
    await assert.rejects(poker(new DataPath().dom0.net)('vif7.0'), { code: 'ENODEV' });
  });
});
