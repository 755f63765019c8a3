import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { describe, type TestContext, test } from 'node:test';
import { NetworkNamespace } from '../../src/uplink/namespace.js';
import { ReceiveSteering } from '../../src/uplink/receive-steering.js';
import { steeringObstacle } from './machine.js';

const WINDOW = 100;

describe('who runs the kernel for what is written to a TAP', { skip: await steeringObstacle() }, () => {
  /** A TAP of the kernel, how it is steered, and what does it. */
  async function setUp(t: TestContext) {
    const namespace = await NetworkNamespace.create();
    const tap = await namespace.openTap('eth0');
    t.after(async () => {
      tap.close();
      await namespace.close();
    });
    const file = `${tap.folder}/queues/rx-0/rps_cpus`;
    let now = 1000;
    const steering = new ReceiveSteering(tap.folder);
    return {
      namespace,
      file,
      steering,
      /** As a bit for each CPU. */
      set: () => BigInt(`0x${readFileSync(file, 'utf8').trim().replaceAll(',', '')}`),
      /** Polls that bring so many frames each, in one window and up to the next. */
      polls(count: number, frames: number): void {
        for (let i = 0; i < count; i++) steering.polled(frames, now);
        now += WINDOW;
        steering.polled(1, now);
      },
    };
  }

  test('others do while it sends long bursts, and the writer when it sends no more of them', async t => {
    const { polls, set } = await setUp(t);
    assert.equal(set(), 0n);
    polls(10, 128);
    const steered = set();
    // Of those that there are, without the one that we ran on.
    assert.ok(steered > 0n && steered < all() && (steered & ~all()) === 0n, `${steered} of ${all()}`);
    polls(10, 128);
    assert.notEqual(set(), 0n);
    polls(1280, 1);
    assert.equal(set(), 0n);
  });

  test('few frames, or bursts among many single frames, change nothing', async t => {
    const { polls, set } = await setUp(t);
    polls(7, 128);
    assert.equal(set(), 0n);
    polls(5000, 2);
    assert.equal(set(), 0n);
    const { steering } = await setUp(t);
    for (let i = 0; i < 10; i++) steering.polled(128, 1000);
    for (let i = 0; i < 1400; i++) steering.polled(1, 1000);
    steering.polled(1, 1100);
    assert.equal(set(), 0n);
  });

  test('stopping leaves nothing set', async t => {
    const { polls, set, steering } = await setUp(t);
    polls(10, 128);
    assert.notEqual(set(), 0n);
    steering.stop();
    assert.equal(set(), 0n);
    polls(10, 128);
    assert.notEqual(set(), 0n, 'and it may begin again');
  });

  test("somebody else's set is left alone", async t => {
    const { polls, set, steering, file } = await setUp(t);
    writeFileSync(file, '1');
    polls(10, 128);
    assert.equal(set(), 1n);
    polls(1280, 1);
    steering.stop();
    assert.equal(set(), 1n);
  });

  test('an interface that is gone or has another name is nobody, and none of that name', async t => {
    const { polls, namespace, steering } = await setUp(t);
    await namespace.ip('link set eth0 name eth1');
    polls(10, 128);
    steering.stop();
    const { stdout } = await namespace.run(['cat', '/sys/class/net/eth1/queues/rx-0/rps_cpus']);
    assert.match(stdout, /^[0,]+\n$/);
  });
});

function all(): bigint {
  return (1n << BigInt(cpus().length)) - 1n;
}
