import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { describe, type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import type { HostedDomain } from '../../src/toolstack/host.js';
import { domain, NO_LONG_LINUX, sh, startHost } from '../support/linux.js';

const run = promisify(execFile);

/** Runs a program in the namespace of a guest of kind "netns", to its end. */
async function inNamespace(guest: HostedDomain, ...argv: string[]): Promise<string> {
  const [file, ...args] = guest.booted!.guest.command!(argv);
  const { stdout } = await run(file, args, { maxBuffer: 64 << 20 });
  return stdout;
}

/** Runs a server in the namespace until the test ends. */
function serve(t: TestContext, guest: HostedDomain, ...argv: string[]): void {
  const [file, ...args] = guest.booted!.guest.command!(argv);
  const child = spawn(file, args, { stdio: 'ignore' });
  t.after(() => child.kill());
}

/** Holds what iperf3 says at its end: all was sent, and what was not on its way any more was received. */
function checkTransfer(json: string, bytes: number, what: string): void {
  const { end } = JSON.parse(json.slice(json.indexOf('{'))) as {
    end: { sum_sent: { bytes: number }; sum_received: { bytes: number } };
  };
  assert.ok(end.sum_sent.bytes >= bytes, `${what}: sent ${end.sum_sent.bytes}`);
  assert.ok(end.sum_received.bytes >= bytes / 2, `${what}: received ${end.sum_received.bytes}`);
}

describe('Linux guests, at length', { skip: NO_LONG_LINUX }, () => {
  test('TCP both ways and files with their checksums, with a namespace of this machine', async t => {
    const host = await startHost(t);
    const space = await host.create(domain('space', 'guest = "netns"', "vif = ['ip=10.0.0.1']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2']"));
    assert.deepEqual(await host.settled(space), []);
    assert.deepEqual(await host.settled(linux), []);
    serve(t, space, 'iperf3', '-s');
    for (const direction of ['', '-R']) {
      const json = await sh(linux, `iperf3 -J ${direction} -c 10.0.0.1 -n 4M`);
      checkTransfer(json, 4 << 20, `iperf3 ${direction}`);
    }
    const { stats } = host.dom0.net.byName('vif2.0')!;
    assert.ok(stats.rxBytes / stats.rxPackets > 1600, 'segments come whole from the guest');

    await sh(linux, 'dd if=/dev/urandom of=/www/file bs=1M count=8 2>/dev/null; httpd -h /www');
    const [sum] = (await sh(linux, 'sha256sum /www/file')).split(' ');
    const program =
      'fetch("http://10.0.0.2/file").then(r => r.arrayBuffer()).then(b => ' +
      'console.log(require("crypto").createHash("sha256").update(Buffer.from(b)).digest("hex")))';
    assert.equal((await inNamespace(space, process.execPath, '-e', program)).trim(), sum);
  });

  test('frames of 9000 bytes, and a frontend whose module is reloaded', async t => {
    const host = await startHost(t);
    await host.create(domain('echo', 'guest = "echo"', "vif = ['ip=10.0.0.1,mtu=9000']"));
    const linux = await host.create(domain('linux', 'guest = "linux"', "vif = ['ip=10.0.0.2,mtu=9000']"));
    assert.deepEqual(await host.settled(linux), []);
    await sh(linux, 'ip link set eth0 mtu 9000');
    assert.match(await sh(linux, 'ping -c 5 -i 0.1 -s 8900 10.0.0.1'), / 0% packet loss/);
    for (let i = 0; i < 2; i++) {
      await sh(linux, 'rmmod xen-netfront; modprobe xen-netfront');
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
      const json = await sh(linux, `iperf3 -J ${direction} -c 10.0.0.1 -n 1M`);
      checkTransfer(json, 1 << 20, `iperf3 ${direction}`);
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
