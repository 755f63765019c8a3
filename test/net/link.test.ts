import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { NET_ADDR_SET, NETREG_REGISTERED, type NetDevice } from '../../src/net/device.js';
import { DynamicQueueLimit } from '../../src/net/dql.js';
import {
  NETIF_F_GRO,
  NETIF_F_GSO,
  NETIF_F_HW_CSUM,
  NETIF_F_LLTX,
  NETIF_F_SG,
  NETIF_F_TSO,
} from '../../src/net/features.js';
import {
  changeAlias,
  changeFlags,
  changeTxQueueLen,
  ethMacAddr,
  ethValidateAddress,
  notifyPeers,
  refreshFeatures,
  wantFeatures,
} from '../../src/net/link.js';
import {
  eventName,
  NETDEV_CHANGE_TX_QUEUE_LEN,
  NETDEV_CHANGEMTU,
  NETDEV_CHANGENAME,
  NETDEV_PRE_CHANGEADDR,
  NETDEV_PRE_UP,
  NETDEV_PRECHANGEMTU,
  notifierFromErrno,
} from '../../src/net/notifier.js';
import {
  IF_OPER_DORMANT,
  IF_OPER_DOWN,
  IF_OPER_LOWERLAYERDOWN,
  IF_OPER_UNKNOWN,
  IF_OPER_UP,
  shownOperstate,
} from '../../src/net/operstate.js';
import { buildFrame } from './frames.js';
import { TestKernel } from './kernel.js';

/** A device whose driver writes down what it is asked, and the events beside it. */
function setUp(options: { open?: () => void } = {}) {
  const kernel = new TestKernel();
  const { net } = kernel;
  const log: string[] = [];
  const vetoes = new Map<number, number>();
  const device = net.allocEtherdev('eth%d', {
    startXmit: () => 0,
    open: () => {
      log.push('ndo_open');
      options.open?.();
    },
    stop: () => void log.push('ndo_stop'),
    validateAddress: ethValidateAddress,
    setMacAddress: ethMacAddr,
    changeMtu: (_, mtu) => void log.push(`ndo_change_mtu ${mtu}`),
    setRxMode: () => void log.push('ndo_set_rx_mode'),
    changeRxFlags: (_, flags) => void log.push(`ndo_change_rx_flags ${flags.toString(16)}`),
  });
  device.address.set([2, 0, 0, 0, 0, 1]);
  net.register(device);
  net.registerNotifier({
    notifierCall: event => {
      log.push(eventName(event));
      const errno = vetoes.get(event);
      return errno === undefined ? 0 : notifierFromErrno(errno);
    },
  });
  log.length = 0;
  return { kernel, net, device: device as NetDevice, log, vetoes, said: () => log.splice(0) };
}

describe('up and down', () => {
  test('open: PRE_UP, the address is checked, the driver, UP; close the other way round', () => {
    const { device, said } = setUp();
    device.open();
    assert.deepEqual(said(), ['PRE_UP', 'ndo_open', 'ndo_set_rx_mode', 'UP']);
    device.open();
    assert.deepEqual(said(), []);
    device.close();
    assert.deepEqual(said(), ['GOING_DOWN', 'ndo_stop', 'DOWN']);
  });

  test('a veto of PRE_UP, a bad address, a driver that fails: the device stays down', () => {
    const fail = setUp({
      open: () => {
        throw Object.assign(new Error('EIO: no'), { code: 'EIO' });
      },
    });
    assert.throws(() => fail.device.open(), { code: 'EIO' });
    assert.deepEqual([fail.device.running, fail.device.flagsUp], [false, false]);

    const { device, vetoes, said } = setUp();
    vetoes.set(NETDEV_PRE_UP, 132);
    assert.throws(() => device.open());
    assert.deepEqual([said(), device.running], [['PRE_UP'], false]);
    vetoes.clear();
    device.address.fill(0);
    assert.throws(() => device.open(), { code: 'EADDRNOTAVAIL' });
    assert.deepEqual([device.running, device.flagsUp], [false, false]);
  });

  test('what is not registered cannot be opened', () => {
    const { net } = setUp();
    assert.throws(() => net.allocEtherdev('x', { startXmit: () => 0 }).open(), { code: 'ENODEV' });
  });

  test('flags: up by flag, promiscuous for the user besides others, the rest as asked', () => {
    const { kernel, device, said } = setUp();
    changeFlags(device, 0x1003 | 0x100);
    assert.deepEqual(
      said(),
      ['ndo_open', 'ndo_set_rx_mode', 'ndo_change_rx_flags 100', 'ndo_set_rx_mode', 'UP'].toSpliced(
        0,
        0,
        'PRE_UP',
      ),
    );
    assert.equal(device.displayFlags & 0x101, 0x101);
    device.setPromiscuity(1);
    changeFlags(device, 0x1003);
    assert.deepEqual([device.promiscuity, device.flags & 0x100, device.displayFlags & 0x100], [1, 0x100, 0]);
    device.setPromiscuity(-1);
    assert.equal(device.flags & 0x100, 0);
    assert.throws(() => device.setPromiscuity(-1), RangeError);
    assert.deepEqual(kernel.log, ['eth0: entered promiscuous mode', 'eth0: left promiscuous mode']);
    said();
    changeFlags(device, 0x1003 | 0x80);
    assert.deepEqual(said(), ['ndo_set_rx_mode', 'CHANGE']);
  });
});

describe('carrier', () => {
  test('beginning to work is told at once, other news a second apart; the state follows', () => {
    const { kernel, device, said } = setUp();
    assert.equal(device.operstate, IF_OPER_UNKNOWN, 'nobody has ever said anything about the carrier');
    device.carrierOff();
    device.open();
    kernel.scheduler.advance(2000);
    said();
    assert.equal(device.operstate, IF_OPER_DOWN);
    device.carrierOn();
    kernel.run();
    assert.deepEqual([said(), device.operstate], [['CHANGE'], IF_OPER_UP]);
    device.carrierOff();
    kernel.run();
    device.carrierOn();
    kernel.run();
    const soon = said().length;
    for (let i = 0; i < 20; i++) {
      device.carrierOff();
      kernel.scheduler.advance(10);
    }
    assert.ok(soon <= 2);
    kernel.scheduler.advance(1000);
    assert.equal(said().length, 1, 'gathered');
    assert.equal(device.operstate, IF_OPER_DOWN);
    assert.equal(kernel.scheduler.timerCount, 0);
    assert.deepEqual([device.carrierUpCount, device.carrierDownCount], [2, 3]);
  });

  test('dormant, link below, closed: the operational state in each', () => {
    const { kernel, device } = setUp();
    device.open();
    device.setDormant(true);
    kernel.scheduler.advance(1000);
    assert.equal(device.operstate, IF_OPER_DORMANT);
    assert.equal(device.displayFlags & 0x30040, 0x30000, 'LOWER_UP and DORMANT, not RUNNING');
    device.setDormant(false);
    device.iflink = 77;
    device.carrierOff();
    kernel.scheduler.advance(1000);
    assert.equal(device.operstate, IF_OPER_LOWERLAYERDOWN);
    device.close();
    assert.equal(shownOperstate(device), IF_OPER_DOWN);
  });

  test('a device that goes while linkwatch has news of it is not waited for', async () => {
    const { kernel, net, device } = setUp();
    device.open();
    device.carrierOff();
    await net.unregister(device);
    assert.equal(net.linkwatch.size, 0);
    assert.equal(device.refcount, 1);
    kernel.scheduler.advance(5000);
  });
});

describe('changes', () => {
  test('MTU: limits, veto before, veto after brings the old one back', () => {
    const { device, vetoes, said } = setUp();
    assert.throws(() => device.setMtu(67), { code: 'EINVAL', message: /less than device minimum.*68/ });
    assert.throws(() => device.setMtu(1501), {
      code: 'EINVAL',
      message: /greater than device maximum.*1500/,
    });
    assert.throws(() => device.setMtu(100.5), { code: 'EINVAL' });
    assert.deepEqual(said(), []);
    device.setMtu(1400);
    assert.deepEqual(said(), ['PRECHANGEMTU', 'ndo_change_mtu 1400', 'CHANGEMTU']);
    vetoes.set(NETDEV_PRECHANGEMTU, 16);
    assert.throws(() => device.setMtu(1300), { code: 'EBUSY' });
    vetoes.clear();
    vetoes.set(NETDEV_CHANGEMTU, 16);
    said();
    assert.throws(() => device.setMtu(1300), { code: 'EBUSY' });
    assert.equal(device.mtu, 1400);
    assert.deepEqual(said(), [
      'PRECHANGEMTU',
      'ndo_change_mtu 1300',
      'CHANGEMTU',
      'ndo_change_mtu 1400',
      'CHANGEMTU',
    ]);
  });

  test('address: only when the driver can, when it is down, and when it is one', () => {
    const { net, device, vetoes, said } = setUp();
    const plain = net.allocEtherdev('x', { startXmit: () => 0 });
    net.register(plain);
    assert.throws(() => plain.setAddress(Uint8Array.of(2, 0, 0, 0, 0, 9)), { code: 'EOPNOTSUPP' });
    said();
    assert.throws(() => device.setAddress(Uint8Array.of(2, 0)), { code: 'EINVAL' });
    assert.throws(() => device.setAddress(Uint8Array.of(1, 0, 0, 0, 0, 0)), { code: 'EADDRNOTAVAIL' });
    vetoes.set(NETDEV_PRE_CHANGEADDR, 1);
    assert.throws(() => device.setAddress(Uint8Array.of(2, 0, 0, 0, 0, 9)), { code: 'EPERM' });
    vetoes.clear();
    said();
    device.setAddress(Uint8Array.of(2, 0, 0, 0, 0, 9));
    assert.deepEqual(
      [said(), device.address[5], device.addrAssignType],
      [['PRE_CHANGEADDR', 'CHANGEADDR'], 9, NET_ADDR_SET],
    );
    device.open();
    assert.throws(() => device.setAddress(Uint8Array.of(2, 0, 0, 0, 0, 8)), { code: 'EBUSY' });
    device.liveAddressChange = true;
    device.setAddress(Uint8Array.of(2, 0, 0, 0, 0, 8));
  });

  test('rename: while up, with %d, a veto brings the old name back', () => {
    const { kernel, net, device, vetoes, said } = setUp();
    device.open();
    said();
    device.rename('lan%d');
    assert.deepEqual(
      [device.name, said(), net.byName('lan0'), net.byName('eth0')],
      ['lan0', ['CHANGENAME'], device, undefined],
    );
    assert.deepEqual(kernel.log, ['lan0: renamed from eth0 (while UP)']);
    device.rename('lan0');
    assert.deepEqual(said(), []);
    assert.throws(() => device.rename('a/b'), { code: 'EINVAL' });
    vetoes.set(NETDEV_CHANGENAME, 22);
    assert.throws(() => device.rename('wan'), { code: 'EINVAL' });
    assert.deepEqual([device.name, net.byName('lan0'), net.byName('wan')], ['lan0', device, undefined]);
    vetoes.clear();
    const other = net.allocEtherdev('wan', { startXmit: () => 0 });
    net.register(other);
    assert.throws(() => device.rename('wan'), { code: 'EEXIST' });
  });

  test('queue length, alias', () => {
    const { device, vetoes } = setUp();
    changeTxQueueLen(device, 7);
    assert.throws(() => changeTxQueueLen(device, 2 ** 32), { code: 'ERANGE' });
    vetoes.set(NETDEV_CHANGE_TX_QUEUE_LEN, 22);
    assert.throws(() => changeTxQueueLen(device, 8), { code: 'EINVAL' });
    assert.equal(device.txQueueLen, 7);
    changeAlias(device, 'x'.repeat(255));
    assert.throws(() => changeAlias(device, 'x'.repeat(256)), { code: 'EINVAL' });
  });

  test('features: wanted ones as far as they go; a driver that fails keeps the old ones', () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    let able = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_TSO;
    let fail = false;
    const device = net.allocEtherdev('eth%d', {
      startXmit: () => 0,
      fixFeatures: (_, features) => features & (able | NETIF_F_GSO | NETIF_F_GRO),
      setFeatures: dev => {
        if (fail) throw dev.error('EIO', 'broken');
      },
    });
    device.hwFeatures = device.features = able;
    net.register(device);
    const events: string[] = [];
    net.registerNotifier({ notifierCall: event => void events.push(eventName(event)) });
    events.length = 0;
    assert.equal(wantFeatures(device, NETIF_F_TSO, 0), 0);
    assert.equal(device.features & NETIF_F_TSO, 0);
    assert.deepEqual(events.splice(0), ['FEAT_CHANGE']);
    wantFeatures(device, NETIF_F_TSO, NETIF_F_TSO);
    assert.equal(wantFeatures(device, NETIF_F_SG, 0), 0);
    assert.equal(device.features & (NETIF_F_TSO | NETIF_F_GSO), 0, 'they need scatter-gather');
    wantFeatures(device, NETIF_F_SG, NETIF_F_SG);
    assert.notEqual(device.features & NETIF_F_TSO, 0, 'it is still wanted');
    able = NETIF_F_SG;
    assert.equal(net.updateFeatures(device), true);
    assert.equal(wantFeatures(device, NETIF_F_TSO, NETIF_F_TSO), NETIF_F_TSO, 'not possible now');
    assert.throws(() => wantFeatures(device, NETIF_F_LLTX, 0), { code: 'EINVAL' });
    fail = true;
    able = NETIF_F_SG | NETIF_F_HW_CSUM;
    const before = device.features;
    assert.equal(refreshFeatures(device), false);
    assert.equal(device.features, before);
    assert.match(kernel.log.at(-1)!, /set_features\(\) failed \(-5\)/);
  });

  test('lists: addresses are counted; without a filter a unicast list makes the device promiscuous', () => {
    const { device } = setUp();
    device.open();
    const a = Uint8Array.of(2, 0, 0, 0, 0, 7);
    device.addUnicast(a);
    device.addUnicast(a);
    assert.deepEqual([device.uc.size, device.promiscuity], [1, 1]);
    device.deleteUnicast(a);
    assert.equal(device.promiscuity, 1);
    device.deleteUnicast(a);
    assert.deepEqual([device.uc.size, device.promiscuity], [0, 0]);
    assert.throws(() => device.deleteUnicast(a), { code: 'ENOENT' });
    device.unicastFilter = true;
    device.addUnicast(a);
    assert.equal(device.promiscuity, 0);
    device.addMulticast(Uint8Array.of(1, 0, 0x5e, 0, 0, 1));
    assert.equal(device.mc.size, 1);
    device.setAllmulti(1);
    assert.equal(device.flags & 0x200, 0x200);
    assert.throws(() => device.uc.addExclusive(a), { code: 'EEXIST' });
  });

  test('neighbours are told: NOTIFY_PEERS, then RESEND_IGMP', () => {
    const { device, said } = setUp();
    notifyPeers(device);
    assert.deepEqual(said(), ['NOTIFY_PEERS', 'RESEND_IGMP']);
  });
});

describe('transmit queues', () => {
  test('noop before it is up, pfifo_fast for one queue, mq for more, noqueue without a length', () => {
    const kernel = new TestKernel();
    const { net } = kernel;
    const make = (options: { txQueues?: number; length?: number }): NetDevice => {
      const device = net.allocNetdevMqs(
        'q%d',
        d => {
          d.txQueueLen = options.length ?? 10;
        },
        { startXmit: () => 0 },
        options,
      );
      net.register(device);
      return device as NetDevice;
    };
    for (const [options, kind] of [
      [{}, 'pfifo_fast'],
      [{ txQueues: 4 }, 'mq'],
      [{ length: 0 }, 'noqueue'],
    ] as const) {
      const device = make(options);
      assert.equal(device.qdiscKind, 'noop');
      device.open();
      assert.equal(device.qdiscKind, kind);
      device.close();
      assert.equal(device.qdiscKind, kind, 'kept for the next time');
    }
    const device = make({ txQueues: 4 });
    assert.throws(() => device.setRealNumTxQueues(5), { code: 'EINVAL' });
    assert.throws(() => device.setRealNumTxQueues(0), { code: 'EINVAL' });
    assert.throws(() => device.setRealNumRxQueues(2), { code: 'EINVAL' });
    device.open();
    device.setRealNumTxQueues(2);
    assert.equal(device.realNumTxQueues, 2);
  });

  test('the watchdog: a queue that stays stopped is reported, and nothing ticks otherwise', () => {
    const kernel = new TestKernel();
    const { net, scheduler } = kernel;
    const timeouts: number[] = [];
    const device = net.allocEtherdev('eth%d', {
      startXmit: () => 0,
      txTimeout: (_, queue) => void timeouts.push(queue),
    });
    device.driver = 'vif';
    device.watchdogMs = 3000;
    net.register(device);
    device.open();
    assert.equal(scheduler.timerCount, 0);
    const [queue] = device.txQueues;
    queue.stop();
    scheduler.advance(2000);
    queue.wake();
    queue.stop();
    scheduler.advance(2999);
    assert.deepEqual(timeouts, []);
    scheduler.advance(1);
    assert.deepEqual(timeouts, [0]);
    assert.match(kernel.log[0], /^NETDEV WATCHDOG: eth0 \(vif\): transmit queue 0 timed out \d+ ms$/);
    assert.equal(queue.timeouts, 1);
    queue.wake();
    scheduler.advance(10_000);
    assert.equal(scheduler.timerCount, 0);
    assert.equal(timeouts.length, 1);
  });

  test('the watchdog: a queue that stays stopped is reported each time, at whatever fraction of a millisecond', () => {
    for (let us = 0; us < 1000; us += 7) {
      const { net, scheduler } = new TestKernel();
      const device = net.allocEtherdev('eth%d', { startXmit: () => 0, txTimeout: () => {} });
      device.watchdogMs = 30_000;
      net.register(device);
      device.open();
      scheduler.advance(us / 1000);
      const [queue] = device.txQueues;
      queue.stop();
      for (let i = 1; i <= 3; i++) {
        scheduler.advance(30_001);
        assert.equal(queue.timeouts, i, `stopped at ${us} µs`);
      }
    }
  });

  test('byte queue limit: stops the queue, grows when the device runs dry, never loses count', () => {
    const kernel = new TestKernel();
    const device = kernel.device('eth%d', { txQueueLen: 1000 });
    const [queue] = device.txQueues;
    queue.sent(1500);
    assert.ok(queue.stopped, 'nothing is known yet: one packet at a time');
    queue.completed(1500);
    assert.ok(!queue.stopped);
    assert.ok(queue.dql.limit >= 1500, `${queue.dql.limit}`);
    let largest = 0;
    for (let round = 0; round < 200; round++) {
      let sent = 0;
      while (!queue.stopped && sent < 64 * 1500) {
        queue.sent(1500);
        sent += 1500;
      }
      largest = Math.max(largest, queue.dql.inflight);
      queue.completed(queue.dql.inflight);
    }
    assert.ok(largest > 10 * 1500, 'a device that empties its ring each time gets more');
    assert.throws(() => queue.completed(1), RangeError);
    queue.resetLimit();
    assert.equal(queue.dql.inflight, 0);
    assert.ok(!queue.stopped);
    queue.setMinLimit(1500);
    for (let i = 0; i < 2; i++) queue.sent(1000);
    queue.completed(100);
    assert.ok(queue.stopped, '1900 bytes are more than the limit');
    queue.completed(400);
    assert.ok(!queue.stopped);
  });

  test('the limit shrinks by what was to spare for a second, and not by what is needed', () => {
    const dql = new DynamicQueueLimit();
    dql.limit = 10_000;
    dql.sent(10_000);
    let now = 0;
    /** Has always as many bytes under way, of which so many are done at a time. */
    const steps = (ms: number, ...sizes: number[]): void => {
      for (const until = now + ms; now < until; now += 10) {
        const bytes = sizes[(now / 10) % sizes.length];
        dql.done(bytes, { now });
        dql.sent(bytes);
      }
    };
    // At times more than half of it is done at once: with less, the device would run dry.
    steps(5000, 1000, 6000);
    assert.equal(dql.limit, 10_000);
    steps(900, 1000);
    assert.equal(dql.limit, 10_000);
    steps(1200, 1000);
    assert.equal(dql.limit, 2000);
  });

  test('the limit under any traffic: inflight is what was sent and not completed; room exists after all is done', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ send: fc.nat(9000), done: fc.nat(20000), wait: fc.nat(500) })),
        steps => {
          const dql = new DynamicQueueLimit();
          let now = 0;
          let inflight = 0;
          for (const step of steps) {
            if (dql.available >= 0) {
              dql.sent(step.send);
              inflight += step.send;
            }
            const done = Math.min(step.done, inflight);
            now += step.wait;
            dql.done(done, { now });
            inflight -= done;
            assert.equal(dql.inflight, inflight);
            assert.ok(dql.limit >= 0);
            if (inflight === 0) assert.ok(dql.available >= 0);
          }
        },
      ),
    );
  });

  test('mq: packets go where selectQueue says, and nowhere it cannot', () => {
    const kernel = new TestKernel();
    let pick = 3;
    const queues: number[] = [];
    const device = kernel.net.allocEtherdev(
      'eth%d',
      {
        startXmit: packet => {
          queues.push(packet.queue);
          packet.release();
          return 0;
        },
        selectQueue: () => pick,
      },
      { txQueues: 4 },
    );
    kernel.net.register(device);
    device.open();
    for (pick of [3, 9, -1]) device.xmit(kernel.packet(buildFrame({ payload: new Uint8Array(3) })));
    assert.deepEqual(queues, [3, 0, 0]);
  });
});

test('any sequence of operations keeps to a simple model of names, numbers and states', () => {
  const name = fc.constantFrom('a', 'b', 'eth0', 'eth1', 'eth%d', 'bad/name', 'x%d');
  const step = fc.record({
    op: fc.constantFrom(
      'register',
      'register',
      'register',
      'unregister',
      'rename',
      'open',
      'close',
      'veto',
      'init',
    ),
    name,
    which: fc.nat(9),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), steps => {
      const kernel = new TestKernel({ pages: 8 });
      const { net } = kernel;
      let vetoed = 0;
      net.registerNotifier({
        notifierCall: () => (vetoed > 0 && --vetoed === 0 ? notifierFromErrno(16) : 0),
      });
      const model: { name: string; up: boolean; device: NetDevice }[] = [];
      const expand = (template: string): string | null => {
        if (template.includes('/')) return null;
        if (!template.includes('%d')) return model.some(m => m.name === template) ? null : template;
        for (let n = 0; ; n++) {
          const candidate = template.replace('%d', `${n}`);
          if (!model.some(m => m.name === candidate)) return candidate;
        }
      };
      for (const { op, name: wanted, which } of steps) {
        const entry = model[which % Math.max(1, model.length)];
        vetoed = 0;
        if (op === 'register' || op === 'veto' || op === 'init') {
          // POST_INIT is the first event that may be vetoed, REGISTER the second.
          if (op === 'veto') vetoed = 1 + (which & 1);
          const device = net.allocEtherdev(wanted, {
            startXmit: () => 0,
            init: () => (op === 'init' ? -5 : 0),
          });
          const chosen = expand(wanted);
          if (chosen === null || op !== 'register') assert.throws(() => net.register(device));
          else {
            net.register(device);
            assert.equal(device.name, chosen);
            model.push({ name: chosen, up: false, device: device as NetDevice });
          }
        } else if (entry === undefined) continue;
        else if (op === 'unregister') {
          void net.unregister(entry.device);
          model.splice(model.indexOf(entry), 1);
        } else if (op === 'open') {
          entry.device.open();
          entry.up = true;
        } else if (op === 'close') {
          entry.device.close();
          entry.up = false;
        } else {
          const chosen = wanted === entry.name ? wanted : expand(wanted);
          if (chosen === null) assert.throws(() => entry.device.rename(wanted));
          else {
            entry.device.rename(wanted);
            entry.name = chosen;
          }
        }
        vetoed = 0;
        assert.deepEqual(
          [...net.devices].map(d => d.name),
          model.map(m => m.name),
        );
        assert.equal(net.table.names.size, model.length);
        assert.equal(net.notifiers.size, 1);
        for (const { name: expected, up, device } of model) {
          assert.equal(net.byName(expected), device);
          assert.equal(net.byIndex(device.ifindex), device);
          assert.deepEqual([device.running, device.regState, device.refcount], [up, NETREG_REGISTERED, 2]);
        }
      }
    }),
    { numRuns: 200 },
  );
});
