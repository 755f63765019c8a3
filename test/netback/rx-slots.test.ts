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
import { planRx, respondRx } from '../../src/netback/rx-slots.js';
import { CopyBatch, PAGE_SIZE } from '../../src/platform/index.js';
import { plainMemory } from '../support/memory.js';

test('the flags of a response are the rx ones, more_data on all data slots but the last', () => {
  const memory = plainMemory();
  const ring = new BackRing(memory.memory, memory.allocPage() * PAGE_SIZE, NETIF_RX_SLOT_SIZE);
  const packet = new PacketPool(memory).get();
  for (let i = 0; i < 3; i++) packet.addFragment(-1, memory.allocPage(), 0, PAGE_SIZE);
  packet.gsoType = GSO_TCPV4;
  packet.gsoSize = 1448;
  packet.checksum = CHECKSUM_PARTIAL;
  const batch = new CopyBatch(64);
  const ids = new Uint16Array(ring.size);
  const slots = planRx(packet, ring, 0, 5, batch, ids);
  assert.equal(slots, 4);
  respondRx(ring, packet, 0, slots, ids);
  const flags = (index: number) => ring.memory.i32[(ring.slot(index) >>> 2) + 1] & 0xffff;
  const partial = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;
  assert.equal(flags(0), partial | NETRXF_EXTRA_INFO | NETRXF_MORE_DATA);
  assert.equal(flags(2), NETRXF_MORE_DATA);
  assert.equal(flags(3), 0);
});
