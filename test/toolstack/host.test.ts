import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { addressBytes, linkLocalAddress } from '../../src/guests/echo-stack.js';
import { sendFrame } from '../../src/guests/frames.js';
import { NETIF_F_TSO, NETIF_F_TSO6 } from '../../src/net/index.js';
import type { Vif } from '../../src/netback/index.js';
import type { Netfront } from '../../src/netfront/index.js';
import { parseDomain } from '../../src/toolstack/domain-config.js';
import { Host, type HostedDomain } from '../../src/toolstack/host.js';
import { parseHostImage, restoreHost, saveHost } from '../../src/toolstack/save.js';
import { parseVif } from '../../src/toolstack/vif-config.js';
import { buildFrame } from '../net/frames.js';

function echo(name: string, vifs = "''"): ReturnType<typeof parseDomain> {
  return parseDomain(`name = "${name}"\nguest = "echo"\nvif = [ ${vifs} ]`, `${name}.cfg`);
}

async function start(t: TestContext): Promise<Host> {
  const host = await Host.start({ memoryBytes: 64 << 20 });
  t.after(() => host.close());
  return host;
}

const WAITING = fileURLToPath(new URL('../support/waiting-guest.js', import.meta.url));

function netfront(host: Host, { config, domain }: HostedDomain): Netfront {
  const device = host.kernelOf(config.name).kernel.xenbus.frontend.devices.get('device/vif/0');
  assert.equal(domain.state, 'running');
  return device!.driverData as Netfront;
}

/** What the host holds; the same before and after, or something leaked. */
async function holdings(host: Host): Promise<object> {
  const { grants, events } = host.dom0.platform;
  return {
    mapped: grants.mapped,
    grants: grants.allocated,
    ports: events.allocated,
    devices: [...host.dom0.net.devices].map(device => device.name).sort(),
    watches: [...host.dom0.xenbus.xs.watches].length,
    // Errors of devices that were taken away stay, for whoever looks.
    nodes: (await tree(host, '/local/domain')).filter(path => !path.includes('/error')).sort(),
  };
}

async function tree(host: Host, path: string): Promise<string[]> {
  const names = await host.xs.directory(path);
  const below = await Promise.all(names.map(name => tree(host, `${path}/${name}`)));
  return [path, ...below.flat()];
}

describe('a program that asks for what cannot be', () => {
  test('hears which option of a driver it is, and what would be right', async () => {
    const start = (netback: object) => Host.start({ memoryBytes: 64 << 20, netback });
    await assert.rejects(start({ maxQueues: 0 }), {
      code: 'EINVAL',
      message: 'EINVAL: netback: maxQueues: 0 is no whole number from 1 on',
    });
    await assert.rejects(start({ without: ['sg', 'gso'] }), {
      code: 'EINVAL',
      message: /netback: without: "gso" is no feature that can be left out; there are sg, gso-tcpv4, /,
    });
  });

  test('hears of a kind of guest that there is none, and nothing is left of the domain', async t => {
    const host = await start(t);
    host.bridge('xenbr0');
    const before = await holdings(host);
    const guest = { kind: 'mine', argument: '' };
    await assert.rejects(host.create({ ...echo('a'), guest }), {
      code: 'EINVAL',
      message: /a: "mine" is no kind of guest; there are echo, netns, module, linux/,
    });
    const options = { ...echo('a'), netfront: { maxQueues: 1.5 } };
    await assert.rejects(host.create(options), { code: 'EINVAL', message: /netfront: maxQueues: 1\.5/ });
    assert.deepEqual(await holdings(host), before);
  });

  test('hears what its own "prepare" threw, for which a vif is not served', async t => {
    const netback = {
      prepare() {
        throw new Error('no filter for it');
      },
    };
    const host = await Host.start({ memoryBytes: 64 << 20, netback });
    t.after(() => host.close());
    await assert.rejects(host.create(echo('a')), {
      code: 'ENODEV',
      message: /vif 1\.0: netback does not serve it: .*no filter for it/,
    });
  });

  test('may close a host twice', async () => {
    const host = await Host.start({ memoryBytes: 64 << 20 });
    await host.create(echo('a'));
    await Promise.all([host.close(), host.close()]);
    await host.close();
  });
});

describe('a host with echo guests', () => {
  test('answers pings across, over IPv4 and IPv6', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1 fd00::1'"));
    const b = await host.create(echo('b', "'ip=10.0.0.2 fd00::2,mac=00:16:3e:01:02:03'"));
    assert.deepEqual([await host.settled(a), await host.settled(b)], [[], []]);
    for (const address of ['10.0.0.2', 'fd00::2', 'fe80::216:3eff:fe01:203']) {
      assert.ok((await a.booted!.guest.ping!(address)) >= 0);
    }
    assert.ok((await b.booted!.guest.ping!('10.0.0.1')) >= 0);
    await assert.rejects(a.booted!.guest.ping!('10.0.0.9', 20), /ETIMEDOUT: 10\.0\.0\.9 did not answer/);
  });

  test('holds a guest with antispoof to its addresses', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1 fd00::1,antispoof'"));
    const b = await host.create(echo('b', "'ip=10.0.0.2 fd00::2'"));
    assert.deepEqual([await host.settled(a), await host.settled(b)], [[], []]);
    for (const address of ['10.0.0.2', 'fd00::2']) assert.ok((await a.booted!.guest.ping!(address)) >= 0);
    const vif = host.dom0.net.byName('vif1.0')!;
    const { stats } = vif.priv as Vif;
    assert.equal(stats.spoofed, 0);
    const dev = a.booted!.kernel!.net.byName('eth0')!;
    const send = (source: readonly number[], payload: number): void => {
      const frame = buildFrame({ source, payload: new Uint8Array(payload) });
      // buildFrame's packets come from 10.0.0.1.
      sendFrame(dev, frame);
      frame[14 + 15]++;
      sendFrame(dev, frame);
    };
    const { rxDropped } = vif.stats;
    send([...dev.address], 50);
    send([2, 0, 0, 0, 0, 1], 50);
    // What comes after them on the same ring is answered.
    assert.ok((await a.booted!.guest.ping!('10.0.0.2')) >= 0);
    assert.equal(stats.spoofed, 3, 'another IP address, another MAC address, both');
    assert.equal(vif.stats.rxDropped - rxDropped, 3);
    const sendIpv6 = (address: Uint8Array): void => {
      const frame = buildFrame({ version: 6, source: [...dev.address], payload: new Uint8Array(50) });
      frame.set(address, 14 + 8);
      sendFrame(dev, frame);
    };
    sendIpv6(addressBytes('fd00::1'));
    sendIpv6(linkLocalAddress(dev.address));
    sendIpv6(addressBytes('::'));
    sendIpv6(addressBytes('fd00::2'));
    sendIpv6(addressBytes('fe80::1'));
    assert.ok((await a.booted!.guest.ping!('10.0.0.2')) >= 0);
    assert.equal(stats.spoofed, 5, 'two IPv6 addresses that are not its own');
    assert.ok((await b.booted!.guest.ping!('10.0.0.1')) >= 0);
  });

  test('gives a guest the netfront that its file asks for', async t => {
    const host = await start(t);
    const options = 'max_queues=4,static_grants,multicast_control,gso_prefix,without=gso-tcpv6 rx-notify';
    const vif = 'ip=10.0.0.1 fd00::1,mac=00:16:3e:01:02:03';
    const text = `name = "a"\nguest = "echo"\nvif = [ "${vif}" ]\nnetfront = "${options}"`;
    const a = await host.create(parseDomain(text, 'a.cfg'));
    const b = await host.create(echo('b', "'ip=10.0.0.2 fd00::2'"));
    assert.deepEqual([await host.settled(a), await host.settled(b)], [[], []]);
    const front = '/local/domain/1/device/vif/0';
    const keys = ['multi-queue-num-queues', 'request-multicast-control', 'feature-gso-tcpv4-prefix'];
    assert.deepEqual(await Promise.all(keys.map(key => host.xs.read(`${front}/${key}`))), ['4', '1', '1']);
    for (const key of ['feature-gso-tcpv6-prefix', 'feature-rx-notify']) {
      assert.equal(await host.xs.readIfExists(`${front}/${key}`), undefined, key);
    }
    const { priv, features } = host.dom0.net.byName('vif1.0')!;
    const backend = priv as Vif;
    assert.equal(backend.queues.length, 4);
    assert.deepEqual([features & NETIF_F_TSO, features & NETIF_F_TSO6], [NETIF_F_TSO, 0]);
    assert.equal(backend.rxNotify, false);
    for (const address of ['10.0.0.2', 'fd00::2', 'fe80::216:3eff:fe01:203']) {
      const [from, to] = address.startsWith('fe80') ? [b, address] : [a, address];
      assert.ok((await from.booted!.guest.ping!(to)) >= 0, address);
    }
    // To the group that its own address is asked for by, after which there is none that it did not ask for.
    assert.ok((await b.booted!.guest.ping!('fd00::1')) >= 0);
    assert.equal(backend.multicastControl, true);
    for (const { size } of backend.staticGrants) assert.ok(size > 0);

    const image = parseHostImage(JSON.stringify(await saveHost(host)), 'host.pvnet');
    const again = await start(t);
    const [restored] = await restoreHost(again, image);
    assert.deepEqual(await again.settled(restored), []);
    assert.equal((again.dom0.net.byName('vif1.0')!.priv as Vif).queues.length, 4, 'restored');
  });

  test('writes to xenstore what libxl writes', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'mac=00:16:3e:01:02:03,ip=10.0.0.1,rate=1MB/s@20ms,mtu=9000'"));
    await host.settled(a);
    const front = '/local/domain/1/device/vif/0';
    const back = '/local/domain/0/backend/vif/1/0';
    const read = (path: string): Promise<string> => host.xs.read(path);
    assert.deepEqual(
      await Promise.all(
        ['backend', 'backend-id', 'handle', 'mac', 'mtu', 'state'].map(key => read(`${front}/${key}`)),
      ),
      [back, '0', '0', '00:16:3e:01:02:03', '9000', '4'],
    );
    const keys = [
      'frontend',
      'frontend-id',
      'online',
      'bridge',
      'ip',
      'rate',
      'mtu',
      'type',
      'hotplug-status',
      'state',
    ];
    assert.deepEqual(await Promise.all(keys.map(key => read(`${back}/${key}`))), [
      front,
      '1',
      '1',
      'xenbr0',
      '10.0.0.1',
      '20000,20000',
      '9000',
      'vif',
      'connected',
      '4',
    ]);
    assert.deepEqual(await host.xs.getPerms(front), ['n1', 'r0']);
    assert.deepEqual(await host.xs.getPerms(`${front}/mtu`), ['n0', 'r1']);
    assert.deepEqual(await host.xs.getPerms(back), ['n0', 'r1']);
    assert.equal(await read('/libxl/1/device/vif/0/mac'), '00:16:3e:01:02:03');
    assert.equal(a.booted!.kernel!.net.byName('eth0')!.mtu, 9000);
    assert.equal(host.dom0.net.byName('vif1.0')!.mtu, 9000);
  });

  test('attaches and detaches vifs and is then what it was', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1'"));
    const b = await host.create(echo('b', "'ip=10.0.0.2'"));
    await host.settled(a);
    await host.settled(b);
    const before = await holdings(host);
    for (const force of [false, true]) {
      const devid = await host.attachVif(a, parseVif('ip=10.0.0.3'));
      assert.equal(devid, 1);
      await host.settled(a);
      assert.ok((await a.booted!.guest.ping!('10.0.0.2')) >= 0);
      assert.deepEqual(
        (await host.vifList(a)).map(vif => [vif.devid, vif.vif, vif.frontendState, vif.waitingFor]),
        [
          [0, 'vif1.0', 'Connected', null],
          [1, 'vif1.1', 'Connected', null],
        ],
      );
      await host.detachVif(a, devid, force);
      assert.ok((await a.booted!.guest.ping!('10.0.0.2')) >= 0);
    }
    assert.deepEqual(await holdings(host), before);
    await assert.rejects(host.detachVif(a, 7), /ENODEV: the domain a has no vif 7; there are: 0/);
    await assert.rejects(host.attachVif(a, parseVif('devid=0')), /EEXIST: the domain a has a vif 0 already/);
    await assert.rejects(host.attachVif(a, parseVif('backend=driver')), /EINVAL: backend=driver/);
    assert.deepEqual(await holdings(host), before);
  });

  test('detaches a vif once, however many ask, and leaves the next of its number alone', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1'"));
    await host.settled(a);
    const before = await holdings(host);
    for (let round = 0; round < 5; round++) {
      const detached = [false, false, true].map(force => host.detachVif(a, 0, force));
      await detached[0];
      await host.attachVif(a, parseVif('devid=0,ip=10.0.0.1'));
      await Promise.all(detached);
      assert.deepEqual([...a.vifs.keys()], [0]);
      assert.deepEqual(await host.settled(a), []);
    }
    assert.deepEqual(await holdings(host), before);
  });

  test('detaches a vif that is being attached, at once and without a trace', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1'"));
    await host.settled(a);
    const before = await holdings(host);
    // From before its nodes are written to when it is there.
    for (const pause of [0, 1, 2, 5, 10]) {
      const attached = host.attachVif(a, parseVif('devid=1')).then(
        () => 'attached',
        error => error.message,
      );
      if (pause > 0) await new Promise(resolve => setTimeout(resolve, pause));
      const begun = performance.now();
      await host.detachVif(a, 1);
      assert.match(
        await attached,
        /^attached$|^ENODEV: vif 1 of the domain a was detached while it was being attached$/,
      );
      assert.ok(performance.now() - begun < 5000);
      assert.deepEqual(await holdings(host), before);
    }
  });

  test('says of a vif whose domain is destroyed while it is being attached just that', async t => {
    const host = await start(t);
    host.bridge('xenbr0');
    const before = await holdings(host);
    for (const pause of [0, 0, 1, 2, 5]) {
      const a = await host.create(echo('a', "'ip=10.0.0.1'"));
      const attached = [1, 2, 3, 4, 5, 6].map(devid => {
        return host.attachVif(a, parseVif(`devid=${devid}`)).then(
          () => 'attached',
          error => error.message,
        );
      });
      if (pause > 0) await new Promise(resolve => setTimeout(resolve, pause));
      await host.destroy(a);
      for (const outcome of await Promise.all(attached)) {
        assert.match(outcome, /^attached$|^ESRCH: the domain a was destroyed$/);
      }
    }
    assert.deepEqual(await holdings(host), before);
  });

  test('detaches at once a vif that its backend has not seen yet', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1'"));
    await host.settled(a);
    const before = await holdings(host);
    const attached = [1, 2, 3].map(devid => host.attachVif(a, parseVif(`devid=${devid}`)));
    const refused = assert.rejects(attached[2], /ENODEV: vif 3 of the domain a was detached/);
    const begun = performance.now();
    // Domain 0's bus looks at one after another.
    await host.detachVif(a, 3);
    assert.ok(performance.now() - begun < 5000);
    await refused;
    for (const devid of await Promise.all(attached.slice(0, 2))) await host.detachVif(a, devid);
    assert.deepEqual(await holdings(host), before);
  });

  test('shows the rings that a frontend published, of the first queue where there are several', async t => {
    const host = await start(t);
    const a = await host.create(echo('a'));
    assert.deepEqual(await host.settled(a), []);
    const front = '/local/domain/1/device/vif/0';
    const shown = async () => {
      const [{ eventChannels, ringRefs }] = await host.vifList(a);
      return { eventChannels, ringRefs };
    };
    const [flat, keys] = [
      await shown(),
      ['tx-ring-ref', 'rx-ring-ref', 'event-channel-tx', 'event-channel-rx'],
    ];
    assert.match(`${flat.eventChannels} ${flat.ringRefs}`, /^\d+\/\d+ \d+\/\d+$/);
    for (const queue of [0, 1]) {
      for (const key of keys) {
        await host.xs.write(
          `${front}/queue-${queue}/${key}`,
          `${queue}${await host.xs.read(`${front}/${key}`)}`,
        );
      }
    }
    for (const key of keys) await host.xs.rm(`${front}/${key}`);
    const first = (values: string | null) =>
      values!
        .split('/')
        .map(value => `0${value}`)
        .join('/');
    assert.deepEqual(await shown(), {
      eventChannels: first(flat.eventChannels),
      ringRefs: first(flat.ringRefs),
    });
    await host.xs.write(`${front}/tx-ring-ref`, '\u001b[2J\n8');
    assert.match((await shown()).ringRefs!, /^\?\[2J\?8$/);
    await host.xs.rm(`${front}/tx-ring-ref`);
    for (const key of ['event-channel-tx', 'event-channel-rx']) await host.xs.rm(`${front}/queue-0/${key}`);
    assert.equal((await shown()).eventChannels, null);
    await host.xs.write(`${front}/queue-0/event-channel`, '17');
    assert.equal((await shown()).eventChannels, '17');
  });

  test('gives the backend its vifname, and takes it off the bridge under that name', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1'"));
    await host.settled(a);
    const ports = host.bridge('xenbr0').portList.length;
    const devid = await host.attachVif(a, parseVif('vifname=frontdoor'));
    await host.settled(a);
    assert.equal((await host.vifList(a)).at(-1)?.vif, 'frontdoor');
    assert.ok(host.dom0.net.byName('frontdoor') !== undefined);
    assert.ok(host.dom0.net.byName('vif1.1') === undefined);
    await host.detachVif(a, devid);
    assert.ok(host.dom0.net.byName('frontdoor') === undefined);
    assert.equal(host.bridge('xenbr0').portList.length, ports);
  });

  test('destroys and shuts down domains without a trace', async t => {
    const host = await start(t);
    await host.destroy(await host.create(echo('first', "'', ''")));
    const before = await holdings(host);
    await host.destroy(await host.create(echo('a', "'', ''")));
    assert.deepEqual(await holdings(host), before);
    await host.shutdown(await host.create(echo('b')));
    assert.deepEqual(await holdings(host), before);
    assert.deepEqual(
      host.list().map(({ name }) => name),
      ['Domain-0'],
    );
    assert.throws(() => host.find('b'), /ESRCH: there is no domain "b"; there are: none/);
  });

  test('a guest ends for no reason that a kernel does not know', async t => {
    const host = await start(t);
    const a = await host.create(echo('a'));
    const { domain } = a;
    for (const asked of ['crash', 'toString']) {
      await host.xs.write(`/local/domain/${domain.domid}/control/shutdown`, asked);
      const told = (): boolean =>
        domain.dmesg.some(line => line.includes(`control/shutdown asks for "${asked}"`));
      while (!told()) {
        assert.equal(domain.state, 'running');
        await new Promise(resolve => setImmediate(resolve));
      }
    }
  });

  test('destroys a domain that is being created, at any time', async t => {
    const host = await start(t);
    const first = await host.create(echo('first'));
    await host.settled(first);
    const before = await holdings(host);
    for (const moment of [
      () => true,
      (a: HostedDomain) => a.vifs.size > 0,
      (a: HostedDomain) => a.vifs.get(0)?.status === null,
    ]) {
      const created = assert.rejects(host.create(echo('a')), /ESRCH: the domain a was destroyed$/);
      while (![...host.domains].some(hosted => hosted.config.name === 'a' && moment(hosted))) {
        await new Promise(resolve => setImmediate(resolve));
      }
      const a = host.find('a');
      await assert.rejects(host.suspend(a), /EBUSY: the domain a is being created$/);
      await host.destroy(a);
      await created;
      assert.deepEqual(await holdings(host), before);
    }
    let destroyed: Promise<void> | undefined;
    const came = (name: string): void => {
      if (name === 'a') destroyed = host.destroy(host.find('a'));
    };
    host.watchKernels({ came, went() {} });
    await assert.rejects(host.create(echo('a')), /ESRCH: the domain a was destroyed$/);
    await destroyed;
    assert.deepEqual(await holdings(host), before);
  });

  test('lets nobody wait for a domain that is destroyed', async t => {
    const lines: string[] = [];
    const host = await Host.start({ memoryBytes: 64 << 20, onLog: (_, line) => lines.push(line) });
    t.after(() => host.close());
    const destroyed = /ESRCH: the domain a was destroyed$/;
    const asked: ((a: HostedDomain) => Promise<unknown>)[] = [
      a => host.settled(a),
      a => netfront(host, a).setHash({ flags: 15, key: new Uint8Array(40) }),
      a => netfront(host, a).setXdpHeadroom(256),
      async a => {
        const save = () => {
          void host.destroy(a);
          return new Promise(() => {});
        };
        Object.assign(a.booted!.guest, { save });
        await saveHost(host);
      },
    ];
    for (const ask of asked) {
      const a = await host.create(echo('a'));
      assert.deepEqual(await host.settled(a), []);
      const answer = assert.rejects(ask(a), destroyed);
      // Who does not listen hears nothing.
      void netfront(host, a).setHash({ flags: 15, key: new Uint8Array(40) });
      if (ask !== asked.at(-1)) await host.destroy(a);
      await answer;
      await host.destroy(a);
      await assert.rejects(host.settled(a), destroyed);
    }
    const a = await host.create(echo('a'));
    assert.deepEqual(await host.settled(a), []);
    await host.suspend(a);
    const resumed = assert.rejects(host.resume(a), destroyed);
    await host.destroy(a);
    await resumed;
    const waiting = parseDomain(`name = "a"\nguest = "module:${WAITING}"`, 'a.cfg');
    const created = assert.rejects(host.create(waiting), destroyed);
    while (!lines.includes('it waits')) await new Promise(setImmediate);
    await host.destroy(host.find('a'));
    await created;
    assert.ok(lines.includes('no device: ESRCH: the domain a was destroyed'), lines.join('\n'));
  });

  test('reboots a domain that is asked to', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1'"));
    await host.settled(a);
    await host.shutdown(a, 'reboot');
    let again = host.list().find(({ name }) => name === 'a');
    while (again === undefined) {
      await new Promise(resolve => setTimeout(resolve, 5));
      again = host.list().find(({ name }) => name === 'a');
    }
    assert.equal(again.domid, 2);
    assert.deepEqual(await host.settled(host.find('a')), []);
  });

  test('reboots a domain as it is, not as it was created', async t => {
    const host = await start(t);
    const a = await host.create(echo('a', "'ip=10.0.0.1', 'ip=10.1.0.1'"));
    assert.deepEqual(await host.settled(a), []);
    await host.detachVif(a, 0);
    await host.attachVif(a, parseVif('ip=10.2.0.1'));
    await host.attachVif(a, parseVif('devid=5'));
    assert.deepEqual(await host.settled(a), []);
    const vifs = (hosted: HostedDomain) =>
      [...hosted.vifs.values()].map(({ devid, mac, config: { ip } }) => ({ devid, mac, ip }));
    const before = vifs(a);
    await host.xs.write('/local/domain/0/backend/vif/1/5/rate', '20000,1000');
    await host.shutdown(a, 'reboot');
    while (![...host.domains].some(({ booted }) => booted !== null)) {
      await new Promise(resolve => setTimeout(resolve, 5));
    }
    const again = host.find('a');
    assert.deepEqual(await host.settled(again), []);
    assert.equal(again.identity.uuid, a.identity.uuid);
    assert.deepEqual(
      vifs(again).map(({ devid }) => devid),
      [1, 0, 5],
    );
    assert.deepEqual(vifs(again), before);
    assert.equal(await host.xs.read('/local/domain/0/backend/vif/2/5/rate'), '20000,1000');
  });

  test('does not bring back a domain that is destroyed while it reboots', async t => {
    const host = await start(t);
    const a = await host.create(echo('a'));
    const rebooted = host.shutdown(a, 'reboot');
    while (a.domain.state !== 'shutdown') await new Promise(resolve => setImmediate(resolve));
    await host.destroy(a);
    await rebooted;
    await new Promise(resolve => setTimeout(resolve, 100));
    assert.deepEqual(
      host.list().map(({ name }) => name),
      ['Domain-0'],
    );
  });

  test('refuses what cannot be, and nothing of it stays', async t => {
    const host = await start(t);
    const a = await host.create(echo('a'));
    await host.settled(a);
    const before = await holdings(host);
    await assert.rejects(host.create(echo('a')), /EEXIST: there is a domain "a" already/);
    const missing = parseDomain('name="m"\nguest="module:./nowhere.js"\nvif=[""]', '/nonexistent/m.cfg');
    await assert.rejects(host.create(missing), /m: \/nonexistent\/nowhere\.js cannot be loaded/);
    assert.deepEqual(await holdings(host), before);
  });
});
