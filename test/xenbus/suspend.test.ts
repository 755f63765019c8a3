import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/xenbus-state.js';
import { XENSTORE_RING } from '../../src/abi/xs-wire.js';
import { connect, frontOf, holdings, isConnected, ping, type Scene, SEEDS, scene } from './scene.js';

/** What the toolstack does for a domain that comes back: both directories anew. */
async function restoreDirs({ host, vdev }: Scene): Promise<void> {
  await host.plug(vdev);
}

describe('suspend and resume', () => {
  for (const seed of SEEDS) {
    test(`a frontend connects again with fresh directories, over the same watches (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, domU } = s;
      await connect(s);
      await ping(s, 1);
      const tokens = [...domU.xenbus.xs.watches].map(({ token }) => token).slice(0, 2);
      const device = frontOf(s);
      await host.run(domU.xenbus.suspend());
      assert.equal(s.front.calls.at(-1), 'suspend echo-0');
      // Nothing gets through now.
      let written = false;
      const late = domU.xenbus.xs.write('data/late', 1).then(() => {
        written = true;
      });
      await restoreDirs(s);
      await host.scheduler.runFor(100);
      assert.equal(written, false);
      const { platform, domain } = domU;
      await host.run(
        host.toolstack.introduce(domU.domid, platform.memory.gfn(domain.storePage), domain.storePort),
      );
      await host.run(domU.xenbus.resume());
      await host.run(late);
      await host.until(() => isConnected(s));
      assert.ok(frontOf(s) === device);
      assert.ok(s.front.calls.includes('resume echo-0'));
      assert.deepEqual([...domU.xenbus.xs.watches].map(({ token }) => token).slice(0, 2), tokens);
      await ping(s, 2);
      await host.until(() => (s.front.reclaimer?.pending ?? 0) === 0);
      assert.equal(platform.grants.allocated, 1);
      assert.equal(host.holdings(domU).watches, 3);
    });

    test(`a backend that closes before the frontend is back does no harm (XSA-465, seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, domU, vdev } = s;
      const base = await connect(s);
      await host.run(domU.xenbus.suspend());
      await restoreDirs(s);
      await host.settle();
      await host.write(`${host.backDir(vdev)}/state`, XenbusState.Closed);
      await host.run(domU.xenbus.resume());
      await host.until(() => frontOf(s).state === XenbusState.Closed);
      await host.removeDirs(vdev);
      await host.until(() => domU.xenbus.devices.length === 0);
      await host.until(() => (s.front.reclaimer?.pending ?? 0) === 0);
      await host.settle();
      assert.deepEqual(holdings(s).domU, base.domU);
    });

    test(`a suspend that is called off changes nothing (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, domU } = s;
      await connect(s);
      const before = holdings(s);
      await host.run(domU.xenbus.suspend());
      await host.run(domU.xenbus.suspendCancel());
      assert.deepEqual(s.front.calls.slice(-2), ['suspend echo-0', 'suspendCancel echo-0']);
      await ping(s, 4);
      assert.deepEqual(holdings(s), before);
    });
  }

  test('a suspend waits for open transactions', async () => {
    const { host, domU } = await scene(1);
    let finish: () => void = () => {};
    const open = domU.xenbus.xs.transaction(async t => {
      await t.write('data/x', 1);
      await new Promise<void>(resolve => {
        finish = resolve;
      });
      await t.write('data/y', 2);
    });
    await host.settle();
    let suspended = false;
    const suspend = domU.xenbus.suspend().then(() => {
      suspended = true;
    });
    await host.scheduler.runFor(1000);
    assert.equal(suspended, false);
    finish();
    await host.run(Promise.all([open, suspend]));
    assert.equal(await host.read('/local/domain/1/data/y'), '2');
    await host.run(domU.xenbus.suspendCancel());
  });
});

describe('a store that goes away', () => {
  /** Makes the response ring hold more than it can. */
  function breakRing({ domU }: Scene): void {
    const access = domU.platform.xenstore;
    assert.ok(access.kind === 'ring');
    access.memory.store(access.address + XENSTORE_RING.RSP_PROD, 0x7fff_0000);
    domU.platform.events.notify(access.port);
  }

  for (const seed of SEEDS) {
    test(`a broken ring: requests are refused, devices stay, and a reconnect goes on (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, domU } = s;
      await connect(s);
      const before = holdings(s);
      breakRing(s);
      // What is asked meanwhile wakes the task that finds the ring broken.
      const asked = domU.xenbus.xs.read('name').catch(error => error.code);
      await host.write('/local/domain/1/device/echo/0/hello', 'x');
      await host.until(() => !domU.xenbus.xs.connected);
      assert.match(String(await host.run(asked)), /^E/);
      await assert.rejects(host.run(domU.xenbus.xs.read('name')), { code: 'ENOTCONN' });
      assert.equal(await host.run(frontOf(s).switchState(XenbusState.Closing)), false);
      await host.run(frontOf(s).fatal(new Error('something else'), 'doing something'));
      assert.match(domU.domain.dmesg.join('\n'), /connection to xenstored lost/);
      assert.equal(frontOf(s).state, XenbusState.Connected);
      await ping(s, 5);

      await host.run(domU.xenbus.reconnect());
      await host.settle();
      assert.deepEqual(holdings(s), before);
      assert.equal(await host.run(domU.xenbus.xs.read('name')), 'guest');
      await host.unplug(s.vdev);
      assert.equal(domU.xenbus.devices.length, 0);
    });
  }

  test('a bus without its store can be closed', async () => {
    const s = await scene(1);
    const { host, domU } = s;
    await connect(s);
    breakRing(s);
    await host.write('/local/domain/1/device/echo/0/hello', 'x');
    const asked = domU.xenbus.xs.read('name').catch(() => {});
    await host.run(asked);
    await host.run(domU.xenbus.close());
    assert.equal(domU.irqs.counts.length, 0);
    assert.equal(domU.platform.events.allocated, 2);
    await assert.rejects(host.run(domU.xenbus.reconnect()), { code: 'ENOTCONN' });
  });
});
