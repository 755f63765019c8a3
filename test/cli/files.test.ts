import assert from 'node:assert/strict';
import { test } from 'node:test';
import { XenbusState } from '../../src/abi/xenbus-state.js';
import { cat, type DomainFiles, domainTree, ls, write } from '../../src/cli/files.js';
import { monitor } from '../../src/cli/monitor.js';
import { captureNlmon } from '../../src/cli/nlmon.js';
import { TestKernel } from '../net/kernel.js';

function domain(initialDomain: boolean) {
  const kernel = new TestKernel();
  const device = kernel.net.allocEtherdev(initialDomain ? 'vif1.0' : 'eth%d', { startXmit: () => 0 });
  device.parentName = initialDomain ? 'vif-1-0' : 'vif-0';
  device.parentBus = initialDomain ? 'xen-backend' : 'xen';
  kernel.net.register(device);
  const files: DomainFiles = {
    net: kernel.net,
    irqs: { interrupts: () => '           CPU0\n' },
    xenbus: {
      initialDomain,
      devices: [
        {
          id: device.parentName,
          side: initialDomain ? 'backend' : 'frontend',
          devicetype: 'vif',
          nodename: initialDomain ? 'backend/vif/1/0' : 'device/vif/0',
          state: XenbusState.Connected,
          driver: { name: 'vif' },
        },
      ],
    },
    platform: {
      xenstore: { kind: 'ring', memory: kernel.memory.memory, address: 0x5000, port: 3 },
    },
  };
  return { kernel, device, tree: domainTree(files) };
}

test('a guest’s files: its interface, its xen device, and what leads from one to the other', () => {
  const { tree } = domain(false);
  assert.equal(ls(tree, '/sys/class/net').stdout, 'eth0\n');
  assert.equal(ls(tree, '/sys/class/net', true).stdout, 'lrwxrwxrwx eth0 -> ../../devices/vif-0/net/eth0\n');
  assert.equal(cat(tree, '/sys/class/net/eth0/device/nodename').stdout, 'device/vif/0\n');
  assert.equal(cat(tree, '/sys/bus/xen/devices/vif-0/state').stdout, 'Connected\n');
  assert.equal(cat(tree, '/sys/bus/xen/drivers/vif/vif-0/devtype').stdout, 'vif\n');
  assert.equal(cat(tree, '/sys/bus/xen/devices/vif-0/driver/vif-0/modalias').stdout, 'xen:vif\n');
  assert.equal(cat(tree, '/sys/bus/xen/devices/vif-0/net/eth0/mtu').stdout, '1500\n');
  assert.equal(cat(tree, '/sys/class/net/eth0/subsystem/eth0/ifindex').stdout, '1\n');
  assert.equal(cat(tree, '/proc/xen/capabilities').stdout, '');
  assert.equal(cat(tree, '/proc/interrupts').stdout, '           CPU0\n');
  assert.match(cat(tree, '/proc/net/dev').stdout, /\n {2}eth0: /);
  assert.equal(ls(tree, '/sys/bus/xen-backend/devices').stdout, '');
});

test('dom0’s files: the backend, capabilities, where xenstored is', () => {
  const { tree } = domain(true);
  assert.equal(cat(tree, '/proc/xen/capabilities').stdout, 'control_d\n');
  assert.equal(cat(tree, '/proc/xen/xsd_port').stdout, '3');
  assert.equal(cat(tree, '/proc/xen/xsd_kva').stdout, '0x0000000000005000');
  assert.equal(
    cat(tree, '/sys/bus/xen-backend/devices/vif-1-0/uevent').stdout,
    'DRIVER=vif\nXENBUS_TYPE=vif\nXENBUS_PATH=backend/vif/1/0\nXENBUS_BASE_PATH=backend\n',
  );
});

test('writing and refusing', () => {
  const { tree, device } = domain(false);
  assert.equal(write(tree, '/sys/class/net/eth0/mtu', '1400').status, 0);
  assert.equal(device.mtu, 1400);
  const low = write(tree, '/sys/class/net/eth0/mtu', '1');
  assert.deepEqual(
    [low.status, low.stderr.split('\n')[0]],
    [1, 'write: /sys/class/net/eth0/mtu: Invalid argument'],
  );
  assert.match(low.stderr, /1 is below 68/);
  assert.match(write(tree, '/sys/class/net/eth0/address', 'x').stderr, /Permission denied/);
  assert.match(cat(tree, '/sys/class/net/eth9/mtu').stderr, /No such file or directory/);
  assert.match(cat(tree, '/proc/xen/xenbus').stderr, /Operation not supported/);
});

test('the monitor tells of events in words and as JSON; nlmon captures them', () => {
  const { kernel, device } = domain(false);
  const words: string[] = [];
  const json: string[] = [];
  const captured: number[] = [];
  const stops = [
    monitor(kernel.net, 'web', {}, line => words.push(line)),
    monitor(kernel.net, 'web', { json: true }, line => json.push(line)),
    captureNlmon(
      kernel.net,
      bytes => captured.push(bytes.length),
      () => 0,
    ),
  ];
  device.setMtu(1400);
  assert.deepEqual(words, [
    'web: eth0 is about to get another MTU [PRECHANGEMTU]',
    'web: eth0 has another MTU, 1400 [CHANGEMTU]',
  ]);
  assert.equal(JSON.parse(json[1]).mtu, 1400);
  assert.equal(JSON.parse(json[1]).domain, 'web');
  assert.equal(captured[0], 24);
  assert.equal(captured.length, 2);
  for (const stop of stops) stop();
  device.setMtu(1300);
  assert.equal(words.length + captured.length, 4);
});
