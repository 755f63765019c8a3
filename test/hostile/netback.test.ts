import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
  XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
} from '../../src/abi/index.js';
import type { HostileFrontend } from '../../src/mock/index.js';
import { GSO_TCPV4, GSO_TCPV6, type NetDevice } from '../../src/net/index.js';
import { RX_QUEUE_BYTES_MAX, RX_QUEUE_PACKETS_MAX, RX_STALL_MS } from '../../src/netback/rx-ring.js';
import { TxRing } from '../../src/netback/tx-ring.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Attacker, Bystanders, holdings } from '../support/hostile.js';
import { bytesOf, packetFrom } from '../support/packets.js';

const ERROR = -1;
const OKAY = 0;
const NULL = 1;
/** A grant reference that no domain has. */
const NO_GREF = 0xffffffff;

interface Scene {
  path: DataPath;
  by: Bystanders;
  attacker: Attacker;
  /** Frames that dom0's bridge took in from the attacker; with the fast path, those that came to the bystanders' target. */
  heard: Uint8Array[];
  /** How long the linear part of each was, without the fast path. */
  heads: number[];
}

type Attack = (scene: Scene) => Promise<void>;
type Options = NonNullable<ConstructorParameters<typeof Attacker>[1]>;

/** A test with a bridge, two bystanders and an attacker, whose packets may take the fast path in the second of two runs. */
async function scene(seed: number, attack: Attack, options: Options = {}): Promise<void> {
  await sceneWithout(seed, attack, options);
  const path = new DataPath(seed);
  const by = new Bystanders(path);
  const attacker = new Attacker(path, { gro: false, ...options });
  await play({ path, by, attacker, heard: by.heard, heads: [] }, attack);
}

/** For what can be seen on the bridge only: who listens there takes every packet. */
async function sceneWithout(seed: number, attack: Attack, options: Options = {}): Promise<void> {
  const path = new DataPath(seed, undefined, false);
  const by = new Bystanders(path);
  const attacker = new Attacker(path, options);
  const heard: Uint8Array[] = [];
  const heads: number[] = [];
  const { dev } = attacker.vif;
  const toBridge = dev.rxHandler!;
  dev.rxHandler = (packet, from) => {
    heads.push(packet.linear);
    packet.hold();
    path.dom0.net.materialiser.materialiseOne(packet);
    if (packet.isLocal) heard.push(bytesOf(packet));
    packet.references--;
    toBridge(packet, from);
  };
  await play({ path, by, attacker, heard, heads }, attack);
}

/** Afterwards nothing may be left of the attack. */
async function play(scene: Scene, attack: Attack): Promise<void> {
  const { path, by, attacker } = scene;
  await by.check();
  const before = holdings(path, by.domids);
  attacker.connect();
  await by.check();
  by.heard.length = 0;
  await attack(scene);
  await by.check();
  assert.ok(attacker.disconnect(), 'the backend kept a page of the attacker');
  await path.scheduler.runFor(5000);
  await by.check();
  assert.deepEqual(holdings(path, by.domids), before);
}

/** An attack that must disable the vif once, and stop all work for it. */
function fatal(name: string, seed: number, attack: (scene: Scene) => void, reason: RegExp): void {
  for (const split of [true, false]) {
    test(`${name} (split event channels: ${split})`, () =>
      scene(
        seed,
        async all => {
          const { attacker, path } = all;
          const { dev } = attacker.vif;
          attack(all);
          attacker.front.kick();
          await path.scheduler.runReady();
          assert.equal(attacker.fatal.length, 1);
          assert.match(attacker.fatal[0], reason);
          assert.equal(dev.carrierOk, false);
          const lines = path.dom0.domain.dmesg.filter(
            line => line.includes(`${dev.name}: `) && line.includes('disabled'),
          );
          assert.equal(lines.length, 1, lines.join('\n'));
          // Whatever else it does is nobody's business any more.
          const { steps } = path.scheduler;
          const { rspProd } = attacker.front.tx;
          for (let i = 0; i < 1000; i++) {
            attacker.front.kick();
            attacker.front.tx.reqProd = i * 77;
            await path.scheduler.runReady();
          }
          assert.ok(path.scheduler.steps - steps < 10, `${path.scheduler.steps - steps} steps after the end`);
          assert.equal(attacker.front.tx.rspProd, rspProd);
          assert.equal(attacker.fatal.length, 1);
        },
        { split },
      ));
  }
}

describe('netback and a hostile frontend: the vif is disabled', () => {
  fatal(
    'XSA-39: a producer index beyond the ring',
    101,
    ({ attacker }) => {
      attacker.front.tx.reqProd = attacker.front.tx.rspProd + 257;
    },
    /claims 257 requests/,
  );
  fatal(
    'XSA-39: a producer index that goes back',
    102,
    ({ attacker }) => {
      attacker.front.tx.reqProd = 0xffffffff;
    },
    /claims 4294967295 requests/,
  );
  fatal(
    'an extra info announced and not there (FreeBSD answers it twice)',
    103,
    ({ attacker, by }) => {
      const frame = attacker.frame(by.target, 100);
      attacker.front.packet(frame, { flags: NETTXF_EXTRA_INFO });
      attacker.front.push();
    },
    /extra_info/,
  );
  for (const type of [0, 6, 255]) {
    fatal(
      `an extra info of type ${type}`,
      104,
      ({ attacker, by }) => {
        attacker.front.packet(attacker.frame(by.target, 100), { extras: [[type, 0]] });
        attacker.front.push();
      },
      /extra info of type/,
    );
  }
  fatal(
    'extra infos on all other slots of the ring, each announcing another',
    105,
    ({ attacker }) => {
      attacker.front.request({ flags: NETTXF_EXTRA_INFO, size: 100 });
      const word0 = gsoExtraWord0(1000, true);
      for (let i = 0; i < 255; i++) attacker.front.extra(word0, gsoExtraWord1(GSO_TCPV4));
      attacker.front.push();
    },
    /extra_info/,
  );
  fatal(
    'more data than there are requests',
    106,
    ({ attacker }) => {
      attacker.front.request({ flags: NETTXF_MORE_DATA, size: 100 });
      attacker.front.push();
    },
    /more_data/,
  );
  fatal(
    'more than 20 continuation slots',
    107,
    ({ attacker, by }) => {
      attacker.front.packet(attacker.frame(by.target, 200), { slots: Array(22).fill(10) });
      attacker.front.push();
    },
    /more than 21 slots/,
  );
  fatal(
    'a fragment across the end of its page',
    108,
    ({ attacker }) => {
      attacker.front.request({ flags: NETTXF_MORE_DATA, size: 3000 });
      attacker.front.request({ offset: 4000, size: 97 });
      attacker.front.push();
    },
    /crosses its page/,
  );
  fatal(
    'a first slot across the end of its page',
    109,
    ({ attacker }) => {
      attacker.front.request({ offset: 4000, size: 97 });
      attacker.front.push();
    },
    /crosses its page/,
  );
  for (const [size, type] of [
    [0, GSO_TCPV4],
    [1000, 0],
    [1000, 3],
  ]) {
    fatal(
      `a GSO extra info of size ${size} and type ${type}`,
      110,
      ({ attacker, by }) => {
        const extras = [[gsoExtraWord0(size), gsoExtraWord1(type)]] as const;
        attacker.front.packet(attacker.frame(by.target, 100), { extras, flags: NETTXF_CSUM_BLANK });
        attacker.front.push();
      },
      /extra info of type 1/,
    );
  }
  fatal(
    'an rx producer index beyond the ring, with a packet to deliver',
    111,
    ({ attacker, path }) => {
      attacker.front.rx.reqProd = 257;
      const frame = buildFrame({ destination: attacker.mac, payload: new Uint8Array(100) });
      attacker.vif.dev.xmit(packetFrom(attacker.vif.dev as never, frame));
      assert.equal(attacker.vif.dev.net, path.dom0.net);
    },
    /rx ring claims 257 requests/,
  );

  test('XSA-90: two malformed packets in one poll disable it once, and the teardown is put off', () =>
    scene(112, async ({ attacker, path }) => {
      attacker.front.request({ offset: 4095, size: 14 });
      attacker.front.request({ offset: 4095, size: 14 });
      attacker.front.push();
      attacker.front.kick();
      await path.scheduler.runReady();
      assert.equal(attacker.fatal.length, 1);
      assert.equal(attacker.vif.connected, true, 'the data path leaves it to others to take it apart');
      attacker.disconnect();
      attacker.connect();
      assert.equal(attacker.vif.disabled, false);
      assert.equal(attacker.vif.dev.carrierOk, true);
    }));

  test('a ring that claims more than it has when it is attached is refused, and nothing stays', async () => {
    const path = new DataPath(113);
    const by = new Bystanders(path);
    const attacker = new Attacker(path);
    const before = holdings(path);
    for (const index of [257, 0x80000000, 0xffffffff]) {
      for (const ring of ['tx', 'rx'] as const) {
        const prepare = (front: HostileFrontend) => {
          front[ring].reqProd = index;
        };
        assert.throws(
          () => attacker.connect(prepare),
          (error: Error & { code?: string }) => error.code === 'EIO' && /requests/.test(error.message),
        );
        assert.deepEqual(holdings(path), before);
      }
    }
    await by.check();
  });

  for (const queues of [1, 2]) {
    test(`a port that is not there is refused, as the last of ${queues} queues, and nothing stays`, async () => {
      const path = new DataPath(114);
      const attacker = new Attacker(path, { queues });
      const before = holdings(path);
      let closed = 0;
      const prepare = () => {
        const { publication, platform } = attacker.fronts[queues - 1];
        closed = publication.rxPort;
        platform.events.close(closed);
      };
      attacker.afterFailure = ({ platform }) => {
        assert.deepEqual([attacker.vif.connected, attacker.vif.dev.napis.length], [false, 0]);
        assert.equal(platform.events.allocUnbound(0), closed);
      };
      assert.throws(() => attacker.connect(prepare), /port/);
      assert.deepEqual(holdings(path), before);
    });
  }
});

describe('netback and a hostile frontend: the packet is dropped', () => {
  /** Sends what `build` puts on the ring, a sound packet before it and one behind, and looks at the answers. */
  function dropped(
    name: string,
    seed: number,
    build: (scene: Scene) => void,
    expected: readonly (readonly [id: number, status: number])[],
  ): void {
    test(name, () =>
      scene(seed, async all => {
        const { attacker, by, heard, path } = all;
        const { fastPackets } = path;
        const first = attacker.frame(by.target, 32);
        attacker.front.packet(first, { id: 999 });
        build(all);
        const sound = attacker.frame(by.target, 64);
        attacker.front.packet(sound, { id: 1000 });
        await attacker.strike();
        assert.equal(path.fastPackets - fastPackets, path.fastPathModule === null ? 0 : 1, 'the first');
        assert.deepEqual(attacker.fatal, []);
        const answers = attacker.front.txResponses();
        assert.deepEqual(
          answers.map(({ id, status }) => [status === NULL ? -1 : id, status]),
          [[999, OKAY], ...expected, [1000, OKAY]],
        );
        assert.deepEqual(heard, [first, sound], 'the sound packets');
      }),
    );
  }
  const all = (count: number, status: number) =>
    Array.from({ length: count }, (_, id) => [id, status] as const);

  for (const continuations of [19, 20]) {
    dropped(
      `${continuations} continuation slots`,
      201,
      ({ attacker, by }) => {
        const slots = [100, ...Array(continuations).fill(5)];
        attacker.front.packet(attacker.frame(by.target, 100 + 5 * continuations - 54), { slots });
      },
      all(continuations + 1, ERROR),
    );
  }
  dropped(
    'FreeBSD/QEMU note: fragments of more bytes than the packet',
    202,
    ({ attacker }) => {
      attacker.front.request({ id: 0, flags: NETTXF_MORE_DATA, size: 100 });
      attacker.front.request({ id: 1, size: 200 });
    },
    all(2, ERROR),
  );
  for (const size of [0, 1, 13]) {
    dropped(
      `a packet of ${size} bytes`,
      203,
      ({ attacker }) => attacker.front.packet(new Uint8Array(size), { size }),
      all(1, ERROR),
    );
  }
  dropped(
    'a first slot that holds less than an Ethernet header',
    204,
    ({ attacker, by }) => attacker.front.packet(attacker.frame(by.target, 46), { slots: [13, 87] }),
    all(2, ERROR),
  );
  for (const [what, gref] of [
    ['is none', NO_GREF],
    ['was revoked', -1],
  ] as const) {
    dropped(
      `XSA-361, XSA-362, XSA-365, XSA-367: the grant of a slot ${what}: ERROR for that slot alone`,
      205,
      ({ attacker, by }) => {
        const { front } = attacker;
        const start = front.packet(attacker.frame(by.target, 300), { slots: [54, 100, 200] });
        if (gref >= 0) front.tx.write(start + 1, gref);
        else front.platform.grants.end(front.pages.at(-2)!.gref);
      },
      [
        [0, OKAY],
        [1, ERROR],
        [2, OKAY],
      ],
    );
  }
  dropped(
    'a grant to another domain: not ours to read',
    206,
    ({ attacker, by, path }) => {
      const { front } = attacker;
      front.packet(attacker.frame(by.target, 10));
      const { gref, page } = front.pages.at(-1)!;
      front.platform.grants.end(gref);
      front.platform.grants.grant(gref, path.hypervisor.domains[1].domid, page, false);
    },
    all(1, ERROR),
  );
  dropped(
    'csum_blank on what has no checksum: OKAY, and gone',
    207,
    ({ attacker }) => attacker.front.packet(new Uint8Array(60), { flags: NETTXF_CSUM_BLANK }),
    all(1, OKAY),
  );
  for (const [what, type, frame] of [
    ['IPv6 as TCPv4', GSO_TCPV4, { version: 6 }],
    ['IPv4 as TCPv6', GSO_TCPV6, { version: 4 }],
    ['UDP', GSO_TCPV4, { udp: true }],
  ] as const) {
    dropped(
      `a GSO extra info that does not fit the packet (${what}): OKAY, and gone`,
      208,
      ({ attacker, by }) => {
        const bytes = buildFrame({ ...frame, destination: by.target, payload: new Uint8Array(300) });
        const extras = [[gsoExtraWord0(100), gsoExtraWord1(type)]] as const;
        attacker.front.packet(bytes, { extras, flags: NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED });
      },
      [
        [0, OKAY],
        [-1, NULL],
      ],
    );
  }
  dropped(
    'a multicast request is a dummy: its grant is never touched, nothing is forwarded',
    209,
    ({ attacker }) => {
      attacker.front.request({
        gref: NO_GREF,
        offset: 0xffff,
        size: 0xffff,
        flags: NETTXF_EXTRA_INFO | NETTXF_MORE_DATA,
      });
      attacker.front.extra(XEN_NETIF_EXTRA_TYPE_MCAST_ADD | (XEN_NETIF_EXTRA_FLAG_MORE << 8));
      attacker.front.extra(XEN_NETIF_EXTRA_TYPE_MCAST_ADD);
    },
    [
      [0, OKAY],
      [-1, NULL],
      [-1, NULL],
    ],
  );
});

describe('netback and a hostile frontend: the packet is sound', () => {
  test('XSA-423: headers in tiny slots are together in the packet that is handed on', () =>
    sceneWithout(301, async ({ attacker, by, heard, heads }) => {
      const frame = attacker.frame(by.target, 6);
      const slots = [14, ...Array.from({ length: 18 }, (_, i) => [1, 2, 3, 4][i % 4])];
      const bytes = new Uint8Array(slots.reduce((a, b) => a + b));
      bytes.set(frame.subarray(0, bytes.length));
      attacker.front.packet(bytes, { slots });
      const long = attacker.frame(by.target, 1400);
      attacker.front.packet(long, { slots: [14, 1, 1, 1, long.length - 17] });
      await attacker.strike();
      assert.deepEqual(heard, [bytes, long]);
      assert.deepEqual(
        heads.map((head, i) => head >= Math.min(128, heard[i].length)),
        [true, true],
      );
    }));

  test('a packet whose grant behind the head is none is answered with ERROR, and arrives nowhere', () =>
    scene(307, async ({ attacker, by, heard }) => {
      const bytes = attacker.frame(by.target, 946);
      const first = attacker.front.packet(bytes, { slots: [300, 700] });
      attacker.front.tx.write(first + 1, NO_GREF);
      const sound = attacker.frame(by.target, 800);
      attacker.front.packet(sound);
      await attacker.strike();
      assert.deepEqual(
        attacker.front.txResponses().map(({ status }) => status),
        [ERROR, ERROR, OKAY],
      );
      if (heard === by.heard) assert.deepEqual(heard, [sound]);
    }));

  test('XSA-432: packets of as many slots as can be, shorter than the header area, back to back', () =>
    scene(302, async ({ attacker, by, heard }) => {
      for (let round = 0; round < 20; round++) {
        const sent: Uint8Array[] = [];
        for (let i = 0; i < 13; i++) {
          const slots = [14, ...Array(18).fill(1 + ((round + i) % 6))];
          const total = slots.reduce((a, b) => a + b);
          const bytes = new Uint8Array(total);
          bytes.set(attacker.frame(by.target, 200).subarray(0, total));
          attacker.front.packet(bytes, { slots });
          sent.push(bytes);
        }
        heard.length = 0;
        await attacker.strike();
        assert.deepEqual(heard, sent);
        assert.equal(attacker.front.txResponses().length, 13 * 19);
      }
      assert.deepEqual(attacker.fatal, []);
    }));

  test('XSA-448: slots without bytes are answered, and their grants not touched', () =>
    scene(303, async ({ attacker, by, heard }) => {
      for (const slots of [
        [100, 0, 50, 0],
        [14, 0, 0, 40],
        [54, ...Array(18).fill(0)],
        [1000, 0, 400],
      ]) {
        const { front } = attacker;
        const total = slots.reduce((a, b) => a + b);
        const bytes = attacker.frame(by.target, total - 54);
        const start = front.packet(bytes, { slots });
        for (const [i, size] of slots.entries()) if (size === 0) front.tx.write(start + i, NO_GREF);
        await attacker.strike();
        assert.deepEqual(heard.pop(), bytes);
        assert.deepEqual(
          front.txResponses(),
          slots.map((_, id) => ({ id, status: OKAY })),
        );
      }
    }));

  test('of two extra infos of one type the last counts, and all are answered', () =>
    scene(304, async ({ attacker, by }) => {
      const bytes = attacker.frame(by.target, 3000);
      const seen: number[] = [];
      const { dev } = attacker.vif;
      const before = dev.rxHandler!;
      dev.rxHandler = (packet, from) => {
        seen.push(packet.gsoSize);
        before(packet, from);
      };
      attacker.front.packet(bytes, {
        flags: NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED,
        extras: [100, 200, 1448].map(size => [gsoExtraWord0(size), gsoExtraWord1(GSO_TCPV4)] as const),
      });
      await attacker.strike();
      assert.deepEqual(seen, [1448]);
      assert.deepEqual(
        attacker.front.txResponses().map(({ status }) => status),
        [OKAY, NULL, NULL, NULL],
      );
    }));

  test('XSA-216: what lies beside a response in its slot is what the frontend wrote there itself', () =>
    scene(305, async ({ attacker, by }) => {
      attacker.front.packet(attacker.frame(by.target, 100), { id: 77 });
      const before = attacker.front.tx.bytes();
      await attacker.strike();
      const after = attacker.front.tx.bytes();
      assert.deepEqual(after.subarray(64 + 4), before.subarray(64 + 4));
      assert.deepEqual([...after.subarray(64, 68)], [77, 0, 0, 0]);
    }));

  test('XSA-155: no byte of a slot is read twice, and a second read would not matter', () =>
    scene(
      306,
      async ({ attacker, by, heard }) => {
        const { front } = attacker;
        const txMemory = attacker.txMemory!;
        const rxMemory = attacker.rxMemory!;
        // What was flooded to us before has to come first.
        front.postRx(40);
        await attacker.strike();
        front.rxPackets();
        front.postRx(256 - 40);
        await attacker.strike();
        rxMemory.rearm();
        for (let round = 0; round < 8; round++) {
          const sent: Uint8Array[] = [];
          for (const [i, slots] of [[60], [14, 1, 0, 100, 9], [1000, 4096, 3000], [200, 800]].entries()) {
            const bytes = attacker.frame(by.target, slots.reduce((a, b) => a + b) - 54);
            const gso = [[gsoExtraWord0(1448), gsoExtraWord1(GSO_TCPV4)]] as const;
            const offload = i === 2 ? { flags: NETTXF_CSUM_BLANK, extras: gso } : {};
            front.packet(bytes, { slots, ...offload });
            sent.push(bytes);
          }
          const back = buildFrame({ destination: attacker.mac, payload: new Uint8Array(6000).fill(round) });
          attacker.vif.dev.xmit(packetFrom(attacker.vif.dev as never, back));
          heard.length = 0;
          await attacker.strike();
          assert.deepEqual(attacker.fatal, []);
          // A partial checksum is made good at once: what is behind the headers must be the same.
          assert.deepEqual(
            heard.map(bytes => [bytes.length, ...bytes.subarray(54)]),
            sent.map(bytes => [bytes.length, ...bytes.subarray(54)]),
          );
          assert.deepEqual(
            front.txResponses().map(({ status }) => status),
            [...Array(6).fill(OKAY), OKAY, NULL, ...Array(4).fill(OKAY)],
          );
          assert.deepEqual(
            front.rxPackets().map(({ bytes }) => bytes),
            [back],
          );
          assert.equal(txMemory.mostReads, 1);
          assert.equal(rxMemory.mostReads, 1);
          assert.equal(rxMemory.bytesRead, 16, 'two rx requests for 6054 bytes');
          txMemory.rearm();
          rxMemory.rearm();
          front.postRx(2);
        }
      },
      { doubleFetch: true },
    ));
});

describe('netback and a hostile frontend: resources', () => {
  test('XSA-332: an event storm costs few handler runs', () =>
    scene(401, async ({ attacker, path, by }) => {
      const runs = () =>
        path.dom0.irqs.counts
          .filter(({ name }) => name.startsWith(attacker.vif.dev.name))
          .reduce((sum, { count }) => sum + count, 0);
      // It has done something once.
      attacker.front.postRx(4);
      await attacker.strike();
      const before = runs();
      for (let i = 0; i < 20_000; i++) {
        for (let k = 0; k < 5; k++) attacker.front.kick();
        if (i % 50 === 0) {
          by.send();
          await path.scheduler.runFor(5);
        }
      }
      // 2 s of virtual time: at most one run an event at first, then one a second and port.
      assert.ok(runs() - before < 40, `${runs() - before} handler runs`);
    }));

  test('XSA-361, XSA-362, XSA-365, XSA-367: rx requests whose grants cannot be written are answered with ERROR, others work', () =>
    scene(402, async ({ attacker }) => {
      const { front, vif } = attacker;
      const readonly = front.grantPage(true);
      const send = (length: number) => {
        const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(length) });
        vif.dev.xmit(packetFrom(vif.dev as never, bytes));
      };
      front.rxRequest(0, NO_GREF);
      front.rxRequest(1, readonly.gref);
      const revoked = front.grantPage(false);
      front.platform.grants.end(revoked.gref);
      front.rxRequest(2, revoked.gref);
      front.rxNext = 3;
      front.push();
      send(100);
      send(100);
      send(100);
      await attacker.strike();
      assert.equal(front.rx.rspProd, 3);
      for (let i = 0; i < 3; i++) {
        assert.deepEqual([front.rx.word(i, 0) & 0xffff, front.rx.word(i, 1) >> 16], [i, ERROR]);
      }
      front.rxPackets();
      // A packet of several slots whose last page is bad: one ERROR, the other requests stay usable.
      front.postRx(2);
      front.rxRequest(5, NO_GREF);
      send(9000);
      await attacker.strike();
      assert.equal(front.rx.rspProd, 4);
      assert.equal(front.rx.word(3, 1) >> 16, ERROR);
      front.rxPackets();
      send(50);
      await attacker.strike();
      assert.deepEqual(
        front.rxPackets().map(({ bytes }) => bytes.length),
        [104],
      );
    }));

  test('requests that a packet left whose copy failed are for the one behind it, at once', () =>
    scene(411, async ({ attacker }) => {
      const { front, vif } = attacker;
      front.postRx(2);
      front.rxRequest(2, NO_GREF);
      for (const length of [9000, 50]) {
        const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(length) });
        vif.dev.xmit(packetFrom(vif.dev as never, bytes));
      }
      await attacker.strike();
      assert.equal(front.rx.rspProd, 2);
      assert.deepEqual(
        [0, 1].map(i => front.rx.word(i, 1) >> 16),
        [ERROR, 104],
      );
    }));

  test('XSA-392: a guest that keeps one free slot holds a bounded queue, and nobody else’s slots', () =>
    scene(403, async ({ attacker, path }) => {
      const { front, vif } = attacker;
      front.postRx(1);
      await attacker.strike();
      const sender = path.guest({ mtu: 9000 });
      const held = () => path.dom0.net.packets.used;
      for (const length of [8000, 46]) {
        for (let i = 0; i < 3000; i++) {
          const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(length) });
          sender.dev.xmit(packetFrom(sender.dev, bytes));
          if (i % 16 === 15) await path.scheduler.runReady();
        }
        await path.scheduler.runReady();
        assert.ok(held() <= RX_QUEUE_PACKETS_MAX + 64, `${held()} packets are held`);
        const bytes = path.dom0.net.pages.used * 4096;
        assert.ok(bytes <= 2 * RX_QUEUE_BYTES_MAX + RX_QUEUE_PACKETS_MAX * 4096, `${bytes} bytes are held`);
      }
      assert.equal(sender.dev.txQueues[0].length, 0, 'the sender waits for nothing');
      assert.ok(vif.dev.stats.txDropped > 4000);
      sender.disconnect();
      path.bridge.removePort(sender.vif.dev as never);
      sender.dom.domain.destroy();
    }));

  test('XSA-392: one free slot where three are needed is a stall: the carrier goes, until there are enough', () =>
    scene(409, async ({ attacker, path }) => {
      const { front, vif } = attacker;
      const send = () => {
        const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(9000) });
        vif.dev.xmit(packetFrom(vif.dev as never, bytes));
      };
      for (let round = 0; round < 20; round++) {
        front.postRx(1);
        await attacker.strike();
        // Odd moments: sums of fractions of milliseconds must not keep a timer busy.
        await path.scheduler.runFor(1000.001 * round + 0.107);
        send();
        const { steps } = path.scheduler;
        await path.scheduler.runFor(RX_STALL_MS / 2);
        assert.equal(vif.dev.carrierOk, true);
        send();
        await path.scheduler.runFor(RX_STALL_MS);
        assert.equal(vif.dev.carrierOk, false);
        assert.equal(path.dom0.net.packets.used, 0, 'what waited has expired');
        assert.ok(path.scheduler.steps - steps < 200, `${path.scheduler.steps - steps} steps of waiting`);
        front.postRx(5);
        await attacker.strike();
        await path.scheduler.runFor(2000);
        assert.equal(vif.dev.carrierOk, true);
        send();
        send();
        await path.scheduler.runFor(2);
        assert.equal(front.rxPackets().length, 2);
        front.rxPackets();
      }
    }));

  test('a guest that is gone while it counts as stalled has a carrier when it is back', () =>
    scene(412, async ({ attacker, path }) => {
      const { dev } = attacker.vif;
      const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(100) });
      dev.xmit(packetFrom(dev as NetDevice, bytes));
      await path.scheduler.runFor(RX_STALL_MS + 1000);
      assert.equal(dev.carrierOk, false);
      attacker.disconnect();
      attacker.connect();
      await path.scheduler.runFor(10);
      assert.deepEqual([attacker.vif.stalledQueues, dev.carrierOk], [0, true]);
    }));

  test('XSA-424: whatever drops a packet in the middle of a poll, the poll is not entered again, and all is answered', () =>
    scene(410, async ({ attacker, path }) => {
      const sender = path.guest({ mtu: 9000 });
      const { vif } = attacker;
      attacker.front.packet(attacker.frame([...sender.dev.address], 46));
      await attacker.strike();
      const receive = TxRing.prototype.receive;
      let depth = 0;
      let deepest = 0;
      TxRing.prototype.receive = function (budget, napi) {
        deepest = Math.max(deepest, ++depth);
        const work = receive.call(this, budget, napi);
        depth--;
        return work;
      };
      try {
        const dropped: number[] = [];
        const send = async (destination: readonly number[]) => {
          const before = vif.dev.stats.txDropped;
          for (let i = 0; i < 300; i++) {
            // Fragments stay the sender's: whoever drops the packet answers it.
            const bytes = buildFrame({ destination, payload: new Uint8Array(5000) });
            sender.dev.xmit(packetFrom(sender.dev, bytes));
            if (i % 8 === 7) await path.scheduler.runReady();
          }
          await path.scheduler.runReady();
          dropped.push(vif.dev.stats.txDropped - before);
          assert.equal(sender.vif.queues[0].inFlight, 0, 'packets that are not answered');
        };
        vif.multicastControl = true;
        await send([1, 0, 0x5e, 0, 0, 9]);
        vif.multicastControl = false;
        await send(attacker.mac);
        vif.dev.carrierOff();
        await send(attacker.mac);
        vif.dev.carrierOn();
        assert.equal(dropped[0], 300, 'groups that nobody asked for');
        assert.ok(dropped[1] > 100, `${dropped[1]} beyond the queue's bound`);
        assert.equal(deepest, 1);
      } finally {
        TxRing.prototype.receive = receive;
      }
      sender.disconnect();
      path.bridge.removePort(sender.vif.dev as never);
      sender.dom.domain.destroy();
    }));

  test('a disabled vif lets go of what waited for it', () =>
    scene(404, async ({ attacker, path }) => {
      const sender = path.guest({ mtu: 9000 });
      for (let i = 0; i < 10; i++) {
        const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(3000) });
        sender.dev.xmit(packetFrom(sender.dev, bytes));
      }
      await path.scheduler.runReady();
      attacker.front.tx.reqProd = 1000;
      attacker.front.kick();
      await path.scheduler.runReady();
      assert.equal(attacker.fatal.length, 1);
      assert.equal(path.dom0.net.packets.used, 0);
      assert.equal(path.dom0.net.pages.used, 0);
      sender.disconnect();
      path.bridge.removePort(sender.vif.dev as never);
      sender.dom.domain.destroy();
    }));

  test('a producer index behind what is consumed keeps nobody busy', () =>
    scene(405, async ({ attacker, path }) => {
      // The bridge's own device holds packets with the guest's fragments: their slots stay unanswered.
      const kept: { release(): void }[] = [];
      attacker.vif.dev.rxHandler = packet => kept.push(packet);
      for (let i = 0; i < 256; i++) attacker.front.packet(attacker.frame([2, 0, 0, 0, 0, 9], 600));
      await attacker.strike();
      assert.equal(kept.length, 256);
      attacker.front.tx.reqProd = attacker.front.txNext - 5;
      attacker.front.kick();
      const { steps } = path.scheduler;
      await path.scheduler.runFor(100);
      assert.ok(path.scheduler.steps - steps < 50, `${path.scheduler.steps - steps} steps`);
      for (const packet of kept) packet.release();
      await path.scheduler.runFor(100);
    }));

  test('XSA-374: connecting and disconnecting 1000 times in the middle of traffic', () =>
    scene(406, async ({ attacker, by, path }) => {
      for (let i = 0; i < 1000; i++) {
        const { front } = attacker;
        front.postRx(4);
        front.packet(attacker.frame(by.target, 1000));
        front.packet(attacker.frame(Array(6).fill(0xff), 3000));
        const bytes = buildFrame({ destination: attacker.mac, payload: new Uint8Array(5000) });
        attacker.vif.dev.xmit(packetFrom(attacker.vif.dev as never, bytes));
        front.push();
        front.kick();
        if (i % 3 === 0) await path.scheduler.runFor(0.002);
        assert.ok(attacker.disconnect());
        attacker.connect();
        if (i % 100 === 0) await by.check();
      }
    }));

  test('XSA-441: disconnecting from inside the event handler', () =>
    scene(407, async ({ attacker, path }) => {
      const { irqs, platform } = path.dom0;
      const remote = attacker.domain.platform.events.allocUnbound(0);
      const bound = irqs.bindInterdomainEvtchnToIrqhandler(
        attacker.domain.domid,
        remote,
        irq => {
          irqs.unbindFromIrqhandler(irq);
          attacker.vif.disconnect();
        },
        'closes',
      );
      attacker.front.packet(attacker.frame(attacker.mac, 100));
      attacker.front.push();
      attacker.front.kick();
      attacker.domain.platform.events.notify(remote);
      await path.scheduler.runReady();
      assert.equal(irqs.irqFromEvtchn(bound.port), -1);
      attacker.domain.platform.events.close(remote);
      assert.equal(attacker.vif.connected, false);
      assert.equal(platform.domid, 0);
    }));

  test('a frontend that closes its ports, or dies, is sent no event and loses nothing of ours', () =>
    scene(408, async ({ attacker, path, by }) => {
      const other = new Attacker(path);
      other.connect();
      for (const one of [attacker, other]) {
        one.front.postRx(10);
        one.front.packet(one.frame(by.target, 3000));
        one.front.push();
        one.front.kick();
      }
      await path.scheduler.runFor(0.003);
      other.domain.destroy();
      attacker.domain.platform.events.close(attacker.front.publication.txPort);
      attacker.vif.dev.xmit(packetFrom(attacker.vif.dev as never, attacker.frame(attacker.mac, 2000)));
      other.vif.dev.xmit(packetFrom(other.vif.dev as never, attacker.frame(other.mac, 2000)));
      await path.scheduler.runReady();
      await by.check();
      other.vif.disconnect();
      other.disconnectAfterDeath();
      path.bridge.removePort(other.vif.dev as never);
      // For the accounts: the port is open again, as the scene closes it.
      (attacker.front.publication as { txPort: number }).txPort =
        attacker.domain.platform.events.allocUnbound(0);
    }));
});
