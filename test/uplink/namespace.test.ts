import assert from 'node:assert/strict';
import { chmodSync, closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { NetworkNamespace } from '../../src/uplink/namespace.js';
import { Poller } from '../../src/uplink/poller.js';
import { adoptTun, openTap, TapIo } from '../../src/uplink/tap.js';
import { missingPrograms, namespaceObstacle } from './machine.js';
import { makePages } from './pages.js';

const skip = await namespaceObstacle();

async function create(t: TestContext): Promise<NetworkNamespace> {
  const namespace = await NetworkNamespace.create();
  t.after(() => namespace.close());
  return namespace;
}

test('where no namespace may be made, the error says why and what works', async t => {
  const directory = mkdtempSync(join(tmpdir(), 'pvnet-unshare-'));
  const path = process.env['PATH'];
  t.after(() => {
    process.env['PATH'] = path;
    rmSync(directory, { recursive: true });
  });
  const refusal = 'unshare failed: Operation not permitted';
  writeFileSync(join(directory, 'unshare'), `#!/bin/sh\necho '${refusal}' >&2\nexit 1\n`);
  chmodSync(join(directory, 'unshare'), 0o755);
  process.env['PATH'] = `${directory}:${path}`;
  await assert.rejects(NetworkNamespace.create(), (error: Error) => {
    assert.match(error.message, new RegExp(refusal));
    assert.match(error.message, /guests of kind "echo" and "module" work without/);
    return true;
  });
});

describe('a network namespace of our own', { skip }, () => {
  test('holds TAPs that come and go with our file descriptors', async t => {
    const namespace = await create(t);
    const links = async (): Promise<string> => (await namespace.run(['ip', '-br', 'link'])).stdout;
    const [first, second] = await Promise.all([namespace.openTap('eth0'), namespace.openTap('eth1')]);
    assert.equal(first.name, 'eth0');
    first.setAddress(Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3));
    assert.match(await links(), /eth0 .*00:16:3e:01:02:03/);
    second.close();
    assert.doesNotMatch(await links(), /eth1/);
    first.close();
    const ours = () => readdirSync('/proc/self/fd').length;
    const before = ours();
    for (let i = 0; i < 3; i++) (await namespace.openTap('eth2')).close();
    assert.equal(ours(), before);
    assert.doesNotMatch(await links(), /eth0/);
    // A number that is somebody else's by now is not closed again.
    const others = [openSync('/dev/null', 'r')];
    while (others[others.length - 1] < first.fd) others.push(openSync('/dev/null', 'r'));
    first.close();
    for (const fd of others) closeSync(fd);
  });

  test('a TAP whose interface was deleted inside takes whatever it is told', async t => {
    const namespace = await create(t);
    const tap = await namespace.openTap('eth0');
    await namespace.ip('link del eth0');
    tap.setCarrier(true);
    tap.setOffload(1);
    tap.setAddress(Uint8Array.of(0, 0x16, 0x3e, 1, 2, 3));
    tap.close();
    // No device at all is another matter.
    assert.throws(() => tap.setOffload(1), { code: 'EBADF' });
  });

  test('a TAP has the name by which programs call it, in UTF-8', async t => {
    const namespace = await create(t);
    const tap = await namespace.openTap('tapü');
    assert.equal(tap.name, 'tapü');
    await namespace.ip('link set tapü up');
    assert.ok(readdirSync(tap.folder).includes('queues'));
    tap.close();
    await assert.rejects(
      namespace.openTap('üüüüüüüü'),
      /"ü{8}" is no interface name: it has 16 bytes and may have 15/,
    );
    (await namespace.openTap('eth0')).close();
  });

  test('the carrier is what the namespace sees', async t => {
    const namespace = await create(t);
    const tap = await namespace.openTap('eth0');
    await namespace.ip('link set eth0 up');
    const carrier = async (): Promise<string> =>
      (await namespace.run(['cat', '/sys/class/net/eth0/carrier'])).stdout.trim();
    tap.setCarrier(false);
    assert.equal(await carrier(), '0');
    tap.setCarrier(true);
    assert.equal(await carrier(), '1');
    tap.close();
  });

  test('programs run inside see only its devices, keep their directory and give back their status', async t => {
    const namespace = await create(t);
    const { stdout, status } = await namespace.run(['sh', '-c', 'ls /sys/class/net; pwd; exit 7']);
    assert.equal(status, 7);
    assert.ok(stdout.trim().endsWith(process.cwd()));
    assert.ok(!stdout.includes('eth0'), stdout);
  });

  test('what `ip` refuses is said in its words', async t => {
    const namespace = await create(t);
    await assert.rejects(namespace.ip('link set nosuch up'), /EINVAL: "ip link set nosuch up".*nosuch/);
  });

  test('is gone with its holder, which ends when told to', async t => {
    const namespace = await create(t);
    assert.ok(readdirSync('/proc').includes(String(namespace.pid)));
    await namespace.close();
    await namespace.close();
    assert.ok(!readdirSync('/proc').includes(String(namespace.pid)));
  });

  test('real pings cross between two of them through the poller', {
    skip: missingPrograms('ping'),
  }, async t => {
    const { own, packets, pool } = makePages();
    const poller = new Poller({ drain() {} });
    t.after(() => poller.close());
    const sides = [];
    for (const host of [1, 2]) {
      const namespace = await create(t);
      const tap = await namespace.openTap('eth0');
      t.after(() => tap.close());
      await namespace.ip(`addr add 10.0.0.${host}/24 dev eth0`, 'link set eth0 up');
      sides.push({ namespace, tap, io: new TapIo(tap, own, packets, pool) });
    }
    const connect = (from: TapIo, to: TapIo): void => {
      poller.add({
        fd: from.tap.fd,
        poll(budget) {
          let count = 0;
          for (; count < budget; count++) {
            const packet = from.readPacket();
            if (packet === null) break;
            to.writePacket(packet);
            packet.release();
          }
          return count;
        },
      });
    };
    connect(sides[0].io, sides[1].io);
    connect(sides[1].io, sides[0].io);
    const { stdout } = await sides[0].namespace.run(['ping', '-c3', '-w20', '-i0.1', '-s8000', '10.0.0.2']);
    assert.match(stdout, / 0% packet loss/);
    for (const { io } of sides) io.destroy();
    assert.equal(pool.used, 0);
    assert.equal(packets.used, 0);
  });
});

describe('what cannot be a TAP', { skip: process.platform === 'linux' ? false : 'needs Linux' }, () => {
  test('a name that no interface can have', { skip }, () => {
    assert.throws(() => openTap('a name'), /EINVAL: "a name" is no interface name/);
  });

  test('a file that is not /dev/net/tun', () => {
    assert.throws(() => adoptTun(1_000_000, 'tap0'), /TAP tap0/);
  });

  test('an idle poller lets the process end its other work', async () => {
    const poller = new Poller({ drain() {} });
    assert.equal(poller.size, 0);
    await delay(1);
    poller.close();
    poller.close();
  });
});
