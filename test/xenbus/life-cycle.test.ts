import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/xenbus-state.js';
import { type XenbusDevice, XenbusError } from '../../src/xenbus/index.js';
import { SimHost } from '../support/sim-host.js';
import { ECHO, EchoBack, EchoFront } from './echo-device.js';
import {
  backOf,
  connect,
  frontOf,
  holdings,
  isConnected,
  ping,
  register,
  type Scene,
  SEEDS,
  scene,
} from './scene.js';

const S = XenbusState;

function pathsOf({ host, vdev }: Scene): { front: string; back: string } {
  return { front: host.frontDir(vdev), back: host.backDir(vdev) };
}

describe('other ends that are not there', () => {
  test('a backend directory that does not exist is fatal: error node, Closing, Closed', async () => {
    const s = await scene(1);
    const { host, dom0, domU } = s;
    await register(s);
    // Domain 0 may read everything, so its device learns that there is nothing.
    await host.run(
      host.toolstack.transaction(async t => {
        await t.write('/local/domain/0/backend/echo/1/0/frontend', '/local/domain/1/device/echo/0');
        await t.write('/local/domain/0/backend/echo/1/0/frontend-id', '1');
        await t.write('/local/domain/0/backend/echo/1/0/state', '1');
      }),
    );
    await host.until(() => backOf(s)?.state === S.Closed);
    assert.equal(
      await host.read('/local/domain/0/error/backend/echo/1/0/error'),
      '2 reading other end details from backend/echo/1/0',
    );
    assert.equal(await host.read('/local/domain/0/backend/echo/1/0/state'), '6');
    assert.deepEqual(s.back.calls, []);
    assert.equal(backOf(s).waitingFor(), 'closed; waiting to be removed');
    assert.deepEqual([domU.xenbus.devices.length, dom0.xenbus.devices.length], [0, 1]);
  });

  for (const [nodes, errno] of [
    [{ 'backend-id': '0' }, 2],
    [{ backend: '/local/domain/0/backend/echo/1/0' }, 2],
    [{ 'backend-id': '-1', backend: '/local/domain/0/backend/echo/1/0' }, 22],
    [{ 'backend-id': '99999', backend: '/local/domain/0/backend/echo/1/0' }, 22],
    [{ 'backend-id': '0', backend: '' }, 2],
    [{ 'backend-id': '0', backend: 'backend/echo/1/0' }, 2],
  ] as const) {
    test(`a frontend directory with only ${JSON.stringify(nodes)} is fatal with errno ${errno}`, async () => {
      const s = await scene(1);
      const { host } = s;
      await register(s);
      const home = '/local/domain/1/device/echo/0';
      await host.run(
        host.toolstack.transaction(async t => {
          await t.mkdir(home);
          await t.setPerms(home, ['n1', 'r0']);
          for (const [name, value] of Object.entries({ ...nodes, state: '1' })) {
            await t.write(`${home}/${name}`, value);
          }
        }),
      );
      await host.until(() => frontOf(s)?.state === S.Closed);
      assert.equal(
        await host.read('/local/domain/1/error/device/echo/0/error'),
        `${errno} reading other end details from device/echo/0`,
      );
      assert.deepEqual(s.front.calls, []);
      await host.run(host.toolstack.rm(home));
      await host.until(() => frontOf(s) === undefined);
    });
  }

  for (const seed of SEEDS) {
    test(`a frontend that starts before its backend's directory is readable waits for it (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, vdev } = s;
      await register(s);
      const base = holdings(s);
      const back = host.backDir(vdev);
      await host.plug(vdev);
      await host.run(host.toolstack.setPerms(back, ['n0']));
      await host.removeDirs(vdev);
      await host.run(
        host.toolstack.transaction(async t => {
          await t.mkdir(back);
          await t.setPerms(back, ['n0']);
        }),
      );
      const front = host.frontDir(vdev);
      await host.run(
        host.toolstack.transaction(async t => {
          await t.mkdir(front);
          await t.setPerms(front, ['n1', 'r0']);
          await t.write(`${front}/backend`, back);
          await t.write(`${front}/backend-id`, '0');
          await t.write(`${front}/state`, '1');
        }),
      );
      await host.until(() => frontOf(s) !== undefined);
      await host.scheduler.runFor(20_000);
      assert.equal(frontOf(s).waitingFor(), `waiting for the backend's directory ${back} to become readable`);
      assert.equal(await host.read(`${front}/state`), '1');
      assert.equal(frontOf(s).driver, null);
      await host.write(`${back}/readable`, '');
      await host.run(host.toolstack.setPerms(`${back}/readable`, ['n0', 'r1']));
      const pending = await host.eventsAfterFlood(s.domU, `${back}/readable`);
      assert.ok(pending <= 2, `${pending} events waited`);
      await host.run(
        host.toolstack.transaction(async t => {
          await t.setPerms(back, ['n0', 'r1']);
          await t.write(`${back}/frontend`, front);
          await t.write(`${back}/frontend-id`, '1');
          await t.write(`${back}/state`, '1');
          for (const node of ['frontend', 'frontend-id', 'state'])
            await t.setPerms(`${back}/${node}`, ['n0', 'r1']);
        }),
      );
      await host.until(() => isConnected(s));
      await ping(s, 3);
      await host.unplug(vdev);
      assert.deepEqual(holdings(s), base);
    });
  }

  test('a frontend gives up on an unreadable backend after 300 s', async () => {
    const s = await scene(1);
    const { host, vdev } = s;
    await host.run(s.domU.xenbus.registerFrontend(s.front));
    const base = holdings(s);
    await host.plug(vdev);
    await host.run(host.toolstack.rm(host.backDir(vdev)));
    await host.write('/local/domain/1/device/echo/0/state', '1');
    await host.removeDirs(vdev);
    const front = host.frontDir(vdev);
    await host.run(
      host.toolstack.transaction(async t => {
        await t.mkdir(front);
        await t.setPerms(front, ['n1', 'r0']);
        await t.write(`${front}/backend`, host.backDir(vdev));
        await t.write(`${front}/backend-id`, '0');
        await t.write(`${front}/state`, '1');
      }),
    );
    await host.until(() => frontOf(s)?.state === S.Closed, 400_000);
    assert.equal(
      await host.read('/local/domain/1/error/device/echo/0/error'),
      '13 reading other end details from device/echo/0',
    );
    assert.deepEqual(holdings(s).domU.watches, base.domU.watches);
  });
});

describe('drivers that fail', () => {
  test('a probe that throws: error node, Closed, and the next driver may try', async () => {
    class Failing extends EchoFront {
      override readonly name = 'failing';
      override probe(): void {
        throw new XenbusError('ENOMEM', 'no memory for the device');
      }
    }
    const s = await scene(1, { front: new Failing() });
    const { host, domU, vdev } = s;
    await register(s);
    const base = holdings(s);
    await host.plug(vdev);
    await host.until(() => frontOf(s)?.state === S.Closed);
    assert.equal(await host.read('/local/domain/1/error/device/echo/0/error'), '12 probing device/echo/0');
    assert.equal(await host.read('/local/domain/1/device/echo/0/state'), '6');
    assert.equal(frontOf(s).driver, null);
    assert.equal(holdings(s).domU.watches, base.domU.watches);
    assert.ok(domU.domain.dmesg.some(line => line.includes('no memory for the device')));
  });

  test('otherendChanged that throws closes that device alone', async () => {
    class Failing extends EchoFront {
      override otherendChanged(device: XenbusDevice, state: XenbusState): Promise<void> {
        if (state === S.InitWait) throw new Error('a bug');
        return super.otherendChanged(device, state);
      }
    }
    const s = await scene(1, { front: new Failing() });
    const { host, vdev } = s;
    await register(s);
    await host.plug(vdev);
    await host.until(() => frontOf(s)?.state === S.Closing);
    assert.match((await host.read('/local/domain/1/error/device/echo/0/error'))!, /^5 handling a change of /);
    assert.equal(await host.unplug(vdev), true);
  });

  test('an error node that may not be written, and a state that may not, end in the log and not in a loop', async () => {
    const s = await scene(1);
    const { host, domU, vdev } = s;
    await connect(s);
    const front = host.frontDir(vdev);
    await host.run(host.toolstack.setPerms(`${front}/state`, ['n0', 'r1']));
    await host.run(host.toolstack.setPerms('/local/domain/1/error', ['n0']));
    const device = frontOf(s);
    assert.equal(await host.run(device.switchState(S.Reconfiguring)), false);
    await host.run(device.fatal(new XenbusError('EIO', 'the ring broke'), 'talking'));
    assert.equal(device.state, S.Connected);
    assert.equal(await host.read(`${front}/state`), '4');
    const log = domU.domain.dmesg.join('\n');
    assert.match(log, /the ring broke/);
    assert.match(log, /cannot write error\/device\/echo\/0\/error/);
    assert.ok(domU.domain.dmesg.length < 20, log);
  });

  test('grants, ports and mappings that fail are fatal, and leave nothing behind', async () => {
    const s = await scene(1);
    const { host, dom0, domU, vdev } = s;
    await register(s);
    s.front.isDeaf = true;
    await host.plug(vdev);
    await host.until(() => frontOf(s) !== undefined && backOf(s)?.state === S.InitWait);
    await host.settle();
    const before = holdings(s);
    await assert.rejects(host.run(backOf(s).mapRing([4000, 4001])));
    assert.equal(backOf(s).state, S.Closing);
    assert.match(
      (await host.read('/local/domain/0/error/backend/echo/1/0/error'))!,
      /mapping in shared page 4000 from domain 1$/,
    );
    const page = domU.platform.memory.allocPage();
    const grefs = await host.run(frontOf(s).grantRing([page, page]));
    assert.equal(grefs.length, 2);
    assert.equal(frontOf(s).ungrantRing(grefs), true);
    domU.platform.memory.freePage(page);
    const ports: number[] = [];
    await assert.rejects(async () => {
      for (;;) ports.push(await host.run(frontOf(s).allocEvtchn()));
    });
    assert.equal(frontOf(s).state, S.Closing);
    for (const port of ports) frontOf(s).freeEvtchn(port);
    assert.deepEqual(holdings(s), before);
    assert.equal(dom0.platform.grants.mapped, before.dom0.mappings);
  });
});

describe('removal', () => {
  const stages: Record<string, (s: Scene) => Promise<void>> = {
    'before any driver is there': async s => {
      await s.host.plug(s.vdev);
    },
    'while the frontend has no driver': async s => {
      await s.host.run(s.dom0.xenbus.registerBackend(s.back));
      await s.host.plug(s.vdev);
      await s.host.until(() => backOf(s)?.state === S.InitWait);
    },
    'while the frontend does not answer InitWait': async s => {
      s.front.isDeaf = true;
      await register(s);
      await s.host.plug(s.vdev);
      await s.host.until(() => frontOf(s)?.otherendState === S.InitWait);
    },
    'in the middle of the handshake': async s => {
      await register(s);
      await s.host.plug(s.vdev);
      await s.host.until(() => frontOf(s)?.driverData !== undefined);
    },
    'when connected': async s => {
      await connect(s);
    },
    'while closing': async s => {
      await connect(s);
      s.front.isDeaf = true;
      await s.host.write(`${pathsOf(s).back}/state`, S.Closing);
    },
    'when closed': async s => {
      await connect(s);
      await s.host.run(frontOf(s).frontendClosed());
      await s.host.until(() => backOf(s).state === S.Closed);
    },
  };
  for (const [when, prepare] of Object.entries(stages)) {
    for (const seed of SEEDS.slice(0, 3)) {
      test(`both directories vanish ${when}: both ends let go (seed ${seed})`, async () => {
        const s = await scene(seed);
        await prepare(s);
        await s.host.removeDirs(s.vdev);
        await s.host.until(() => frontOf(s) === undefined && backOf(s) === undefined);
        await s.host.until(() => (s.front.reclaimer?.pending ?? 0) === 0);
        await s.host.settle();
        const { dom0, domU } = holdings(s);
        assert.deepEqual(
          [dom0.mappings, dom0.ports, domU.grants, domU.ports, domU.pages],
          // xenstored maps two rings; ports: two each of their own, three of xenstored.
          [2, 5, 0, 2, 0],
        );
        assert.deepEqual([dom0.watches, domU.watches], [2, 2]);
        for (const path of Object.values(pathsOf(s))) assert.equal(await s.host.read(path), undefined);
        // And all works again.
        s.front.isDeaf = false;
        if (!s.dom0.xenbus.backend.drivers.includes(s.back))
          await s.host.run(s.dom0.xenbus.registerBackend(s.back));
        if (!s.domU.xenbus.frontend.drivers.includes(s.front))
          await s.host.run(s.domU.xenbus.registerFrontend(s.front));
        await s.host.plug(s.vdev);
        await s.host.until(() => isConnected(s));
        await ping(s, 8);
      });
    }
  }

  for (const seed of SEEDS) {
    test(`a device unplugged and plugged again before anybody looked is a new one (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, vdev } = s;
      await connect(s);
      const old = [frontOf(s), backOf(s)];
      await host.plug(vdev);
      await host.until(() => isConnected(s) && frontOf(s) !== old[0] && backOf(s) !== old[1]);
      assert.deepEqual([old[0].gone, old[1].gone], [true, true]);
      await ping(s, 11);
      // The old page comes back when the old backend has let go.
      await host.until(() => (s.front.reclaimer?.pending ?? 0) === 0);
      assert.equal(s.domU.platform.grants.allocated, 1);
      assert.equal(s.domU.platform.memory.allocated, 1);
    });

    test(`the frontend's domain dies: the backend sees it gone and closes (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, domU, vdev } = s;
      const base = await connect(s);
      host.hypervisor.destroyDomain(domU.domain);
      // Its nodes go with it.
      await host.until(() => backOf(s).otherendState === S.Unknown && backOf(s).state === S.Closed);
      await host.removeDirs(vdev);
      await host.until(() => backOf(s) === undefined);
      await host.settle();
      const { mappings, ports, watches } = host.holdings(s.dom0);
      // Without the ring of the dead.
      assert.deepEqual(
        { mappings, ports, watches },
        { mappings: base.dom0.mappings - 1, ports: base.dom0.ports - 1, watches: base.dom0.watches },
      );
      assert.equal(host.hypervisor.dyingDomains.length, 0);
    });
  }

  test('a directory that the toolstack removed does not come to life by a late state', async () => {
    const s = await scene(1);
    const { host, vdev } = s;
    await connect(s);
    const device = frontOf(s);
    const removed = host.toolstack.rm(host.frontDir(vdev));
    const late = device.switchState(S.Closing);
    await host.run(removed);
    await host.run(late);
    await host.settle();
    assert.equal(await host.read(`${host.frontDir(vdev)}/state`), undefined);
    assert.equal(await host.run(device.switchState(S.Closed)), false);
    assert.equal(await host.read(host.frontDir(vdev)), undefined);
  });

  test("the peer's directory may be gone or unreadable: its state is Unknown", async () => {
    const s = await scene(1);
    const { host, vdev } = s;
    await connect(s);
    await host.run(host.toolstack.setPerms(`${host.backDir(vdev)}/state`, ['n0']));
    assert.equal(await host.run(frontOf(s).readOtherendState()), S.Unknown);
    await host.run(host.toolstack.rm(host.frontDir(vdev)));
    await host.until(() => backOf(s).state === S.Closed);
    assert.equal(backOf(s).otherendState, S.Unknown);
  });
});

describe('drivers that come and go', () => {
  for (const seed of SEEDS) {
    test(`a backend that allows rebind is replaced under a live frontend (seed ${seed})`, async () => {
      const s = await scene(seed, { back: new EchoBack(true) });
      const { host, dom0 } = s;
      await connect(s);
      await host.run(dom0.xenbus.unregisterDriver(s.back));
      await host.settle();
      assert.equal(backOf(s).driver, null);
      // Not closed: the frontend knows nothing of it.
      assert.equal(await host.read(`${pathsOf(s).back}/state`), '4');
      assert.equal(frontOf(s).state, S.Connected);
      assert.equal(dom0.platform.grants.mapped, 2);
      await host.run(dom0.xenbus.registerBackend(new EchoBack(true)));
      await host.until(() => isConnected(s));
      await ping(s, 20);
    });

    test(`a backend that does not allow it closes the device (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, dom0 } = s;
      const base = await connect(s);
      await host.run(dom0.xenbus.unregisterDriver(s.back));
      await host.until(() => frontOf(s).state === S.Closed);
      assert.equal(await host.read(`${pathsOf(s).back}/state`), '6');
      await host.removeDirs(s.vdev);
      assert.deepEqual(holdings(s), base);
    });

    test(`an allowed rebind does not stop the toolstack from closing (seed ${seed})`, async () => {
      const s = await scene(seed, { back: new EchoBack(true) });
      const { host, dom0 } = s;
      await connect(s);
      s.front.isDeaf = true;
      await host.write(`${pathsOf(s).back}/state`, S.Closing);
      await host.run(dom0.xenbus.unregisterDriver(s.back));
      assert.equal(await host.read(`${pathsOf(s).back}/state`), '6');
    });

    test(`a frontend driver that goes closes its devices with their backends first (seed ${seed})`, async () => {
      const s = await scene(seed);
      const { host, domU } = s;
      const base = await connect(s);
      await host.run(domU.xenbus.unregisterDriver(s.front));
      assert.deepEqual(s.front.calls.at(-1), 'remove echo-0');
      assert.equal(frontOf(s).state, S.Closed);
      await host.until(() => backOf(s).state === S.Closed);
      assert.equal(domU.platform.grants.allocated, 0);
      // Again, and the backend goes along: Closed, InitWait, Connected.
      await host.run(domU.xenbus.registerFrontend(s.front));
      await host.run(frontOf(s).switchState(S.Initialising));
      await host.until(() => isConnected(s));
      await ping(s, 30);
      await host.unplug(s.vdev);
      assert.deepEqual(holdings(s), base);
    });
  }

  test('a shutdown closes connected frontends, and waits 5 s for a backend that does not answer', async () => {
    const s = await scene(1);
    const { host, domU, dom0 } = s;
    await connect(s);
    await host.run(domU.xenbus.shutdown());
    assert.equal(frontOf(s).state, S.Closed);
    assert.deepEqual(
      domU.domain.dmesg.filter(line => line.includes('timeout')),
      [],
    );

    const stuck = await scene(1);
    await connect(stuck);
    stuck.back.otherendChanged = async () => {};
    const start = stuck.host.scheduler.now();
    await stuck.host.run(stuck.domU.xenbus.shutdown());
    const took = stuck.host.scheduler.now() - start;
    assert.ok(took >= 5000 && took < 5100, `${took} ms`);
    assert.equal(frontOf(stuck).state, S.Closing);
    assert.match(stuck.domU.domain.dmesg.join('\n'), /device\/echo\/0: timeout closing device/);
    assert.equal(dom0.xenbus.isShuttingDown, false);
  });

  test('a boot waits for devices: 30 s for all, 300 s for essential ones, and says for what', async () => {
    const s = await scene(1);
    const { host, domU } = s;
    s.front.isDeaf = true;
    await register(s);
    const left = async () => (await host.run(domU.xenbus.waitForDevices(), 400_000)).map(({ id }) => id);
    assert.deepEqual(await left(), []);
    await host.plug(s.vdev);
    await host.until(() => frontOf(s) !== undefined);
    let start = host.scheduler.now();
    assert.deepEqual(await left(), ['echo-0']);
    assert.equal(Math.round((host.scheduler.now() - start) / 1000), 300);
    assert.match(domU.domain.dmesg.join('\n'), /xenbus: 5 s: device\/echo\/0: waiting for/);
    s.front.notEssential = true;
    start = host.scheduler.now();
    assert.deepEqual(await left(), ['echo-0']);
    assert.equal(Math.round((host.scheduler.now() - start) / 1000), 30);
  });

  test('the kernel of domain 0 may be there before xenstored is', async () => {
    const host = new SimHost(3);
    await host.run(host.dom0.xenbus.init());
    const back = new EchoBack();
    await host.run(host.dom0.xenbus.registerBackend(back));
    await host.run(host.dom0.xenbus.ready);
    assert.equal(host.dom0.xenbus.backend.drivers[0].name, back.name);
    await assert.rejects(host.dom0.xenbus.init(), { code: 'EBUSY' });
    assert.equal(host.dom0.xenbus.devices.length, 0);
    assert.equal(ECHO, back.ids[0]);
  });
});
