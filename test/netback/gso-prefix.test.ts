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
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_EXTRA_TYPE_GSO,
  XEN_NETIF_EXTRA_TYPE_HASH,
  XEN_NETIF_EXTRA_TYPE_XDP,
} from '../../src/abi/index.js';
import {
  CHECKSUM_PARTIAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  NETIF_F_GRO,
  type NetDevice,
} from '../../src/net/index.js';
import { ALL_HASH_TYPES } from '../../src/netback/hash.js';
import type { Vif } from '../../src/netback/index.js';
import { buildFrame, layout } from '../net/frames.js';
import { ALL_FEATURES, DataPath, type Guest } from '../support/data-path.js';
import { Host } from '../support/host.js';
import { bytesOf, packetFrom, partial } from '../support/packets.js';
import { RawPair } from '../support/raw-pair.js';

const BOTH = (1 << GSO_TCPV4) | (1 << GSO_TCPV6);
const TX_BLANK = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
const RX_BLANK = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;

/** Sends one packet of GSO and one without to a frontend that keeps to no driver of ours. */
async function toRaw(
  gsoPrefix: number,
  version: 4 | 6,
  fastPath: boolean,
  prepare: (vif: Vif) => void = () => {},
) {
  const pair = new RawPair(fastPath, { receiver: { features: { ...ALL_FEATURES, gsoPrefix } } });
  const { receiver } = pair;
  receiver.front.postRx(40);
  prepare(receiver.vif);
  const type = version === 4 ? GSO_TCPV4 : GSO_TCPV6;
  const long = pair.frame(20_000, { version, udp: false, flags: 0x10 });
  const extras = [[gsoExtraWord0(1400), gsoExtraWord1(type)]] as const;
  await pair.send(long, { flags: TX_BLANK, extras });
  const short = pair.frame(700, { version });
  await pair.send(short, { flags: TX_BLANK });
  const [first, second, ...more] = receiver.front.rxPackets();
  assert.deepEqual(more, []);
  assert.deepEqual([first.bytes, second.bytes], [long, short]);
  assert.deepEqual([second.prefix, second.flags & ~NETRXF_EXTRA_INFO], [null, RX_BLANK]);
  return first;
}

describe('a frontend that takes GSO packets with a prefix', () => {
  for (const fastPath of [true, false]) {
    const how = fastPath ? 'beside the fast path' : 'without the fast path';
    for (const version of [4, 6] as const) {
      test(`gets the GSO size and the number of responses before an IPv${version} packet, ${how}`, async () => {
        const { prefix, flags, extras, bytes } = await toRaw(BOTH, version, fastPath);
        const slots = Math.ceil(bytes.length / 4096);
        assert.deepEqual(prefix, [1400 << 16, NETRXF_GSO_PREFIX | NETRXF_MORE_DATA | ((slots + 1) << 16)]);
        assert.equal(flags, RX_BLANK | NETRXF_MORE_DATA);
        assert.deepEqual(extras, []);
      });
    }

    test(`of IPv4 only gets an extra info with IPv6, ${how}`, async () => {
      const { prefix, flags, extras } = await toRaw(1 << GSO_TCPV4, 6, fastPath);
      assert.equal(prefix, null);
      assert.equal(flags, RX_BLANK | NETRXF_MORE_DATA | NETRXF_EXTRA_INFO);
      assert.deepEqual(extras, [[gsoExtraWord0(1400), gsoExtraWord1(GSO_TCPV6)]]);
    });
  }

  test('gets the other extra infos behind the first data', async () => {
    const { prefix, flags, extras, bytes } = await toRaw(BOTH, 4, true, vif => {
      vif.setXdpHeadroom(256);
      Object.assign(vif.hash, { algorithm: XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, flags: ALL_HASH_TYPES });
    });
    const slots = Math.ceil(bytes.length / (4096 - 256));
    assert.deepEqual(
      prefix!.map(word => word >>> 16),
      [1400, slots + 1],
    );
    assert.equal(flags, RX_BLANK | NETRXF_MORE_DATA | NETRXF_EXTRA_INFO);
    assert.deepEqual(
      extras.map(([word0]) => word0 & 0xff),
      [XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_EXTRA_TYPE_XDP],
    );
  });

  test('gets extra infos only, if it did not ask', async () => {
    const { prefix, extras } = await toRaw(0, 4, true);
    assert.equal(prefix, null);
    assert.deepEqual(
      extras.map(([word0]) => word0 & 0xff),
      [XEN_NETIF_EXTRA_TYPE_GSO],
    );
  });
});

describe('our netfront takes a prefix', () => {
  const payload = Uint8Array.from({ length: 40_000 }, (_, i) => (i * 7) & 0xff);

  /** Sends TCP of 40,000 bytes in one packet, and says what arrives. */
  async function transfer(path: DataPath, from: Guest, to: Guest, version: 4 | 6) {
    const got: { type: number; size: number; checksum: number; bytes: Uint8Array }[] = [];
    to.dev.features &= ~NETIF_F_GRO;
    to.dev.rxHandler = packet => {
      const { gsoType: type, gsoSize: size, checksum } = packet;
      got.push({ type, size, checksum, bytes: bytesOf(packet) });
      packet.release();
    };
    const addresses = { source: [...from.dev.address], destination: [...to.dev.address] };
    const bytes = buildFrame({ ...addresses, payload, version, udp: false, flags: 0x10 });
    const packet = partial(packetFrom(from.dev, bytes), from.dev);
    const frame = bytesOf(packet);
    Object.assign(packet, { gsoType: version === 4 ? GSO_TCPV4 : GSO_TCPV6, gsoSize: 1400 });
    from.dev.xmit(packet);
    await path.settle();
    assert.deepEqual([from.broken, from.fatal, to.broken, to.fatal], [[], [], [], []]);
    assert.equal(to.dev.stats.rxErrors, 0);
    return { got, frame };
  }

  for (const version of [4, 6] as const) {
    for (const tied of [true, false]) {
      test(`before an IPv${version} packet (grants tied to pages: ${tied})`, async () => {
        const path = new DataPath(41);
        const features = { ...ALL_FEATURES, gsoPrefix: BOTH };
        const [a, b] = [path.guest(), path.guest({ features, gsoPrefix: true, tied })];
        for (let i = 0; i < 30; i++) {
          const { got, frame } = await transfer(path, a, b, version);
          const type = version === 4 ? GSO_TCPV4 : GSO_TCPV6;
          assert.deepEqual(got, [{ type, size: 1400, checksum: CHECKSUM_PARTIAL, bytes: frame }]);
        }
      });
    }
  }

  test('with an XDP headroom', async () => {
    const path = new DataPath(42);
    const features = { ...ALL_FEATURES, gsoPrefix: BOTH, xdpHeadroom: 256 };
    const [a, b] = [path.guest(), path.guest({ features, gsoPrefix: true })];
    const { got, frame } = await transfer(path, a, b, 4);
    assert.deepEqual(got, [{ type: GSO_TCPV4, size: 1400, checksum: CHECKSUM_PARTIAL, bytes: frame }]);
  });

  test('and cut segments from a backend that knows none', async () => {
    const path = new DataPath(43);
    const features = { ...ALL_FEATURES, gsoTcpv4: false };
    const [a, b] = [path.guest(), path.guest({ features, gsoPrefix: true })];
    const { got } = await transfer(path, a, b, 4);
    assert.ok(got.length > 20 && got.every(({ type }) => type === GSO_NONE));
    const parts = got.map(({ bytes }) => {
      const { payload: start, end } = layout(bytes);
      return Buffer.from(bytes.subarray(start, end));
    });
    assert.deepEqual(new Uint8Array(Buffer.concat(parts)), payload);
  });
});

test('a frontend that says both in xenstore gets extra infos', async () => {
  const host = await Host.boot(44);
  const guest = await host.createGuest('a', { gsoPrefix: true });
  await host.connectVif(guest, 0);
  const vif = host.dom0.net.byName('vif1.0')!.priv as Vif;
  const read = (key: string) => host.run(host.xs.read(`${host.frontPath(guest)}/${key}`));
  for (const type of ['tcpv4', 'tcpv6']) {
    assert.equal(await read(`feature-gso-${type}`), '0');
    assert.equal(await read(`feature-gso-${type}-prefix`), '1');
  }
  assert.equal(vif.gsoPrefix, BOTH);

  const other = await host.createGuest('b');
  const front = host.frontPath(other);
  const keys = { front: { 'feature-gso-tcpv4-prefix': '1' } };
  await host.connectVif(other, 0, keys);
  assert.equal(await host.run(host.xs.read(`${front}/feature-gso-tcpv4-prefix`)), '1');
  const both = host.dom0.net.byName('vif2.0') as NetDevice;
  assert.equal((both.priv as Vif).gsoPrefix, 0);
});
