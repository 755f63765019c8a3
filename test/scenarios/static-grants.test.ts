import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import { type NetDevice, XDP_DROP } from '../../src/net/index.js';
import type { NetbackOptions, StaticGrants, Vif } from '../../src/netback/index.js';
import type { Netfront, NetfrontOptions } from '../../src/netfront/index.js';
import type { CopyBatch } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { type GuestDomain, Host, type VifKeys } from '../support/host.js';
import { bytesOf, packetFrom } from '../support/packets.js';

const { Connected, Closing } = XenbusState;
/** What a queue receives into, and what it sends from. */
const RX = 256;
const TX = 512;
const SIZES = [10, 1000, 1400];

/** A guest with static grants, and domain 0 that talks to it over its vif. */
class Scene {
  readonly got: Uint8Array[] = [];

  private constructor(
    readonly host: Host,
    readonly guest: GuestDomain,
    readonly eth0: NetDevice,
  ) {
    eth0.rxHandler = packet => {
      this.got.push(bytesOf(packet));
      packet.release();
    };
  }

  static async make(
    options: NetfrontOptions = {},
    more: { netback?: NetbackOptions; keys?: VifKeys } = {},
  ): Promise<Scene> {
    const host = await Host.boot(90, { netback: more.netback });
    const guest = await host.createGuest('a', { staticGrants: true, ...options });
    const eth0 = await host.connectVif(guest, 0, more.keys);
    await host.scheduler.runFor(10);
    return new Scene(host, guest, eth0);
  }

  get vif(): Vif {
    return this.host.dom0.net.byName(`vif${this.guest.domid}.0`)!.priv as Vif;
  }

  get front(): Netfront {
    return this.eth0.priv as Netfront;
  }

  get sizes(): number[] {
    return this.vif.staticGrants.map(({ size }) => size);
  }

  /** Sends from domain 0 to the guest, whole rings of packets. @returns grant copies that it took */
  async receive(): Promise<number> {
    const { host, vif, got, eth0 } = this;
    const { grants } = host.dom0.platform;
    const { copy } = grants;
    let copies = 0;
    grants.copy = (batch: CopyBatch) => {
      copies += batch.count;
      copy.call(grants, batch);
    };
    got.length = 0;
    const frames: Uint8Array[] = [];
    for (let i = 0; i < 600; i++) {
      const payload = new Uint8Array(SIZES[i % SIZES.length]).fill(i);
      const addresses = { source: [0, 22, 62, 9, 9, 9], destination: [...eth0.address] };
      const frame = buildFrame({ ...addresses, sourcePort: i, payload, udp: true });
      frames.push(frame);
      vif.dev.xmit(packetFrom(vif.dev, frame));
      if (i % 20 === 19) await host.scheduler.runFor(1);
    }
    await host.until(() => got.length === frames.length);
    const order = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b);
    assert.deepEqual(got.sort(order), frames.sort(order));
    grants.copy = copy;
    return copies;
  }

  /** All that is posted is mapped. */
  checkPosted(): void {
    for (const [i, { mappings }] of (this.vif.staticGrants as unknown as Innards[]).entries()) {
      const { rx } = this.front.queues[i] as unknown as { rx: { ring: Ring } };
      for (let at = rx.ring.rspCons; at !== rx.ring.reqProdPvt; at++) {
        const gref = rx.ring.memory.u32[(rx.ring.slot(at) >>> 2) + 1];
        assert.equal(mappings.get(gref)?.readonly, false);
      }
    }
  }

  async end(): Promise<void> {
    const { host, guest } = this;
    await host.detachVif(guest);
    await host.until(() => guest.kernel.reclaimer.pending === 0);
    assert.equal(guest.kernel.net.packets.used, 0);
    // What it holds for xenstore is no grant that it took.
    assert.equal(guest.platform.grants.allocated, 0);
  }
}

interface Ring {
  readonly rspCons: number;
  readonly reqProdPvt: number;
  readonly memory: { readonly u32: Uint32Array };
  slot(index: number): number;
}

interface Innards {
  readonly mappings: ReadonlyMap<number, { readonly readonly: boolean }>;
}

describe('a guest with static grants receives into pages that its backend keeps mapped', () => {
  const variants: [string, NetfrontOptions, number, VifKeys?][] = [
    ['with one queue', {}, RX + TX],
    ['with four queues', { maxQueues: 4 }, RX + TX],
    ['with one event channel a queue', { maxQueues: 2, without: ['split-event-channels'] }, RX + TX],
    ['with a backend that it does not trust: only those', { trusted: false }, RX],
    ['with trusted=0 in its directory: only those', {}, RX, { front: { trusted: 0 } }],
  ];
  for (const [what, options, size, keys] of variants) {
    test(`${what}: no grant copy is done`, async () => {
      const scene = await Scene.make(options, { netback: { maxQueues: 4 }, keys });
      assert.deepEqual(scene.sizes, Array(options.maxQueues ?? 1).fill(size));
      await scene.receive();
      // Those that were posted before have been used up.
      assert.equal(await scene.receive(), 0);
      scene.checkPosted();
      await scene.end();
    });
  }

  test('after either end has connected anew, and after a resume', async () => {
    const scene = await Scene.make();
    const { host, guest, eth0 } = scene;
    const [front] = guest.kernel.xenbus.devices;
    const back = host.dom0.xenbus.backend.devices.get(`backend/vif/${guest.domid}/0`)!;
    const suspend = async () => {
      await guest.kernel.xenbus.suspend();
      guest.domain.shutdown('suspend');
      guest.domain.resume();
      await guest.kernel.xenbus.resume();
    };
    const { mapped } = host.dom0.platform.grants;
    let before = 0;
    for (const again of [() => back.switchState(Closing), () => front.switchState(Closing), suspend]) {
      for (let round = 0; round < 3; round++) {
        await scene.receive();
        await host.run<unknown>(again());
        await host.until(() => eth0.carrierOk && host.states(guest).every(state => state === Connected));
        await host.until(() => guest.kernel.reclaimer.pending === 0);
        await host.scheduler.runFor(10);
        assert.deepEqual(scene.sizes, [RX + TX]);
        assert.equal(host.dom0.platform.grants.mapped, mapped);
        before ||= guest.platform.grants.allocated;
        assert.equal(guest.platform.grants.allocated, before);
        await scene.receive();
        scene.checkPosted();
      }
    }
    const lines = guest.domain.dmesg.filter(line => line.includes('still uses grant'));
    assert.ok(lines.length <= 9, `${lines.length} lines`);
    assert.ok(!guest.domain.dmesg.some(line => line.includes('static grants')));
    await scene.end();
  });

  test('with an XDP program, and headroom for it', async () => {
    const scene = await Scene.make();
    const { host, eth0, vif, got } = scene;
    await host.run(scene.front.setXdpHeadroom(256));
    await scene.receive();
    assert.equal(vif.xdpHeadroom, 256);
    eth0.setXdp(buffs => {
      for (let i = 0; i < buffs.count; i++) {
        // Room that the backend has left is the guest's own to write to.
        if (buffs.length(i) % 2 === 0) buffs.adjustHead(i, -200);
        else buffs.verdict[i] = XDP_DROP;
      }
    });
    got.length = 0;
    for (const length of [100, 101, 1400]) {
      const frame = buildFrame({
        destination: [...eth0.address],
        payload: new Uint8Array(length),
        udp: true,
      });
      vif.dev.xmit(packetFrom(vif.dev, frame));
    }
    await host.until(() => got.length === 2);
    assert.deepEqual(
      got.map(({ length }) => length),
      [100 + 42 + 200, 1400 + 42 + 200],
    );
    await scene.end();
  });
});

describe('a guest with static grants receives as others do', () => {
  /** A backend that has less room, or says so and then refuses. */
  const backend = (limit: number, refuses = false): NetbackOptions => ({
    prepare(vif) {
      const grants = () =>
        vif.queues.map(({ staticGrants }) => {
          Object.assign(staticGrants, { limit });
          if (refuses) Object.assign(staticGrants, { add: () => false });
          return staticGrants;
        });
      Object.defineProperty(vif, 'staticGrants', { get: (): readonly StaticGrants[] => grants() });
    },
  });

  for (const [limit, size] of [
    [0, 0],
    [100, 100],
    [RX + TX - 1, TX],
  ]) {
    test(`from a backend that maps no more than ${limit} pages`, async () => {
      const scene = await Scene.make({}, { netback: backend(limit) });
      assert.deepEqual(scene.sizes, [size]);
      await scene.receive();
      assert.ok((await scene.receive()) >= 600);
      // It did not ask for more than there is room for.
      assert.ok(!scene.guest.domain.dmesg.some(line => line.includes('static grants')));
      await scene.end();
    });
  }

  test('from a backend that refuses, and says so', async () => {
    const scene = await Scene.make({}, { netback: backend(RX + TX, true) });
    assert.deepEqual(scene.sizes, [0]);
    await scene.receive();
    assert.ok((await scene.receive()) >= 600);
    const lines = scene.guest.domain.dmesg.filter(line => line.includes('static grants'));
    assert.equal(lines.length, 1);
    assert.match(
      lines[0],
      /eth0: static grants: EINVAL: the backend answered ADD_GREF_MAPPING\(.*\) with status 2$/,
    );
    await scene.end();
  });

  test('from a backend without a control ring', async () => {
    const scene = await Scene.make({}, { netback: { without: ['ctrl-ring'] } });
    assert.deepEqual(scene.sizes, [0]);
    await scene.receive();
    await scene.end();
  });
});
