import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { deflateSync, inflateSync } from 'node:zlib';
import { type DomainImage, restoreDomain, saveDomain } from '../../src/toolstack/save.js';
import { parseVif } from '../../src/toolstack/vif-config.js';
import { buildFrame } from '../net/frames.js';
import { domain, holdings, NO_LINUX, restarted, sh, startHost } from '../support/linux.js';
import { packetFrom, partial } from '../support/packets.js';

const MAC = 'mac=00:16:3e:00:00:01';

describe('Linux guests', { skip: NO_LINUX }, () => {
  test('their xen-netfront and our netback carry traffic both ways', async t => {
    const host = await startHost(t);
    const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', `vif = ['ip=10.0.0.2,${MAC}']`));
    assert.deepEqual(await host.settled(linux), []);
    assert.match(await sh(linux, 'cat /sys/hypervisor/type; hostname'), /^xen\nlinux\n$/);
    assert.match(await sh(linux, 'cat /sys/class/net/eth0/address'), /^00:16:3e:00:00:01$/m);
    assert.match(await sh(linux, 'ethtool -i eth0'), /^driver: vif$/m);
    assert.match(await sh(linux, 'ping -c 5 -i 0.1 10.0.0.1'), / 0% packet loss/);
    // More than one slot of the ring: the frame's data cross a page.
    assert.match(await sh(linux, 'ping -c 8 -i 0.1 -s 1400 10.0.0.1'), / 0% packet loss/);
    assert.ok((await echo.booted!.guest.ping!('10.0.0.2', 10_000)) >= 0);
    const features = await sh(linux, 'ethtool -k eth0');
    for (const on of ['scatter-gather', 'tcp-segmentation-offload', 'tx-checksum-ipv4']) {
      assert.match(features, new RegExp(`${on}: on`));
    }
  });

  test('their xen-netfront takes what has a VLAN tag, and blank checksums of what has none', async t => {
    const host = await startHost(t);
    const linux = await host.create(domain('linux', 'guest = "linux"', `vif = ['ip=10.0.0.2,${MAC}']`));
    assert.deepEqual(await host.settled(linux), []);
    const vif = host.dom0.net.byName('vif1.0')!;
    for (const vlan of [undefined, 7]) {
      for (const version of [4, 6] as const) {
        const destination = [0, 0x16, 0x3e, 0, 0, 1];
        const bytes = buildFrame({ destination, vlan, version, udp: true, payload: new Uint8Array(300) });
        for (let i = 0; i < 100; i++) vif.xmit(partial(packetFrom(vif, bytes), vif));
      }
    }
    const counters = '/sys/class/net/eth0/statistics';
    await sh(linux, `until [ $(cat ${counters}/rx_packets) -ge 400 ]; do sleep 0.1; done`);
    assert.match(await sh(linux, `cat ${counters}/rx_errors`), /^0$/m);
  });

  test('our netfront and their xen-netback carry traffic both ways', async t => {
    const host = await startHost(t);
    const driver = await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
    const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1,backend=driver']"));
    assert.deepEqual(await host.settled(echo), []);
    await sh(driver, 'ip addr add 10.0.0.2/24 dev xenbr0');
    assert.match(await sh(driver, 'ping -c 5 -i 0.1 10.0.0.1'), / 0% packet loss/);
    assert.match(await sh(driver, 'ping -c 8 -i 0.1 -s 1400 10.0.0.1'), / 0% packet loss/);
    assert.ok((await echo.booted!.guest.ping!('10.0.0.2', 10_000)) >= 0);
    await assert.rejects(saveDomain(host, driver), /cannot be saved while it serves vifs, now of echo/);
    await host.detachVif(echo, 0);
    await sh(driver, 'while ls /sys/class/net | grep -q ^vif; do sleep 0.1; done');
  });

  test('vifs come and go whose backend is in a driver domain, which may go, too', async t => {
    const host = await startHost(t);
    const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']"));
    await host.settled(echo);
    // Notes of errors stay with their domain.
    const held = () => ({ ...holdings(host), nodes: 0 });
    const alone = held();
    let driver = await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
    await driver.booted!.guest.settled();
    const vif = (more: string) => parseVif(`devid=1,backend=driver,${more}`);
    // The first vif makes what stays, as the bridge.
    await host.attachVif(echo, vif('ip=10.0.1.1'));
    assert.deepEqual(await host.settled(echo), []);
    assert.match(
      await sh(driver, 'ip addr add 10.0.1.2/24 dev xenbr0; ping -c 2 -i 0.1 10.0.1.1'),
      / 0% pack/,
    );
    await host.detachVif(echo, 1);
    const gone = 'while ls /sys/class/net | grep -q ^vif; do sleep 0.1; done';
    await sh(driver, gone);
    const before = held();

    await assert.rejects(
      host.attachVif(echo, vif('antispoof')),
      /EOPNOTSUPP: antispoof: the backend in driver is not ours to set a filter in$/,
    );
    for (const pause of [0, 20]) {
      const refused = assert.rejects(host.attachVif(echo, vif('')), /ENODEV: vif 1 .* was detached while it/);
      await new Promise(resolve => setTimeout(resolve, pause));
      const begun = performance.now();
      await host.detachVif(echo, 1);
      await refused;
      assert.ok(performance.now() - begun < 8000, `after ${pause} ms`);
    }
    await sh(driver, gone);
    assert.deepEqual(held(), before);
    assert.equal(await host.xs.exists(`/local/domain/${driver.domain.domid}/backend`), false);

    await host.attachVif(echo, vif('ip=10.0.1.1'));
    assert.deepEqual(await host.settled(echo), []);
    await host.destroy(driver);
    assert.match(host.waitingFor(echo, echo.vifs.get(1)!)!, /waiting for the backend/);
    await host.detachVif(echo, 1);
    driver = await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
    const failed = assert.rejects(
      host.attachVif(echo, vif('')),
      /ENODEV: vif 1\.1: its backend's domain, driver, is gone$/,
    );
    while ((await host.xs.readIfExists(echo.vifs.get(1)!.paths.backend)) === undefined);
    await host.destroy(driver);
    await failed;
    assert.deepEqual(held(), alone);
  });

  test('one guest’s xen-netfront and another’s xen-netback carry traffic, grants mapped across', async t => {
    const host = await startHost(t);
    const driver = await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
    const linux = await host.create(
      domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.1,backend=driver']"),
    );
    assert.deepEqual(await host.settled(linux), []);
    await sh(driver, 'ip addr add 10.0.0.2/24 dev xenbr0');
    assert.match(await sh(linux, 'ping -c 5 -i 0.1 10.0.0.2'), / 0% packet loss/);
    await sh(driver, 'dd if=/dev/urandom of=/www/file bs=64k count=4 2>/dev/null; httpd -h /www');
    const sum = await sh(driver, 'sha256sum < /www/file');
    assert.equal(await sh(linux, 'wget -q -O - http://10.0.0.2/file | sha256sum'), sum);
  });

  test('vifs come and go while one runs', async t => {
    const host = await startHost(t);
    const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2']"));
    await host.settled(linux);
    const before = holdings(host);
    const devid = await host.attachVif(linux, parseVif('ip=10.0.1.2'));
    const other = await host.attachVif(echo, parseVif('ip=10.0.1.1'));
    await host.settled(linux);
    await sh(linux, 'until ip addr show eth1 | grep -q 10.0.1.2; do sleep 0.1; done');
    assert.match(await sh(linux, 'ping -c 2 -i 0.1 10.0.1.1'), / 0% packet loss/);
    await host.detachVif(linux, devid);
    await host.detachVif(echo, other);
    await sh(linux, 'while [ -e /sys/class/net/eth1 ]; do sleep 0.1; done');
    assert.match(await sh(linux, 'ping -c 2 -i 0.1 10.0.0.1'), / 0% packet loss/);
    assert.deepEqual(holdings(host), before);
  });

  test('one that is saved goes on where it was, with another domid and the same connections', async t => {
    const host = await startHost(t);
    const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']"));
    const config = domain('linux', 'guest = "linux"', `vif = ['ip=10.0.0.2,${MAC}']`);
    const first = await host.create(config);
    await host.settled(first);
    await sh(first, 'echo kept > /tmp/file');
    await host.suspend(first);
    assert.equal(first.domain.shutdownReason, 'suspend');
    // As an HVM guest it is told that the suspend was called off, whatever was asked for.
    await host.resume(first, { cancelled: false });
    assert.match(await sh(first, 'ping -c 2 -i 0.1 10.0.0.1'), / 0% packet loss/);
    const image = await saveDomain(host, first);
    await host.destroy(first);
    const second = await restoreDomain(host, JSON.parse(JSON.stringify(image)) as DomainImage);
    assert.notEqual(second.domain.domid, first.domain.domid);
    assert.deepEqual(await host.settled(second), []);
    assert.equal(await sh(second, 'cat /tmp/file'), 'kept\n');
    assert.match(await sh(second, 'ping -c 3 -i 0.1 10.0.0.1'), / 0% packet loss/);
    assert.ok((await echo.booted!.guest.ping!('10.0.0.2', 10_000)) >= 0);

    await host.destroy(second);
    const before = holdings(host);
    const guest = image.guest as { machine: string };
    const state = inflateSync(Buffer.from(guest.machine, 'base64'));
    const machine = deflateSync(state.subarray(0, state.length / 2), { level: 1 }).toString('base64');
    await assert.rejects(
      restoreDomain(host, { ...image, guest: { ...guest, machine } }),
      /^LinuxGuestError: EINVAL: the saved guest: machine: it is damaged \(/,
    );
    assert.deepEqual(holdings(host), before);
  });

  test('one that powers off, reboots, crashes or is destroyed in mid-transfer leaves nothing', async t => {
    const host = await startHost(t);
    await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']"));
    const config = domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2']");
    const start = async () => {
      const linux = await host.create(config);
      await host.settled(linux);
      return linux;
    };
    await host.destroy(await start());
    const before = holdings(host);

    await host.shutdown(await start());
    assert.deepEqual(holdings(host), before, 'after power-off');

    const busy = await start();
    await sh(busy, '(while :; do ping -c 1000 -i 0.002 -s 1400 10.0.0.1; done > /dev/null 2>&1 &); sleep 1');
    await host.destroy(busy);
    assert.deepEqual(holdings(host), before, 'after being destroyed');

    // Without xen_legacy_crash a panic resets an HVM guest: the toolstack starts it again.
    const crashing = await start();
    crashing.booted!.guest.console!.type('echo c > /proc/sysrq-trigger\n');
    const again = await restarted(host, crashing);
    assert.equal(crashing.domain.shutdownReason, 'reboot');
    await host.settled(again);
    assert.match(await sh(again, 'ping -c 2 -i 0.1 10.0.0.1'), / 0% packet loss/);
    await host.destroy(again);
    assert.deepEqual(holdings(host), before, 'after a crash');
  });
});
