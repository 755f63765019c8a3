import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_GSO_PREFIX,
  NETRXF_MORE_DATA,
  NETTXF_MORE_DATA,
} from '../../src/abi/index.js';
import { DoubleFetchMemory } from '../../src/mock/index.js';
import { GSO_TCPV4, GSO_TCPV6 } from '../../src/net/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Bystanders, holdings, quiet, Victim, type VictimOptions } from '../support/hostile.js';
import { packetFrom, partial } from '../support/packets.js';

interface Scene {
  path: DataPath;
  by: Bystanders;
  victim: Victim;
}

/** A test with two bystanders and a frontend whose backend attacks it; afterwards nothing may be left. */
async function scene(
  seed: number,
  attack: (scene: Scene) => Promise<void>,
  options: VictimOptions = {},
): Promise<void> {
  const path = new DataPath(seed);
  const by = new Bystanders(path);
  const victim = new Victim(path, options);
  await by.check();
  const before = holdings(path, by.domids);
  victim.connect();
  await quiet(path);
  if (options.mapped) await victim.keepMapped();
  await attack({ path, by, victim });
  await by.check();
  victim.disconnect();
  await path.scheduler.runFor(5000);
  await by.check();
  assert.deepEqual(holdings(path, by.domids), before);
  const { net, reclaimer, platform } = victim.dom;
  assert.equal(net.packets.used, 0);
  assert.equal(net.pages.used, 0);
  assert.equal(reclaimer.pending, 0);
  assert.equal(platform.grants.allocated, 0);
}

function frame(victim: Victim, length: number, options: object = {}): Uint8Array {
  return buildFrame({
    destination: victim.mac,
    payload: Uint8Array.from({ length }, (_, i) => (i * 13) & 0xff),
    ...options,
  });
}

function send(victim: Victim, length: number): void {
  victim.dev.xmit(packetFrom(victim.dev, frame(victim, length)));
}

/** An attack that must break the device once, and stop all work for it. */
function broken(name: string, seed: number, attack: (scene: Scene) => void, reason: RegExp): void {
  for (const split of [true, false]) {
    test(`${name} (split event channels: ${split})`, () =>
      scene(
        seed,
        async all => {
          const { victim, path } = all;
          send(victim, 3000);
          send(victim, 10);
          await quiet(path);
          attack(all);
          victim.back.kick();
          await quiet(path);
          assert.equal(victim.broken.length, 1);
          assert.match(victim.broken[0], reason);
          const { steps } = path.scheduler;
          for (let i = 0; i < 1000; i++) {
            victim.back.kick();
            victim.back.rx.rspProd = i;
            victim.back.tx.rspProd = i * 3;
            await path.scheduler.runReady();
          }
          assert.ok(path.scheduler.steps - steps < 10, `${path.scheduler.steps - steps} steps after the end`);
          assert.equal(victim.broken.length, 1);
          const { reqProd } = victim.back.tx;
          send(victim, 100);
          await quiet(path);
          assert.equal(victim.back.tx.reqProd, reqProd, 'nothing is sent to it any more');
        },
        { split },
      ));
  }
}

describe('XSA-376: netfront and a hostile backend: the device is broken', () => {
  const tx = (words: (victim: Victim) => [id: number, status: number][]) => {
    return ({ victim }: Scene) => {
      for (const [id, status] of words(victim)) victim.back.respondTx(id, status);
      victim.back.push();
    };
  };
  const ids = (victim: Victim) => victim.back.txRequests().map(({ id }) => id);

  broken(
    'tx: more responses than there are requests',
    501,
    ({ victim }) => {
      victim.back.tx.rspProd = victim.back.tx.reqProd + 1;
    },
    /tx rsp_prod/,
  );
  broken(
    'tx: a producer index that goes back',
    502,
    ({ victim }) => {
      victim.back.tx.rspProd = 0xffffffff;
    },
    /tx rsp_prod/,
  );
  broken(
    'tx: an id beyond the ring',
    503,
    tx(() => [[256, 0]]),
    /id 256/,
  );
  broken(
    'tx: the largest id',
    504,
    tx(() => [[0xffff, 0]]),
    /id 65535/,
  );
  broken(
    'tx: an id that is not outstanding',
    505,
    tx(victim => {
      const used = ids(victim);
      return [[[...Array(256).keys()].find(id => !used.includes(id))!, 0]];
    }),
    /not outstanding/,
  );
  broken(
    'tx: an id twice',
    506,
    tx(victim => {
      const [first] = ids(victim);
      return [
        [first, 0],
        [first, 0],
      ];
    }),
    /not outstanding/,
  );
  broken(
    'tx: NULL for a slot of its own, twice, without an extra info',
    507,
    tx(victim => {
      const [first] = ids(victim);
      return [
        [first, 1],
        [first, 1],
      ];
    }),
    /not outstanding/,
  );
  broken(
    'rx: more responses than there are requests',
    508,
    ({ victim }) => {
      victim.back.rx.rspProd = victim.back.rx.reqProd + 1;
    },
    /rx rsp_prod/,
  );
  broken(
    'rx: a producer index that goes back',
    509,
    ({ victim }) => {
      victim.back.rx.rspProd = 0x80000000;
    },
    /rx rsp_prod/,
  );
  broken(
    'XSA-396: a page that is answered while it is mapped',
    510,
    ({ victim }) => {
      victim.back.map(victim.back.rxGref);
      victim.back.respondRx({ status: 100 });
      victim.back.push();
    },
    /still uses its grant/,
  );

  // Packets of one slot and of several, some of which go round the end of the ring.
  for (const [slots, mapped, start] of [
    [1, 0, 0],
    [3, 0, 0],
    [3, 2, 0],
    [3, 1, 254],
    [3, 2, 254],
  ]) {
    test(`XSA-396: page ${mapped + 1} of ${slots} from slot ${start} on is kept until the backend lets go of it`, () =>
      scene(
        511,
        async ({ victim, path }) => {
          const { back, dom } = victim;
          const mapping = back.map(back.rx.word(back.rxNext + mapped, 1));
          const page = mapping.address / PAGE_SIZE;
          for (let left = slots; left-- > 0; ) {
            back.respondRx({ status: 1000, flags: left > 0 ? NETRXF_MORE_DATA : 0 });
          }
          await victim.strike();
          assert.equal(victim.broken.length, 1);
          assert.equal(victim.got.length, 0);
          // The frontend goes; the backend keeps its mapping.
          victim.queue.destroy();
          victim.granted.retire();
          await path.scheduler.runFor(10_000);
          assert.equal(dom.reclaimer.pending, 3, 'the rings and the page');
          const taken = new Set<number>();
          for (let i = 0; i < 500; i++) taken.add(dom.platform.memory.allocPage());
          assert.ok(!taken.has(page), 'it is used for nothing else');
          for (const one of taken) dom.platform.memory.freePage(one);
          back.destroy();
          await path.scheduler.runFor(2000);
          assert.equal(dom.reclaimer.pending, 0);
          // Everything is as after a disconnect: connect again for the scene to take down.
          victim.connect();
          await quiet(path);
        },
        { start },
      ));
  }
});

describe('XSA-376: netfront and a hostile backend: the packet is dropped', () => {
  function dropped(
    name: string,
    seed: number,
    build: (victim: Victim) => void,
    errors = 1,
    options: VictimOptions = {},
  ): void {
    for (const mapped of [false, true]) dropOne(name, seed, build, errors, { ...options, mapped });
  }

  function dropOne(
    name: string,
    seed: number,
    build: (victim: Victim) => void,
    errors: number,
    options: VictimOptions,
  ): void {
    test(options.mapped ? `${name}, in mapped pages` : name, () =>
      scene(
        seed,
        async ({ victim }) => {
          const before = victim.dom.platform.grants.allocated;
          build(victim);
          await victim.strike();
          assert.deepEqual(victim.broken, []);
          assert.equal(victim.got.length, 0);
          assert.equal(victim.dev.stats.rxErrors, errors);
          assert.equal(victim.dom.net.packets.used, 0);
          assert.equal(victim.dom.platform.grants.allocated, before);
          // The buffers are posted again, and the next packet comes through.
          for (const length of [100, 9000]) {
            victim.back.packet(frame(victim, length));
            await victim.strike();
            assert.deepEqual(victim.got.pop(), frame(victim, length));
          }
        },
        options,
      ),
    );
  }

  for (const status of [-1, -2, -32768]) {
    dropped(`a status of ${status}`, 601, ({ back }) => back.respondRx({ status }));
  }
  for (const [offset, status] of [
    [0, 4097],
    [4096, 1],
    [4095, 100],
    [65535, 32767],
  ]) {
    dropped(`${status} bytes at ${offset}`, 602, ({ back }) => back.respondRx({ offset, status }));
  }
  for (const status of [0, 1, 13]) {
    dropped(`a packet of ${status} bytes`, 603, ({ back }) => back.respondRx({ status }));
  }
  dropped('more data than there are responses', 604, ({ back }) =>
    back.respondRx({ status: 100, flags: NETRXF_MORE_DATA }),
  );
  dropped('20 slots', 605, ({ back }) => {
    for (let i = 0; i < 20; i++) {
      back.respondRx({ status: 100, flags: i < 19 ? NETRXF_MORE_DATA : 0 });
    }
  });
  dropped('a bad slot in the middle of others', 606, ({ back }) => {
    back.respondRx({ status: 1000, flags: NETRXF_MORE_DATA });
    back.respondRx({ status: -1, flags: NETRXF_MORE_DATA });
    back.respondRx({ status: 1000 });
  });
  dropped('an extra info announced and not there', 607, ({ back }) =>
    back.respondRx({ status: 100, flags: NETRXF_EXTRA_INFO }),
  );
  for (const type of [0, 6, 255]) {
    dropped(`an extra info of type ${type}`, 608, ({ back }) => {
      back.respondRx({ status: 100, flags: NETRXF_EXTRA_INFO });
      back.rxExtra(type);
    });
  }
  for (const [size, type] of [
    [0, GSO_TCPV4],
    [1000, 0],
    [1000, 3],
  ]) {
    dropped(`a GSO extra info of size ${size} and type ${type}`, 609, victim => {
      const { back } = victim;
      back.fill(back.rxGref, frame(victim, 1000));
      back.respondRx({ status: 1054, flags: NETRXF_EXTRA_INFO | NETRXF_CSUM_BLANK });
      back.rxExtra(gsoExtraWord0(size), gsoExtraWord1(type));
    });
  }
  for (const [what, type, options] of [
    ['IPv6 as TCPv4', GSO_TCPV4, { version: 6 }],
    ['IPv4 as TCPv6', GSO_TCPV6, { version: 4 }],
    ['UDP', GSO_TCPV4, { udp: true }],
  ] as const) {
    dropped(`a GSO extra info that does not fit the packet (${what})`, 610, victim => {
      const { back } = victim;
      const bytes = frame(victim, 1000, options);
      back.fill(back.rxGref, bytes);
      back.respondRx({ status: bytes.length, flags: NETRXF_EXTRA_INFO | NETRXF_CSUM_BLANK });
      back.rxExtra(gsoExtraWord0(100), gsoExtraWord1(type));
    });
  }
  const prefix = NETRXF_GSO_PREFIX | NETRXF_MORE_DATA;
  function droppedPrefix(what: string, build: (victim: Victim) => void): void {
    for (const ringCode of [true, false]) {
      dropped(`a GSO prefix ${what} (WebAssembly: ${ringCode})`, 615, build, 1, {
        gsoPrefix: true,
        ringCode,
      });
    }
  }
  droppedPrefix('with nothing behind it', ({ back }) =>
    back.respondRx({ offset: 1448, flags: prefix, status: 2000 }),
  );
  droppedPrefix('that announces nothing', ({ back }) =>
    back.respondRx({ offset: 1448, flags: NETRXF_GSO_PREFIX, status: 1000 }),
  );
  for (const [what, offset, flags, options] of [
    ['of size 0', 0, 0, {}],
    ['before UDP', 1448, 0, { udp: true }],
    ['before a packet with an extra info of GSO', 1448, NETRXF_EXTRA_INFO, {}],
    ['before a page that was not filled', 1448, -1, {}],
  ] as const) {
    droppedPrefix(what, victim => {
      const { back } = victim;
      back.respondRx({ offset, flags: prefix, status: 2000 });
      const bytes = frame(victim, 3000, options);
      back.fill(back.rxGref, bytes);
      const status = flags < 0 ? -1 : bytes.length;
      back.respondRx({ status, flags: Math.max(flags, 0) | NETRXF_CSUM_BLANK });
      if (flags > 0) back.rxExtra(gsoExtraWord0(1448), gsoExtraWord1(GSO_TCPV4));
    });
  }
  droppedPrefix('before another prefix, and no data', ({ back }) => {
    for (let i = 0; i < 2; i++) back.respondRx({ offset: 1448, flags: prefix, status: 2000 });
    back.respondRx({ status: 13 });
  });
  droppedPrefix('on every slot', ({ back }) => {
    const posted = back.rx.reqProd;
    while (back.rxNext < posted) back.respondRx({ offset: 1448, flags: prefix, status: 4096 });
  });

  dropped('csum_blank on what has no checksum', 611, ({ back }) =>
    back.respondRx({ status: 60, flags: NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED }),
  );
  dropped('extra infos on all other slots, each announcing another', 612, ({ back }) => {
    const posted = back.rx.reqProd;
    back.respondRx({ status: 100, flags: NETRXF_EXTRA_INFO });
    while (back.rxNext < posted) back.rxExtra(gsoExtraWord0(100, true), gsoExtraWord1(GSO_TCPV4));
  });
  dropped('every slot announcing more data', 613, ({ back }) => {
    const posted = back.rx.reqProd;
    while (back.rxNext < posted) back.respondRx({ status: 4096, flags: NETRXF_MORE_DATA });
  });

  test('a GSO packet that is one comes through, ids or not', () =>
    scene(614, async ({ victim }) => {
      const { back } = victim;
      const bytes = frame(victim, 3000);
      back.fill(back.rxGref, bytes);
      back.respondRx({
        id: 0xbeef,
        status: bytes.length,
        flags: NETRXF_EXTRA_INFO | NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED,
      });
      back.rxExtra(gsoExtraWord0(1448), gsoExtraWord1(GSO_TCPV4));
      await victim.strike();
      assert.deepEqual(victim.got.pop(), bytes);
    }));
});

describe('netfront and a hostile backend: its own books', () => {
  test('slots answered one by one, in any order, between packets that come and go', () =>
    scene(701, async ({ victim }) => {
      const { back, dom } = victim;
      const random = () => dom.platform.random();
      const outstanding: number[] = [];
      for (let round = 0; round < 500; round++) {
        for (let i = 0; i < 5; i++) send(victim, [0, 500, 5000, 8000][Math.floor(random() * 4)]);
        await victim.strike();
        outstanding.push(...back.txRequests().map(({ id }) => id));
        assert.equal(new Set(outstanding).size, outstanding.length, 'an id is used twice at a time');
        for (let n = Math.floor(random() * 16); n > 0 && outstanding.length > 0; n--) {
          const [id] = outstanding.splice(Math.floor(random() * outstanding.length), 1);
          back.respondTx(id, [0, 0, -1, -2][Math.floor(random() * 4)]);
        }
        await victim.strike();
        assert.deepEqual(victim.broken, []);
      }
      // Some are left when it disconnects: their packets must come back all the same.
      assert.ok(outstanding.length > 0);
    }));

  test('NULL for everything: a queue that stands still, and is taken down clean', () =>
    scene(702, async ({ victim, path }) => {
      const bytes = frame(victim, 5000);
      const packet = partial(packetFrom(victim.dev, bytes), victim.dev);
      packet.gsoType = GSO_TCPV4;
      packet.gsoSize = 1448;
      victim.dev.xmit(packet);
      send(victim, 100);
      await quiet(path);
      for (const { id } of victim.back.txRequests()) victim.back.respondTx(id, 1);
      await victim.strike();
    }));

  test('XSA-391: events without a response cost few handler runs', () =>
    scene(703, async ({ victim, path, by }) => {
      const runs = () => victim.dom.irqs.counts.reduce((sum, { count }) => sum + count, 0);
      const before = runs();
      for (let i = 0; i < 20_000; i++) {
        for (let k = 0; k < 5; k++) victim.back.kick();
        if (i % 50 === 0) {
          by.send();
          await path.scheduler.runFor(5);
        }
      }
      assert.ok(runs() - before < 40, `${runs() - before} handler runs`);
    }));

  test('XSA-403: beyond the packet there are zeros in the pages that the backend sees', () =>
    scene(
      704,
      async ({ victim, path }) => {
        const { back } = victim;
        // Pages that held others before.
        for (let i = 0; i < 2; i++) victim.dev.xmit(packetFrom(victim.dev, new Uint8Array(8000).fill(0x5e)));
        await quiet(path);
        for (const { id } of back.txRequests()) back.respondTx(id);
        await victim.strike();
        for (const length of [1, 100, 1000, 5000, 8000]) send(victim, length);
        await quiet(path);
        const requests = back.txRequests();
        let left = 0;
        for (const { gref, offset, flags, size } of requests) {
          const bytes = left > 0 ? size : Math.min(size, PAGE_SIZE - offset);
          left = (flags & NETTXF_MORE_DATA) !== 0 ? 1 : 0;
          const { memory, address } = back.map(gref, true);
          const page = memory.u8.slice(address, address + PAGE_SIZE);
          page.fill(0, offset, offset + bytes);
          assert.ok(
            page.every(byte => byte === 0),
            `page of grant ${gref}`,
          );
        }
        assert.equal(requests.length, 7);
        // Pages to receive into have never held anything.
        for (let i = 0; i < 32; i++) {
          const { memory, address } = back.map(back.rx.word(i, 1));
          assert.ok(memory.u8.slice(address, address + PAGE_SIZE).every(byte => byte === 0));
        }
        // The backend cannot write to what is sent.
        for (const { gref } of requests) assert.throws(() => back.map(gref));
      },
      { trusted: false },
    ));

  for (const [how, options] of [
    ['with code in WebAssembly', {}],
    ['without code in WebAssembly', { ringCode: false }],
    ['with grants tied to their pages', { tied: true }],
  ] as const) {
    test(`XSA-403: pages that held a packet are zeroed before the backend sees them again, ${how}`, () =>
      scene(
        709,
        async ({ victim }) => {
          const { back } = victim;
          for (let round = 0; round < 3; round++) {
            for (let i = 0; i < 20; i++) back.packet(new Uint8Array(PAGE_SIZE).fill(0x5e));
            await victim.strike();
            const { reqProd } = back.rx;
            for (let index = back.rxNext; index !== reqProd; index++) {
              const mapping = back.map(back.rx.word(index, 1), true);
              const page = mapping.memory.u8.slice(mapping.address, mapping.address + PAGE_SIZE);
              back.unmap(mapping);
              assert.ok(
                page.every(byte => byte === 0),
                `round ${round}, request ${index}`,
              );
            }
          }
          assert.equal(victim.got.length, 60);
          assert.deepEqual(victim.broken, []);
        },
        { trusted: false, ...options },
      ));
  }

  test('data in another domain’s grant is fetched before it is sent, or the packet is not', () =>
    scene(708, async ({ victim, path }) => {
      const other = path.hypervisor.createDomain().platform;
      const { net, platform } = victim.dom;
      const page = other.memory.allocPage();
      other.memory.memory.u8.fill(0x5a, page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
      const gref = other.grants.grantAccess(platform.domid, page, true);
      for (const ref of [gref, gref + 1]) {
        const packet = net.packets.get();
        const head = frame(victim, 0);
        packet.memory.u8.set(head, packet.data);
        packet.linear = head.length;
        packet.length = head.length;
        packet.addFragment(other.domid, ref, 100, 2000);
        victim.dev.xmit(packet);
        await quiet(path);
      }
      const [request, ...more] = victim.back.txRequests();
      assert.equal(more.length, 0);
      const { memory, address } = victim.back.map(request.gref, true);
      const sent = memory.u8.slice(address + request.offset, address + request.offset + request.size);
      assert.equal(sent.length, 2054);
      assert.ok(sent.subarray(54).every(byte => byte === 0x5a));
      assert.equal(victim.dev.stats.txDropped, 1);
      assert.ok(other.grants.endAccess(gref));
      path.hypervisor.domain(other.domid)!.destroy();
    }));

  test('XSA-405, XSA-457: 50,000 packets received, and every buffer is back', () =>
    scene(705, async ({ victim, path }) => {
      const { back, dom } = victim;
      const holds = () => [
        dom.platform.memory.allocated,
        dom.platform.grants.allocated,
        dom.platform.events.allocated,
        dom.net.packets.used,
      ];
      let warm: number[] = [];
      const sizes = [60, 128, 1500, 4096, 9000, 60];
      for (let n = 0; n < 50_000; ) {
        while (back.rxNext + 4 < back.rx.reqProd) {
          const length = sizes[n++ % sizes.length];
          // Filling pages takes long: most packets are whatever the pages hold.
          for (let rest = length; rest > 0; rest -= PAGE_SIZE) {
            const more = rest > PAGE_SIZE ? NETRXF_MORE_DATA : 0;
            back.respondRx({ status: Math.min(rest, PAGE_SIZE), flags: more });
          }
        }
        await victim.strike();
        victim.got.length = 0;
        if (warm.length === 0 && n > 5000) warm = holds();
      }
      assert.deepEqual(holds(), warm);
      assert.deepEqual(victim.broken, []);
      await path.scheduler.runFor(10);
    }));

  test('XSA-457: 2,000 reconnects, and nothing is left', () =>
    scene(706, async ({ victim, path }) => {
      const holds = () => [
        victim.dom.platform.memory.allocated,
        victim.dom.platform.grants.allocated,
        victim.dom.platform.events.allocated,
      ];
      let warm: number[] = [];
      for (let i = 0; i < 2000; i++) {
        send(victim, 4000);
        victim.back.packet(frame(victim, 200));
        await victim.strike();
        if (i % 2 === 0) for (const { id } of victim.back.txRequests()) victim.back.respondTx(id);
        if (i % 3 === 0) await victim.strike();
        victim.disconnect();
        victim.connect();
        await quiet(path);
        if (i === 20) warm = holds();
      }
      assert.deepEqual(holds(), warm);
      assert.equal(victim.got.length, 2000);
    }));

  test('no byte of a response is read twice, and a second read would not matter', async () => {
    const path = new DataPath(707);
    let rings: DoubleFetchMemory | null = null;
    const victim = new Victim(path, {
      gsoPrefix: true,
      memoryOf: (memory, page) => {
        rings = new DoubleFetchMemory(memory, page * PAGE_SIZE);
        return rings;
      },
    });
    victim.connect();
    await quiet(path);
    for (let round = 0; round < 8; round++) {
      rings!.rearm();
      for (const length of [100, 9000, 1000]) {
        victim.back.packet(frame(victim, length));
        await victim.strike();
        assert.deepEqual(victim.got.pop(), frame(victim, length));
      }
      victim.back.respondRx({ offset: 1400, flags: NETRXF_GSO_PREFIX | NETRXF_MORE_DATA, status: 2 });
      victim.back.packet(frame(victim, 3000), NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED);
      await victim.strike();
      assert.deepEqual(victim.got.pop(), frame(victim, 3000));
      assert.equal(rings!.mostReads, 1);
      assert.equal(rings!.bytesRead, 7 * 8);
    }
    assert.deepEqual(victim.broken, []);
    victim.disconnect();
  });
});

describe('netfront without memory', () => {
  test('sends nothing, and throws nothing', () =>
    scene(
      801,
      async ({ victim, path }) => {
        const { memory } = victim.dom.platform;
        const packets = Array.from({ length: 20 }, () => packetFrom(victim.dev, frame(victim, 1000), 480));
        const all: number[] = [];
        try {
          for (;;) all.push(memory.allocPage());
        } catch {
          // That was the last one.
        }
        for (const packet of packets) victim.dev.xmit(packet);
        await quiet(path);
        assert.equal(victim.dev.stats.txDropped, 20);
        assert.equal(victim.dom.net.packets.used, 0);
        victim.back.packet(frame(victim, 3000));
        await victim.strike();
        for (const page of all) memory.freePage(page);
        await path.scheduler.runFor(200);
        victim.back.packet(frame(victim, 3000));
        await victim.strike();
        assert.deepEqual(victim.got.pop(), frame(victim, 3000));
        send(victim, 1000);
        await quiet(path);
        assert.equal(victim.back.txRequests().length, 1);
      },
      { maxPages: 600 },
    ));

  test('looks for pages again by itself when few requests are left, of which no event would tell', () =>
    scene(
      803,
      async ({ victim, path }) => {
        const { back, dev } = victim;
        const { net, platform } = victim.dom;
        const { memory } = platform;
        for (const packet of Array.from({ length: 32 }, () => net.packets.get())) packet.release();
        const kept: { release(): void }[] = [];
        const { rxHandler } = dev;
        dev.rxHandler = packet => void kept.push(packet);
        const all: number[] = [];
        assert.throws(() => {
          for (;;) all.push(memory.allocPage());
        });
        for (let i = 0; i < 25; i++) back.packet(frame(victim, 100));
        await victim.strike();
        assert.equal(back.rx.reqProd - back.rxNext, 7);
        for (const page of all) memory.freePage(page);
        await path.scheduler.runFor(200);
        assert.ok(back.rx.reqProd - back.rxNext >= 32);
        for (const packet of kept) packet.release();
        dev.rxHandler = rxHandler;
      },
      { maxPages: 600 },
    ));

  test('nor grants for more pages, receives into those that it has, and takes no others', () =>
    scene(
      802,
      async ({ victim }) => {
        const { back, dom } = victim;
        const { grants, memory } = dom.platform;
        const page = memory.allocPage();
        const used: number[] = [];
        assert.throws(() => {
          for (;;) used.push(grants.grantAccess(0, page, true));
        });
        const pages: number[] = [];
        for (let round = 0; round < 10; round++) {
          // It would post more if it could.
          for (let i = 0; i < 32; i++) back.packet(frame(victim, 100));
          await victim.strike();
          pages.push(victim.pages);
        }
        assert.deepEqual(pages, Array(10).fill(pages[0]));
        assert.equal(victim.got.length, 320);
        for (const gref of used) grants.endAccess(gref);
        memory.freePage(page);
      },
      { tied: true, limits: { maxGrantFrames: 1 } },
    ));
});
