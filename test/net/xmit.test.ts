import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NetDevice } from '../../src/net/device.js';
import {
  NETIF_F_HW_CSUM,
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SG,
  NETIF_F_TSO6,
} from '../../src/net/features.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, GSO_NONE, GSO_TCPV4, GSO_TCPV6 } from '../../src/net/packet.js';
import { PFIFO_FAST_PRIOMAP, PfifoFastQdisc } from '../../src/net/qdisc.js';
import { setupChecksum } from '../../src/net/xmit.js';
import { buildFrame, checksumsAreRight, layout } from './frames.js';
import { type Recorder, TestKernel } from './kernel.js';

const frame = (n: number): Uint8Array => buildFrame({ payload: new Uint8Array(40).fill(n) });

test('a packet for a device that is down or has no carrier is dropped and counted', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d');
  device.carrierOff();
  assert.equal(device.xmit(kernel.packet(frame(1))), false);
  device.carrierOn();
  assert.equal(device.xmit(kernel.packet(frame(2))), true);
  device.close();
  assert.equal(device.xmit(kernel.packet(frame(3))), false);
  assert.equal(device.stats.txDropped, 2);
  assert.deepEqual(device.priv.sent, [frame(2)]);
  assert.equal(kernel.net.packets.used, 0);
});

test('flush: once for a batch, at once without more, and by itself at the end of a softirq round', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d');
  device.xmit(kernel.packet(frame(1)));
  assert.equal(device.priv.flushes, 1);
  for (let n = 0; n < 5; n++) device.xmit(kernel.packet(frame(n)), true);
  assert.equal(device.priv.flushes, 1);
  kernel.net.flush();
  assert.equal(device.priv.flushes, 2);
  device.xmit(kernel.packet(frame(9)), true);
  kernel.run();
  assert.equal(device.priv.flushes, 3);
});

test('while the queue is stopped packets wait in their order, their senders free; wake sends them', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d', { room: 2, features: NETIF_F_SG | NETIF_F_HW_CSUM });
  const woken: number[] = [];
  device.onWake(() => woken.push(device.priv.sent.length));
  let told = 0;
  for (let n = 0; n < 6; n++) {
    const packet = kernel.packet(frame(n), { linear: 60, foreign: true });
    packet.owner = { packetDone: () => told++ };
    assert.equal(device.xmit(packet), true);
  }
  assert.ok(device.congested);
  assert.equal(told, 6, 'what waits holds no slot of its sender');
  assert.equal(device.txQueues[0].length, 4);
  device.priv.room = 3;
  device.txQueues[0].wake();
  kernel.run();
  assert.deepEqual(woken, [], 'it stopped again');
  device.priv.room = 100;
  device.txQueues[0].wake();
  kernel.run();
  assert.deepEqual(woken, [6]);
  assert.deepEqual(
    device.priv.sent,
    [0, 1, 2, 3, 4, 5].map(n => frame(n)),
  );
  assert.equal(device.priv.meta[2].foreign, false);
  assert.equal(kernel.net.pages.used + kernel.net.packets.used, 0);
});

test('a queue that stays stopped keeps at most txQueueLen packets of a band, and close drops them', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d', { room: 1, txQueueLen: 5 });
  for (let n = 0; n < 20; n++) device.xmit(kernel.packet(frame(n)));
  assert.equal(device.txQueues[0].length, 5);
  assert.equal(device.stats.txDropped, 14);
  device.close();
  assert.equal(device.txQueues[0].length, 0);
  assert.equal(kernel.net.packets.used, 0);
});

test('segments that find the queue full are kept in front, none is lost or sent twice', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d', { room: 2 });
  const payload = Uint8Array.from({ length: 7000 }, (_, i) => i & 255);
  const packet = kernel.packet(buildFrame({ payload }), { linear: 100, foreign: true });
  setupChecksum(packet, true, kernel.net.materialiser);
  packet.gsoType = GSO_TCPV4;
  packet.gsoSize = 1000;
  assert.equal(device.xmit(packet), true);
  device.xmit(kernel.packet(frame(77)));
  assert.equal(device.priv.sent.length, 2);
  for (let n = 0; n < 5; n++) {
    device.priv.room = 2;
    device.txQueues[0].wake();
    kernel.run();
  }
  const sent = device.priv.sent;
  assert.equal(sent.length, 8);
  assert.deepEqual(
    sent.slice(0, 7).flatMap(bytes => [...bytes.subarray(54)]),
    [...payload],
  );
  assert.deepEqual(sent[7], frame(77));
  assert.equal(kernel.net.pages.used + kernel.net.packets.used, 0);

  // Those that are left when it goes down are let go of.
  device.priv.room = 2;
  const another = kernel.packet(buildFrame({ payload }), { linear: 100 });
  setupChecksum(another, true, kernel.net.materialiser);
  another.gsoType = GSO_TCPV4;
  another.gsoSize = 1000;
  device.xmit(another);
  assert.equal(device.txQueues[0].length, 5);
  device.close();
  assert.equal(kernel.net.pages.used + kernel.net.packets.used, 0);
});

test('a driver that throws loses that packet, and no other', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d');
  const { startXmit } = device.ops;
  let calls = 0;
  device.ops.startXmit = (packet, dev) => {
    if (++calls === 3) {
      packet.release();
      throw new Error('a bug in the driver');
    }
    return startXmit(packet, dev);
  };
  const payload = Uint8Array.from({ length: 5000 }, (_, i) => i & 255);
  const packet = kernel.packet(buildFrame({ payload }), { linear: 100, foreign: true });
  setupChecksum(packet, true, kernel.net.materialiser);
  packet.gsoType = GSO_TCPV4;
  packet.gsoSize = 1000;
  assert.throws(() => device.xmit(packet), /a bug in the driver/);
  kernel.run();
  assert.equal(device.xmit(kernel.packet(frame(7))), true);
  const sent = device.priv.sent.map(bytes => bytes.subarray(54));
  const segments = [0, 1, 3, 4].map(i => payload.subarray(1000 * i, 1000 * (i + 1)));
  assert.deepEqual(sent, [...segments, frame(7).subarray(54)]);
  assert.equal(kernel.net.pages.used + kernel.net.packets.used, 0);
});

test('pfifo_fast: three bands by priority, the first served first, with the kernel priority map', () => {
  const kernel = new TestKernel();
  assert.deepEqual(PFIFO_FAST_PRIOMAP, [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
  const qdisc = new PfifoFastQdisc(100);
  for (let priority = 0; priority < 16; priority++) {
    const packet = kernel.packet(frame(priority));
    packet.priority = priority;
    assert.ok(qdisc.enqueue(packet));
  }
  const order: number[] = [];
  for (let p = qdisc.dequeue(); p !== null; p = qdisc.dequeue()) {
    order.push(p.priority);
    p.release();
  }
  assert.deepEqual(order, [6, 7, 0, 4, 8, 9, 10, 11, 12, 13, 14, 15, 1, 2, 3, 5]);
  assert.equal(qdisc.backlog, 0);
});

test('pfifo_fast: the packets that wait are bounded, and so are their bytes', () => {
  const kernel = new TestKernel();
  const packet = () => kernel.packet(frame(1));
  const { length } = packet();
  for (const [limit, bytes] of [
    [3, 1e9],
    [1000, 3 * length],
    [1000, 4 * length - 1],
  ]) {
    const qdisc = new PfifoFastQdisc(limit, bytes);
    for (let i = 0; i < 3; i++) assert.ok(qdisc.enqueue(packet()));
    assert.equal(qdisc.enqueue(packet()), false);
    assert.deepEqual([qdisc.length, qdisc.drops, qdisc.backlog], [3, 1, 3 * length]);
    qdisc.dequeue();
    assert.ok(qdisc.enqueue(packet()));
    qdisc.reset();
    assert.deepEqual([qdisc.length, qdisc.backlog], [0, 0]);
  }
});

test('the flow hash keeps a flow on its queue, spreads flows, and follows the hash of the peer', () => {
  const kernel = new TestKernel();
  const used = [0, 0, 0, 0];
  for (let port = 0; port < 400; port++) {
    const bytes = buildFrame({ payload: new Uint8Array(1), sourcePort: port });
    const a = kernel.packet(bytes);
    const b = kernel.packet(bytes);
    const hash = kernel.net.flowHash(a);
    assert.equal(kernel.net.flowHash(b), hash);
    used[hash % 4]++;
    a.hashType = 1;
    a.hash = 0x80000005;
    assert.equal(kernel.net.flowHash(a), 5);
    a.release();
    b.release();
  }
  assert.ok(
    used.every(n => n > 50),
    `${used}`,
  );
});

test('NAPI: weight, budget, MISSED, disable', () => {
  const kernel = new TestKernel();
  const device = kernel.net.allocEtherdev('eth%d', { startXmit: () => 0 });
  kernel.net.register(device);
  let work = 1000;
  const budgets: number[] = [];
  const napi = device.napiAdd(budget => {
    budgets.push(budget);
    const done = Math.min(budget, work);
    work -= done;
    if (done < budget) napi.complete(done);
    return done;
  });
  assert.equal(napi.schedule(), false, 'not enabled yet');
  napi.enable();
  assert.equal(napi.schedule(), true);
  assert.equal(napi.schedule(), false);
  kernel.run();
  assert.deepEqual(budgets.slice(0, 3), [64, 64, 64]);
  assert.equal(work, 0);
  // 1000 packets are 15 full polls and one of 40; the second schedule() before the first poll was MISSED,
  // so there is one more. A round has room for five polls.
  assert.equal(budgets.length, 17);
  assert.equal(kernel.net.softirq.rounds, 4);
  assert.equal(kernel.net.softirq.squeezed, 3);
  assert.equal(napi.scheduled, false);

  napi.schedule();
  napi.disable();
  kernel.run();
  assert.equal(budgets.length, 17, 'a disabled one is not polled');
  napi.enable();
  assert.equal(napi.schedule(), true);
  kernel.run();
  assert.equal(budgets.length, 18);
  assert.throws(() => napi.complete(65), RangeError);
});

test('a device without checksum offload gets complete checksums, one with it gets them partial', () => {
  const kernel = new TestKernel();
  const plain = kernel.device('eth%d');
  const able = kernel.device('eth%d', { features: NETIF_F_HW_CSUM | NETIF_F_SG });
  for (const device of [plain, able]) {
    const packet = kernel.packet(frame(1));
    setupChecksum(packet, true, kernel.net.materialiser);
    (device as NetDevice<Recorder>).xmit(packet);
  }
  assert.equal(plain.priv.meta[0].checksum, 0);
  assert.equal(able.priv.meta[0].checksum, CHECKSUM_PARTIAL);
});

/** What a device with the offloads of a vif is given. */
const VIF = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO6;

for (const tag of [0x8100, 0x88a8]) {
  test(`behind a VLAN tag of type 0x${tag.toString(16)} the ends of a vif get no blank checksum, and no GSO packet`, () => {
    const kernel = new TestKernel();
    const device = kernel.device('eth%d', { features: VIF });
    const payload = Uint8Array.from({ length: 2500 }, (_, i) => i & 255);
    const bytes = buildFrame({ payload, version: 6, vlan: 7 });
    for (const gsoType of [GSO_NONE, GSO_TCPV6]) {
      const packet = kernel.packet(bytes);
      setupChecksum(packet, true, kernel.net.materialiser);
      Object.assign(packet, { gsoType, gsoSize: 1000 });
      packet.memory.u8[packet.data + 12] = tag >> 8;
      packet.memory.u8[packet.data + 13] = tag & 0xff;
      assert.equal(device.xmit(packet), true);
    }
    const { meta, sent } = device.priv;
    assert.equal(sent.length, 4);
    for (const [i, { checksum, gsoType }] of meta.entries()) {
      assert.deepEqual([checksum, gsoType], [CHECKSUM_NONE, GSO_NONE]);
      assert.equal((sent[i][12] << 8) | sent[i][13], tag);
      // The references know one type of tag.
      sent[i].set([0x81, 0], 12);
    }
    assert.ok(sent.every(frame => checksumsAreRight(frame)));
    const segments = sent.slice(1).flatMap(frame => [...frame.subarray(layout(frame).payload)]);
    assert.deepEqual(Uint8Array.from(segments), payload);
    assert.equal(kernel.net.pages.used + kernel.net.packets.used, 0);
  });
}

test('the checksum of what a UDP tunnel carries is completed, where only the outer one would be looked for', () => {
  const kernel = new TestKernel();
  const device = kernel.device('eth%d', { features: VIF });
  const inner = kernel.packet(buildFrame({ payload: new Uint8Array(40).fill(1), version: 6 }));
  setupChecksum(inner, true, kernel.net.materialiser);
  const { csumStart, csumOffset } = inner;
  const vxlan = 8;
  const carried = new Uint8Array(vxlan + inner.length);
  carried.set(inner.memory.u8.subarray(inner.data, inner.data + inner.length), vxlan);
  inner.release();
  const bytes = buildFrame({ payload: carried, udp: true, destinationPort: 4789 });
  const packet = kernel.packet(bytes);
  const start = bytes.length - carried.length + vxlan;
  Object.assign(packet, { checksum: CHECKSUM_PARTIAL, csumStart: start + csumStart, csumOffset });
  assert.equal(device.xmit(packet), true);
  const [sent] = device.priv.sent;
  assert.equal(device.priv.meta[0].checksum, CHECKSUM_NONE);
  assert.deepEqual(sent.subarray(0, start), bytes.subarray(0, start));
  assert.ok(checksumsAreRight(sent.subarray(start)));
});
