import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  BackRing,
  NETIF_RX_SLOT_SIZE,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_MORE_DATA,
} from '../../src/abi/index.js';
import { CHECKSUM_PARTIAL, GSO_TCPV4, PacketPool } from '../../src/net/packet.js';
import { planRx, respondRx, rxSlotsNeeded } from '../../src/netback/rx-slots.js';
import { CopyBatch, PAGE_SIZE } from '../../src/platform/index.js';
import { plainMemory } from '../support/memory.js';
import { RawPair } from '../support/raw-pair.js';

test('the flags of a response are the rx ones, more_data on all data slots but the last', () => {
  const memory = plainMemory();
  const ring = new BackRing(memory.memory, memory.allocPage() * PAGE_SIZE, NETIF_RX_SLOT_SIZE);
  const packet = new PacketPool(memory).get();
  for (let i = 0; i < 3; i++) packet.addFragment(-1, memory.allocPage(), 0, PAGE_SIZE);
  packet.gsoType = GSO_TCPV4;
  packet.gsoSize = 1448;
  packet.checksum = CHECKSUM_PARTIAL;
  const batch = new CopyBatch(64);
  const requests = new Uint32Array(ring.size);
  const slots = planRx(packet, ring, 0, 5, batch, requests);
  assert.equal(slots, 4);
  respondRx(ring, packet, 0, slots, requests);
  const flags = (index: number) => ring.memory.i32[(ring.slot(index) >>> 2) + 1] & 0xffff;
  const partial = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;
  assert.equal(flags(0), partial | NETRXF_EXTRA_INFO | NETRXF_MORE_DATA);
  assert.equal(flags(2), NETRXF_MORE_DATA);
  assert.equal(flags(3), 0);
});

/** Plans a packet of such granted fragments behind a head of 128 bytes, and answers it. */
function planGranted(sizes: number[]) {
  const memory = plainMemory();
  const ring = new BackRing(memory.memory, memory.allocPage() * PAGE_SIZE, NETIF_RX_SLOT_SIZE);
  const packet = new PacketPool(memory).get();
  packet.linear = packet.length = 128;
  for (const [i, size] of sizes.entries()) packet.addFragment(7, i, PAGE_SIZE - size, size);
  const batch = new CopyBatch(64);
  const requests = new Uint32Array(ring.size);
  const needed = rxSlotsNeeded(packet);
  const slots = planRx(packet, ring, 0, 5, batch, requests);
  assert.equal(slots, needed);
  respondRx(ring, packet, 0, slots, requests);
  const bytes = Array.from({ length: slots }, (_, i) => ring.memory.i32[(ring.slot(i) >>> 2) + 1] >> 16);
  assert.equal(
    bytes.reduce((sum, each) => sum + each),
    packet.length,
  );
  return { bytes, copies: batch.count };
}

test('fragments of another domain go into pages whole: a copy each', () => {
  assert.deepEqual(planGranted([1000, 4096, 4096, 500, 500]), { bytes: [1128, 4096, 4096, 1000], copies: 6 });
});

test('… but not when that takes more slots than frontends have room for', () => {
  const { bytes, copies } = planGranted(Array(19).fill(2100));
  assert.equal(bytes.length, Math.ceil((128 + 19 * 2100) / 4096));
  assert.deepEqual(new Set(bytes.slice(0, -1)), new Set([4096]));
  assert.ok(copies > 20);
});

test('a packet that an XDP headroom leaves too little room for is dropped, also when it had waited before', async () => {
  const pair = new RawPair(true);
  const { sender, receiver } = pair;
  for (const { vif } of [sender, receiver]) vif.dev.setMtu(65_000);
  const { front, vif } = receiver;
  const lengths = async (posted: number) => {
    front.postRx(posted);
    await pair.strike();
    front.kick();
    await pair.strike();
    return front.rxPackets().map(({ bytes }) => bytes.length);
  };
  const most = 18 * (PAGE_SIZE - 1024);
  const [fits, tooLong, short] = [most, most + 1, 1042].map(length => pair.frame(length - 42));
  vif.setXdpHeadroom(1024);
  for (const frame of [tooLong, fits, short]) sender.front.packet(frame);
  assert.deepEqual(await lengths(18 + 1 + 2), [most, 1042]);
  assert.equal(vif.dev.stats.txDropped, 1);
  vif.setXdpHeadroom(0);
  sender.front.packet(tooLong);
  assert.deepEqual(await lengths(1), []);
  vif.setXdpHeadroom(1024);
  sender.front.packet(short);
  assert.deepEqual(await lengths(40), [1042]);
  assert.equal(vif.dev.stats.txDropped, 2);
});
