import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { FILTER_PASS } from '../../src/netback/index.js';
import { type Of, rarely, u32 } from '../support/arbitraries.js';
import { ALL_FEATURES } from '../support/data-path.js';
import { type Attacker, holdings } from '../support/hostile.js';
import { books, isSmall, packet, RawGuest, RING_SIZE, soundPacket } from '../support/raw-guest.js';
import { RawPair } from '../support/raw-pair.js';

const SOUND = 0;
const HOSTILE = 1;
const RECEIVER = 2;
/** Long enough for what a round sets going, even when an event has to wait; too short for packets to expire. */
const ROUND_MS = 100;

/** A packet so many times: more than a poll takes, so that the senders' polls take turns. */
const burst = fc.record({
  hostile: fc.boolean(),
  sound: fc.array(soundPacket, { minLength: 1, maxLength: 5 }),
  any: fc.array(fc.oneof({ weight: 3, arbitrary: soundPacket }, { weight: 1, arbitrary: packet }), {
    minLength: 1,
    maxLength: 5,
  }),
  times: fc.oneof(
    { weight: 4, arbitrary: fc.constant(1) },
    { weight: 1, arbitrary: fc.integer({ min: 2, max: 50 }) },
  ),
});

/** What somebody does between two rounds. */
const CHANGES: readonly ((world: World) => void)[] = [
  ({ receiver }) => {
    receiver.vif.dev.mtu = 9500 - receiver.vif.dev.mtu;
  },
  ({ receiver }) => {
    receiver.vif.filter = receiver.vif.filter === null ? () => FILTER_PASS : null;
  },
  ({ hostile }) => {
    hostile.vif.filter = hostile.vif.filter === null ? one => one.length & 1 : null;
  },
  ({ receiver }) => receiver.vif.setCarrier(!receiver.vif.carrier),
  ({ receiver }) => {
    const [queue] = receiver.vif.dev.txQueues;
    if (queue.stopped) queue.wake();
    else queue.stop();
  },
  ({ pair, receiver, hostile }) => pair.learn(receiver.mac, hostile),
  ({ pair, receiver }) => pair.learn(receiver.mac, receiver),
  ({ pair }) => pair.path.bridge.fdb.flush(),
  world => world.guests[HOSTILE].reconnect(),
  world => world.guests[RECEIVER].reconnect(),
];

const round = fc.record({
  change: rarely(5, fc.constantFrom(...CHANGES)),
  bursts: fc.array(burst, { minLength: 1, maxLength: 4 }),
  /** The host runs after each burst, or after all of them. */
  apart: fc.boolean(),
  /** Requests that the receiver posts before the bursts, and when the host has run. */
  posted: fc.oneof({ weight: 3, arbitrary: fc.constant(RING_SIZE) }, { weight: 2, arbitrary: fc.nat(60) }),
  late: fc.oneof(fc.constant(0), fc.nat(30)),
  badGref: rarely(8, fc.tuple(fc.nat(20), u32)),
  regrant: rarely(8, fc.tuple(fc.constantFrom(HOSTILE, RECEIVER), fc.nat(20), fc.boolean())),
  /** The hostile one's producer index is anywhere. */
  index: rarely(15, fc.tuple(fc.boolean(), fc.integer({ min: -300, max: 300 }))),
});

const scenario = fc.record({
  start: fc.constantFrom(0, 0, 200, 0xffffffc0, 0x7fffffe0),
  receiver: fc.constantFrom(
    {},
    {},
    { mtu: 1500 },
    { features: { ...ALL_FEATURES, noCsumOffload: true, gsoTcpv4: false } },
    { domain: { grantVersion: 2 as const } },
  ),
  split: fc.boolean(),
  /** Events of both senders are seen in the order of their ports. */
  hostileFirst: fc.boolean(),
  /** Packets that go into one page, and grants that may be bad. */
  small: rarely(3, fc.constant(true)),
  rounds: fc.array(round, { minLength: 1, maxLength: 6 }),
});

/** In the place of bytes that would fill a page of a report. */
function digest(bytes: Uint8Array): string {
  return `${bytes.length} bytes, ${createHash('sha256').update(bytes).digest('hex')}`;
}

/** Two senders, of which one is hostile, and who receives from both. */
class World {
  readonly pair: RawPair;
  readonly sound: Attacker;
  readonly hostile: Attacker;
  readonly guests: readonly RawGuest[];
  private readonly small: boolean;
  /** Frames of the sound sender that the receiver got. */
  private readonly fromSound: string[] = [];

  constructor(fastPath: boolean, { start, receiver, split, hostileFirst, small }: Of<typeof scenario>) {
    this.small = small ?? false;
    this.pair = new RawPair(fastPath, { start, receiver: { split, ...receiver }, sender: { split } });
    const { path, sender } = this.pair;
    const other = this.pair.add({ split });
    [this.sound, this.hostile] = hostileFirst ? [other, sender] : [sender, other];
    this.guests = [
      new RawGuest(path, this.sound, this.receiver),
      new RawGuest(path, this.hostile, this.receiver),
      new RawGuest(path, this.receiver, this.sound),
    ];
    // How much waits at a time depends on when it is looked at.
    for (const { own } of this.guests) own.vif.dev.txQueues[0].setMinLimit(1 << 29);
  }

  get receiver(): Attacker {
    return this.pair.receiver;
  }

  /** The hostile one's vif is disabled. */
  get fatal(): boolean {
    return this.hostile.fatal.length > 0;
  }

  /** How many requests a copy of several pages that failed takes depends on whether another packet was behind it. */
  get uncertain(): boolean {
    const failed = this.guests.some(({ own }) => own.vif.queues.some(({ stats }) => stats.rxCopyErrors > 0));
    return failed && !this.small;
  }

  get dropped(): number {
    return this.receiver.vif.dev.stats.txDropped;
  }

  play({ change, bursts, apart, posted, late, badGref, regrant, index }: Of<typeof round>): void {
    const { guests } = this;
    if (!this.fatal) change?.(this);
    // What that set going must not come before or after the senders' events by chance: it would change whose packets are first.
    this.settle();
    for (const sender of [SOUND, HOSTILE]) guests[sender].post(3);
    guests[RECEIVER].post(posted);
    if (badGref !== undefined && this.small) guests[RECEIVER].nameOther(...badGref);
    if (regrant !== undefined && this.small) guests[regrant[0]].regrant(regrant[1], regrant[2]);
    for (const one of bursts) {
      this.send(one);
      if (apart) this.run();
    }
    this.run(index);
    guests[RECEIVER].post(late);
    this.run();
  }

  private send({ hostile, sound, any, times }: Of<typeof burst>): void {
    const guest = this.guests[hostile ? HOSTILE : SOUND];
    for (const one of hostile ? any : sound) {
      for (let i = 0; i < times; i++) if (!this.small || isSmall(one)) guest.send(one);
    }
  }

  /** Publishes what is on the rings, and lets the host run. */
  private run(index?: Of<typeof round>['index']): void {
    const { guests } = this;
    for (const guest of guests) guest.publish();
    if (index !== undefined && !this.fatal) guests[HOSTILE].moveIndex(...index);
    for (const guest of guests) guest.kick();
    this.settle();
    const source = Buffer.from(this.sound.mac);
    for (const frame of guests[RECEIVER].arrived()) {
      if (frame.subarray(6, 12).equals(source)) this.fromSound.push(digest(frame));
    }
  }

  private settle(): void {
    assert.ok(this.pair.path.scheduler.runForNow(ROUND_MS, 20_000) < 20_000);
  }

  /** Has the receiver take all that waits for it. */
  drain(): void {
    const waits = () => this.receiver.vif.queues.some(({ waitingPages }) => waitingPages > 0);
    for (let i = 0; i < 50 && waits(); i++) {
      this.guests[RECEIVER].post(RING_SIZE);
      this.run();
    }
  }

  /** All that there is to know, but for memory. */
  outcome(): unknown {
    const { path } = this.pair;
    const guests = this.guests.map(({ own }) => own);
    return {
      books: books(path, guests),
      holdings: holdings(path),
      fatal: guests.map(({ fatal }) => [...fatal]),
    };
  }

  memory(): Buffer[] {
    return this.guests.map(guest => guest.memory());
  }

  /** What became of the sound sender's packets. */
  soundOutcome(): unknown {
    const { sound } = this;
    const { rxPackets, rxBytes, rxErrors, rxDropped } = sound.vif.dev.stats;
    const frames = this.fromSound.splice(0);
    const tx = digest(sound.front.tx.bytes());
    const { fatal } = this.hostile;
    return {
      fatal,
      frames,
      tx,
      stats: [rxPackets, rxBytes, rxErrors, rxDropped],
      holdings: holdings(this.pair.path),
    };
  }

  /** Where the bridge sends what. */
  addresses(): string {
    const table = this.pair.path.bridge.forwardingTable();
    return table
      .map(({ address, device }) => `${address} ${device.name}`)
      .sort()
      .join();
  }
}

test('two senders compete for one receiver, and the fast path changes nothing for the three', () => {
  const seen = { fast: 0, all: 0, afterFatal: 0 };
  fc.assert(
    fc.property(scenario, one => {
      const worlds = [true, false].map(fastPath => new World(fastPath, one));
      const [quick, slow] = worlds;
      for (const each of one.rounds) {
        const dropped = worlds.map(world => world.dropped);
        for (const world of worlds) world.play(each);
        if (quick.uncertain || slow.uncertain) break;
        assert.deepEqual(quick.hostile.fatal, slow.hostile.fatal);
        if (slow.fatal) {
          // The hostile one's packets before the one that is fatal are passed on, or not: that depends on when they are looked
          // at. So what the receiver gets may differ by them, but not the other sender's packets, nor their order.
          for (const world of worlds) world.drain();
          if (worlds.some((world, i) => world.dropped !== dropped[i])) break;
          if (quick.addresses() !== slow.addresses()) break;
          assert.deepEqual(quick.soundOutcome(), slow.soundOutcome());
          seen.afterFatal++;
        } else {
          // Everything is the same, also whose packets are before whose on the receiver's ring.
          assert.deepEqual(quick.outcome(), slow.outcome());
          for (const [i, memory] of quick.memory().entries())
            assert.ok(memory.equals(slow.memory()[i]), `memory of guest ${i}`);
        }
      }
      seen.fast += quick.pair.path.fastPackets;
      for (const { own } of quick.guests) seen.all += own.vif.dev.stats.rxPackets;
    }),
    { numRuns: Number(process.env['FAST_PATH_RUNS'] ?? 100) },
  );
  assert.ok(seen.fast > seen.all / 8, `${seen.fast} of ${seen.all} packets took the fast path`);
  assert.ok(seen.afterFatal > 0, 'the hostile one broke the protocol at times');
});
