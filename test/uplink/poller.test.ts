import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import {
  POLL_BLOCKED,
  POLL_STARVED,
  Poller,
  type PollHandle,
  type PollSource,
} from '../../src/uplink/poller.js';

const skip = process.platform === 'linux' ? false : 'needs Linux';

function openPipe(): number {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-test-'));
  const path = join(folder, 'pipe');
  assert.equal(spawnSync('mkfifo', [path]).status, 0);
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  rmSync(folder, { recursive: true });
  return fd;
}

/** A source whose frames are the bytes in a pipe. */
class Pipe implements PollSource {
  /** What each poll that took something took, and what it was asked for. */
  readonly polls: { count: number; budget: number }[] = [];
  looks = 0;
  taken = 0;
  /** Returned instead of a look at the pipe. */
  instead: number | null = null;
  handle: PollHandle | null = null;
  private readonly buffer = Buffer.alloc(128);

  constructor(readonly fd = openPipe()) {}

  poll(budget: number): number {
    this.looks++;
    if (this.instead !== null) return this.instead;
    let count = 0;
    try {
      count = readSync(this.fd, this.buffer, 0, budget, null);
    } catch (error) {
      assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN');
      return 0;
    }
    this.taken += count;
    this.polls.push({ count, budget });
    return count;
  }

  bring(count: number): void {
    writeSync(this.fd, Buffer.alloc(count));
  }
}

function setUp(t: TestContext, count = 1) {
  let drains = 0;
  const poller = new Poller({ drain: () => drains++ });
  const pipes = Array.from({ length: count }, () => new Pipe());
  for (const pipe of pipes) pipe.handle = poller.add(pipe);
  t.after(() => {
    poller.close();
    for (const pipe of pipes) closeSync(pipe.fd);
  });
  return { poller, pipes, drains: () => drains };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await delay(1);
}

/** Nobody looks any more: it sleeps. */
async function asleep(pipe: Pipe): Promise<void> {
  for (let looks = -1; looks !== pipe.looks; ) {
    looks = pipe.looks;
    await delay(5);
  }
}

describe('a poller', { skip, timeout: 20_000 }, () => {
  test('takes what comes, again and again, and sleeps between', async t => {
    const { pipes, drains } = setUp(t, 2);
    const [a, b] = pipes;
    for (let round = 1; round <= 5; round++) {
      a.bring(3);
      b.bring(100);
      await until(() => a.taken === 3 * round && b.taken === 100 * round);
      await asleep(a);
    }
    assert.ok(drains() >= 10);
  });

  test('takes what was there before it was added', async t => {
    const { poller } = setUp(t, 0);
    const early = new Pipe();
    t.after(() => closeSync(early.fd));
    early.bring(1);
    poller.add(early);
    await until(() => early.taken === 1);
  });

  test('reads a device once that brings single frames, and to its end one that brings more', async t => {
    const { pipes } = setUp(t);
    const [pipe] = pipes;
    for (let frame = 1; frame <= 3; frame++) {
      pipe.bring(1);
      await until(() => pipe.taken === frame);
      await asleep(pipe);
    }
    assert.deepEqual(pipe.polls.splice(0), new Array(3).fill({ count: 1, budget: 1 }));
    pipe.bring(50);
    await until(() => pipe.taken === 53);
    await asleep(pipe);
    assert.deepEqual(pipe.polls.splice(0), [
      { count: 1, budget: 1 },
      { count: 49, budget: 128 },
    ]);
    pipe.bring(200);
    await until(() => pipe.taken === 253);
    assert.deepEqual(pipe.polls, [
      { count: 128, budget: 128 },
      { count: 72, budget: 128 },
    ]);
  });

  test('leaves a blocked device alone until it is woken, however much it has', async t => {
    const { pipes } = setUp(t);
    const [pipe] = pipes;
    pipe.instead = POLL_BLOCKED;
    pipe.bring(5);
    await until(() => pipe.looks > 0);
    await asleep(pipe);
    assert.equal(pipe.looks, 1);
    pipe.handle!.wake();
    pipe.handle!.wake();
    await until(() => pipe.looks > 1);
    await asleep(pipe);
    assert.equal(pipe.looks, 2);
    pipe.instead = null;
    pipe.handle!.wake();
    await until(() => pipe.taken === 5);
    // It is watched again.
    await asleep(pipe);
    pipe.bring(1);
    await until(() => pipe.taken === 6);
  });

  test('tries a starved device again by itself', async t => {
    const { pipes } = setUp(t);
    const [pipe] = pipes;
    pipe.instead = POLL_STARVED;
    pipe.bring(1);
    await until(() => pipe.looks > 2);
    pipe.instead = null;
    await until(() => pipe.taken === 1);
  });

  test('comes to a device that has a frame, however much another one brings', async t => {
    const { pipes } = setUp(t, 2);
    const [endless, other] = pipes;
    endless.poll = budget => budget;
    endless.handle!.wake();
    await delay(5);
    other.bring(1);
    await until(() => other.taken === 1);
  });

  test('leaves a broken device alone until it is woken, and watches it again when it is whole', async t => {
    const { poller } = setUp(t, 0);
    const folder = mkdtempSync(join(tmpdir(), 'pvnet-test-'));
    const path = join(folder, 'pipe');
    assert.equal(spawnSync('mkfifo', [path]).status, 0);
    const pipe = new Pipe(openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
    let writer = openSync(path, constants.O_WRONLY);
    // Its end is told again and again, and there is nothing to read.
    closeSync(writer);
    pipe.handle = poller.add(pipe);
    await asleep(pipe);
    writer = openSync(path, constants.O_WRONLY);
    rmSync(folder, { recursive: true });
    t.after(() => {
      closeSync(writer);
      closeSync(pipe.fd);
    });
    pipe.handle.wake();
    for (let frame = 1; frame <= 2; frame++) {
      writeSync(writer, Buffer.alloc(1));
      await until(() => pipe.taken === frame);
      await asleep(pipe);
    }
  });

  test('that is closed looks at nothing, and lets go of its own file descriptors once', async t => {
    const { poller, pipes } = setUp(t);
    const [pipe] = pipes;
    pipe.bring(1);
    pipe.handle!.wake();
    poller.close();
    assert.equal(poller.size, 0);
    pipe.handle!.wake();
    pipe.handle!.remove();
    await delay(5);
    assert.equal(pipe.looks, 0);
    // Gets the number that was the epoll's.
    const fd = openSync('/dev/null', 'r');
    poller.close();
    closeSync(fd);
  });

  test('keeps a device whose file descriptor has the number of one that was removed', async t => {
    const { poller, pipes } = setUp(t);
    const [pipe] = pipes;
    pipe.handle!.remove();
    poller.add(pipe);
    pipe.handle!.remove();
    pipe.bring(1);
    await until(() => pipe.taken === 1);
  });

  test('no longer looks at a device that was removed, from inside its poll or outside', async t => {
    const { poller, pipes } = setUp(t, 2);
    const [a, b] = pipes;
    a.bring(1);
    await until(() => a.taken === 1);
    a.handle!.remove();
    a.handle!.remove();
    const looks = a.looks;
    a.bring(1);
    a.handle!.wake();
    const { poll } = b;
    b.poll = budget => {
      b.handle!.remove();
      return poll.call(b, budget);
    };
    b.bring(300);
    await until(() => b.taken > 0);
    const taken = b.taken;
    await delay(5);
    assert.deepEqual([a.looks, b.taken, poller.size], [looks, taken, 0]);
  });

  test('does not look at a device that another one has removed in its turn', async t => {
    const { poller, pipes } = setUp(t, 2);
    for (const [i, pipe] of pipes.entries()) {
      const { poll } = pipe;
      pipe.poll = budget => {
        pipes[1 - i].handle!.remove();
        return poll.call(pipe, budget);
      };
      pipe.bring(1);
    }
    await until(() => pipes.some(({ taken }) => taken > 0));
    await delay(5);
    assert.deepEqual([pipes.filter(({ looks }) => looks > 0).length, poller.size], [1, 1]);
  });
});
