import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { fillChecksums } from '../../src/net/checksum.js';
import type { NetDevice } from '../../src/net/device.js';
import { NETIF_F_HW_CSUM, NETIF_F_SG } from '../../src/net/features.js';
import { Gro, type GroTarget } from '../../src/net/gro.js';
import { releaseList, segmentPacket } from '../../src/net/gso.js';
import { Headers } from '../../src/net/headers.js';
import type { Napi } from '../../src/net/napi.js';
import {
  CHECKSUM_NONE,
  CHECKSUM_PARTIAL,
  CHECKSUM_UNNECESSARY,
  FRAGMENT_LOCAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  type Packet,
} from '../../src/net/packet.js';
import { PagePool } from '../../src/net/page-pool.js';
import { setupChecksum } from '../../src/net/xmit.js';
import { PAGE_SIZE } from '../../src/platform/memory.js';
import { buildFrame, fillHeaderChecksum, layout, type TcpFrame } from './frames.js';
import { TestKernel } from './kernel.js';

interface Got {
  bytes: Uint8Array;
  gsoType: number;
  gsoSize: number;
  checksum: number;
}

/** A device whose poll receives what `arrive` was given, all in one poll. */
function setUp() {
  const kernel = new TestKernel({ pages: 512 });
  const device: NetDevice = kernel.net.allocEtherdev('eth%d', { startXmit: () => 0 });
  device.features = NETIF_F_SG | NETIF_F_HW_CSUM;
  kernel.net.register(device);
  device.open();
  const got: Got[] = [];
  const taken: Uint8Array[] = [];
  device.rxHandler = packet => {
    got.push({
      bytes: kernel.bytes(packet),
      gsoType: packet.gsoType,
      gsoSize: packet.gsoSize,
      checksum: packet.checksum,
    });
    if (packet.gsoType === GSO_NONE) {
      taken.push(kernel.bytes(packet));
      packet.release();
      return;
    }
    const list = segmentPacket(packet, kernel.net.packets);
    for (let p: Packet | null = list; p !== null; p = p.next) taken.push(kernel.bytes(p));
    releaseList(list);
  };
  const waiting: Packet[] = [];
  const napi: Napi = device.napiAdd(budget => {
    const some = waiting.splice(0, budget);
    for (const packet of some) napi.receive(packet);
    if (some.length < budget) napi.complete(some.length);
    return some.length;
  });
  napi.enable();
  const arrive = (packets: Packet[]): { got: Got[]; taken: Uint8Array[] } => {
    waiting.push(...packets);
    napi.schedule();
    kernel.run();
    return { got: got.splice(0), taken: taken.splice(0) };
  };
  /** A packet as a peer with checksum offload sends it. */
  const make = (frame: TcpFrame, options: object = {}): Packet => {
    const packet = kernel.packet(buildFrame(frame), options);
    setupChecksum(packet, true, kernel.net.materialiser);
    return packet;
  };
  return { kernel, device, arrive, make };
}

/** A run of `count` packets of one flow. */
function run(count: number, size: number, more: Partial<TcpFrame> = {}): TcpFrame[] {
  return Array.from({ length: count }, (_, n) => ({
    payload: Uint8Array.from({ length: size }, (_, i) => (n * 31 + i) & 255),
    sequence: (0xfffff000 + n * size) >>> 0,
    id: (0xfff0 + n) & 0xffff,
    flags: 0x10,
    ...more,
  }));
}

test('packets of a run become one, which can be taken apart into the same again', () => {
  for (const version of [4, 6] as const) {
    for (const foreign of [false, true]) {
      const { kernel, arrive, make } = setUp();
      let told = 0;
      const frames = run(8, 1448, { version });
      const originals = frames.map(frame => {
        const packet = make(frame, { linear: 100, foreign });
        packet.owner = { packetDone: () => told++ };
        return packet;
      });
      const before = originals.map(packet => kernel.bytes(packet));
      const { got, taken } = arrive(originals);
      assert.equal(got.length, 1);
      assert.deepEqual(
        [got[0].gsoType, got[0].gsoSize, got[0].checksum],
        [version === 4 ? GSO_TCPV4 : GSO_TCPV6, 1448, CHECKSUM_PARTIAL],
      );
      assert.equal(told, 8);
      assert.deepEqual(taken, before);
      assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
    }
  }
});

test('a run that is longer than a packet can be becomes several', () => {
  const { arrive, make } = setUp();
  const frames = run(50, 1448);
  const { got, taken } = arrive(frames.map(frame => make(frame, { linear: 100 })));
  assert.deepEqual(
    taken.map(bytes => bytes.slice(layout(bytes).payload)),
    frames.map(frame => frame.payload),
  );
  assert.ok(got.length <= 6, `${got.length} packets`);
  for (const { bytes } of got) assert.equal((bytes[16] << 8) | bytes[17], bytes.length - 14);
});

test('packets of the largest size become none that is longer than IP has', () => {
  for (const version of [4, 6] as const) {
    const { arrive, make } = setUp();
    // Each in a page: there is room for more than 64 KiB of them.
    const frames = run(40, 4000, { version });
    const linear = version === 4 ? 54 : 74;
    const { got, taken } = arrive(frames.map(frame => make(frame, { linear })));
    assert.deepEqual(
      taken.map(bytes => bytes.slice(layout(bytes).payload)),
      frames.map(frame => frame.payload),
    );
    for (const { bytes } of got) assert.ok(bytes.length - 14 <= 65535, `${bytes.length} bytes`);
    assert.ok(got.length < 5, `${got.length} packets`);
  }
});

test('GSO packets of a run become a longer one, until one ends with a short segment', () => {
  for (const version of [4, 6] as const) {
    const { kernel, arrive, make } = setUp();
    const sizes = [3000, 1000, 5000, 700, 2000, 40_000];
    let sequence = 1000;
    const frames = sizes.map((size, n): TcpFrame => {
      const payload = Uint8Array.from({ length: size }, (_, i) => (n * 31 + i) & 255);
      const frame = { payload, sequence, id: n, flags: 0x10, version };
      sequence += size;
      return frame;
    });
    const packets = frames.map(frame => {
      const packet = make(frame, { linear: 100 });
      if (frame.payload.length === 1000) return packet;
      packet.gsoType = version === 4 ? GSO_TCPV4 : GSO_TCPV6;
      packet.gsoSize = 1000;
      return packet;
    });
    const { got, taken } = arrive(packets);
    const headers = layout(got[0].bytes).payload;
    assert.deepEqual(
      got.map(g => [g.gsoType === GSO_NONE ? 0 : g.gsoSize, g.bytes.length - headers]),
      [
        [1000, 9700],
        [1000, 42_000],
      ],
    );
    const joined = (list: readonly Uint8Array[]): Buffer => Buffer.concat(list);
    assert.deepEqual(
      joined(taken.map(bytes => bytes.slice(layout(bytes).payload))),
      joined(frames.map(frame => frame.payload)),
    );
    assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
  }
});

/** A packet as drivers receive it: `linear` bytes in a page of the pool, the rest in another one. */
function inPages(kernel: TestKernel, pool: PagePool, frame: TcpFrame, linear: number): Packet {
  const bytes = buildFrame(frame);
  const packet = kernel.net.packets.get();
  const page = (part: Uint8Array): [index: number, page: number] => {
    const index = pool.alloc();
    packet.memory.u8.set(part, pool.pages[index] * PAGE_SIZE);
    return [index, pool.pages[index]];
  };
  const [linearPoolIndex, first] = page(bytes.subarray(0, linear));
  Object.assign(packet, { pool, linearPoolIndex, data: first * PAGE_SIZE, linear, length: linear });
  if (linear < bytes.length) {
    const [index, rest] = page(bytes.subarray(linear));
    packet.addFragment(FRAGMENT_LOCAL, rest, 0, bytes.length - linear, index);
  }
  setupChecksum(packet, true, kernel.net.materialiser);
  return packet;
}

test('pages that a run is received in go back once each, to the pool that they are of', () => {
  const { kernel, device, arrive } = setUp();
  const pools = [new PagePool(kernel.memory, 32), new PagePool(kernel.memory, 32)];
  let told = 0;
  const owner = { packetDone: () => told++ };
  const { rxHandler } = device;
  device.rxHandler = (packet, dev) => {
    assert.equal(told, 0, 'its data may go its way before');
    rxHandler!(packet, dev);
  };
  for (const linears of [[1054], [54], [300], [1054, 54, 300]]) {
    for (const count of [1, 2]) {
      for (const owned of [false, true]) {
        told = 0;
        const frames = run(6, 1000);
        const packets = frames.map((frame, n) =>
          inPages(kernel, pools[n % count], frame, linears[n % linears.length]),
        );
        if (owned) for (const packet of packets) packet.owner = owner;
        const { got, taken } = arrive(packets);
        assert.equal(got.length, 1);
        assert.deepEqual(
          taken.map(bytes => bytes.slice(54)),
          frames.map(({ payload }) => payload),
        );
        assert.equal(told, owned ? 6 : 0);
        assert.deepEqual(
          pools.map(({ used }) => used),
          [0, 0],
        );
        assert.equal(kernel.net.packets.used, 0);
      }
    }
  }
});

test('what others hold or keep alive, and what could not be fetched, stays as it is', () => {
  const { kernel, arrive, make } = setUp();
  const packets = run(3, 500).map(frame => make(frame));
  packets[0].hold();
  packets[2].failed = true;
  const before = kernel.bytes(packets[0]);
  assert.equal(arrive(packets).got.length, 3);
  assert.deepEqual(kernel.bytes(packets[0]), before);
  packets[0].release();
  // Segments, whose data is the packet's that they were cut from.
  const segments = [1000, 3000].flatMap((size, n) => {
    const frame = { payload: new Uint8Array(size), sequence: n * 1000, id: n, flags: 0x10 };
    const whole = Object.assign(make(frame, { linear: 54 }), { gsoType: GSO_TCPV4, gsoSize: 1000 });
    const list: Packet[] = [];
    for (let p = segmentPacket(whole, kernel.net.packets); p !== null; p = p.next) list.push(p);
    return list;
  });
  const { taken } = arrive(segments);
  assert.equal(taken.length, 4);
  assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
});

test('GSO packets become one only if it is cut into the same segments again', () => {
  const { arrive, make } = setUp();
  const gso = (size: number, gsoSize: number, more: Partial<TcpFrame>): Packet =>
    Object.assign(make({ payload: new Uint8Array(size), flags: 0x10, ...more }, { linear: 54 }), {
      gsoType: GSO_TCPV4,
      gsoSize,
    });
  const lengths = ({ got }: ReturnType<typeof arrive>) => got.map(({ bytes }) => bytes.length - 54);
  const other = [gso(2000, 1000, { sequence: 0 }), gso(3000, 1500, { sequence: 2000 })];
  assert.deepEqual(lengths(arrive(other)), [2000, 3000], 'segments of another size');
  const short = [gso(2500, 1000, { sequence: 0 }), gso(2000, 1000, { sequence: 2500 })];
  assert.deepEqual(lengths(arrive(short)), [2500, 2000], 'a short one in the middle');
  // Up to the longest that IP has, and not a byte more.
  for (const [last, whole] of [
    [495, [65_495]],
    [496, [65_000, 496]],
  ] as const) {
    const long = [30_000, 30_000, 5000].map((size, n) => gso(size, 1000, { sequence: n * 30_000 }));
    const end = make({ payload: new Uint8Array(last), sequence: 65_000, flags: 0x10 }, { linear: 54 });
    assert.deepEqual(lengths(arrive([...long, end])), whole);
  }
});

test('ids and sequence numbers count up over the ends of their ranges', () => {
  const { arrive, make } = setUp();
  for (const start of [0x7fffff00, 0x7ffff800, 0xffffff00]) {
    let at = 0;
    const packets = [1000, 2000, 1000, 1000].map(size => {
      const id = (0xfffd + at / 1000) & 0xffff;
      const sequence = (start + at) >>> 0;
      const packet = make({ payload: new Uint8Array(size), id, sequence, flags: 0x10 }, { linear: 100 });
      // It may be fragmented: its id counts.
      const head = packet.memory.u8.subarray(packet.data, packet.data + packet.linear);
      head[20] = 0;
      fillHeaderChecksum(head);
      if (size > 1000) Object.assign(packet, { gsoType: GSO_TCPV4, gsoSize: 1000 });
      at += size;
      return packet;
    });
    const { got, taken } = arrive(packets);
    assert.equal(got.length, 1);
    assert.deepEqual(
      taken.map(bytes => (bytes[18] << 8) | bytes[19]),
      [0xfffd, 0xfffe, 0xffff, 0, 1],
    );
  }
});

test('packets for one device are not put together with those for another', () => {
  const { kernel, make } = setUp();
  const gro = new Gro();
  const got: number[] = [];
  const target = (): GroTarget => ({
    receive(packet) {
      got.push(packet.length);
      packet.release();
    },
  });
  for (const frame of run(2, 500)) gro.receive(make(frame), target());
  gro.flush();
  assert.deepEqual(got, [554, 554]);
  assert.equal(kernel.net.packets.used, 0);
});

test('what does not belong together stays apart, in its order', () => {
  const { arrive, make } = setUp();
  const [a, b] = run(2, 500);
  const different: [string, Partial<TcpFrame>][] = [
    ['another port', { sourcePort: 7 }],
    ['another window or acknowledgement', { tcpOptions: new Uint8Array(4).fill(1) }],
    ['a gap', { sequence: 5 }],
    ['more data than the first', { payload: new Uint8Array(501) }],
    ['SYN', { flags: 0x12 }],
    ['FIN', { flags: 0x11 }],
    ['no data', { payload: new Uint8Array(0) }],
    ['UDP', { udp: true }],
    ['another VLAN', { vlan: 5 }],
    ['another address', { source: [2, 0, 0, 0, 0, 99] }],
  ];
  for (const [what, change] of different) {
    const frames = [a, { ...b, ...change }];
    const { got } = arrive(frames.map(frame => make(frame)));
    assert.equal(got.length, 2, what);
    assert.ok(
      got.every(g => g.gsoType === GSO_NONE),
      what,
    );
  }
  const { got } = arrive(run(3, 500, { flags: 0x18 }).map(frame => make(frame)));
  assert.equal(got.length, 3, 'each ends its run');
});

test('whatever bit of the headers two packets differ in, or share, they come out as they came in', () => {
  const { kernel, arrive } = setUp();
  const tcpOptions = Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2);
  const kinds: [string, number, Partial<TcpFrame>][] = [
    ['IPv4', 1, {}],
    ['IPv4 that may be fragmented', 1, {}],
    ['IPv4 with options', 2, { extra: new Uint8Array(4).fill(1) }],
    ['IPv4 in a VLAN', 1, { vlan: 5 }],
    ['IPv6', 1, { version: 6 }],
  ];
  for (const [what, together, kind] of kinds) {
    const frames = run(2, 10, { tcpOptions, ...kind }).map(buildFrame);
    const { l3, l4, payload, version } = layout(frames[0]);
    const mayBeFragmented = what.endsWith('fragmented');
    if (mayBeFragmented) {
      for (const bytes of frames) {
        bytes[l3 + 6] = 0;
        fillHeaderChecksum(bytes);
      }
    }
    const packetsOf = (all: Uint8Array[]): Packet[] => {
      const packets = all.map(bytes => kernel.packet(bytes));
      for (const packet of packets) setupChecksum(packet, true, kernel.net.materialiser);
      return packets;
    };
    // Of two connections, either may come first.
    const sorted = (all: Uint8Array[]): Uint8Array[] => all.sort(Buffer.compare);
    assert.equal(arrive(packetsOf(frames)).got.length, together, what);
    for (let bit = 0; bit < payload * 8; bit++) {
      const at = bit >> 3;
      // Nobody looks at the id of what must not be fragmented, nor at the urgent pointer without URG.
      if (version === 4 && !mayBeFragmented && at >> 1 === (l3 + 4) >> 1) continue;
      if (at >> 1 === (l4 + 18) >> 1) continue;
      for (const untouched of [1, 0]) {
        const changed = frames.map(bytes => bytes.slice());
        for (const bytes of changed.slice(untouched)) {
          bytes[at] ^= 1 << (bit & 7);
          // A broken one stays so.
          if (at >> 1 !== (l3 + 10) >> 1) fillHeaderChecksum(bytes);
        }
        const packets = packetsOf(changed);
        const before = sorted(packets.map(packet => kernel.bytes(packet)));
        const which = `${what}: bit ${bit & 7} of byte ${at}${untouched === 0 ? ' of both' : ''}`;
        assert.deepEqual(sorted(arrive(packets).taken), before, which);
      }
    }
  }
  assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
});

test('a packet that is not held does not overtake one of its connection that is, whatever differs', () => {
  const { arrive, make } = setUp();
  const [a, b] = run(2, 500);
  const timestamp = new Uint8Array(4).fill(1);
  for (const change of [{ tcpOptions: timestamp }, { sequence: 5 }]) {
    const frames = [a, { ...b, flags: 0x18, ...change }];
    const { got } = arrive(frames.map(frame => make(frame)));
    const flags = got.map(({ bytes }) => bytes[layout(bytes).l4 + 13]);
    assert.deepEqual(flags, [0x10, 0x18], Object.keys(change)[0]);
  }
});

test('a short packet and PSH end a run', () => {
  const { arrive, make } = setUp();
  const [a, b, c] = run(3, 500);
  const pushed = arrive([a, { ...b, flags: 0x18 }, c].map(frame => make(frame)));
  assert.deepEqual(
    pushed.got.map(g => [g.gsoType, g.bytes.length]),
    [
      [GSO_TCPV4, 1054],
      [GSO_NONE, 554],
    ],
  );
  assert.equal(pushed.got[0].bytes[47], 0x18);
  const short = arrive([a, { ...b, payload: b.payload.slice(0, 10) }, c].map(frame => make(frame)));
  assert.equal(short.got[0].bytes.length, 564);
});

test('an unknown checksum is verified first; a wrong one is not put together', () => {
  const { kernel, arrive } = setUp();
  const headers = new Headers();
  const complete = (frame: TcpFrame): Packet => {
    const packet = kernel.packet(buildFrame(frame));
    headers.parse(packet);
    fillChecksums(packet, headers);
    assert.equal(packet.checksum, CHECKSUM_NONE);
    return packet;
  };
  assert.equal(arrive(run(2, 300).map(complete)).got.length, 1);
  const spoiled = run(2, 300).map(complete);
  spoiled[1].memory.u8[spoiled[1].data + 60] ^= 1;
  const { got } = arrive(spoiled);
  assert.deepEqual(
    got.map(g => g.checksum),
    [CHECKSUM_UNNECESSARY, CHECKSUM_NONE],
  );
});

test('flows that are mixed are each put together, and none is reordered', () => {
  const order = fc.array(
    fc.record({
      flow: fc.nat(11),
      size: fc.constantFrom(100, 100, 100, 40),
      push: fc.boolean(),
      options: fc.constantFrom(0, 0, 0, 4),
    }),
    {
      maxLength: 60,
    },
  );
  fc.assert(
    fc.property(order, steps => {
      const { kernel, arrive, make } = setUp();
      const next = new Map<number, number>();
      const sent = new Map<number, number[]>();
      let n = 0;
      const packets = steps.map(({ flow, size, push, options }) => {
        const sequence = next.get(flow) ?? 1000;
        next.set(flow, sequence + size);
        const payload = new Uint8Array(size).fill(n++);
        sent.set(flow, [...(sent.get(flow) ?? []), ...payload]);
        const tcpOptions = new Uint8Array(options).fill(1);
        return make({ payload, sequence, flags: push ? 0x18 : 0x10, sourcePort: 5000 + flow, tcpOptions });
      });
      const { got, taken } = arrive(packets);
      const received = new Map<number, number[]>();
      for (const bytes of taken) {
        const { l4, payload } = layout(bytes);
        const flow = ((bytes[l4] << 8) | bytes[l4 + 1]) - 5000;
        received.set(flow, [...(received.get(flow) ?? []), ...bytes.subarray(payload)]);
      }
      assert.deepEqual(received, sent);
      assert.ok(got.length <= steps.length);
      for (const g of got) if (g.gsoType !== GSO_NONE) assert.ok(g.bytes.length <= 65535 + 14);
      assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
    }),
    { numRuns: 60 },
  );
});
