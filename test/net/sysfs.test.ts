import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createBridge } from '../../src/net/bridge.js';
import { changeAlias, changeFlags, changeGroup, changeTxQueueLen } from '../../src/net/link.js';
import { createLoopback } from '../../src/net/loopback.js';
import { procNetDev } from '../../src/net/procfs.js';
import { netfrontRxbufAttributes, sysClassNet, sysNetOf, sysVirtualNet } from '../../src/net/sysfs.js';
import { directory, file, link, VirtualTree } from '../../src/net/vfs.js';
import { TestKernel } from './kernel.js';
import { bringUp, linux, type SysfsEntry, vethTwin } from './linux.js';

/** The kernel and the devices that the recorded values were read from. */
function recorded() {
  const kernel = new TestKernel();
  const twin = vethTwin(kernel);
  const { veth0 } = twin;
  bringUp(kernel, twin);
  changeFlags(veth0, (veth0.flags & ~0x1000) | 0x380);
  changeTxQueueLen(veth0, 5);
  changeAlias(veth0, 'hello world');
  changeGroup(veth0, 7);
  veth0.setMtu(9000);
  const bridge = createBridge(kernel.net, 'br0');
  bridge.setAddress(Uint8Array.of(2, 0, 0, 0, 0, 9));
  bridge.addPort(veth0);
  bridge.open();
  const tree = new VirtualTree(
    directory(() => ({
      sys: directory(() => ({
        class: directory(() => ({ net: sysClassNet(kernel.net) })),
        devices: directory(() => ({ virtual: directory(() => ({ net: sysVirtualNet(kernel.net) })) })),
      })),
    })),
  );
  return { kernel, veth0, veth1: twin.veth1, bridge, tree };
}

function check(tree: VirtualTree, entries: Record<string, SysfsEntry>, except: RegExp): void {
  for (const [path, { mode, value }] of Object.entries(entries)) {
    if (except.test(path)) continue;
    const whole = `/sys/class/net/veth0/${path}`;
    const [found] = tree.list(whole);
    assert.equal(found.mode.toString(8), mode, `${path}: permissions`);
    if (typeof value === 'string') assert.equal(tree.read(whole), value, path);
    else {
      assert.throws(
        () => tree.read(whole),
        (error: { errno: number }) => error.errno === value.errno,
        path,
      );
    }
  }
}

test('every attribute of a device is there as on Linux: mode, text, errno', () => {
  const { kernel, veth0, veth1, tree } = recorded();
  // Not the packets that the recorded kernel sent by itself, nor the delay before its bridge forwards.
  const own = /^statistics\/[rt]x_(bytes|packets)$|^brport\/(forward_delay_timer|state)$/;
  check(tree, linux.sysfs.up, own);
  veth0.close();
  veth1.carrierOff();
  veth0.carrierOff();
  kernel.scheduler.advance(1000);
  check(tree, linux.sysfs.down, own);
  const names = new Set(tree.list('/sys/class/net/veth0').map(entry => entry.name));
  for (const path of Object.keys(linux.sysfs.up)) assert.ok(names.has(path.split('/')[0]), path);
});

test('writing an attribute does and refuses what Linux does and refuses', () => {
  const { tree, veth0, kernel } = recorded();
  veth0.close();
  const writes = Object.entries(linux.sysfs.writes);
  assert.ok(writes.length > 10);
  for (const [what, { errno, after }] of writes) {
    const [name, shown] = what.split('=');
    const value = name === 'ifalias' ? 'x'.repeat(300) : shown;
    const path = `/sys/class/net/veth0/${name}`;
    if (errno === 0) tree.write(path, `${value}\n`);
    else {
      assert.throws(
        () => tree.write(path, `${value}\n`),
        (error: { errno: number }) => error.errno === errno,
        what,
      );
    }
    kernel.scheduler.advance(2000);
    if (typeof after === 'string') assert.equal(tree.read(path), after, what);
  }
});

test('links lead where Linux leads them', () => {
  const { tree, kernel, bridge } = recorded();
  assert.equal(tree.readLink('/sys/class/net/veth0'), '../../devices/virtual/net/veth0');
  assert.equal(tree.readLink('/sys/class/net/veth0/master'), '../br0');
  assert.equal(tree.read('/sys/class/net/veth0/master/ifindex'), `${bridge.ifindex}\n`);
  assert.equal(tree.read('/sys/class/net/br0/brif/veth0/port_no'), '0x1\n');
  assert.equal(tree.read('/sys/class/net/veth0/subsystem/br0/ifindex'), `${bridge.ifindex}\n`);
  assert.equal(tree.read('/sys/class/net/br0/lower_veth0/ifindex'), '3\n');
  assert.equal(tree.read('/sys/class/net/veth0/brport/bridge/type'), '1\n');
  tree.write('/sys/class/net/veth0/brport/isolated', '1');
  assert.equal(bridge.portList[0].isolated, true);

  const front = kernel.net.allocEtherdev('eth%d', { startXmit: () => 0 });
  front.parentName = 'vif-0';
  front.parentBus = 'xen';
  front.sysfs = netfrontRxbufAttributes(front);
  kernel.net.register(front);
  const root = new VirtualTree(
    directory(() => ({
      class: directory(() => ({ net: sysClassNet(kernel.net) })),
      devices: directory(() => ({
        'vif-0': directory(() => ({
          nodename: file(0o444, () => 'device/vif/0\n'),
          net: sysNetOf(kernel.net, 'vif-0'),
        })),
      })),
    })),
  );
  assert.equal(root.read('/class/net/eth0/device/nodename'), 'device/vif/0\n');
  assert.equal(root.read('/class/net/eth0/rxbuf_cur'), '256\n');
  root.write('/class/net/eth0/rxbuf_min', '64');
  assert.equal(root.read('/class/net/eth0/rxbuf_min'), '256\n');
  assert.throws(() => root.write('/class/net/eth0/rxbuf_max', 'many'), { code: 'EBADMSG' });
});

test('a device is there whatever its name is', () => {
  const { kernel, tree } = recorded();
  const { ifindex } = kernel.device('__proto__');
  assert.equal(tree.read('/sys/class/net/__proto__/ifindex'), `${ifindex}\n`);
});

test('a tree refuses what is not there, not a directory, not readable, or leads in circles', () => {
  const tree = new VirtualTree(
    directory(() => ({
      a: link('b'),
      b: link('a'),
      secret: file(0o200, undefined, () => {}),
      text: file(0o444, () => 'x'),
    })),
  );
  assert.throws(() => tree.read('/a'), { code: 'ENOENT' });
  assert.throws(() => tree.read('/nothing'), { code: 'ENOENT' });
  assert.throws(() => tree.read('/text/more'), { code: 'ENOTDIR' });
  assert.throws(() => tree.read('/'), { code: 'EISDIR' });
  assert.throws(() => tree.read('/secret'), { code: 'EACCES' });
  assert.throws(() => tree.write('/text', 'y'), { code: 'EACCES' });
  assert.deepEqual(
    tree.list('/').map(e => e.name),
    ['a', 'b', 'secret', 'text'],
  );
  assert.equal(tree.read('/../..//./text'), 'x');
});

test('/proc/net/dev is as Linux prints it', () => {
  const kernel = new TestKernel();
  createLoopback(kernel.net);
  const twin = vethTwin(kernel);
  const bridge = createBridge(kernel.net, 'br0');
  Object.assign(twin.veth1.stats, { rxBytes: 108, rxPackets: 2 });
  Object.assign(twin.veth0.stats, { txBytes: 108, txPackets: 2 });
  Object.assign(bridge.stats, { txBytes: 108, txPackets: 2 });
  assert.equal(procNetDev(kernel.net), linux.bridge.procnetdev.stdout);
});
