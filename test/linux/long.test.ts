import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  checkTransfer,
  domain,
  NO_LONG_LINUX,
  sh,
  startHost,
  startIn,
  UNLOAD_FRONTEND,
} from '../support/linux.js';

describe('Linux guests, at length', { skip: NO_LONG_LINUX }, () => {
  test('TCP both ways with a namespace of this machine', async t => {
    const host = await startHost(t);
    const space = await host.create(domain('space', 'guest = "netns"', "vif = ['ip=10.0.0.1']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2']"));
    assert.deepEqual(await host.settled(space), []);
    assert.deepEqual(await host.settled(linux), []);
    await startIn(t, space, 'iperf3', '-s', '--forceflush');
    for (const direction of ['', '-R']) {
      const json = await sh(linux, `iperf3 -J ${direction} -c 10.0.0.1 -n 4M`);
      checkTransfer(json, 4 << 20, `iperf3 ${direction}`);
    }
    const { stats } = host.dom0.net.byName('vif2.0')!;
    assert.ok(stats.rxBytes / stats.rxPackets > 1600, 'segments come whole from the guest');
  });

  test('frames of 9000 bytes, and a frontend whose module is reloaded', async t => {
    const host = await startHost(t);
    await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1,mtu=9000']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2,mtu=9000']"));
    assert.deepEqual(await host.settled(linux), []);
    await sh(linux, 'ip link set eth0 mtu 9000');
    assert.match(await sh(linux, 'ping -c 5 -i 0.1 -s 8900 10.0.0.1'), / 0% packet loss/);
    for (let i = 0; i < 2; i++) {
      await sh(linux, `${UNLOAD_FRONTEND} && modprobe xen-netfront`);
      await sh(linux, 'until ip addr show eth0 | grep -q 10.0.0.2; do sleep 0.1; done');
      assert.match(await sh(linux, 'ping -c 3 -i 0.1 10.0.0.1'), / 0% packet loss/);
    }
  });

  test('TCP both ways between one guest’s frontend and another’s backend', async t => {
    const host = await startHost(t);
    const driver = await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
    const linux = await host.create(
      domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2,backend=driver']"),
    );
    assert.deepEqual(await host.settled(linux), []);
    await sh(driver, 'ip addr add 10.0.0.1/24 dev xenbr0; iperf3 -s -D; sleep 1');
    for (const direction of ['', '-R']) {
      const json = await sh(linux, `iperf3 -J ${direction} -c 10.0.0.1 -n 8M`);
      checkTransfer(json, 8 << 20, `iperf3 ${direction}`);
    }
  });

  test('two guests behind one driver domain, one of them ours', async t => {
    const host = await startHost(t);
    await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
    const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1,backend=driver']"));
    const linux = await host.create(
      domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2,backend=driver']"),
    );
    assert.deepEqual(await host.settled(linux), []);
    assert.match(await sh(linux, 'ping -c 5 -i 0.1 10.0.0.1'), / 0% packet loss/);
    assert.ok((await echo.booted!.guest.ping!('10.0.0.2', 10_000)) >= 0);
  });
});
