import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ringNeedsNotify } from '../../src/abi/index.js';
import { type NetDevice, type Packet, sysfsDirectory, VirtualTree } from '../../src/net/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath, type Guest } from '../support/data-path.js';
import { packetFrom } from '../support/packets.js';
import { queueLatency } from '../support/queue-latency.js';
import { RawPair } from '../support/raw-pair.js';

function send(from: Guest, to: Guest, count: number): void {
  const bytes = buildFrame({
    source: [...from.dev.address],
    destination: [...to.dev.address],
    payload: new Uint8Array(1400),
    udp: true,
  });
  for (let i = 0; i < count; i++) from.dev.xmit(packetFrom(from.dev, bytes), true);
  from.dom.net.flush();
}

function limitOf(dev: NetDevice, name: string): string {
  return new VirtualTree(sysfsDirectory(dev)).read(`queues/tx-0/byte_queue_limits/${name}`);
}

test('an urgent packet beside a stream waits for a sixth of the time, at the same throughput', async () => {
  const limited = await queueLatency(true);
  const unlimited = await queueLatency(false);
  assert.ok(limited.medianMs * 5 < unlimited.medianMs, `${limited.medianMs} and ${unlimited.medianMs} ms`);
  assert.ok(
    limited.ringBytes * 5 < unlimited.ringBytes,
    `${limited.ringBytes} and ${unlimited.ringBytes} bytes`,
  );
  assert.ok(limited.bytesPerSecond > 0.98 * unlimited.bytesPerSecond);
});

test('every byte that a driver was given is completed, once, and sysfs and ethtool show those under way', async () => {
  const path = new DataPath(72);
  const [a, b] = [path.guest(), path.guest()];
  let got = 0;
  b.dev.rxHandler = packet => {
    got++;
    packet.release();
  };
  const devices = [a.dev, b.vif.dev as NetDevice];
  assert.equal(limitOf(a.dev, 'limit_min'), '16384\n');
  assert.equal(limitOf(a.dev, 'limit_max'), '1879048192\n');
  for (let round = 0; round < 20; round++) {
    send(a, b, 5 + 9 * round);
    assert.notEqual(limitOf(a.dev, 'inflight'), '0\n');
    await path.settle();
    for (const dev of devices) assert.equal(limitOf(dev, 'inflight'), '0\n', `${dev.name}, round ${round}`);
  }
  assert.equal(got, 20 * 5 + 9 * 190);
  assert.ok(Number(limitOf(a.dev, 'limit')) > 16384, 'it grew with the bursts');
  const stats = new Map(b.vif.dev.ops.ethtoolStats!(b.vif.dev));
  assert.equal(stats.get('queue_0_bql_inflight'), 0);
  assert.equal(stats.get('queue_0_bql_limit'), Number(limitOf(b.vif.dev as NetDevice, 'limit')));
});

test('a guest that takes nothing holds a bounded number of bytes, and all goes on when it takes again', async () => {
  const path = new DataPath(73);
  const [a, b] = [path.guest(), path.guest()];
  const { dev } = b.vif;
  const kept: Packet[] = [];
  b.dev.rxHandler = packet => void kept.push(packet);
  for (let i = 0; i < 30; i++) {
    send(a, b, 64);
    await path.scheduler.runFor(1);
  }
  const [queue] = dev.txQueues;
  assert.ok(queue.stopped);
  assert.ok(
    queue.dql.inflight > 0 && queue.dql.inflight <= queue.dql.minLimit + 1514,
    `${queue.dql.inflight}`,
  );
  assert.equal(queue.length, dev.txQueueLen, 'the qdisc is full');
  assert.ok(dev.stats.txDropped > 0);
  const before = kept.length;
  for (const packet of kept.splice(0)) packet.release();
  b.dev.rxHandler = packet => packet.release();
  await path.settle();
  assert.ok(b.dev.stats.rxPackets > before);
  assert.ok(!queue.stopped);
  assert.equal(queue.length, 0);
  assert.equal(queue.dql.inflight, 0);
  const { rxPackets } = b.dev.stats;
  send(a, b, 100);
  await path.settle();
  assert.equal(b.dev.stats.rxPackets, rxPackets + 100);
});

test('a guest that posts its rx requests one by one is asked to tell of the last that a packet needs', async () => {
  for (const [length, needed] of [
    [100, 1],
    [5000, 2],
    [8900, 3],
  ]) {
    const pair = new RawPair(true);
    const { front } = pair.receiver;
    await pair.send(pair.frame(length));
    for (let posted = 1; posted <= needed; posted++) {
      const { reqProd } = front.rx;
      front.postRx(1);
      front.push();
      const wanted = ringNeedsNotify(reqProd, front.rx.reqProd, front.rx.reqEvent);
      assert.equal(wanted, posted === needed, `${posted} of ${needed}`);
      if (wanted) front.kickRx();
      await pair.path.scheduler.runFor(1);
    }
    assert.equal(front.rxPackets().length, 1);
  }
});

test('a guest with a backlog has not stalled as long as it takes packets', async () => {
  const pair = new RawPair(true);
  const { front, vif } = pair.receiver;
  for (let second = 0; second < 70; second++) {
    for (let i = 0; i < 2; i++) await pair.send(pair.frame(100));
    front.postRx(1);
    front.push();
    front.kickRx();
    await pair.path.scheduler.runFor(1000);
  }
  assert.ok(vif.queues[0].stats.rxExpired > 0);
  assert.equal(front.rxPackets().length, 70);
  assert.deepEqual([vif.queues[0].stats.rxStalls, vif.dev.carrierOk], [0, true]);
});

test('events of a guest that only receives are not held back as spurious, on one channel or two', async () => {
  for (const split of [true, false]) {
    const pair = new RawPair(true, { receiver: { split } });
    const { front } = pair.receiver;
    for (let i = 0; i < 20; i++) {
      await pair.send(pair.frame(100));
      front.postRx(1);
      front.push();
      front.kickRx();
      await pair.path.scheduler.runReady();
      assert.equal(front.rxPackets().length, 1, `packet ${i}`);
    }
  }
});
