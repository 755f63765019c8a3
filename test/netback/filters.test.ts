import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, XEN_NETIF_CTRL_HASH_TYPE } from '../../src/abi/index.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, CHECKSUM_UNNECESSARY } from '../../src/net/index.js';
import {
  CreditLimiter,
  FILTER_DROP,
  FILTER_PASS,
  type FilteredPacket,
  MULTICAST_MAX,
  MulticastFilter,
  parseRate,
  SourceFilter,
} from '../../src/netback/index.js';
import { SeededScheduler } from '../../src/platform/sim/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath, type Guest } from '../support/data-path.js';
import { collect, packetFrom, partial } from '../support/packets.js';
import { RawPair } from '../support/raw-pair.js';

function frame(from: Guest, to: Guest, changes: Partial<Parameters<typeof buildFrame>[0]> = {}): Uint8Array {
  const { address: source } = from.dev;
  const { address: destination } = to.dev;
  return buildFrame({
    source: [...source],
    destination: [...destination],
    payload: new Uint8Array(50),
    ...changes,
  });
}

async function pair(seed: number) {
  const path = new DataPath(seed);
  const a = path.guest();
  const b = path.guest();
  const got = collect(b.dev);
  const send = async (bytes: Uint8Array) => {
    const before = got.length;
    a.dev.xmit(packetFrom(a.dev, bytes));
    await path.settle();
    return got.length - before;
  };
  return { path, a, b, got, send };
}

describe('the rate of a vif', () => {
  test('is read as "<bytes>,<microseconds>"', () => {
    assert.deepEqual(parseRate('1250000,50000'), { bytes: 1250000, usec: 50000 });
    for (const none of [undefined, '', '0,50000', '1,0', '1', '1,2,3', '-1,5', 'a,b', '1, 2']) {
      assert.equal(parseRate(none), null, `${none}`);
    }
  });

  test('bounds what passes in a while, however much is sent', async () => {
    const { path, a, got } = await pair(71);
    a.vif.setRate({ bytes: 10_000, usec: 10_000 });
    for (let i = 0; i < 1000; i++) a.dev.xmit(packetFrom(a.dev, new Uint8Array(1000).fill(1)));
    const start = path.scheduler.now();
    a.dev.rxHandler = null;
    await path.scheduler.runFor(200);
    const bytes = a.vif.dev.stats.rxBytes;
    const elapsed = path.scheduler.now() - start;
    assert.ok(bytes <= 10_000 * (elapsed / 10 + 2), `${bytes} bytes in ${elapsed} ms`);
    assert.ok(bytes >= 10_000 * (elapsed / 10 - 2), `${bytes} bytes in ${elapsed} ms`);
    assert.equal(got.length, 0);
    a.vif.setRate(null);
    await path.settle();
    assert.equal(a.dev.txQueues[0].length, 0, 'without a rate all is sent');
  });

  for (const split of [true, false]) {
    test(`keeps no packets from a guest that waits for credit (split event channels: ${split})`, async () => {
      const pair = new RawPair(true, { receiver: { split } });
      const { path, sender, receiver } = pair;
      const { front } = receiver;
      receiver.vif.setRate({ bytes: 500, usec: 5_000_000 });
      for (let i = 0; i < 3; i++) front.packet(receiver.frame(sender.mac, 400));
      front.push();
      front.kick();
      await path.scheduler.runFor(1);
      assert.equal(front.txResponses().length, 1, 'the others wait for credit');
      sender.front.packet(pair.frame(100));
      sender.front.push();
      sender.front.kick();
      await path.scheduler.runFor(1);
      front.postRx(1);
      front.push();
      front.kick();
      await path.scheduler.runFor(1);
      assert.equal(front.rxPackets().length, 1);
      assert.equal(front.txResponses().length, 0);
    });
  }

  test('a packet larger than one interval gets through in the end', async () => {
    const scheduler = new SeededScheduler(1, {
      yieldToMicrotasks: () => new Promise(resolve => setImmediate(resolve)),
    });
    let again = 0;
    const limiter = new CreditLimiter(scheduler, { bytes: 1000, usec: 1000 });
    let waits = 0;
    const onCredit = () => void again++;
    while (!limiter.take(60_000, onCredit)) {
      waits++;
      const before = again;
      await scheduler.runUntil(() => again > before);
    }
    assert.equal(waits, 59);
  });

  test('keeps what one queue waits for from another that wants less', async () => {
    const { path } = await pair(79);
    const limiter = new CreditLimiter(path.scheduler, { bytes: 1000, usec: 1000 });
    const [large, small] = [() => {}, () => {}];
    assert.ok(limiter.take(900, small));
    assert.equal(limiter.take(200, large), false);
    assert.equal(limiter.take(50, small), false);
    await path.scheduler.runFor(1);
    assert.ok(limiter.take(200, large));
  });
});

describe('multicast control', () => {
  test('keeps 64 addresses, each once', () => {
    const filter = new MulticastFilter();
    const address = (i: number) => Uint8Array.of(1, 0, 0x5e, 0, 0, i);
    for (let i = 0; i < MULTICAST_MAX; i++) assert.ok(filter.add(address(i)));
    assert.ok(filter.add(address(3)), 'one that is there already');
    assert.equal(filter.add(address(64)), false);
    assert.equal(filter.size, 64);
    assert.ok(filter.allows(address(5), 0));
    filter.delete(address(5));
    assert.equal(filter.allows(address(5), 0), false);
    assert.ok(filter.allows(Uint8Array.of(255, 255, 255, 255, 255, 255), 0), 'broadcast');
    assert.ok(filter.allows(Uint8Array.of(0, 1, 2, 3, 4, 5), 0), 'unicast');
  });

  test('lets only the groups through that the guest asked for', async () => {
    const { b, send, a } = await pair(72);
    const group = [1, 0, 0x5e, 0, 0, 9];
    const toGroup = frame(a, b, { destination: group });
    assert.equal(await send(toGroup), 1, 'without control, all');
    b.vif.multicastControl = true;
    assert.equal(await send(toGroup), 0);
    b.vif.multicast.add(Uint8Array.from(group));
    assert.equal(await send(toGroup), 1);
    assert.equal(await send(frame(a, b, { destination: Array(6).fill(255) })), 1);
    assert.equal(b.vif.stats.multicastFiltered, 1);
    b.replaceBackend();
    assert.equal(await send(toGroup), 0, 'a new connection has asked for none');
  });
});

describe('the source filter', () => {
  const ip = (...octets: number[]) => Uint8Array.from(octets);

  test('drops what is sent from other addresses', async () => {
    const { a, b, send } = await pair(73);
    const mac = a.dev.address.slice();
    a.vif.sourceFilter = new SourceFilter({ macs: [mac], ipv4: [ip(10, 0, 0, 1)], ipv6: [] });
    assert.equal(await send(frame(a, b)), 1, 'as itself');
    assert.equal(await send(frame(a, b, { source: [2, 2, 2, 2, 2, 2] })), 0, 'from another MAC address');
    assert.equal(await send(frame(a, b, { version: 6 })), 0, 'from an IPv6 address');
    a.vif.sourceFilter = new SourceFilter({ ipv4: [ip(10, 0, 0, 9)] });
    assert.equal(await send(frame(a, b)), 0, 'from another IPv4 address');
    assert.equal(await send(frame(a, b, { version: 6 })), 1, 'IPv6 is not restricted');
    assert.equal(a.vif.stats.spoofed, 3);
  });

  test('checks the sender in ARP, and whole ARP only', async () => {
    const { a, b, send } = await pair(74);
    const mac = [...a.dev.address];
    a.vif.sourceFilter = new SourceFilter({ macs: [a.dev.address.slice()], ipv4: [ip(10, 0, 0, 1)] });
    const arp = (senderMac: number[], sender: number[], target = [10, 0, 0, 7], operation = 1) => {
      const fixed = [0, 1, 8, 0, 6, 4, 0, operation];
      const addresses = [...senderMac, ...sender, ...Array(6).fill(0), ...target];
      return Uint8Array.of(...b.dev.address, ...mac, 8, 6, ...fixed, ...addresses);
    };
    assert.equal(await send(arp(mac, [10, 0, 0, 1])), 1);
    const none = [0, 0, 0, 0];
    for (const operation of [1, 2]) {
      assert.equal(await send(arp(mac, none, [10, 0, 0, 1], operation)), 1, 'a probe for its own address');
      // To who probes it, too, a conflict (RFC 5227).
      assert.equal(await send(arp(mac, none, [10, 0, 0, 7], operation)), 0, 'a probe for another’s address');
      assert.equal(await send(arp(mac, none, none, operation)), 0, 'a probe for none');
    }
    assert.equal(await send(arp(mac, [10, 0, 0, 2])), 0);
    assert.equal(await send(arp([2, 2, 2, 2, 2, 2], [10, 0, 0, 1])), 0);
    assert.equal(await send(arp(mac, [10, 0, 0, 1]).subarray(0, 38)), 0, 'cut short');
    assert.equal(await send(arp(mac, none, [10, 0, 0, 1]).subarray(0, 41)), 0, 'cut short in the target');
    const discover = frame(a, b, { udp: true, sourcePort: 68, destinationPort: 67 });
    discover.set(none, 26);
    assert.equal(await send(discover), 1, 'DHCP from the unspecified address');
    a.vif.sourceFilter = new SourceFilter({ macs: [a.dev.address.slice()] });
    assert.equal(await send(arp(mac, none)), 1, 'without a list any probe');
  });

  test('drops IPv4 that hides its addresses', async () => {
    const { a, b, send } = await pair(75);
    a.vif.sourceFilter = new SourceFilter({ ipv4: [ip(10, 0, 0, 1)] });
    const bytes = frame(a, b);
    bytes[14] = 0x4f;
    assert.equal(await send(bytes.subarray(0, 40)), 0);
  });
});

describe('the source filter and IPv6', () => {
  const OWN = [0xfd, ...Array(14).fill(0), 1];
  const OTHER = [0xfd, ...Array(14).fill(0), 9];
  const LINK_LOCAL = [0xfe, 0x80, ...Array(13).fill(0), 1];
  const UNSPECIFIED = Array(16).fill(0);
  const ALL_NODES = [0xff, 2, ...Array(13).fill(0), 1];
  const OTHER_MAC = [2, 2, 2, 2, 2, 2];
  const [RS, RA, NS, NA, REDIRECT] = [133, 134, 135, 136, 137];
  const [SLLA, TLLA] = [1, 2];
  const ECHO_REQUEST = [128, 0, 0, 0, 0, 0, 0, 0];

  const option = (type: number, mac: readonly number[]) => [type, 1, ...mac];
  /** A message of neighbour discovery; `about` is what it has behind its first eight octets. */
  const discovery = (type: number, about: readonly number[], ...options: number[][]) => [
    ...[type, 0, 0, 0, 0x20, 0, 0, 0],
    ...about,
    ...options.flat(),
  ];

  async function filtered(seed: number, lists: { macs?: false; ipv6?: number[][] }) {
    const { a, b, send } = await pair(seed);
    const mac = [...a.dev.address];
    a.vif.sourceFilter = new SourceFilter({
      macs: lists.macs === false ? undefined : [Uint8Array.from(mac)],
      ipv6: lists.ipv6?.map(each => Uint8Array.from(each)),
    });
    const ethernet = (type: readonly number[], payload: readonly number[]) =>
      send(Uint8Array.of(...b.dev.address, ...mac, ...type, ...payload));
    const ipv6 = (
      source: readonly number[],
      message: readonly number[],
      next = 58,
      claimed = message.length,
    ) => [0x60, 0, 0, 0, claimed >> 8, claimed & 255, next, 255, ...source, ...ALL_NODES, ...message];
    /** @returns how many arrived */
    const from = (...packet: Parameters<typeof ipv6>) => ethernet([0x86, 0xdd], ipv6(...packet));
    return { mac, vif: a.vif, ethernet, ipv6, from };
  }

  test('lets the addresses of its list send, and the unspecified one', async () => {
    const { from, vif } = await filtered(80, { ipv6: [OWN, LINK_LOCAL] });
    assert.equal(await from(OWN, ECHO_REQUEST), 1);
    assert.equal(await from(LINK_LOCAL, ECHO_REQUEST), 1);
    assert.equal(await from(UNSPECIFIED, ECHO_REQUEST), 1);
    assert.equal(await from(OTHER, ECHO_REQUEST), 0);
    assert.equal(
      await from([...LINK_LOCAL.slice(0, 15), 2], ECHO_REQUEST),
      0,
      "another's link-local address",
    );
    assert.equal(await from(OWN, ECHO_REQUEST, 58, 100), 0, 'shorter than it claims');
    assert.equal(vif.stats.spoofed, 3);
  });

  test('has a guest advertise its own addresses only', async () => {
    const { mac, from } = await filtered(81, { ipv6: [OWN, LINK_LOCAL] });
    assert.equal(await from(OWN, discovery(NA, OWN, option(TLLA, mac))), 1);
    assert.equal(await from(LINK_LOCAL, discovery(NA, OWN)), 1);
    assert.equal(await from(LINK_LOCAL, discovery(NA, OTHER, option(TLLA, mac))), 0);
    assert.equal(await from(UNSPECIFIED, discovery(NA, OTHER)), 0);
    assert.equal(await from(OWN, discovery(NA, UNSPECIFIED)), 0);
  });

  test('has a guest ask whether an address is taken for its own only', async () => {
    const { mac, from } = await filtered(82, { ipv6: [OWN] });
    assert.equal(await from(OWN, discovery(NS, OTHER, option(SLLA, mac))), 1, 'resolution');
    assert.equal(await from(UNSPECIFIED, discovery(NS, OWN)), 1);
    assert.equal(await from(UNSPECIFIED, discovery(NS, OTHER)), 0);
  });

  for (const ipv6 of [undefined, [OWN]]) {
    test(`takes link-layer addresses of the guest alone, ${ipv6 ? 'with' : 'without'} a list of IPv6`, async () => {
      const { mac, from } = await filtered(83, { ipv6 });
      assert.equal(await from(OWN, discovery(NA, OWN, option(TLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(NA, OWN, option(TLLA, mac), option(TLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(NA, OWN, option(SLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(NS, OTHER, option(SLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(RS, [], option(SLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(RA, Array(8).fill(0), option(SLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(REDIRECT, [...OTHER, ...OTHER], option(TLLA, OTHER_MAC))), 0);
      assert.equal(await from(OWN, discovery(RS, [], option(SLLA, mac))), 1);
      assert.equal(
        await from(OWN, discovery(NS, OTHER, option(14, OTHER_MAC), option(SLLA, mac))),
        1,
        'a nonce',
      );
    });
  }

  test('takes other link-layer addresses without a list of MAC addresses', async () => {
    const { from } = await filtered(84, { macs: false, ipv6: [OWN] });
    assert.equal(await from(OWN, discovery(NA, OWN, option(TLLA, OTHER_MAC))), 1);
    assert.equal(await from(OWN, discovery(NA, OTHER, option(TLLA, OTHER_MAC))), 0);
  });

  test('has only a guest without a list of IPv6 addresses be a router', async () => {
    const advertisement = (mac: number[]) => discovery(RA, Array(8).fill(0), option(SLLA, mac));
    const redirect = discovery(REDIRECT, [...OTHER, ...OTHER]);
    const host = await filtered(85, { ipv6: [OWN] });
    assert.equal(await host.from(OWN, advertisement(host.mac)), 0);
    assert.equal(await host.from(OWN, redirect), 0);
    const router = await filtered(86, {});
    assert.equal(await router.from(OWN, advertisement(router.mac)), 1);
    assert.equal(await router.from(OWN, redirect), 1);
  });

  test('drops neighbour discovery whose length does not fit', async () => {
    const { mac, from } = await filtered(87, { ipv6: [OWN] });
    const whole = discovery(NA, OWN, option(TLLA, mac));
    for (let length = 0; length < whole.length; length++) {
      // 24 octets are an advertisement without options.
      assert.equal(await from(OWN, whole.slice(0, length)), length === 24 ? 1 : 0, `${length} octets`);
    }
    assert.equal(await from(OWN, discovery(NA, OWN, [0, 0, ...mac])), 0, 'an option of length 0');
    assert.equal(await from(OWN, discovery(NA, OWN, [TLLA, 2, ...mac])), 0, 'one longer than the message');
    assert.equal(await from(OWN, whole, 58, 12), 0, 'what is behind the message is not part of it');
    const macsOnly = await filtered(91, {});
    assert.equal(await macsOnly.from(OWN, discovery(NA, [])), 0, 'without its target');
  });

  test('drops neighbour discovery that goes on behind the head, whatever a packet before it left there', async () => {
    const { mac, from } = await filtered(92, { ipv6: [OWN] });
    const fill = discovery(NA, OWN, ...Array(50).fill(option(TLLA, mac)));
    assert.equal(await from(OWN, [...fill, 14, 1], 58, fill.length), 1);
    assert.equal(await from(OWN, discovery(NA, OWN, ...Array(51).fill(option(TLLA, mac)))), 0);
  });

  test('drops neighbour discovery behind extension headers and in fragments', async () => {
    const { from } = await filtered(88, { ipv6: [OWN] });
    const message = discovery(NA, OWN);
    const [HOPOPTS, FRAGMENT, DSTOPTS, ICMPV6] = [0, 44, 60, 58];
    const options = (next: number) => [next, 0, 1, 4, 0, 0, 0, 0];
    const fragment = (next: number, offset: number, more: number) => [
      next,
      0,
      offset >> 8,
      (offset & 0xf8) | more,
      0,
      0,
      0,
      7,
    ];
    assert.equal(await from(OWN, [...options(ICMPV6), ...ECHO_REQUEST], HOPOPTS), 1);
    assert.equal(await from(OWN, [...options(ICMPV6), ...message], HOPOPTS), 0);
    assert.equal(await from(OWN, [...fragment(ICMPV6, 0, 0), ...message], FRAGMENT), 0, 'an atomic fragment');
    assert.equal(await from(OWN, [...fragment(ICMPV6, 0, 1), ...message], FRAGMENT), 0);
    assert.equal(await from(OWN, [...fragment(ICMPV6, 0, 1), ...ECHO_REQUEST], FRAGMENT), 1);
    assert.equal(await from(OWN, fragment(ICMPV6, 0, 1), FRAGMENT), 0, 'an empty first fragment');
    assert.equal(await from(OWN, [...fragment(ICMPV6, 8, 0), ...message], FRAGMENT), 1, 'not the first');
    assert.equal(await from(OWN, [...fragment(DSTOPTS, 0, 1), ...options(ICMPV6)], FRAGMENT), 0);
    assert.equal(await from(OWN, [...fragment(17, 0, 1), ...ECHO_REQUEST], FRAGMENT), 1, 'UDP');
  });

  test('drops what hides addresses behind tags or SNAP', async () => {
    const { mac, ethernet, ipv6 } = await filtered(89, { ipv6: [OWN] });
    const own = ipv6(OWN, discovery(NA, OWN, option(TLLA, mac)));
    const other = ipv6(OTHER, ECHO_REQUEST);
    const tags = (count: number, type: readonly number[]) =>
      Array(count)
        .fill([...type, 0, 5])
        .flat();
    for (const type of [
      [0x81, 0],
      [0x88, 0xa8],
    ]) {
      for (let count = 0; count <= 5; count++) {
        const tagged = [...tags(count, type), 0x86, 0xdd];
        assert.equal(await ethernet(tagged, other), 0, `${count} tags of ${type}`);
        assert.equal(await ethernet(tagged, own), count <= 2 ? 1 : 0, `${count} tags of ${type}`);
      }
    }
    assert.equal(await ethernet([...tags(1, [0x91, 0]), 0x86, 0xdd], own), 0);
    assert.equal(await ethernet([...tags(1, [0x92, 0]), 0x86, 0xdd], own), 0);
    const snap = [0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd];
    assert.equal(await ethernet([0, own.length + snap.length], [...snap, ...own]), 0);
    assert.equal(await ethernet([0, 3], [0x42, 0x42, 3]), 1, 'a frame of a spanning tree');
    assert.equal(await ethernet([0x88, 0xcc], own), 1, 'other protocols have no such addresses');
    assert.equal(await ethernet([0x81, 0], [0, 5]), 0, 'a tag that is cut short');
  });

  test('holds ARP to the MAC addresses when these are all there is', async () => {
    const { mac, ethernet } = await filtered(90, {});
    const arp = (sender: readonly number[]) => [
      0,
      1,
      8,
      0,
      6,
      4,
      0,
      2,
      ...sender,
      10,
      0,
      0,
      1,
      ...Array(10).fill(0),
    ];
    assert.equal(await ethernet([8, 6], arp(mac)), 1);
    assert.equal(await ethernet([8, 6], arp(OTHER_MAC)), 0);
  });
});

describe("the user's filter", () => {
  test('passes, drops, rewrites and redirects', async () => {
    const { path, a, b, got, send } = await pair(76);
    const c = path.guest();
    const toC = collect(c.dev);
    const seen: string[] = [];
    a.vif.filter = packet => {
      seen.push(`${packet.device} ${packet.fromGuest} ${packet.length} ${packet.u16(12).toString(16)}`);
      const port = packet.u16(36);
      if (port === 1) return FILTER_DROP;
      if (port === 2) packet.setU16(36, 4242);
      if (port === 3) return packet.redirectTo(c.vif.dev.name);
      if (port === 4) return packet.redirectTo('nowhere');
      if (port === 5) packet.u8(5000);
      return FILTER_PASS;
    };
    assert.equal(await send(frame(a, b, { destinationPort: 9 })), 1);
    assert.equal(await send(frame(a, b, { destinationPort: 1 })), 0);
    assert.equal(await send(frame(a, b, { destinationPort: 2 })), 1);
    assert.equal((got[1][36] << 8) | got[1][37], 4242);
    assert.equal(await send(frame(a, b, { destinationPort: 3 })), 0);
    assert.equal(toC.length >= 1, true);
    assert.deepEqual(toC.at(-1), frame(a, b, { destinationPort: 3 }));
    assert.equal(await send(frame(a, b, { destinationPort: 4 })), 0);
    assert.equal(await send(frame(a, b, { destinationPort: 5 })), 0, 'one that throws drops');
    assert.deepEqual(
      [a.vif.stats.filterDrops, a.vif.stats.filterRedirects, a.vif.stats.filterErrors],
      [3, 1, 1],
    );
    assert.equal(seen[0], `${a.vif.dev.name} true 104 800`);
    assert.deepEqual([a.fatal, b.fatal], [[], []]);
  });

  test('ends what was known of the checksum when it writes, not what is to be done', async () => {
    const { path, a, b } = await pair(78);
    const known: number[] = [];
    b.dev.rxHandler = packet => {
      known.push(packet.checksum);
      packet.release();
    };
    const send = async (checksum: number): Promise<number> => {
      const packet = packetFrom(a.dev, frame(a, b));
      if (checksum === CHECKSUM_PARTIAL) partial(packet, a.dev);
      else packet.checksum = checksum;
      a.dev.xmit(packet);
      await path.settle();
      return known.pop()!;
    };
    const writes: [name: string, write: (packet: FilteredPacket) => void][] = [
      ['u8', packet => packet.setU8(29, 7)],
      ['u16', packet => packet.setU16(28, 7)],
      ['u32', packet => packet.setU32(26, 7)],
    ];
    for (const { vif } of [a, b]) {
      vif.filter = packet => (packet.u8(29) === 1 ? FILTER_PASS : FILTER_DROP);
      assert.equal(await send(CHECKSUM_UNNECESSARY), CHECKSUM_UNNECESSARY, 'reading changes nothing');
      for (const [name, write] of writes) {
        let isPartial = false;
        vif.filter = packet => {
          isPartial = packet.checksumIsPartial;
          write(packet);
          return FILTER_PASS;
        };
        assert.equal(await send(CHECKSUM_UNNECESSARY), CHECKSUM_NONE, name);
        assert.equal(isPartial, false);
        assert.equal(await send(CHECKSUM_PARTIAL), CHECKSUM_PARTIAL, name);
        assert.equal(isPartial, true);
      }
      vif.filter = null;
    }
  });

  test('ends the hash of what it writes to', async () => {
    const { path, a, b } = await pair(79);
    Object.assign(b.vif.hash, { algorithm: XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, flags: 15 });
    for (let i = 0; i < 40; i++) b.vif.hash.key[i] = i * 5 + 1;
    const hashes: [number, number][] = [];
    b.dev.rxHandler = packet => {
      hashes.push([packet.hashType, packet.hash]);
      packet.release();
    };
    const send = async () => {
      a.dev.xmit(packetFrom(a.dev, frame(a, b)));
      await path.settle();
      return hashes.pop()!;
    };
    const [type, hash] = await send();
    assert.equal(type, XEN_NETIF_CTRL_HASH_TYPE.IPV4_TCP);
    b.vif.filter = packet => (packet.u16(36) === 2000 ? FILTER_PASS : FILTER_DROP);
    assert.deepEqual(await send(), [type, hash], 'reading changes nothing');
    b.vif.filter = packet => {
      packet.setU16(36, 4242);
      return FILTER_PASS;
    };
    assert.equal((await send())[0], -1, 'on its way to the guest');
    a.vif.filter = b.vif.filter;
    b.vif.filter = null;
    const [again, other] = await send();
    assert.equal(again, type);
    assert.notEqual(other, hash, 'what the sender’s filter wrote is hashed as it is');
  });

  test('can ask for more of a packet than its head', async () => {
    const { a, b, send } = await pair(77);
    const payload = Uint8Array.from({ length: 1400 }, (_, i) => i & 0xff);
    let last = -1;
    a.vif.filter = packet => {
      if (packet.length < 1000) return FILTER_PASS;
      assert.ok(packet.available < 400);
      assert.equal(packet.pull(400), true);
      assert.equal(packet.pull(100_000), false);
      last = packet.u8(399);
      return FILTER_PASS;
    };
    assert.equal(await send(frame(a, b, { payload })), 1);
    assert.equal(last, (399 - 54) & 0xff);
  });
});
