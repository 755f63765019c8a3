import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { completeChecksum, writeIpv4Checksum } from '../../src/net/checksum.js';
import { Headers } from '../../src/net/headers.js';
import {
  CHECKSUM_PARTIAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  NETIF_F_GRO,
  type NetDevice,
  type Packet,
} from '../../src/net/index.js';
import type { NetbackFeature, NetbackOptions, Vif } from '../../src/netback/index.js';
import type { Netfront, NetfrontFeature, NetfrontOptions } from '../../src/netfront/index.js';
import { buildFrame, checksumsAreRight, layout } from '../net/frames.js';
import { Host } from '../support/host.js';
import { bytesOf, packetFrom, partial } from '../support/packets.js';
import { type Choice, pairwise } from '../support/pairwise.js';

/** What either end of a vif may have or lack, and what the toolstack says of it. */
const FACTORS = {
  frontQueues: [1, 4],
  frontSg: [true, false],
  frontGso4: [true, false],
  frontGso6: [true, false],
  gsoPrefix: [true, false],
  frontCsum4: [true, false],
  frontCsum6: [true, false],
  rxNotify: [true, false],
  multicastControl: [true, false],
  headroom: [0, 256],
  staticGrants: [true, false],
  frontSplit: [true, false],
  frontControl: [true, false],
  trustedNode: [1, 0],
  trusted: [true, false],
  backQueues: [0, 1, 4],
  split: [true, false],
  controlRing: [true, false],
  backSg: [true, false],
  backGso4: [true, false],
  backGso6: [true, false],
  backCsum4: [true, false],
  backCsum6: [true, false],
  backHeadroom: [true, false],
  backMulticast: [true, false],
  dynamicMulticast: [true, false],
} as const;
/** Each gives another dozen of combinations in which all pairs meet. */
const SEEDS = [1, 2, 3];
type Combination = Choice<typeof FACTORS>;

const names = <Name extends string>(has: readonly (readonly [Name, boolean])[]): Name[] =>
  has.filter(([, there]) => !there).map(([name]) => name);

function netbackOptions(c: Combination): NetbackOptions {
  const without = names<NetbackFeature>([
    ['sg', c.backSg],
    ['gso-tcpv4', c.backGso4],
    ['gso-tcpv6', c.backGso6],
    ['csum-offload', c.backCsum4],
    ['ipv6-csum-offload', c.backCsum6],
    ['multi-queue', c.backQueues !== 0],
    ['split-event-channels', c.split],
    ['multicast-control', c.backMulticast],
    ['dynamic-multicast-control', c.dynamicMulticast],
    ['ctrl-ring', c.controlRing],
    ['xdp-headroom', c.backHeadroom],
  ]);
  return { maxQueues: c.backQueues || undefined, without };
}

function netfrontOptions(c: Combination): NetfrontOptions {
  const without = names<NetfrontFeature>([
    ['sg', c.frontSg],
    ['gso-tcpv4', c.frontGso4],
    ['gso-tcpv6', c.frontGso6],
    ['csum-offload', c.frontCsum4],
    ['ipv6-csum-offload', c.frontCsum6],
    ['rx-notify', c.rxNotify],
    ['split-event-channels', c.frontSplit],
    ['ctrl-ring', c.frontControl],
  ]);
  const { frontQueues: maxQueues, staticGrants, multicastControl, gsoPrefix, trusted } = c;
  return { maxQueues, staticGrants, multicastControl, gsoPrefix, trusted, without };
}

/** Payload of a segment that fits 1514 bytes over IPv6, too. */
const MSS = 1428;
const payload = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 7 + 3) & 0xff);
/** One of each kind of packet that a guest sends. */
const SENT = [
  { kind: 'udp4', udp: true, version: 4, bytes: payload(100), gso: GSO_NONE },
  { kind: 'udp6', udp: true, version: 6, bytes: payload(1001), gso: GSO_NONE },
  { kind: 'tcp4', udp: false, version: 4, bytes: payload(10 * MSS), gso: GSO_TCPV4 },
  { kind: 'tcp6', udp: false, version: 6, bytes: payload(9 * MSS + 77), gso: GSO_TCPV6 },
] as const;

const headers = new Headers();

/** What a receiver can take of a sender. */
interface Taken {
  readonly sg: boolean;
  readonly gso4: boolean;
  readonly gso6: boolean;
  readonly csum4: boolean;
  readonly csum6: boolean;
}

/** Fails when a packet came over a ring that its receiver had said it would not take. */
function check(packet: Packet, what: Taken, where: string): void {
  const v6 = packet.memory.u8[packet.data + 12] === 0x86;
  const gso = v6 ? what.gso6 : what.gso4;
  const csum = v6 ? what.csum6 : what.csum4;
  assert.ok(gso || packet.gsoType === GSO_NONE, `${where}: a GSO packet`);
  assert.ok(csum || packet.checksum !== CHECKSUM_PARTIAL, `${where}: a partial checksum`);
  assert.ok(what.sg || packet.length <= 1514, `${where}: ${packet.length} bytes`);
}

/** Sends one packet of each kind, and waits until all their bytes are there, in order and with right checksums. */
async function exchange(host: Host, from: NetDevice, to: NetDevice, taken: Taken): Promise<void> {
  const parts: Record<string, number[]> = Object.fromEntries(SENT.map(({ kind }) => [kind, []]));
  to.rxHandler = packet => {
    check(packet, taken, to.name);
    const whole = packet.gsoType !== GSO_NONE;
    if (packet.checksum === CHECKSUM_PARTIAL && !whole) completeChecksum(packet);
    const bytes = bytesOf(packet);
    packet.release();
    const { l3, version, payload: start, end } = layout(bytes);
    const udp = bytes[version === 4 ? l3 + 9 : l3 + 6] === 17;
    assert.ok(whole || checksumsAreRight(bytes, udp), 'a wrong checksum arrived');
    parts[`${udp ? 'udp' : 'tcp'}${version}`].push(...bytes.subarray(start, end));
  };
  for (const { udp, version, bytes, gso } of SENT) {
    const frame = buildFrame({
      source: [...from.address],
      destination: [...to.address],
      payload: bytes,
      udp,
      version,
    });
    const packet = partial(packetFrom(from, frame), from);
    if (version === 4 && headers.parse(packet)) writeIpv4Checksum(packet, headers);
    if (gso !== GSO_NONE) Object.assign(packet, { gsoType: gso, gsoSize: MSS });
    from.xmit(packet);
  }
  await host.until(() => SENT.every(({ kind, bytes }) => parts[kind].length >= bytes.length));
  for (const { kind, bytes } of SENT) assert.deepEqual(Uint8Array.from(parts[kind]), bytes, kind);
}

const GROUP = Uint8Array.of(1, 0, 0x5e, 0, 0, 9);

/** A frame to a group: arrives when the guest gets all groups, or asked for this one. */
async function sendToGroup(host: Host, from: NetDevice, to: NetDevice): Promise<number> {
  let got = 0;
  to.rxHandler = packet => {
    got++;
    packet.release();
  };
  const destination = [...GROUP];
  const frame = buildFrame({ source: [...from.address], destination, payload: payload(50), udp: true });
  from.xmit(packetFrom(from, frame));
  await host.scheduler.runFor(50);
  return got;
}

async function tryCombination(combination: Combination, seed: number): Promise<void> {
  const c = combination;
  const netback = netbackOptions(c);
  const host = await Host.boot(seed, { netback });
  const guest = await host.createGuest('a', netfrontOptions(c));
  const other = await host.createGuest('b');
  const eth0 = await host.connectVif(guest, 0, { front: { trusted: c.trustedNode } });
  // The other guest's backend lacks nothing.
  Object.assign(netback, { maxQueues: 4, without: [] });
  const peer = await host.connectVif(other);
  for (const dev of [eth0, peer]) dev.features &= ~NETIF_F_GRO;
  const front = guest.kernel.xenbus.frontend.devices.get('device/vif/0')!.driverData as Netfront;
  const dev = host.dom0.net.byName('vif1.0')!;
  dev.features &= ~NETIF_F_GRO;
  const vif = dev.priv as Vif;
  const prefixes = (Number(c.frontGso4) << GSO_TCPV4) | (Number(c.frontGso6) << GSO_TCPV6);
  assert.equal(vif.gsoPrefix, c.gsoPrefix ? prefixes : 0);
  assert.equal(vif.rxNotify, c.rxNotify);
  assert.equal(front.trusted, c.trusted && c.trustedNode === 1);
  assert.equal(vif.queues.length, Math.min(c.frontQueues, Math.max(c.backQueues, 1)));
  const channels = host.dom0.irqs.counts.filter(({ name }) => /^vif1\.0(-q\d)?-tx$/.test(name));
  assert.equal(channels.length, c.split && c.frontSplit ? vif.queues.length : 0, 'split event channels');
  if (c.headroom > 0) {
    const set = host.run(front.setXdpHeadroom(c.headroom));
    if (c.backHeadroom) await set;
    else await assert.rejects(set, { code: 'EOPNOTSUPP' });
  }
  assert.equal(vif.xdpHeadroom, c.backHeadroom ? c.headroom : 0);
  const hash = host.run(front.setHash({ flags: 15, key: payload(40) }));
  const controlRing = c.controlRing && c.frontControl;
  if (controlRing) await hash;
  else await assert.rejects(hash, { code: 'EOPNOTSUPP' });
  assert.equal(vif.hash.enabled, controlRing);
  await host.scheduler.runFor(10);
  const rx = c.staticGrants && controlRing ? 256 : 0;
  for (const { size } of vif.staticGrants) assert.equal(size, front.trusted ? 3 * rx : rx, 'static grants');

  const toBridge = dev.rxHandler!;
  const offers = { sg: c.backSg, gso4: c.backGso4, gso6: c.backGso6, csum4: c.backCsum4, csum6: c.backCsum6 };
  dev.rxHandler = (packet, device) => {
    check(packet, offers, 'vif1.0');
    toBridge(packet, device);
  };
  const all = { sg: true, gso4: true, gso6: true, csum4: true, csum6: true };
  const asks = {
    sg: c.frontSg,
    gso4: c.frontGso4,
    gso6: c.frontGso6,
    csum4: c.frontCsum4,
    csum6: c.frontCsum6,
  };
  for (let round = 0; round < 2; round++) {
    await exchange(host, eth0, peer, all);
    await exchange(host, peer, eth0, asks);
  }
  const filtered = c.multicastControl && c.backMulticast;
  assert.equal(await sendToGroup(host, peer, eth0), filtered ? 0 : 1, 'a group');
  eth0.addMulticast(GROUP);
  await host.scheduler.runFor(10);
  assert.equal(await sendToGroup(host, peer, eth0), 1, 'a group that was asked for');
  await host.detachVif(guest);
  await host.detachVif(other);
  assert.equal(host.dom0.net.packets.used + host.dom0.net.pages.used, 0);
}

describe('packets arrive, and only as they are taken, whatever either end of a vif lacks', () => {
  const choices = SEEDS.flatMap(seed => pairwise(FACTORS, seed));
  for (const [i, choice] of choices.entries()) {
    const off = Object.entries(choice).map(([name, value]) => `${name} ${value}`);
    test(`combination ${i + 1}: ${off.join(', ')}`, () => tryCombination(choice, 700 + i));
  }
});
