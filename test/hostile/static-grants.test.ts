import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED } from '../../src/abi/index.js';
import { DoubleFetchMemory } from '../../src/mock/index.js';
import type { Packet } from '../../src/net/index.js';
import { type GrantMapping, PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Victim, type VictimOptions } from '../support/hostile.js';
import { bytesOf } from '../support/packets.js';

const RING = 256;
const BLANK = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;

function frame({ mac }: Victim, length: number): Uint8Array {
  const payload = Uint8Array.from({ length }, (_, i) => (i * 13 + length) & 0xff);
  return buildFrame({ destination: mac, payload });
}

/** A frontend whose backend keeps the pages mapped that it is given to fill. */
class Scene {
  readonly path = new DataPath(1);
  readonly victim: Victim;

  constructor(options: VictimOptions = {}) {
    this.victim = new Victim(this.path, options);
    this.victim.connect();
  }

  get back() {
    return this.victim.back;
  }

  get grants(): number {
    return this.victim.dom.platform.grants.allocated;
  }

  /** Whether the next page to be filled is mapped for good. */
  get nextIsMapped(): boolean {
    return this.victim.mapped.has(this.back.rxGref);
  }

  /** Packets of these lengths must arrive as they are sent. */
  async deliver(...lengths: number[]): Promise<void> {
    const { victim } = this;
    victim.got.length = 0;
    const frames = lengths.map(length => frame(victim, length));
    for (const bytes of frames) {
      victim.back.packet(bytes, BLANK);
      await victim.strike();
    }
    assert.deepEqual(victim.got, frames);
    assert.deepEqual(victim.broken, []);
  }

  /** Disconnects; everything must come back. */
  async end(): Promise<void> {
    const { victim, path } = this;
    victim.disconnect();
    await path.scheduler.runFor(5000);
    const { net, reclaimer } = victim.dom;
    assert.deepEqual([net.packets.used, net.pages.used, reclaimer.pending, this.grants], [0, 0, 0, 0]);
    assert.equal(path.dom0.platform.grants.mapped, 0);
  }
}

describe('pages that a frontend receives into, and its backend keeps mapped', () => {
  const variants: [string, VictimOptions][] = [
    ['trusted', {}],
    ['not trusted', { trusted: false }],
    ['one event channel', { split: false }],
    ['without code in WebAssembly', { ringCode: false }],
    ['with grants tied to their pages', { tied: true }],
    ['at the end of the indexes', { start: 0xffffffe0 }],
  ];
  for (const [what, options] of variants) {
    test(`take packets of all sizes, round and round, and stay granted: ${what}`, async () => {
      const scene = new Scene(options);
      await scene.victim.keepMapped();
      const { grants } = scene;
      for (let round = 0; round < 30; round++) {
        assert.ok(scene.nextIsMapped);
        await scene.deliver(100, 1460, 9000, 60000, 4042, 0);
      }
      assert.equal(scene.grants, grants);
      await scene.end();
    });

    test(`give a packet up that no write of the backend changes: ${what}`, async () => {
      const scene = new Scene(options);
      const { victim } = scene;
      await victim.keepMapped();
      const kept: Packet[] = [];
      victim.dev.rxHandler = packet => void kept.push(packet);
      const frames = [100, 4000, 20000].map(length => frame(victim, length));
      for (const bytes of frames) victim.back.packet(bytes, BLANK);
      await victim.strike();
      for (const { memory, address } of victim.mapped.values()) {
        memory.u8.fill(0xee, address, address + PAGE_SIZE);
      }
      assert.deepEqual(kept.map(bytesOf), frames);
      for (const packet of kept) packet.release();
      await scene.end();
    });
  }

  test('are read once: no byte is fetched twice, and a second fetch would not matter', async () => {
    let watched: DoubleFetchMemory | null = null;
    const scene = new Scene({
      watchPage: 100,
      memoryOf: (memory, page) => {
        watched = new DoubleFetchMemory(memory, page * PAGE_SIZE);
        return watched;
      },
    });
    const { victim } = scene;
    await victim.keepMapped();
    const { back } = victim;
    const isWatched = ({ address }: GrantMapping) => address === watched!.address;
    const [gref] = [...victim.mapped].find(([, mapping]) => isWatched(mapping))!;
    let seen = 0;
    for (let round = 0; round < 10; round++) {
      watched!.rearm();
      victim.got.length = 0;
      const frames: Uint8Array[] = [];
      let here = 0;
      // All that are posted, so that more are, and each page has its turn.
      for (const { reqProd } = back.rx; back.rxNext !== reqProd; ) {
        const bytes = frame(victim, 500 + frames.length);
        if (back.rxGref === gref) here = bytes.length;
        back.fill(back.rxGref, bytes, 100);
        back.respondRx({ offset: 100, status: bytes.length, flags: BLANK });
        frames.push(bytes);
      }
      await victim.strike();
      assert.deepEqual(victim.got, frames);
      assert.deepEqual([watched!.mostReads, watched!.bytesRead], [here > 0 ? 1 : 0, here]);
      if (here > 0) seen++;
    }
    assert.ok(seen > 2);
    assert.deepEqual(victim.broken, []);
    await scene.end();
  });

  test('take the place of others one by one: a packet may lie in both', async () => {
    const scene = new Scene();
    const { victim, back } = scene;
    for (const gref of victim.queue.offerRxPages()) victim.mapped.set(gref, back.map(gref));
    victim.queue.rxPagesMapped(true);
    let both = 0;
    for (let n = 0; n < 20; n++) {
      const mapped = [0, 1, 2].map(i => victim.mapped.has(back.rx.word(back.rxNext + i, 1)));
      if (new Set(mapped).size === 2) both++;
      await scene.deliver(9000);
    }
    assert.equal(both, 1);
    await scene.end();
  });

  test('do not excuse a backend that still uses another: it is broken', async () => {
    const scene = new Scene();
    const { victim, back } = scene;
    victim.queue.offerRxPages();
    victim.queue.rxPagesMapped(true);
    const held = back.map(back.rxGref);
    back.packet(frame(victim, 100));
    await victim.strike();
    assert.equal(victim.broken.length, 1);
    assert.match(victim.broken[0], /still uses its grant/);
    back.unmap(held);
    await scene.end();
  });

  test('are pages of the guest’s own, so that no more is lent than it said', async () => {
    const scene = new Scene({ trusted: false });
    const { victim } = scene;
    await victim.keepMapped();
    await scene.deliver(9000, 100, 1000);
    const lent = new Set([...victim.mapped.values()].map(({ address }) => address));
    victim.dev.rxHandler = packet => {
      assert.ok(!lent.has(packet.data & ~(PAGE_SIZE - 1)));
      packet.release();
    };
    victim.back.packet(frame(victim, 100), BLANK);
    await victim.strike();
    await scene.end();
  });
});

describe('a backend that does not map what it is asked to', () => {
  test('refuses: pages are granted anew for each packet, as before', async () => {
    const scene = new Scene();
    const { grants } = scene;
    assert.equal(scene.victim.queue.offerRxPages().length, RING);
    assert.equal(scene.grants, grants + RING);
    scene.victim.queue.rxPagesMapped(false);
    assert.equal(scene.grants, grants);
    for (let round = 0; round < 10; round++) {
      const { rxGref } = scene.back;
      await scene.deliver(100);
      assert.throws(() => scene.back.map(rxGref), 'its grant has ended');
      await scene.deliver(9000, 60000);
    }
    await scene.end();
  });

  test('refuses, and has mapped them: they are kept until it lets go, and one line says so', async () => {
    const scene = new Scene();
    const { victim, back, path } = scene;
    const mappings = victim.queue.offerRxPages().map(gref => back.map(gref));
    victim.queue.rxPagesMapped(false);
    assert.equal(victim.dom.reclaimer.pending, RING);
    const lines = victim.domain.dmesg.filter(line => line.includes('still uses grant'));
    assert.equal(lines.length, 1);
    await scene.deliver(100, 9000);
    for (const mapping of mappings) back.unmap(mapping);
    await path.scheduler.runFor(2000);
    assert.equal(victim.dom.reclaimer.pending, 0);
    await scene.end();
  });

  test('says that it did: its copies do as well', async () => {
    const scene = new Scene();
    scene.victim.queue.offerRxPages();
    scene.victim.queue.rxPagesMapped(true);
    for (let round = 0; round < 10; round++) await scene.deliver(100, 9000, 60000);
    await scene.end();
  });

  for (const [when, tied] of [
    ['', false],
    [', with grants tied to their pages', true],
  ] as const) {
    test(`never answers, or too late${when}: nothing stays behind`, async () => {
      for (const mapped of [false, true]) {
        const scene = new Scene({ tied });
        const { queue } = scene.victim;
        assert.equal(queue.offerRxPages().length, RING);
        await scene.deliver(100, 9000);
        await scene.end();
        queue.rxPagesMapped(mapped);
        assert.equal(scene.grants, 0);
        assert.deepEqual(queue.offerRxPages(), [], 'of a queue that is gone');
        assert.equal(scene.grants, 0);
      }
    });
  }

  test('cannot be asked without memory or grants for them', async () => {
    for (const limits of [{ maxPages: 200 }, { maxGrantFrames: 1 }]) {
      const path = new DataPath(2);
      const victim = new Victim(path, { limits });
      victim.connect();
      const { allocated } = victim.dom.platform.grants;
      assert.throws(() => victim.queue.offerRxPages(), /ENOMEM|ENOSPC/);
      assert.equal(victim.dom.platform.grants.allocated, allocated);
      victim.back.packet(frame(victim, 3000), BLANK);
      await victim.strike();
      assert.deepEqual(victim.got, [frame(victim, 3000)]);
      victim.disconnect();
      assert.equal(victim.dom.platform.grants.allocated, 0);
    }
  });
});
