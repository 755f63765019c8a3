import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  hashExtraWord0,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_CTRL_HASH_TYPE,
} from '../../src/abi/index.js';
import {
  CHECKSUM_NONE,
  CHECKSUM_PARTIAL,
  CHECKSUM_UNNECESSARY,
  GSO_TCPV4,
  GSO_TCPV6,
  NAPI_POLL_WEIGHT,
  NETIF_F_ALL_TSO,
  NETIF_F_GRO,
  type NetDevice,
} from '../../src/net/index.js';
import { buildFrame, checksumsAreRight, layout } from '../net/frames.js';
import { ALL_FEATURES, DataPath, type Guest } from '../support/data-path.js';
import { bytesOf, packetFrom, partial } from '../support/packets.js';
import { RawPair } from '../support/raw-pair.js';

interface Received {
  bytes: Uint8Array;
  checksum: number;
  gsoSize: number;
  gsoType: number;
}

/** Collects what a device receives, with what is known of it. */
function collect(dev: NetDevice): Received[] {
  const got: Received[] = [];
  dev.rxHandler = packet => {
    const { checksum, gsoSize, gsoType } = packet;
    got.push({ bytes: bytesOf(packet), checksum, gsoSize, gsoType });
    packet.release();
  };
  return got;
}

const payload = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 7) & 0xff);

function frame(
  from: Guest,
  to: Guest,
  length: number,
  options: Parameters<typeof buildFrame>[0] | object = {},
) {
  return buildFrame({
    source: [...from.dev.address],
    destination: [...to.dev.address],
    payload: payload(length),
    ...options,
  });
}

/** What a domain holds; the same before and after, or something leaked. */
function holdings(path: DataPath): unknown {
  return path.hypervisor.domains.map(({ platform }) => ({
    grants: platform.grants.allocated,
    mapped: platform.grants.mapped,
    ports: platform.events.allocated,
  }));
}

describe('guest to guest', () => {
  for (const fastPath of [true, false]) {
    test(`the hash that a sender gives is not for a guest that asked for none (fast path: ${fastPath})`, async () => {
      const pair = new RawPair(fastPath);
      pair.receiver.front.postRx(2);
      const hash = hashExtraWord0(
        XEN_NETIF_CTRL_HASH_TYPE.IPV4,
        XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
        false,
      );
      await pair.send(pair.frame(100), { extras: [[hash, 0x12345678]] });
      assert.deepEqual(pair.receiver.front.rxPackets(), [
        { bytes: pair.frame(100), flags: 0, prefix: null, extras: [] },
      ]);
    });
  }

  for (const split of [true, false]) {
    test(`frames of all sizes arrive as they were sent (split event channels: ${split})`, async () => {
      const path = new DataPath(split ? 3 : 4);
      const a = path.guest({ split, mtu: 65517 });
      const b = path.guest({ split, mtu: 65517 });
      const got = collect(b.dev);
      const sent: Uint8Array[] = [];
      for (const length of [0, 1, 46, 400, 480, 481, 1460, 4096, 8192, 30000, 60000]) {
        const bytes = frame(a, b, length);
        sent.push(bytes);
        a.dev.xmit(packetFrom(a.dev, bytes));
        await path.settle();
      }
      assert.deepEqual(
        got.map(({ bytes }) => bytes.length),
        sent.map(bytes => bytes.length),
      );
      for (const [i, { bytes, checksum }] of got.entries()) {
        assert.deepEqual(bytes, sent[i]);
        assert.equal(checksum, CHECKSUM_NONE);
      }
      assert.deepEqual([a.broken, a.fatal, b.broken, b.fatal], [[], [], [], []]);
    });
  }

  test('frontends whose grants are tied to their pages copy what they receive out, and leave nothing behind', async () => {
    const path = new DataPath(5);
    const before = holdings(path);
    const a = path.guest({ tied: true, mtu: 65517 });
    const b = path.guest({ tied: true, mtu: 65517 });
    const got = collect(b.dev);
    const sent: Uint8Array[] = [];
    for (let i = 0; i < 400; i++) {
      const bytes = frame(a, b, (i * 977) % (i % 50 === 0 ? 60000 : 3000), { id: i });
      sent.push(bytes);
      a.dev.xmit(packetFrom(a.dev, bytes));
      if (i % 4 === 0) await path.settle();
    }
    await path.settle();
    assert.equal(got.length, sent.length);
    for (const [i, { bytes }] of got.entries()) assert.deepEqual(bytes, sent[i]);
    assert.deepEqual([a.broken, a.fatal, b.broken, b.fatal], [[], [], [], []]);
    for (const guest of [a, b]) guest.disconnect();
    await path.settle();
    assert.deepEqual((holdings(path) as unknown[])[0], (before as unknown[])[0]);
    for (const { dom } of [a, b]) assert.equal(dom.platform.grants.allocated, 0);
  });

  test('a backend that dies at any moment: the next one answers each request once', async () => {
    for (let seed = 1; seed <= 40; seed++) {
      const path = new DataPath(seed);
      const a = path.guest({ mtu: 9000 });
      const b = path.guest({ mtu: 9000 });
      const got = collect(b.dev);
      let sent = 0;
      for (let i = 0; i < 60; i++) {
        // Small packets are answered when they are read, large ones when the other guest has them.
        a.dev.xmit(packetFrom(a.dev, frame(a, b, i % 3 === 0 ? 8000 : 20 + i)), i % 7 !== 0);
        sent++;
        if (i % 10 === 5) {
          path.scheduler.runForNow(10, seed + i);
          a.replaceBackend();
        }
      }
      await path.settle();
      const more = frame(a, b, 100);
      a.dev.xmit(packetFrom(a.dev, more));
      await path.settle();
      assert.deepEqual([a.broken, a.fatal], [[], []], `seed ${seed}`);
      assert.equal(a.dev.txPool?.used, 0, `seed ${seed}: every packet was answered`);
      assert.ok(got.length <= 2 * sent);
      assert.deepEqual(got.at(-1)?.bytes, more);
    }
  });

  test('many packets in bursts: none is lost, reordered or changed', async () => {
    const path = new DataPath(7);
    const a = path.guest();
    const b = path.guest();
    const got = collect(b.dev);
    const sent: Uint8Array[] = [];
    for (let burst = 0; burst < 60; burst++) {
      for (let i = 0; i < 20; i++) {
        const bytes = frame(a, b, (burst * 37 + i * 101) % 1460, { id: sent.length });
        sent.push(bytes);
        a.dev.xmit(packetFrom(a.dev, bytes), i < 19);
      }
      await path.settle();
    }
    assert.equal(got.length, sent.length);
    for (const [i, { bytes }] of got.entries()) assert.deepEqual(bytes, sent[i]);
    assert.equal(a.dev.stats.txPackets, 1200);
    assert.equal(a.vif.dev.stats.rxPackets, 1200);
    assert.equal(b.vif.dev.stats.txPackets, 1200);
    assert.equal(b.dev.stats.rxPackets, 1200);
  });

  test('bursts as long as a whole poll are not taken for spurious events, which would be delayed', async () => {
    const path = new DataPath(8);
    const a = path.guest();
    const b = path.guest();
    const got = collect(b.dev);
    await path.settle();
    const start = path.scheduler.now();
    for (let burst = 1; burst <= 20; burst++) {
      for (let i = 0; i < NAPI_POLL_WEIGHT; i++) a.dev.xmit(packetFrom(a.dev, frame(a, b, 46)), true);
      a.dom.net.flush();
      await path.scheduler.runUntil(() => got.length === burst * NAPI_POLL_WEIGHT);
    }
    assert.ok(path.scheduler.now() - start < 20);
  });

  test('broadcasts reach every other guest', async () => {
    const path = new DataPath(8);
    const guests = Array.from({ length: 4 }, () => path.guest({ mtu: 9000 }));
    const got = guests.map(({ dev }) => collect(dev));
    const bytes = frame(guests[0], guests[1], 5000, { destination: Array(6).fill(0xff) });
    guests[0].dev.xmit(packetFrom(guests[0].dev, bytes));
    await path.settle();
    assert.deepEqual(
      got.map(({ length }) => length),
      [0, 1, 1, 1],
    );
    for (const list of got.slice(1)) assert.deepEqual(list[0].bytes, bytes);
  });
});

describe('offloads', () => {
  for (const version of [4, 6] as const) {
    test(`a 60 KB TCPv${version} segment crosses as one GSO packet with a partial checksum`, async () => {
      const path = new DataPath(11);
      const a = path.guest();
      const b = path.guest();
      const got = collect(b.dev);
      const bytes = frame(a, b, 60000, { version });
      const packet = partial(packetFrom(a.dev, bytes), a.dev);
      packet.gsoType = version === 4 ? GSO_TCPV4 : GSO_TCPV6;
      packet.gsoSize = 1448;
      a.dev.xmit(packet);
      await path.settle();
      assert.equal(got.length, 1);
      assert.equal(got[0].bytes.length, bytes.length);
      assert.equal(got[0].checksum, CHECKSUM_PARTIAL);
      assert.equal(got[0].gsoSize, 1448);
      assert.deepEqual(got[0].bytes.subarray(layout(bytes).payload), bytes.subarray(layout(bytes).payload));
    });

    test(`a guest without GSO and checksum offload gets TCPv${version} segments with right checksums`, async () => {
      const path = new DataPath(12);
      const a = path.guest();
      const b = path.guest({
        features: {
          ...ALL_FEATURES,
          gsoTcpv4: false,
          gsoTcpv6: false,
          noCsumOffload: true,
          ipv6CsumOffload: false,
        },
      });
      // What arrives is to be seen as it came over the ring.
      b.dev.features &= ~NETIF_F_GRO;
      const got = collect(b.dev);
      const bytes = frame(a, b, 14480, { version });
      const packet = partial(packetFrom(a.dev, bytes), a.dev);
      packet.gsoType = version === 4 ? GSO_TCPV4 : GSO_TCPV6;
      packet.gsoSize = 1448;
      a.dev.xmit(packet);
      await path.settle();
      assert.equal(got.length, 10);
      for (const segment of got) {
        assert.equal(segment.checksum, CHECKSUM_NONE);
        assert.ok(checksumsAreRight(segment.bytes));
      }
      const whole = got.flatMap(({ bytes: part }) => [...part.subarray(layout(part).payload)]);
      assert.deepEqual(Uint8Array.from(whole), payload(14480));
    });
  }

  test('segments of a sender without GSO reach a guest that takes GSO as one packet', async () => {
    const path = new DataPath(15);
    const a = path.guest();
    const b = path.guest();
    const got = collect(b.dev);
    a.dev.features &= ~NETIF_F_ALL_TSO;
    const bytes = frame(a, b, 14480, { flags: 0x10 });
    const packet = partial(packetFrom(a.dev, bytes), a.dev);
    packet.gsoType = GSO_TCPV4;
    packet.gsoSize = 1448;
    a.dev.xmit(packet);
    await path.settle();
    assert.equal(a.dev.stats.txPackets, 10, 'the sender cut it');
    assert.equal(b.vif.dev.stats.txPackets, 1, 'netback put it together');
    assert.equal(got.length, 1);
    assert.deepEqual([got[0].gsoSize, got[0].gsoType, got[0].checksum], [1448, GSO_TCPV4, CHECKSUM_PARTIAL]);
    assert.deepEqual(got[0].bytes.subarray(layout(bytes).payload), payload(14480));
  });

  test('a guest without scatter-gather gets frames of up to 1514 bytes whole', async () => {
    const path = new DataPath(13);
    const a = path.guest();
    const b = path.guest({ features: { ...ALL_FEATURES, sg: false } });
    const got = collect(b.dev);
    const bytes = frame(a, b, 1460);
    a.dev.xmit(packetFrom(a.dev, bytes));
    await path.settle();
    assert.deepEqual(got[0].bytes, bytes);
  });

  test('a validated checksum stays validated across the bridge', async () => {
    const path = new DataPath(14);
    const a = path.guest();
    const b = path.guest();
    const got = collect(b.dev);
    const packet = packetFrom(a.dev, frame(a, b, 100));
    packet.checksum = CHECKSUM_UNNECESSARY;
    a.dev.xmit(packet);
    await path.settle();
    assert.equal(got[0].checksum, CHECKSUM_UNNECESSARY);
  });
});

/** A guest whose packets end in a receiver that throws at some of them, counted from 1. */
function throwingReceiver(seed: number, fails: (n: number) => boolean) {
  const path = new DataPath(seed);
  const a = path.guest();
  const counts = { seen: 0 };
  path.bridge.removePort(a.vif.dev as NetDevice);
  a.vif.dev.rxHandler = packet => {
    packet.release();
    if (fails(++counts.seen)) throw new Error('enough');
  };
  return { path, a, counts };
}

describe('life cycle', () => {
  test('a guest that takes nothing holds nobody up, and everything comes back', async () => {
    const path = new DataPath(21);
    const mtu = 9000;
    const a = path.guest({ mtu });
    const b = path.guest({ mtu });
    const c = path.guest({ mtu });
    const got = collect(c.dev);
    // b takes no more packets: its ring fills, then its queue in dom0, and what is more is dropped.
    b.dom.domain.platform.events.mask(b.queue.publication.rxPort);
    for (let i = 0; i < 600; i++) {
      a.dev.xmit(packetFrom(a.dev, frame(a, b, 8000)));
      if (i % 4 === 0) await path.scheduler.runFor(1);
      if (i % 10 === 0) a.dev.xmit(packetFrom(a.dev, frame(a, c, 200)));
    }
    await path.scheduler.runFor(2000);
    assert.equal(got.filter(({ bytes }) => bytes.length === 254).length, 60, 'c gets all of its packets');
    assert.equal(a.dev.stats.txPackets, 660, "a's slots all came back");
    assert.ok(b.vif.dev.stats.txDropped > 0);
  });

  test('after disconnecting nothing is left', async () => {
    const path = new DataPath(22);
    const mtu = 9000;
    const before = holdings(path);
    const a = path.guest({ mtu });
    const b = path.guest({ mtu });
    const empty = [a, b].map(({ dom }) => dom.platform.memory.allocated);
    const got = collect(b.dev);
    for (let i = 0; i < 300; i++) a.dev.xmit(packetFrom(a.dev, frame(a, b, 3000)));
    await path.scheduler.runFor(5);
    a.disconnect();
    b.disconnect();
    await path.settle();
    assert.ok(got.length > 0);
    const after = holdings(path) as { grants: number; mapped: number; ports: number }[];
    assert.deepEqual(after[0], (before as typeof after)[0], 'dom0');
    for (const [i, { dom }] of [a, b].entries()) {
      assert.equal(after[i + 1].grants, 0, `grants of guest ${i}`);
      assert.equal(dom.reclaimer.pending, 0);
      assert.equal(dom.net.packets.used, 0, `packets of guest ${i}`);
      assert.equal(dom.net.pages.used, 0);
      assert.ok(dom.platform.memory.allocated <= empty[i] + 1100);
    }
    assert.equal(path.dom0.net.packets.used, 0);
    assert.equal(path.dom0.net.pages.used, 0);
  });

  test('a guest is answered when whoever receives its packet throws, and goes on to be served', async () => {
    const { path, a, counts } = throwingReceiver(23, n => n % 2 === 1);
    for (let i = 1; i <= 10; i++) {
      a.dev.xmit(packetFrom(a.dev, frame(a, a, 100)));
      if (i % 2 === 1) await assert.rejects(path.settle(), /enough/);
      await path.settle();
      assert.equal(counts.seen, i);
      assert.equal(a.dev.txQueues[0].dql.inflight, 0);
    }
    a.disconnect();
    assert.equal(path.dom0.net.packets.used, 0);
  });

  test('packets behind one whose receiver throws are answered too', async () => {
    const { path, a, counts } = throwingReceiver(24, n => n % 5 === 0);
    for (let round = 0; round < 30; round++) {
      for (let i = 0; i < 20; i++) a.dev.xmit(packetFrom(a.dev, frame(a, a, i % 3 === 0 ? 1400 : 100)), true);
      a.dom.net.flush();
      for (let done = false; !done; ) {
        done = await path.settle().then(
          () => true,
          () => false,
        );
      }
      assert.equal(a.dev.txQueues[0].dql.inflight, 0);
    }
    assert.equal(a.vif.dev.stats.rxDropped + counts.seen, 600);
    a.disconnect();
    assert.equal(path.dom0.net.packets.used, 0);
  });
});
