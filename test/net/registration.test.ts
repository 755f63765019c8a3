import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  etherSetup,
  IFF_XMIT_DST_RELEASE,
  NETREG_REGISTERED,
  NETREG_RELEASED,
  NETREG_UNINITIALIZED,
  NETREG_UNREGISTERED,
  type NetDevice,
  type NetDeviceOps,
} from '../../src/net/device.js';
import {
  fixFeatures,
  NETIF_F_GRO,
  NETIF_F_GRO_HW,
  NETIF_F_GSO,
  NETIF_F_GSO_PARTIAL,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_HW_TLS_RX,
  NETIF_F_HW_TLS_TX,
  NETIF_F_HW_VLAN_CTAG_FILTER,
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_LRO,
  NETIF_F_RXCSUM,
  NETIF_F_RXFCS,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO_ECN,
  NETIF_F_TSO_MANGLEID,
  NETIF_F_TSO6,
} from '../../src/net/features.js';
import { IFF_BROADCAST, IFF_MULTICAST } from '../../src/net/flags.js';
import type { Net } from '../../src/net/net.js';
import {
  eventName,
  NETDEV_POST_INIT,
  NETDEV_REGISTER,
  NETDEV_UNREGISTER,
  NOTIFY_BAD,
  NOTIFY_DONE,
  type NotifierBlock,
  notifierFromErrno,
  notifierToErrno,
} from '../../src/net/notifier.js';
import { decodeLink, decodeMessages, RTM_DELLINK, RTM_NEWLINK } from '../../src/net/rtnetlink.js';
import { sysClassNet, sysVirtualNet } from '../../src/net/sysfs.js';
import { VirtualTree } from '../../src/net/vfs.js';
import { TestKernel } from './kernel.js';

const OPS: NetDeviceOps = { startXmit: () => 0 };

/** What must be the same before and after whatever fails. */
function residue(net: Net): object {
  return {
    devices: net.deviceCount,
    names: net.table.names.size,
    notifiers: net.notifiers.size,
    locked: net.rtnl.locked,
    linkwatch: net.linkwatch.size,
    sysfs: [sysClassNet(net), sysVirtualNet(net)].map(({ entries }) => Object.keys(entries()).length),
    references: [...net.devices].map(device => device.refcount),
    packets: net.packets.used,
  };
}

/** Records events; `veto` answers one of them with an errno. */
function recorder(veto: Record<number, number> = {}): NotifierBlock & { heard: string[] } {
  const heard: string[] = [];
  return {
    heard,
    notifierCall(event, device) {
      heard.push(`${eventName(event)} ${device.name}`);
      return veto[event] !== undefined ? notifierFromErrno(veto[event]) : NOTIFY_DONE;
    },
  };
}

describe('seed 003, 1: allocating and initialising', () => {
  const { net } = new TestKernel();
  const priv = { mine: 1 };
  const order: string[] = [];
  const device = net.allocNetdevMqs(
    'eth%d',
    dev => {
      order.push(`setup with ${dev.txQueues.length} queues, name ${dev.name}`);
      etherSetup(dev);
    },
    OPS,
    { priv, txQueues: 4, rxQueues: 3 },
  );

  test('1.(1) the device and its private data; a failure allocates nothing', () => {
    assert.equal(device.priv, priv);
    assert.equal(device.regState, NETREG_UNINITIALIZED);
    assert.throws(() => net.allocEtherdev('a-name-of-16-chr', OPS), RangeError);
    assert.throws(() => net.allocEtherdev('eth%d', OPS, { txQueues: 0 }), { code: 'EINVAL' });
    assert.throws(() => net.allocEtherdev('eth%d', OPS, { rxQueues: 65536 }), { code: 'EINVAL' });
  });
  test('1.(2) the reference count: 1 in a modern kernel', () => assert.equal(device.refcount, 1));
  test('1.(3) the first hardware address is zero', () =>
    assert.deepEqual([...device.address], [0, 0, 0, 0, 0, 0]));
  test('1.(4) empty multicast and unicast lists', () =>
    assert.deepEqual([device.mc.size, device.uc.size], [0, 0]));
  test('1.(5) the namespace', () => assert.equal(device.net, net));
  test('1.(6) the GSO limits', () =>
    assert.deepEqual([device.gsoMaxSize, device.gsoMaxSegs], [65536, 65535]));
  test('1.(7) empty lists: napi, unregistering, linkwatch', () => {
    assert.deepEqual(device.napis, []);
    assert.equal(net.linkwatch.size, 0);
  });
  test('1.(8) IFF_XMIT_DST_RELEASE', () =>
    assert.equal(device.privFlags & IFF_XMIT_DST_RELEASE, IFF_XMIT_DST_RELEASE));
  test('1.(9) the setup function: what ether_setup sets', () => {
    assert.deepEqual(order, ['setup with 4 queues, name eth%d']);
    assert.deepEqual(
      [device.type, device.hardHeaderLen, device.mtu, device.minMtu, device.maxMtu, device.addrLen],
      [1, 14, 1500, 68, 1500, 6],
    );
    assert.equal(device.txQueueLen, 1000);
    assert.equal(device.flags, IFF_BROADCAST | IFF_MULTICAST);
    assert.deepEqual([...device.broadcast], Array(6).fill(255));
    const plain = net.allocNetdevMqs('x', () => {}, OPS);
    assert.ok(plain.noQueue, 'a setup that sets no queue length wants no queue');
    assert.equal(plain.txQueueLen, 1000);
  });
  test('1.(10) transmit queues', () =>
    assert.deepEqual([device.numTxQueues, device.realNumTxQueues, device.txQueues.length], [4, 4, 4]));
  test('1.(11) receive queues', () => assert.deepEqual([device.numRxQueues, device.realNumRxQueues], [3, 3]));
  test('1.(12) the name keeps its %d until it is registered', () => assert.equal(device.name, 'eth%d'));
});

describe('seed 003, 2: registering', () => {
  test('2.(1) the rtnl lock is held during it, and free afterwards', () => {
    const { net } = new TestKernel();
    const seen: boolean[] = [];
    net.register(net.allocEtherdev('eth%d', { ...OPS, init: () => void seen.push(net.rtnl.locked) }));
    assert.deepEqual([seen, net.rtnl.locked], [[true], false]);
    assert.throws(() => net.register(net.allocEtherdev('a b', OPS)), { code: 'EINVAL' });
    assert.equal(net.rtnl.locked, false);
  });

  test('2.(2) %d becomes the lowest free number', async () => {
    const { net } = new TestKernel();
    const make = (name: string): NetDevice => {
      const device = net.allocEtherdev(name, OPS);
      net.register(device);
      return device;
    };
    const devices = [make('eth%d'), make('eth%d'), make('eth%d'), make('eth01'), make('eth5')];
    assert.deepEqual(
      devices.map(d => d.name),
      ['eth0', 'eth1', 'eth2', 'eth01', 'eth5'],
    );
    await net.unregister(devices[1]);
    assert.equal(make('eth%d').name, 'eth1');
    assert.equal(make('eth%d').name, 'eth3');
    assert.equal(make('eth%d').name, 'eth4');
    assert.equal(make('eth%d').name, 'eth6', 'eth5 is taken, eth01 is not number 1');
    assert.equal(make('vif%d.0').name, 'vif0.0');
    for (const [name, code] of [
      ['', 'EINVAL'],
      ['.', 'EINVAL'],
      ['..', 'EINVAL'],
      ['a/b', 'EINVAL'],
      ['a:b', 'EINVAL'],
      ['a\tb', 'EINVAL'],
      ['eth%', 'EINVAL'],
      ['eth%x', 'EINVAL'],
      ['e%d%d', 'EINVAL'],
      ['eth0', 'EEXIST'],
    ]) {
      const before = residue(net);
      assert.throws(() => make(name), { code }, name);
      assert.deepEqual(residue(net), before);
    }
  });

  test('2.(2) without a free number it is ENFILE', () => {
    const { net } = new TestKernel();
    for (let i = 0; i < 32768; i++) net.table.names.add(`t${i}`);
    assert.throws(() => net.register(net.allocEtherdev('t%d', OPS)), { code: 'ENFILE' });
    net.table.names.delete('t31999');
    const device = net.allocEtherdev('t%d', OPS);
    net.register(device);
    assert.equal(device.name, 't31999');
    for (let i = 0; i < 100; i++) net.table.names.add(`thirteen-char${i}`);
    assert.throws(
      () => net.register(net.allocEtherdev('thirteen-char%d', OPS)),
      { code: 'ENFILE' },
      'cut to 15',
    );
  });

  test('2.(3) and 3.1 registering twice is a fault of the caller', () => {
    const { net } = new TestKernel();
    const device = net.allocEtherdev('eth%d', OPS);
    net.register(device);
    assert.throws(() => net.register(device), /registers once/);
    assert.equal(net.deviceCount, 1);
  });

  test('3.2 init: an errno is passed on, a positive result is EIO, and uninit is not called', () => {
    const { net } = new TestKernel();
    let uninits = 0;
    const uninit = (): void => void uninits++;
    const before = residue(net);
    const attempt = (init: NetDeviceOps['init']): void =>
      net.register(net.allocEtherdev('eth%d', { ...OPS, init, uninit }));
    assert.throws(() => attempt(() => 1), { code: 'EIO' });
    assert.throws(() => attempt(() => -16), { code: 'EBUSY' });
    assert.throws(
      () => {
        attempt(device => {
          throw device.error('ENOMEM', 'no room');
        });
      },
      { code: 'ENOMEM', message: 'ENOMEM: eth0: no room' },
    );
    assert.equal(uninits, 0);
    assert.deepEqual(residue(net), before);
  });

  test('3.3 the name is checked before init in a modern kernel', () => {
    const { net } = new TestKernel();
    let inits = 0;
    const ops = { ...OPS, init: () => void inits++ };
    net.register(net.allocEtherdev('eth0', ops));
    assert.throws(() => net.register(net.allocEtherdev('eth0', ops)), { code: 'EEXIST' });
    assert.equal(inits, 1);
  });

  test('3.4 interface numbers: counted up, asked for, taken, wrapping', async () => {
    const { net } = new TestKernel();
    const make = (asked = 0): NetDevice => {
      const device = net.allocEtherdev('eth%d', OPS);
      device.ifindex = asked;
      net.register(device);
      return device;
    };
    const first = make();
    assert.deepEqual([first.ifindex, first.iflink, make().ifindex, make(7).ifindex], [1, 1, 2, 7]);
    await net.unregister(first);
    assert.equal(make().ifindex, 3, 'a number is not used again at once');
    const before = residue(net);
    assert.throws(() => make(7), { code: 'EBUSY' });
    assert.throws(() => make(-1), { code: 'EINVAL' });
    assert.throws(() => make(2 ** 31), { code: 'EINVAL' });
    assert.deepEqual(residue(net), before);
  });

  test('3.5 features: what the stack does is added, what cannot work is dropped', () => {
    const { net } = new TestKernel();
    const device = net.allocEtherdev('eth%d', OPS);
    device.features = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_HW_CSUM | NETIF_F_TSO;
    device.hwFeatures = device.features;
    net.register(device);
    assert.equal(device.features, NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_TSO | NETIF_F_GSO | NETIF_F_GRO);
    assert.ok(device.hwFeatures & NETIF_F_TSO_MANGLEID);
    assert.ok(device.vlanFeatures & NETIF_F_HIGHDMA);
    const bare = net.allocEtherdev('eth%d', OPS);
    net.register(bare);
    assert.equal(bare.features, NETIF_F_GRO, 'no GSO without scatter-gather');
  });

  test('3.5 every rule of netdev_fix_features', () => {
    const SG = NETIF_F_SG;
    const CSUM = NETIF_F_HW_CSUM;
    const rules: [string, number, number, number?][] = [
      ['generic beats specific checksums', CSUM | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM, CSUM],
      ['TSO needs SG', CSUM | NETIF_F_TSO | NETIF_F_TSO6, CSUM],
      [
        'TSO needs an IPv4 checksum',
        SG | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO_ECN,
        SG | NETIF_F_IPV6_CSUM,
      ],
      ['TSO6 needs an IPv6 checksum', SG | NETIF_F_IP_CSUM | NETIF_F_TSO6, SG | NETIF_F_IP_CSUM],
      ['MANGLEID needs TSO', SG | CSUM | NETIF_F_TSO_MANGLEID, SG | CSUM],
      ['ECN alone is nothing', SG | CSUM | NETIF_F_TSO_ECN, SG | CSUM],
      ['GSO needs SG', NETIF_F_GSO, 0],
      ['partial features need GSO_PARTIAL', SG | CSUM | NETIF_F_TSO, SG | CSUM, NETIF_F_TSO],
      ['partial features stay with it', SG | NETIF_F_GSO_PARTIAL, SG | NETIF_F_GSO_PARTIAL, SG],
      ['GRO_HW needs RXCSUM', NETIF_F_GRO_HW, 0],
      [
        'RXFCS drops LRO and GRO_HW',
        NETIF_F_RXFCS | NETIF_F_RXCSUM | NETIF_F_LRO | NETIF_F_GRO_HW,
        NETIF_F_RXFCS | NETIF_F_RXCSUM,
      ],
      ['GRO_HW drops LRO', NETIF_F_RXCSUM | NETIF_F_GRO_HW | NETIF_F_LRO, NETIF_F_RXCSUM | NETIF_F_GRO_HW],
      ['TLS_TX needs checksums', NETIF_F_HW_TLS_TX | NETIF_F_IP_CSUM, NETIF_F_IP_CSUM],
      [
        'TLS_TX with both is fine',
        NETIF_F_HW_TLS_TX | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM,
        NETIF_F_HW_TLS_TX | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM,
      ],
      ['TLS_RX needs RXCSUM', NETIF_F_HW_TLS_RX, 0],
    ];
    for (const [rule, features, expected, partial = 0] of rules) {
      const said: string[] = [];
      assert.equal(
        fixFeatures(features, partial, what => said.push(what)),
        expected,
        rule,
      );
      assert.equal(said.length > 0, features !== expected, rule);
    }
  });

  test('3.6 POST_INIT and REGISTER are told in this order; a veto of POST_INIT undoes everything', () => {
    const { net } = new TestKernel();
    const listener = recorder();
    net.registerNotifier(listener);
    net.register(net.allocEtherdev('eth%d', OPS));
    assert.deepEqual(listener.heard, ['POST_INIT eth0', 'REGISTER eth0']);
    const veto = recorder({ [NETDEV_POST_INIT]: 12 });
    net.registerNotifier(veto);
    const before = residue(net);
    let uninits = 0;
    const device = net.allocEtherdev('eth%d', { ...OPS, uninit: () => void uninits++ });
    assert.throws(() => net.register(device), { code: 'ENOMEM' });
    assert.deepEqual(residue(net), before);
    assert.deepEqual(
      [uninits, device.regState, device.name, device.ifindex],
      [1, NETREG_UNINITIALIZED, 'eth%d', 0],
    );
    net.unregisterNotifier(veto);
    net.register(device);
    assert.equal(device.name, 'eth1');
  });

  test('3.6 a veto of REGISTER unregisters the device; no RTM_NEWLINK, but RTM_DELLINK', () => {
    const { net } = new TestKernel();
    const messages: number[] = [];
    net.onLinkMessage(m => messages.push(decodeMessages(m)[0].type));
    const veto = recorder({ [NETDEV_REGISTER]: 1 });
    net.registerNotifier(veto);
    const before = residue(net);
    const device = net.allocEtherdev('eth%d', OPS);
    assert.throws(() => net.register(device), { code: 'EPERM' });
    assert.deepEqual(residue(net), before);
    assert.deepEqual(veto.heard, ['POST_INIT eth0', 'REGISTER eth0', 'UNREGISTER eth0', 'PRE_UNINIT eth0']);
    assert.deepEqual([device.regState, device.refcount, messages], [NETREG_UNREGISTERED, 1, [RTM_DELLINK]]);
  });

  test('3.5 a device that claims to filter VLANs, and cannot be told which, is EINVAL after init', () => {
    const { net } = new TestKernel();
    const calls: string[] = [];
    const before = residue(net);
    const device = net.allocEtherdev('eth%d', {
      ...OPS,
      init: () => void calls.push('init'),
      uninit: () => void calls.push('uninit'),
    });
    device.features = NETIF_F_HW_VLAN_CTAG_FILTER;
    assert.throws(() => net.register(device), { code: 'EINVAL' });
    assert.deepEqual(calls, ['init', 'uninit']);
    assert.deepEqual(residue(net), before);
    assert.deepEqual([device.name, device.ifindex, device.refcount], ['eth%d', 0, 1]);
  });

  test('3.7 the sysfs entry: there when REGISTER is told, gone when UNREGISTER is', async () => {
    const { net } = new TestKernel();
    const entries = (): string[] => Object.keys(sysClassNet(net).entries());
    const seen: [string, string[]][] = [];
    net.registerNotifier({
      notifierCall(event) {
        seen.push([eventName(event), entries()]);
        return NOTIFY_DONE;
      },
    });
    const device = net.allocEtherdev('eth%d', OPS);
    assert.deepEqual(entries(), []);
    net.register(device);
    const tree = new VirtualTree(sysVirtualNet(net));
    assert.equal(tree.read('/eth0/ifindex'), `${device.ifindex}\n`);
    assert.equal(tree.read('/eth0/uevent'), `INTERFACE=eth0\nIFINDEX=${device.ifindex}\n`);
    await net.unregister(device);
    assert.deepEqual(seen, [
      ['POST_INIT', []],
      ['REGISTER', ['eth0']],
      ['UNREGISTER', []],
      ['PRE_UNINIT', []],
    ]);
    assert.throws(() => tree.read('/eth0/ifindex'), { code: 'ENOENT' });
  });

  test('3.8 to 3.12: registered, present, noop qdisc, one more reference, found by name and number', () => {
    const { net } = new TestKernel();
    const device = net.allocEtherdev('eth%d', OPS);
    device.address.set([2, 0, 0, 0, 0, 5]);
    net.register(device);
    assert.equal(device.regState, NETREG_REGISTERED);
    assert.ok(device.present);
    assert.equal(device.qdiscKind, 'noop');
    assert.equal(device.txQueues[0].qdisc.kind, 'noop');
    assert.deepEqual([device.refcount, device.heldBy], [2, ['registration']]);
    assert.equal(net.byName('eth0'), device);
    assert.equal(net.byIndex(1), device);
    assert.deepEqual([...net.devices], [device]);
    assert.deepEqual(device.permAddress, device.address);
  });

  test('3.13 RTM_NEWLINK tells of the device, all flags marked as changed', () => {
    const { net } = new TestKernel();
    const messages: Uint8Array[] = [];
    net.onLinkMessage(m => messages.push(m));
    net.register(net.allocEtherdev('eth%d', OPS));
    assert.equal(messages.length, 1);
    const [message] = decodeMessages(messages[0]);
    assert.equal(message.type, RTM_NEWLINK);
    assert.deepEqual(
      [decodeLink(message.payload).ifindex, decodeLink(message.payload).change],
      [1, 0xffffffff],
    );
  });
});

describe('notifiers', () => {
  test('priority first, then age; BAD is EPERM, and the chain stops there', () => {
    const { net } = new TestKernel();
    const order: string[] = [];
    const block = (name: string, priority: number, answer = NOTIFY_DONE): NotifierBlock => ({
      name,
      priority,
      notifierCall: () => {
        order.push(name);
        return answer;
      },
    });
    net.registerNotifier(block('b', 0));
    net.registerNotifier(block('c', 0));
    net.registerNotifier(block('a', 10));
    net.registerNotifier(block('d', -1, NOTIFY_BAD));
    net.registerNotifier(block('e', -2));
    assert.throws(() => net.register(net.allocEtherdev('eth%d', OPS)), { code: 'EPERM' });
    assert.deepEqual(order.slice(0, 4), ['a', 'b', 'c', 'd']);
    assert.deepEqual([0, 1, 12, 22].map(notifierFromErrno).map(notifierToErrno), [0, 1, 12, 22]);
  });

  test('who comes late hears of what is there; a refusal is rolled back', () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    kernel.device('eth%d');
    net.register(net.allocEtherdev('eth%d', OPS));
    const late = recorder();
    net.registerNotifier(late);
    assert.deepEqual(late.heard.splice(0), ['REGISTER eth0', 'UP eth0', 'REGISTER eth1']);
    net.unregisterNotifier(late);
    assert.deepEqual(late.heard, ['GOING_DOWN eth0', 'DOWN eth0', 'UNREGISTER eth0', 'UNREGISTER eth1']);
    assert.throws(() => net.unregisterNotifier(late), { code: 'ENOENT' });

    const heard: string[] = [];
    const before = residue(net);
    const refusing: NotifierBlock = {
      notifierCall(event, device) {
        heard.push(`${eventName(event)} ${device.name}`);
        return event === NETDEV_REGISTER && device.name === 'eth1' ? notifierFromErrno(12) : NOTIFY_DONE;
      },
    };
    assert.throws(() => net.registerNotifier(refusing), { code: 'ENOMEM' });
    assert.deepEqual(heard, [
      'REGISTER eth0',
      'UP eth0',
      'REGISTER eth1',
      'GOING_DOWN eth0',
      'DOWN eth0',
      'UNREGISTER eth0',
    ]);
    assert.deepEqual(residue(net), before);
  });
});

describe('unregistering', () => {
  test('events and messages in the kernel order; the driver stops first', async () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    const log: string[] = [];
    const device = net.allocEtherdev('eth%d', {
      ...OPS,
      stop: () => void log.push('stop'),
      uninit: () => void log.push('uninit'),
    });
    net.register(device);
    device.open();
    net.registerNotifier({ notifierCall: event => void log.push(eventName(event)) });
    net.onLinkMessage(m =>
      log.push(decodeMessages(m)[0].type === RTM_DELLINK ? 'RTM_DELLINK' : 'RTM_NEWLINK'),
    );
    log.length = 0;
    await net.unregister(device);
    assert.deepEqual(log, [
      'GOING_DOWN',
      'stop',
      'RTM_NEWLINK',
      'DOWN',
      'UNREGISTER',
      'PRE_UNINIT',
      'uninit',
      'RTM_DELLINK',
    ]);
    assert.deepEqual([device.regState, device.refcount], [NETREG_UNREGISTERED, 1]);
    net.free(device);
    assert.equal(device.regState, NETREG_RELEASED);
  });

  test('many at once: all close before the first goes', async () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    const devices = [kernel.device('eth%d'), kernel.device('eth%d')];
    const listener = recorder();
    net.registerNotifier(listener);
    listener.heard.length = 0;
    await net.unregisterAll(devices);
    assert.deepEqual(listener.heard, [
      'GOING_DOWN eth0',
      'GOING_DOWN eth1',
      'DOWN eth0',
      'DOWN eth1',
      'UNREGISTER eth0',
      'PRE_UNINIT eth0',
      'UNREGISTER eth1',
      'PRE_UNINIT eth1',
    ]);
  });

  test('it waits for who holds the device: UNREGISTER each second, the log each ten', async () => {
    const kernel = new TestKernel();
    const { net, scheduler } = kernel;
    const device = kernel.device('eth%d');
    const listener = recorder();
    net.registerNotifier(listener);
    device.hold('a packet socket');
    device.hold('a packet socket');
    let gone = false;
    const done = net.unregister(device).then(() => {
      gone = true;
    });
    const count = (): number => listener.heard.filter(e => e.startsWith('UNREGISTER')).length;
    assert.equal(count(), 1);
    scheduler.advance(9_900);
    assert.equal(gone, false);
    assert.ok(count() >= 9 && count() <= 10, `${count()}`);
    assert.deepEqual(kernel.log, []);
    scheduler.advance(500);
    assert.deepEqual(kernel.log, [
      'unregister_netdevice: waiting for eth0 to become free. Usage count = 3 (a packet socket (2))',
    ]);
    device.put('a packet socket');
    assert.throws(() => device.put('somebody else'), RangeError);
    device.put('a packet socket');
    await done;
    assert.ok(gone);
    assert.equal(scheduler.timerCount, 0);
  });

  test('a holder that lets go when it hears UNREGISTER again ends the wait', async () => {
    const kernel = new TestKernel();
    const { net, scheduler } = kernel;
    const device = kernel.device('eth%d');
    device.hold('a route');
    let times = 0;
    net.registerNotifier({
      notifierCall: event => {
        if (event === NETDEV_UNREGISTER && ++times === 3) device.put('a route');
      },
    });
    const done = net.unregister(device);
    scheduler.advance(5_000);
    await done;
    assert.equal(times, 3);
  });

  test('free_netdev: while going it is remembered, never registered it is at once, registered is a fault', () => {
    const { net } = new TestKernel();
    const device = net.allocEtherdev('eth%d', { ...OPS, uninit: dev => net.free(dev) });
    net.register(device);
    assert.throws(() => net.free(device), /unregister it first/);
    void net.unregister(device);
    assert.equal(device.regState, NETREG_RELEASED);
    const never = net.allocEtherdev('eth%d', OPS);
    net.free(never);
    assert.equal(never.regState, NETREG_RELEASED);
  });
});

describe('namespaces', () => {
  test('a device moves: gone here, new there, its number kept when free', () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    const other = net.createNamespace();
    const [here, there] = [recorder(), recorder()];
    const device = kernel.device('eth%d');
    net.registerNotifier(here);
    other.registerNotifier(there);
    here.heard.length = 0;
    net.move(device, other);
    assert.deepEqual(here.heard, ['GOING_DOWN eth0', 'DOWN eth0', 'UNREGISTER eth0']);
    assert.deepEqual(there.heard, ['REGISTER eth0']);
    assert.deepEqual(
      [net.deviceCount, other.byName('eth0'), device.ifindex, device.net],
      [0, device, 1, other],
    );
    device.open();
    assert.ok(device.running);

    const second = kernel.device('eth%d');
    assert.throws(() => net.move(second, other), { code: 'EEXIST' });
    assert.equal(net.byName('eth0'), second);
    net.move(second, other, 'dev%d');
    assert.deepEqual([second.name, second.ifindex], ['dev0', 2]);
  });

  test('what is bound to its namespace, not registered, or of another kernel does not move', () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    const other = net.createNamespace();
    const device = kernel.device('eth%d');
    assert.throws(() => net.move(device, new TestKernel().net), { code: 'EINVAL' });
    device.netnsLocal = true;
    assert.throws(() => net.move(device, other), { code: 'EINVAL' });
    assert.throws(() => net.move(net.allocEtherdev('eth%d', OPS), other), { code: 'EINVAL' });
    assert.equal(net.byName('eth0'), device);
  });
});
