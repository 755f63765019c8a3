import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ip } from '../../src/cli/ip.js';
import { createBridge, createLoopback, type NetDevice } from '../../src/net/index.js';
import { TestKernel } from '../net/kernel.js';
import { bringUp, linux, type Printed, vethTwin } from '../net/linux.js';

function recorded() {
  const kernel = new TestKernel();
  createLoopback(kernel.net);
  const twin = vethTwin(kernel);
  bringUp(kernel, twin);
  return { kernel, ...twin };
}

/** Splits a recorded command line as a shell would. */
function words(command: string): string[] {
  return [...command.matchAll(/"([^"]*)"|(\S+)/g)].map(m => m[1] ?? m[2]).slice(1);
}

/** The recorded kernel has an IPv6 stack that makes addresses; ours has none. */
const ours = (text: string): string =>
  text
    .replaceAll('addrgenmode eui64', 'addrgenmode none')
    .replaceAll('"inet6_addr_gen_mode":"eui64"', '"inet6_addr_gen_mode":"none"');

function assertPrints(kernel: TestKernel, of: Printed): void {
  assert.deepEqual(
    ip(kernel.net, words(of.command)),
    { status: 0, stdout: ours(of.stdout), stderr: '' },
    of.command,
  );
}

test('ip link prints what iproute2 prints, in every form', () => {
  const { kernel } = recorded();
  const { netlink, ...up } = linux.veth.up;
  assert.ok(netlink);
  for (const [name, of] of Object.entries(up)) {
    // The recorded veth has packets of its own kernel's making in its statistics or none; ours has none.
    if (name !== 'netlink') assertPrints(kernel, of as Printed);
  }
});

test('ip link shows changes, and what a bridge port is', () => {
  const { kernel, veth0 } = recorded();
  for (const change of [
    'promisc on',
    'allmulticast on',
    'txqueuelen 5',
    'alias "hello world"',
    'group 7',
    'arp off',
    'multicast off',
    'mtu 9000',
  ]) {
    assert.deepEqual(
      ip(kernel.net, words(`ip link set veth0 ${change}`)),
      { status: 0, stdout: '', stderr: '' },
      change,
    );
  }
  const { netlink, ...changed } = linux.veth.changed;
  assert.ok(netlink);
  for (const of of Object.values(changed)) assertPrints(kernel, of as Printed);
  const bridge = createBridge(kernel.net, 'br0');
  ip(kernel.net, ['link', 'set', 'br0', 'address', '02:00:00:00:00:09']);
  assert.equal(ip(kernel.net, ['link', 'set', 'veth0', 'master', 'br0']).status, 0);
  ip(kernel.net, ['link', 'set', 'br0', 'up']);
  kernel.scheduler.advance(1000);
  for (const name of ['port', 'portj', 'bridge'] as const) assertPrints(kernel, linux.bridge[name]);
  assert.equal(bridge.mtu, 9000);
  assert.match(
    ip(kernel.net, ['-d', 'link', 'show', 'master', 'br0']).stdout,
    /bridge_slave state forwarding priority 32/,
  );
  assert.equal(ip(kernel.net, ['link', 'set', 'veth0', 'nomaster']).status, 0);
  assert.equal(veth0.master, null);
});

test('refusals are those of iproute2, and say which rule was broken', () => {
  const { kernel, veth0 } = recorded();
  // Arguments that make it more than the recorded first line, or none at all.
  for (const [name, of] of Object.entries(linux.errors)) {
    const before = ip(kernel.net, ['-d', '-j', 'link']).stdout;
    const result = ip(kernel.net, words(of.command));
    assert.equal(result.status, of.status, name);
    assert.equal(result.stdout, '', name);
    assert.equal(result.stderr.split('\n')[0], of.stderr.split('\n')[0], name);
    assert.equal(ip(kernel.net, ['-d', '-j', 'link']).stdout, before, `${name} left something behind`);
  }
  assert.match(
    ip(kernel.net, ['link', 'set', 'veth0', 'name', 'veth1']).stderr,
    /there is a device "veth1" already/,
  );
  assert.match(ip(kernel.net, ['link', 'set', 'veth0', 'mtu', '10']).stderr, /10 is below 68/);
  assert.equal(veth0.name, 'veth0');
});

test('statistics widen their columns', () => {
  const kernel = new TestKernel();
  const device: NetDevice = kernel.device('eth%d');
  Object.assign(device.stats, { rxBytes: 123456789012, rxPackets: 99999999, txCompressed: 3 });
  assert.equal(
    ip(kernel.net, ['-s', 'link', 'show', 'eth0']).stdout.split('\n').slice(2).join('\n'),
    '    RX:    bytes  packets errors dropped  missed   mcast           \n' +
      '    123456789012 99999999      0       0       0       0 \n' +
      '    TX:    bytes  packets errors dropped carrier collsns compressed\n' +
      '               0        0      0       0       0       0          3 \n',
  );
});
