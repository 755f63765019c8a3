import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  XEN_NETIF_CTRL_STATUS as STATUS,
  XEN_NETIF_CTRL_TYPE as T,
  toeplitzHash,
  XenbusState,
} from '../../src/abi/index.js';
import { RpcRegistry } from '../../src/cli/rpc.js';
import { registerVifMethods } from '../../src/cli/vif-methods.js';
import { ControlRing, HashConfig, StaticGrants, type Vif, vifsOf } from '../../src/netback/index.js';
import { Control } from '../../src/netfront/control.js';
import { Netfront } from '../../src/netfront/index.js';
import { PAGE_SHIFT } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath, type Dom } from '../support/data-path.js';
import { Host } from '../support/host.js';
import { collect, packetFrom } from '../support/packets.js';

const key = Uint8Array.from({ length: 40 }, (_, i) => i * 5 + 1);

/** A control ring with both ends, and what the backend's end changes. */
function controlRing(seed: number, queues = 4) {
  const path = new DataPath(seed);
  const guest = path.guest().dom;
  const { platform, irqs } = path.dom0;
  const { domid } = guest.platform;
  const broken: string[] = [];
  const front = new Control({ ...guest, backendId: 0, broken: reason => broken.push(reason) }, 'eth0');
  const hash = new HashConfig();
  const staticGrants = Array.from({ length: queues }, () => new StaticGrants(platform, domid));
  const ring = platform.grants.map(domid, front.ringRef, false);
  const fatal: string[] = [];
  const target = { platform, irqs, hash, staticGrants, fatal: (reason: string) => void fatal.push(reason) };
  const back = new ControlRing(target, { domid, ring, port: front.port }, `vif${domid}.0`);
  const ask = async (type: number, a = 0, b = 0, c = 0) => {
    const answer = front.request(type, a, b, c);
    await path.settle();
    return answer;
  };
  return { path, guest, front, back, hash, staticGrants, ask, fatal, broken };
}

/** A page of the guest's with these words, granted to domain 0. */
function grantWords(guest: Dom, words: number[]): number {
  const { memory, grants } = guest.platform;
  const page = memory.allocPage();
  memory.memory.u32.set(words, (page << PAGE_SHIFT) >>> 2);
  return grants.grantAccess(0, page, false);
}

describe('the control ring', () => {
  test('answers as the protocol says', async () => {
    const { ask, hash } = controlRing(1);
    assert.deepEqual(await ask(T.GET_HASH_FLAGS), { status: STATUS.NOT_SUPPORTED, data: 0 });
    assert.equal((await ask(T.SET_HASH_FLAGS, 15)).status, STATUS.INVALID_PARAMETER, 'before an algorithm');
    assert.equal((await ask(T.SET_HASH_ALGORITHM, 2)).status, STATUS.INVALID_PARAMETER);
    assert.equal((await ask(T.SET_HASH_ALGORITHM, 1)).status, STATUS.SUCCESS);
    assert.deepEqual(await ask(T.GET_HASH_FLAGS), { status: STATUS.SUCCESS, data: 15 });
    assert.equal((await ask(T.SET_HASH_FLAGS, 16)).status, STATUS.INVALID_PARAMETER);
    assert.equal((await ask(T.SET_HASH_FLAGS, 10)).status, STATUS.SUCCESS);
    assert.equal(hash.flags, 10);
    assert.deepEqual(await ask(T.GET_HASH_MAPPING_SIZE), { status: STATUS.SUCCESS, data: 128 });
    for (const type of [T.INVALID, 11, 0xffff]) assert.equal((await ask(type)).status, STATUS.NOT_SUPPORTED);
  });

  test('XSA-270: sizes and offsets of mapping and key are bounded, and a refused request changes nothing', async () => {
    const { ask, hash, guest } = controlRing(2);
    const gref = grantWords(guest, [0, 1, 2, 3]);
    assert.equal((await ask(T.SET_HASH_MAPPING_SIZE, 129)).status, STATUS.INVALID_PARAMETER);
    assert.equal((await ask(T.SET_HASH_MAPPING_SIZE, 128)).status, STATUS.SUCCESS);
    assert.equal((await ask(T.SET_HASH_MAPPING, gref, 4, 0)).status, STATUS.SUCCESS);
    const before = [...hash.mapping];
    assert.deepEqual(before.slice(0, 5), [0, 1, 2, 3, 0]);
    const refused: [number, number, number][] = [
      [gref, 2, 0xffffffff],
      [gref, 0xffffffff, 2],
      [gref, 100, 100],
      [gref, 1025, 0],
      [gref, 1, 128],
      [0xfffffff0, 4, 0],
      [grantWords(guest, [0, 1, 4]), 3, 0],
      [grantWords(guest, [0xffffffff]), 1, 0],
    ];
    for (const request of refused) {
      assert.equal(
        (await ask(T.SET_HASH_MAPPING, ...request)).status,
        STATUS.INVALID_PARAMETER,
        `${request}`,
      );
      assert.deepEqual([...hash.mapping], before);
    }
    assert.equal((await ask(T.SET_HASH_MAPPING, gref, 0, 128)).status, STATUS.SUCCESS, 'nothing at the end');
    assert.equal((await ask(T.SET_HASH_KEY, gref, 41)).status, STATUS.BUFFER_OVERFLOW);
    assert.equal((await ask(T.SET_HASH_KEY, 0xfffffff0, 40)).status, STATUS.INVALID_PARAMETER);
    assert.equal((await ask(T.SET_HASH_KEY, gref, 8)).status, STATUS.SUCCESS);
    assert.deepEqual([...hash.key.subarray(0, 9)], [0, 0, 0, 0, 1, 0, 0, 0, 0]);
    assert.equal((await ask(T.SET_HASH_KEY, 0xfffffff0, 0)).status, STATUS.SUCCESS, 'no bytes, no grant');
    assert.ok(hash.key.every(octet => octet === 0));
    assert.equal((await ask(T.SET_HASH_MAPPING_SIZE, 2)).status, STATUS.SUCCESS);
    assert.ok(
      hash.mapping.every(queue => queue === 0),
      'a new size empties the mapping',
    );
  });

  test('static grants are all mapped or none, and each removal has its own status', async () => {
    const { ask, guest, staticGrants, path } = controlRing(3);
    const entry = () => [guest.platform.grants.grantAccess(0, guest.platform.memory.allocPage(), true), 1];
    const good = [entry(), entry(), entry()];
    assert.equal((await ask(T.GET_GREF_MAPPING_SIZE, 0)).data, 768);
    assert.equal((await ask(T.GET_GREF_MAPPING_SIZE, 4)).status, STATUS.INVALID_PARAMETER);
    const { mapped } = path.dom0.platform.grants;
    const bad = grantWords(guest, [...good[0], 0xfffff, 0].flat());
    assert.equal((await ask(T.ADD_GREF_MAPPING, 0, bad, 2)).status, STATUS.INVALID_PARAMETER);
    assert.equal(path.dom0.platform.grants.mapped, mapped, 'nothing stays mapped');
    const list = grantWords(guest, good.flat());
    assert.equal((await ask(T.ADD_GREF_MAPPING, 1, list, 3)).status, STATUS.SUCCESS);
    assert.equal(staticGrants[1].size, 3);
    const page = path.dom0.platform.memory.allocPage();
    assert.equal(staticGrants[1].read(good[0][0], 0, page, 0, 8), true);
    assert.equal(staticGrants[1].write(good[0][0], 0, page, 0, 8), false, 'read-only');
    assert.equal(staticGrants[0].read(good[0][0], 0, page, 0, 8), false, "another queue's");
    assert.equal((await ask(T.ADD_GREF_MAPPING, 1, list, 513)).status, STATUS.INVALID_PARAMETER);
    const removal = grantWords(guest, [good[1][0], 0, 0xfffff, 0]);
    assert.deepEqual(await ask(T.DEL_GREF_MAPPING, 1, removal, 2), { status: STATUS.SUCCESS, data: 1 });
    assert.equal(staticGrants[1].size, 2);
    staticGrants[1].destroy();
    assert.equal(path.dom0.platform.grants.mapped, mapped);
  });

  test('a producer index beyond the ring ends it once', async () => {
    const { path, front, ask, fatal, guest } = controlRing(4);
    await ask(T.GET_HASH_FLAGS);
    const { memory } = guest.platform.memory;
    const ring = path.dom0.platform.grants.map(guest.platform.domid, front.ringRef, false);
    for (let i = 0; i < 2; i++) {
      void front.request(T.GET_HASH_FLAGS);
      memory.store(ring.address, 1000);
      await path.settle();
    }
    assert.equal(fatal.length, 1);
    assert.match(fatal[0], /999 requests/);
  });
});

test('a guest sets its hash up, gets it with each packet, and has flows where it wants them', async () => {
  const host = await Host.boot(61);
  const guest = await host.createGuest('a', { maxQueues: 4 });
  const other = await host.createGuest('b');
  const eth0 = await host.connectVif(guest);
  const peer = await host.connectVif(other);
  const front = eth0.priv as Netfront;
  assert.ok(front instanceof Netfront);
  await host.run(front.setHash({ flags: 15, key, mapping: [3, 3, 3, 3] }));
  const got: { hash: number; hashType: number }[] = [];
  eth0.rxHandler = packet => {
    got.push({ hash: packet.hash, hashType: packet.hashType });
    packet.release();
  };
  for (const version of [4, 6] as const) {
    const frame = {
      version,
      source: [...peer.address],
      destination: [...eth0.address],
      payload: Uint8Array.of(1),
    };
    const bytes = buildFrame(frame);
    got.length = 0;
    peer.xmit(packetFrom(peer, bytes));
    await host.until(() => got.length === 1);
    const addresses = version === 4 ? bytes.subarray(26, 34) : bytes.subarray(22, 54);
    const ports = version === 4 ? bytes.subarray(34, 38) : bytes.subarray(54, 58);
    assert.equal(got[0].hash, toeplitzHash(key, Uint8Array.of(...addresses, ...ports)));
    assert.equal(got[0].hashType, version === 4 ? 1 : 3);
  }
  // Of the types that it asks for, the most that applies; of others it gets none.
  for (const [flags, udp, type] of [
    [0b0001, false, 0],
    [0b0010, false, 1],
    [0b0011, true, 0],
    [0b0010, true, -1],
    [0b1100, false, -1],
  ] as const) {
    await host.run(front.setHash({ flags, key, mapping: [3, 3, 3, 3] }));
    got.length = 0;
    const addresses = { source: [...peer.address], destination: [...eth0.address] };
    peer.xmit(packetFrom(peer, buildFrame({ ...addresses, udp, payload: Uint8Array.of(1) })));
    await host.until(() => got.length === 1);
    assert.equal(got[0].hashType, type, `${flags}, ${udp}`);
  }
  const events = Object.fromEntries(guest.kernel.irqs.counts.map(({ name, count }) => [name, count]));
  assert.ok(events['eth0-q3-rx'] >= 2, 'both packets came by queue 3');
  await assert.rejects(host.run(front.setHash({ flags: 15, key, mapping: [4] })), /SET_HASH_MAPPING/);
});

test('the hash that a guest has set up outlives a connection, and what refuses it is named', async () => {
  const host = await Host.boot(64);
  const guest = await host.createGuest('a', { maxQueues: 4 });
  const eth0 = await host.connectVif(guest);
  const front = eth0.priv as Netfront;
  const vif = host.dom0.net.byName('vif1.0')!.priv as Vif;
  const before = vif.hash.dump();
  await host.run(front.setHash({ flags: 15, key, mapping: [3, 3] }));
  const set = vif.hash.dump();
  assert.notEqual(set, before);
  const reconnect = async () => {
    await host.run(front.xbdev.switchState(XenbusState.Closing));
    await host.until(() => !vif.connected);
    await host.until(() => host.states(guest).every(state => state === XenbusState.Connected));
    await host.scheduler.runFor(10);
  };
  await reconnect();
  assert.equal(vif.hash.dump(), set);
  await host.run(host.xs.write(`${host.backPath(guest)}/multi-queue-max-queues`, '2'));
  await reconnect();
  assert.equal(vif.queues.length, 2);
  assert.match(guest.domain.dmesg.join(), /eth0: the hash: .*SET_HASH_MAPPING/);
});

test('a dump shows the control ring, the hash, and the rate', async () => {
  const host = await Host.boot(63);
  const [guest, without] = [await host.createGuest('a', { maxQueues: 4 }), await host.createGuest('b')];
  const { events } = without.platform;
  while (events.allocated < events.maxPorts - 1 - 2) events.allocUnbound(0);
  const front = (await host.connectVif(guest)).priv as Netfront;
  await host.connectVif(without);
  const registry = new RpcRegistry();
  registerVifMethods(registry, () => vifsOf(host.dom0.net));
  const dump = async () => {
    const context = { emit() {}, signal: new AbortController().signal };
    const { text } = (await registry.call('dump', {}, context)) as { text: string };
    return text.split('\n').filter(line => !line.includes('queue '));
  };
  const ring = (index: number) =>
    `  control: 128 slots, req_prod ${index} req_cons ${index} req_event ${index + 1}` +
    `, rsp_prod ${index} (private ${index}) rsp_event ${index + 1}`;
  const before = ['vif1.0: carrier on, 4 queue(s)', ring(0), '  hash: none'];
  const other = 'vif2.0: carrier on, 1 queue(s)';
  assert.deepEqual(await dump(), [...before, other]);

  const hex = Array.from(key, octet => octet.toString(16).padStart(2, '0')).join('');
  await host.run(front.setHash({ flags: 0b1010, key, mapping: [0, 3, 2] }));
  const mapped = `  hash: toeplitz, flags IPV4_TCP IPV6_TCP, key ${hex}, mapping 0 3 2`;
  assert.deepEqual(await dump(), [before[0], ring(5), mapped, other]);

  await host.run(front.setHash({ flags: 0, key: key.subarray(0, 2) }));
  const bare = `  hash: toeplitz, flags none, key 0106${'00'.repeat(38)}, mapping none`;
  assert.equal((await dump())[2], bare);

  await host.run(host.xs.write(`${host.backPath(guest)}/rate`, '125000,1000'));
  await host.scheduler.runReady();
  const limited = `${before[0]}, 125000 bytes in 1000 µs may be sent, 125000 now`;
  assert.equal((await dump())[0], limited);

  // A new connection has asked for nothing yet.
  await host.run(front.setHash({ flags: 15, key, mapping: [3] }));
  const { dev } = front;
  await host.run(guest.kernel.xenbus.devices[0].switchState(XenbusState.Closing));
  await host.until(() => !dev.carrierOk);
  await host.until(() => dev.carrierOk && (host.dom0.net.byName('vif1.0')!.priv as Vif).connected);
  assert.deepEqual(await dump(), [limited, ring(0), '  hash: none', other]);
});

test('a control ring that goes away answers those who wait', async () => {
  const { front } = controlRing(5);
  const answer = front.request(T.GET_HASH_FLAGS);
  front.destroy();
  assert.equal((await answer).status, STATUS.NOT_SUPPORTED);
  await assert.rejects(front.request(T.GET_HASH_FLAGS), /ENOTCONN/);
});

test('ids of requests come again after 65535 of them, but for those that are not answered', async () => {
  const { front, ask, path, broken } = controlRing(8);
  const next = (id: number) => void Object.assign(front, { lastId: id - 1 });
  next(0xffff);
  for (let i = 0; i < 3; i++) assert.equal((await ask(T.GET_HASH_FLAGS)).status, STATUS.NOT_SUPPORTED);
  next(7);
  const first = front.request(T.GET_GREF_MAPPING_SIZE, 0);
  next(7);
  const second = front.request(T.GET_HASH_MAPPING_SIZE);
  await path.settle();
  assert.deepEqual([(await first).data, (await second).data], [768, 128]);
  assert.deepEqual(broken, []);
});

test('grants for more than one list are all mapped, and what is longer than a page is not sent', async () => {
  const { front, guest, path, staticGrants } = controlRing(9);
  const { grants, memory } = guest.platform;
  const grefs = Array.from({ length: 600 }, () => grants.grantAccess(0, memory.allocPage(), true));
  const mapped = front.mapGrants(0, grefs, true);
  for (let i = 0; i < 4; i++) await path.settle();
  await mapped;
  assert.equal(staticGrants[0].size, 600);
  const { pages } = guest.domain;
  const long = assert.rejects(
    front.setHash({ flags: 15, key: new Uint8Array(4097) }),
    /do not fit into a page/,
  );
  for (let i = 0; i < 4; i++) await path.settle();
  await long;
  assert.equal(guest.domain.pages, pages);
});

test('a control ring for which there is no event channel leaves nothing behind', () => {
  const guest = new DataPath(6).guest().dom;
  const { events, grants } = guest.platform;
  assert.throws(() => {
    for (;;) events.allocUnbound(0);
  }, /ENOSPC/);
  const before = [grants.allocated, guest.domain.pages];
  assert.throws(() => new Control({ ...guest, backendId: 0, broken() {} }, 'eth0'), /ENOSPC/);
  assert.deepEqual([grants.allocated, guest.domain.pages], before);
});

test('a request that there is no grant left for keeps no page', async () => {
  const { front, guest } = controlRing(7);
  const { grants, memory } = guest.platform;
  const page = memory.allocPage();
  assert.throws(() => {
    for (;;) grants.grantAccess(0, page, true);
  }, /ENOSPC/);
  const before = guest.domain.pages;
  await assert.rejects(front.mapGrants(0, [8], true), /ENOSPC/);
  assert.equal(guest.domain.pages, before);
});

test('a guest without an event channel left for a control ring connects all the same', async () => {
  const host = await Host.boot(62);
  const guest = await host.createGuest('a', { maxQueues: 8 });
  const { events } = guest.platform;
  const taken: number[] = [];
  assert.throws(() => {
    for (;;) taken.push(events.allocUnbound(0));
  }, /ENOSPC/);
  for (const port of taken.splice(-4)) events.close(port);
  const eth0 = await host.connectVif(guest);
  const front = eth0.priv as Netfront;
  assert.equal(front.queues.length, 2, 'two with two channels each');
  assert.match(guest.domain.dmesg.join('\n'), /eth0: no control ring: .*no event channel left/);
  await assert.rejects(host.run(front.setHash({ flags: 15, key })), /EOPNOTSUPP/);
});

test('a guest with static grants gets packets of one slot, too', async () => {
  const host = await Host.boot(70);
  const guest = await host.createGuest('a', { staticGrants: true });
  const other = await host.createGuest('b');
  const eth0 = await host.connectVif(guest);
  const peer = await host.connectVif(other);
  await host.scheduler.runFor(10);
  const [grants] = (host.dom0.net.byName('vif1.0')!.priv as Vif).staticGrants;
  assert.ok(grants.size > 0);
  const got = collect(eth0);
  const addresses = { source: [...peer.address], destination: [...eth0.address] };
  for (const length of [10, 1000]) {
    const frame = buildFrame({
      ...addresses,
      payload: new Uint8Array(length).fill(length & 0xff),
      udp: true,
    });
    peer.xmit(packetFrom(peer, frame));
    await host.scheduler.runFor(10);
    assert.deepEqual(got.pop(), frame);
  }
});
