import {
  ExtraInfos,
  gsoExtraWord0,
  NETIF_RX_SLOT_SIZE,
  NETIF_TX_SLOT_SIZE,
  NETTXF_MORE_DATA,
} from '../abi/netif.js';
import { BackRing, initSharedRing } from '../abi/ring.js';
import { fillChecksums } from '../net/checksum.js';
import { Headers } from '../net/headers.js';
import {
  CHECKSUM_PARTIAL,
  FRAGMENT_LOCAL,
  GSO_TCPV4,
  PACKET_LINEAR_MAX,
  type Packet,
  PacketPool,
} from '../net/packet.js';
import {
  COPY_DST_DOMID,
  COPY_DST_OFFSET,
  COPY_DST_REF,
  COPY_LENGTH,
  COPY_LOCAL,
  COPY_SRC_DOMID,
  COPY_SRC_OFFSET,
  COPY_SRC_REF,
  COPY_WORDS,
  CopyBatch,
} from '../platform/copy-batch.js';
import { Memory, PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { DomainMemory } from '../platform/platform.js';
import { planRx, respondRx, respondRxError, rxCopiesAtMost, rxSlotsNeeded } from './rx-slots.js';
import {
  buildPacket,
  gatherTx,
  readTxPacket,
  respondTx,
  TX_INCOMPLETE,
  TX_OK,
  TxPacket,
} from './tx-slots.js';
import { UNIT_VECTORS, type UnitVector } from './unit-vectors.js';

/** The other end in all tests: a real domid, unlike DOMID_SELF's twin that FreeBSD's tests use. */
const OTHEREND = 5;
/** A response that no request gets. */
const UNANSWERED = 0x7fffffff;
const PAGES = 64;

export interface SelftestResult {
  readonly name: string;
  /** What came out wrong, or null. */
  readonly failure: string | null;
}

/**
 * Runs the unit vectors against the steps of the data path, on memory of their own: no domain takes part.
 * FreeBSD's netback does the same behind its sysctl unit_test_results.
 */
export function runSelftest(vectors: readonly UnitVector[] = UNIT_VECTORS): SelftestResult[] {
  return vectors.map(vector => {
    try {
      RUNNERS[vector.group](vector);
      return { name: vector.name, failure: null };
    } catch (error) {
      return { name: vector.name, failure: (error as Error).message };
    }
  });
}

function same(actual: unknown, expected: unknown, what: string): void {
  if (actual !== expected) throw new Error(`${what} is ${actual}, not ${expected}`);
}

/** Whatever a vector expects of a value: nothing, when it says nothing. */
function sameIfGiven(actual: unknown, expected: unknown, what: string): void {
  if (expected !== undefined) same(actual, expected, what);
}

function holds(condition: boolean, what: string): void {
  if (!condition) throw new Error(`it does not hold that ${what}`);
}

function testMemory(): DomainMemory {
  const memory = new Memory(new ArrayBuffer(PAGES * PAGE_SIZE));
  let next = 1;
  return {
    memory,
    allocPage: () => next++,
    freePage: () => {},
    gfn: page => page,
    get allocated() {
      return next - 1;
    },
  };
}

function ringOf(memory: DomainMemory, slotSize: number, state: UnitVector['ring_state']): BackRing {
  const address = memory.allocPage() << PAGE_SHIFT;
  initSharedRing(memory.memory, address);
  const ring = new BackRing(memory.memory, address, slotSize);
  if (state !== undefined) {
    memory.memory.u32[address >>> 2] = state['sring_req_prod'];
    memory.memory.u32[(address >>> 2) + 2] = state['sring_rsp_prod'];
    ring.reqCons = state['back_req_cons'];
    ring.rspProdPvt = state['back_rsp_prod_pvt'];
  }
  return ring;
}

/** A tx ring that holds the vector's slots, published. */
function txRing(vector: UnitVector): BackRing {
  const ring = ringOf(testMemory(), NETIF_TX_SLOT_SIZE, vector.ring_state);
  const { i32, u32 } = ring.memory;
  let prod = ring.reqProd();
  for (const slot of vector.input.tx_slots ?? []) {
    const at = ring.slot(prod++) >>> 2;
    if (slot.kind === 'request') {
      i32[at] = slot.gref;
      i32[at + 1] = slot.offset | (slot.flags << 16);
      i32[at + 2] = slot.id | (slot.size << 16);
    } else if (slot.type === 1) {
      // A vector that leaves a GSO's fields out means a sound one.
      i32[at] = gsoExtraWord0(slot.gso?.size || 1);
      i32[at + 1] = slot.gso?.type || 1;
    } else i32[at] = slot.type | (slot.flags << 8);
  }
  u32[ring.address >>> 2] = prod;
  return ring;
}

function read(ring: BackRing): TxPacket {
  const tx = new TxPacket();
  readTxPacket(ring, ring.reqCons, ring.unconsumed(ring.reqProd()), tx);
  return tx;
}

function snapshot(ring: BackRing, bytes = PAGE_SIZE): string {
  return ring.memory.u8.slice(ring.address, ring.address + bytes).join();
}

function ring2pkt(vector: UnitVector): void {
  const ring = txRing(vector);
  const before = snapshot(ring);
  const tx = read(ring);
  const { expect, input } = vector;
  same(tx.consumed, expect.consumed, 'consumed');
  if (expect.valid === false) same(tx.verdict, TX_INCOMPLETE, 'the verdict');
  if (expect.valid === true) same(tx.verdict, TX_OK, 'the verdict');
  sameIfGiven(tx.size, expect.size, 'size');
  sameIfGiven(tx.bytes[0], expect.car_size, 'the size of the first slot');
  if (expect.flags !== undefined) same(tx.flags & ~NETTXF_MORE_DATA, expect.flags, 'flags');
  sameIfGiven(tx.slots, expect.list_len, 'the number of data slots');
  if (expect.extra !== undefined) {
    same(tx.infos.gsoSize, expect.extra.gso_size, 'the GSO size');
    same(tx.infos.gsoType, expect.extra.gso_type, 'the GSO type');
  }
  if (expect.last_request_at !== undefined) {
    same(tx.bytes[tx.slots - 1], input.tx_slots.at(-1).size, 'the size of the last slot');
  }
  same(snapshot(ring), before, 'the ring after reading');
}

function txpkt2rsp(vector: UnitVector): void {
  const ring = txRing(vector);
  const start = ring.rspProdPvt;
  const before = snapshot(ring);
  const tx = read(ring);
  const { expect } = vector;
  same(tx.consumed, expect.consumed ?? 0, 'consumed');
  if (expect.pkt_valid !== undefined) same(tx.verdict === TX_OK, expect.pkt_valid, 'soundness');
  const responses = new Int32Array(ring.size).fill(UNANSWERED);
  respondTx(responses, tx, vector.input.error === 1);
  same(snapshot(ring), before, 'the ring');
  same(responses.filter(word => word !== UNANSWERED).length, tx.consumed, 'the number of responses');
  for (const [index, response] of Object.entries(expect.responses_relative_to_front_rsp_cons ?? {})) {
    const word = responses[(start + Number(index)) & (ring.size - 1)];
    const { id, status } = response as { id?: number; status: number };
    sameIfGiven(word & 0xffff, id, `the id of response ${index}`);
    same(word >> 16, status, `the status of response ${index}`);
  }
}

/** pkt2mbufc: the packet made for some requests has room for all of their bytes. */
function pkt2mbufc(vector: UnitVector): void {
  const { size } = vector.input;
  const tx = new TxPacket();
  const pages = Math.max(1, Math.ceil(size / PAGE_SIZE));
  tx.size = size;
  tx.slots = pages;
  for (let i = 0; i < pages; i++) tx.bytes[i] = Math.min(PAGE_SIZE, size - i * PAGE_SIZE);
  const packet = new PacketPool(testMemory()).get();
  const batch = new CopyBatch(PAGES);
  buildPacket(tx, packet, OTHEREND, batch);
  same(packet.length, size, 'the length of the packet');
  holds(packet.linear <= PACKET_LINEAR_MAX, 'the linear part fits into its buffer');
  let copied = 0;
  for (let i = 0; i < batch.count; i++) copied += word(batch, i, COPY_LENGTH);
  same(copied, packet.linear, 'the bytes to be copied to the linear part');
  let rest = 0;
  for (let i = 0; i < packet.fragments; i++) rest += packet.size[i];
  same(packet.linear + rest, size, 'the bytes of all parts');
  if (size > 0)
    sameIfGiven(rxSlotsNeeded(packet) === 1, vector.expect.single_buffer, 'whether one page holds it');
  packet.release();
}

function word(batch: CopyBatch, copy: number, index: number): number {
  return batch.words[copy * COPY_WORDS + index];
}

function gather(vector: UnitVector) {
  const tx = read(txRing(vector));
  const batch = new CopyBatch(PAGES);
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

function txpkt2gnttab(vector: UnitVector): void {
  const { batch } = gather(vector);
  same(batch.count, vector.expect.n_entries, 'the number of copies');
  for (const [i, entry] of (vector.expect.entries ?? []).entries()) {
    same(word(batch, i, COPY_LENGTH), entry.len, `the length of copy ${i}`);
    same(word(batch, i, COPY_SRC_DOMID), OTHEREND, `the source of copy ${i}`);
    same(word(batch, i, COPY_DST_DOMID), COPY_LOCAL, `the destination of copy ${i}`);
    same(word(batch, i, COPY_SRC_OFFSET), entry.src_offset, `the source offset of copy ${i}`);
    same(word(batch, i, COPY_DST_REF), 100 + entry.dst_buf, `the buffer of copy ${i}`);
    same(word(batch, i, COPY_DST_OFFSET), entry.dst_offset, `the destination offset of copy ${i}`);
    sameIfGiven(word(batch, i, COPY_SRC_REF), entry.src_ref, `the grant of copy ${i}`);
  }
}

function updateMbufc(vector: UnitVector): void {
  const { tx, batch, filled } = gather(vector);
  same(batch.count, vector.expect.n_entries, 'the number of copies');
  same(tx.size, vector.expect.pkt_len, 'the length of the packet');
  sameIfGiven(filled[0], vector.expect.buf0_len, 'the length of the first buffer');
  if (vector.expect.buf_lens !== undefined) same(filled.join(), vector.expect.buf_lens.join(), 'the lengths');
}

/** A packet whose local buffers have the sizes given, and whole pages for the rest. */
function packetOf(memory: DomainMemory, length: number, buffers: number[], segment: number | null): Packet {
  const packet = new PacketPool(memory).get();
  let left = length;
  const add = (size: number) => {
    packet.addFragment(FRAGMENT_LOCAL, memory.allocPage(), 0, size);
    left -= size;
  };
  for (const size of buffers) {
    for (let rest = Math.min(size, left); rest > 0; rest -= PAGE_SIZE) add(Math.min(rest, PAGE_SIZE));
  }
  while (left > 0) add(Math.min(left, PAGE_SIZE));
  if (segment !== null) {
    packet.gsoType = GSO_TCPV4;
    packet.gsoSize = segment;
    packet.checksum = CHECKSUM_PARTIAL;
  }
  return packet;
}

function mbufc2pkt(vector: UnitVector): void {
  const { input, expect } = vector;
  const packet = packetOf(testMemory(), input.pkt_len, [input.first_buf_len], input.tso_segsz ?? null);
  const needed = rxSlotsNeeded(packet);
  sameIfGiven(needed, expect.list_len, 'the number of slots');
  if (expect.extra !== undefined)
    same(needed, Math.ceil(input.pkt_len / PAGE_SIZE) + 1, 'the number of slots');
  same(needed > input.free_slots, expect.error !== undefined, 'EAGAIN');
  if (packet.length === 0) same(needed, 0, 'the number of slots');
}

function plan(vector: UnitVector) {
  const { input } = vector;
  const memory = testMemory();
  const ring = ringOf(memory, NETIF_RX_SLOT_SIZE, vector.ring_state);
  for (const [index, request] of Object.entries(input.rx_requests ?? {})) {
    const { gref, id = 0 } = request as { gref: number; id?: number };
    const at = ring.slot(Number(index)) >>> 2;
    ring.memory.i32[at] = id;
    ring.memory.i32[at + 1] = gref;
  }
  const before = snapshot(ring);
  const packet = packetOf(memory, input.pkt_len, input.buffers ?? [], input.tso_segsz ?? null);
  const batch = new CopyBatch(PAGES);
  const requests = new Uint32Array(ring.size);
  const slots = packet.length > 0 ? planRx(packet, ring, input.start, OTHEREND, batch, requests) : 0;
  holds(batch.count <= rxCopiesAtMost(packet), 'the copies fit into the room that was asked for');
  return { ring, before, packet, batch, slots, requests };
}

function rxpkt2gnttab(vector: UnitVector): void {
  const { batch } = plan(vector);
  const { expect } = vector;
  same(batch.count, typeof expect.n_entries === 'number' ? expect.n_entries : 2, 'the number of copies');
  let sum = 0;
  for (let i = 0; i < batch.count; i++) {
    same(word(batch, i, COPY_SRC_DOMID), COPY_LOCAL, `the source of copy ${i}`);
    same(word(batch, i, COPY_DST_DOMID), OTHEREND, `the destination of copy ${i}`);
    holds(
      word(batch, i, COPY_LENGTH) + word(batch, i, COPY_DST_OFFSET) <= PAGE_SIZE,
      `copy ${i} stays in its page`,
    );
    sum += word(batch, i, COPY_LENGTH);
  }
  sameIfGiven(sum, expect.sum_len, 'the sum of the lengths');
  if (expect.entries !== undefined) {
    same(word(batch, 0, COPY_LENGTH), expect.entries[0].len, 'the length');
    same(
      word(batch, 0, COPY_DST_REF),
      vector.input.rx_requests[vector.input.start].gref,
      'the grant of the rx request',
    );
  }
}

function rxpkt2rsp(vector: UnitVector): void {
  const { ring, before, packet, batch, slots, requests } = plan(vector);
  const { expect, input } = vector;
  if (packet.length === 0) {
    same(rxSlotsNeeded(packet), expect.consumed, 'consumed');
    same(snapshot(ring), before, 'the ring');
    return;
  }
  same(batch.count, expect.n_entries, 'the number of copies');
  batch.setAll(0);
  if (input.inject_status) batch.setStatus(input.inject_status.entry, input.inject_status.status);
  const copied = batch.done(0, batch.count);
  if (copied) respondRx(ring, packet, input.start, slots, requests);
  else respondRxError(ring, input.start, 1, requests);
  same(copied ? slots : 1, expect.consumed, 'consumed');
  same(snapshot(ring, 64), before.split(',').slice(0, 64).join(), 'the published part');
  for (const [index, response] of Object.entries(expect.responses)) checkRx(ring, Number(index), response);
  for (const [index, slot] of Object.entries(expect.untouched ?? {})) {
    const { id, gref } = slot as { id: number; gref: number };
    const at = ring.slot(Number(index)) >>> 2;
    same(ring.memory.i32[at], id, `the id of the untouched slot ${index}`);
    same(ring.memory.i32[at + 1], gref, `the grant of the untouched slot ${index}`);
  }
}

// biome-ignore lint/suspicious/noExplicitAny: the vectors' own shape
function checkRx(ring: BackRing, index: number, response: any): void {
  const at = ring.slot(index) >>> 2;
  const [word0, word1] = [ring.memory.i32[at], ring.memory.i32[at + 1]];
  if (response.extra !== undefined) {
    const infos = new ExtraInfos();
    holds(infos.take(word0, word1), 'the extra info is sound');
    same(infos.gsoSize, response.extra.gso_size, 'the GSO size');
    same(word1, response.extra.gso_type, 'the GSO type, with pad and features 0');
    return;
  }
  same(word0 & 0xffff, response.id, `the id of response ${index}`);
  same(word1 >> 16, response.status, `the status of response ${index}`);
  sameIfGiven(word0 >>> 16, response.offset, `the offset of response ${index}`);
  sameIfGiven(word1 & 0xffff, response.flags, `the flags of response ${index}`);
}

function addMbufCksum(vector: UnitVector): void {
  const bytes = fromHex(vector.input.packet_hex);
  const packet = new PacketPool(testMemory()).get();
  packet.memory.u8.set(bytes, packet.data);
  packet.linear = bytes.length;
  packet.length = bytes.length;
  const headers = new Headers();
  headers.parse(packet);
  // The mbuf's flags say whether the checksums are the backend's to fill in.
  if (vector.input.csum_flags === 'all') fillChecksums(packet, headers);
  const after = packet.memory.u8.slice(packet.data, packet.data + packet.linear);
  same(after.join(), fromHex(vector.expect.packet_hex).join(), 'the packet');
}

function fromHex(text: string): Uint8Array {
  return Uint8Array.from(text.match(/../g) ?? [], pair => Number.parseInt(pair, 16));
}

const RUNNERS: Readonly<Record<string, (vector: UnitVector) => void>> = {
  ring2pkt,
  txpkt2rsp,
  pkt2mbufc,
  txpkt2gnttab,
  update_mbufc: updateMbufc,
  mbufc2pkt,
  rxpkt2gnttab,
  rxpkt2rsp,
  add_mbuf_cksum: addMbufCksum,
};
