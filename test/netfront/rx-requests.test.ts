import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { NETRXF_MORE_DATA } from '../../src/abi/index.js';
import type { Packet } from '../../src/net/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { DataPath } from '../support/data-path.js';
import { Victim } from '../support/hostile.js';

/** Requests that are posted to begin with, and at least; what is on a ring; what a packet of 64 KiB takes. */
const FEWEST = 32;
const RING = 256;
const LONG = 65_535;
const LONG_SLOTS = 17;
const HEADERS = 200;

/** A frontend, and how many of its requests its backend has not used. */
class Frontend {
  readonly path = new DataPath(1);
  readonly victim: Victim;

  constructor(ringCode: boolean) {
    this.victim = new Victim(this.path, { ringCode });
    this.victim.dev.rxHandler = packet => packet.release();
    this.victim.connect();
  }

  get posted(): number {
    const { rx, rxNext } = this.victim.back;
    return (rx.reqProd - rxNext) | 0;
  }

  /** Puts a packet into the next requests, a long one's headers into one of their own. @returns false without enough */
  private deliver(length: number): boolean {
    const first = length > PAGE_SIZE ? HEADERS : length;
    const slots = 1 + Math.ceil((length - first) / PAGE_SIZE);
    if (this.posted < slots) return false;
    const { back } = this.victim;
    back.respondRx({ status: first, flags: slots > 1 ? NETRXF_MORE_DATA : 0 });
    for (let left = length - first; left > 0; left -= PAGE_SIZE) {
      back.respondRx({
        status: Math.min(left, PAGE_SIZE),
        flags: left > PAGE_SIZE ? NETRXF_MORE_DATA : 0,
      });
    }
    return true;
  }

  /** Sends as many packets as there is room for, up to `count`, at once. @returns the requests posted afterwards */
  async burst(length: number, count = RING): Promise<number> {
    for (let i = 0; i < count && this.deliver(length); ) i++;
    await this.victim.strike();
    assert.ok(this.posted >= FEWEST && this.posted <= RING, `${this.posted} requests`);
    return this.posted;
  }

  async bursts(rounds: number, length: number, count = RING): Promise<number[]> {
    const posted: number[] = [];
    for (let i = 0; i < rounds; i++) posted.push(await this.burst(length, count));
    return posted;
  }

  /** Receives packets of one slot, and keeps them, until no page is left to post. @returns them, one for each page */
  async keepAll(): Promise<Packet[]> {
    const { victim } = this;
    const kept: Packet[] = [];
    victim.dev.rxHandler = packet => kept.push(packet);
    await this.bursts(4, 100);
    while (this.posted > 0) {
      victim.back.respondRx({ status: 100 });
      await victim.strike();
    }
    assert.equal(kept.length, 2 * RING);
    return kept;
  }

  async end(): Promise<void> {
    const { victim, path } = this;
    assert.deepEqual(victim.broken, []);
    victim.disconnect();
    await path.scheduler.runFor(2000);
    assert.equal(victim.dom.net.packets.used, 0);
    assert.equal(victim.dom.platform.grants.allocated, 0);
  }
}

for (const ringCode of [true, false]) {
  describe(`a frontend's rx requests${ringCode ? '' : ', without code in WebAssembly'}`, () => {
    const check = (name: string, what: (front: Frontend) => Promise<void>) =>
      test(name, async () => {
        const front = new Frontend(ringCode);
        await front.path.scheduler.runReady();
        assert.equal(front.posted, FEWEST);
        await what(front);
        await front.end();
      });

    check(
      'are as many as to begin with while it is idle, whatever its backend notifies it of',
      async front => {
        for (let i = 0; i < 100; i++) {
          front.victim.back.kick();
          await front.path.scheduler.runFor(1000);
          assert.equal(front.posted, FEWEST);
        }
      },
    );

    /** Requests that are posted in the end, when the same burst comes again and again. */
    const settled: [what: string, length: number, count: number, posted: number][] = [
      ['single packets', 100, 1, FEWEST],
      ['packets of two slots', 5000, 1, FEWEST],
      ['bursts of 8', 100, 8, FEWEST],
      ['bursts of 13, which leave enough for a packet of 64 KiB', 100, 13, FEWEST],
      ['bursts of 14, which do not', 100, 14, 40],
      ['bursts of 30', 1500, 30, 50],
      ['single packets of 64 KiB', LONG, 1, 40],
      ['two packets of 64 KiB at a time', LONG, 2, 62],
      ['packets of 64 KiB, as many as there is room for', LONG, RING, RING],
      ['packets, as many as there is room for', 100, RING, RING],
    ];
    for (const [what, length, count, posted] of settled) {
      check(`come to ${posted} for ${what}`, async front => {
        const all = await front.bursts(40, length, count);
        for (let i = 1; i < all.length; i++) assert.ok(all[i] >= all[i - 1], `${all}`);
        assert.deepEqual(new Set(all.slice(20)), new Set([posted]), `${all}`);
      });
    }

    check('are twice as many each time that all were used', async front => {
      assert.deepEqual(await front.bursts(5, 100), [64, 128, RING, RING, RING]);
    });

    check('suffice for a packet of 64 KiB, whatever came before', async front => {
      for (let i = 0; i < 100; i++) {
        await front.burst([60, 1500, 9000][i % 3], (i * 7) % 40);
        assert.ok(front.posted >= LONG_SLOTS);
        await front.burst(LONG, 1);
      }
      assert.equal(front.victim.dev.stats.rxErrors, 0);
    });

    check('become fewer one by one, and no fewer than there were, when there is less to do', async front => {
      await front.bursts(5, 100);
      assert.equal(front.posted, RING);
      const all = await front.bursts(300, 100, 1);
      for (let i = 1; i < all.length; i++) assert.ok([0, 1].includes(all[i - 1] - all[i]), `${all}`);
      assert.ok(all[20] > 200, `${all}`);
      assert.equal(all.at(-1), FEWEST);
      // And as fast as ever when there is more again.
      assert.deepEqual(await front.bursts(3, 100), [64, 128, RING]);
    });

    check('stay as many while nothing comes', async front => {
      await front.bursts(5, 100);
      await front.path.scheduler.runFor(100_000);
      assert.equal(front.posted, RING);
    });

    check('get back the pages of packets that there was no memory for', async front => {
      const { domain, dom, dev } = front.victim;
      const { packets } = dom.net;
      const { maxPages } = domain.limits;
      domain.limits.maxPages = domain.pages;
      const held: Packet[] = [];
      for (let packet = packets.tryGet(); packet !== null; packet = packets.tryGet()) held.push(packet);
      await front.burst(100, 8);
      await front.burst(5000, 4);
      assert.deepEqual([dev.stats.rxErrors, dev.stats.rxPackets], [12, 0]);
      domain.limits.maxPages = maxPages;
      for (const packet of [...held, ...(await front.keepAll())]) packet.release();
      await front.path.scheduler.runFor(100);
    });

    check('are posted again a little later when all pages were in use', async front => {
      const { victim, path } = front;
      const kept = await front.keepAll();
      for (const packet of kept) packet.release();
      await path.scheduler.runFor(100);
      assert.ok(front.posted >= FEWEST);
      victim.dev.rxHandler = packet => packet.release();
      await front.burst(LONG, 1);
    });
  });
}
