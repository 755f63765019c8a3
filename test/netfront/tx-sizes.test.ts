import assert from 'node:assert/strict';
import { test } from 'node:test';
import { completeChecksum, writeIpv4Checksum } from '../../src/net/checksum.js';
import { Headers } from '../../src/net/headers.js';
import { FRAGMENT_LOCAL, GSO_TCPV4, NETIF_F_GRO, type NetDevice } from '../../src/net/index.js';
import type { Vif } from '../../src/netback/index.js';
import { PAGE_SHIFT } from '../../src/platform/index.js';
import { buildFrame, checksumsAreRight, layout } from '../net/frames.js';
import { Host } from '../support/host.js';
import { bytesOf, packetFrom, partial } from '../support/packets.js';

interface Scene {
  host: Host;
  from: NetDevice;
  to: NetDevice;
  vif: Vif;
}

async function scene(seed: number): Promise<Scene> {
  const host = await Host.boot(seed);
  const from = await host.connectVif(await host.createGuest('a'));
  const to = await host.connectVif(await host.createGuest('b'));
  const vif = host.dom0.net.byName('vif1.0')!.priv as Vif;
  // Whatever is cut stays so.
  for (const device of [from, to, ...host.dom0.net.devices]) device.features &= ~NETIF_F_GRO;
  return { host, from, to, vif };
}

const payloadOf = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 0xff);

for (const length of [65_535, 65_536, 65_549]) {
  test(`a GSO packet of ${length} bytes arrives: the first request tells the size in 16 bits`, async () => {
    const { host, from, to } = await scene(1);
    const payload = payloadOf(length - 54);
    const frame = { source: [...from.address], destination: [...to.address], payload, flags: 0x10 };
    const packet = partial(packetFrom(from, buildFrame(frame)), from);
    const headers = new Headers();
    headers.parse(packet);
    writeIpv4Checksum(packet, headers);
    Object.assign(packet, { gsoType: GSO_TCPV4, gsoSize: 1448 });
    const got: number[] = [];
    to.rxHandler = arrived => {
      completeChecksum(arrived);
      const bytes = bytesOf(arrived);
      arrived.release();
      assert.ok(checksumsAreRight(bytes));
      got.push(...bytes.subarray(layout(bytes).payload));
    };
    assert.equal(from.xmit(packet), true);
    await host.scheduler.runFor(100);
    assert.equal(from.stats.txDropped, 0);
    assert.deepEqual(Uint8Array.from(got), payload);
  });
}

for (const pieces of [18, 19, 20]) {
  test(`a packet in ${pieces} pieces takes no more slots than every backend must take`, async () => {
    const { host, from, to, vif } = await scene(2);
    const pool = from.txPool!;
    const bytes = buildFrame({
      source: [...from.address],
      destination: [...to.address],
      payload: payloadOf(1400),
      udp: true,
    });
    const packet = from.net.packets.get();
    packet.pool = pool;
    const size = Math.ceil(bytes.length / pieces);
    for (let at = 0; at < bytes.length; at += size) {
      const chunk = bytes.subarray(at, at + size);
      const index = pool.alloc();
      const page = pool.pages[index];
      packet.memory.u8.set(chunk, page << PAGE_SHIFT);
      if (at > 0) packet.addFragment(FRAGMENT_LOCAL, page, 0, chunk.length, index);
      else
        Object.assign(packet, {
          data: page << PAGE_SHIFT,
          linear: size,
          length: size,
          linearPoolIndex: index,
        });
    }
    assert.equal(packet.fragments, pieces - 1);
    const got: Uint8Array[] = [];
    to.rxHandler = arrived => {
      got.push(bytesOf(arrived));
      arrived.release();
    };
    const { txRing } = vif.queues[0];
    const before = txRing.reqCons;
    from.xmit(packet);
    await host.scheduler.runFor(100);
    assert.deepEqual(got, [bytes]);
    assert.ok(txRing.reqCons - before <= 18, `${txRing.reqCons - before} slots`);
  });
}
