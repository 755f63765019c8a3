import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { netbackOf } from '../../src/netback/index.js';
import {
  Cable,
  type DomainConfig,
  Host,
  type HostedDomain,
  migrateDomain,
  parseDomain,
  parseHostImage,
  restoreDomain,
  restoreHost,
  resumeAll,
  saveHost,
  sendDomain,
  unsavedOf,
} from '../../src/toolstack/index.js';
import { streams } from '../support/stream-guest.js';
import { namespaceObstacle } from '../uplink/machine.js';

const MODULE = fileURLToPath(new URL('../support/stream-guest.js', import.meta.url));

function config(name: string, guest: string, vif = ''): DomainConfig {
  return parseDomain(`name = "${name}"\nguest = "${guest}"\nvif = [ '${vif}' ]`, `${name}.cfg`);
}

const stream = (name: string, mac: string) => config(name, `module:${MODULE}`, `mac=${mac}`);
const echo = (name: string, ip: string) => config(name, 'echo', `ip=${ip}`);

async function start(t: TestContext): Promise<Host> {
  const host = await Host.start({ memoryBytes: 64 << 20 });
  t.after(() => host.close());
  return host;
}

async function create(host: Host, wanted: DomainConfig): Promise<HostedDomain> {
  const hosted = await host.create(wanted);
  assert.deepEqual(await host.settled(hosted), []);
  return hosted;
}

/** Waits until something holds, for some seconds. */
async function until(condition: () => boolean, what: string): Promise<void> {
  for (let tries = 0; !condition(); tries++) {
    assert.ok(tries < 1000, `${what} did not happen in time`);
    await new Promise(resolve => setTimeout(resolve, 10));
  }
}

/** The stream goes on: bytes arrive that had not before. */
async function flows(receiver: string): Promise<void> {
  const view = () => streams.get(receiver)!;
  const before = view().received;
  await until(() => view().received > before + 20_000, `progress of ${receiver}`);
  assert.equal(view().wrongAt, -1);
}

/** What drivers make of the nodes of a domain's first vif that they follow. */
function followed({ dom0 }: Host, { domain, booted }: HostedDomain): object {
  const netback = netbackOf(dom0.xenbus.backend.devices.get(`backend/vif/${domain.domid}/0`)!)!;
  const { carrier, credit } = netback.vif!;
  const eth0 = booted!.kernel!.net.byName('eth0');
  return { carrier, rate: credit?.rate ?? null, speed: eth0?.speed, mtu: eth0?.mtu };
}

/** Grants, mappings and so on of domain 0: the same before and after, or something leaked. */
function holdings({ dom0 }: Host): object {
  const { grants, events } = dom0.platform;
  return {
    mapped: grants.mapped,
    grants: grants.allocated,
    ports: events.allocated,
    devices: [...dom0.net.devices].map(device => device.name).sort(),
    watches: [...dom0.xenbus.xs.watches].length,
  };
}

describe('suspend and resume', () => {
  for (const cancelled of [false, true]) {
    test(`${cancelled ? 'called off' : 'for real'}: acknowledged, and a stream goes on`, async t => {
      const host = await start(t);
      const sender = await create(host, stream('send1', '00:16:3e:00:00:01'));
      await create(host, stream('take1', '00:16:3e:00:00:02'));
      await flows('take1');
      const before = holdings(host);
      await host.suspend(sender);
      assert.equal(sender.domain.state, 'shutdown');
      assert.equal(await host.xs.read(`/local/domain/${sender.domain.domid}/control/shutdown`), '');
      await assert.rejects(host.suspend(sender), { code: 'EINVAL' });
      const stalled = streams.get('take1')!.received;
      await new Promise(resolve => setTimeout(resolve, 60));
      assert.ok(streams.get('take1')!.received <= stalled + 8000, 'a suspended domain sends nothing');
      await host.resume(sender, { cancelled });
      assert.deepEqual(await host.settled(sender), []);
      await flows('take1');
      await assert.rejects(host.resume(sender), { code: 'EINVAL' });
      assert.deepEqual(holdings(host), before);
    });
  }
});

describe('save and restore', () => {
  test('a host in a file: domains, numbers, addresses, xenstore and guests go on', async t => {
    const host = await start(t);
    const a = await create(host, echo('a', '10.0.0.1'));
    await create(host, echo('b', '10.0.0.2'));
    const sender = await create(host, stream('send2', '00:16:3e:00:00:01'));
    await create(host, stream('take2', '00:16:3e:00:00:02'));
    await flows('take2');
    await a.booted!.guest.ping!('10.0.0.2');
    const { xs } = host;
    await xs.write('/local/domain/1/data/note', 'kept');
    await xs.write('/tool/mine', Uint8Array.of(0, 255, 10));
    await xs.setPerms('/tool/mine', ['n0', 'r1']);
    await xs.setPerms('/local/domain/1/data/note', ['n1', 'r2']);
    const readBy = ({ booted }: HostedDomain, path: string) => booted!.kernel!.xenbus.xs.read(path);
    const mac = a.vifs.get(0)!.mac;

    const text = JSON.stringify(await saveHost(host));
    // The old host may go on, and does.
    await resumeAll(host, host.domains);
    await flows('take2');
    await host.destroy(sender);
    const image = parseHostImage(text, 'host.pvnet');

    const again = await start(t);
    const restored = await restoreHost(again, image);
    for (const hosted of restored) assert.deepEqual(await again.settled(hosted), []);
    assert.deepEqual(
      restored.map(({ domain, config }) => [domain.domid, config.name]),
      [
        [1, 'a'],
        [2, 'b'],
        [3, 'send2'],
        [4, 'take2'],
      ],
    );
    assert.equal(restored[0].identity.uuid, a.identity.uuid);
    assert.equal(restored[0].vifs.get(0)!.mac, mac);
    assert.equal(await again.xs.read('/local/domain/1/data/note'), 'kept');
    assert.deepEqual(await again.xs.getPerms('/local/domain/1/data'), ['n1']);
    assert.deepEqual([...(await again.xs.readBytes('/tool/mine'))], [0, 255, 10]);
    assert.deepEqual(await again.xs.getPerms('/tool/mine'), ['n0', 'r1']);
    // Said of a domain before it is there, that would not hold for it.
    await readBy(restored[0], '/tool/mine');
    assert.equal(await readBy(restored[1], '/local/domain/1/data/note'), 'kept');
    await assert.rejects(readBy(restored[1], '/tool/mine'), { code: 'EACCES' });
    await restored[0].booted!.guest.ping!('10.0.0.2');
    assert.ok(streams.get('take2')!.received > 20_000, 'it goes on where it was');
    await flows('take2');
  });

  test('of a namespace its addresses and routes are saved, and the programs that are not are named', async t => {
    const obstacle = await namespaceObstacle();
    if (obstacle !== false) return t.skip(obstacle);
    const host = await start(t);
    const a = await create(host, config('a', 'netns', 'ip=10.9.0.1/24 fd09::1/64'));
    const inside = ({ booted }: HostedDomain, ...argv: string[]) => {
      const [file, ...rest] = booted!.guest.command!(argv);
      const { status, stdout, stderr } = spawnSync(file, rest, { encoding: 'utf8' });
      assert.equal(status, 0, stderr);
      return stdout;
    };
    for (const line of [
      'addr del 10.9.0.1/24 dev eth0',
      'addr add 10.9.0.7/24 brd + dev eth0',
      'addr add 10.8.0.1 peer 10.8.0.2/32 dev eth0',
      'addr add fd08::7/64 dev eth0 nodad',
      'route add default via 10.9.0.254 metric 7',
      'route add 172.20.0.0/16 dev eth0',
      '-6 route add default via fd09::fe dev eth0',
    ]) {
      inside(a, 'ip', ...line.split(' '));
    }
    const setUp = (hosted: HostedDomain) => {
      const shown = ['-4 -o addr', '-6 -o addr', '-4 route', '-6 route'].map(what => {
        const lines = inside(hosted, 'ip', ...what.split(' '), 'show', 'dev', 'eth0').split('\n');
        // Not that which the interface's number and its kernel's own routes say.
        return lines
          .filter(line => !/fe80|multicast/.test(line))
          .map(line => line.replace(/^\d+: /, '').trim())
          .sort();
      });
      return shown;
    };
    const before = setUp(a);
    assert.deepEqual(unsavedOf(a), []);
    const sleeper = program(a, 'console.log("ready"); setTimeout(() => {}, 60000)');
    t.after(() => sleeper.child.kill());
    await until(() => sleeper.lines.length > 0, 'the program');
    const [note] = unsavedOf(a);
    // Newer versions of Node name their main thread.
    assert.match(
      note,
      /^a: not saved: the programs in its namespace, and their connections: node(-MainThread)? \(pid \d+\)$/,
    );

    const image = parseHostImage(JSON.stringify(await saveHost(host)), 'host.pvnet');
    const again = await start(t);
    const [restored] = await restoreHost(again, image);
    assert.deepEqual(await again.settled(restored), []);
    assert.deepEqual(setUp(restored), before);
    assert.deepEqual(unsavedOf(restored), []);
    const b = await create(again, echo('b', '10.9.0.2'));
    await b.booted!.guest.ping!('10.9.0.7', 3000);
  });

  test('a guest that deleted an interface of its namespace, moved one away, or renamed one, is saved with the others', async t => {
    const obstacle = await namespaceObstacle();
    if (obstacle !== false) return t.skip(obstacle);
    const host = await start(t);
    const vifs = [1, 2, 3, 4].map(n => `ip=10.9.0.${n}/24`).join("', '");
    const a = await create(host, config('a', 'netns', vifs));
    const { guest } = a.booted!;
    const ip = ({ booted }: HostedDomain, ...argv: string[]) => {
      const [file, ...rest] = booted!.guest.command!(['ip', ...argv]);
      return spawnSync(file, rest, { encoding: 'utf8' }).stdout;
    };
    ip(a, 'link', 'del', 'eth0');
    ip(a, 'link', 'set', 'eth1', 'name', 'mine');
    ip(a, 'addr', 'add', '10.9.0.33/24', 'dev', 'eth2');
    const [file, ...rest] = guest.command!(['unshare', '--net', 'sleep', '100']);
    const elsewhere = spawn(file, rest);
    t.after(() => elsewhere.kill());
    // Until it has a namespace of its own, that is where the interface is already.
    while (ip(a, 'link', 'show', 'eth3') !== '') {
      ip(a, 'link', 'set', 'eth3', 'netns', String(elsewhere.pid));
      await delay(5);
    }
    assert.equal(((await guest.save!()) as { interfaces: object[] }).interfaces.length, 2);
    const image = parseHostImage(JSON.stringify(await saveHost(host)), 'host.pvnet');
    const again = await start(t);
    const [restored] = await restoreHost(again, image);
    assert.deepEqual(await again.settled(restored), []);
    const addresses = ip(restored, '-4', '-br', 'addr').match(/10\.9\.0\.\d+/g);
    assert.deepEqual(addresses?.sort(), ['10.9.0.1', '10.9.0.2', '10.9.0.3', '10.9.0.33', '10.9.0.4']);
  });

  test('what was said of a vif since it was attached holds after save and restore, and migration', async t => {
    const host = await start(t);
    const vif = 'ip=10.0.0.1,rate=10Mb/s,mtu=9000';
    let a = await create(host, config('a', 'echo', vif));
    const untouched = followed(host, a);
    const [front, back] = ['/local/domain/1/device/vif/0', '/local/domain/0/backend/vif/1/0'];
    const without = parseHostImage(JSON.stringify(await saveHost(host)), 'host.pvnet');
    await resumeAll(host, host.domains);
    await netbackOf(host.dom0.xenbus.backend.devices.get('backend/vif/1/0')!)!.setCarrier(false);
    await host.xs.write(`${back}/rate`, '1000000,1000');
    await host.xs.write(`${front}/speed`, '10G');
    await host.xs.write(`${front}/mtu`, '1400');
    // No driver understands that.
    await host.xs.write(`${front}/disconnect`, 'perhaps');
    const said = { carrier: false, rate: { bytes: 1_000_000, usec: 1000 }, speed: 10_000, mtu: 1400 };
    await until(() => isDeepStrictEqual(followed(host, a), said), 'what drivers follow');
    const image = parseHostImage(JSON.stringify(await saveHost(host)), 'host.pvnet');

    const [from, to] = [await start(t), await start(t)];
    [a] = await restoreHost(from, image);
    assert.deepEqual(await from.settled(a), []);
    assert.deepEqual(followed(from, a), said);
    assert.equal(await from.xs.exists(`${front}/disconnect`), false);
    assert.deepEqual(await from.xs.getPerms(`${front}/speed`), ['n1', 'r0']);
    assert.match(from.waitingFor(a, a.vifs.get(0)!)!, /without carrier/);
    await from.xs.write(`${front}/disconnect`, '1');
    await from.xs.rm(`${back}/rate`);
    a = await migrateDomain(from, a, to);
    assert.deepEqual(await to.settled(a), []);
    assert.deepEqual(followed(to, a), { ...said, rate: null });
    assert.equal(await to.xs.read(`${front}/disconnect`), '1');

    // An image of a version that did not keep them.
    for (const { config } of without.domains) {
      for (const each of config.vifs) delete (each as { followed?: object }).followed;
    }
    const other = await start(t);
    [a] = await restoreHost(other, parseHostImage(JSON.stringify(without), 'host.pvnet'));
    assert.deepEqual(await other.settled(a), []);
    assert.deepEqual(followed(other, a), untouched);
  });

  test('what cannot be saved is said, and nothing is touched', async t => {
    const host = await start(t);
    const a = await create(host, echo('a', '10.0.0.1'));
    await create(
      host,
      config('m', `module:${fileURLToPath(new URL('../support/plain-guest.js', import.meta.url))}`),
    );
    await assert.rejects(
      saveHost(host),
      /m: a guest of kind "module" cannot be saved: its module has no "save"/,
    );
    assert.equal(a.domain.state, 'running');
  });
});

/** Takes a TCP connection, and says at its end how many bytes came, in order. */
const SERVER = `
const net = require('node:net');
let count = 0, wrong = -1;
net.createServer(socket => {
  socket.on('data', data => {
    for (const byte of data) { if (byte !== count % 251 && wrong < 0) wrong = count; count++; }
  });
  socket.on('end', () => { console.log(JSON.stringify({ count, wrong })); process.exit(); });
}).listen(5001, () => console.log('ready'));`;
/** Sends until its input ends; says so once the connection stands, and then how much it was. */
const CLIENT = `
const net = require('node:net');
let count = 0, ending = false;
process.stdin.on('end', () => { ending = true; }).resume();
const socket = net.connect(5001, '10.9.0.2', () => {
  console.log('ready');
  const send = () => {
    if (ending) return socket.end(() => { console.log(JSON.stringify({ count })); process.exit(); });
    const chunk = Uint8Array.from({ length: 20000 }, (_, i) => (count + i) % 251);
    count += chunk.length;
    socket.write(chunk, () => setTimeout(send, 1));
  };
  send();
});`;

function program(hosted: HostedDomain, script: string): { child: ChildProcess; lines: string[] } {
  const [file, ...args] = hosted.booted!.guest.command!([process.execPath, '-e', script]);
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines: string[] = [];
  child.stdout!.on('data', data => lines.push(...String(data).trim().split('\n')));
  return { child, lines };
}

/** Where there is a domain of that name, and whether it runs there. */
function whereIs(name: string, ...hosts: Host[]): string[] {
  const found = (host: Host) => [...host.domains].find(({ config }) => config.name === name);
  return hosts.map(host => found(host)?.domain.state ?? 'none');
}

describe('one thing at a time', () => {
  test('a domain that is being migrated is not migrated once more', async t => {
    const [left, right, third] = [await start(t), await start(t), await start(t)];
    const a = await create(left, echo('a', '10.0.0.1'));
    const first = migrateDomain(left, a, right);
    await assert.rejects(migrateDomain(left, a, third), /EBUSY: the domain a is being migrated$/);
    const moved = await first;
    assert.deepEqual(whereIs('a', left, right, third), ['none', 'running', 'none']);
    await assert.rejects(migrateDomain(left, a, third), /ESRCH: the domain a is gone$/);

    const send = (target: Host) =>
      sendDomain(right, moved, async image => void (await restoreDomain(target, image)));
    const sent = send(left);
    await assert.rejects(send(third), /EBUSY: the domain a is being migrated$/);
    await sent;
    assert.deepEqual(whereIs('a', left, right, third), ['running', 'none', 'none']);
  });

  test('nothing but its end comes between a domain and its migration', async t => {
    const [left, right] = [await start(t), await start(t)];
    const a = await create(left, echo('a', '10.0.0.1'));
    const refused = async () => {
      for (const attempt of [
        () => left.suspend(a),
        () => left.resume(a),
        () => left.shutdown(a),
        () => left.shutdown(a, 'reboot'),
        () => left.attachVif(a, a.config.vifs[0]),
        () => left.detachVif(a, 0),
        () => saveHost(left),
      ]) {
        await assert.rejects(attempt(), /EBUSY: the domain a is being migrated$/);
      }
    };
    const failed = sendDomain(left, a, async () => {
      await refused();
      throw new Error('no way');
    });
    await assert.rejects(failed, /no way/);
    assert.deepEqual(await left.settled(a), []);
    const migrated = migrateDomain(left, a, right);
    await refused();
    assert.deepEqual([...(await migrated).vifs.keys()], [0]);
  });

  test('a domain that is destroyed while it is migrated is nowhere', async t => {
    const [left, right] = [await start(t), await start(t)];
    let a = await create(left, echo('a', '10.0.0.1'));
    const failed = sendDomain(left, a, async () => {
      await left.destroy(a);
      throw new Error('no way');
    });
    await assert.rejects(failed, /no way/);
    assert.deepEqual(whereIs('a', left, right), ['none', 'none']);

    a = await create(left, echo('a', '10.0.0.1'));
    const calledOff = sendDomain(left, a, async (image, destroyed) => {
      await restoreDomain(right, image, {
        beforeStart() {
          void left.destroy(a);
          throw new Error('destroyed there');
        },
      });
      assert.ok(destroyed.aborted);
    });
    await assert.rejects(calledOff, /destroyed there/);
    await until(() => whereIs('a', left, right).every(where => where === 'none'), 'the end of a');

    const isSuspended = () => a.domain.shutdownReason === 'suspend';
    const booting = new Set<string>();
    right.watchKernels({ came: name => booting.add(name), went: name => booting.delete(name) });
    for (const moment of [() => true, isSuspended, () => booting.has('a')]) {
      a = await create(left, echo('a', '10.0.0.1'));
      const migrated = assert.rejects(migrateDomain(left, a, right), { code: 'ESRCH' });
      while (!moment() && !left.hasEnded(a)) await new Promise(resolve => setImmediate(resolve));
      await left.destroy(a);
      await migrated;
      assert.deepEqual(whereIs('a', left, right), ['none', 'none']);
    }
  });

  test('a domain that is destroyed while it is saved is said to be', async t => {
    const host = await start(t);
    const a = await create(host, echo('a', '10.0.0.1'));
    Object.assign(a.booted!.guest, {
      async save() {
        await host.destroy(a);
        throw new Error('there is nothing to save any more');
      },
    });
    await assert.rejects(saveHost(host), /ESRCH: the domain a was destroyed$/);
  });

  test('no image is made of a domain while its vifs come and go', async t => {
    const [left, right] = [await start(t), await start(t)];
    const a = await create(left, echo('a', '10.0.0.1'));
    const attached = left.attachVif(a, { ...a.config.vifs[0], devid: 1 });
    await assert.rejects(left.suspend(a), /EBUSY: vif 1 of the domain a is being attached$/);
    await assert.rejects(saveHost(left), { code: 'EBUSY' });
    await attached;
    const detached = left.detachVif(a, 1);
    await assert.rejects(migrateDomain(left, a, right), /EBUSY: vif 1 of the domain a is being detached$/);
    await detached;
    assert.deepEqual([...(await migrateDomain(left, a, right)).vifs.keys()], [0]);
  });
});

describe('live migration', () => {
  test('a TCP connection of real programs in a namespace survives', async t => {
    const obstacle = await namespaceObstacle();
    if (obstacle !== false) return t.skip(obstacle);
    const [left, right] = [await start(t), await start(t)];
    const cable = new Cable(left.bridge('xenbr0'), right.bridge('xenbr0'));
    t.after(() => cable.close());
    let a = await create(left, config('a', 'netns', 'ip=10.9.0.1'));
    const b = await create(left, config('b', 'netns', 'ip=10.9.0.2'));
    const server = program(b, SERVER);
    t.after(() => server.child.kill());
    await until(() => server.lines.includes('ready'), 'the server');
    const client = program(a, CLIENT);
    t.after(() => client.child.kill());
    await until(() => client.lines.includes('ready'), 'the connection');
    for (const [from, to] of [
      [left, right],
      [right, left],
    ]) {
      await new Promise(resolve => setTimeout(resolve, 100));
      a = await migrateDomain(from, a, to);
      assert.deepEqual(await to.settled(a), []);
    }
    await new Promise(resolve => setTimeout(resolve, 100));
    client.child.stdin!.end();
    await until(() => client.lines.length > 1 && server.lines.length > 1, 'the end');
    const { count } = JSON.parse(client.lines[1]);
    assert.ok(count > 100_000);
    assert.deepEqual(JSON.parse(server.lines[1]), { count, wrong: -1 });
  });

  test('a stream survives there and back; bridges and peers learn where the domain is', async t => {
    const [left, right] = [await start(t), await start(t)];
    const cable = new Cable(left.bridge('xenbr0'), right.bridge('xenbr0'));
    t.after(() => cable.close());
    let sender = await create(left, stream('send3', '00:16:3e:00:00:01'));
    await create(left, stream('take3', '00:16:3e:00:00:02'));
    const [leftBefore, rightBefore] = [holdings(left), holdings(right)];
    await flows('take3');
    for (const [from, to] of [
      [left, right],
      [right, left],
    ]) {
      const { uuid } = sender.identity;
      const { announced } = streams.get('send3')!;
      sender = await migrateDomain(from, sender, to);
      assert.deepEqual(await to.settled(sender), []);
      assert.equal(sender.identity.uuid, uuid);
      assert.equal(
        [...from.domains].some(({ config: { name } }) => name === 'send3'),
        false,
      );
      await flows('take3');
      assert.ok(streams.get('send3')!.announced > announced, 'it told its neighbours');
      if (to === right) {
        const learned = left
          .bridge('xenbr0')
          .forwardingTable()
          .find(({ address }) => address.join() === '0,22,62,0,0,1');
        assert.equal(learned?.device, cable.ends[0]);
        const { mapped, watches } = holdings(from) as { mapped: number; watches: number };
        const before = leftBefore as { mapped: number; watches: number };
        assert.ok(mapped < before.mapped && watches < before.watches, 'the backend here is gone');
      }
    }
    assert.deepEqual(holdings(right), rightBefore);
    assert.equal((holdings(left) as { mapped: number }).mapped, (leftBefore as { mapped: number }).mapped);
  });

  test('what fails there leaves the domain running here', async t => {
    const [left, right] = [await start(t), await start(t)];
    const a = await create(left, echo('a', '10.0.0.1'));
    const b = await create(left, echo('b', '10.0.0.2'));
    await create(right, echo('a', '10.0.0.1'));
    await assert.rejects(migrateDomain(left, a, right), { code: 'EEXIST' });
    await b.booted!.guest.ping!('10.0.0.1');
    await assert.rejects(
      sendDomain(left, a, () => Promise.reject(new Error('no way'))),
      /no way/,
    );
    assert.equal(a.domain.state, 'running');
    await until(() => left.waitingFor(a, a.vifs.get(0)!) === null, 'going on');
    await b.booted!.guest.ping!('10.0.0.1');
  });

  test('an image that is sent elsewhere', async t => {
    const [left, right] = [await start(t), await start(t)];
    const a = await create(left, echo('a', '10.0.0.1'));
    const b = await create(right, echo('b', '10.0.0.2'));
    await left.xs.write('/local/domain/1/data/note', 'kept');
    // Of domain 1 and for another, whose number is somebody else's there.
    await left.xs.setPerms('/local/domain/1/data/note', ['n1', 'r7', 'w0']);
    await sendDomain(left, a, async image => {
      const hosted = await restoreDomain(right, JSON.parse(JSON.stringify(image)));
      assert.deepEqual(await right.settled(hosted), []);
      assert.deepEqual(await right.xs.getPerms('/local/domain/2/data/note'), ['n2', 'w0']);
    });
    assert.deepEqual([...left.domains], []);
    await b.booted!.guest.ping!('10.0.0.1');
  });
});

test('a netback that is restarted: its vifs go back to their bridges, and frontends connect again', async t => {
  const host = await start(t);
  const a = await create(host, echo('a', '10.0.0.1'));
  const b = await create(host, echo('b', '10.0.0.2'));
  await a.booted!.guest.ping!('10.0.0.2');
  const before = holdings(host);
  const { xenbus } = host.dom0;
  const driver = xenbus.backend.drivers[0];
  await xenbus.unregisterDriver(driver);
  assert.match(host.waitingFor(a, a.vifs.get(0)!) ?? '', /waiting for a backend driver/);
  await xenbus.registerBackend(driver);
  for (const hosted of [a, b]) assert.deepEqual(await host.settled(hosted), []);
  await a.booted!.guest.ping!('10.0.0.2', 3000);
  assert.deepEqual(holdings(host), before);
});
