import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_GSO_PREFIX,
  NETRXF_MORE_DATA,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
  xdpExtraWord0,
} from '../../src/abi/index.js';
import { NETIF_F_GRO } from '../../src/net/features.js';
import {
  CHECKSUM_PARTIAL,
  FRAGMENT_LOCAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  type Packet,
  type PagePool,
  XDP_ABORTED,
  XDP_DROP,
  XDP_PASS,
  XDP_REDIRECT,
  XDP_TX,
  type XdpBuffs,
  XdpFrames,
} from '../../src/net/index.js';
import type { RingCode, SlotBooks } from '../../src/netfront/ring-code.js';
import { type GrantMapping, PAGE_SHIFT, PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { extra, frameOptions, type Of, rarely, slotSizes, u16, wordChange } from '../support/arbitraries.js';
import { DataPath } from '../support/data-path.js';
import { holdings, Victim } from '../support/hostile.js';
import { bytesOf, packetFrom, partial } from '../support/packets.js';

const BLANK = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;

/** A packet of the stack's. */
const sent = fc.record({
  frame: frameOptions,
  /** In pages of the driver's pool with and without a linear part, or in pages that have to be copied from. */
  where: fc.constantFrom('granted', 'granted', 'headless', 'elsewhere'),
  sizes: fc.oneof(
    slotSizes,
    fc.constant([3000, ...Array<number>(15).fill(4096)]),
    fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 16, maxLength: 19 }),
  ),
  offset: fc.oneof(fc.constant(0), fc.nat(200)),
  checksum: fc.boolean(),
  gso: fc.boolean(),
});

/** A packet of the backend's. */
const received = fc.record({
  frame: frameOptions,
  sizes: slotSizes,
  offset: fc.oneof(fc.constant(0), fc.nat(200)),
  flags: fc.constantFrom(0, NETRXF_DATA_VALIDATED, BLANK),
  extras: fc.oneof(
    { weight: 6, arbitrary: fc.constant([]) },
    { weight: 3, arbitrary: fc.tuple(extra) },
    {
      weight: 1,
      arbitrary: fc.array(fc.oneof(extra, fc.constant([xdpExtraWord0(100), 0])), { maxLength: 3 }),
    },
  ),
  /** Of GSO, before it: its size, flags that are wrong, and what it says of the number of slots. */
  prefix: rarely(6, fc.tuple(u16, fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, u16), u16)),
  id: rarely(5, u16),
  mutation: rarely(15, fc.record({ slot: fc.nat(20), word: fc.nat(1), how: wordChange })),
});
type RxPacket = Of<typeof received>;

/** What a sound backend sends. */
const soundReceived = received.map((one): RxPacket => {
  const { udp, version, vlan } = one.frame;
  const sizes = one.sizes.slice(0, 18).map(size => Math.max(size, 1));
  const gso = one.extras.length > 0 && !udp && vlan === undefined;
  return {
    ...one,
    sizes,
    extras:
      gso && one.prefix === undefined ? [[gsoExtraWord0(1448), version === 4 ? GSO_TCPV4 : GSO_TCPV6]] : [],
    prefix: gso && one.prefix !== undefined ? [1448, 0, 0] : undefined,
    flags: gso ? BLANK : vlan === undefined ? one.flags : 0,
    mutation: undefined,
  };
});

const edgeStatus = fc.constantFrom(-1, 0, 1, 13, 14, 127, 128, 1000, 4095, 4096);

/** Responses that are at the edge of what is sound, to requests whose pages hold anything. */
const edge = fc.record({
  first: fc.oneof({ weight: 2, arbitrary: fc.constantFrom(128, 200) }, { weight: 1, arbitrary: edgeStatus }),
  rest: fc.oneof(
    fc.constant([]),
    fc.array(edgeStatus, { maxLength: 3 }),
    // About as many as a packet may have.
    fc.array(fc.constant(100), { minLength: 17, maxLength: 20 }),
  ),
  offset: fc.constantFrom(0, 0, 0, 1, 96),
  flags: fc.nat(3),
  extra: rarely(3, fc.tuple(fc.constantFrom(0, 1, 1448), fc.nat(3))),
  /** The last one tells of more; the last are not published, or are the next packet's. */
  open: rarely(6, fc.constant(true)),
  cut: rarely(6, fc.nat(3)),
});

/** One tx response: to which of the requests that wait, and what it says. */
const answer = fc.record({
  which: fc.nat(300),
  status: fc.oneof({ weight: 8, arbitrary: fc.constantFrom(0, 0, -1, -2) }, { weight: 1, arbitrary: u16 }),
  id: rarely(150, u16),
});

const round = fc.record({
  sent: fc.array(sent, { maxLength: 8 }),
  /** Bytes of frames that have no packet. */
  frames: fc.oneof(
    { weight: 4, arbitrary: fc.constant([]) },
    { weight: 1, arbitrary: fc.array(fc.integer({ min: 14, max: PAGE_SIZE }), { maxLength: 64 }) },
  ),
  group: rarely(4, fc.tuple(fc.nat(255), fc.boolean())),
  answers: fc.array(answer, { maxLength: 60 }),
  answerAll: fc.boolean(),
  /** Answers to extra infos. */
  nulls: fc.nat(4),
  received: fc.array(fc.oneof({ weight: 7, arbitrary: soundReceived }, { weight: 1, arbitrary: received }), {
    maxLength: 30,
  }),
  edges: fc.array(edge, { maxLength: 3 }),
  /** A page that the backend maps, for a while. */
  held: rarely(15, fc.nat(30)),
  letGo: fc.boolean(),
  /** A producer index that is anywhere. */
  index: rarely(30, fc.tuple(fc.boolean(), fc.integer({ min: -300, max: 300 }))),
  /** Packets that the stack keeps, and how many it releases that it has kept. */
  keep: fc.oneof({ weight: 6, arbitrary: fc.nat(3) }, { weight: 1, arbitrary: fc.constant(300) }),
  release: fc.oneof(fc.nat(5), fc.constant(1000)),
  later: fc.constantFrom(0, 0, 200),
});

const scenario = fc.record({
  start: fc.constantFrom(0, 0, 200, 0xffffffc0, 0x7fffffe0),
  split: fc.boolean(),
  trusted: fc.oneof(fc.constant(true), fc.boolean()),
  gsoPrefix: fc.boolean(),
  gro: fc.boolean(),
  xdp: fc.boolean(),
  rounds: fc.array(round, { minLength: 1, maxLength: 10 }),
  backendFirst: fc.boolean(),
});

/** What there is to see of a queue from inside. */
interface Innards {
  readonly code: RingCode | null;
  readonly tx: { readonly books: SlotBooks; readonly freeIdCount: number; readonly extrasUnanswered: number };
  readonly rx: { readonly pool: PagePool };
}

/** Does with a frame what its length and its bytes say. */
function judge(buffs: XdpBuffs): void {
  const { memory, data, bytes, verdict } = buffs;
  for (let i = 0; i < buffs.count; i++) {
    const sum = buffs.length(i) + 3 * memory.u8[data[i] + bytes[i] - 1];
    if (sum % 5 === 0) buffs.adjustHead(i, (sum % 64) - 32);
    if (sum % 7 === 0) buffs.adjustTail(i, (sum % 64) - 32);
    if (sum % 11 === 0) buffs.redirect(i, buffs.device);
    else verdict[i] = [XDP_PASS, XDP_PASS, XDP_DROP, XDP_TX, XDP_ABORTED, 200][sum % 6];
    judged[verdict[i]] = (judged[verdict[i]] ?? 0) + 1;
  }
}

/** How often the program said what. */
const judged: Record<number, number> = {};

/** What took which way on all hosts. */
const taken = { short: 0, long: 0, sent: 0, answered: 0, received: 0 };

class World {
  readonly path = new DataPath(1);
  readonly victim: Victim;
  readonly before: unknown;
  private readonly pagesBefore: number;
  /** What the stack received. */
  private got: unknown[] = [];
  private readonly kept: Packet[] = [];
  private keep = 0;
  /** Ids of requests that wait for an answer, and how many extra infos do. */
  private outstanding: number[] = [];
  private extras = 0;
  private seen: number;
  private inPacket = false;
  private held: GrantMapping[] = [];
  private readonly frames: XdpFrames;
  private connections = 0;

  constructor(
    private readonly ringCode: boolean,
    private readonly options: Of<typeof scenario>,
  ) {
    const { split, trusted, gsoPrefix, start, gro } = options;
    this.victim = new Victim(this.path, { ringCode, split, trusted, gsoPrefix, start });
    const { dev } = this.victim;
    if (gro) dev.features |= NETIF_F_GRO;
    if (options.xdp) dev.setXdp(judge);
    this.frames = new XdpFrames(dev);
    dev.mtu = 65535;
    // How much waits at a time depends on when it is looked at.
    dev.txQueues[0].setMinLimit(1 << 29);
    dev.rxHandler = packet => this.receive(packet);
    this.seen = start;
    this.before = holdings(this.path);
    this.pagesBefore = this.victim.pages;
    this.connect();
  }

  private connect(): void {
    this.victim.connect();
    this.victim.dev.wakeAllQueues();
    this.outstanding = [];
    this.extras = 0;
    this.seen = this.options.start;
    this.inPacket = false;
    const { code } = this.innards;
    assert.equal(code !== null, this.ringCode);
    if (code !== null) count(code);
    this.run(2000);
  }

  get innards(): Innards {
    return this.victim.queue as unknown as Innards;
  }

  private receive(packet: Packet): void {
    const { checksum, csumStart, csumOffset, gsoType, gsoSize, hashType, hash, data } = packet;
    this.got.push({
      bytes: Buffer.from(bytesOf(packet)).toString('latin1'),
      shape: [packet.linear, ...packet.size.subarray(0, packet.fragments)],
      offset: data & (PAGE_SIZE - 1),
      checksum: checksum === CHECKSUM_PARTIAL ? [csumStart, csumOffset] : checksum,
      gso: gsoType === GSO_NONE ? 0 : [gsoType, gsoSize],
      hash: hashType < 0 ? 0 : [hashType, hash],
    });
    if (this.keep > 0) {
      this.keep--;
      this.kept.push(packet);
    } else packet.release();
  }

  play(one: Of<typeof round>): void {
    const { victim } = this;
    this.keep = one.keep;
    for (const packet of this.kept.splice(0, one.release)) packet.release();
    for (const packet of one.sent) this.send(packet);
    this.sendFrames(one.frames);
    if (one.group !== undefined) {
      const [group, add] = one.group;
      victim.queue.requestMulticast(Uint8Array.of(1, 0, 0x5e, 0, 0, group), add);
    }
    this.run(0);
    this.readRequests();
    for (const each of one.answers) this.answer(each);
    if (one.answerAll) for (const id of this.outstanding.splice(0)) victim.back.respondTx(id);
    for (let i = 0; i < one.nulls && this.extras > 0; i++, this.extras--) victim.back.respondTx(0, 1);
    if (one.held !== undefined) this.hold(one.held);
    this.fillAll();
    for (const packet of one.received) this.deliver(packet);
    for (const packet of one.edges) this.deliverEdge(packet);
    this.publish(one.index);
    this.run(one.later);
    if (one.letGo) for (const mapping of this.held.splice(0)) victim.back.unmap(mapping);
  }

  private run(ms: number): void {
    const steps = this.path.scheduler.runForNow(ms + 20, 5000);
    assert.ok(steps < 5000);
  }

  private send({ frame, where, sizes, offset, checksum, gso }: Of<typeof sent>): void {
    const { victim } = this;
    const { dev, granted, dom } = victim;
    const rest = sizes.slice(1).reduce((a, b) => a + b, 0);
    const bytes = buildFrame({
      ...frame,
      tcpOptions: new Uint8Array(frame.tcpOptions),
      payload: Uint8Array.from({ length: sizes[0] + rest }, (_, i) => (i * 7 + sizes[0]) & 0xff),
    });
    const pool = where === 'elsewhere' ? dom.net.pages : granted.pages;
    if (pool.available < 40) return;
    const packet =
      where === 'granted'
        ? paged(victim, bytes, [bytes.length - rest, ...sizes.slice(1)], offset)
        : packetFrom(dev, bytes, where === 'headless' ? 0 : Math.min(offset, 128), pool);
    if (checksum && where === 'granted' && frame.vlan === undefined) {
      partial(packet, dev);
      if (gso && frame.udp !== true && bytes.length > 1500) {
        packet.gsoType = frame.version === 4 ? GSO_TCPV4 : GSO_TCPV6;
        packet.gsoSize = 1448;
      }
    }
    dev.xmit(packet);
  }

  private sendFrames(sizes: readonly number[]): void {
    const { victim, frames } = this;
    const { u8 } = victim.domain.platform.memory.memory;
    for (const bytes of sizes) {
      const at = frames.add(bytes, (PAGE_SIZE - bytes) >>> 1);
      if (at >= 0) u8.fill(bytes, at, at + bytes);
    }
    victim.dev.xdpXmit(frames);
  }

  /** Notes what waits for an answer. */
  private readRequests(): void {
    const { tx } = this.victim.back;
    for (; this.seen !== tx.reqProd; this.seen = (this.seen + 1) >>> 0) {
      const flags = tx.word(this.seen, 1) >>> 16;
      this.outstanding.push(tx.word(this.seen, 2) & 0xffff);
      if (!this.inPacket && (flags & NETTXF_EXTRA_INFO) !== 0) {
        this.seen = (this.seen + 1) >>> 0;
        this.extras++;
      }
      this.inPacket = (flags & NETTXF_MORE_DATA) !== 0;
    }
  }

  private answer({ which, status, id }: Of<typeof answer>): void {
    const { outstanding, victim } = this;
    if (id !== undefined) victim.back.respondTx(id, status);
    else if (outstanding.length > 0) {
      const [one] = outstanding.splice(which % outstanding.length, 1);
      victim.back.respondTx(one, status);
    }
  }

  /** What is granted for a slot: the request is not there any more when the backend went back. */
  private gref(index: number): number {
    return this.innards.tx.books.grefs[index & 0xff];
  }

  private hold(after: number): void {
    const { back } = this.victim;
    const { rx, rxNext } = back;
    if (after < ((rx.reqProd - rxNext) | 0)) this.held.push(back.map(this.gref(rxNext + after)));
  }

  /** Which page is posted where may differ, and so what is left in it from before. */
  private fillAll(): void {
    const { back } = this.victim;
    for (let i = back.rxNext; ((back.rx.reqProd - i) | 0) > 0; i++) {
      back.fill(this.gref(i), new Uint8Array(PAGE_SIZE).fill(i));
    }
  }

  /** Puts a packet into the pages that are posted next, as far as there are enough. */
  private deliver({ frame, sizes, offset, flags, extras, prefix, id, mutation }: RxPacket): void {
    const { back } = this.victim;
    if (((back.rx.reqProd - back.rxNext) | 0) < sizes.length + extras.length + 1) return;
    const rest = sizes.slice(1).reduce((a, b) => a + b, 0);
    const bytes = buildFrame({
      ...frame,
      tcpOptions: new Uint8Array(frame.tcpOptions),
      payload: Uint8Array.from({ length: sizes[0] + rest }, (_, i) => (i * 5 + sizes[0]) & 0xff),
    });
    const start = back.rxNext;
    if (prefix !== undefined) {
      const [size, wrong, status] = prefix;
      const flags = (NETRXF_GSO_PREFIX | NETRXF_MORE_DATA) ^ wrong;
      back.respondRx({ id, offset: size, flags, status });
    }
    let at = 0;
    for (const [i, size] of [bytes.length - rest, ...sizes.slice(1)].entries()) {
      const begin = Math.max(0, Math.min(offset, PAGE_SIZE - size));
      back.fill(this.gref(back.rxNext), bytes.subarray(at, at + Math.min(size, PAGE_SIZE - begin)), begin);
      at += size;
      const more = i + 1 < sizes.length ? NETRXF_MORE_DATA : 0;
      const first = i === 0 ? flags | (extras.length > 0 ? NETRXF_EXTRA_INFO : 0) : 0;
      back.respondRx({ id, offset: begin, flags: first | more, status: size });
      if (i > 0) continue;
      for (const [k, [word0, word1]] of extras.entries()) {
        back.rxExtra(word0 | (k + 1 < extras.length ? XEN_NETIF_EXTRA_FLAG_MORE << 8 : 0), word1);
      }
    }
    if (mutation === undefined) return;
    const { slot, word, how } = mutation;
    const changed = (back.rx.slot(start + (slot % (back.rxNext - start))) >>> 2) + word;
    back.rx.memory.i32[changed] = how(back.rx.memory.i32[changed]);
  }

  private deliverEdge({ first, rest, offset, flags, extra: info, open, cut }: Of<typeof edge>): void {
    const { back } = this.victim;
    if (((back.rx.reqProd - back.rxNext) | 0) < rest.length + 2) return;
    const start = back.rxNext;
    for (const [i, status] of [first, ...rest].entries()) {
      const more = i < rest.length || open ? NETRXF_MORE_DATA : 0;
      back.respondRx({
        offset,
        status,
        flags: i > 0 ? more : more | flags | (info === undefined ? 0 : NETRXF_EXTRA_INFO),
      });
      if (i === 0 && info !== undefined) back.rxExtra(gsoExtraWord0(info[0]), gsoExtraWord1(info[1]));
    }
    back.rxNext = Math.max(start, back.rxNext - (cut ?? 0));
  }

  private publish(index: Of<typeof round>['index']): void {
    const { back } = this.victim;
    back.txNext >>>= 0;
    back.rxNext >>>= 0;
    back.push();
    if (index !== undefined) {
      const [tx, by] = index;
      const ring = tx ? back.tx : back.rx;
      ring.rspProd = (ring.rspProd + by) >>> 0;
      if (tx) back.txNext = ring.rspProd;
      else back.rxNext = ring.rspProd;
    }
    back.kick();
  }

  /** All that there is to see; what was received since the last call. */
  books(): unknown {
    const { victim, path, innards } = this;
    const { books, freeIdCount, extrasUnanswered } = innards.tx;
    const got = this.got.splice(0);
    if (this.ringCode) taken.received += got.length;
    const { net, reclaimer } = victim.dom;
    return {
      got,
      stats: [{ ...victim.dev.stats }, { ...victim.queue.stats }],
      broken: [...victim.broken],
      holdings: holdings(path),
      held: [
        net.packets.used,
        net.pages.used,
        innards.rx.pool.used,
        victim.granted.pages.used,
        reclaimer.pending,
      ],
      frames: [this.frames.count, ...this.frames.page.subarray(0, this.frames.count)],
      waiting: [victim.dev.txQueues[0].length, victim.dev.txQueues[0].stopped],
      ids: [freeIdCount, extrasUnanswered, [...books.freeIds.subarray(0, freeIdCount)]],
      slots: [[...books.slots], Array.from(books.posted, index => index >= 0)],
      dmesg: [...victim.domain.dmesg],
      steps: path.scheduler.steps,
    };
  }

  /** The rings, and what lies in pages that were sent. */
  memory(): Buffer {
    const { back, granted, domain } = this.victim;
    const { u8 } = domain.platform.memory.memory;
    const pages = [...granted.pages.pages].filter(page => page !== 0);
    const sent = pages.map(page => u8.subarray(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT));
    return Buffer.concat([back.tx.bytes(), back.rx.bytes(), ...sent]);
  }

  get broken(): boolean {
    return this.victim.broken.length > this.connections;
  }

  reconnect(): void {
    this.disconnect();
    this.connections = this.victim.broken.length;
    this.connect();
  }

  disconnect(): void {
    const { victim, options } = this;
    this.held = [];
    if (options.backendFirst) victim.disconnect();
    else {
      victim.dev.carrierOff();
      victim.dev.txPool = null;
      victim.queue.destroy();
      victim.granted.retire();
      this.run(0);
      victim.back.destroy();
      victim.dom.reclaimer.retry();
    }
    victim.dev.txQueues[0].reset();
    this.run(2000);
  }

  /** Takes all down; everything must be given back. */
  end(): void {
    const { victim, kept } = this;
    this.disconnect();
    this.frames.release();
    for (const packet of kept.splice(0)) packet.release();
    victim.dom.reclaimer.retry();
    assert.deepEqual(holdings(this.path), this.before);
    const { net, reclaimer, platform } = victim.dom;
    assert.deepEqual([net.packets.used, net.pages.used], [0, 0]);
    assert.deepEqual([reclaimer.pending, platform.grants.allocated], [0, 0]);
    assert.equal(victim.pages, this.pagesBefore);
  }
}

/** A packet in pages of the driver's pool, with its linear part in the first. */
function paged({ dev, granted }: Victim, bytes: Uint8Array, sizes: number[], offset: number): Packet {
  const packet = dev.net.packets.get();
  const { pages } = granted;
  packet.pool = pages;
  let at = 0;
  for (const size of sizes.filter(each => each > 0)) {
    const index = pages.alloc();
    const begin = Math.min(offset, PAGE_SIZE - size);
    const address = (pages.pages[index] << PAGE_SHIFT) + begin;
    packet.memory.u8.set(bytes.subarray(at, at + size), address);
    if (at === 0) {
      packet.linearPoolIndex = index;
      packet.data = address;
      packet.linear = size;
      packet.length = size;
    } else packet.addFragment(FRAGMENT_LOCAL, pages.pages[index], begin, size, index);
    at += size;
  }
  return packet;
}

/** Notes what the code in WebAssembly takes. */
function count(code: RingCode): void {
  const { receive, receiveLong, send, reclaim } = code;
  code.receive = (...args) => {
    const packets = receive.apply(code, args);
    taken.short += packets;
    return packets;
  };
  code.receiveLong = (...args) => {
    const took = receiveLong.apply(code, args);
    if (took) taken.long++;
    return took;
  };
  code.send = (...args) => {
    taken.sent++;
    return send.apply(code, args);
  };
  code.reclaim = (...args) => {
    const packets = reclaim.apply(code, args);
    taken.answered += packets;
    return packets;
  };
}

test('whatever a backend does, code in WebAssembly and TypeScript make the same of it', () => {
  let broken = 0;
  fc.assert(
    fc.property(scenario, one => {
      const [quick, slow] = [true, false].map(ringCode => new World(ringCode, one));
      for (const each of one.rounds) {
        for (const world of [quick, slow]) world.play(each);
        assert.deepEqual(quick.books(), slow.books());
        assert.ok(quick.memory().equals(slow.memory()), 'the rings, or what was sent');
        if (!slow.broken) continue;
        broken++;
        for (const world of [quick, slow]) world.reconnect();
      }
      for (const world of [quick, slow]) world.end();
      assert.deepEqual(quick.books(), slow.books());
    }),
    { numRuns: Number(process.env['RING_CODE_RUNS'] ?? 100) },
  );
  assert.ok(taken.short + taken.long > taken.received / 4, `${taken.short} short, ${taken.long} long`);
  assert.ok(taken.long > 50 && taken.sent > 50 && taken.answered > 50, JSON.stringify(taken));
  for (const verdict of [XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT]) {
    assert.ok(judged[verdict] > 20, `${judged[verdict]} times ${verdict}`);
  }
  assert.ok(broken > 10, `${broken} times the device was broken`);
});
