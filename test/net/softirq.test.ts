import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { NetDevice } from '../../src/net/device.js';
import { NETIF_F_HW_CSUM, NETIF_F_SG } from '../../src/net/features.js';
import { MAX_GRO_FLOWS } from '../../src/net/gro.js';
import type { Napi } from '../../src/net/napi.js';
import type { Packet } from '../../src/net/packet.js';
import { setupChecksum } from '../../src/net/xmit.js';
import { buildFrame, layout } from './frames.js';
import { TestKernel } from './kernel.js';

/** A device, with a NAPI that receives what is in `ring`, as a driver's poll does. */
interface Port {
  device: NetDevice;
  napi: Napi;
  ring: Packet[];
  /** Source ports of what it has received. */
  got: number[];
}

function makePort(kernel: TestKernel, failsAt: (port: number) => boolean = () => false): Port {
  const device: NetDevice = kernel.net.allocEtherdev('eth%d', { startXmit: () => 0 });
  device.features = NETIF_F_SG | NETIF_F_HW_CSUM;
  kernel.net.register(device);
  device.open();
  const ring: Packet[] = [];
  const got: number[] = [];
  device.rxHandler = packet => {
    const bytes = kernel.bytes(packet);
    const at = layout(bytes).payload - (bytes[23] === 17 ? 8 : 20);
    const port = (bytes[at] << 8) | bytes[at + 1];
    packet.release();
    got.push(port);
    if (failsAt(port)) throw new Error(`enough of ${port}`);
  };
  const napi: Napi = device.napiAdd(budget => {
    let work = 0;
    for (; work < budget && ring.length > 0; work++) napi.receive(ring.shift()!);
    if (work < budget && napi.complete(work) && ring.length > 0) napi.schedule();
    return work;
  });
  napi.enable();
  return { device, napi, ring, got };
}

/** A packet that GRO does not hold. */
function udp(kernel: TestKernel, sourcePort: number): Packet {
  return kernel.packet(buildFrame({ udp: true, sourcePort, payload: new Uint8Array(100) }));
}

/** One that it does. */
function tcp(kernel: TestKernel, sourcePort: number, flags = 0x10): Packet {
  const payload = new Uint8Array(100);
  const packet = kernel.packet(buildFrame({ sourcePort, flags, sequence: 1000, payload }), { linear: 100 });
  setupChecksum(packet, true, kernel.net.materialiser);
  return packet;
}

/** Runs the kernel until it is quiet. @returns what was thrown meanwhile */
function runAll(kernel: TestKernel): string[] {
  const thrown: string[] = [];
  for (;;) {
    try {
      kernel.run();
      return thrown;
    } catch (error) {
      thrown.push((error as Error).message);
      assert.ok(thrown.length < 1000, 'it throws without end');
    }
  }
}

function checkNothingLeft(kernel: TestKernel): void {
  assert.equal(kernel.net.packets.used, 0);
  assert.equal(kernel.net.pages.used, 0);
}

describe('a receiver that throws', () => {
  test('does not stop the NAPI, nor the others of the round', () => {
    const kernel = new TestKernel();
    const a = makePort(kernel, port => port === 2);
    const b = makePort(kernel);
    a.ring.push(...[1, 2, 3].map(port => udp(kernel, port)));
    b.ring.push(udp(kernel, 9));
    a.napi.schedule();
    b.napi.schedule();
    assert.throws(() => kernel.run(), /enough of 2/);
    assert.deepEqual([a.got, b.got], [[1, 2], []]);
    assert.deepEqual(runAll(kernel), []);
    assert.deepEqual([a.got, b.got], [[1, 2, 3], [9]]);
    assert.deepEqual([a.napi.scheduled, b.napi.scheduled], [false, false]);
    a.ring.push(udp(kernel, 4));
    assert.equal(a.napi.schedule(), true);
    kernel.run();
    assert.deepEqual(a.got, [1, 2, 3, 4]);
    checkNothingLeft(kernel);
  });

  test('of a poll’s last packet, when events came meanwhile: it looks once more', () => {
    const kernel = new TestKernel();
    const a: Port = makePort(kernel, port => {
      if (port === 1) a.napi.schedule();
      return port === 1;
    });
    a.ring.push(udp(kernel, 1));
    a.napi.schedule();
    assert.deepEqual(runAll(kernel), ['enough of 1']);
    assert.equal(a.napi.scheduled, false);
    // The one that threw, the one that had to follow, and the one for MISSED.
    assert.equal(a.napi.polls, 3);
  });

  test('gets what GRO held, and loses none of it', () => {
    const kernel = new TestKernel();
    const a = makePort(kernel, port => port === 5);
    a.ring.push(tcp(kernel, 1), tcp(kernel, 2), udp(kernel, 5));
    // What flies past is not held, so that the first poll throws with two that are.
    a.napi.schedule();
    assert.deepEqual(runAll(kernel), ['enough of 5']);
    assert.deepEqual(a.got, [5, 1, 2]);
    checkNothingLeft(kernel);
  });

  test('at whatever GRO holds gets all of it', () => {
    const kernel = new TestKernel();
    const a = makePort(kernel, () => true);
    const ports = Array.from({ length: MAX_GRO_FLOWS }, (_, i) => i + 1);
    a.ring.push(...ports.map(port => tcp(kernel, port)));
    a.napi.schedule();
    assert.equal(runAll(kernel).length, MAX_GRO_FLOWS);
    assert.deepEqual(a.got, ports);
    checkNothingLeft(kernel);
  });

  for (const [what, last] of Object.entries({
    'that may not overtake it': (kernel: TestKernel) => tcp(kernel, 1, 0x11),
    'that cannot be its end': (kernel: TestKernel) => tcp(kernel, 1),
    'that takes its place': (kernel: TestKernel) => tcp(kernel, MAX_GRO_FLOWS + 1),
  })) {
    test(`at what GRO held loses no packet ${what}`, () => {
      const kernel = new TestKernel();
      const a = makePort(kernel, port => port === 1);
      for (let port = 1; port <= MAX_GRO_FLOWS; port++) a.ring.push(tcp(kernel, port));
      const ended = last(kernel);
      a.ring.push(ended);
      const expected = MAX_GRO_FLOWS + 1;
      a.napi.schedule();
      assert.ok(runAll(kernel).length > 0);
      assert.equal(a.got.length, expected);
      checkNothingLeft(kernel);
    });
  }

  test('having taken the device down, still gets what GRO held', () => {
    const kernel = new TestKernel();
    const a: Port = makePort(kernel, port => {
      if (port === 5) a.device.napiDel(a.napi);
      return port === 5;
    });
    a.ring.push(tcp(kernel, 1), udp(kernel, 5), udp(kernel, 6));
    a.napi.schedule();
    assert.deepEqual(runAll(kernel), ['enough of 5']);
    assert.deepEqual(a.got, [5, 1]);
    a.ring.shift()!.release();
    checkNothingLeft(kernel);
  });

  test('at each packet of many gets them all, a few hundred in the end, and others go on', () => {
    const kernel = new TestKernel();
    const a = makePort(kernel, () => true);
    const b = makePort(kernel);
    for (let i = 0; i < 300; i++) a.ring.push(udp(kernel, 1));
    a.napi.schedule();
    for (let i = 0; i < 300; i++) {
      b.ring.push(udp(kernel, 2));
      b.napi.schedule();
      runAll(kernel);
    }
    assert.equal(b.got.length, 300);
    for (let ms = 0; ms < 3000; ms += 10) {
      try {
        kernel.scheduler.advance(10);
      } catch {}
    }
    assert.equal(a.got.length, 300);
    assert.equal(a.napi.scheduled, false);
    checkNothingLeft(kernel);
  });
});

test('a poll that throws without end keeps nobody busy, and is polled when it does no more', () => {
  const kernel = new TestKernel();
  const { device } = makePort(kernel);
  let broken = true;
  const napi: Napi = device.napiAdd(() => {
    if (broken) throw new Error('no poll');
    napi.complete();
    return 0;
  });
  napi.enable();
  napi.schedule();
  const atOnce = runAll(kernel).length;
  assert.ok(atOnce > 1 && atOnce <= 64, `${atOnce}`);
  let thrown = 0;
  for (let ms = 0; ms < 1000; ms++) {
    try {
      kernel.scheduler.advance(1);
    } catch {
      thrown++;
    }
  }
  assert.ok(thrown > 0 && thrown <= 100, `${thrown} times in a second`);
  broken = false;
  kernel.scheduler.advance(100);
  assert.equal(napi.scheduled, false);
  assert.equal(kernel.scheduler.timerCount, 0);
});

describe('of the queues that are to send', () => {
  /** Three devices with a packet that waits for their queues each. */
  function stopped(kernel: TestKernel): NetDevice[] {
    return ['a', 'b', 'c'].map(name => {
      const device = kernel.device(name, { txQueueLen: 100 }) as unknown as NetDevice;
      device.txQueues[0].stop();
      for (let i = 0; i < 3; i++) device.xmit(kernel.packet(buildFrame({ payload: new Uint8Array(10) })));
      return device;
    });
  }

  test('those behind one whose driver throws send, and it goes on itself', () => {
    const kernel = new TestKernel();
    const devices = stopped(kernel);
    const [, b] = devices;
    const { startXmit } = b.ops;
    let told = 0;
    b.onWake(() => told++);
    let failed = false;
    b.ops.startXmit = (packet, device) => {
      if (failed) return startXmit(packet, device);
      failed = true;
      packet.release();
      throw new Error('no xmit');
    };
    for (const device of devices) device.txQueues[0].wake();
    assert.deepEqual(runAll(kernel), ['no xmit']);
    assert.deepEqual(
      devices.map(device => device.stats.txPackets),
      [3, 2, 3],
    );
    assert.equal(told, 1);
    checkNothingLeft(kernel);
  });

  test('those behind one whose listener throws send, its other listeners hear, and it does not throw for ever', () => {
    const kernel = new TestKernel();
    const devices = stopped(kernel);
    let heard = 0;
    for (const why of ['no room', 'nor here']) {
      devices[1].onWake(() => {
        heard++;
        throw new Error(why);
      });
    }
    devices[1].onWake(() => heard++);
    for (const device of devices) device.txQueues[0].wake();
    assert.deepEqual(runAll(kernel), ['no room']);
    assert.deepEqual(
      devices.map(device => device.stats.txPackets),
      [3, 3, 3],
    );
    assert.equal(heard, 3);
    checkNothingLeft(kernel);
  });
});

test('what was sent before a poll threw is published', () => {
  const kernel = new TestKernel();
  const out = kernel.device('out');
  const { device } = makePort(kernel);
  const napi: Napi = device.napiAdd(() => {
    out.xmit(kernel.packet(buildFrame({ payload: new Uint8Array(10) })), true);
    napi.disable();
    throw new Error('no poll');
  });
  napi.enable();
  napi.schedule();
  assert.deepEqual(runAll(kernel), ['no poll']);
  assert.equal(out.priv.flushes, 1);
});
