import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { gsoExtraWord0, gsoExtraWord1, NETRXF_CSUM_BLANK, NETRXF_EXTRA_INFO } from '../../src/abi/index.js';
import { ip } from '../../src/cli/ip.js';
import {
  CHECKSUM_PARTIAL,
  decodeLink,
  decodeMessages,
  GSO_TCPV4,
  IFLA,
  type Packet,
  XDP_ABORTED,
  XDP_BATCH,
  XDP_DROP,
  XDP_PASS,
  XDP_TX,
  XdpFrames,
  type XdpProgram,
} from '../../src/net/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { FreedPages } from '../support/freed-pages.js';
import { Victim, type VictimOptions } from '../support/hostile.js';
import { bytesOf, packetFrom } from '../support/packets.js';

/** Bytes of an Ethernet, IPv4 and UDP header. */
const HEADERS = 42;

/** A frontend with a program, and a backend that sends and answers. */
class Front {
  readonly path = new DataPath(1);
  readonly victim: Victim;
  readonly pages: number;

  constructor(options: VictimOptions, program: XdpProgram | null = null) {
    this.victim = new Victim(this.path, options);
    this.victim.dev.setXdp(program);
    this.pages = this.victim.pages;
    this.victim.connect();
  }

  /** A frame for the device; a frame of the same length has the same bytes. */
  frame(length: number): Uint8Array {
    const payload = new Uint8Array(length - HEADERS).fill(length);
    return buildFrame({ destination: this.victim.mac, udp: true, payload });
  }

  /** Has the backend send frames of these lengths in one batch. */
  async deliver(...lengths: number[]): Promise<void> {
    for (const length of lengths) this.victim.back.packet(this.frame(length));
    await this.victim.strike();
  }

  /** The frames that the backend finds on the tx ring, in one slot each, which it answers. */
  async sent(): Promise<Uint8Array[]> {
    const { back } = this.victim;
    const frames = back.txRequests().map(({ gref, offset, size, id }) => {
      const mapping = back.map(gref, true);
      const bytes = mapping.memory.u8.slice(mapping.address + offset, mapping.address + offset + size);
      back.unmap(mapping);
      back.respondTx(id);
      return bytes;
    });
    await this.victim.strike();
    return frames;
  }

  /** Adds a frame of so many bytes, all of which are `fill`. @returns its address, or -1 */
  add(frames: XdpFrames, bytes: number, fill: number, offset = 0): number {
    const at = frames.add(bytes, offset);
    if (at >= 0) this.victim.domain.platform.memory.memory.u8.fill(fill, at, at + bytes);
    return at;
  }

  get lengths(): number[] {
    return this.victim.got.map(bytes => bytes.length);
  }

  get stats() {
    const { xdpDrops, xdpTx, xdpRedirects, xdpAborted, xdpXmit } = this.victim.queue.stats;
    return { xdpDrops, xdpTx, xdpRedirects, xdpAborted, xdpXmit };
  }

  /** Disconnects; everything must have been given back. */
  async end(): Promise<void> {
    const { victim, path } = this;
    assert.deepEqual(victim.broken, []);
    victim.disconnect();
    await path.scheduler.runFor(2000);
    const { net, reclaimer, platform } = victim.dom;
    assert.deepEqual([net.packets.used, net.pages.used, reclaimer.pending], [0, 0, 0]);
    assert.equal(platform.grants.allocated, 0);
    assert.equal(victim.pages, this.pages);
  }
}

const NONE = { xdpDrops: 0, xdpTx: 0, xdpRedirects: 0, xdpAborted: 0, xdpXmit: 0 };

const WAYS: readonly (readonly [where: string, how: VictimOptions])[] = [
  ['', {}],
  [', without code in WebAssembly', { ringCode: false }],
  [', with pages that stay granted', { tied: true }],
];

for (const [where, how] of WAYS) {
  describe(`an XDP program of a frontend${where}`, () => {
    test('sees every frame before the stack does, and drops what it likes', async () => {
      const seen: number[] = [];
      const front = new Front(how, buffs => {
        for (let i = 0; i < buffs.count; i++) {
          const { data, bytes, memory } = buffs;
          assert.equal(buffs.length(i), bytes[i]);
          assert.deepEqual(
            memory.u8.slice(data[i], data[i] + bytes[i]),
            front.frame(bytes[i]),
            'the bytes of the frame',
          );
          seen.push(bytes[i]);
          if (bytes[i] % 2 === 0) buffs.verdict[i] = XDP_DROP;
        }
      });
      await front.deliver(60, 61, 62, 63, 4096, 1501);
      assert.deepEqual(seen, [60, 61, 62, 63, 4096, 1501]);
      assert.deepEqual(front.lengths, [61, 63, 1501]);
      assert.deepEqual(front.victim.got[0], front.frame(61));
      assert.deepEqual(front.stats, { ...NONE, xdpDrops: 3 });
      const { rxPackets, rxBytes, rxErrors } = front.victim.dev.stats;
      assert.deepEqual([rxPackets, rxBytes, rxErrors], [6, 60 + 61 + 62 + 63 + 4096 + 1501, 0]);
      await front.end();
    });

    test('passes what it says nothing about, and drops what it says nonsense about', async () => {
      const front = new Front(how, buffs => {
        for (let i = 0; i < buffs.count; i++) {
          const length = buffs.length(i);
          if (length === 100) buffs.verdict[i] = XDP_ABORTED;
          if (length === 101) buffs.verdict[i] = 77;
          // Nobody said where to.
          if (length === 102) buffs.verdict[i] = 4;
          if (length === 103) buffs.verdict[i] = -1;
        }
      });
      await front.deliver(99, 100, 101, 102, 103, 104);
      assert.deepEqual(front.lengths, [99, 104]);
      assert.deepEqual(front.stats, { ...NONE, xdpAborted: 4 });
      await front.end();
    });

    test('sends frames back, as it has changed them', async () => {
      const front = new Front(how, ({ count, data, memory, verdict }) => {
        for (let i = 0; i < count; i++) {
          memory.u8[data[i] + 50] = 0xee;
          verdict[i] = XDP_TX;
        }
      });
      await front.deliver(80, 90);
      const expected = [80, 90].map(length => front.frame(length));
      for (const bytes of expected) bytes[50] = 0xee;
      assert.deepEqual(await front.sent(), expected);
      assert.deepEqual(front.stats, { ...NONE, xdpTx: 2 });
      assert.deepEqual(front.lengths, []);
      await front.end();
    });

    test('redirects frames to a device of its namespace, and to no other', async () => {
      const other = new Front(how);
      const out: Uint8Array[] = [];
      let target = other.victim.dev;
      const front = new Front(how, buffs => {
        if (buffs.length(0) === 200) buffs.redirect(0, target);
      });
      const to = front.victim.dom.net.allocEtherdev('eth%d', {
        startXmit(packet) {
          out.push(bytesOf(packet));
          packet.release();
          return 0;
        },
      });
      front.victim.dom.net.register(to);
      to.open();
      to.carrierOn();
      await assert.rejects(front.deliver(200), /RangeError: eth0 is in another namespace than eth0/u);
      target = to;
      await front.deliver(200, 201);
      assert.deepEqual(out, [front.frame(200)]);
      assert.deepEqual(front.lengths, [201]);
      assert.deepEqual(front.stats, { ...NONE, xdpRedirects: 1, xdpAborted: 1 });
      await front.end();
      await other.end();
    });

    test('moves both ends of a frame, within its page', async () => {
      const results: boolean[] = [];
      const front = new Front(how, buffs => {
        results.push(
          // In front of the page there is nothing of ours, nor behind it.
          buffs.adjustHead(0, -101),
          buffs.adjustTail(0, PAGE_SIZE - 100 - 300 + 1),
          buffs.adjustHead(0, 300 - 13),
          buffs.adjustTail(0, 13 - 300),
          buffs.adjustHead(0, Number.NaN),
          buffs.adjustTail(0, 0.5),
          buffs.adjustHead(0, -100),
          buffs.adjustTail(0, -20),
          buffs.adjustHead(0, 90),
          buffs.adjustTail(0, 1),
        );
      });
      const { back } = front.victim;
      const bytes = front.frame(300);
      back.fill(back.rxGref, bytes, 100);
      back.respondRx({ offset: 100, status: 300 });
      await front.victim.strike();
      assert.deepEqual(results, [false, false, false, false, false, false, true, true, true, true]);
      assert.deepEqual(front.lengths, [300 + 100 - 20 - 90 + 1]);
      assert.deepEqual(front.victim.got[0].subarray(10), bytes.subarray(0, 281));
      await front.end();
    });

    test('sees the head of a longer packet, alone', async () => {
      const seen: number[][] = [];
      const front = new Front(how, buffs => {
        for (let i = 0; i < buffs.count; i++) seen.push([buffs.count, buffs.bytes[i], buffs.length(i)]);
        if (buffs.length(0) === 9000) {
          assert.ok(!buffs.adjustTail(0, -1) && !buffs.adjustTail(0, 1));
          assert.ok(buffs.adjustHead(0, 14));
        }
        if (buffs.length(0) === 8000) buffs.verdict[0] = XDP_DROP;
      });
      await front.deliver(100, 101, 9000, 8000, 102);
      assert.deepEqual(
        seen.filter(([, , length]) => length > PAGE_SIZE),
        [
          [1, PAGE_SIZE, 9000],
          [1, PAGE_SIZE, 8000],
        ],
      );
      assert.deepEqual(front.lengths, [100, 101, 8986, 102]);
      assert.deepEqual(front.victim.got[2], front.frame(9000).subarray(14));
      assert.deepEqual(front.stats, { ...NONE, xdpDrops: 1 });
      await front.end();
    });

    test('leaves a packet that it passes its offloads', async () => {
      const packets: Packet[] = [];
      const front = new Front(how, () => {});
      const { victim } = front;
      victim.dev.rxHandler = packet => packets.push(packet);
      const tcp = buildFrame({ destination: victim.mac, payload: new Uint8Array(3000) });
      victim.back.fill(victim.back.rxGref, tcp);
      victim.back.respondRx({ status: tcp.length, flags: NETRXF_EXTRA_INFO | NETRXF_CSUM_BLANK });
      victim.back.rxExtra(gsoExtraWord0(1000), gsoExtraWord1(GSO_TCPV4));
      victim.back.fill(victim.back.rxGref, tcp.subarray(0, 200));
      await victim.strike();
      const [{ gsoType, gsoSize, checksum }] = packets;
      assert.deepEqual([gsoType, gsoSize, checksum], [GSO_TCPV4, 1000, CHECKSUM_PARTIAL]);
      packets[0].release();
      await front.end();
    });

    test('that throws loses the frames that it saw, and no others', async () => {
      let left = 2;
      const front = new Front(how, () => {
        if (left-- > 0) throw new Error('a bug');
      });
      const freed = new FreedPages(front.victim.domain);
      for (const lengths of [[100, 101], [9000]]) {
        left = 1;
        await assert.rejects(front.deliver(...lengths), /a bug/);
      }
      // Each of the two was seen with the other, or alone.
      await front.path.scheduler.runFor(100);
      assert.equal(front.stats.xdpAborted + front.lengths.length, 3);
      assert.ok(front.stats.xdpAborted >= 2);
      const before = front.lengths.length;
      await front.deliver(200, 201);
      assert.deepEqual(front.lengths.slice(before), [200, 201]);
      freed.check();
      await front.end();
    });

    test('takes itself off in the middle, or puts another in its place', async () => {
      const seen: string[] = [];
      const front = new Front(how);
      const { dev } = front.victim;
      const second = (): void => {
        seen.push('second');
        dev.setXdp(null);
      };
      dev.setXdp(() => {
        seen.push('first');
        dev.setXdp(second);
      });
      await front.deliver(100);
      await front.deliver(101);
      await front.deliver(102);
      assert.deepEqual(seen, ['first', 'second']);
      assert.deepEqual(front.lengths, [100, 101, 102]);
      await front.end();
    });

    test('destroys the queue whose frames it sees', async () => {
      for (const verdict of [XDP_PASS, XDP_DROP, XDP_TX]) {
        for (const lengths of [Array<number>(20).fill(100), [9000, 100, 9000]]) {
          const front = new Front(how);
          const { victim } = front;
          const freed = new FreedPages(victim.domain);
          let seen = 0;
          victim.dev.setXdp(buffs => {
            buffs.verdict.fill(verdict);
            if (seen++ === 0) victim.disconnect();
          });
          await front.deliver(...lengths);
          assert.equal(seen, 1);
          await front.path.scheduler.runFor(2000);
          freed.check();
          const { net, reclaimer, platform } = victim.dom;
          assert.deepEqual([net.packets.used, reclaimer.pending, platform.grants.allocated], [0, 0, 0]);
          assert.equal(victim.pages, front.pages);
        }
      }
    });
  });

  describe(`frames that are sent without packets${where}`, () => {
    test('reach the backend, and their pages come back when it has answered', async () => {
      const front = new Front(how);
      const { dev, granted } = front.victim;
      const frames = new XdpFrames(dev);
      front.add(frames, 60, 0x11);
      front.add(frames, 1500, 0x22, 100);
      front.add(frames, PAGE_SIZE, 0x33);
      assert.equal(dev.xdpXmit(frames), 3);
      assert.equal(frames.count, 0);
      assert.equal(granted.pages.used, 3);
      const sent = await front.sent();
      assert.deepEqual(sent, [
        new Uint8Array(60).fill(0x11),
        new Uint8Array(1500).fill(0x22),
        new Uint8Array(PAGE_SIZE).fill(0x33),
      ]);
      assert.equal(granted.pages.used, 0);
      assert.deepEqual([dev.stats.txPackets, dev.stats.txBytes], [3, 60 + 1500 + PAGE_SIZE]);
      assert.deepEqual(front.stats, { ...NONE, xdpXmit: 3 });
      await front.end();
    });

    test('go among packets of the stack', async () => {
      const front = new Front(how);
      const { dev } = front.victim;
      const frames = new XdpFrames(dev);
      dev.xmit(packetFrom(dev, front.frame(100)));
      front.add(frames, 60, 0x11);
      dev.xdpXmit(frames);
      dev.xmit(packetFrom(dev, front.frame(101)));
      assert.deepEqual(
        (await front.sent()).map(bytes => bytes.length),
        [100, 60, 101],
      );
      assert.equal(front.victim.granted.pages.used, 0);
      await front.end();
    });

    test("stay the sender's when the ring is full, and a wake says when to go on", async () => {
      const front = new Front(how);
      const { dev } = front.victim;
      const frames = new XdpFrames(dev);
      let wakes = 0;
      dev.onWake(() => wakes++);
      const counts: number[] = [];
      for (let i = 0; i < 5; i++) {
        while (front.add(frames, 60 + i, i) >= 0);
        counts.push(dev.xdpXmit(frames));
      }
      assert.deepEqual(counts, [64, 64, 64, 64, 0]);
      assert.equal(frames.count, XDP_BATCH);
      assert.ok(dev.congested);
      // What the stack sends meanwhile waits.
      dev.xmit(packetFrom(dev, front.frame(100)));
      assert.equal((await front.sent()).length, 256);
      assert.equal(wakes, 1);
      assert.equal(dev.xdpXmit(frames), 64);
      const rest = await front.sent();
      assert.deepEqual([rest.length, rest[0].length, rest[1][0]], [65, 100, 4]);
      await front.end();
    });

    test('go as far as there is room, the first ones first', async () => {
      const front = new Front(how);
      const { dev } = front.victim;
      const frames = new XdpFrames(dev);
      for (let i = 0; i < 250; i++) {
        if (front.add(frames, 60, 0) < 0) {
          dev.xdpXmit(frames);
          front.add(frames, 60, 0);
        }
      }
      dev.xdpXmit(frames);
      for (let i = 0; i < 10; i++) front.add(frames, 60 + i, i, 100 * i);
      assert.equal(dev.xdpXmit(frames), 6);
      assert.deepEqual([frames.count, ...frames.bytes.subarray(0, 4)], [4, 66, 67, 68, 69]);
      await front.sent();
      assert.equal(dev.xdpXmit(frames), 4);
      assert.deepEqual(
        (await front.sent()).map(bytes => [bytes.length, bytes[0]]),
        [6, 7, 8, 9].map(i => [60 + i, i]),
      );
      await front.end();
    });

    test('are lost with their connection', async () => {
      const front = new Front(how);
      const { victim, path } = front;
      const { dev } = victim;
      const freed = new FreedPages(victim.domain);
      const frames = new XdpFrames(dev);
      for (let i = 0; i < 10; i++) front.add(frames, 60, 0);
      dev.xdpXmit(frames);
      for (let i = 0; i < 5; i++) front.add(frames, 60, 0);
      victim.disconnect();
      await path.scheduler.runFor(2000);
      assert.equal(frames.add(60), -1, 'there is no connection');
      assert.equal(frames.count, 0);
      victim.connect();
      await path.scheduler.runFor(2000);
      front.add(frames, 60, 1);
      victim.disconnect();
      victim.connect();
      await path.scheduler.runFor(2000);
      assert.equal(dev.xdpXmit(frames), 0);
      assert.deepEqual([frames.count, dev.stats.txDropped], [0, 1]);
      front.add(frames, 61, 2);
      assert.equal(dev.xdpXmit(frames), 1);
      assert.deepEqual(await front.sent(), [new Uint8Array(61).fill(2)]);
      freed.check();
      await front.end();
    });

    test('make room for those of the next connection when they are as many as there may be', async () => {
      const front = new Front(how);
      const { victim, path } = front;
      const frames = new XdpFrames(victim.dev);
      while (front.add(frames, 60, 0) >= 0);
      assert.equal(frames.count, XDP_BATCH);
      victim.disconnect();
      victim.connect();
      await path.scheduler.runFor(2000);
      assert.ok(front.add(frames, 60, 0) >= 0);
      assert.equal(frames.count, 1);
      frames.release();
      await front.end();
    });

    test('are not sent without a carrier, nor by a device that is down', async () => {
      const front = new Front(how);
      const { dev } = front.victim;
      const frames = new XdpFrames(dev);
      front.add(frames, 60, 7);
      dev.carrierOff();
      assert.equal(dev.xdpXmit(frames), 0);
      dev.carrierOn();
      dev.close();
      assert.equal(dev.xdpXmit(frames), 0);
      dev.open();
      assert.equal(dev.xdpXmit(frames), 1);
      assert.deepEqual(await front.sent(), [new Uint8Array(60).fill(7)]);
      await front.end();
    });

    test('are not answered twice: the backend is broken then', async () => {
      const front = new Front(how);
      const { victim } = front;
      const frames = new XdpFrames(victim.dev);
      front.add(frames, 60, 7);
      front.add(frames, 60, 8);
      victim.dev.xdpXmit(frames);
      const [{ id }] = victim.back.txRequests();
      victim.back.respondTx(id);
      victim.back.respondTx(id);
      await victim.strike();
      assert.equal(victim.broken.length, 1);
      assert.equal(victim.granted.pages.used, 1);
      front.add(frames, 60, 7);
      assert.equal(victim.dev.xdpXmit(frames), 0);
      frames.release();
      victim.broken.length = 0;
      await front.end();
    });
  });
}

describe('frames without packets', () => {
  test('are refused with a reason', async () => {
    const front = new Front({ ringCode: true });
    const { dev, dom } = front.victim;
    const frames = new XdpFrames(dev);
    assert.throws(
      () => frames.add(13),
      /^RangeError: a frame has 14 to 4096 bytes within a page, not 13 at 0$/u,
    );
    assert.throws(() => frames.add(4096, 1), RangeError);
    assert.throws(() => frames.add(60, -1), RangeError);
    assert.throws(() => frames.add(Number.NaN), RangeError);
    assert.throws(() => dev.xdpXmit(frames, 1), { code: 'EINVAL', message: /there is no transmit queue 1/ });
    const lo = dom.net.allocEtherdev('dummy%d', { startXmit: () => 0 });
    assert.throws(() => lo.setXdp(() => {}), { code: 'EOPNOTSUPP', message: /its driver has no XDP/ });
    assert.throws(() => lo.xdpXmit(frames), { code: 'EOPNOTSUPP' });
    const other = new Front({ ringCode: true });
    assert.throws(() => other.victim.dev.xdpXmit(frames), {
      code: 'EINVAL',
      message: /these frames are in pages of eth0/,
    });
    await other.end();
    await front.end();
  });

  test('are not to be had where the backend must not see what else is in a page', async () => {
    const front = new Front({ ringCode: true, trusted: false });
    assert.equal(new XdpFrames(front.victim.dev).add(60), -1);
    await front.end();
  });

  test('that are kept leave packets no page, which are lost then, and nothing stops', async () => {
    const front = new Front({ ringCode: true });
    const { dev } = front.victim;
    const kept = Array.from({ length: 8 }, () => new XdpFrames(dev));
    for (const frames of kept) while (front.add(frames, 60, 0) >= 0);
    assert.equal(
      kept.reduce((sum, { count }) => sum + count, 0),
      512,
    );
    dev.xmit(packetFrom(dev, front.frame(100)));
    assert.deepEqual([dev.stats.txDropped, dev.congested], [1, false]);
    // With a frame on its way there will be a response: the next one waits for it.
    assert.equal(dev.xdpXmit(kept[0]), 64);
    dev.xmit(packetFrom(dev, front.frame(101)));
    assert.equal(dev.congested, true);
    assert.equal((await front.sent()).length, 64);
    assert.deepEqual(
      (await front.sent()).map(bytes => bytes.length),
      [101],
    );
    for (const frames of kept) frames.release();
    await front.end();
  });

  test('end when the grant table is full', async () => {
    const front = new Front({ ringCode: true });
    const { victim } = front;
    const { grants } = victim.domain.platform;
    const held: number[] = [];
    try {
      for (;;) held.push(grants.alloc());
    } catch {
      for (const gref of held.splice(-3)) grants.free(gref);
    }
    const frames = new XdpFrames(victim.dev);
    for (let i = 0; i < 10; i++) front.add(frames, 60, i);
    assert.equal(victim.dev.xdpXmit(frames), 3);
    assert.equal(frames.count, 7);
    assert.equal((await front.sent()).length, 3);
    // Pages that came back are granted already, but these are others; nobody would wake a queue without requests.
    assert.equal(victim.dev.xdpXmit(frames), 0);
    assert.ok(!victim.dev.congested);
    for (const gref of held) grants.free(gref);
    assert.equal(victim.dev.xdpXmit(frames), 7);
    await front.sent();
    await front.end();
  });
});

test('a program is on a device until it leaves, and ip link shows it', async () => {
  const front = new Front({ ringCode: true });
  const { dev, dom } = front.victim;
  const told: string[] = [];
  dom.net.onLinkMessage(message => {
    const [{ payload }] = decodeMessages(message);
    told.push(Buffer.from(decodeLink(payload).attributes.get(IFLA.XDP)!).toString('hex'));
  });
  const shown = () => ip(dom.net, ['link', 'show', 'eth0']).stdout;
  dev.setXdp(function firewall() {});
  assert.deepEqual([dev.xdp?.id, dev.xdp?.name], [1, 'firewall']);
  assert.match(shown(), /mtu 9000 xdp qdisc pfifo_fast .*\n.*\n {4}prog\/xdp id 1 name firewall \n$/u);
  const [{ mtu, xdp }] = JSON.parse(ip(dom.net, ['-j', 'link', 'show', 'eth0']).stdout);
  const attached = { mode: 1, prog: { id: 1, name: 'firewall' } };
  assert.deepEqual([mtu, xdp], [9000, { ...attached, attached: [attached] }]);
  dev.setXdp(() => {});
  assert.deepEqual([dev.xdp?.id, dev.xdp?.name], [2, 'xdp']);
  dev.setXdp(null);
  assert.doesNotMatch(shown(), /xdp/u);
  // As Linux 6.18 does, but for the numbers: DRV_PROG_ID, ATTACHED, PROG_ID.
  assert.deepEqual(told, [
    '08000500010000000500020001000000' + '0800040001000000',
    '08000500020000000500020001000000' + '0800040002000000',
    '0500020000000000',
  ]);
  dev.setXdp(() => {});
  await front.end();
  await dom.net.unregister(dev);
  assert.equal(dev.xdp, null);
});
