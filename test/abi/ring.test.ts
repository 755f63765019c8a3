import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BackRing, FrontRing, initSharedRing, ringNeedsNotify, ringSize } from '../../src/abi/index.js';
import { NETIF_CTRL_SLOT_SIZE, NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE } from '../../src/abi/netif.js';
import { Memory } from '../../src/platform/index.js';
import { MachineMemory } from '../../src/platform/sim/index.js';

const page = () => new Memory(new SharedArrayBuffer(8192));

test('ring sizes are the largest power of two that fits', () => {
  const pages = [1, 2, 4, 8, 16];
  const sizes = (slot: number) => pages.map(n => ringSize(n * 4096, slot));
  assert.deepEqual(sizes(NETIF_TX_SLOT_SIZE), [256, 512, 1024, 2048, 4096]);
  assert.deepEqual(sizes(NETIF_RX_SLOT_SIZE), [256, 512, 1024, 2048, 4096]);
  assert.deepEqual(sizes(NETIF_CTRL_SLOT_SIZE), [128, 256, 512, 1024, 2048]);
});

test('SHARED_RING_INIT zeroes the header and asks for the first event', () => {
  const memory = page();
  memory.u8.fill(0xaa);
  initSharedRing(memory, 4096);
  assert.deepEqual([...memory.u32.subarray(1024, 1028)], [0, 1, 0, 1]);
  assert.ok(memory.u8.subarray(4096 + 16, 4096 + 64).every(byte => byte === 0));
  assert.equal(memory.u8[4096 + 64], 0xaa);
});

test('slots follow the 64-byte header and wrap', () => {
  const ring = new FrontRing(page(), 4096, NETIF_TX_SLOT_SIZE);
  assert.equal(ring.slot(0), 4096 + 64);
  assert.equal(ring.slot(255), 4096 + 64 + 255 * 12);
  assert.equal(ring.slot(256), 4096 + 64);
  assert.equal(ring.slot(-1), 4096 + 64 + 255 * 12);
});

// [old, new, event, notify] as the macros of io/ring.h give them
const notifyVectors: [number, number, number, number][] = [
  [0, 1, 1, 1],
  [0, 3, 1, 1],
  [1, 2, 1, 0],
  [5, 8, 4, 0],
  [5, 8, 5, 0],
  [5, 8, 6, 1],
  [5, 8, 8, 1],
  [5, 8, 9, 0],
  [7, 7, 8, 0],
  [100, 110, 50, 0],
  [0, 256, 257, 0],
  [0, 256, 256, 1],
  [0, 256, 1, 1],
  [0xfffffffe, 1, 0xffffffff, 1],
  [0xfffffffe, 1, 0, 1],
  [0xfffffffe, 1, 2, 0],
  [0xfffffffe, 1, 0xfffffffe, 0],
  [0xffffffff, 0, 0, 1],
];

test('push and check notify', () => {
  for (const [from, to, event, notify] of notifyVectors) {
    assert.equal(ringNeedsNotify(from | 0, to | 0, event | 0), notify === 1, `${from} ${to} ${event}`);
    for (const memory of [page(), new MachineMemory(65536)]) pushes(memory, from, to, event, notify === 1);
  }
});

function pushes(memory: Memory, from: number, to: number, event: number, notify: boolean): void {
  const front = new FrontRing(memory, 0, NETIF_TX_SLOT_SIZE);
  memory.u32[0] = from;
  memory.u32[1] = event;
  front.reqProdPvt = to | 0;
  assert.equal(front.pushRequests(), notify);
  assert.equal(memory.u32[0], to);
  const back = new BackRing(memory, 4096, NETIF_TX_SLOT_SIZE);
  memory.u32[1024 + 2] = from;
  memory.u32[1024 + 3] = event;
  back.rspProdPvt = to | 0;
  assert.equal(back.pushResponses(), notify);
  assert.equal(memory.u32[1024 + 2], to);
}

test('unconsumed requests and overflows of a backend', () => {
  // [req_prod, req_cons, rsp_prod_pvt, unconsumed, cons overflow, prod overflow]
  const vectors = [
    [0, 0, 0, 0, 0, 0],
    [5, 3, 3, 2, 0, 0],
    [256, 0, 0, 256, 0, 0],
    [300, 0, 0, 256, 0, 1],
    [10, 260, 10, 6, 0, 0],
    [0xffffffff, 0, 0, 256, 0, 1],
    [3, 0xfffffffe, 0xfffffffe, 5, 0, 0],
    [3, 5, 3, 254, 0, 0],
    [260, 256, 4, 4, 0, 0],
    [512, 256, 0, 0, 1, 1],
  ];
  for (const [reqProd, reqCons, rspProdPvt, count, consOverflow, prodOverflow] of vectors) {
    const memory = page();
    memory.u32[0] = reqProd;
    const ring = new BackRing(memory, 0, NETIF_TX_SLOT_SIZE);
    ring.reqCons = reqCons | 0;
    ring.rspProdPvt = rspProdPvt | 0;
    const prod = ring.reqProd();
    assert.equal(ring.unconsumed(prod), count, `${reqProd} ${reqCons} ${rspProdPvt}`);
    assert.equal(ring.consumerOverflow(), consOverflow === 1);
    assert.equal(ring.requestOverflow(prod), prodOverflow === 1);
  }
});

test('free slots of a frontend', () => {
  const vectors = [
    [0, 0, 256],
    [255, 0, 1],
    [256, 0, 0],
    [1, 0xffffffff, 254],
    [0x80, 0xffffff80, 0],
  ];
  for (const [reqProdPvt, rspCons, free] of vectors) {
    const ring = new FrontRing(page(), 0, NETIF_TX_SLOT_SIZE);
    ring.reqProdPvt = reqProdPvt | 0;
    ring.rspCons = rspCons | 0;
    assert.equal(ring.free, free);
  }
});

test('a frontend takes no more responses than it has requests outstanding', () => {
  // The macro allows up to the ring's size; here the bound is what was asked.
  const vectors: [number, number, number, boolean][] = [
    [0, 0, 0, false],
    [256, 0, 256, false],
    [257, 0, 256, true],
    [5, 10, 12, true],
    [2, 0xfffffffe, 2, false],
    [3, 0, 2, true],
  ];
  for (const [rspProd, rspCons, reqProdPvt, overflow] of vectors) {
    const ring = new FrontRing(page(), 0, NETIF_TX_SLOT_SIZE);
    ring.rspCons = rspCons | 0;
    ring.reqProdPvt = reqProdPvt | 0;
    assert.equal(ring.responseOverflow(rspProd | 0), overflow, `${rspProd} ${rspCons} ${reqProdPvt}`);
  }
});

test('final check moves the event index only when there is no work', () => {
  const memory = page();
  initSharedRing(memory, 0);
  const back = new BackRing(memory, 0, NETIF_TX_SLOT_SIZE);
  memory.u32[0] = 1;
  assert.equal(back.finalCheckForRequests(), true);
  assert.equal(memory.u32[1], 1);
  back.reqCons = 1;
  assert.equal(back.finalCheckForRequests(), false);
  assert.equal(memory.u32[1], 2);
  const front = new FrontRing(memory, 0, NETIF_TX_SLOT_SIZE);
  assert.equal(front.finalCheckForResponses(), false);
  assert.equal(memory.u32[3], 1);
  memory.u32[2] = 3;
  assert.equal(front.finalCheckForResponses(), true);
});

test('attaching starts at the published response index', () => {
  const memory = page();
  memory.u32[2] = 0xfffffff0;
  const back = new BackRing(memory, 0, NETIF_TX_SLOT_SIZE);
  back.attach();
  assert.equal(back.reqCons >>> 0, 0xfffffff0);
  assert.equal(back.rspProdPvt, back.reqCons);
});
