import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETIF_RSP_ERROR,
  NETIF_RSP_OKAY,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
  XenbusState,
} from '../../src/abi/index.js';
import { offloadsWithout } from '../../src/kernel/index.js';
import { writeIpv4Checksum } from '../../src/net/checksum.js';
import { Headers } from '../../src/net/headers.js';
import { GSO_TCPV4, GSO_TCPV6, type NetDevice } from '../../src/net/index.js';
import { NETBACK_FEATURES, type NetbackFeature, registerNetback, type Vif } from '../../src/netback/index.js';
import { NETFRONT_FEATURES } from '../../src/netfront/index.js';
import { buildFrame, checksumsAreRight, layout, type TcpFrame } from '../net/frames.js';
import { ALL_FEATURES, DataPath } from '../support/data-path.js';
import { type GuestDomain, Host } from '../support/host.js';
import { quiet, Victim } from '../support/hostile.js';
import { bytesOf, packetFrom, partial } from '../support/packets.js';
import { RawPair } from '../support/raw-pair.js';

/** What an end says in xenstore with all its features. */
const OFFLOAD_NODES = { sg: 1, 'gso-tcpv4': 1, 'gso-tcpv6': 1, 'ipv6-csum-offload': 1 };
const BACK_NODES = {
  ...OFFLOAD_NODES,
  'rx-copy': 1,
  'rx-flip': 0,
  'split-event-channels': 1,
  'multicast-control': 1,
  'dynamic-multicast-control': 1,
  'ctrl-ring': 1,
  'xdp-headroom': 1,
};
const FRONT_NODES = { ...OFFLOAD_NODES, 'rx-notify': 1 };
/** … and with none of those that can be left out. */
const NO_BACK_NODES = { 'rx-copy': 1, 'rx-flip': 0, 'no-csum-offload': 1 };
const NO_FRONT_NODES = { 'no-csum-offload': 1 };

async function features(host: Host, path: string): Promise<Record<string, number>> {
  const nodes: Record<string, number> = {};
  for (const key of await host.run(host.xs.directory(path))) {
    const feature = /^feature-(.*)$/.exec(key)?.[1];
    if (feature !== undefined) nodes[feature] = Number(await host.run(host.xs.read(`${path}/${key}`)));
  }
  return nodes;
}

const directory = (host: Host, guest: GuestDomain) => host.run(host.xs.directory(host.frontPath(guest)));
const vifOf = (host: Host) => host.dom0.net.byName('vif1.0')!.priv as Vif;

describe('features in xenstore', () => {
  test('are all there unless they are left out', async () => {
    const host = await Host.boot(60);
    const guest = await host.createGuest('a');
    await host.connectVif(guest);
    assert.deepEqual(await features(host, host.backPath(guest)), BACK_NODES);
    assert.deepEqual(await features(host, host.frontPath(guest)), FRONT_NODES);
  });

  test('are none of a backend that leaves out all, of which a frontend uses none', async () => {
    const host = await Host.boot(61, { netback: { without: NETBACK_FEATURES } });
    const guest = await host.createGuest('a', { maxQueues: 4, multicastControl: true });
    const { mtu } = await host.connectVif(guest, 0, { front: { mtu: 9000 } });
    assert.equal(mtu, 1500);
    const path = host.backPath(guest);
    assert.deepEqual(await features(host, path), NO_BACK_NODES);
    assert.equal((await host.run(host.xs.directory(path))).includes('multi-queue-max-queues'), false);
    const keys = await directory(host, guest);
    for (const key of ['ctrl-ring-ref', 'multi-queue-num-queues', 'xdp-headroom', 'event-channel-tx']) {
      assert.equal(keys.includes(key), false, key);
    }
    assert.equal(keys.includes('request-multicast-control'), false);
    assert.equal(vifOf(host).dev.txQueues.length, 1);
  });

  test('are none of a frontend that leaves out all, and what the backend has it does not use', async () => {
    const host = await Host.boot(62);
    const guest = await host.createGuest('a', { without: NETFRONT_FEATURES });
    await host.connectVif(guest);
    assert.deepEqual(await features(host, host.frontPath(guest)), NO_FRONT_NODES);
    const keys = await directory(host, guest);
    assert.equal(keys.includes('event-channel'), true);
    for (const key of ['event-channel-tx', 'ctrl-ring-ref']) assert.equal(keys.includes(key), false, key);
    assert.equal(vifOf(host).rxNotify, false);
  });

  test('go when the backend that takes a vif up leaves them out', async () => {
    const host = await Host.boot(63);
    const guest = await host.createGuest('a');
    await host.connectVif(guest);
    const path = host.backPath(guest);
    const { xenbus } = host.dom0;
    const { driver } = xenbus.backend.devices.get(`backend/vif/${guest.domid}/0`)!;
    await host.run(xenbus.unregisterDriver(driver!));
    await host.run(
      registerNetback(host.dom0.kernel, {
        without: ['sg', 'csum-offload', 'multi-queue', 'multicast-control'],
      }),
    );
    await host.until(() => xenbus.backend.devices.get(`backend/vif/${guest.domid}/0`)?.driver !== null);
    await host.scheduler.runFor(10);
    const nodes: Record<string, number> = { ...BACK_NODES, 'no-csum-offload': 1 };
    for (const gone of ['sg', 'multicast-control', 'dynamic-multicast-control']) delete nodes[gone];
    assert.deepEqual(await features(host, path), nodes);
    assert.equal((await host.run(host.xs.directory(path))).includes('multi-queue-max-queues'), false);
  });
});

describe('what a frontend publishes of features that its backend does not offer', () => {
  const cases: [NetbackFeature, Record<string, string>, (host: Host) => void][] = [
    ['xdp-headroom', { 'xdp-headroom': '256' }, host => assert.equal(vifOf(host).xdpHeadroom, 0)],
    [
      'multicast-control',
      { 'request-multicast-control': '1' },
      host => assert.equal(vifOf(host).multicastControl, false),
    ],
  ];
  for (const [feature, front, check] of cases) {
    test(`${feature}: is not looked at`, async () => {
      const host = await Host.boot(64, { netback: { without: [feature] } });
      const guest = await host.createGuest('a');
      await host.connectVif(guest, 0, { front });
      assert.deepEqual(host.states(guest), [XenbusState.Connected, XenbusState.Connected]);
      check(host);
    });
  }

  const published = async (without: NetbackFeature[], changed: Record<string, string>) => {
    const host = await Host.boot(68, { netback: { without } });
    const guest = await host.createGuest('a', null);
    await host.addVif(guest);
    await host.until(() => host.states(guest)[1] === XenbusState.InitWait);
    await host.publishFrontend(guest, changed);
    await host.until(() => host.states(guest)[1] !== XenbusState.InitWait || vifOf(host).connected);
    return { host, guest };
  };

  test('ctrl-ring: is not mapped', async () => {
    const { host } = await published(['ctrl-ring'], { 'ctrl-ring-ref': '77', 'event-channel-ctrl': '77' });
    assert.equal(vifOf(host).connected, true);
  });

  test('split-event-channels: is an error, which xenstore has', async () => {
    const { host, guest } = await published(['split-event-channels'], {});
    assert.equal(host.states(guest)[1], XenbusState.Closing);
    const error = await host.run(host.xs.read(`/local/domain/0/error/backend/vif/${guest.domid}/0/error`));
    assert.match(error, /^22 connecting vif1\.0/);
  });

  test('multi-queue: is an error, too', async () => {
    const { host, guest } = await published(['multi-queue'], { 'multi-queue-num-queues': '2' });
    assert.equal(host.states(guest)[1], XenbusState.Closing);
  });

  test('dynamic-multicast-control: is read when it connects, and not followed', async () => {
    const host = await Host.boot(65, { netback: { without: ['dynamic-multicast-control'] } });
    const guest = await host.createGuest('a');
    await host.connectVif(guest, 0, { front: { 'request-multicast-control': '1' } });
    assert.equal(vifOf(host).multicastControl, true);
    await host.run(host.xs.write(`${host.frontPath(guest)}/request-multicast-control`, '0'));
    await host.scheduler.runFor(10);
    assert.equal(vifOf(host).multicastControl, true);
  });
});

const TCP = { udp: false, flags: 0x10 } as const;
/** Destination options that are padding, before UDP: nothing for the fast path. */
const OPTIONS = { firstHeader: 60, extra: Uint8Array.of(17, 0, 1, 4, 0, 0, 0, 0) };
const payload = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 5) & 0xff);

/** A kind of packet, and the one feature that it needs to be taken. */
interface Kind {
  readonly feature: 'sg' | 'gso-tcpv4' | 'gso-tcpv6' | 'csum-offload' | 'ipv6-csum-offload';
  readonly bytes: number;
  readonly frame: Partial<TcpFrame>;
  readonly blank: boolean;
  readonly gso?: number;
}
const KINDS: readonly Kind[] = [
  { feature: 'sg', bytes: 5000, frame: {}, blank: false },
  { feature: 'gso-tcpv4', bytes: 3000, frame: TCP, blank: true, gso: GSO_TCPV4 },
  { feature: 'gso-tcpv6', bytes: 3000, frame: { ...TCP, version: 6 }, blank: true, gso: GSO_TCPV6 },
  { feature: 'csum-offload', bytes: 700, frame: {}, blank: true },
  { feature: 'ipv6-csum-offload', bytes: 700, frame: { version: 6, ...OPTIONS }, blank: true },
];
const extrasOf = ({ gso }: Kind) =>
  gso === undefined ? [] : ([[gsoExtraWord0(1400), gsoExtraWord1(gso)]] as const);

describe('packets that a guest sends although its backend does not take them', () => {
  for (const fastPath of [true, false]) {
    for (const kind of KINDS) {
      test(`${kind.feature} (fast path: ${fastPath}): are dropped, others arrive`, async () => {
        const pair = new RawPair(fastPath, { sender: { without: [kind.feature] } });
        pair.receiver.front.postRx(60);
        const flags = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
        const sent: Uint8Array[] = [];
        for (const each of KINDS) {
          const bytes = pair.frame(each.bytes, each.frame);
          await pair.send(bytes, { flags: each.blank ? flags : 0, extras: extrasOf(each) });
          // The receiver takes all.
          if (each !== kind) sent.push(bytes);
        }
        assert.deepEqual(pair.sender.fatal, []);
        assert.equal(pair.sender.vif.dev.stats.rxErrors, 1);
        const got = pair.receiver.front.rxPackets().map(({ bytes }) => bytes);
        assert.deepEqual(got, sent);
        assert.equal(pair.sender.vif.queues[0].inFlight, 0);
      });
    }
  }
});

/** The bytes of a frame whose checksum is left to whoever needs it. */
function leftBlank(dev: NetDevice, frame: Uint8Array): Uint8Array {
  const packet = partial(packetFrom(dev, frame), dev);
  const headers = new Headers();
  headers.parse(packet);
  if (headers.ipVersion === 4) writeIpv4Checksum(packet, headers);
  const bytes = bytesOf(packet);
  packet.release();
  return bytes;
}

describe('packets for a guest that does not take them', () => {
  for (const fastPath of [true, false]) {
    for (const kind of KINDS.slice(1)) {
      test(`${kind.feature} (fast path: ${fastPath}): become such that it does, others stay as they are`, async () => {
        const taken = offloadsWithout(new Set([kind.feature]))!;
        const pair = new RawPair(fastPath, { receiver: { features: { ...ALL_FEATURES, ...taken } } });
        const { front, vif } = pair.receiver;
        front.postRx(60);
        const flags = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
        for (const each of KINDS.slice(1)) {
          const sent = leftBlank(vif.dev as NetDevice, pair.frame(each.bytes, each.frame));
          await pair.send(sent, { flags, extras: extrasOf(each) });
          const got = front.rxPackets();
          const v6 = each.frame.version === 6;
          const sums = v6 ? taken.ipv6CsumOffload : !taken.noCsumOffload;
          const whole = sums && (v6 ? taken.gsoTcpv6 : taken.gsoTcpv4);
          const blank = sums ? NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED : 0;
          if (each.gso === undefined || whole) {
            assert.deepEqual([got.length, got[0].extras], [1, extrasOf(each)], each.feature);
            if (sums) assert.deepEqual(got[0].bytes, sent);
          } else assert.equal(got.length, Math.ceil(each.bytes / 1400));
          const data = ({ bytes }: { bytes: Uint8Array }) => bytes.subarray(layout(bytes).payload);
          assert.deepEqual(Buffer.concat(got.map(data)), Buffer.from(data({ bytes: sent })));
          for (const packet of got) {
            assert.equal(packet.flags & (NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED), blank, each.feature);
            if (!sums) assert.ok(checksumsAreRight(packet.bytes, each.frame.udp ?? true));
          }
        }
      });
    }
  }
});

test('requests of multicast control that the backend does not take are answered with an error', async () => {
  for (const without of [[], ['multicast-control']] as const) {
    const pair = new RawPair(true, { sender: { without } });
    const { front, vif } = pair.sender;
    await pair.send(pair.frame(100), { extras: [[XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 0]] });
    const refused = without.length > 0;
    const status = refused ? NETIF_RSP_ERROR : NETIF_RSP_OKAY;
    assert.equal(front.txResponses()[0].status, status);
    assert.equal(vif.multicast.size, refused ? 0 : 1);
  }
});

describe('packets that come from a backend although the frontend does not take them', () => {
  for (const ringCode of [true, false]) {
    for (const kind of KINDS) {
      test(`${kind.feature} (WebAssembly: ${ringCode}): are dropped, others arrive`, async () => {
        const path = new DataPath(66);
        const taken = offloadsWithout(new Set([kind.feature]));
        const victim = new Victim(path, { ringCode, taken });
        const back = victim.connect();
        await quiet(path);
        const sent: Uint8Array[] = [];
        for (const each of KINDS) {
          const bytes = buildFrame({
            destination: victim.mac,
            udp: true,
            payload: payload(each.bytes),
            ...each.frame,
          });
          const flags = each.blank ? NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED : 0;
          if (each.gso === undefined) back.packet(bytes, flags);
          else {
            back.fill(back.rxGref, bytes);
            back.respondRx({ flags: flags | NETRXF_EXTRA_INFO, status: bytes.length });
            back.rxExtra(gsoExtraWord0(1400), gsoExtraWord1(each.gso));
          }
          await victim.strike();
          if (each !== kind) sent.push(bytes);
        }
        assert.deepEqual(victim.broken, []);
        assert.equal(victim.dev.stats.rxErrors, 1);
        assert.deepEqual(victim.got, sent);
        victim.disconnect();
      });
    }
  }
});

test('a frontend that trusts nobody does so whatever the node of its vif says', async () => {
  for (const [option, node, trusted] of [
    [undefined, 1, true],
    [false, 1, false],
    [true, 0, false],
  ] as const) {
    const host = await Host.boot(67);
    const guest = await host.createGuest('a', { trusted: option });
    const eth0 = await host.connectVif(guest, 0, { front: { trusted: node } });
    assert.equal(eth0.txPool !== null, trusted, `${option}, ${node}`);
  }
});
