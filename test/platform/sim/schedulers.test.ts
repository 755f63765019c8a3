import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { sleep, Task } from '../../../src/platform/index.js';
import { EventLoopScheduler, SeededScheduler, seededRandom } from '../../../src/platform/sim/index.js';

const loop = (now = () => performance.now()) => ({ setImmediate, setTimeout, clearTimeout, now });
const seeded = (seed: number) => new SeededScheduler(seed, { yieldToMicrotasks: () => nextTurn() });

describe('the event loop scheduler', () => {
  test('runs tasks in order, never inside the caller, and a task once however often it was posted', async () => {
    const scheduler = new EventLoopScheduler(loop());
    const ran: string[] = [];
    const a = new Task('a', () => ran.push('a'));
    const b = new Task('b', () => {
      ran.push('b');
      if (ran.length < 4) scheduler.post(a);
    });
    scheduler.post(a);
    scheduler.post(b);
    scheduler.post(a);
    assert.deepEqual(ran, []);
    await nextTurn();
    await nextTurn();
    assert.deepEqual(ran, ['a', 'b', 'a']);
    assert.equal(scheduler.pending, 0);
  });

  test('ends a turn when its time is up and goes on in the next', async () => {
    let clock = 0;
    const scheduler = new EventLoopScheduler({ ...loop(() => clock), sliceMs: 5 });
    let runs = 0;
    const busy = new Task('busy', () => {
      clock++;
      if (++runs < 100) scheduler.post(busy);
    });
    scheduler.post(busy);
    assert.equal(scheduler.drain(), 16);
    assert.equal(scheduler.pending, 1);
    while (scheduler.pending > 0) await nextTurn();
    assert.equal(runs, 100);
  });

  test('keeps running after a task threw', async () => {
    const failed: string[] = [];
    const scheduler = new EventLoopScheduler({ ...loop(), onError: (_, task) => failed.push(task) });
    let ran = false;
    scheduler.post(
      new Task('bad', () => {
        throw new Error('bad');
      }),
    );
    scheduler.post(
      new Task('good', () => {
        ran = true;
      }),
    );
    await nextTurn();
    await nextTurn();
    assert.deepEqual(failed, ['bad']);
    assert.equal(ran, true);
  });

  test('drops the tasks of a stopped owner', () => {
    const scheduler = new EventLoopScheduler(loop());
    const owner = { stopped: false };
    let ran = 0;
    const task = new Task('t', () => ran++);
    task.owner = owner;
    scheduler.post(task);
    owner.stopped = true;
    scheduler.drain();
    assert.equal(ran, 0);
    assert.equal(task.queued, false);
  });

  test('cancels timers', async () => {
    const scheduler = new EventLoopScheduler(loop());
    let fired = false;
    const timer = scheduler.after(1, () => {
      fired = true;
    });
    scheduler.cancel(timer);
    await sleep(scheduler, 5);
    assert.equal(fired, false);
  });

  test('takes more tasks than its queue first had room for', () => {
    const scheduler = new EventLoopScheduler(loop(() => 0));
    const ran: number[] = [];
    for (let i = 0; i < 1000; i++) scheduler.post(new Task(`${i}`, () => ran.push(i)));
    scheduler.drain();
    assert.deepEqual(
      ran,
      Array.from({ length: 1000 }, (_, i) => i),
    );
  });
});

describe('the seeded scheduler', () => {
  async function orderOf(seed: number): Promise<string> {
    const scheduler = seeded(seed);
    let order = '';
    for (const name of 'abcdefghij') {
      scheduler.post(
        new Task(name, () => {
          order += name;
        }),
      );
    }
    scheduler.after(3, () => {
      order += '3';
    });
    scheduler.after(2, () => {
      order += '2';
    });
    await scheduler.runUntil(() => order.length === 12);
    return order;
  }

  test('gives the same run for the same seed and others for others', async () => {
    assert.equal(await orderOf(1), await orderOf(1));
    const orders = new Set<string>();
    for (let seed = 0; seed < 8; seed++) orders.add(await orderOf(seed));
    assert.ok(orders.size > 6);
    for (const order of orders) assert.ok(order.endsWith('23'));
  });

  test('time jumps to the next timer, and code with promises proceeds', async () => {
    const scheduler = seeded(7);
    let woke = 0;
    void (async () => {
      await sleep(scheduler, 1000);
      await sleep(scheduler, 500);
      woke = scheduler.now();
    })();
    await scheduler.runUntil(() => woke > 0);
    assert.equal(woke, 1500);
  });

  test('a task that never rests does not stop time', async () => {
    const scheduler = seeded(7);
    const busy = new Task('busy', () => scheduler.post(busy));
    scheduler.post(busy);
    let fired = false;
    scheduler.after(0.2, () => {
      fired = true;
    });
    await scheduler.runUntil(() => fired);
    assert.ok(scheduler.now() >= 0.2 && scheduler.now() < 0.3);
  });

  test('runFor runs what is due and no more', async () => {
    const scheduler = seeded(1);
    const fired: number[] = [];
    const timers = [1, 2, 3].map(ms => scheduler.after(ms, () => fired.push(ms)));
    await scheduler.runFor(2);
    assert.deepEqual(fired, [1, 2]);
    assert.equal(scheduler.now(), 2);
    scheduler.cancel(timers[2]);
    scheduler.cancel(timers[0]);
    assert.equal(scheduler.idle, true);
  });

  test('says so when nothing is left to run', async () => {
    const scheduler = seeded(42);
    await assert.rejects(
      scheduler.runUntil(() => false),
      /seed 42: nothing is left to run/,
    );
    scheduler.after(100, () => {});
    await assert.rejects(
      scheduler.runUntil(() => false, 10),
      /10 ms have passed/,
    );
  });
});

test('random numbers repeat for a seed and spread over [0, 1)', () => {
  const a = seededRandom(5);
  const b = seededRandom(5);
  let sum = 0;
  for (let i = 0; i < 1000; i++) {
    const x = a();
    assert.equal(x, b());
    assert.ok(x >= 0 && x < 1);
    sum += x;
  }
  assert.ok(sum > 450 && sum < 550);
});
