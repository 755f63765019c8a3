import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAGMENT_LOCAL, type Packet, PacketPool } from '../../src/net/packet.js';
import { PacketQueue } from '../../src/netback/packet-queue.js';
import { plainMemory } from '../support/memory.js';

test('a packet queue is a list, whatever is done to it', () => {
  const pool = new PacketPool(plainMemory(512));
  const operation = fc.oneof(
    { weight: 3, arbitrary: fc.nat(1500).map(size => ({ kind: 'push' as const, size })) },
    { weight: 2, arbitrary: fc.constant({ kind: 'shift' as const }) },
    { weight: 1, arbitrary: fc.nat(5).map(keepOneIn => ({ kind: 'replace' as const, keepOneIn })) },
  );
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 300 }), operations => {
      const queue = new PacketQueue();
      let model: Packet[] = [];
      let settled = 0;
      for (const op of operations) {
        if (op.kind === 'push') {
          const packet = pool.get();
          if (op.size > 500) packet.addFragment(FRAGMENT_LOCAL, 0, 0, 500);
          packet.length = op.size;
          queue.push(packet);
          model.push(packet);
        } else if (op.kind === 'shift') {
          const packet = queue.shift();
          assert.equal(packet, model.shift() ?? null);
          packet?.release();
          settled = Math.max(0, settled - 1);
        } else {
          const fresh = model.slice(settled);
          const kept = fresh.filter((_, i) => i % (op.keepOneIn + 1) === 0);
          let i = 0;
          const removed = queue.replace(packet => {
            assert.equal(packet, fresh[i], 'each packet is asked about once, in order');
            if (i++ % (op.keepOneIn + 1) === 0) return packet;
            packet.release();
            return null;
          });
          assert.equal(removed, fresh.length - kept.length);
          model = [...model.slice(0, settled), ...kept];
          settled = model.length;
        }
        assert.equal(queue.length, model.length);
        assert.equal(queue.head, model[0] ?? null);
        assert.equal(
          queue.bytes,
          model.reduce((sum, packet) => sum + packet.length, 0),
        );
        // Each is as long as its own buffer at most, which is no page of a pool; a fragment is one.
        assert.equal(
          queue.pages,
          model.slice(0, settled).reduce((sum, packet) => sum + packet.fragments, 0),
        );
      }
      for (const packet of model) packet.release();
      assert.equal(pool.used, 0);
    }),
  );
});
