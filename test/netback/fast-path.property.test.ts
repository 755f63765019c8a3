import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { gsoExtraWord0, gsoExtraWord1, NETTXF_DATA_VALIDATED } from '../../src/abi/index.js';
import { GSO_TCPV4, type NetDevice } from '../../src/net/index.js';
import { FILTER_PASS } from '../../src/netback/index.js';
import { layout } from '../net/frames.js';
import { type Of, rarely, u32 } from '../support/arbitraries.js';
import { ALL_FEATURES } from '../support/data-path.js';
import { holdings } from '../support/hostile.js';
import {
  BLANK,
  books,
  isSmall,
  packet,
  RawGuest,
  RING_SIZE,
  soundPacket,
  type TxPacket,
} from '../support/raw-guest.js';
import { RawPair } from '../support/raw-pair.js';

/** Packets, each with who of the two sends it: most of the time one only. */
const packetsOf = (one: fc.Arbitrary<TxPacket>) =>
  fc.array(fc.tuple(fc.oneof(fc.constant(0), fc.nat(1)), one), { minLength: 1, maxLength: 12 });

/** What somebody does between two rounds. */
const CHANGES: readonly ((world: World) => void)[] = [
  ({ pair: { receiver } }) => {
    receiver.vif.dev.mtu = 9500 - receiver.vif.dev.mtu;
  },
  ({ pair: { receiver } }) => {
    receiver.vif.filter = receiver.vif.filter === null ? () => FILTER_PASS : null;
  },
  ({ pair: { sender } }) => {
    sender.vif.filter = sender.vif.filter === null ? packet => packet.length & 1 : null;
  },
  ({ pair: { receiver } }) => receiver.vif.setCarrier(!receiver.vif.carrier),
  // With headroom a packet takes two requests at least.
  ({ pair: { receiver }, small }) => receiver.vif.setXdpHeadroom(small ? 0 : 256 - receiver.vif.xdpHeadroom),
  ({ pair: { path, sender, receiver } }) => {
    for (const { vif } of [sender, receiver]) {
      const port = path.bridge.portOf(vif.dev as NetDevice)!;
      port.isolated = !port.isolated;
    }
  },
  ({ pair: { receiver } }) => {
    const [queue] = receiver.vif.dev.txQueues;
    if (queue.stopped) queue.wake();
    else queue.stop();
  },
  ({ pair }) => pair.learn(pair.receiver.mac, pair.sender),
  ({ pair }) => pair.learn(pair.receiver.mac, pair.receiver),
  ({ pair }) => pair.path.bridge.fdb.flush(),
  world => world.reconnect(0),
  world => world.reconnect(1),
];

const round = fc.record({
  change: rarely(4, fc.constantFrom(...CHANGES)),
  packets: fc.oneof(packetsOf(soundPacket), packetsOf(soundPacket), packetsOf(fc.oneof(soundPacket, packet))),
  posted: fc.tuple(
    fc.oneof({ weight: 3, arbitrary: fc.constant(40) }, { weight: 1, arbitrary: fc.nat(60) }),
    fc.nat(40),
  ),
  /** A request that was posted names another grant. */
  badGref: rarely(8, fc.tuple(fc.nat(1), fc.nat(20), u32)),
  /** A grant that is taken away, or given for reading only. */
  regrant: rarely(8, fc.tuple(fc.nat(1), fc.nat(20), fc.boolean())),
  /** A producer index that is anywhere. */
  index: rarely(30, fc.tuple(fc.nat(1), fc.boolean(), fc.integer({ min: -300, max: 300 }))),
});

const scenario = fc.record({
  start: fc.constantFrom(0, 0, 200, 0xffffffc0, 0x7fffffe0),
  receiver: fc.constantFrom(
    {},
    {},
    {},
    { mtu: 1500 },
    { features: { ...ALL_FEATURES, noCsumOffload: true, ipv6CsumOffload: false } },
    { features: { ...ALL_FEATURES, gsoTcpv4: false, gsoTcpv6: false } },
    { features: { ...ALL_FEATURES, gsoPrefix: 1 << GSO_TCPV4 } },
    { domain: { grantVersion: 2 as const } },
  ),
  split: fc.boolean(),
  /** Packets that go into one page, and grants that may be bad. */
  small: rarely(3, fc.constant(true)),
  /** Frames may go back where they came from. */
  hairpin: rarely(4, fc.constant(true)),
  rounds: fc.array(round, { minLength: 1, maxLength: 8 }),
});

class World {
  readonly pair: RawPair;
  readonly small: boolean;
  private readonly guests: RawGuest[];

  constructor(fastPath: boolean, { start, receiver, split, hairpin, small }: Of<typeof scenario>) {
    this.small = small ?? false;
    this.pair = new RawPair(fastPath, { start, receiver: { split, ...receiver }, sender: { split } });
    const { sender, receiver: other } = this.pair;
    this.guests = [new RawGuest(this.pair.path, sender, other), new RawGuest(this.pair.path, other, sender)];
    // How much waits at a time depends on when it is looked at.
    for (const { vif } of [sender, other]) {
      vif.dev.txQueues[0].setMinLimit(1 << 29);
      this.pair.path.bridge.portOf(vif.dev as NetDevice)!.hairpin = hairpin ?? false;
    }
  }

  play({ change, packets, posted, badGref, regrant, index }: Of<typeof round>): void {
    const { guests } = this;
    change?.(this);
    for (const [who, one] of packets) if (!this.small || isSmall(one)) guests[who].send(one);
    for (const who of [0, 1]) guests[who].post(posted[1 - who]);
    if (badGref !== undefined && this.small) guests[badGref[0]].nameOther(badGref[1], badGref[2]);
    if (regrant !== undefined && this.small) guests[regrant[0]].regrant(regrant[1], regrant[2]);
    for (const guest of guests) guest.publish();
    if (index !== undefined) guests[index[0]].moveIndex(index[1], index[2]);
    for (const guest of guests) guest.kick();
    const steps = this.pair.path.scheduler.runForNow(100, 5000);
    assert.ok(steps < 5000);
  }

  reconnect(guest: number): void {
    this.guests[guest].reconnect();
  }

  memory(): Buffer[] {
    return this.guests.map(guest => guest.memory());
  }

  /** How many requests a copy of several pages that failed takes depends on whether another packet was behind it. */
  get uncertain(): boolean {
    const { sender, receiver } = this.pair;
    const failed = [sender, receiver].some(({ vif }) =>
      vif.queues.some(({ stats }) => stats.rxCopyErrors > 0),
    );
    return failed && !this.small;
  }

  /** Why vifs were disabled, and what is held. */
  end(): { fatal: string[][]; holdings: unknown } {
    const { path, sender, receiver } = this.pair;
    return { fatal: [[...sender.fatal], [...receiver.fatal]], holdings: holdings(path) };
  }

  books(): unknown {
    const { path, sender, receiver } = this.pair;
    return books(path, [sender, receiver]);
  }
}

test('whatever is on the rings, the fast path changes nothing about what becomes of it', () => {
  let fast = 0;
  let all = 0;
  fc.assert(
    fc.property(scenario, one => {
      const worlds = [true, false].map(fastPath => new World(fastPath, one));
      for (const each of one.rounds) {
        for (const world of worlds) world.play(each);
        const [quick, slow] = worlds;
        if (quick.uncertain || slow.uncertain) break;
        assert.deepEqual(quick.end(), slow.end());
        // Sound packets before one that is fatal are passed on, or not: that depends on when they are looked at.
        if (slow.end().fatal.flat().length > 0) break;
        assert.deepEqual(quick.books(), slow.books());
        for (const [i, memory] of quick.memory().entries())
          assert.ok(memory.equals(slow.memory()[i]), `memory of guest ${i}`);
      }
      const { path, sender, receiver } = worlds[0].pair;
      fast += path.fastPackets;
      for (const { vif } of [sender, receiver]) all += vif.dev.stats.rxPackets;
    }),
    { numRuns: Number(process.env['FAST_PATH_RUNS'] ?? 150) },
  );
  assert.ok(fast > all / 8, `${fast} of ${all} packets took the fast path`);
});

const segment = fc.record({
  count: fc.integer({ min: 1, max: 40 }),
  kind: fc.constantFrom('data', 'data', 'pushed', 'acknowledgement', 'long'),
  payload: fc.constantFrom(10, 100, 1448),
  flags: fc.constantFrom(NETTXF_DATA_VALIDATED, BLANK),
  wait: fc.boolean(),
});
type Segment = Of<typeof segment>;

function lengthOf(kind: string, payload: number): number {
  return kind === 'acknowledgement' ? 0 : kind === 'long' ? 3 * 1448 : payload;
}

/** Sends one flow through a backend that puts TCP data together. @returns sequence numbers as they came */
function sendFlow(pair: RawPair, segments: readonly Segment[]): { sequence: number; bytes: number }[] {
  const { sender, receiver, path } = pair;
  const got: { sequence: number; bytes: number }[] = [];
  let sequence = 1;
  const settle = () => {
    receiver.front.push();
    sender.front.push();
    for (const { front } of [receiver, sender]) front.kick();
    assert.ok(path.scheduler.runForNow(50, 20_000) < 20_000);
    for (const { bytes } of receiver.front.rxPackets()) {
      const { l4, payload, end } = layout(bytes);
      const at = Buffer.from(bytes).readUInt32BE(l4 + 4);
      got.push({ sequence: at, bytes: end - payload });
    }
    const room = RING_SIZE - ((receiver.front.rxNext - receiver.front.rx.rspProd) | 0);
    receiver.front.postRx(room);
  };
  settle();
  for (const { count, kind, payload, flags, wait } of segments) {
    for (let i = 0; i < count; i++) {
      if (((sender.front.txNext - sender.front.tx.rspProd) | 0) > 200) settle();
      const length = lengthOf(kind, payload);
      const bytes = pair.frame(length, { udp: false, sequence, flags: kind === 'pushed' ? 0x18 : 0x10 });
      const extras = kind === 'long' ? [[gsoExtraWord0(1448), gsoExtraWord1(1)] as const] : [];
      sender.front.packet(bytes, { flags: kind === 'long' ? BLANK : flags, extras });
      sequence += length;
    }
    if (wait) settle();
  }
  settle();
  return got;
}

test('a flow stays in order, and whole, beside GRO', () => {
  let fast = 0;
  fc.assert(
    fc.property(fc.array(segment, { minLength: 1, maxLength: 12 }), segments => {
      const pair = new RawPair(true, { sender: { gro: true } });
      let next = 1;
      for (const { sequence, bytes } of sendFlow(pair, segments)) {
        assert.equal(sequence, next);
        next += bytes;
      }
      const sent = segments.reduce(
        (sum, { count, kind, payload }) => sum + count * lengthOf(kind, payload),
        0,
      );
      assert.equal(next - 1, sent);
      const { rxErrors, rxDropped } = pair.sender.vif.dev.stats;
      assert.deepEqual([rxErrors, rxDropped, pair.receiver.vif.dev.stats.txDropped], [0, 0, 0]);
      fast += pair.path.fastPackets;
    }),
    { numRuns: 30 },
  );
  assert.ok(fast > 100, `${fast} packets took the fast path`);
});
