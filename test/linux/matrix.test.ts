import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, type TestContext, test } from 'node:test';
import { sendTo, startReceiver } from '../../src/cli/start-traffic.js';
import type { Host, HostedDomain } from '../../src/toolstack/host.js';
import {
  checkTransfer,
  domain,
  holdings,
  inNamespace,
  NO_LONG_LINUX,
  restarted,
  sh,
  startHost,
  startIn,
  UNLOAD_BACKEND,
  UNLOAD_FRONTEND,
} from '../support/linux.js';

const PINGED = / 0% packet loss/;
/** A guest of kind "echo" at 10.0.0.1, and a Linux guest at 10.0.0.2. */
async function echoAndLinux(
  t: TestContext,
): Promise<{ host: Host; echo: HostedDomain; linux: HostedDomain }> {
  const host = await startHost(t);
  const echo = await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']"));
  const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2']"));
  assert.deepEqual(await host.settled(linux), []);
  return { host, echo, linux };
}

/** A guest of kind "netns" at 10.0.0.1, and a Linux guest at 10.0.0.2. */
async function spaceAndLinux(
  t: TestContext,
): Promise<{ host: Host; space: HostedDomain; linux: HostedDomain }> {
  const host = await startHost(t);
  const space = await host.create(domain('space', 'guest = "netns"', "vif = ['ip=10.0.0.1']"));
  // A guest that is created again is the same neighbour.
  const linux = await host.create(
    domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2,mac=00:16:3e:00:00:02']"),
  );
  for (const hosted of [space, linux]) assert.deepEqual(await host.settled(hosted), []);
  return { host, space, linux };
}

/** Sends 2 MB by TCP from a Linux guest to a guest of kind "netns" and back, and compares checksums. */
async function sendBothWays(space: HostedDomain, linux: HostedDomain): Promise<void> {
  const { signal } = new AbortController();
  const { lines, kill } = await startReceiver(space, 5000, signal);
  await sh(linux, 'nc 10.0.0.1 5000 < /bin/busybox');
  const { sha256 } = JSON.parse((await lines.next()).value);
  kill();
  assert.equal(sha256, (await sh(linux, 'sha256sum /bin/busybox')).slice(0, 64));
  await sh(linux, 'nc -l -p 5001 > /tmp/got & until netstat -ltn | grep -q :5001; do sleep 0.1; done');
  const sent = await sendTo(space, '10.0.0.2', 5001, 2_000_000, signal);
  assert.equal((await sh(linux, 'wait; sha256sum /tmp/got')).slice(0, 64), sent.sha256);
}

/** A Linux guest that is a driver domain, at 10.0.0.2 on its bridge, and a guest at 10.0.0.1 behind it. */
async function behindDriver(
  t: TestContext,
  kind: string,
): Promise<{ host: Host; driver: HostedDomain; guest: HostedDomain }> {
  const host = await startHost(t);
  const driver = await host.create(domain('driver', 'guest = "linux"', 'driver_domain = 1'));
  const guest = await host.create(
    domain('guest', `guest = "${kind}"`, "vif = ['ip=10.0.0.1,backend=driver']"),
  );
  assert.deepEqual(await host.settled(guest), []);
  await sh(driver, 'ip addr add 10.0.0.2/24 dev xenbr0');
  return { host, driver, guest };
}

/** Has a Linux guest serve a file of over 20 MB by HTTP. @returns its SHA-256 */
async function serveFile(linux: HostedDomain): Promise<string> {
  await sh(linux, 'for i in 0 1 2 3 4 5 6 7 8 9; do cat /bin/busybox; done > /www/file; httpd -h /www');
  const [sum, size] = (await sh(linux, 'sha256sum < /www/file; wc -c < /www/file')).split(/[ -]+\n/);
  assert.ok(Number(size) > 20e6);
  return sum;
}

/** Has a namespace (10.0.0.1) and a Linux guest (10.0.0.2) get files of over 20 MB from each other. */
async function fetchBothWays(t: TestContext, space: HostedDomain, linux: HostedDomain): Promise<void> {
  const sum = await serveFile(linux);
  const get =
    'fetch("http://10.0.0.2/file").then(r => r.arrayBuffer()).then(b => ' +
    'console.log(require("crypto").createHash("sha256").update(Buffer.from(b)).digest("hex")))';
  assert.equal((await inNamespace(space, process.execPath, '-e', get)).trim(), sum);

  await sh(linux, 'rm /www/file');
  const serve =
    'const b = Buffer.alloc(21e6); for (let i = 0; i < b.length; i += 4) b.writeUInt32LE(i * 2654435761 % 2 ** 32, i);' +
    'console.log(require("crypto").createHash("sha256").update(b).digest("hex"));' +
    'require("http").createServer((_, r) => r.end(b)).listen(80)';
  const served = await startIn(t, space, process.execPath, '-e', serve);
  const output = await sh(linux, 'wget -q -O - http://10.0.0.1/ | sha256sum');
  assert.equal(output.slice(0, 64), served);
}

describe('Linux’s xen-netfront with our netback', { skip: NO_LONG_LINUX }, () => {
  test('carries on by itself when netback is restarted', async t => {
    const { host, echo, linux } = await echoAndLinux(t);
    assert.match(await sh(linux, 'ping -c 2 -i 0.1 10.0.0.1'), PINGED);
    const { xenbus } = host.dom0;
    const driver = xenbus.backend.drivers[0];
    for (let i = 0; i < 2; i++) {
      await xenbus.unregisterDriver(driver);
      await xenbus.registerBackend(driver);
      for (const hosted of [echo, linux]) assert.deepEqual(await host.settled(hosted), []);
      assert.match(await sh(linux, 'ping -c 5 -i 0.1 -s 1400 10.0.0.1'), PINGED);
    }
    assert.match(await sh(linux, 'cat /sys/class/net/eth0/ifindex'), /^2$/m);
  });

  test('uses one event channel where netback has no two', async t => {
    const { host, linux } = await echoAndLinux(t);
    const { frontend, backend } = linux.vifs.get(0)!.paths;
    const channels = ['event-channel-tx', 'event-channel-rx'].map(key => `${frontend}/${key}`);
    for (const path of channels) assert.ok(await host.xs.exists(path));
    await host.xs.write(`${backend}/feature-split-event-channels`, '0');
    await sh(linux, UNLOAD_FRONTEND);
    // Linux leaves them, and netback prefers them to what there is then.
    for (const path of channels) await host.xs.rm(path);
    await sh(linux, 'modprobe xen-netfront; until ip addr show eth0 | grep -q 10.0.0.2; do sleep 0.1; done');
    assert.deepEqual(await host.settled(linux), []);
    assert.ok(await host.xs.exists(`${frontend}/event-channel`));
    for (const path of channels) assert.ok(!(await host.xs.exists(path)));
    assert.match(await sh(linux, 'ping -c 8 -i 0.1 -s 1400 10.0.0.1'), PINGED);
  });

  test('carries TCP with and without segmentation, scatter-gather and checksums', async t => {
    const { host, space, linux } = await spaceAndLinux(t);
    const { stats } = host.dom0.net.byName('vif2.0')!;
    for (const [feature, whole] of [
      ['', true],
      ['tso off', false],
      ['sg off', false],
      ['tx off', false],
    ] as const) {
      if (feature !== '') await sh(linux, `ethtool -K eth0 ${feature}`);
      const before = { ...stats };
      await sendBothWays(space, linux);
      const mean = (stats.rxBytes - before.rxBytes) / (stats.rxPackets - before.rxPackets);
      assert.equal(mean > 1600, whole, `${feature}: ${mean} bytes in a packet on average`);
    }
    await sh(linux, 'ethtool -K eth0 tx on sg on tso on');
    await sendBothWays(space, linux);
  });

  test('serves and gets files of 20 MB by HTTP', async t => {
    const { space, linux } = await spaceAndLinux(t);
    await fetchBothWays(t, space, linux);
  });

  test('changes its MTU while it runs', async t => {
    const host = await startHost(t);
    await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1,mtu=9000']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2,mtu=9000']"));
    assert.deepEqual(await host.settled(linux), []);
    for (const mtu of [9000, 1500, 576, 4000]) {
      await sh(linux, `ip link set eth0 mtu ${mtu}`);
      assert.match(await sh(linux, `ping -c 3 -i 0.1 -s ${mtu - 28} 10.0.0.1`), PINGED);
    }
  });

  test('its console loses nothing of long output and input', async t => {
    const host = await startHost(t);
    const linux = await host.create(domain('linux', 'guest = "linux"'));
    await host.settled(linux);
    const numbers = Array.from({ length: 5000 }, (_, i) => `${i + 1}\n`).join('');
    assert.equal(await sh(linux, 'seq 1 5000'), numbers);

    const { console } = linux.booted!.guest;
    const typed = Array.from({ length: 100 }, (_, i) => `${String(i).padStart(60, '-')}\n`).join('');
    const stop = console!.onOutput(text => {
      if (!text.includes('ready')) return;
      stop();
      console!.type(typed);
    });
    const output = await sh(linux, "printf 'rea''dy\\n'; head -n 100 | sha256sum");
    assert.ok(output.includes(createHash('sha256').update(typed).digest('hex')), output);
  });

  test('gives all back when it is destroyed in the middle of a TCP transfer, or crashes or reboots while it pings', async t => {
    const { host, space, linux: first } = await spaceAndLinux(t);
    await host.destroy(first);
    const before = holdings(host);
    const start = async () => {
      const linux = await host.create(first.config);
      assert.deepEqual(await host.settled(linux), []);
      return linux;
    };
    const transfer = async (linux: HostedDomain): Promise<void> => {
      await sh(
        linux,
        '(nc -l -p 5000 > /dev/null; cat /dev/zero | nc -l -p 5001 > /dev/null) > /dev/null 2>&1 & true',
      );
      await sh(linux, 'until netstat -ltn | grep -q :5000; do sleep 0.1; done');
      // Not as fast as can be: an emulated processor would do nothing else any more.
      const send =
        'const socket = require("net").connect(5000, "10.0.0.2").on("error", () => process.exit());' +
        'setInterval(() => socket.write(Buffer.alloc(20_000)), 50); console.log("sending")';
      await startIn(t, space, process.execPath, '-e', send);
      const { stats } = host.dom0.net.byName(`vif${linux.domain.domid}.0`)!;
      while (stats.txBytes < 500_000) await new Promise(resolve => setTimeout(resolve, 20));
    };
    const busy = await start();
    await transfer(busy);
    await host.destroy(busy);
    assert.deepEqual(holdings(host), before, 'after being destroyed');

    for (const end of ['crash', 'reboot'] as const) {
      const ending = await start();
      const flood = '(while :; do ping -c 1000 -i 0.01 -s 1400 10.0.0.1; done > /dev/null 2>&1 &)';
      await sh(ending, `${flood}; sleep 1`);
      if (end === 'crash') ending.booted!.guest.console!.type('echo c > /proc/sysrq-trigger\n');
      else await host.shutdown(ending, 'reboot');
      const again = await restarted(host, ending);
      assert.deepEqual(await host.settled(again), []);
      assert.match(await sh(again, 'ping -c 2 -i 0.1 10.0.0.1'), PINGED);
      await host.destroy(again);
      assert.deepEqual(holdings(host), before, `after a ${end}`);
    }
  });
});

describe('our netfront with Linux’s xen-netback', { skip: NO_LONG_LINUX }, () => {
  test('carries on when the module is loaded anew, whether that wants one event channel or two', async t => {
    const { host, driver, guest } = await behindDriver(t, 'echo');
    for (const split of [0, 1]) {
      await sh(driver, `${UNLOAD_BACKEND} && modprobe xen-netback separate_tx_rx_irq=${split}`);
      await sh(driver, 'until [ -e /sys/class/net/vif2.0/brport ]; do sleep 0.1; done');
      assert.deepEqual(await host.settled(guest), []);
      assert.match(await sh(driver, 'ping -c 5 -i 0.1 10.0.0.1'), PINGED);
      assert.ok((await guest.booted!.guest.ping!('10.0.0.2', 10_000)) >= 0);
    }
  });

  test('carries TCP both ways with iperf3, with and without offloads', async t => {
    const { driver, guest } = await behindDriver(t, 'netns');
    await startIn(t, guest, 'iperf3', '-s', '--forceflush');
    for (const features of ['', 'tso off', 'sg off', 'tx off']) {
      if (features !== '') await sh(driver, `ethtool -K vif2.0 ${features}`);
      for (const direction of ['', '-R']) {
        const json = await sh(driver, `iperf3 -J ${direction} -c 10.0.0.1 -n 2M`);
        checkTransfer(json, 2 << 20, `${features} iperf3 ${direction}`);
      }
    }
    await sh(driver, 'cp /bin/busybox /www/file; httpd -h /www');
    const sum = (await sh(driver, 'sha256sum /www/file')).slice(0, 64);
    const get =
      'fetch("http://10.0.0.2/file").then(r => r.arrayBuffer()).then(b => ' +
      'console.log(require("crypto").createHash("sha256").update(Buffer.from(b)).digest("hex")))';
    assert.equal((await inNamespace(guest, process.execPath, '-e', get)).trim(), sum);
  });

  test('carries files of 20 MB both ways by HTTP', async t => {
    const { driver, guest } = await behindDriver(t, 'netns');
    await fetchBothWays(t, guest, driver);
  });

  test('gives all back when the driver domain is destroyed in the middle of a transfer', async t => {
    const { host, driver, guest } = await behindDriver(t, 'echo');
    await sh(
      driver,
      '(while :; do ping -c 1000 -i 0.002 -s 1400 10.0.0.1; done > /dev/null 2>&1 &); sleep 1',
    );
    await host.destroy(driver);
    await host.destroy(guest);
    // What a host holds on which a guest came and went; the bridge of that one was here in the driver domain.
    const other = await startHost(t);
    await other.destroy(await other.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1']")));
    const beside = { pagesInSight: 0, devices: [] };
    assert.deepEqual({ ...holdings(host), ...beside }, { ...holdings(other), ...beside });
  });
});

test('Linux’s xen-netfront and another Linux’s xen-netback carry files of 20 MB both ways by HTTP', {
  skip: NO_LONG_LINUX,
}, async t => {
  const { driver, guest } = await behindDriver(t, 'linux');
  for (const [from, to, address] of [
    [driver, guest, '10.0.0.2'],
    [guest, driver, '10.0.0.1'],
  ] as const) {
    const sum = await serveFile(from);
    assert.equal((await sh(to, `wget -q -O - http://${address}/file | sha256sum`)).slice(0, 64), sum);
    await sh(from, 'rm /www/file');
  }
});
