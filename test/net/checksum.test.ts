import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  checksumIsRight,
  completeChecksum,
  fillChecksums,
  setupPartialChecksum,
  sumBytes,
  sumPacket,
  swap16,
  validateChecksum,
} from '../../src/net/checksum.js';
import { Headers, PARSED_L2, PARSED_L3, PARSED_L4 } from '../../src/net/headers.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, CHECKSUM_UNNECESSARY } from '../../src/net/packet.js';
import { buildFrame, checksumsAreRight, referenceSum } from './frames.js';
import { TestKernel } from './kernel.js';

test('a sum over any bytes at any address is that of RFC 1071', () => {
  const { memory } = new TestKernel({ pages: 64 });
  const { u8 } = memory.memory;
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 3000 }), fc.nat(64), (bytes, at) => {
      u8.set(bytes, at);
      assert.equal(swap16(sumBytes(memory.memory, at, bytes.length)), referenceSum(bytes));
    }),
  );
  u8.fill(0xff, 0, 130_000);
  assert.equal(swap16(sumBytes(memory.memory, 1, 129_999)), referenceSum(u8.slice(1, 130_000)));
});

test('a sum over fragments of any sizes is that over the whole', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 60, maxLength: 6000 }),
      fc.array(fc.integer({ min: 1, max: 700 }), { maxLength: 12 }),
      fc.nat(100),
      fc.nat(60),
      fc.nat(50),
      (bytes, sizes, linear, start, cut) => {
        const kernel = new TestKernel({ pages: 64 });
        const packet = kernel.packet(bytes, { sizes, linear: Math.max(14, linear) });
        const end = Math.max(start, bytes.length - cut);
        assert.equal(swap16(sumPacket(packet, start, end)), referenceSum(bytes.slice(start, end)));
      },
    ),
  );
});

test('a partial checksum is set up and completed for every kind of TCP and UDP packet', () => {
  const headers = new Headers();
  fc.assert(
    fc.property(
      fc.record({
        version: fc.constantFrom(4 as const, 6 as const),
        udp: fc.boolean(),
        vlan: fc.option(fc.nat(4095), { nil: undefined }),
        payload: fc.uint8Array({ maxLength: 2000 }),
      }),
      fc.array(fc.integer({ min: 1, max: 500 }), { maxLength: 8 }),
      (frame, sizes) => {
        const kernel = new TestKernel({ pages: 64 });
        const packet = kernel.packet(buildFrame(frame), { linear: 90, sizes });
        assert.equal(headers.parse(packet), PARSED_L4);
        assert.ok(setupPartialChecksum(packet, headers, true));
        assert.equal(packet.checksum, CHECKSUM_PARTIAL);
        assert.ok(completeChecksum(packet));
        assert.equal(packet.checksum, CHECKSUM_NONE);
        if (frame.version === 4) fillChecksums(packet, headers);
        assert.ok(checksumsAreRight(kernel.bytes(packet), frame.udp));
        assert.ok(validateChecksum(packet, headers));
        assert.equal(packet.checksum, CHECKSUM_UNNECESSARY);
      },
    ),
  );
});

test('one wrong bit anywhere behind the IP header is found', () => {
  const headers = new Headers();
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1, maxLength: 300 }),
      fc.nat(),
      fc.nat(7),
      (payload, where, bit) => {
        const kernel = new TestKernel({ pages: 64 });
        const packet = kernel.packet(buildFrame({ payload }));
        headers.parse(packet);
        fillChecksums(packet, headers);
        assert.ok(checksumIsRight(packet, headers));
        const at = packet.data + headers.l4 + (where % (20 + payload.length));
        packet.memory.u8[at] ^= 1 << bit;
        // The parsed lengths stay; a changed data offset is no checksum's business.
        assert.equal(checksumIsRight(packet, headers), false);
      },
    ),
  );
});

test('UDP: a zero sum is sent as 0xffff, a zero field over IPv4 means no checksum and over IPv6 is wrong', () => {
  const kernel = new TestKernel();
  const headers = new Headers();
  for (const version of [4, 6] as const) {
    const bytes = buildFrame({ version, udp: true, payload: Uint8Array.of(0, 0) });
    const packet = kernel.packet(bytes);
    headers.parse(packet);
    if (version === 4) fillChecksums(packet, headers);
    const field = packet.data + headers.l4 + 6;
    packet.memory.u8.fill(0, field, field + 2);
    assert.equal(checksumIsRight(packet, headers), version === 4);
    // A payload that makes the sum of all else 0xffff, so that the checksum is 0.
    setupPartialChecksum(packet, headers, true);
    completeChecksum(packet);
    const sum = (packet.memory.u8[field] << 8) | packet.memory.u8[field + 1];
    packet.memory.u8[field + 2] = sum >> 8;
    packet.memory.u8[field + 3] = sum & 255;
    setupPartialChecksum(packet, headers, true);
    completeChecksum(packet);
    assert.deepEqual([...packet.memory.u8.slice(field, field + 2)], [0xff, 0xff]);
    packet.release();
  }
});

test('headers: options, extension headers, fragments and lies', () => {
  const kernel = new TestKernel();
  const headers = new Headers();
  const parse = (bytes: Uint8Array, linear?: number): number => {
    const packet = kernel.packet(bytes, { linear });
    const level = headers.parse(packet);
    packet.release();
    return level;
  };
  const payload = new Uint8Array(100);
  assert.equal(
    parse(buildFrame({ payload, extra: new Uint8Array(40), tcpOptions: new Uint8Array(40) })),
    PARSED_L4,
  );
  assert.deepEqual([headers.l3Length, headers.l4, headers.l4Length, headers.length], [60, 74, 60, 134]);
  const hopByHop = Uint8Array.of(6, 1, ...Array(14).fill(0));
  assert.equal(parse(buildFrame({ version: 6, payload, extra: hopByHop, firstHeader: 0 })), PARSED_L4);
  assert.deepEqual([headers.l3Length, headers.protocol], [56, 6]);
  const fragment = Uint8Array.of(6, 0, 0, 1, 0, 0, 0, 1);
  assert.equal(parse(buildFrame({ version: 6, payload, extra: fragment, firstHeader: 44 })), PARSED_L3);
  assert.ok(headers.fragment);
  const atomic = Uint8Array.of(6, 0, 0, 0, 0, 0, 0, 1);
  assert.equal(parse(buildFrame({ version: 6, payload, extra: atomic, firstHeader: 44 })), PARSED_L4);
  assert.equal(parse(buildFrame({ payload, vlan: 5 })), PARSED_L4);
  assert.deepEqual([headers.vlanTags, headers.vlanTci], [1, 5]);

  const beyond = buildFrame({ version: 6, payload, extra: hopByHop, firstHeader: 0 });
  beyond.set([0, 8], 18);
  assert.equal(parse(beyond), PARSED_L2, 'an extension header beyond the packet, with padding behind that');

  // Too little in the head: the parser says how much it wants.
  for (const [linear, needed] of [
    [10, 14],
    [20, 34],
    [40, 54],
  ]) {
    assert.ok(parse(buildFrame({ payload }), linear) < PARSED_L4);
    assert.equal(headers.needed, needed);
  }
  const lies: [string, (b: Uint8Array) => void, number][] = [
    ['an IPv4 header of 16 bytes', b => (b[14] = 0x44), PARSED_L2],
    ['a total longer than the frame', b => (b[16] = 0xff), PARSED_L2],
    ['a total shorter than the header', b => b.set([0, 19], 16), PARSED_L2],
    ['version 5', b => (b[14] = 0x55), PARSED_L2],
    ['a TCP header of 16 bytes', b => (b[46] = 0x40), PARSED_L3],
    ['a TCP header beyond the packet', b => b.set([0, 39], 16), PARSED_L3],
    ['a first fragment', b => (b[20] = 0x20), PARSED_L3],
  ];
  for (const [what, lie, level] of lies) {
    const bytes = buildFrame({ payload });
    lie(bytes);
    assert.equal(parse(bytes), level, what);
    assert.equal(headers.needed, 0, what);
  }
});

test('headers: any stack of them, however little of it is in the head at first', () => {
  const kernel = new TestKernel();
  const headers = new Headers();
  const [TCP, UDP, FRAGMENT, AH, SCTP] = [6, 17, 44, 51, 132];
  const stack = fc.record({
    tags: fc.array(fc.constantFrom([0x81, 0], [0x88, 0xa8]), { maxLength: 3 }),
    version: fc.constantFrom(4, 6),
    options: fc.nat(10),
    extensions: fc.array(fc.tuple(fc.constantFrom(0, 43, FRAGMENT, AH, 60), fc.nat(3)), { maxLength: 9 }),
    protocol: fc.constantFrom(TCP, UDP, 1, 58, SCTP),
    tcpOptions: fc.nat(10),
    payload: fc.nat(20),
    padding: fc.nat(9),
  });
  fc.assert(
    fc.property(stack, ({ tags, version, options, extensions, protocol, tcpOptions, payload, padding }) => {
      const chain = version === 6 ? extensions : [];
      const types = [...chain.map(([type]) => type), protocol];
      // Each unit is of 8 bytes behind the first 8; of 4 in AH; a fragment header is 8 long.
      const extra = chain.map(([type, units], i) => {
        const size = type === FRAGMENT ? 8 : type === AH ? 4 * (units + 2) : 8 * (units + 1);
        return [types[i + 1], type === FRAGMENT ? 0 : units, ...Array(size - 2).fill(0)];
      });
      const ip = version === 4 ? Array(20 + 4 * options).fill(0) : [...Array(40).fill(0), ...extra.flat()];
      const l4Length = protocol === TCP ? 20 + 4 * tcpOptions : protocol === SCTP ? 0 : 8;
      const transport = Array(l4Length + payload).fill(0);
      if (protocol === TCP) transport[12] = (5 + tcpOptions) << 4;
      const length = ip.length + transport.length;
      if (version === 4) {
        ip.splice(0, 4, 0x45 + options, 0, length >> 8, length & 255);
        ip[9] = protocol;
      } else ip.splice(0, 7, 0x60, 0, 0, 0, (length - 40) >> 8, (length - 40) & 255, types[0]);
      const type = version === 4 ? [8, 0] : [0x86, 0xdd];
      const tagged = [...tags.flatMap(tag => [...tag, 0, 7]), ...type];
      const bytes = [...Array(12).fill(2), ...tagged, ...ip, ...transport, ...Array(padding).fill(0)];
      let linear = 0;
      for (let before = -1; linear > before; ) {
        before = linear;
        const packet = kernel.packet(Uint8Array.from(bytes), { linear });
        headers.parse(packet);
        packet.release();
        assert.ok(headers.length <= linear);
        // What it wants is more, but not more than there are headers.
        if (headers.needed > 0) linear = headers.needed;
        assert.ok(linear <= 14 + 4 * tags.length + ip.length + l4Length);
      }
      assert.equal(headers.needed, 0);
      const l3 = 14 + 4 * Math.min(tags.length, 2);
      assert.deepEqual([headers.vlanTags, headers.l3], [Math.min(tags.length, 2), l3]);
      // Deeper stacks than these are nobody's.
      const level =
        tags.length > 2 || chain.length > 8 ? PARSED_L2 : protocol === SCTP ? PARSED_L3 : PARSED_L4;
      assert.equal(headers.level, level);
      if (level === PARSED_L2) return;
      const { ipVersion, l3Length, ipLength, l4 } = headers;
      assert.deepEqual([ipVersion, l3Length, ipLength, l4], [version, ip.length, length, l3 + ip.length]);
      assert.deepEqual([headers.protocol, headers.l4Length], [protocol, l4Length]);
    }),
  );
});

test('parsing any bytes ends, and stays inside the packet', () => {
  const headers = new Headers();
  const kernel = new TestKernel();
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 300 }),
      fc.constantFrom([8, 0], [0x86, 0xdd], [0x81, 0]),
      fc.integer({ min: 0, max: 300 }),
      (bytes, type, linear) => {
        if (bytes.length > 14) bytes.set(type, 12);
        if (bytes.length > 15) bytes[14] = type[0] === 8 ? 0x45 | (bytes[14] & 0x1) : 0x60;
        const packet = kernel.packet(bytes, { linear });
        headers.parse(packet);
        assert.ok(headers.l4 <= packet.linear && headers.length <= packet.linear);
        assert.ok(headers.l3 + headers.ipLength <= packet.length || headers.level < PARSED_L3);
        assert.ok(headers.needed <= packet.length);
        packet.release();
      },
    ),
  );
});
