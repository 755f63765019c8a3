import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAGMENT_LOCAL, PACKET_LINEAR_MAX, type Packet } from '../../src/net/packet.js';
import { PagePool } from '../../src/net/page-pool.js';
import { TestKernel } from './kernel.js';

const bytesOf = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 7) & 255);

test('materialising brings every byte home in one batch, packed, and tells the owner', () => {
  const kernel = new TestKernel();
  const { net, grants } = kernel;
  const data = [bytesOf(9000), bytesOf(600), bytesOf(30)];
  let told = 0;
  const packets = data.map(bytes => {
    const packet = kernel.packet(bytes, { linear: 64, sizes: Array(18).fill(500), foreign: true });
    packet.owner = { packetDone: () => told++ };
    return packet;
  });
  assert.equal(net.materialiser.materialise(packets), 0);
  assert.equal(grants.batches, 1);
  packets.forEach((packet, i) => {
    assert.ok(packet.isLocal);
    assert.deepEqual(kernel.bytes(packet), data[i]);
    assert.equal(packet.fragments, Math.ceil((data[i].length - packet.linear) / 4096));
  });
  assert.equal(told, 2, 'the owners of the two that had foreign data');
  for (const packet of packets) packet.release();
  assert.equal(told, 3);
  assert.equal(net.pages.used, 0);
});

test('more packets than a batch takes come home, each with its own bytes', () => {
  const kernel = new TestKernel();
  const packets = Array.from({ length: 100 }, (_, i) =>
    kernel.packet(bytesOf(600 + i), { linear: 64, foreign: true }),
  );
  assert.equal(kernel.net.materialiser.materialise(packets), 0);
  assert.ok(kernel.grants.batches < 5);
  for (const [i, packet] of packets.entries()) {
    assert.ok(packet.isLocal);
    assert.deepEqual(kernel.bytes(packet), bytesOf(600 + i));
    packet.release();
  }
  assert.equal(kernel.net.pages.used, 0);
});

test('a bad grant fails its own packet only', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const packets: Packet[] = [0, 1, 2].map(() => kernel.packet(bytesOf(3000), { linear: 64, foreign: true }));
  packets[1].ref[0] = 99_999;
  assert.equal(net.materialiser.materialise(packets), 1);
  assert.deepEqual(
    packets.map(p => p.failed),
    [false, true, false],
  );
  assert.ok(!packets[1].isLocal);
  for (const packet of packets) packet.release();
  assert.equal(net.pages.used, 0);
});

test('without a page left a packet fails and takes none', () => {
  const kernel = new TestKernel({ pageLimit: 3 });
  const { net } = kernel;
  const packets = [0, 1].map(() => kernel.packet(bytesOf(64 + 8192), { linear: 64, foreign: true }));
  assert.equal(net.materialiser.materialise(packets), 1);
  assert.deepEqual(
    packets.map(p => p.failed),
    [false, true],
  );
  assert.equal(net.pages.used, 2);
  for (const packet of packets) packet.release();
  assert.equal(net.pages.used, 0);
});

test('own: a packet that others hold too is copied, and its owner is free once they are done', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const bytes = bytesOf(5000);
  const packet = kernel.packet(bytes, { linear: 64, foreign: true });
  let told = 0;
  packet.owner = { packetDone: () => told++ };
  packet.hold();
  const own = net.materialiser.own(packet)!;
  assert.notEqual(own, packet);
  assert.ok(own.isLocal && !packet.isLocal);
  assert.equal(packet.references, 1, 'only the other holder is left');
  packet.release();
  assert.equal(told, 1);
  assert.deepEqual(kernel.bytes(own), bytes);
  own.release();
  assert.equal(net.packets.used + net.pages.used, 0);
});

test('pull and linearise keep the bytes, whatever the fragments', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 100, max: 4000 }),
      fc.array(fc.integer({ min: 1, max: 900 }), { maxLength: 12 }),
      fc.integer({ min: 0, max: 100 }),
      fc.integer({ min: 0, max: 600 }),
      fc.boolean(),
      (length, sizes, linear, wanted, foreign) => {
        const kernel = new TestKernel({ pages: 64 });
        const { net } = kernel;
        const bytes = bytesOf(length);
        const packet = kernel.packet(bytes, { linear, sizes, foreign });
        const beside = kernel.packet(bytesOf(PACKET_LINEAR_MAX));
        const fits = wanted <= Math.min(length, PACKET_LINEAR_MAX);
        assert.equal(net.materialiser.pull(packet, wanted), fits);
        assert.ok(packet.linear >= (fits ? wanted : 0));
        assert.deepEqual(kernel.bytes(beside), bytesOf(PACKET_LINEAR_MAX));
        beside.release();
        assert.deepEqual(kernel.bytes(packet), bytes);
        assert.ok(net.materialiser.linearise(packet));
        assert.equal(packet.linear, length);
        assert.deepEqual(kernel.bytes(packet), bytes);
        packet.release();
        assert.equal(net.packets.used + net.pages.used, 0);
      },
    ),
  );
});

test('share: a head of its own over the same data; the parent lives as long', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const bytes = bytesOf(3000);
  const packet = kernel.packet(bytes, { linear: 64, foreign: true });
  packet.hold();
  const copy = net.materialiser.share(packet)!;
  copy.memory.u8[copy.data] ^= 0xff;
  assert.deepEqual(kernel.bytes(packet), bytes);
  packet.release();
  assert.equal(net.packets.used, 2);
  copy.release();
  assert.equal(net.packets.used, 0);
});

test('a packet that is small as a whole is fetched into its own buffer, without a page', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  let told = 0;
  const packets = [300, 480, 481].map(length => {
    const packet = kernel.packet(bytesOf(length), { linear: 64, sizes: [100, 7], foreign: true });
    packet.owner = { packetDone: () => told++ };
    return packet;
  });
  assert.equal(net.materialiser.materialise(packets), 0);
  assert.deepEqual(
    packets.map(p => [p.linear, p.fragments]),
    [
      [300, 0],
      [480, 0],
      [64, 1],
    ],
  );
  packets.forEach((packet, i) => {
    assert.deepEqual(kernel.bytes(packet), bytesOf([300, 480, 481][i]));
    packet.release();
  });
  assert.equal(told, 3);
  assert.equal(net.pages.used, 0);

  const bad = kernel.packet(bytesOf(200), { linear: 64, foreign: true });
  bad.ref[0] = 99_999;
  assert.equal(net.materialiser.materialiseOne(bad), false);
  assert.deepEqual([bad.failed, bad.linear, bad.fragments], [true, 64, 1]);
  bad.release();
});

test('without memory for another packet the data path drops, and leaves nothing behind', () => {
  const kernel = new TestKernel({ pages: 3 });
  const { net } = kernel;
  const packet = kernel.packet(bytesOf(100));
  packet.hold();
  const others = [];
  for (let other = net.packets.tryGet(); other !== null; other = net.packets.tryGet()) others.push(other);
  assert.equal(net.materialiser.share(packet), null);
  assert.equal(packet.references, 1);
  packet.release();
  for (const other of others) other.release();
  assert.equal(net.packets.used, 0);
});

test('who others still need is not done with when some of its data has come home', () => {
  for (const small of [true, false]) {
    const kernel = new TestKernel();
    const { net } = kernel;
    let told = 0;
    const bytes = bytesOf(small ? 300 : 3000);
    const packet = kernel.packet(bytes, { linear: 64, foreign: true });
    packet.owner = { packetDone: () => told++ };
    if (!small) {
      const index = net.pages.alloc();
      const page = net.pages.pages[index];
      packet.memory.u8.fill(7, page * 4096, page * 4096 + 1000);
      packet.pool = net.pages;
      packet.addFragment(FRAGMENT_LOCAL, page, 0, 1000, index);
    }
    const all = kernel.bytes(packet);
    packet.hold();
    const copy = net.materialiser.share(packet)!;
    // The grants are still what the other one has, …
    assert.ok(net.materialiser.materialiseOne(packet));
    assert.equal(told, 0);
    packet.release();
    // … and a page of its own.
    assert.ok(net.materialiser.materialiseOne(copy));
    assert.deepEqual(kernel.bytes(copy), all);
    assert.equal(copy.parent === null, small);
    copy.release();
    assert.equal(told, 1);
    assert.equal(net.packets.used + net.pages.used, 0);
  }
});

test('a packet that comes back to its pool is as good as new', () => {
  const { net } = new TestKernel();
  // What belongs to a checksum, GSO, a hash or an owner means nothing without.
  const known = (one: Packet) => [
    ...[one.data, one.linear, one.length, one.fragments, one.linearPoolIndex, one.references],
    ...[one.checksum, one.gsoType, one.hashType, one.priority, one.queue, one.failed],
    ...[one.pool === null, one.owner === null, one.parent === null],
  ];
  const packet = net.packets.get();
  const before = known(packet);
  packet.addFragment(7, 99, 0, 100);
  const used = { linear: 9, length: 9, checksum: 3, gsoType: 1, hashType: 2, priority: 7, queue: 3 };
  Object.assign(packet, used, { failed: true, data: packet.data + 4, owner: { packetDone() {} } });
  packet.parent = net.packets.get();
  packet.release();
  const again = net.packets.get();
  assert.equal(again, packet);
  assert.deepEqual(known(again), before);
  again.release();
  assert.throws(() => again.release(), /more often/);
});

test('a pool that has retired makes no page any more, and disposes of each that comes back', () => {
  const { memory } = new TestKernel();
  const { allocated } = memory;
  const pool = new PagePool(memory, 4);
  const [kept, free] = [pool.alloc(), pool.alloc()];
  pool.free(free);
  pool.retire(page => memory.freePage(page));
  assert.deepEqual([pool.alloc(), memory.allocated], [-1, allocated + 1]);
  pool.free(kept);
  assert.deepEqual([pool.alloc(), memory.allocated], [-1, allocated]);
});
