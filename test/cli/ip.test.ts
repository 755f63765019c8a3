import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ethtool } from '../../src/cli/ethtool.js';
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

test('help, and what is no command', () => {
  const { net } = new TestKernel();
  for (const args of [['link', 'help'], ['help'], []]) {
    const { status, stderr } = ip(net, args);
    assert.deepEqual([status, stderr.split('\n')[0]], [255, 'Usage: ip [ OPTIONS ] link']);
  }
  assert.equal(ip(net, ['link', 'frob']).stderr, 'Command "frob" is unknown, try "ip link help".\n');
  assert.equal(ip(net, ['addr']).stderr, 'Object "addr" is unknown, try "ip help".\n');
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

/** A device with the settings of the recorded TAP, a port of the recorded bridge, both up. */
function tapTwin() {
  const kernel = new TestKernel();
  createLoopback(kernel.net);
  const tap: NetDevice = kernel.net.allocEtherdev('tap0', {
    startXmit: () => 0,
    setMacAddress: (device, address) => device.address.set(address),
  });
  tap.kind = 'tun';
  tap.driver = 'tun';
  tap.busInfo = 'tap';
  tap.speed = 10_000;
  tap.maxMtu = 65521;
  kernel.net.register(tap);
  const lines = [
    'set tap0 address 02:00:00:00:00:07',
    'add br0 type bridge',
    'set br0 address 02:00:00:00:00:09',
  ];
  for (const line of [...lines, 'set tap0 master br0', 'set br0 up', 'set tap0 up']) {
    assert.deepEqual(
      ip(kernel.net, ['link', ...line.split(' ')]),
      { status: 0, stdout: '', stderr: '' },
      line,
    );
  }
  kernel.scheduler.advance(1000);
  return { kernel, tap };
}

/** The names of all fields, in their order, with the types of their values. */
function shape(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shape);
  if (typeof value !== 'object' || value === null) return typeof value;
  return Object.entries(value).map(([name, inner]) => [name, shape(inner)]);
}

/** Text without its values: words and numbers that may differ are one. */
const form = (text: string): string => text.replace(/ +[\d.]+(?=\s)/g, ' N');

test('a TAP: ip link, with statistics and as JSON, and ethtool, as for a real one', () => {
  const { kernel } = tapTwin();
  for (const name of ['ip', 'ips', 'ipss', 'ipj', 'ipsj', 'ipssj']) {
    const { command, stdout } = linux.tap[name];
    // Promiscuous and all groups since it is a port; our lists need no such marks.
    assert.equal(ip(kernel.net, words(command)).stdout, stdout, command);
  }
  for (const [name, of] of Object.entries(linux.tap).filter(([name]) => !name.startsWith('ip'))) {
    const result = ethtool(kernel.net, words(of.command));
    assert.equal(result.status, of.status, name);
    if (name === 'plain') assert.equal(result.stdout, of.stdout);
    const keys = (text: string): string[] => text.split('\n').map(line => line.replace(/:.*/, ''));
    assert.deepEqual(keys(result.stdout), keys(of.stdout), of.command);
  }
});

test('details of a bridge and of its port have every field of iproute2’s, of the same type', () => {
  const { kernel } = tapTwin();
  const { details } = linux;
  for (const name of ['bridgej', 'portj'] as const) {
    const { command, stdout } = details[name];
    assert.deepEqual(
      shape(JSON.parse(ip(kernel.net, words(command)).stdout)),
      shape(JSON.parse(stdout)),
      command,
    );
  }
  for (const name of ['bridge', 'port'] as const) {
    const { command, stdout } = details[name];
    assert.equal(form(ip(kernel.net, words(command)).stdout), form(ours(stdout)), command);
  }
});

test('link add and delete: bridge, dummy, veth; what cannot be is refused as by iproute2', () => {
  const { kernel } = tapTwin();
  const { net } = kernel;
  const run = (line: string) => ip(net, ['link', ...line.split(' ')]);
  const before = run('show').stdout;
  for (const [name, of] of Object.entries(linux.add).filter(
    ([name]) => name !== 'noname' && name !== 'badmtu',
  )) {
    const result = ip(net, words(of.command));
    assert.equal(result.status, of.status, name);
    assert.equal(
      result.stderr.split('\n')[0],
      of.stderr.split('\n')[0].replace(/"help"$/, '"help": "type" wants a value.'),
      name,
    );
    assert.equal(run('show').stdout, before, `${name} left something behind`);
  }
  assert.match(run('del tap0').stderr, /Operation not supported\n.*its driver/);

  const done = { status: 0, stdout: '', stderr: '' };
  assert.deepEqual(run('add type bridge'), done);
  assert.deepEqual(run('add br7 mtu 1400 address 02:00:00:00:00:77 type bridge ageing_time 1000'), done);
  const [{ linkinfo, mtu, address }] = JSON.parse(ip(net, ['-d', '-j', 'link', 'show', 'br7']).stdout);
  assert.deepEqual([linkinfo.info_data.ageing_time, mtu, address], [1000, 1400, '02:00:00:00:00:77']);
  assert.deepEqual(run('set tap0 nomaster'), done);
  assert.deepEqual(run('set tap0 master br7'), done);
  assert.deepEqual(run('set tap0 type bridge_slave isolated on flood off'), done);
  const [port] = JSON.parse(ip(net, ['-d', '-j', 'link', 'ls', 'master', 'br7']).stdout);
  assert.deepEqual(
    [port.linkinfo.info_slave_data.isolated, port.linkinfo.info_slave_data.flood],
    [true, false],
  );
  assert.match(
    run('set tap0 type bridge_slave constructor on').stderr,
    /^bridge_slave: unknown command "constructor"/,
  );
  assert.deepEqual(run('delete br7'), done);
  assert.equal(net.byName('tap0')!.master, null);

  assert.deepEqual(run('add v0 type veth peer name v1'), done);
  assert.deepEqual([run('set v0 up'), run('set dev v1 up')], [done, done]);
  kernel.scheduler.advance(1000);
  const [v0] = JSON.parse(ip(net, ['-d', '-j', 'link', 'show', 'v0']).stdout);
  assert.deepEqual([v0.link, v0.operstate, v0.linkinfo.info_kind], ['v1', 'UP', 'veth']);
  const frame = kernel.packet(new Uint8Array(60));
  net.byName('v0')!.xmit(frame);
  kernel.run();
  assert.equal(net.byName('v1')!.stats.rxPackets, 1);
  assert.deepEqual(run('del v1'), done);
  assert.equal(net.byName('v0'), undefined);
  assert.equal(
    run('set bridge0 master br0').stderr.split('\n')[0],
    'RTNETLINK answers: Too many levels of symbolic links',
  );
  assert.match(run('add x0 type toString').stderr, /^Error: Unknown device type/);
  assert.equal(net.byName('x0'), undefined);
  for (const line of ['add constructor type dummy', 'del constructor']) assert.deepEqual(run(line), done);
  assert.deepEqual(run('add d0 mtu 9000 type dummy'), done);
  assert.match(run('add d1 mtu 70000 type bridge').stderr, /mtu greater than device maximum/);
  assert.equal(net.byName('d1'), undefined, 'nothing half made stays');
  for (const name of ['d0', 'bridge0', 'br0']) assert.deepEqual(run(`del ${name}`), done);
  assert.deepEqual(
    [...net.devices].map(({ name }) => name),
    ['lo', 'tap0'],
  );
});
