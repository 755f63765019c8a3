import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import { NETIF_F_IP_CSUM, type NetDevice } from '../../src/net/index.js';
import { netbackOf, type Vif } from '../../src/netback/index.js';
import type { Netfront } from '../../src/netfront/index.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../../src/platform/index.js';
import { XenbusDevice } from '../../src/xenbus/index.js';
import { buildFrame } from '../net/frames.js';
import { type GuestDomain, Host, type VifKeys } from '../support/host.js';
import { bytesOf, collect, packetFrom } from '../support/packets.js';

const { Connected } = XenbusState;

interface Scene {
  host: Host;
  guest: GuestDomain;
  eth0: NetDevice;
  peer: NetDevice;
  vif: Vif;
}

/** Two guests on a bridge; what is odd is so about the first. */
async function scene(seed: number, keys: VifKeys = {}): Promise<Scene> {
  const host = await Host.boot(seed);
  const guest = await host.createGuest('a');
  const other = await host.createGuest('b');
  const eth0 = await host.connectVif(guest, 0, keys);
  const peer = await host.connectVif(other);
  const vif = host.dom0.net.byName(`vif${guest.domain.domid}.0`)!.priv as Vif;
  for (const device of host.dom0.net.devices) if (device.mtu === 1500) device.setMtu(9600);
  return { host, guest, eth0, peer, vif };
}

function frame(from: NetDevice, to: NetDevice, length = 100): Uint8Array {
  const payload = Uint8Array.from({ length }, (_, i) => (i * 7 + 1) & 0x7f);
  return buildFrame({ source: [...from.address], destination: [...to.address], payload });
}

async function arrives({ host }: Scene, from: NetDevice, to: NetDevice, length = 100): Promise<void> {
  const got = collect(to);
  from.xmit(packetFrom(from, frame(from, to, length)));
  await host.until(() => got.length === 1);
  assert.deepEqual(got[0], frame(from, to, length));
}

const front = (s: Scene) =>
  s.guest.kernel.xenbus.frontend.devices.get('device/vif/0')!.driverData as Netfront;
const back = (s: Scene) =>
  netbackOf(s.host.dom0.xenbus.backend.devices.get(`backend/vif/${s.guest.domain.domid}/0`)!)!;

/** The backend closes, and both ends connect anew. @param closed called in between */
async function reconnect(s: Scene, closed: () => Promise<unknown> = async () => {}): Promise<void> {
  const { host, guest } = s;
  const { xbdev } = back(s);
  await host.run(xbdev.switchState(XenbusState.Closing));
  await host.until(() => xbdev.state === XenbusState.Closed);
  await closed();
  await host.until(() => host.states(guest).every(state => state === Connected));
}

describe("a frontend follows the nodes of its own and its backend's directory", () => {
  test('mtu: at the start, when it changes, within what the backend takes', async () => {
    const s = await scene(1, { front: { mtu: 9000 } });
    const { host, guest, eth0 } = s;
    const node = `${host.frontPath(guest)}/mtu`;
    assert.equal(eth0.mtu, 9000);
    await host.run(host.xs.write(node, '1400'));
    await host.until(() => eth0.mtu === 1400);
    for (const nonsense of ['', 'x', '67', '-1', '4294967296']) {
      await host.run(host.xs.write(node, nonsense));
      await host.scheduler.runReady();
      assert.equal(eth0.mtu, 1400, nonsense);
    }
    await host.run(host.xs.write(node, '70000'));
    await host.until(() => eth0.mtu === 65535);

    // A backend that lost feature-sg takes less; one that has it again as much as was wanted.
    for (const [sg, mtu] of [
      ['0', 1500],
      ['1', 65535],
    ] as const) {
      await reconnect(s, () => host.run(host.xs.write(`${host.backPath(guest)}/feature-sg`, sg)));
      assert.equal(eth0.mtu, mtu);
    }
  });

  test('mtu: what the guest has set stays, when its backend took less than the node says, too', async () => {
    const s = await scene(27, { front: { mtu: 9000 } });
    const { host, guest, eth0 } = s;
    const setSg = (sg: string) => host.run(host.xs.write(`${host.backPath(guest)}/feature-sg`, sg));
    await reconnect(s, () => setSg('0'));
    assert.equal(eth0.mtu, 1500);
    eth0.setMtu(1400);
    for (const sg of ['0', '1']) {
      await reconnect(s, () => setSg(sg));
      assert.equal(eth0.mtu, 1400);
    }
  });

  test("carrier: the operator's netback takes the link down and lets it be up, at both ends", async () => {
    const s = await scene(2);
    const { host, guest, eth0, peer, vif } = s;
    await host.run(back(s).setCarrier(false));
    await host.until(() => !eth0.carrierOk);
    assert.equal(vif.dev.carrierOk, false);
    assert.match(front(s).xbdev.waitingFor() ?? '', /without carrier: .*\/carrier is 0/);
    assert.match(back(s).xbdev.waitingFor() ?? '', /without carrier/);
    // A reconnect does not bring it back.
    await host.run(back(s).xbdev.switchState(XenbusState.Closing));
    await host.until(() => host.states(guest).every(state => state === Connected));
    assert.equal(eth0.carrierOk, false);
    await host.run(back(s).setCarrier(true));
    await host.until(() => eth0.carrierOk && vif.dev.carrierOk);
    await arrives(s, eth0, peer);
    await arrives(s, peer, eth0);
  });

  test("carrier: whoever writes the node of the backend's directory is heard at both ends", async () => {
    const s = await scene(21);
    const { host, guest, eth0, peer, vif } = s;
    const node = `${host.backPath(guest)}/carrier`;
    const both = (up: boolean) => host.until(() => eth0.carrierOk === up && vif.dev.carrierOk === up);
    await host.run(host.xs.write(node, '0'));
    await both(false);
    assert.match(back(s).xbdev.waitingFor() ?? '', /without carrier/);
    await host.run(host.xs.write(node, '1'));
    await both(true);
    assert.equal(back(s).xbdev.waitingFor(), null);
    await host.run(back(s).setCarrier(false));
    await both(false);
    await host.run(host.xs.rm(node));
    await both(true);
    await arrives(s, eth0, peer);
  });

  test('carrier: what a backend writes below it queues up at no frontend', async () => {
    const s = await scene(26);
    const node = `${s.host.backPath(s.guest)}/carrier`;
    const pending = await s.host.eventsAfterFlood(s.guest, node);
    assert.ok(pending <= 2, `${pending} events waited`);
    await s.host.run(s.host.xs.write(node, '0'));
    await s.host.until(() => !s.eth0.carrierOk);
  });

  for (const queues of [1, 4]) {
    test(`rate: what a flow gets of ${queues} queue(s) is what the node says, also when it changes`, async () => {
      const host = await Host.boot(22);
      const guest = await host.createGuest('a', { maxQueues: queues });
      const other = await host.createGuest('b');
      const eth0 = await host.connectVif(guest, 0, { back: { rate: '20000,10000' } });
      const peer = await host.connectVif(other);
      const node = `${host.backPath(guest)}/rate`;
      const bytes = frame(eth0, peer, 1000);
      let got = 0;
      peer.rxHandler = packet => {
        got += packet.length;
        packet.release();
      };
      /** Bytes that arrive in a second of all that can be sent, in so many intervals. */
      const inOneSecond = async () => {
        got = 0;
        for (let i = 0; i < 100; i++) {
          for (let n = 0; n < 60; n++) eth0.xmit(packetFrom(eth0, bytes));
          await host.scheduler.runFor(10);
        }
        return got;
      };
      const close = (value: number, wanted: number) =>
        assert.ok(Math.abs(value - wanted) < 0.1 * wanted, `${value} bytes, not ${wanted}`);
      await inOneSecond();
      close(await inOneSecond(), 2_000_000);
      await host.run(host.xs.write(node, '10000,10000'));
      await inOneSecond();
      close(await inOneSecond(), 1_000_000);
      for (const none of ['0,10000', 'fast']) {
        await host.run(host.xs.write(node, none));
        await inOneSecond();
        close(await inOneSecond(), 6000 * bytes.length);
      }
    });
  }

  test('rate: flows of all queues share it, and none starves', async () => {
    const host = await Host.boot(23);
    const guest = await host.createGuest('a', { maxQueues: 4 });
    const other = await host.createGuest('b');
    const eth0 = await host.connectVif(guest, 0, { back: { rate: '20000,10000' } });
    const peer = await host.connectVif(other);
    const got = Array<number>(16).fill(0);
    peer.rxHandler = packet => {
      got[packet.memory.u8[packet.data + packet.length - 1]] += packet.length;
      packet.release();
    };
    const flows = got.map((_, flow) => {
      const addresses = { source: [...eth0.address], destination: [...peer.address] };
      return buildFrame({ ...addresses, payload: new Uint8Array(1000).fill(flow), sourcePort: 1000 + flow });
    });
    for (let i = 0; i < 400; i++) {
      for (const bytes of flows) for (let n = 0; n < 5; n++) eth0.xmit(packetFrom(eth0, bytes));
      await host.scheduler.runFor(10);
    }
    const vif = host.dom0.net.byName('vif1.0')!.priv as Vif;
    assert.equal(vif.queues.length, 4);
    const all = got.reduce((a, b) => a + b);
    assert.ok(Math.abs(all - 8_000_000) < 800_000, `${all} bytes in 4 s`);
    for (const bytes of got) assert.ok(bytes > all / 64, `${got}`);
  });

  test('feature-no-csum-offload: followed, also while connected', async () => {
    const s = await scene(24);
    const { host, guest, vif } = s;
    const node = `${host.frontPath(guest)}/feature-no-csum-offload`;
    const offers = () => (vif.dev.features & NETIF_F_IP_CSUM) !== 0;
    assert.ok(offers());
    await host.run(host.xs.write(node, '1'));
    await host.until(() => !offers());
    await host.run(host.xs.write(node, '0'));
    await host.until(offers);
  });

  test('a frontend without feature-sg cuts the MTU of its vif; one that has it again gets what was wanted', async () => {
    const s = await scene(25);
    const { vif } = s;
    const { publish } = XenbusDevice.prototype;
    const reconnectWith = async (sg: number) => {
      XenbusDevice.prototype.publish = function (nodes) {
        return publish.call(this, 'request-rx-copy' in nodes ? { ...nodes, 'feature-sg': sg } : nodes);
      };
      await reconnect(s);
    };
    try {
      assert.equal(vif.dev.mtu, 9600);
      await reconnectWith(0);
      assert.equal(vif.dev.mtu, 1500);
      await reconnectWith(1);
      assert.equal(vif.dev.mtu, 9600);
      await reconnectWith(0);
      vif.dev.setMtu(1400);
      await reconnectWith(1);
      assert.equal(vif.dev.mtu, 1400, 'the operator has spoken since');
    } finally {
      XenbusDevice.prototype.publish = publish;
    }
  });

  test('mac: what the guest sets instead stays over reconnects, until the toolstack says another', async () => {
    const s = await scene(26);
    const { host, guest, eth0, peer } = s;
    const own = Uint8Array.of(2, 0, 0, 0, 0, 7);
    assert.throws(() => eth0.setAddress(own), { code: 'EBUSY' });
    eth0.close();
    assert.throws(() => eth0.setAddress(Uint8Array.of(3, 0, 0, 0, 0, 7)), { code: 'EADDRNOTAVAIL' });
    eth0.setAddress(own);
    eth0.open();
    await arrives(s, eth0, peer);
    await arrives(s, peer, eth0);
    await reconnect(s);
    assert.deepEqual(eth0.address, own);
    await host.run(host.xs.write(`${host.frontPath(guest)}/mac`, '00:16:3e:00:00:99'));
    await reconnect(s);
    assert.deepEqual([...eth0.address], [0, 0x16, 0x3e, 0, 0, 0x99]);
  });

  test('disconnect and speed', async () => {
    const s = await scene(3, { front: { speed: '25G' } });
    const { host, guest, eth0, peer } = s;
    const dir = host.frontPath(guest);
    assert.equal(eth0.speed, 25_000);
    for (const [text, speed] of [
      ['1000', 1000],
      ['100M', 100],
      ['fast', -1],
      ['-5', -1],
      ['2500000k', 2500],
    ] as const) {
      await host.run(host.xs.write(`${dir}/speed`, text));
      await host.scheduler.runReady();
      assert.equal(eth0.speed, speed, text);
    }
    await host.run(host.xs.write(`${dir}/disconnect`, '1'));
    await host.until(() => !eth0.carrierOk);
    await host.run(host.xs.rm(`${dir}/disconnect`));
    await host.until(() => eth0.carrierOk);
    await arrives(s, eth0, peer);
  });

  test('trusted=0: the backend sees packets, and nothing else of the pages that it is granted', async () => {
    const s = await scene(4, { front: { trusted: 0 } });
    const { guest, eth0, peer } = s;
    assert.equal(eth0.txPool, null);
    // Memory of the guest that must not get out.
    const pages = Array.from({ length: 64 }, () => guest.kernel.platform.memory.allocPage());
    const { u8 } = guest.kernel.platform.memory.memory;
    for (const page of pages) u8.fill(0xee, page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT);
    for (const page of pages) guest.kernel.platform.memory.freePage(page);
    for (const length of [1400, 60, 9000, 20]) await arrives(s, eth0, peer, length);
    for (const length of [60, 9000]) await arrives(s, peer, eth0, length);
    const grants = guest.domain.inspect().grants.filter(({ gref, readonly }) => gref > 8 && readonly);
    assert.ok(grants.length > 0);
    for (const { gfn } of grants) {
      const at = guest.domain.ramFrame(gfn) << PAGE_SHIFT;
      assert.ok(!u8.subarray(at, at + PAGE_SIZE).includes(0xee));
    }
  });
});

test('a device that was taken down stays so over reconnects, and gets and sends nothing meanwhile', async () => {
  const s = await scene(28);
  const { eth0, peer, vif } = s;
  const got: number[] = [];
  for (const device of [eth0, peer]) {
    device.rxHandler = packet => {
      got.push(packet.length);
      packet.release();
    };
  }
  const send = async (from: NetDevice, to: NetDevice) => {
    got.length = 0;
    from.xmit(packetFrom(from, frame(from, to)));
    await s.host.scheduler.runFor(10);
    return got.length;
  };
  for (const [device, end] of [
    [eth0, front],
    [vif.dev as NetDevice, back],
  ] as const) {
    for (let round = 0; round < 2; round++) {
      device.close();
      assert.equal(end(s).xbdev.waitingFor(), `connected, but ${device.name} is down`);
      assert.deepEqual([await send(eth0, peer), await send(peer, eth0)], [0, 0]);
      await reconnect(s);
      assert.equal(device.running, false);
      device.open();
      await s.host.scheduler.runFor(10);
      assert.equal(end(s).xbdev.waitingFor(), null);
      assert.deepEqual([await send(eth0, peer), await send(peer, eth0)], [1, 1]);
    }
  }
});

test('multicast control: the backend passes on the groups in the list, until that is not all that is wanted', async () => {
  const host = await Host.boot(46);
  const guest = await host.createGuest('a', { multicastControl: true });
  const other = await host.createGuest('b');
  const eth0 = await host.connectVif(guest);
  const peer = await host.connectVif(other);
  const vif = host.dom0.net.byName(`vif${guest.domain.domid}.0`)!.priv as Vif;
  const group = (i: number) => Uint8Array.of(1, 0, 0x5e, 0, 0, i);
  let got: number[] = [];
  eth0.rxHandler = packet => {
    got.push(bytesOf(packet)[5]);
    packet.release();
  };
  const arrived = async (...groups: number[]): Promise<number[]> => {
    got = [];
    for (const i of groups) {
      const bytes = buildFrame({
        source: [...peer.address],
        destination: [...group(i)],
        payload: new Uint8Array(50),
      });
      peer.xmit(packetFrom(peer, bytes));
    }
    await host.scheduler.runFor(100);
    return got.sort();
  };
  assert.deepEqual(await arrived(1, 2), []);
  eth0.addMulticast(group(1));
  await host.scheduler.runFor(10);
  assert.deepEqual(await arrived(1, 2), [1]);
  eth0.addMulticast(group(2));
  eth0.deleteMulticast(group(1));
  await host.scheduler.runFor(10);
  assert.deepEqual(await arrived(1, 2), [2]);
  // Another connection knows them, too.
  const [queue] = vif.queues;
  await host.run(host.xs.write(`${host.backPath(guest)}/state`, String(XenbusState.Closing)));
  await host.until(() => vif.queues.length > 0 && vif.queues[0] !== queue && eth0.carrierOk);
  await host.scheduler.runFor(10);
  assert.equal(vif.multicast.size, 1);
  assert.deepEqual(await arrived(1, 2), [2]);
  // More than a filter holds: all groups come.
  for (let i = 3; i < 70; i++) eth0.addMulticast(group(i));
  await host.scheduler.runFor(50);
  assert.deepEqual(await arrived(1, 2, 69, 99), [1, 2, 69, 99]);
  for (let i = 3; i < 70; i++) eth0.deleteMulticast(group(i));
  await host.scheduler.runFor(50);
  assert.deepEqual(await arrived(1, 2, 69), [2]);
  eth0.setAllmulti(1);
  await host.scheduler.runFor(50);
  assert.deepEqual(await arrived(1, 2, 69), [1, 2, 69]);
  assert.equal(guest.kernel.net.packets.used, 0, 'every request is answered');
});

describe('XDP headroom', () => {
  test('is asked for with Reconfiguring, given with Reconfigured, and survives a reconnect', async () => {
    const s = await scene(11);
    const { host, guest, eth0, peer, vif } = s;
    await host.run(front(s).setXdpHeadroom(256));
    assert.deepEqual(
      host.trace.filter(line => /Reconfigur/.test(line) && !/sees/.test(line)),
      [
        `d${guest.domain.domid} device/vif/0 Connected -> Reconfiguring`,
        `d0 backend/vif/${guest.domain.domid}/0 Connected -> Reconfigured`,
        `d${guest.domain.domid} device/vif/0 Reconfiguring -> Connected`,
      ],
    );
    await host.until(() => host.states(guest).every(state => state === Connected));
    assert.equal(vif.xdpHeadroom, 256);
    for (const length of [20, 3825, 3826, 4100, 9000]) await arrives(s, peer, eth0, length);
    await host.run(back(s).xbdev.switchState(XenbusState.Closing));
    await host.until(() => host.states(guest).every(state => state === Connected));
    assert.equal(vif.xdpHeadroom, 256);
    await arrives(s, peer, eth0, 4100);
    await host.run(front(s).setXdpHeadroom(0));
    await arrives(s, peer, eth0, 4100);
    assert.equal(vif.xdpHeadroom, 0);
  });

  test('can be asked for at any moment: before the backend is connected, and right after it was given', async () => {
    const s = await scene(14);
    const { host, guest, eth0, vif } = s;
    /** Asks for another while domain 0 has much else to do, and has not seen yet that we are Connected. */
    const askWhenBusy = async (state: XenbusState, bytes: number) => {
      await host.until(() => host.states(guest)[1] === state);
      let goOn = () => {};
      const busy = host.dom0.xenbus.runOnXenwatch(() => new Promise<void>(resolve => (goOn = resolve)));
      await host.until(() => host.states(guest)[0] === Connected && eth0.carrierOk);
      const asked = front(s).setXdpHeadroom(bytes);
      await assert.rejects(front(s).setXdpHeadroom(8), { code: 'EBUSY' });
      await host.scheduler.runFor(20);
      goOn();
      await host.run(busy);
      await host.run(asked);
      assert.equal(vif.xdpHeadroom, bytes);
    };
    await host.run(back(s).xbdev.switchState(XenbusState.Closing));
    await askWhenBusy(XenbusState.InitWait, 256);
    await askWhenBusy(XenbusState.Reconfigured, 512);
    await host.until(() => host.states(guest).every(state => state === Connected));
    assert.equal(vif.xdpHeadroom, 512);
  });

  test('is room for an XDP program, which outlives a connection', async () => {
    const s = await scene(13);
    const { host, guest, eth0, peer } = s;
    await host.run(front(s).setXdpHeadroom(256));
    const got = collect(eth0);
    // Puts a VLAN tag into each frame.
    eth0.setXdp(buffs => {
      const { u8 } = buffs.memory;
      for (let i = 0; i < buffs.count; i++) {
        assert.ok(!buffs.adjustHead(i, -257) && buffs.adjustHead(i, -4));
        const at = buffs.data[i];
        u8.copyWithin(at, at + 4, at + 16);
        u8.set([0x81, 0x00, 0x00, 0x2a], at + 12);
      }
    });
    const expected = [100, 3000, 4100, 9000].map(length => frame(peer, eth0, length));
    for (let connection = 0; connection < 2; connection++) {
      for (const bytes of expected) peer.xmit(packetFrom(peer, bytes));
      await host.scheduler.runFor(100);
      assert.deepEqual(
        got.splice(0).map(bytes => [...bytes.subarray(0, 12), ...bytes.subarray(16)]),
        expected.map(bytes => [...bytes]),
      );
      await host.run(back(s).xbdev.switchState(XenbusState.Closing));
      await host.until(() => host.states(guest).every(state => state === Connected));
    }
  });

  test('beyond what is allowed, and beyond what a page can spare', async () => {
    const s = await scene(12);
    const { host, guest, eth0, peer, vif } = s;
    await assert.rejects(host.run(front(s).setXdpHeadroom(0x8000)), { code: 'EINVAL' });
    await host.run(front(s).setXdpHeadroom(0x7fff));
    assert.equal(vif.xdpHeadroom, 2048);
    assert.equal(vif.dev.gsoMaxSize, 18 * 2048);
    await arrives(s, peer, eth0, 9000);
    await host.run(host.xs.write(`${host.frontPath(guest)}/xdp-headroom`, '99999'));
    await host.run(back(s).reconfigure());
    assert.equal(vif.xdpHeadroom, 2048);
  });
});

describe('a guest that posts no rx requests', () => {
  /** The guest's kernel does not run any more. */
  function freeze({ guest }: Scene): void {
    for (const vcpu of guest.domain.vcpus) vcpu.upcall = null;
  }

  /** Fills the guest's ring, and `more` packets wait. */
  async function fill(s: Scene, more: number): Promise<void> {
    const { host, eth0, peer, vif } = s;
    const queue = vif.queues[0];
    for (let i = 0; vif.dev.stats.txPackets < 32 || i < 32; i++) {
      peer.xmit(packetFrom(peer, frame(peer, eth0)));
      await host.scheduler.runFor(1);
      if (i > 600) throw new Error('the ring does not fill up');
    }
    for (let i = 0; i < more; i++) peer.xmit(packetFrom(peer, frame(peer, eth0)));
    await host.scheduler.runFor(5);
    assert.equal(queue.stats.rxExpired, 0);
  }

  test('packets wait for 10 s, the carrier goes after 60 s, and comes back with requests; no timer is left', async () => {
    const s = await scene(21);
    const { host, guest, eth0, peer, vif } = s;
    const { upcall } = guest.domain.vcpus[0];
    const queue = vif.queues[0];
    freeze(s);
    await fill(s, 5);
    await host.scheduler.runFor(9_000);
    assert.equal(queue.stats.rxExpired, 0);
    await host.scheduler.runFor(1_500);
    assert.ok(queue.stats.rxExpired >= 5);
    assert.equal(vif.dev.carrierOk, true);
    await host.scheduler.runFor(48_000);
    assert.equal(vif.dev.carrierOk, true);
    await host.scheduler.runFor(2_000);
    assert.equal(vif.dev.carrierOk, false);
    assert.equal(queue.stats.rxStalls, 1);
    assert.match(back(s).xbdev.waitingFor() ?? '', /stalled/);
    guest.domain.onUpcall(0, upcall!);
    await host.until(() => vif.dev.carrierOk);
    await host.scheduler.runFor(100);
    await arrives(s, peer, eth0);
    assert.equal(back(s).xbdev.waitingFor(), null);
  });

  test('without feature-rx-notify packets wait for 30 ms, the ring is polled, and there is no stall', async () => {
    const s = await scene(22);
    const { host, guest, eth0, peer, vif } = s;
    const device = front(s).xbdev;
    // As a frontend without it: it reconnects, and the backend reads that there is none.
    await host.run(device.switchState(XenbusState.Closing));
    await host.until(() => host.states(guest)[1] === XenbusState.Closed);
    await host.until(() => host.states(guest).every(state => state === Connected));
    Object.assign(vif, {
      frontend: { ...(vif as unknown as { frontend: object }).frontend, rxNotify: false },
    });
    const { upcall } = guest.domain.vcpus[0];
    const queue = vif.queues[0];
    freeze(s);
    await fill(s, 5);
    await host.scheduler.runFor(40);
    assert.ok(queue.stats.rxExpired >= 5);
    await host.scheduler.runFor(70_000);
    assert.equal(queue.stats.rxStalls, 0);
    assert.equal(vif.dev.carrierOk, true);
    guest.domain.onUpcall(0, upcall!);
    await host.scheduler.runFor(100);
    await arrives(s, peer, eth0);
  });
});

test('a connection that the backend cannot complete is offered again, ever later, until it works', async () => {
  const host = await Host.boot(41);
  const guest = await host.createGuest('a');
  await host.addVif(guest, 0, { front: { mac: 'none' } });
  const device = () => guest.kernel.xenbus.frontend.devices.get('device/vif/0');
  await host.until(() =>
    /a connection to the backend failed.*trying again in/.test(device()?.waitingFor() ?? ''),
  );
  await host.scheduler.runFor(30_000);
  assert.match(device()?.waitingFor() ?? '', /\d connections to the backend failed/);
  const attempts = guest.domain.dmesg.filter(line => line.includes('not an address')).length;
  assert.ok(attempts >= 4 && attempts <= 7, `${attempts} attempts in 30 s`);
  await host.run(host.xs.write(`${host.frontPath(guest)}/mac`, '00:16:3e:01:02:03'));
  await host.hotplug(guest);
  await host.until(() => host.states(guest).every(state => state === Connected));
  await host.until(() => device()?.waitingFor() === null);
});

test('a backend that vanishes and comes back: the frontend keeps its device and reconnects', async () => {
  const s = await scene(42);
  const { host, guest, eth0, peer } = s;
  const backPath = host.backPath(guest);
  const nodes: [string, string][] = [];
  for (const key of ['frontend', 'frontend-id', 'handle', 'mac']) {
    nodes.push([key, await host.run(host.xs.read(`${backPath}/${key}`))]);
  }
  await host.run(host.xs.rm(backPath));
  await host.until(() => /to come back at/.test(front(s).xbdev.waitingFor() ?? ''));
  // Domain 0's own xenwatch may be later than the guest's.
  await host.until(() => host.dom0.net.byName(s.vif.name) === undefined);
  assert.equal(eth0.carrierOk, false);
  await host.run(
    host.xs.transaction(async t => {
      await t.mkdir(backPath);
      await t.setPerms(backPath, ['n0', `r${guest.domain.domid}`]);
      for (const [key, value] of [...nodes, ['state', '1'], ['online', '1'], ['hotplug-status', '']]) {
        await t.write(`${backPath}/${key}`, value);
      }
    }),
  );
  await host.hotplug(guest);
  await host.until(() => host.states(guest).every(state => state === Connected) && eth0.carrierOk);
  await arrives(s, eth0, peer);
});
