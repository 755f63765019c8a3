import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  hashExtraWord0,
  multicastExtraWord0,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  NETTXF_EXTRA_INFO,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_CTRL_HASH_TYPE,
} from '../../src/abi/index.js';
import type { TxPacketOptions } from '../../src/mock/index.js';
import { GSO_TCPV4, GSO_TCPV6, type NetDevice } from '../../src/net/index.js';
import { FILTER_PASS, SourceFilter } from '../../src/netback/index.js';
import { RX_STALL_MS } from '../../src/netback/rx-ring.js';
import { ALL_FEATURES } from '../support/data-path.js';
import { RawPair } from '../support/raw-pair.js';

const BLANK = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
const BROADCAST = Array(6).fill(0xff);
const gso = (size: number, type: number) => [[gsoExtraWord0(size), gsoExtraWord1(type)]] as const;
/** An ACK alone, which GRO has no use for. */
const ACK = { udp: false, flags: 0x10, payload: new Uint8Array(0) };
/** TCP data, in as many slots as it takes. */
const TCP = { udp: false, flags: 0x10 };

interface Packet {
  bytes(pair: RawPair): Uint8Array;
  options?: TxPacketOptions;
}

const usual: Packet = { bytes: pair => pair.frame(100) };

describe('the fast path takes', () => {
  function taken(
    name: string,
    packet: Packet,
    options: ConstructorParameters<typeof RawPair>[1] = {},
    check: (pair: RawPair) => void = () => {},
  ): void {
    test(name, async () => {
      const outcomes = [true, false].map(async fastPath => {
        const pair = new RawPair(fastPath, options);
        pair.receiver.front.postRx(40);
        for (let i = 0; i < 2; i++) await pair.send(packet.bytes(pair), packet.options);
        assert.equal(pair.path.fastPackets, fastPath ? 2 : 0);
        check(pair);
        return pair.outcome();
      });
      const [fast, slow] = await Promise.all(outcomes);
      assert.deepEqual(fast, slow);
    });
  }

  taken('a short packet', usual);
  taken('the shortest', { bytes: pair => pair.frame(0).subarray(0, 14) });
  for (const length of [480, 481, 1500, 4096]) {
    taken(`a packet of ${length} bytes`, { bytes: pair => pair.frame(length - 42) });
  }
  taken('a packet whose checksum is known', {
    bytes: pair => pair.frame(1000),
    options: { flags: NETTXF_DATA_VALIDATED },
  });
  for (const version of [4, 6] as const) {
    for (const udp of [true, false]) {
      taken(`a blank checksum of ${udp ? 'UDP' : 'TCP'} in IPv${version}`, {
        bytes: pair => pair.frame(700, { version, udp }),
        options: { flags: BLANK },
      });
    }
    taken(`a GSO packet of IPv${version}`, {
      bytes: pair => pair.frame(60_000, { version, ...TCP }),
      options: { flags: BLANK, extras: gso(1448, version === 4 ? GSO_TCPV4 : GSO_TCPV6) },
    });
  }
  taken('a header with options', {
    bytes: pair => pair.frame(10, { ...TCP, extra: new Uint8Array(40), tcpOptions: new Uint8Array(40) }),
    options: { flags: BLANK },
  });
  taken('a VLAN tag, without a blank checksum', { bytes: pair => pair.frame(300, { vlan: 7 }) });
  taken('a packet of a page and more in several slots', {
    bytes: pair => pair.frame(8000 - 42),
    options: { slots: [4096, 1000, 2904] },
  });
  taken('a packet of 19 slots', {
    bytes: pair => pair.frame(192 + 18 * 100 - 42),
    options: { slots: [192, ...Array(18).fill(100)] },
  });
  taken('a packet whose head fills its first slot', {
    bytes: pair => pair.frame(1192 - 42),
    options: { slots: [192, 1000] },
  });
  taken('TCP data', { bytes: pair => pair.frame(1000, TCP) });
  taken(
    'TCP data, also with GRO: the receiver puts it together',
    { bytes: pair => pair.frame(1000, TCP) },
    { sender: { gro: true } },
  );
  taken('packets to and from guests with one event channel', usual, {
    sender: { split: false },
    receiver: { split: false },
  });
  taken(
    'an acknowledgement, while TCP data is put together',
    { bytes: pair => pair.frame(0, ACK) },
    {
      sender: { gro: true },
    },
  );

  test('grants of guests in other threads, whose pins it lets go of', async () => {
    const pair = new RawPair(true);
    const tables = [pair.sender, pair.receiver].map(({ domain }) => domain.grantTable);
    for (const table of tables) table.plainEntries = 0;
    pair.receiver.front.postRx(4);
    const bytes = pair.frame(3000);
    await pair.send(bytes);
    assert.equal(pair.path.fastPackets, 1);
    assert.deepEqual(pair.receiver.front.rxPackets()[0].bytes, bytes);
    for (const table of tables) {
      const pinned = Array.from({ length: table.entries }, (_, gref) => gref).filter(gref =>
        table.isPinned(gref),
      );
      assert.equal(pinned.length, 2, 'the rings, which are mapped');
    }
  });

  test('a whole ring of packets, again and again, over the end of its indexes', async () => {
    const outcomes = [true, false].map(async fastPath => {
      const pair = new RawPair(fastPath);
      const all: unknown[] = [];
      const { front } = pair.receiver;
      front.postRx(256);
      for (let round = 0; round < 5; round++) {
        for (let i = 0; i < 200; i++) pair.sender.front.packet(pair.frame(round * 100 + i));
        await pair.strike();
        all.push(pair.outcome());
        front.postRx(200);
        front.push();
      }
      assert.equal(pair.path.fastPackets, fastPath ? 1000 : 0);
      return all;
    });
    const [fast, slow] = await Promise.all(outcomes);
    assert.deepEqual(fast, slow);
  });

  test('more flows than it has routes, each to where it goes', async () => {
    const outcomes = [true, false].map(async fastPath => {
      const pair = new RawPair(fastPath);
      pair.receiver.front.postRx(200);
      for (let round = 0; round < 3; round++) {
        for (let i = 0; i < 60; i++) {
          const source = [...pair.sender.mac.slice(0, 4), 9, (i * 7) % 20];
          pair.sender.front.packet(pair.frame(i, { source }));
        }
        await pair.strike();
      }
      assert.equal(pair.path.fastPackets, fastPath ? 180 : 0);
      return [pair.outcome(), addresses(pair)];
    });
    const [fast, slow] = await Promise.all(outcomes);
    assert.deepEqual(fast, slow);
  });
});

/** What the bridge has learned. */
function addresses({ path }: RawPair): string[] {
  return path.bridge
    .forwardingTable()
    .map(({ address, device }) => `${Buffer.from(address).toString('hex')} ${device.name}`)
    .sort();
}

describe('the fast path leaves to TypeScript', () => {
  /**
   * @param prepare after a usual packet has taken the fast path
   * @param packet what must not take it then; a usual packet by default
   * @param undo what lets packets take it again
   */
  function left(
    name: string,
    prepare: (pair: RawPair) => void,
    packet: Packet = usual,
    undo?: (pair: RawPair) => void,
  ): void {
    test(name, async () => {
      const outcomes = [true, false].map(async fastPath => {
        const pair = new RawPair(fastPath);
        const { path, receiver } = pair;
        receiver.front.postRx(4);
        await pair.send(usual.bytes(pair));
        assert.equal(path.fastPackets, fastPath ? 1 : 0);
        prepare(pair);
        receiver.front.postRx(60);
        await pair.send(packet.bytes(pair), packet.options);
        await path.scheduler.runFor(20);
        assert.equal(path.fastPackets, fastPath ? 1 : 0);
        const outcome = pair.outcome();
        undo?.(pair);
        // It does not try at once.
        for (let i = 0; i < 3; i++) await pair.send(usual.bytes(pair));
        if (fastPath && pair.sender.fatal.length === 0 && undo !== undefined) assert.ok(path.fastPackets > 1);
        return [outcome, pair.outcome()];
      });
      const [fast, slow] = await Promise.all(outcomes);
      assert.deepEqual(fast, slow);
    });
  }
  /** For a packet that is unusual itself. */
  const packet = (name: string, bytes: Packet['bytes'], options?: TxPacketOptions) =>
    left(
      name,
      () => {},
      { bytes, options },
      () => {},
    );

  for (const who of ['sender', 'receiver'] as const) {
    left(
      `what a packet filter of the ${who} sees`,
      pair => {
        pair[who].vif.filter = () => FILTER_PASS;
      },
      usual,
      pair => {
        pair[who].vif.filter = null;
      },
    );
    left(`what goes through static grants of the ${who}`, pair => {
      const { vif, front } = pair[who];
      assert.ok(vif.staticGrants[0].add([{ gref: front.pages[3].gref, readonly: true }]));
    });
    left(`what comes when the operator has taken the carrier of the ${who}`, pair =>
      pair[who].vif.setCarrier(false),
    );
    left(`what comes while the device of the ${who} is down`, pair => void pair[who].vif.dev.close());
    left(`what a device of the ${who} that is no port of a bridge gets`, pair =>
      pair.path.bridge.removePort(pair[who].vif.dev as NetDevice),
    );
  }
  left(
    'what a source filter sees',
    ({ sender }) => {
      sender.vif.sourceFilter = new SourceFilter({ macs: [Uint8Array.from(sender.mac)] });
    },
    usual,
    ({ sender }) => {
      sender.vif.sourceFilter = null;
    },
  );
  left(
    'what a rate is taken from',
    ({ sender }) => sender.vif.setRate({ bytes: 1_000_000, usec: 1000 }),
    usual,
    ({ sender }) => sender.vif.setRate(null),
  );
  left('what has another receiver than the bridge', ({ sender }) => {
    const { dev } = sender.vif;
    const before = dev.rxHandler!;
    dev.rxHandler = (one, from) => before(one, from);
  });
  left(
    'what needs headroom before it',
    ({ receiver }) => receiver.vif.setXdpHeadroom(256),
    usual,
    ({ receiver }) => receiver.vif.setXdpHeadroom(0),
  );
  left('what gets a hash', ({ receiver }) =>
    Object.assign(receiver.vif.hash, {
      algorithm: XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
      flags: 1 << XEN_NETIF_CTRL_HASH_TYPE.IPV4,
    }),
  );
  left(
    'what comes while the queue is stopped',
    ({ receiver }) => receiver.vif.dev.txQueues[0].stop(),
    usual,
    ({ receiver }) => receiver.vif.dev.txQueues[0].wake(),
  );
  left('what is for a vif that was disabled', ({ receiver }) => {
    receiver.front.request({ offset: 4095, size: 14 });
    receiver.front.push();
    receiver.front.kick();
    receiver.path.scheduler.runForNow(1, 1000);
    assert.equal(receiver.fatal.length, 1);
  });
  left(
    'what is too long for the receiver',
    ({ receiver }) => {
      receiver.vif.dev.mtu = 1000;
    },
    { bytes: pair => pair.frame(1200) },
    ({ receiver }) => {
      receiver.vif.dev.mtu = 9000;
    },
  );
  left(
    'what an isolated port sends to another',
    ({ path, sender, receiver }) => {
      for (const { vif } of [sender, receiver]) path.bridge.portOf(vif.dev as NetDevice)!.isolated = true;
    },
    usual,
    ({ path, sender }) => {
      path.bridge.portOf(sender.vif.dev as NetDevice)!.isolated = false;
    },
  );
  left('what is for the port that it came from', pair => pair.learn(pair.receiver.mac, pair.sender));
  left('what a bridge that listens to everything sees', ({ path }) => {
    path.bridge.setPromiscuity(1);
    path.bridge.rxHandler = one => one.release();
  });
  left('what comes while the bridge is down', ({ path }) => void path.bridge.close());
  packet('what is for nobody that is known', pair => pair.frame(100, { destination: [2, 0, 0, 0, 0, 7] }));
  packet('broadcasts', pair => pair.frame(100, { destination: BROADCAST }));
  packet('multicasts', pair => pair.frame(100, { destination: [1, 0, 0x5e, 0, 0, 9] }));
  packet('frames for the bridge', pair => pair.frame(100, { destination: [...pair.path.bridge.address] }));
  packet('a group as the source', pair => pair.frame(100, { source: BROADCAST }));
  packet('no source', pair => pair.frame(100, { source: Array(6).fill(0) }));
  left('a source that is the destination', () => {}, {
    bytes: pair => pair.frame(100, { source: pair.receiver.mac }),
  });
  packet('a blank checksum behind a VLAN tag', pair => pair.frame(100, { vlan: 7 }), { flags: BLANK });
  packet(
    'a blank checksum behind extension headers',
    pair => pair.frame(100, { version: 6, firstHeader: 60, extra: Uint8Array.of(17, 0, 1, 4, 0, 0, 0, 0) }),
    { flags: BLANK },
  );
  packet(
    'a blank checksum in a fragment',
    pair => {
      const bytes = pair.frame(100);
      bytes[20] = 0x20;
      return bytes;
    },
    { flags: BLANK },
  );
  packet('a blank checksum of what has none', pair => pair.frame(100).fill(0, 12), { flags: BLANK });
  packet('a blank checksum behind headers that are not whole', pair => pair.frame(0).subarray(0, 40), {
    flags: BLANK,
  });
  /** What is at these offsets of the frame instead: lengths that contradict each other. */
  const contradictions: [what: string, more: object, octets: Record<number, number>][] = [
    ['an IPv4 header of less than 20 bytes', {}, { 14: 0x44 }],
    ['an IPv4 packet that is shorter than its header', {}, { 17: 19 }],
    ['a UDP header that its IP packet ends in', {}, { 17: 27 }],
    ['a TCP header that its IP packet ends in', TCP, { 17: 39 }],
    ['TCP options that its IP packet ends in', TCP, { 17: 40, 46: 0x60 }],
  ];
  for (const [what, more, octets] of contradictions) {
    packet(
      `a blank checksum of ${what}`,
      pair => {
        const bytes = pair.frame(100, more);
        for (const [at, octet] of Object.entries(octets)) bytes[Number(at)] = octet;
        return bytes;
      },
      { flags: BLANK },
    );
  }
  packet(
    'a blank checksum beyond the part that is copied',
    pair =>
      pair.frame(1000, {
        version: 6,
        firstHeader: 60,
        extra: Uint8Array.from({ length: 184 }, (_, i) => [17, 22, 1, 180][i] ?? 0),
      }),
    { flags: BLANK },
  );
  packet('GSO without a blank checksum', pair => pair.frame(4000, TCP), { extras: gso(1448, GSO_TCPV4) });
  packet('GSO of the other version of IP', pair => pair.frame(4000, TCP), {
    flags: BLANK,
    extras: gso(1448, GSO_TCPV6),
  });
  packet('GSO of UDP', pair => pair.frame(4000), { flags: BLANK, extras: gso(1448, GSO_TCPV4) });
  packet('two extra infos', pair => pair.frame(4000, TCP), {
    flags: BLANK,
    extras: [...gso(1448, GSO_TCPV4), ...gso(1000, GSO_TCPV4)],
  });
  packet('a hash', pair => pair.frame(100), { extras: [[hashExtraWord0(1, 1), 0x12345678]] });
  packet('a request for a multicast group', pair => pair.frame(100), {
    extras: [[multicastExtraWord0(Uint8Array.of(1, 0, 0x5e, 0, 0, 9), true), 0x0900005e]],
  });
  packet('slots without bytes', pair => pair.frame(200 - 42), { slots: [100, 0, 100] });
  packet('a head in two slots', pair => pair.frame(1000 - 42), { slots: [100, 900] });
  packet('a first slot with less than an Ethernet header', pair => pair.frame(100 - 42), { slots: [13, 87] });
  packet('packets without an Ethernet header', pair => pair.frame(0).subarray(0, 13));
  for (const more of [19, 20]) {
    packet(`packets of ${1 + more} slots`, pair => pair.frame(192 + 10 * more - 42), {
      slots: [192, ...Array(more).fill(10)],
    });
  }
  packet('more bytes in slots than in the packet', pair => pair.frame(400), { slots: [400, 500], size: 450 });
  for (const unsound of ['that crosses its page', 'without the extra info that it tells of'] as const) {
    left(`a packet ${unsound}, which is fatal`, ({ sender }) => {
      const crosses = unsound === 'that crosses its page';
      sender.front.request(crosses ? { offset: 4000, size: 97 } : { size: 100, flags: NETTXF_EXTRA_INFO });
      if (crosses) return;
      sender.front.push();
      sender.front.kick();
      sender.path.scheduler.runForNow(1, 1000);
    });
  }
  left('a producer index beyond the ring, which is fatal', ({ sender }) => {
    sender.front.tx.reqProd = 258;
    sender.front.kick();
    sender.path.scheduler.runForNow(1, 1000);
    assert.match(sender.fatal[0], /claims 257 requests/);
  });

  /** For guests that are unusual from the start. */
  function from(
    name: string,
    options: ConstructorParameters<typeof RawPair>[1],
    packet: Packet = usual,
    posted = 60,
  ): void {
    test(name, async () => {
      const outcomes = [true, false].map(async fastPath => {
        const pair = new RawPair(fastPath, options);
        pair.receiver.front.postRx(posted);
        await pair.receiver.strike();
        for (let i = 0; i < 3; i++) await pair.send(packet.bytes(pair), packet.options);
        assert.equal(pair.path.fastPackets, 0);
        return pair.outcome();
      });
      const [fast, slow] = await Promise.all(outcomes);
      assert.deepEqual(fast, slow);
    });
  }

  from('what goes to a guest with two queues', { receiver: { queues: 2 } });
  from(
    'blank checksums that the receiver does not take',
    { receiver: { features: { ...ALL_FEATURES, noCsumOffload: true } } },
    { bytes: pair => pair.frame(500), options: { flags: BLANK } },
  );
  from(
    'blank checksums of IPv6 that the receiver does not take',
    { receiver: { features: { ...ALL_FEATURES, ipv6CsumOffload: false } } },
    { bytes: pair => pair.frame(500, { version: 6 }), options: { flags: BLANK } },
  );
  for (const [version, key, type] of [
    [4, 'gsoTcpv4', GSO_TCPV4],
    [6, 'gsoTcpv6', GSO_TCPV6],
  ] as const) {
    from(
      `GSO of IPv${version} that the receiver does not take`,
      { receiver: { features: { ...ALL_FEATURES, [key]: false } } },
      {
        bytes: pair => pair.frame(3000, { ...TCP, version }),
        options: { flags: BLANK, extras: gso(1000, type) },
      },
    );
  }
  from('what goes to a guest that takes one page only', {
    receiver: { features: { ...ALL_FEATURES, sg: false, gsoTcpv4: false, gsoTcpv6: false } },
  });
  from('what a receiver has too few requests for', {}, { bytes: pair => pair.frame(8900) }, 2);
  for (const who of ['sender', 'receiver'] as const) {
    from(`grants of version 2 of the ${who}`, { [who]: { domain: { grantVersion: 2 } } });
    from(`rings of the ${who} in other memory`, { [who]: { doubleFetch: true } });
  }

  test('what comes while others wait for the receiver, whom it does not overtake', async () => {
    const outcomes = [true, false].map(async fastPath => {
      const pair = new RawPair(fastPath);
      const { path, receiver } = pair;
      await pair.send(pair.frame(1));
      receiver.front.postRx(40);
      receiver.front.push();
      await pair.send(pair.frame(2));
      receiver.front.kickRx();
      await path.scheduler.runFor(20);
      assert.equal(path.fastPackets, 0);
      const outcome = pair.outcome();
      for (let i = 0; i < 8; i++) await pair.send(pair.frame(i));
      assert.equal(path.fastPackets > 0, fastPath);
      return [outcome, pair.outcome()];
    });
    const [fast, slow] = await Promise.all(outcomes);
    assert.deepEqual(fast, slow);
  });

  for (const who of ['sender', 'receiver'] as const) {
    test(`one packet of many whose grant of the ${who} is none, and all come in order`, async () => {
      const outcomes = [true, false].map(async fastPath => {
        const pair = new RawPair(fastPath);
        const { front } = pair[who];
        pair.receiver.front.postRx(200);
        for (let i = 0; i < 60; i++) pair.sender.front.packet(pair.frame(100 * i));
        const [ring, word] = who === 'sender' ? [front.tx, 0] : [front.rx, 1];
        for (const at of [7, 8, 40, 59]) ring.memory.u32[(ring.slot(at) >>> 2) + word] = 0xfffffff;
        await pair.strike();
        await pair.path.scheduler.runFor(20);
        assert.equal(pair.path.fastPackets, fastPath ? 7 : 0);
        return pair.outcome();
      });
      const [fast, slow] = await Promise.all(outcomes);
      assert.deepEqual(fast, slow);
    });
  }
});

describe('the fast path and what it keeps from one poll to the next', () => {
  /** A guest that has sent a packet each from two addresses; then the second is another guest's. */
  test('an address that moved to another port is not learned again by what others send', async () => {
    const pair = new RawPair(true);
    pair.receiver.front.postRx(20);
    const moved = [2, 0, 0, 0, 0, 5];
    pair.sender.front.packet(pair.frame(10, { source: moved }));
    await pair.send(pair.frame(10));
    pair.learn(moved, pair.receiver);
    await pair.send(pair.frame(10));
    assert.equal(pair.path.fastPackets, 3);
    assert.ok(addresses(pair).includes(`${Buffer.from(moved).toString('hex')} ${pair.receiver.vif.name}`));
  });

  test('addresses that are used in each poll stay known', async () => {
    const pair = new RawPair(true);
    pair.receiver.front.postRx(20);
    for (let i = 0; i < 5; i++) {
      await pair.send(pair.frame(10));
      await pair.path.scheduler.runFor(100_000);
      pair.learn(pair.receiver.mac, pair.receiver);
    }
    assert.equal(pair.path.fastPackets, 5);
    assert.ok(addresses(pair).some(line => line.endsWith(pair.sender.vif.name)));
  });

  test('a route does not hold again when polls are counted from the start again', async () => {
    const pair = new RawPair(true);
    const { path, sender, receiver } = pair;
    receiver.front.postRx(20);
    await pair.send(pair.frame(10));
    assert.equal(path.fastPackets, 1);
    const { rspProd } = receiver.front.rx;
    receiver.vif.disconnect();
    const fastPath = sender.vif.queues[0].fastPath as unknown as { poll: number };
    const { poll } = fastPath;
    fastPath.poll = 0x3fffffff;
    for (let i = 0; i < 2 * poll + 100; i++) await pair.send(pair.frame(10));
    assert.ok(fastPath.poll < 0x3fffffff && fastPath.poll > poll);
    assert.equal(path.fastPackets, 1);
    assert.equal(receiver.front.rx.rspProd, rspProd);
  });

  test('a guest that changes its address whenever one looks has no poll for its own', () => {
    const pair = new RawPair(true);
    const { path, sender, receiver } = pair;
    receiver.front.postRx(20);
    receiver.front.push();
    sender.front.packet(pair.frame(10));
    sender.front.push();
    const { fastPath, block } = sender.vif.queues[0] as unknown as Innards;
    const { module } = block;
    const { address } = sender.front.pages.at(-1)!;
    const { u8 } = sender.domain.platform.memory.memory;
    let looks = 0;
    const forward = (at: number, limit: number): number => {
      u8[address + 10] = ++looks;
      return before(at, limit);
    };
    const before = path.fastPathModule!.forward;
    Object.defineProperty(module, 'forward', { value: forward, configurable: true });
    assert.equal(fastPath.forward(64), 0);
    assert.ok(looks <= 66, `${looks} looks at one packet`);
  });

  for (const known of [true, false]) {
    const when = known ? 'of which it knew' : 'that is new';
    test(`a frame ${when}, from the address that others go to: those go where it came from`, async () => {
      const outcomes = [true, false].map(async fastPath => {
        const pair = new RawPair(fastPath);
        const { sender, receiver, path } = pair;
        path.bridge.portOf(sender.vif.dev as NetDevice)!.hairpin = true;
        for (const { front } of [sender, receiver]) front.postRx(40);
        const there = pair.frame(100);
        const back = pair.frame(200, { source: receiver.mac, destination: sender.mac });
        await pair.send(there);
        if (known) await pair.send(back);
        pair.learn(receiver.mac, receiver);
        for (const bytes of [there, back, there]) sender.front.packet(bytes);
        await pair.strike();
        return pair.outcome();
      });
      const [fast, slow] = await Promise.all(outcomes);
      assert.deepEqual(fast, slow);
    });
  }

  test('a guest that posted too little once, and takes what came since, has not stalled', async () => {
    const pair = new RawPair(true);
    const { path, receiver, sender } = pair;
    await pair.send(pair.frame(100));
    await path.scheduler.runFor(11_000);
    assert.equal(receiver.vif.queues[0].stats.rxExpired, 1);
    receiver.front.postRx(5);
    for (let i = 0; i < 5; i++) sender.front.packet(pair.frame(100 + i));
    await pair.strike();
    assert.equal(receiver.front.rxPackets().length, 5);
    await path.scheduler.runFor(RX_STALL_MS);
    assert.deepEqual([receiver.vif.stalledQueues, receiver.vif.dev.carrierOk], [0, true]);
  });

  test('a frame to the address that it is from, which was somewhere else', async () => {
    const outcomes = [true, false].map(async fastPath => {
      const pair = new RawPair(fastPath);
      pair.receiver.front.postRx(40);
      await pair.send(pair.frame(100, { source: pair.receiver.mac }));
      await pair.send(pair.frame(100));
      return pair.outcome();
    });
    const [fast, slow] = await Promise.all(outcomes);
    assert.deepEqual(fast, slow);
  });

  test('a filter that has the vif disconnect finds nothing written to pages that were given back', async () => {
    const pair = new RawPair(true);
    const { sender, path } = pair;
    const { memory } = path.dom0.platform;
    const reused: number[] = [];
    sender.vif.filter = () => {
      if (reused.length > 0) return FILTER_PASS;
      sender.vif.disconnect();
      for (let i = 0; i < 4; i++) reused.push(memory.allocPage());
      return FILTER_PASS;
    };
    const { page } = sender.vif.queues[0].fastPath!.block as unknown as { page: number };
    for (let i = 0; i < 20; i++) sender.front.packet(pair.frame(100 * i));
    await pair.strike();
    assert.ok(reused.includes(page));
    for (const one of reused) {
      const bytes = memory.memory.u8.subarray(one * 4096, (one + 1) * 4096);
      assert.ok(bytes.every(byte => byte === 0));
      memory.freePage(one);
    }
  });

  test('a backend without a page to spare connects without it', () => {
    const pair = new RawPair(true);
    const { domain } = pair.path.dom0;
    pair.sender.disconnect();
    domain.limits.maxPages = domain.pages;
    pair.sender.connect();
    assert.equal(pair.sender.vif.queues[0].fastPath, null);
  });
});

interface Innards {
  readonly fastPath: { forward(limit: number): number };
  readonly block: { readonly module: object };
}
