import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  NETIF_F_HW_CSUM,
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../../src/net/features.js';
import { maxGsoSegments, releaseList, segmentPacket } from '../../src/net/gso.js';
import {
  CHECKSUM_NONE,
  CHECKSUM_PARTIAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  MAX_FRAGMENTS,
  PACKET_LINEAR_MAX,
  type Packet,
} from '../../src/net/packet.js';
import { setupChecksum, validateXmit } from '../../src/net/xmit.js';
import { buildFrame, checksumsAreRight, layout, referenceSum } from './frames.js';
import { TestKernel } from './kernel.js';

const frames = fc.record({
  version: fc.constantFrom(4 as const, 6 as const),
  vlan: fc.option(fc.nat(4095), { nil: undefined }),
  flags: fc.nat(255),
  sequence: fc.integer({ min: 0, max: 0xffffffff }),
  id: fc.nat(0xffff),
  tcpOptions: fc.constantFrom(new Uint8Array(0), Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2)),
  payload: fc.uint8Array({ minLength: 1, maxLength: 9000, size: 'max' }),
});
const shapes = fc.record({
  mss: fc.integer({ min: 240, max: 3000 }),
  linear: fc.integer({ min: 110, max: 400 }),
  sizes: fc.array(fc.integer({ min: 300, max: 4096 }), { maxLength: 10 }),
  foreign: fc.boolean(),
});

function gsoPacket(kernel: TestKernel, frame: Uint8Array, mss: number, options: object): Packet {
  const packet = kernel.packet(frame, options);
  assert.ok(setupChecksum(packet, true, kernel.net.materialiser));
  packet.gsoType = layout(frame).version === 4 ? GSO_TCPV4 : GSO_TCPV6;
  packet.gsoSize = mss;
  return packet;
}

function collect(kernel: TestKernel, list: Packet | null): Uint8Array[] {
  const all: Uint8Array[] = [];
  for (let p = list; p !== null; p = p.next) all.push(kernel.bytes(p));
  return all;
}

test('segments put together are the packet: bytes, sequence numbers, ids, flags, lengths', () => {
  fc.assert(
    fc.property(frames, shapes, (frame, { mss, ...shape }) => {
      const kernel = new TestKernel({ pages: 256 });
      const whole = buildFrame(frame);
      const list = segmentPacket(gsoPacket(kernel, whole, mss, shape), kernel.net.packets);
      const { l3, l4, payload, version } = layout(whole);
      const segments = collect(kernel, list);
      assert.equal(segments.length, Math.ceil(frame.payload.length / mss));
      let at = 0;
      segments.forEach((bytes, n) => {
        const data = bytes.subarray(payload);
        assert.deepEqual(data, frame.payload.subarray(at, at + mss), `payload of segment ${n}`);
        const view = new DataView(bytes.buffer);
        assert.equal(view.getUint32(l4 + 4), (frame.sequence + at) >>> 0);
        if (version === 4) {
          assert.equal(view.getUint16(l3 + 2), bytes.length - l3);
          assert.equal(view.getUint16(l3 + 4), (frame.id + n) & 0xffff);
        } else assert.equal(view.getUint16(l3 + 4), bytes.length - l3 - 40);
        let flags = frame.flags;
        if (n < segments.length - 1) flags &= ~0x09;
        if (n > 0) flags &= ~0x80;
        assert.equal(bytes[l4 + 13], flags);
        at += data.length;
      });
      assert.equal(at, frame.payload.length);
      releaseList(list);
      assert.equal(kernel.net.packets.used, 0);
      assert.equal(kernel.net.pages.used, 0);
    }),
    { numRuns: 60 },
  );
});

test('validateXmit makes of a GSO packet what a device with any features can send', () => {
  const featureSets = fc.constantFrom(
    0,
    NETIF_F_SG,
    NETIF_F_SG | NETIF_F_HW_CSUM,
    NETIF_F_SG | NETIF_F_IP_CSUM,
    NETIF_F_SG | NETIF_F_IPV6_CSUM,
    NETIF_F_HW_CSUM,
    NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_TSO,
    NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_TSO | NETIF_F_TSO6,
  );
  fc.assert(
    fc.property(frames, shapes, featureSets, (frame, { mss, ...shape }, features) => {
      const kernel = new TestKernel({ pages: 256 });
      const { net } = kernel;
      const whole = buildFrame(frame);
      const packet = gsoPacket(kernel, whole, mss, shape);
      let ownerTold = 0;
      packet.owner = { packetDone: () => ownerTold++ };
      const list = validateXmit(packet, { features, gsoMaxSize: 65536 }, net.packets, net.materialiser);
      assert.notEqual(list, null);
      const ofProtocol =
        frame.vlan !== undefined ? 0 : frame.version === 4 ? NETIF_F_IP_CSUM : NETIF_F_IPV6_CSUM;
      const csum = (features & (NETIF_F_HW_CSUM | ofProtocol)) !== 0;
      const tso = (features & (frame.version === 4 ? NETIF_F_TSO : NETIF_F_TSO6)) !== 0;
      for (let p = list; p !== null; p = p.next) {
        assert.equal(p.gsoType, tso ? (frame.version === 4 ? GSO_TCPV4 : GSO_TCPV6) : GSO_NONE);
        assert.equal(p.checksum, csum ? CHECKSUM_PARTIAL : CHECKSUM_NONE);
        assert.equal(p.references, 1);
        if ((features & NETIF_F_SG) === 0) assert.equal(p.fragments, 0);
        if (!csum) assert.ok(checksumsAreRight(kernel.bytes(p)));
      }
      const payload = collect(kernel, list).flatMap(bytes => [...bytes.subarray(layout(whole).payload)]);
      assert.deepEqual(payload, [...frame.payload]);
      releaseList(list);
      assert.equal(ownerTold, 1);
      assert.equal(net.packets.used, 0);
      assert.equal(net.pages.used, 0);
    }),
    { numRuns: 60 },
  );
});

test('a GSO packet that is not what it says is dropped, and nothing of it stays', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const payload = new Uint8Array(6000);
  const tcp = buildFrame({ payload });
  const cases: [string, Uint8Array, (p: Packet) => void][] = [
    ['size 0', tcp, p => (p.gsoSize = 0)],
    ['IPv6 type on IPv4', tcp, p => (p.gsoType = GSO_TCPV6)],
    ['UDP', buildFrame({ payload, udp: true }), () => {}],
    ['no IP', new Uint8Array(3000), () => {}],
    ['segments that no link needs as short', tcp, p => (p.gsoSize = 100)],
  ];
  for (const [what, bytes, spoil] of cases) {
    const packet = kernel.packet(bytes, { linear: 100 });
    packet.checksum = CHECKSUM_PARTIAL;
    packet.gsoType = GSO_TCPV4;
    packet.gsoSize = 1000;
    spoil(packet);
    const target = { features: 0, gsoMaxSize: 65536 };
    assert.equal(validateXmit(packet, target, net.packets, net.materialiser), null, what);
    assert.equal(net.packets.used, 0, what);
    assert.equal(net.pages.used, 0, what);
  }
});

test('a packet is cut into few segments, however short, or into as many as the shortest MTU needs', () => {
  assert.deepEqual([0, 16, 1000, 4096, 65_495].map(maxGsoSegments), [16, 16, 20, 33, 288]);
  // MTU 296, of serial lines, with timestamps.
  for (const payload of [1000, 10_000, 65_495])
    assert.ok(Math.ceil(payload / 244) <= maxGsoSegments(payload));
});

test('headers that are split over the head and fragments are pulled together', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const payload = Uint8Array.from({ length: 5000 }, (_, i) => i & 255);
  const bytes = buildFrame({ payload });
  for (const foreign of [false, true]) {
    const packet = kernel.packet(bytes, { linear: 14, sizes: [11, 7, 5, 3000], foreign });
    packet.checksum = CHECKSUM_PARTIAL;
    packet.gsoType = GSO_TCPV4;
    packet.gsoSize = 1448;
    const list = validateXmit(packet, { features: 0, gsoMaxSize: 65536 }, net.packets, net.materialiser);
    const segments = collect(kernel, list);
    assert.equal(segments.length, 4);
    assert.ok(segments.every(s => checksumsAreRight(s)));
    releaseList(list);
    assert.equal(net.packets.used, 0);
    assert.equal(net.pages.used, 0);
  }
});

/** A packet whose linear part is in a page of the pool, as drivers receive it, and the rest in fragments. */
function inPage(kernel: TestKernel, bytes: Uint8Array, linear: number, sizes: number[] = []): Packet {
  const { pages } = kernel.net;
  const packet = kernel.packet(bytes.subarray(linear), { linear: 0, sizes });
  const index = pages.alloc();
  Object.assign(packet, { pool: pages, linearPoolIndex: index, data: pages.pages[index] * 4096, linear });
  packet.length += linear;
  packet.memory.u8.set(bytes.subarray(0, linear), packet.data);
  return packet;
}

function asGso(packet: Packet, gsoType: number, gsoSize: number): Packet {
  return Object.assign(packet, {
    checksum: CHECKSUM_PARTIAL,
    csumStart: 34,
    csumOffset: 16,
    gsoType,
    gsoSize,
  });
}

test('of a linear part that fills a page, segments have no more than their buffers hold', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const payload = Uint8Array.from({ length: 6000 }, (_, i) => (i * 7) & 255);
  const packet = asGso(inPage(kernel, buildFrame({ payload }), 4096), GSO_TCPV4, 1448);
  const list = segmentPacket(packet, net.packets);
  for (let p = list; p !== null; p = p.next) assert.ok(p.linear <= PACKET_LINEAR_MAX);
  assert.deepEqual(Buffer.concat(collect(kernel, list).map(each => each.subarray(54))), Buffer.from(payload));
  releaseList(list);
  assert.equal(net.packets.used + net.pages.used, 0);
});

test('headers that are longer than a buffer, or data in more pieces than a packet has, are not cut', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  // Options before each hop, of 488 bytes.
  const extra = new Uint8Array(488);
  extra.set([6, 60]);
  const payload = new Uint8Array(3000);
  const long = asGso(
    inPage(kernel, buildFrame({ version: 6, firstHeader: 0, extra, payload }), 2000),
    GSO_TCPV6,
    1000,
  );
  assert.ok(segmentPacket(long, net.packets) === null);
  const sizes = Array<number>(MAX_FRAGMENTS).fill(10);
  const pieces = buildFrame({ payload: new Uint8Array(1000 - 54 + 10 * MAX_FRAGMENTS) });
  const many = asGso(inPage(kernel, pieces, 1000, sizes), GSO_TCPV4, 2000);
  assert.equal(many.fragments, MAX_FRAGMENTS);
  assert.ok(segmentPacket(many, net.packets) === null);
  assert.equal(net.packets.used + net.pages.used, 0);
});

test('a GSO packet without data is one segment', () => {
  const kernel = new TestKernel();
  const bytes = buildFrame({ payload: new Uint8Array(0) });
  const list = segmentPacket(asGso(kernel.packet(bytes), GSO_TCPV4, 1000), kernel.net.packets);
  assert.deepEqual(
    collect(kernel, list).map(each => each.length),
    [54],
  );
  releaseList(list);
});

/** A loose source route of one hop that is left, and a segment routing header. */
const SOURCE_ROUTES = {
  4: { extra: Uint8Array.of(131, 7, 4, 10, 0, 0, 2, 0) },
  6: { firstHeader: 43, extra: Uint8Array.of(6, 2, 4, 1, 0, 0, 0, 0, ...Array(16).fill(0xfd)) },
};

for (const version of [4, 6] as const) {
  test(`segments with a source route keep the checksum of their last destination: IPv${version}`, () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    const payload = Uint8Array.from({ length: 5000 }, (_, i) => (i * 3) & 255);
    const bytes = buildFrame({ payload, version, ...SOURCE_ROUTES[version] });
    const packet = gsoPacket(kernel, bytes, 1400, { linear: 200 });
    const destination = layout(bytes).l3 + (version === 4 ? 16 : 24);
    const last = bytes.slice(destination, destination + (version === 4 ? 4 : 16));
    // The next hop.
    packet.memory.u8[packet.data + destination + 3] ^= 0x55;
    const list = validateXmit(packet, { features: 0, gsoMaxSize: 65536 }, net.packets, net.materialiser);
    const segments = collect(kernel, list);
    assert.equal(segments.length, 4);
    for (const segment of segments) {
      const { l3, l4 } = layout(segment);
      if (version === 4) assert.equal(referenceSum(segment, l3, l4), 0xffff);
      segment.set(last, destination);
      // The IPv4 header's own checksum was of the next hop.
      if (version === 4) {
        segment.set([0, 0], l3 + 10);
        const sum = ~referenceSum(segment, l3, l4) & 0xffff;
        segment.set([sum >> 8, sum & 255], l3 + 10);
      }
      assert.ok(checksumsAreRight(segment));
    }
    releaseList(list);
    assert.equal(net.packets.used + net.pages.used, 0);
  });
}

test('padding behind the IP packet is no payload of a segment', () => {
  const kernel = new TestKernel();
  const payload = Uint8Array.from({ length: 3000 }, (_, i) => i & 255);
  const bytes = Uint8Array.from([...buildFrame({ payload }), ...Array(50).fill(0xee)]);
  const list = segmentPacket(gsoPacket(kernel, bytes, 1000, { linear: 100 }), kernel.net.packets);
  const segments = collect(kernel, list);
  assert.deepEqual(Buffer.concat(segments.map(each => each.subarray(54))), Buffer.from(payload));
  releaseList(list);
});

test('without memory for all segments, or the whole of a packet in a page, nothing is sent and nothing kept', () => {
  const kernel = new TestKernel({ pages: 64 });
  const { net, memory } = kernel;
  const bytes = buildFrame({ payload: new Uint8Array(6000) });
  const long = kernel.packet(bytes, { linear: 100 });
  assert.equal(validateXmit(long, { features: 0, gsoMaxSize: 65536 }, net.packets, net.materialiser), null);
  const packet = gsoPacket(kernel, bytes, 1000, { linear: 100 });
  assert.throws(() => {
    for (;;) memory.allocPage();
  });
  // A page has room for a few packets.
  assert.equal(segmentPacket(packet, net.packets), null);
  assert.equal(net.packets.used + net.pages.used, 0);
});

test('a GSO packet without a checksum to be completed is cut, whatever the device can', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const packet = kernel.packet(buildFrame({ payload: new Uint8Array(3000) }), { linear: 100 });
  packet.gsoType = GSO_TCPV4;
  packet.gsoSize = 1448;
  const features = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_TSO;
  const list = validateXmit(packet, { features, gsoMaxSize: 65536 }, net.packets, net.materialiser);
  assert.equal(collect(kernel, list).length, 3);
  releaseList(list);
  assert.equal(net.packets.used, 0);
});

test('of a packet that others hold, too, a device gets another, and what they see stays', () => {
  for (const features of [0, NETIF_F_SG]) {
    for (const gso of [false, true]) {
      const kernel = new TestKernel();
      const { net } = kernel;
      const bytes = buildFrame({ payload: Uint8Array.from({ length: 3000 }, (_, i) => i & 255) });
      // Headers of a GSO packet may have to be pulled.
      const packet = kernel.packet(bytes, { linear: gso ? 14 : 100, sizes: [11, 30, 5, 3000] });
      packet.checksum = CHECKSUM_PARTIAL;
      packet.csumStart = 34;
      packet.csumOffset = 16;
      packet.gsoType = gso ? GSO_TCPV4 : GSO_NONE;
      packet.gsoSize = 1448;
      packet.hold();
      const { linear, fragments } = packet;
      const list = validateXmit(packet, { features, gsoMaxSize: 65536 }, net.packets, net.materialiser);
      assert.equal(collect(kernel, list).length, gso ? 3 : 1);
      assert.equal(list!.checksum, CHECKSUM_NONE);
      assert.deepEqual(kernel.bytes(packet), bytes);
      assert.deepEqual(
        [packet.linear, packet.fragments, packet.checksum],
        [linear, fragments, CHECKSUM_PARTIAL],
      );
      releaseList(list);
      packet.release();
      assert.equal(net.packets.used + net.pages.used, 0);
    }
  }
});
