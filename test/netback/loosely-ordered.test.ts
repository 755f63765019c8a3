import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LOOK_AGAIN_MS } from '../../src/platform/index.js';
import { RawPair } from '../support/raw-pair.js';

/** Guests whose processors are emulated in other threads. */
function looselyOrdered(options: ConstructorParameters<typeof RawPair>[1] = {}, fastPath = true): RawPair {
  return new RawPair(fastPath, { ...options, looselyOrdered: true });
}

describe('a guest whose asking for an event we missed', () => {
  for (const fastPath of [true, false]) {
    test(`is told of its responses soon, ${fastPath ? 'with' : 'without'} the fast path`, async () => {
      const pair = looselyOrdered({}, fastPath);
      const { sender, receiver, path } = pair;
      receiver.front.postRx(40);
      const ends = [
        { domain: sender.domain, ring: sender.front.tx, port: sender.front.publication.txPort },
        { domain: receiver.domain, ring: receiver.front.rx, port: receiver.front.publication.rxPort },
      ];
      const told = () => ends.map(({ domain, port }) => domain.isPending(port));
      const forget = () => {
        for (const { domain, port } of ends) domain.clearPending(port);
      };
      for (const { ring } of ends) ring.rspEvent = 1000;
      forget();
      await pair.send(pair.frame(100));
      assert.deepEqual(told(), [false, false]);
      for (const { ring } of ends) ring.rspEvent = ring.rspProd;
      await path.scheduler.runFor(2 * LOOK_AGAIN_MS + 1);
      assert.deepEqual(told(), [true, true]);
      forget();
      await path.scheduler.runFor(1000);
      assert.deepEqual(told(), [false, false], 'once');
    });
  }
});

describe('a guest that misses that an event was asked for', () => {
  for (const split of [true, false]) {
    const channels = split ? 'split event channels' : 'one event channel';
    test(`has what it sent taken soon, with ${channels}`, async () => {
      const pair = looselyOrdered({ sender: { split } });
      const { sender, receiver, path } = pair;
      receiver.front.postRx(40);
      await pair.send(pair.frame(100));
      sender.front.packet(pair.frame(200));
      sender.front.push();
      await path.scheduler.runFor(LOOK_AGAIN_MS + 1);
      assert.equal(receiver.front.rxPackets().length, 2);
    });

    test(`gets what waits for it soon, with ${channels}`, async () => {
      const pair = looselyOrdered({ receiver: { split } });
      const { receiver, path } = pair;
      // Nothing is posted, then too little, then enough: each time another event is asked for.
      await pair.send(pair.frame(100));
      for (const posted of [1, 2]) {
        await pair.send(pair.frame(5000));
        receiver.front.postRx(posted);
        receiver.front.push();
        await path.scheduler.runFor(LOOK_AGAIN_MS + 1);
        assert.equal(receiver.front.rxPackets().length, 1);
      }
    });
  }
});

test('nothing looks at a ring that nobody uses, nor at that of a vif that goes', async () => {
  const pair = looselyOrdered();
  const { sender, receiver, path } = pair;
  const { scheduler } = path;
  await pair.send(pair.frame(100));
  await scheduler.runFor(2 * LOOK_AGAIN_MS + 1);
  const nothingRuns = async (ms: number) => {
    const { steps } = scheduler;
    await scheduler.runFor(ms);
    assert.equal(scheduler.steps, steps);
  };
  await nothingRuns(1000);
  receiver.front.postRx(1);
  receiver.front.kickRx();
  await pair.send(pair.frame(5000));
  assert.equal(receiver.vif.queues[0].waitingPages, 2);
  assert.deepEqual([sender.disconnect(), receiver.disconnect()], [true, true]);
  // Here it is told that the carriers are gone.
  await scheduler.runFor(0);
  await nothingRuns(LOOK_AGAIN_MS + 1);
});
