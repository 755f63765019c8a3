import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { formatXenbusTrace } from '../../src/xenbus/index.js';
import type { SimKernel } from '../support/sim-host.js';
import {
  backOf,
  connect,
  frontOf,
  holdings,
  isConnected,
  ping,
  register,
  SEEDS,
  scene,
  story,
} from './scene.js';

describe('a device, from module init to removal', () => {
  test('the bus comes up in the order of xenbus_probe_init', async () => {
    const { dom0, domU } = await scene(1);
    const steps = (kernel: SimKernel) =>
      kernel.trace.filter(({ kind }) => kind === 'step' || kind === 'watch').map(formatXenbusTrace);
    assert.deepEqual(steps(domU), [
      'd1 xenbus_probe_init',
      'd1 bus xen (frontend) registered',
      'd1 bus xen-backend registered',
      'd1 xs_init',
      'd1 xb_init_comms',
      'd1 task xenwatch',
      'd1 task xenbus',
      'd1 xenstored is there',
      'd1 watch device',
      'd1 watch backend',
      'd1 xenbus_probe',
    ]);
    assert.deepEqual(steps(dom0).slice(-4), [
      'd0 xenstored is there',
      'd0 watch device',
      'd0 watch backend',
      'd0 xenbus_probe',
    ]);
  });

  for (const seed of SEEDS) {
    test(`probe, InitWait, ring and event channel, Connected, Closing, Closed (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, dom0, domU, vdev } = s;
      const base = await connect(s);
      assert.equal(frontOf(s).waitingFor(), null);
      assert.equal(backOf(s).waitingFor(), null);
      await ping(s, 41);

      assert.equal(await host.unplug(vdev), true);
      await host.settle();
      assert.deepEqual(holdings(s), base);
      assert.equal(domU.xenbus.devices.length + dom0.xenbus.devices.length, 0);

      // What a domain sees of the other's states depends on when it looks.
      const own = (kernel: SimKernel) => story(kernel).filter(line => !line.includes(' sees '));
      assert.deepEqual(own(domU), [
        'new frontend device echo-0',
        'probe echo-0',
        'watch /local/domain/0/backend/echo/1/0/state',
        'device/echo/0 grants ring page as gref N',
        'device/echo/0 allocates event channel N',
        'write device/echo/0/ring-ref = N',
        'write device/echo/0/event-channel = N',
        'write device/echo/0/state = 4',
        'device/echo/0 Initialising -> Connected',
        'write device/echo/0/state = 6',
        'device/echo/0 Connected -> Closed',
        'remove echo-0',
        'frontend device echo-0 gone',
      ]);
      assert.deepEqual(own(dom0), [
        'new backend device echo-1-0',
        'probe echo-1-0',
        'write backend/echo/1/0/feature-echo = 1',
        'write backend/echo/1/0/state = 2',
        'backend/echo/1/0 Initialising -> InitWait',
        'watch /local/domain/1/device/echo/0/state',
        'backend/echo/1/0 maps ring page gref N',
        'write backend/echo/1/0/state = 4',
        'backend/echo/1/0 InitWait -> Connected',
        'write backend/echo/1/0/state = 6',
        'backend/echo/1/0 Connected -> Closed',
        'remove echo-1-0',
        'backend device echo-1-0 gone',
      ]);
    });

    test(`drivers that come after the device, in either order (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, dom0, domU, vdev } = s;
      await host.plug(vdev);
      await host.settle();
      assert.equal(frontOf(s).waitingFor(), 'waiting for a frontend driver for echo in domain 1');
      assert.equal(backOf(s).waitingFor(), 'waiting for a backend driver for echo in domain 0');
      await host.run(domU.xenbus.registerFrontend(s.front));
      await host.settle();
      assert.equal(
        frontOf(s).waitingFor(),
        'waiting for the backend (domain 0) to go from Initialising to InitWait',
      );
      await host.run(dom0.xenbus.registerBackend(s.back));
      await host.until(() => isConnected(s));
      await ping(s, 7);
    });

    test(`every port, grant, page, irq and watch comes back when the bus goes down (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, dom0, domU } = s;
      const bare = host.dom0.platform.grants.mapped;
      await connect(s);
      await host.run(domU.xenbus.close());
      await host.until(() => dom0.platform.grants.mapped === bare);
      await host.settle();
      const nothing = { grants: 0, mappings: 0, pages: 0, irqs: 0, watches: 0, transactions: 0 };
      // The ports of the xenstore and console rings are the domain's.
      assert.deepEqual(host.holdings(domU), { ...nothing, ports: 2 });
      await host.run(dom0.xenbus.close());
      const { watches, irqs } = host.holdings(dom0);
      // xenstored's own: a port for each of two domains, and VIRQ_DOM_EXC.
      assert.deepEqual({ watches, irqs }, { watches: 0, irqs: 3 });
    });
  }

  test('a device type without a driver, and directories that are none, disturb nobody', async () => {
    const s = await scene(1);
    const { host, domU } = s;
    const home = `/local/domain/${domU.domid}`;
    await host.plug({ ...s.vdev, type: 'unheard-of' });
    await host.write(`${home}/device/stray`, 'x');
    await host.write(`${home}/device/vif/5/state`, '4');
    await host.write(`${home}/device/vif/6/state`, 'junk');
    await connect(s);
    assert.deepEqual([...domU.xenbus.frontend.devices.keys()], ['device/unheard-of/0', 'device/echo/0']);
  });

  test('two drivers of the same name do not go on one bus', async () => {
    const s = await scene(1);
    await register(s);
    await assert.rejects(s.host.run(s.dom0.xenbus.registerBackend(s.back)), { code: 'EEXIST' });
  });
});
