import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parseDomain } from '../../src/toolstack/domain-config.js';
import { Host, type HostedDomain } from '../../src/toolstack/host.js';
import { parseVif } from '../../src/toolstack/vif-config.js';
import { type Outcome, runProgram } from '../../src/uplink/namespace.js';
import { missingPrograms, namespaceObstacle } from '../uplink/machine.js';

const skip = await namespaceObstacle();
const noPing = missingPrograms('ping');
const EXAMPLES = fileURLToPath(new URL('../../examples/', import.meta.url));

async function start(t: TestContext): Promise<Host> {
  const host = await Host.start({ memoryBytes: 128 << 20 });
  t.after(() => host.close());
  return host;
}

async function create(host: Host, name: string, guest: string, vif: string): Promise<HostedDomain> {
  const hosted = await host.create(
    parseDomain(`name = "${name}"\nguest = "${guest}"\nvif = [ '${vif}' ]`, `${EXAMPLES}${name}.cfg`),
  );
  assert.deepEqual(await host.settled(hosted), []);
  return hosted;
}

function run(guest: HostedDomain, ...argv: string[]): Promise<Outcome> {
  return runProgram(guest.booted!.guest.command!(argv));
}

describe('guests that are network namespaces', { skip }, () => {
  test('have one card, which is the netfront, as the domain file says', async t => {
    const host = await start(t);
    const a = await create(host, 'a', 'netns', 'mac=00:16:3e:01:02:03,ip=10.0.0.1/16 fd00::1/64,mtu=9000');
    const links = JSON.parse((await run(a, 'ip', '-j', 'addr')).stdout);
    assert.deepEqual(
      links.map((link: { ifname: string }) => link.ifname),
      ['lo', 'eth0'],
    );
    const [, eth0] = links;
    assert.equal(eth0.address, '00:16:3e:01:02:03');
    assert.equal(eth0.mtu, 9000);
    const addresses = eth0.addr_info.map(
      (info: { local: string; prefixlen: number }) => `${info.local}/${info.prefixlen}`,
    );
    assert.deepEqual(addresses.slice(0, 2), ['10.0.0.1/16', 'fd00::1/64']);
    assert.equal((await run(a, 'cat', '/sys/class/net/eth0/carrier')).stdout, '1\n');
  });

  test('ping each other and an echo guest, with small packets and fragmented ones', {
    skip: noPing,
  }, async t => {
    const host = await start(t);
    const a = await create(host, 'a', 'netns', 'ip=10.0.0.1 fd00::1');
    await create(host, 'b', 'netns', 'ip=10.0.0.2 fd00::2');
    const echo = await create(host, 'e', 'echo', 'ip=10.0.0.3 fd00::3');
    const pings = [
      ['10.0.0.2', '56'],
      ['fd00::2', '1400'],
      ['10.0.0.2', '20000'],
      ['10.0.0.3', '1400'],
      ['fd00::3', '56'],
    ];
    for (const [address, size] of pings) {
      // With -w it waits for late answers too: without, twice the longest round trip.
      const { stdout } = await run(a, 'ping', '-q', '-c3', '-w20', '-i0.1', '-s', size, address);
      assert.match(stdout, / 0% packet loss/, `${address} ${size}`);
    }
    assert.ok((await echo.booted!.guest.ping!('10.0.0.1')) >= 0);
  });

  test('carry TCP whole, while another vif comes and goes', async t => {
    const host = await start(t);
    const a = await create(host, 'a', 'netns', 'ip=10.0.0.1');
    const b = await create(host, 'b', 'netns', 'ip=10.0.0.2');
    const transfer = fileURLToPath(new URL('../../src/cli/tcp-transfer.js', import.meta.url));
    const bytes = 20_000_000;
    const receiving = run(b, process.execPath, transfer, 'serve', '5000');
    const listening = async (): Promise<boolean> => (await run(b, 'ss', '-ltn')).stdout.includes(':5000');
    while (!(await listening()));
    const sending = run(a, process.execPath, transfer, 'send', '10.0.0.2', '5000', String(bytes));
    for (let i = 0; i < 3; i++) {
      const devid = await host.attachVif(a, parseVif('ip=10.1.0.1'));
      await host.settled(a);
      assert.match((await run(a, 'ip', '-br', 'addr')).stdout, /eth1 .*10\.1\.0\.1/);
      await host.detachVif(a, devid);
      await a.booted!.guest.settled();
      assert.doesNotMatch((await run(a, 'ip', '-br', 'addr')).stdout, /eth1/);
    }
    const sent = JSON.parse((await sending).stdout);
    const got = JSON.parse((await receiving).stdout.split('\n')[1]);
    assert.equal(got.bytes, bytes);
    assert.equal(got.sha256, sent.sha256);
    assert.notEqual(got.sha256, createHash('sha256').digest('hex'));
    const vif = host.dom0.net.byName('vif1.0')!;
    assert.ok(vif.stats.rxBytes / vif.stats.rxPackets > 3000, 'segments cross the ring whole');
    assert.equal(host.dom0.net.byName('vif2.0')!.stats.txDropped, 0);
  });

  test('ping a module that answers in its XDP program, without a packet', { skip: noPing }, async t => {
    const host = await start(t);
    const module = await create(host, 'x', 'module:./xdp-responder.js', 'ip=10.0.0.99');
    const a = await create(host, 'a', 'netns', 'ip=10.0.0.1');
    for (const size of ['0', '56', '1400']) {
      const { status, stdout } = await run(
        a,
        'ping',
        '-c',
        '3',
        '-i',
        '0.1',
        '-W',
        '5',
        '-s',
        size,
        '10.0.0.99',
      );
      assert.equal(status, 0, stdout);
    }
    assert.notEqual((await run(a, 'ping', '-c', '1', '-W', '0.2', '10.0.0.98')).status, 0);
    const eth0 = module.booted!.kernel!.net.byName('eth0')!;
    assert.equal(eth0.xdp?.name, 'respond');
    const stats = new Map(eth0.ops.ethtoolStats!(eth0));
    assert.ok(stats.get('xdp_tx')! >= 10, 'pings, and at least one ARP request');
    assert.equal(stats.get('xdp_xmit'), 1, 'the announcement');
    assert.ok(stats.get('xdp_drops')! > 0 && eth0.stats.rxNohandler === 0);
  });

  test('lose their carrier with their backend', async t => {
    const host = await start(t);
    const a = await create(host, 'a', 'netns', 'ip=10.0.0.1');
    const eth0 = a.booted!.kernel!.net.byName('eth0')!;
    // The stack tells of a change a little later, at most once a second.
    const becomes = async (carrier: string): Promise<void> => {
      while ((await run(a, 'cat', '/sys/class/net/eth0/carrier')).stdout !== carrier);
    };
    eth0.carrierOff();
    await becomes('0\n');
    eth0.carrierOn();
    await becomes('1\n');
  });

  test('have an interface that follows the device, and is saved, under whatever name it has by now', async t => {
    const host = await start(t);
    const a = await create(host, 'a', 'netns', 'ip=10.0.0.1/16');
    const device = a.booted!.kernel!.net.byName('eth0')!;
    for (const line of ['eth0 down', 'eth0 name wan0', 'wan0 up']) {
      assert.equal((await run(a, 'ip', 'link', 'set', ...line.split(' '))).status, 0);
    }
    device.rename('lan0');
    device.setMtu(1400);
    device.close();
    device.setAddress(Uint8Array.of(0, 0x16, 0x3e, 9, 9, 9));
    device.open();
    await a.booted!.guest.settled();
    const [link] = JSON.parse((await run(a, 'ip', '-j', 'link', 'show', 'dev', 'wan0')).stdout);
    assert.deepEqual([link.mtu, link.address], [1400, '00:16:3e:09:09:09']);
    assert.deepEqual(await a.booted!.guest.save!(), {
      interfaces: [
        { devid: 0, up: true, addresses: ['10.0.0.1/16 brd 10.0.255.255'], routes: { 4: [], 6: [] } },
      ],
    });
  });

  test('leave no process and no interface behind', async t => {
    const host = await start(t);
    const a = await create(host, 'a', 'netns', 'ip=10.0.0.1');
    const pid = a.booted!.guest.command!(['true']).find((_, i, argv) => argv[i - 1] === '--target')!;
    assert.ok(readdirSync('/proc').includes(pid));
    await host.destroy(a);
    assert.ok(!readdirSync('/proc').includes(pid));
  });
});

test('a module may await its device before it returns', { timeout: 20_000 }, async t => {
  const host = await start(t);
  const module = fileURLToPath(new URL('../support/waiting-guest.js', import.meta.url));
  const waiting = await create(host, 'waiting', `module:${module}`, 'ip=10.0.0.1');
  assert.ok(waiting.domain.dmesg.some(line => line.includes('it is eth0')));
  // It still waits for another, and would not hear of a rejection.
  await host.destroy(waiting);
  await new Promise(setImmediate);
});

test('a guest that has started is stopped when its domain fails to boot all the same', async t => {
  const host = await start(t);
  const module = fileURLToPath(new URL('../support/own-netfront-guest.js', import.meta.url));
  const hosted: HostedDomain[] = [];
  host.watchKernels({ came: () => hosted.push(...host.domains), went: () => {} });
  await assert.rejects(create(host, 'own', `module:${module}`, 'ip=10.0.0.1'), { code: 'EEXIST' });
  assert.ok(hosted[0].domain.dmesg.some(line => line.includes('stopping')));
});

test('a module gets its device and sees what arrives', async t => {
  const host = await start(t);
  const counter = await create(host, 'counter', 'module:./counter.js', 'ip=10.0.0.1');
  const echo = await create(host, 'e', 'echo', 'ip=10.0.0.2');
  await assert.rejects(echo.booted!.guest.ping!('10.0.0.1', 20), /ETIMEDOUT/);
  while (!counter.domain.dmesg.some(line => line.includes('0x0806: '))) {
    await new Promise(resolve => setTimeout(resolve, 20));
  }
  assert.ok(counter.domain.dmesg.some(line => line.includes('counter: counting on eth0')));
});
