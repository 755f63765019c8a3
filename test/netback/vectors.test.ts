import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import {
  BackRing,
  ExtraInfos,
  gsoExtraWord0,
  initSharedRing,
  NETIF_RX_SLOT_SIZE,
  NETIF_TX_SLOT_SIZE,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_MORE_DATA,
} from '../../src/abi/index.js';
import { CHECKSUM_PARTIAL, GSO_TCPV4, type Packet, PacketPool } from '../../src/net/packet.js';
import {
  planRx,
  RxPlan,
  respondRx,
  rxCopied,
  rxCopiesAtMost,
  rxSlotsNeeded,
} from '../../src/netback/rx-slots.js';
import {
  gatherTx,
  readTxPacket,
  respondToRead,
  TX_INCOMPLETE,
  TX_OK,
  TxPacket,
} from '../../src/netback/tx-slots.js';
import { COPY_LOCAL, CopyBatch, type DomainMemory } from '../../src/platform/index.js';
import { plainMemory } from '../support/memory.js';

/** The facts of FreeBSD's netback unit tests, with a domid that is not DOMID_SELF's twin. */
const OTHEREND = 5;

interface Slot {
  kind: 'request' | 'extra';
  flags: number;
  size: number;
  id: number;
  gref: number;
  offset: number;
  type: number;
  gso: { size: number; type: number; features: number } | null;
}
interface RingState {
  back_req_cons: number;
  back_rsp_prod_pvt: number;
  sring_req_prod: number;
  sring_rsp_prod: number;
}
interface Vector {
  name: string;
  group: string;
  ring_state: RingState | null;
  // biome-ignore lint/suspicious/noExplicitAny: each group of vectors has a shape of its own
  input: any;
  // biome-ignore lint/suspicious/noExplicitAny: each group of vectors has a shape of its own
  expect: any;
}

const file = new URL('../../../test/vectors/netback-unit-tests.json', import.meta.url);
const vectors = (JSON.parse(readFileSync(file, 'utf8')) as { tests: Vector[] }).tests;
const group = (name: string) => vectors.filter(vector => vector.group === name);

function ringWith(memory: DomainMemory, slotSize: number, state: RingState | null | undefined): BackRing {
  const page = memory.allocPage();
  initSharedRing(memory.memory, page * 4096);
  const ring = new BackRing(memory.memory, page * 4096, slotSize);
  if (state) {
    memory.memory.u32[ring.address / 4] = state.sring_req_prod;
    memory.memory.u32[ring.address / 4 + 2] = state.sring_rsp_prod;
    ring.reqCons = state.back_req_cons;
    ring.rspProdPvt = state.back_rsp_prod_pvt;
  }
  return ring;
}

function txRing(vector: Vector): BackRing {
  const ring = ringWith(plainMemory(), NETIF_TX_SLOT_SIZE, vector.ring_state);
  const { i32 } = ring.memory;
  let prod = ring.reqProd();
  for (const slot of (vector.input.tx_slots ?? []) as Slot[]) {
    const at = ring.slot(prod++) >>> 2;
    if (slot.kind === 'request') {
      i32[at] = slot.gref;
      i32[at + 1] = slot.offset | (slot.flags << 16);
      i32[at + 2] = slot.id | (slot.size << 16);
    } else if (slot.type === 1) {
      // A vector without GSO fields leaves them out of consideration; here they must be sound.
      i32[at] = gsoExtraWord0(slot.gso?.size || 1);
      i32[at + 1] = slot.gso?.type || 1;
    } else {
      i32[at] = slot.type | (slot.flags << 8);
    }
  }
  ring.memory.u32[ring.address / 4] = prod;
  return ring;
}

function read(ring: BackRing): TxPacket {
  const tx = new TxPacket();
  readTxPacket(ring, ring.reqCons, ring.unconsumed(ring.reqProd()), tx);
  return tx;
}

function ringBytes(ring: BackRing): Uint8Array {
  return ring.memory.u8.slice(ring.address, ring.address + 4096);
}

describe('readTxPacket (ring2pkt)', () => {
  for (const vector of group('ring2pkt')) {
    test(vector.name, () => {
      const ring = txRing(vector);
      const before = ringBytes(ring);
      const tx = read(ring);
      const { expect } = vector;
      assert.equal(tx.consumed, expect.consumed);
      if (expect.valid === false) assert.equal(tx.verdict, TX_INCOMPLETE);
      if (expect.valid === true) assert.equal(tx.verdict, TX_OK);
      if (expect.size !== undefined) assert.equal(tx.size, expect.size);
      if (expect.car_size !== undefined) assert.equal(tx.bytes[0], expect.car_size);
      if (expect.flags !== undefined) assert.equal(tx.flags & ~4, expect.flags);
      if (expect.list_len !== undefined) assert.equal(tx.slots, expect.list_len);
      if (expect.extra !== undefined) {
        assert.deepEqual([tx.infos.gsoSize, tx.infos.gsoType, tx.infos.count], [250, 1, 1]);
      }
      const last = (vector.input.tx_slots as Slot[]).at(-1);
      if (expect.last_request_at !== undefined) assert.equal(tx.bytes[tx.slots - 1], last?.size);
      assert.deepEqual(ringBytes(ring), before, 'reading changes nothing');
    });
  }
});

describe('respondTx (txpkt2rsp)', () => {
  for (const vector of group('txpkt2rsp')) {
    test(vector.name, () => {
      const ring = txRing(vector);
      const start = ring.rspProdPvt;
      const header = ringBytes(ring).slice(0, 64);
      const before = ringBytes(ring);
      const tx = read(ring);
      const { expect } = vector;
      assert.equal(tx.consumed, expect.consumed ?? 0);
      if (expect.pkt_valid !== undefined) assert.equal(tx.verdict === TX_OK, expect.pkt_valid);
      respondToRead(ring, tx, vector.input.error === 1);
      assert.deepEqual(ringBytes(ring).slice(0, 64), header, 'nothing is published');
      assert.equal(ring.rspProdPvt, (start + tx.consumed) | 0);
      if (tx.slots === 0) assert.deepEqual(ringBytes(ring), before);
      for (const [index, response] of Object.entries(expect.responses_relative_to_front_rsp_cons ?? {})) {
        const word = ring.memory.i32[ring.slot(start + Number(index)) >>> 2];
        const { id, status } = response as { id?: number; status: number };
        if (id !== undefined) assert.equal(word & 0xffff, id);
        assert.equal(word >> 16, status);
      }
    });
  }
});

/** Plans buffers of the vector's sizes, as update_mbufc has them after the copies. */
function gather(vector: Vector) {
  const ring = txRing(vector);
  const tx = read(ring);
  const batch = new CopyBatch(64);
  const filled: number[] = [];
  let skip = 0;
  for (const [index, size] of ((vector.input.buffers ?? []) as number[]).entries()) {
    const length = Math.min(size, tx.size - skip);
    gatherTx(tx, OTHEREND, skip, length, batch, 100 + index, 0);
    filled.push(length);
    skip += length;
  }
  return { tx, batch, filled };
}

describe('gatherTx (txpkt2gnttab)', () => {
  for (const vector of group('txpkt2gnttab')) {
    test(vector.name, () => {
      const { batch } = gather(vector);
      assert.equal(batch.count, vector.expect.n_entries);
      for (const [i, entry] of (vector.expect.entries ?? []).entries()) {
        assert.equal(batch.length[i], entry.len);
        assert.equal(batch.srcDomid[i], OTHEREND);
        assert.equal(batch.dstDomid[i], COPY_LOCAL);
        assert.equal(batch.srcOffset[i], entry.src_offset);
        assert.equal(batch.dstRef[i], 100 + entry.dst_buf);
        assert.equal(batch.dstOffset[i], entry.dst_offset);
        if (entry.src_ref !== undefined) assert.equal(batch.srcRef[i], entry.src_ref);
      }
    });
  }
});

describe('lengths after the copies (update_mbufc)', () => {
  for (const vector of group('update_mbufc')) {
    test(vector.name, () => {
      const { tx, batch, filled } = gather(vector);
      assert.equal(batch.count, vector.expect.n_entries);
      assert.equal(tx.size, vector.expect.pkt_len);
      if (vector.expect.buf0_len !== undefined) assert.equal(filled[0], vector.expect.buf0_len);
      if (vector.expect.buf_lens !== undefined) assert.deepEqual(filled, vector.expect.buf_lens);
    });
  }
});

/** A packet of `length` bytes whose local buffers have the sizes given, the rest in whole pages. */
function packetOf(
  memory: DomainMemory,
  length: number,
  buffers: number[],
  segmentSize: number | null,
): Packet {
  const packet = new PacketPool(memory).get();
  let left = length;
  for (const size of buffers) {
    for (let rest = Math.min(size, left); rest > 0; ) {
      const take = Math.min(rest, 4096);
      packet.addFragment(-1, memory.allocPage(), 0, take);
      rest -= take;
      left -= take;
    }
  }
  for (; left > 0; left -= Math.min(left, 4096)) {
    packet.addFragment(-1, memory.allocPage(), 0, Math.min(left, 4096));
  }
  if (segmentSize !== null) {
    packet.gsoType = GSO_TCPV4;
    packet.gsoSize = segmentSize;
    packet.checksum = CHECKSUM_PARTIAL;
  }
  return packet;
}

describe('rxSlotsNeeded (mbufc2pkt)', () => {
  for (const vector of group('mbufc2pkt')) {
    test(vector.name, () => {
      const { input, expect } = vector;
      const packet = packetOf(plainMemory(), input.pkt_len, [input.first_buf_len], input.tso_segsz);
      const needed = rxSlotsNeeded(packet);
      if (expect.list_len !== undefined) assert.equal(needed, expect.list_len);
      if (expect.extra !== undefined) assert.equal(needed, 4, 'three pages and an extra info');
      if (expect.error === 11) assert.ok(needed > input.free_slots, 'EAGAIN');
      else assert.ok(needed <= input.free_slots);
      if (packet.length === 0) assert.equal(needed, 0);
    });
  }
});

function rxRing(memory: DomainMemory, vector: Vector): BackRing {
  const ring = ringWith(memory, NETIF_RX_SLOT_SIZE, vector.ring_state);
  for (const [index, request] of Object.entries(vector.input.rx_requests ?? {})) {
    const { gref, id = 0 } = request as { gref: number; id?: number };
    const at = ring.slot(Number(index)) >>> 2;
    ring.memory.i32[at] = id;
    ring.memory.i32[at + 1] = gref;
  }
  return ring;
}

function plan(vector: Vector, memory: DomainMemory, ring: BackRing) {
  const { input } = vector;
  const packet = packetOf(memory, input.pkt_len, input.buffers ?? [], input.tso_segsz ?? null);
  const batch = new CopyBatch(64);
  const rxPlan = new RxPlan();
  if (packet.length > 0) planRx(packet, ring, input.start, OTHEREND, batch, rxPlan);
  assert.ok(batch.count <= rxCopiesAtMost(packet));
  return { packet, batch, rxPlan };
}

describe('planRx (rxpkt2gnttab)', () => {
  for (const vector of group('rxpkt2gnttab')) {
    test(vector.name, () => {
      const memory = plainMemory();
      const ring = rxRing(memory, vector);
      const { batch } = plan(vector, memory, ring);
      const { expect } = vector;
      assert.equal(batch.count, typeof expect.n_entries === 'number' ? expect.n_entries : 2);
      let sum = 0;
      for (let i = 0; i < batch.count; i++) {
        assert.equal(batch.srcDomid[i], COPY_LOCAL);
        assert.equal(batch.dstDomid[i], OTHEREND);
        assert.ok(batch.length[i] + batch.dstOffset[i] <= 4096);
        sum += batch.length[i];
      }
      if (expect.sum_len !== undefined) assert.equal(sum, expect.sum_len);
      if (expect.entries !== undefined) {
        assert.deepEqual([batch.length[0], batch.dstOffset[0], batch.dstRef[0]], [128, 0, 7]);
      }
    });
  }
});

describe('respondRx (rxpkt2rsp)', () => {
  for (const vector of group('rxpkt2rsp')) {
    test(vector.name, () => {
      const memory = plainMemory();
      const ring = rxRing(memory, vector);
      const { expect, input } = vector;
      const before = ringBytes(ring);
      const { packet, batch, rxPlan } = plan(vector, memory, ring);
      if (packet.length === 0) {
        assert.equal(rxSlotsNeeded(packet), 0);
        assert.deepEqual(ringBytes(ring), before);
        return;
      }
      assert.equal(batch.count, expect.n_entries);
      batch.status.fill(0);
      if (input.inject_status) batch.status[input.inject_status.entry] = input.inject_status.status;
      const consumed = respondRx(ring, rxPlan, rxCopied(rxPlan, batch));
      assert.equal(consumed, expect.consumed);
      assert.equal(ring.rspProdPvt, expect.rsp_prod_pvt);
      assert.deepEqual(ringBytes(ring).slice(0, 64), before.slice(0, 64), 'nothing is published');
      for (const [index, response] of Object.entries(expect.responses))
        checkResponse(ring, Number(index), response);
      for (const [index, slot] of Object.entries(expect.untouched ?? {})) {
        const { id, gref } = slot as { id: number; gref: number };
        const at = ring.slot(Number(index)) >>> 2;
        assert.deepEqual([ring.memory.i32[at], ring.memory.i32[at + 1]], [id, gref]);
      }
    });
  }
});

// biome-ignore lint/suspicious/noExplicitAny: the vectors' own shape
function checkResponse(ring: BackRing, index: number, response: any): void {
  const at = ring.slot(index) >>> 2;
  const [word0, word1] = [ring.memory.i32[at], ring.memory.i32[at + 1]];
  if (response.extra !== undefined) {
    const infos = new ExtraInfos();
    assert.ok(infos.take(word0, word1));
    assert.deepEqual([infos.gsoSize, infos.gsoType], [response.extra.gso_size, response.extra.gso_type]);
    assert.equal(word1, response.extra.gso_type, 'pad and features are 0');
    return;
  }
  assert.equal(word0 & 0xffff, response.id);
  assert.equal(word1 >> 16, response.status);
  if (response.offset !== undefined) assert.equal(word0 >>> 16, response.offset);
  if (response.flags !== undefined) assert.equal(word1 & 0xffff, response.flags);
}

test('the flags of a response are the rx ones, more_data on all data slots but the last', () => {
  const memory = plainMemory();
  const ring = ringWith(memory, NETIF_RX_SLOT_SIZE, null);
  const packet = packetOf(memory, 3 * 4096, [], 1448);
  const batch = new CopyBatch(64);
  const rxPlan = new RxPlan();
  planRx(packet, ring, 0, OTHEREND, batch, rxPlan);
  respondRx(ring, rxPlan, true);
  const flags = (index: number) => ring.memory.i32[(ring.slot(index) >>> 2) + 1] & 0xffff;
  const partial = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;
  assert.equal(flags(0), partial | NETRXF_EXTRA_INFO | NETRXF_MORE_DATA);
  assert.equal(flags(2), NETRXF_MORE_DATA);
  assert.equal(flags(3), 0);
});
