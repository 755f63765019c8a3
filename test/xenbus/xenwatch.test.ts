import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/xenbus-state.js';
import { sleep } from '../../src/platform/scheduler.js';
import { backOf, connect, frontOf, SEEDS, scene } from './scene.js';

describe('xenwatch', () => {
  for (const seed of SEEDS) {
    test(`callbacks run one at a time, those with promises too (seed ${seed})`, async () => {
      const { host, domU } = await scene(seed);
      const { xs } = domU.xenbus;
      const log: string[] = [];
      const make = (name: string) =>
        xs.registerWatch({
          node: `data/${name}`,
          callback: async () => {
            log.push(`${name} starts`);
            await sleep(host.scheduler, 10 * host.scheduler.random());
            await xs.write('data/last', name);
            log.push(`${name} ends`);
          },
        });
      const watches = await host.run(Promise.all(['a', 'b', 'c'].map(make)));
      const job = domU.xenbus.runOnXenwatch(async () => {
        log.push('job starts');
        await sleep(host.scheduler, 1);
        log.push('job ends');
      });
      for (let i = 0; i < 5; i++) {
        await host.run(Promise.all(['a', 'b', 'c'].map(name => xs.write(`data/${name}`, i))));
        await host.scheduler.runFor(12);
      }
      await host.run(job);
      await host.until(() => domU.xenbus.pendingEvents === 0 && log.length % 2 === 0);
      assert.ok(log.length >= 14, `${log.length} entries`);
      for (let i = 0; i < log.length; i += 2) {
        assert.equal(log[i].replace('starts', 'ends'), log[i + 1], `${log}`);
      }
      await host.run(Promise.all(watches.map(watch => xs.unregisterWatch(watch))));
      assert.equal(host.holdings(domU).watches, 2);
    });

    test(`10 000 rewrites of a state, and nodes below it, leave one event in the queue (XSA-349, seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, dom0, vdev } = s;
      await connect(s);
      // The backend's domain is busy with something else.
      let release: () => void = () => {};
      const busy = dom0.xenbus.runOnXenwatch(
        () =>
          new Promise<void>(resolve => {
            release = resolve;
          }),
      );
      await host.settle();
      const calls = s.back.calls.length;
      const path = `${host.frontDir(vdev)}/state`;
      let most = 0;
      for (let i = 0; i < 200; i++) {
        const writes: Promise<void>[] = [];
        for (let k = 0; k < 50; k++) writes.push(host.toolstack.write(path, String(k % 9)));
        writes.push(host.toolstack.write(`${path}/${i}`, ''));
        await host.run(Promise.all(writes));
        most = Math.max(most, dom0.xenbus.pendingEvents);
      }
      assert.ok(most <= 1, `${most} events`);
      await host.write(path, XenbusState.Connected);
      release();
      await host.run(busy);
      await host.until(() => dom0.xenbus.pendingEvents === 0);
      await host.settle();
      assert.ok(s.back.calls.length - calls <= 2, `${s.back.calls.length - calls} calls`);
      assert.equal(backOf(s).otherendState, XenbusState.Connected);
    });
  }

  test('rewrites of any other watched node are bounded by the number of nodes', async () => {
    const { host, domU } = await scene(1);
    const { xs } = domU.xenbus;
    let release: () => void = () => {};
    let calls = 0;
    await host.run(
      xs.registerWatch({
        node: 'data',
        callback: () => {
          calls++;
          return new Promise<void>(resolve => {
            release = resolve;
          });
        },
      }),
    );
    await host.settle();
    for (let i = 0; i < 1000; i++) void xs.write(`data/${i % 10}`, i);
    await host.settle();
    // Each of ten nodes; and `data`, if it fires as a whole.
    assert.ok(domU.xenbus.pendingEvents <= 11, `${domU.xenbus.pendingEvents} events`);
    for (let last = 0; last !== calls; ) {
      last = calls;
      release();
      await host.settle();
    }
    assert.equal(domU.xenbus.pendingEvents, 0);
  });

  test('an event for a watch that is gone is dropped, queued or on its way', async () => {
    const { host, domU } = await scene(1);
    const { xs } = domU.xenbus;
    let calls = 0;
    const watch = await host.run(
      xs.registerWatch({
        node: 'data/x',
        callback: async () => {
          calls++;
          await xs.unregisterWatch(watch);
        },
      }),
    );
    await host.settle();
    for (let i = 0; i < 10; i++) await host.run(xs.write('data/x', i));
    await host.settle();
    assert.equal(calls, 1);
    assert.equal(watch.active, false);
    await host.run(xs.unregisterWatch(watch));
    assert.equal(host.holdings(domU).watches, 2);
  });

  test('a callback that throws is logged, and the next runs', async () => {
    const { host, domU } = await scene(1);
    const { xs } = domU.xenbus;
    const seen: string[] = [];
    await host.run(
      xs.registerWatch({
        node: 'data/x',
        callback: path => {
          seen.push(path);
          throw new Error('a bug');
        },
      }),
    );
    await host.settle();
    await host.run(xs.write('data/x', 1));
    await host.settle();
    assert.deepEqual(seen, ['data/x', 'data/x']);
    assert.match(domU.domain.dmesg.join('\n'), /handling a change of data\/x: EIO: a bug/);
  });

  test('a watch beyond the quota is refused, and forgotten', async () => {
    const { host, domU } = await scene(1, { host: { xenstored: { quotas: { watches: 4 } } } });
    const { xs } = domU.xenbus;
    const add = (name: string) => host.run(xs.registerWatch({ node: `data/${name}`, callback: () => {} }));
    await add('1');
    await add('2');
    await assert.rejects(add('3'), { code: 'ENOSPC' });
    assert.equal([...xs.watches].length, 4);
  });

  test('will_handle drops events before they are queued', async () => {
    const { host, domU } = await scene(1);
    const { xs } = domU.xenbus;
    const seen: string[] = [];
    await host.run(
      xs.registerWatch({
        node: 'data',
        willHandle: path => path.endsWith('/yes'),
        callback: path => {
          seen.push(path);
        },
      }),
    );
    await host.run(Promise.all([xs.write('data/no', 1), xs.write('data/yes', 1)]));
    await host.settle();
    assert.deepEqual(seen, ['data/yes']);
  });

  test('thirty devices come and go, and nothing stays', async () => {
    const s = await scene(2);
    const { host, dom0, domU } = s;
    await connect(s);
    await host.unplug(s.vdev);
    const before = [host.holdings(dom0), host.holdings(domU)];
    const devices = Array.from({ length: 30 }, (_, i) => ({ ...s.vdev, devid: i + 1 }));
    for (const device of devices) await host.plug(device);
    const connected = () =>
      [...domU.xenbus.frontend.devices.values()].filter(
        ({ state, otherendState }) => state === XenbusState.Connected && otherendState === state,
      ).length;
    await host.until(() => connected() === 30);
    assert.equal(host.holdings(domU).grants, 30);
    for (const device of devices) await host.removeDirs(device);
    await host.until(() => domU.xenbus.devices.length === 0 && dom0.xenbus.devices.length === 0);
    await host.until(() => (s.front.reclaimer?.pending ?? 0) === 0);
    await host.settle();
    assert.deepEqual([host.holdings(dom0), host.holdings(domU)], before);
    assert.ok(frontOf(s) === undefined);
  });
});
