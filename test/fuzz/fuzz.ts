import assert from 'node:assert/strict';
import type { Packet } from '../../src/net/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath, type Guest } from '../support/data-path.js';
import { holdings } from '../support/hostile.js';
import { bytesOf, packetFrom } from '../support/packets.js';
import { NetbackFuzzer } from './netback-fuzzer.js';
import { NetfrontFuzzer } from './netfront-fuzzer.js';
import { Draw } from './random.js';

/** Scheduler steps that one case may take; virtual time that passes in one, for events held back. */
const STEPS_MAX = 3000;
const CASE_MS = 1100;
/** Cases after which the bystanders and the books are looked at. */
const AUDIT_CASES = 100;

export interface FuzzResult {
  cases: number;
  /** Connections that the peer's misbehaviour ended. */
  netbackFatal: number;
  netfrontBroken: number;
  /** Packets that got through between the bystanders meanwhile. */
  delivered: number;
  /** Packets that took the fast path. */
  fast: number;
}

/** Two guests whose packets must arrive whatever happens. */
class Pair {
  private sent: Uint8Array[] = [];
  private got = 0;
  private next = 0;
  delivered = 0;
  private readonly a: Guest;
  private readonly b: Guest;

  constructor(private readonly path: DataPath) {
    this.a = path.guest({ mtu: 9000 });
    this.b = path.guest({ mtu: 9000 });
    this.b.dev.rxHandler = (packet: Packet) => {
      const bytes = bytesOf(packet);
      packet.release();
      if (!this.a.dev.address.every((byte, i) => byte === bytes[6 + i])) return;
      // They have numbers, so that losses do not matter to those that arrive.
      const { sent } = this;
      while (this.next < sent.length && Buffer.compare(bytes, sent[this.next]) !== 0) this.next++;
      assert.ok(this.next++ < sent.length, 'a bystander’s packet was changed');
      this.got++;
    };
    this.transmit(this.b, this.a, 0);
  }

  get addresses(): number[][] {
    return [[...this.a.dev.address], [...this.b.dev.address]];
  }

  private transmit(from: Guest, to: Guest, length: number): Uint8Array {
    const bytes = buildFrame({
      source: [...from.dev.address],
      destination: [...to.dev.address],
      payload: new Uint8Array(length).fill(length & 255),
      id: this.sent.length,
      // The fast path is not for TCP data that may be put together.
      udp: this.path.fastPathModule !== null && this.sent.length % 2 === 0,
    });
    from.dev.xmit(packetFrom(from.dev, bytes));
    return bytes;
  }

  send(): void {
    this.sent.push(this.transmit(this.a, this.b, [10, 1000, 5000][this.sent.length % 3]));
  }

  /** @param lossy packets may be lost */
  check(lossy: boolean): void {
    if (!lossy) assert.equal(this.got, this.sent.length, 'packets that arrived between the bystanders');
    this.delivered += this.got;
    this.sent = [];
    this.got = 0;
    this.next = 0;
    const { a, b } = this;
    assert.deepEqual([a.broken, a.fatal, b.broken, b.fatal], [[], [], [], []]);
  }

  get domids(): number[] {
    return [this.a, this.b].map(({ dom }) => dom.platform.domid);
  }
}

/**
 * One host, made anew: a hostile frontend and a hostile backend do `cases` evil things in turn.
 * @param fastPath the frontend's packets may take the fast path; otherwise some are held up on their way
 * @throws what went wrong, with the seed and the number of the case
 */
export function fuzzHost(seed: number, cases: number, fastPath: boolean): FuzzResult {
  const draw = new Draw(seed);
  const path = new DataPath(seed, undefined, fastPath);
  const { scheduler } = path;
  const pair = new Pair(path);
  const result = { cases: 0, netbackFatal: 0, netfrontBroken: 0, delivered: 0, fast: 0 };
  const run = (ms: number) => {
    const steps = scheduler.runForNow(ms, STEPS_MAX);
    assert.ok(steps < STEPS_MAX, `the host is not quiet after ${steps} steps`);
  };
  let what = 'start';
  try {
    run(10);
    const before = holdings(path, pair.domids);
    const targets = [
      ...pair.addresses,
      [255, 255, 255, 255, 255, 255],
      [1, 0, 94, 0, 0, 1],
      [2, 0, 0, 0, 0, 77],
    ];
    const netback = new NetbackFuzzer(path, draw, targets);
    const netfront = new NetfrontFuzzer(path, draw);
    run(10);
    // On some hosts the backend's domain has hardly any memory to spare: then packets are lost.
    const starved = seed % 8 === 7;
    const { domain } = path.dom0;
    netback.starved = starved;
    if (starved) domain.limits.maxPages = domain.pages + draw.below(60);
    for (; result.cases < cases; result.cases++) {
      const fuzzer = draw.oneIn(2) ? netback : netfront;
      what = fuzzer.constructor.name;
      fuzzer.attack();
      if (draw.oneIn(8)) pair.send();
      // Some do the next thing before the host has dealt with this one, or leave in the middle.
      if (draw.oneIn(8)) scheduler.runForNow(CASE_MS, 1 + draw.below(6));
      else run(CASE_MS);
      if (draw.oneIn(50)) {
        fuzzer.reconnect();
        run(CASE_MS);
      } else if (fuzzer.broken) {
        if (fuzzer === netback) result.netbackFatal++;
        else result.netfrontBroken++;
        run(CASE_MS);
        fuzzer.check();
        fuzzer.reconnect();
      }
      if (result.cases % AUDIT_CASES !== AUDIT_CASES - 1) continue;
      what = 'audit';
      netback.letGo();
      pair.send();
      run(2000);
      netback.check();
      netfront.check();
      pair.check(starved);
      result.delivered = pair.delivered;
      result.fast = path.fastPackets;
      checkLog(path);
    }
    what = 'end';
    run(2000);
    netback.destroy();
    netfront.destroy();
    run(5000);
    pair.check(starved);
    assert.deepEqual(holdings(path, pair.domids), before);
    checkLog(path);
  } catch (error) {
    throw new Error(`seed ${seed}, case ${result.cases} (${what}): ${(error as Error).message}`, {
      cause: error,
    });
  }
  return result;
}

/** What handlers throw ends up in the kernel's log; and one vif's trouble is one line. */
function checkLog(path: DataPath): void {
  for (const { dmesg } of path.hypervisor.domains) {
    for (const line of dmesg) assert.ok(!line.includes('failed'), line);
    dmesg.length = 0;
  }
}
