import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RawPair } from '../support/raw-pair.js';

for (const fastPath of [true, false]) {
  test(`statistics count packets whose data stays in the guest’s pages (fast path: ${fastPath})`, async () => {
    const pair = new RawPair(fastPath);
    const { sender, receiver } = pair;
    const stat = () => {
      const stats = new Map(sender.vif.dev.ops.ethtoolStats!(sender.vif.dev));
      return ['sent', 'success', 'fail']
        .map(name => stats.get(`tx_zerocopy_${name}`))
        .concat(stats.get('tx_frag_overflow'));
    };
    receiver.front.postRx(10);
    await pair.send(pair.frame(100));
    assert.deepEqual(stat(), [0, 0, 0, 0], 'all of it is copied at once');
    await pair.send(pair.frame(3000));
    assert.deepEqual(stat(), [1, 1, 0, 0]);
    const slots = [800, ...Array<number>(18).fill(400)];
    await pair.send(pair.frame(7958), { slots });
    assert.deepEqual(stat(), [2, 2, 0, 1], 'more fragments than a packet of Linux has');

    // A receiver without requests: what waits for it must not hold the sender's slots.
    for (let i = 0; i < 60; i++) await pair.send(pair.frame(8000));
    const [sent, success, fail] = stat() as number[];
    assert.equal(sent, 62);
    assert.equal(sender.vif.queues[0].inFlight, 0);
    assert.ok(fail > 10);
    assert.equal(success + fail, 62);
  });
}
