import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { NETRXF_MORE_DATA } from '../../src/abi/index.js';
import type { NetDevice, Packet } from '../../src/net/index.js';
import { XdpFrames } from '../../src/net/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { FreedFrames, FreedPages } from '../support/freed-pages.js';
import { quiet, Victim } from '../support/hostile.js';
import { packetFrom } from '../support/packets.js';

function frame(victim: Victim, length: number): Uint8Array {
  return buildFrame({ destination: victim.mac, udp: true, payload: new Uint8Array(length).fill(length) });
}

/** Puts 20 packets of a kind on the rx ring, in at most 32 slots. */
const BURSTS: Record<string, (victim: Victim) => void> = {
  'short packets'(victim) {
    for (let i = 0; i < 20; i++) victim.back.packet(frame(victim, 100 + i));
  },
  'long packets and short ones'(victim) {
    for (let i = 0; i < 20; i++) victim.back.packet(frame(victim, i % 2 === 0 ? 100 : 5000));
  },
  'packets that TypeScript takes'({ back }) {
    for (let i = 0; i < 20; i++) {
      // Too little in the first slot for a head: it has to be brought together.
      if (i < 10) back.respondRx({ status: 20, flags: NETRXF_MORE_DATA });
      back.respondRx({ status: 1000 });
    }
  },
};

/** What a handler does when it has had enough. */
const ENDS: Record<string, (victim: Victim) => void> = {
  'destroys the queue': victim => end(victim),
  'breaks the connection': ({ queue }) => queue.stop(),
  'closes the device': ({ dev }) => dev.close(),
  throws() {
    throw new Error('enough');
  },
  'destroys the queue and throws'(victim) {
    end(victim);
    throw new Error('enough');
  },
  'destroys the queue and connects another'(victim) {
    victim.back.destroy();
    end(victim);
    victim.connect();
  },
};

const ended = new WeakSet<object>();

/** The frontend's part of a disconnect, once. */
function end({ queue, granted, dev }: Victim): void {
  if (ended.has(queue)) return;
  ended.add(queue);
  dev.carrierOff();
  dev.txPool = null;
  queue.destroy();
  granted.retire();
}

/** Disconnects, and checks that everything was given back once. */
async function checkGone(path: DataPath, victim: Victim, pages: number): Promise<void> {
  const { dom, domain } = victim;
  victim.back.destroy();
  end(victim);
  dom.reclaimer.retry();
  await path.scheduler.runFor(2000);
  assert.equal(dom.net.packets.used, 0);
  assert.equal(dom.net.pages.used, 0);
  assert.equal(dom.reclaimer.pending, 0);
  assert.equal(dom.platform.grants.allocated, 0);
  assert.equal(domain.pages, pages);
}

/** Connects for a moment, so that pools have the pages that they keep, and again. @returns pages between the two */
async function warm(path: DataPath, victim: Victim): Promise<number> {
  victim.connect();
  for (let i = 0; i < 40; i++) victim.dev.xmit(packetFrom(victim.dev, frame(victim, 400), 480));
  BURSTS['short packets'](victim);
  await victim.strike();
  victim.disconnect();
  await path.scheduler.runFor(2000);
  victim.got.length = 0;
  const { pages } = victim.domain;
  victim.connect();
  // Only then does it send again.
  await path.scheduler.runFor(2000);
  return pages;
}

async function runOrThrow(victim: Victim): Promise<void> {
  try {
    await victim.strike();
  } catch (error) {
    assert.equal((error as Error).message, 'enough');
  }
}

describe('a receive handler', () => {
  for (const [what, finish] of Object.entries(ENDS)) {
    for (const [kind, burst] of Object.entries(BURSTS)) {
      for (const ringCode of [true, false]) {
        const where = ringCode ? '' : ', without code in WebAssembly';
        test(`${what} in the middle of a burst of ${kind}${where}`, async () => {
          for (const when of [1, 2, 10, 19, 20]) {
            const path = new DataPath(when);
            const victim = new Victim(path, { ringCode });
            const freed = new FreedPages(victim.domain);
            const pages = await warm(path, victim);
            const kept: Packet[] = [];
            let seen = 0;
            const { broken, dev } = victim;
            dev.rxHandler = packet => {
              seen++;
              // One is kept for longer than there is a queue, and each is answered.
              if (seen === when - 1) kept.push(packet);
              else packet.release();
              try {
                if (seen === when) finish(victim);
              } finally {
                dev.xmit(packetFrom(dev, frame(victim, 200), 480));
              }
            };
            burst(victim);
            await runOrThrow(victim);
            assert.deepEqual(broken, []);
            if (what === 'closes the device') assert.ok(seen >= when);
            else assert.equal(seen, when);
            freed.check();
            for (const packet of kept) packet.release();
            await checkGone(path, victim, pages);
            freed.check();
          }
        });
      }
    }
  }
});

describe('a receive handler that has its own domain destroyed', () => {
  for (const [kind, burst] of Object.entries(BURSTS)) {
    for (const ringCode of [true, false]) {
      for (const mapped of [true, false]) {
        const where = `${mapped ? ', its rings mapped' : ''}${ringCode ? '' : ', without code in WebAssembly'}`;
        test(`in the middle of a burst of ${kind}${where}`, async () => {
          for (const when of [1, 2, 10, 19, 20]) {
            const path = new DataPath(when);
            const { hypervisor, scheduler } = path;
            const free = hypervisor.freePages;
            const victim = new Victim(path, { ringCode });
            const { domain, dev } = victim;
            await warm(path, victim);
            const freed = new FreedFrames(hypervisor);
            let seen = 0;
            dev.rxHandler = packet => {
              packet.release();
              if (++seen === when) {
                if (!mapped) victim.back.destroy();
                domain.destroy();
                // Whoever gets pages now gets others.
                for (let i = 0; i < 10; i++) path.dom0.platform.memory.allocPage();
              }
              dev.xmit(packetFrom(dev, frame(victim, 200), 480));
            };
            burst(victim);
            await victim.strike();
            assert.ok(seen >= when);
            freed.check();
            await scheduler.runFor(2000);
            if (mapped) victim.back.destroy();
            assert.equal(domain.state, 'dead');
            assert.equal(hypervisor.freePages, free - 10);
            end(victim);
            await scheduler.runFor(2000);
            freed.check();
            assert.equal(hypervisor.freePages, free - 10);
          }
        });
      }
    }
  }
});

test('a receive handler that throws goes on to be called', async () => {
  for (const [kind, burst] of Object.entries(BURSTS)) {
    for (const ringCode of [true, false]) {
      for (const when of [1, 10, 20]) {
        const path = new DataPath(when);
        const victim = new Victim(path, { ringCode });
        const pages = await warm(path, victim);
        let seen = 0;
        victim.dev.rxHandler = packet => {
          packet.release();
          if (++seen === when) throw new Error('enough');
        };
        burst(victim);
        await assert.rejects(victim.strike(), /enough/, kind);
        await quiet(path);
        const before = seen;
        for (let i = 0; i < 20; i++) victim.back.packet(frame(victim, 100));
        await victim.strike();
        assert.equal(seen - before, 20, kind);
        await checkGone(path, victim, pages);
      }
    }
  }
});

test('whose packet was sent destroys the queue among answers to other packets and frames', async () => {
  for (const ringCode of [true, false]) {
    const path = new DataPath(1);
    const victim = new Victim(path, { ringCode });
    const freed = new FreedPages(victim.domain);
    const pages = await warm(path, victim);
    const { dev, granted } = victim;
    dev.txQueues[0].setMinLimit(1 << 20);
    let told = 0;
    const owner = {
      packetDone() {
        if (++told === 2) end(victim);
      },
    };
    for (let i = 0; i < 5; i++) {
      const packet = packetFrom(dev, frame(victim, 6000), 0, granted.pages);
      packet.owner = owner;
      dev.xmit(packet);
    }
    const frames = new XdpFrames(dev as NetDevice);
    for (let i = 0; i < 3; i++) frames.add(60);
    assert.equal(dev.xdpXmit(frames), 3);
    await path.scheduler.runReady();
    assert.equal(told, 0);
    for (const { id } of victim.back.txRequests()) victim.back.respondTx(id);
    victim.back.respondRx({ status: PAGE_SIZE });
    await victim.strike();
    assert.equal(told, 5);
    assert.equal(victim.got.length, 0);
    freed.check();
    await checkGone(path, victim, pages);
  }
});

describe('a device that is destroyed as soon as it hears that the backend broke the protocol', () => {
  const BREAKS: Record<string, (victim: Victim) => void> = {
    'a tx response that answers nothing': ({ back }) => back.respondTx(200),
    'too many tx responses'({ back }) {
      back.txNext += 1000;
    },
    'too many rx responses'({ back }) {
      back.rxNext += 1000;
    },
    'a page that is still mapped'({ back }) {
      back.map(back.rxGref);
      back.respondRx({ status: 100 });
    },
  };
  for (const [what, attack] of Object.entries(BREAKS)) {
    for (const ringCode of [true, false]) {
      test(`${what}${ringCode ? '' : ', without code in WebAssembly'}`, async () => {
        const path = new DataPath(1);
        const victim = new Victim(path, { ringCode });
        const freed = new FreedPages(victim.domain);
        const pages = await warm(path, victim);
        const reasons: string[] = [];
        victim.broken.push = reason => {
          end(victim);
          return reasons.push(reason);
        };
        victim.back.packet(frame(victim, 100));
        attack(victim);
        await victim.strike();
        assert.equal(reasons.length, 1);
        freed.check();
        await checkGone(path, victim, pages);
      });
    }
  }
});

describe('a queue', () => {
  for (const ringCode of [true, false]) {
    const where = ringCode ? '' : ', without code in WebAssembly';

    test(`is taken down when its domain is gone, whoever has the pages now${where}`, async () => {
      const path = new DataPath(1);
      const victim = new Victim(path, { ringCode });
      await warm(path, victim);
      BURSTS['long packets and short ones'](victim);
      for (let i = 0; i < 5; i++) victim.dev.xmit(packetFrom(victim.dev, frame(victim, 400), 480));
      await victim.strike();
      victim.back.destroy();
      victim.domain.destroy();
      const { platform } = path.hypervisor.createDomain();
      const { u8 } = platform.memory.memory;
      const pages = Array.from({ length: 600 }, () => platform.memory.allocPage());
      const contents = pages.map(page => u8.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE));
      for (const bytes of contents) bytes.fill(0x5a);
      end(victim);
      await path.scheduler.runFor(2000);
      for (const bytes of contents) assert.ok(bytes.every(byte => byte === 0x5a));
    });

    test(`that finds no memory leaves nothing behind${where}`, async () => {
      const path = new DataPath(1);
      const victim = new Victim(path, { ringCode });
      const { domain, dom } = victim;
      await warm(path, victim);
      victim.disconnect();
      await path.scheduler.runFor(2000);
      const before = [domain.pages, dom.platform.grants.allocated, dom.platform.events.allocated];
      const fewest = ringCode ? 4 : 2;
      for (let room = 0; room < fewest; room++) {
        domain.limits.maxPages = domain.pages + room;
        assert.throws(() => victim.connect(), /pages already/);
        assert.deepEqual(
          [domain.pages, dom.platform.grants.allocated, dom.platform.events.allocated],
          before,
        );
      }
      // Without a page to receive into it waits for one.
      domain.limits.maxPages = domain.pages + fewest;
      victim.connect();
      await path.scheduler.runFor(1000);
      assert.equal(victim.back.rx.reqProd, 0);
      domain.limits.maxPages += 100;
      await path.scheduler.runFor(1000);
      BURSTS['short packets'](victim);
      await victim.strike();
      assert.equal(victim.got.length, 20);
      await checkGone(path, victim, before[0]);
    });
  }
});
