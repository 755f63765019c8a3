import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/xenbus-state.js';
import { SimHost } from '../support/sim-host.js';
import { ECHO, EchoBack, EchoFront } from './echo-device.js';
import { isConnected, ping, type Scene, SEEDS } from './scene.js';

/** As `scene`, with the backend in a domain of its own that may see no more than any guest. */
async function driverDomainScene(seed: number): Promise<Scene> {
  const host = await SimHost.boot(seed);
  const domU = await host.bootDomain({ name: 'guest' });
  const dom0 = await host.bootDomain({ name: 'driver' });
  const vdev = { type: ECHO, front: domU, back: dom0 };
  const s = { host, dom0, domU, front: new EchoFront(), back: new EchoBack(), vdev };
  await host.run(dom0.xenbus.registerBackend(s.back));
  await host.run(domU.xenbus.registerFrontend(s.front));
  return s;
}

describe('a backend in a driver domain', () => {
  for (const seed of SEEDS) {
    test(`connects, closes and leaves nothing (seed ${seed})`, async () => {
      const s = await driverDomainScene(seed);
      const before = [s.host.holdings(s.dom0), s.host.holdings(s.domU)];
      await s.host.plug(s.vdev);
      await s.host.until(() => isConnected(s));
      await ping(s, 1);
      assert.equal(await s.host.unplug(s.vdev), true);
      assert.deepEqual([s.host.holdings(s.dom0), s.host.holdings(s.domU)], before);
    });

    test(`that dies: the frontend sees it gone, and takes the next one (seed ${seed})`, async () => {
      const s = await driverDomainScene(seed);
      const { host, domU } = s;
      const before = host.holdings(domU);
      await host.plug(s.vdev);
      await host.until(() => isConnected(s));
      const device = () => domU.xenbus.frontend.devices.get(`device/${ECHO}/0`)!;
      const first = device();
      host.hypervisor.destroyDomain(s.dom0.domain);
      await host.until(() => first.otherendState === XenbusState.Unknown);
      assert.match(String(first.waitingFor()), /^waiting for the backend \(domain 2\) to appear at /);
      const dom0 = await host.bootDomain({ name: 'driver' });
      await host.run(dom0.xenbus.registerBackend(new EchoBack()));
      const next = { ...s, dom0, vdev: { ...s.vdev, back: dom0 } };
      await host.plug(next.vdev);
      await host.until(() => isConnected(next));
      assert.equal(device().otherendId, dom0.domid);
      await ping(next, 2);
      await host.unplug(next.vdev);
      await host.until(() => (s.front.reclaimer?.pending ?? 0) === 0);
      assert.deepEqual(host.holdings(domU), before);
    });
  }
});
