import assert from 'node:assert/strict';
import { before, describe, type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { ErrnoError } from '../../src/abi/index.js';
import {
  Host,
  parseDomain,
  parseDomainImage,
  parseHostImage,
  restoreDomain,
  restoreHost,
  saveHost,
  saveNodes,
} from '../../src/toolstack/index.js';
import type { Of } from '../support/arbitraries.js';

// biome-ignore lint/suspicious/noExplicitAny: what a damaged file may hold
type Json = any;

async function start(t?: TestContext): Promise<Host> {
  const host = await Host.start({ memoryBytes: 64 << 20 });
  t?.after(() => host.close());
  return host;
}

/** All that a host has, which a refused image leaves as it was. */
async function everything(host: Host): Promise<object> {
  const { hypervisor, dom0, xs } = host;
  return {
    domains: host.list().map(({ domid, name, vifs }) => ({ domid, name, vifs })),
    // Domain 0 has buffers that grow with use.
    pages: hypervisor.domains.slice(1).map(({ pages }) => pages),
    held: hypervisor.domains.map(({ domid, platform: { grants, events } }) => {
      return { domid, grants: grants.allocated, mapped: grants.mapped, ports: events.allocated };
    }),
    devices: [...dom0.net.devices].map(({ name }) => name),
    watches: [...dom0.xenbus.xs.watches].length,
    nodes: await saveNodes(xs, '', () => false),
  };
}

/** The image of a host with two domains, each with two vifs of many options, as text. */
async function sample(): Promise<string> {
  const host = await start();
  const vifs = [
    'ip=10.0.0.1/24 fd00::1,mac=00:16:3e:00:00:01,rate=10Mb/s@20ms,mtu=9000,antispoof',
    'bridge=xenbr1,vifname=front,devid=5,script=vif-x,gatewaydev=eth0,vlan=3,untrusted',
  ];
  const list = vifs.map(vif => `'${vif}'`).join(', ');
  const options = 'netfront = "max_queues=2,multicast_control,without=sg rx-notify"\ndisk = [ [1], "x" ]';
  await host.create(parseDomain(`name = "a"\nvif = [ ${list} ]\n${options}`, 'a.cfg'));
  await host.create(parseDomain(`name = "b"\nvif = [ '', '' ]`, 'b.cfg'));
  for (const hosted of host.domains) assert.deepEqual(await host.settled(hosted), []);
  await host.xs.write('/tool/mine', 'x');
  await host.xs.setPerms('/tool/mine', ['n0', 'r1', 'b2']);
  await host.xs.write('/local/domain/1/data/note', Uint8Array.of(0, 255));
  const text = JSON.stringify(await saveHost(host));
  await host.close();
  return text;
}

let text: string;
before(async () => {
  text = await sample();
});

test('a module that is a function goes on after a reboot, and an image that went through JSON is refused', async t => {
  const host = await start(t);
  let runs = 0;
  const module = () => {
    runs++;
    return { save: () => runs };
  };
  const guest = { kind: 'module', argument: '', module };
  const hosted = await host.create({ ...parseDomain('name = "mine"', 'mine.cfg'), guest });
  await host.shutdown(hosted, 'reboot');
  while (runs < 2 || host.list().length < 2)
    await new Promise(resolve => host.scheduler.after(1, () => resolve(0)));
  const mine = host.find('mine');
  while (mine.underWay !== null) await new Promise(resolve => host.scheduler.after(1, () => resolve(0)));
  const image = await saveHost(host);
  assert.equal(image.domains[0].guest, 2);
  assert.throws(() => parseHostImage(JSON.stringify(image), 'image'), {
    code: 'EINVAL',
    message: /image: domains\[0\]: config: guest: its module was a function of the program that saved it/,
  });
  const other = await start(t);
  await restoreHost(other, image);
  assert.equal(runs, 3);
});

describe('a damaged or hostile image', () => {
  /** Something that is changed in the image, and what is said of it: behind "x.json: " for that of a host. */
  const inHost: [change: (image: Json) => void, message: string][] = [
    [image => delete image.bridges, 'bridges: it is missing'],
    [image => (image.bridges = 'xenbr0'), 'bridges: "xenbr0" is not a list'],
    [image => (image.bridges = ['a/b']), 'bridges[0]: "a/b" is not an interface name'],
    [image => (image.domains = {}), 'domains: an object is not a list'],
    [image => (image.domains = [null]), 'domains[0]: null is not an object'],
    [image => (image.more = 1), 'nothing is known of "more"'],
    [image => (image.nodes[1].path = '/vm'), 'nodes[1]: /vm: the toolstack makes that node itself'],
    [
      image => image.nodes.push({ path: '/local/domain/0', value: '', permissions: ['n0'] }),
      'the toolstack makes that node itself',
    ],
    [image => (image.domains[1].domid = 1), 'domains[1]: another one has the domid 1'],
    [
      image => (image.domains[1].uuid = image.domains[0].uuid),
      'domains[1]: another one has the uuid "########-####-####-####-############"',
    ],
    [image => (image.domains[1].config.name = 'a'), 'domains[1]: another one has the name "a"'],
  ];
  const inDomain: [change: (domain: Json) => void, message: string][] = [
    [domain => (domain.domid = 0), 'domid: 0 is not a whole number from 1 to 32751'],
    [domain => (domain.domid = '1'), 'domid: "1" is not a whole number from 1 to 32751'],
    // It is removed with the domain, as /vm/<uuid>.
    [domain => (domain.uuid = 'x'), 'uuid: "x" is not a uuid'],
    [domain => delete domain.config, 'config: it is missing'],
    [domain => (domain.config.name = '../b'), 'config: name: "../b" is not a name for a domain'],
    [domain => (domain.config.name = '7'), 'config: name: "7" is not a name for a domain'],
    [
      domain => (domain.config.memory = 2 ** 40),
      'config: memory: 1099511627776 is not a whole number from 1 to 16777216',
    ],
    [
      domain => (domain.config.guest.kind = 'constructor'),
      'config: guest: kind: "constructor" is not one of echo, netns, module, linux',
    ],
    [
      domain => (domain.config.guest.argument = 'x'),
      'config: guest: argument: a guest of kind "echo" takes none',
    ],
    [
      domain => (domain.config.guest = { kind: 'module', argument: './x.js' }),
      'config: guest: argument: "./x.js" is not an absolute path',
    ],
    [domain => (domain.config.linux = { driverDomain: true }), 'config: linux: the guest is of kind "echo"'],
    [domain => (domain.config.vifs = {}), 'config: vifs: an object is not a list'],
    [
      domain => (domain.config.vifs[0].mac = '00:16:3E:00:00:01'),
      'config: vifs[0]: mac: "00:16:3E:00:00:01" is not a MAC address in lower case',
    ],
    [domain => (domain.config.vifs[0].devid = 5), 'config: vifs[1]: another one has the devid 5'],
    [
      domain => (domain.config.vifs[0].mtu = '1500'),
      'config: vifs[0]: mtu: "1500" is not a whole number from 68 to 65535',
    ],
    [domain => delete domain.config.vifs[0].bridge, 'config: vifs[0]: bridge: it is missing'],
    [
      domain => (domain.config.vifs[0].ip[0].address = '10.0.0.1 x'),
      'config: vifs[0]: ip[0]: address: "10.0.0.1 x" is not an IP address',
    ],
    [
      domain => (domain.config.vifs[0].ip[0].version = 6),
      'config: vifs[0]: ip[0]: 10.0.0.1 is not of IP version 6',
    ],
    [
      domain => (domain.config.vifs[0].rate.usecs = 0),
      'config: vifs[0]: rate: usecs: 0 is not a whole number from 1 to',
    ],
    [domain => (domain.config.vifs[0].antispoof = 0), 'config: vifs[0]: antispoof: 0 is not true or false'],
    [
      domain => (domain.config.vifs[0].followed = { rate: '1,1\0' }),
      'config: vifs[0]: followed: rate: "1,1\\u0000" is not a value that drivers understand',
    ],
    [
      domain => (domain.config.vifs[0].followed = { state: '4' }),
      'config: vifs[0]: followed: nothing is known of "state"',
    ],
    [domain => (domain.config.vifs[0].followed = null), 'config: vifs[0]: followed: null is not an object'],
    [
      domain => (domain.config.netfront.maxQueues = 1e9),
      'config: netfront: maxQueues: 1000000000 is not a whole number from 1 to 8',
    ],
    [
      domain => (domain.config.netfront.without = ['tso']),
      'config: netfront: without[0]: "tso" is not one of sg, ',
    ],
    [domain => (domain.config.settings = [['x']]), 'config: settings[0]: it has 1 items, not 2'],
    [
      domain => (domain.config.settings[0][1].kind = 'toString'),
      'config: settings[0][1]: kind: "toString" is not one of',
    ],
    [
      domain => {
        let value: Json = { kind: 'number', line: 1, number: 1 };
        for (let depth = 0; depth < 200; depth++) value = { kind: 'list', line: 1, items: [value] };
        domain.config.settings = [['x', value]];
      },
      'lists are in each other more than 100 deep',
    ],
    // Below the directory of another domain, that of domain 1 with a 0 behind it.
    [domain => (domain.nodes[1].path = '0/data'), 'nodes[1]: path: "0/data" is not a path in xenstore'],
    [domain => (domain.nodes[1].path = '/device'), 'nodes[1]: /device: the toolstack makes that node itself'],
    [domain => (domain.nodes[1].path = '/x/y'), 'nodes[1]: /x/y: what it is in does not come before it'],
    [domain => domain.nodes.push(domain.nodes[1]), 'it is there twice'],
    [domain => (domain.nodes[1].value = '?'), 'nodes[1]: value: "?" is not base64'],
    [
      domain => (domain.nodes[1].permissions = ['x0']),
      'nodes[1]: permissions[0]: "x0" is not a permission, as "n0"',
    ],
    [
      domain => (domain.nodes[1].permissions = ['n0', 'r32752']),
      'nodes[1]: permissions[1]: "r32752" is not a permission, as "n0"',
    ],
    [
      domain => (domain.nodes[1].permissions = ['n01']),
      'nodes[1]: permissions[0]: "n01" is not a permission, as "n0"',
    ],
    [domain => (domain.nodes[0].permissions = []), 'nodes[0]: /: it has no permissions, so no owner'],
    [domain => (domain.guest = { answered: [[0]] }), 'guest: answered[0]: it has 1 items, not 2'],
    [
      domain => {
        domain.config.guest.kind = 'netns';
        domain.guest = { namespace: {}, taps: {} };
      },
      'guest: nothing is known of "namespace"',
    ],
    ...['10.0.0.1/24 dev eth1', '10.0.0.1/24\nlink del eth0', '10.0.0.1/24 brd x'].map(
      (address): [(domain: Json) => void, string] => [
        domain => {
          domain.config.guest.kind = 'netns';
          domain.guest = {
            interfaces: [{ devid: 0, up: true, addresses: [address], routes: { 4: [], 6: [] } }],
          };
        },
        `guest: interfaces[0]: addresses[0]: ${JSON.stringify(address)} is not an address, as`,
      ],
    ),
    [
      domain => {
        const routes = { 4: ['default via 10.0.0.2\nlink del eth0'], 6: [] };
        domain.config.guest.kind = 'netns';
        domain.guest = { interfaces: [{ devid: 0, up: true, addresses: [], routes }] };
      },
      'guest: interfaces[0]: routes: 4[0]: "default via 10.0.0.2\\nlink del eth0" is not a route',
    ],
    [
      domain => {
        domain.config.guest.kind = 'linux';
        domain.config.memory = 4096;
      },
      'config: memory: 4096 is not a whole number from 1 to 2047',
    ],
    [
      domain => {
        domain.config.guest.kind = 'linux';
        delete domain.config.netfront;
        domain.guest = { v86: 1 };
      },
      'guest: it is no Linux guest that this version of pvnet has saved (v86 1)',
    ],
  ];

  const said = (error: unknown, where: string, message: string): boolean => {
    assert.ok(error instanceof ErrnoError && error.code === 'EINVAL', String(error));
    const { message: got } = error;
    assert.ok(got.startsWith(`EINVAL: ${where}: `), got);
    assert.ok(
      got
        .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/, uuid => uuid.replace(/\w/g, '#'))
        .includes(message),
      got,
    );
    return true;
  };

  for (const [change, message] of inHost) {
    test(`of a host is refused: ${message}`, () => {
      const image = JSON.parse(text);
      change(image);
      assert.throws(
        () => parseHostImage(JSON.stringify(image), 'x.json'),
        error => said(error, 'x.json', message),
      );
    });
  }

  for (const [change, message] of inDomain) {
    test(`of a domain is refused: ${message}`, () => {
      const image = JSON.parse(text);
      const [domain] = image.domains;
      change(domain);
      assert.throws(
        () => parseHostImage(JSON.stringify(image), 'x.json'),
        error => said(error, 'x.json: domains[0]', message),
      );
      assert.throws(
        () => parseDomainImage(JSON.stringify(domain), 'd.json'),
        error => said(error, 'd.json', message),
      );
    });
  }

  test('of anything else is refused', () => {
    for (const other of ['', 'no', 'null', '[]', '{}', text.slice(0, -1)]) {
      assert.throws(
        () => parseHostImage(other, 'x.json'),
        /EINVAL: x\.json is not what "pvnet save" writes$/,
      );
    }
    const newer = '{"format":"pvnet host","version":2,"domains":[]}';
    assert.throws(
      () => parseHostImage(newer, 'x.json'),
      /x\.json is of version 2; this pvnet reads version 1$/,
    );
    for (const other of ['', 'no', 'null', '[]']) {
      assert.throws(() => parseDomainImage(other, 'd.json'), /EINVAL: d\.json: .* is not an object$/);
    }
    assert.throws(() => parseDomainImage('{}', 'd.json'), /EINVAL: d\.json: domid: it is missing$/);
  });
});

test('an image that cannot be restored here leaves nothing of its domains, nodes and bridges', async t => {
  const host = await start(t);
  await host.xs.write('/tool/mine', 'theirs');
  await host.create(parseDomain('name = "other"', 'other.cfg'));
  const other = host.find('other');
  await host.settled(other);
  const image = parseHostImage(text, 'x.json');
  const [a, b] = image.domains;
  const first = await everything(host);
  await assert.rejects(restoreHost(host, image), /EEXIST: there is a domain 1 already$/);
  assert.deepEqual(await everything(host), first);
  // The first domain runs by then.
  const twice = { ...b, domid: 1 };
  const late = { ...image, domains: [{ ...a, domid: 3 }, twice], bridges: ['xenbr0', 'xenbr7'] };
  await assert.rejects(restoreHost(host, late), { code: 'EEXIST' });
  assert.deepEqual(await everything(host), first);
  await assert.rejects(
    restoreDomain(host, { ...a, uuid: other.identity.uuid }),
    /EEXIST: the domain other has the uuid .* already$/,
  );
  const large = { path: '/data/large', value: Buffer.alloc(5000).toString('base64'), permissions: ['n0'] };
  await assert.rejects(restoreDomain(host, { ...a, nodes: [...a.nodes, large] }), { code: 'E2BIG' });
  const { name } = host.bridge('xenbr1');
  await host.removeBridge(name);
  await host.removeBridge('xenbr0');
  assert.deepEqual(await everything(host), first);
});

/** Values that break what was not checked. */
const odd = fc.oneof(
  fc.constantFrom<Json>(
    null,
    true,
    -1,
    0,
    1,
    1.5,
    2 ** 32,
    2 ** 53,
    1e300,
    '',
    '0',
    '/',
    '..',
    'a\0b',
    [],
    [[]],
    {},
  ),
  fc.constantFrom<Json>(
    '__proto__',
    'constructor',
    'x'.repeat(5000),
    '/local/domain/0/x',
    '1/x',
    ['n0'],
    ['b7'],
  ),
  fc.jsonValue({ maxDepth: 2 }),
);
const change = fc.record({
  way: fc.array(fc.nat(1000), { maxLength: 9 }),
  what: fc.nat(4),
  value: odd,
  name: fc.string(),
});

/** Goes a way into the image, and changes what is there. */
function mutate(image: Json, { way, what, value, name }: Of<typeof change>): void {
  let at = image;
  // The generator may give the same object again, which must not get into itself.
  const put = structuredClone(value);
  for (const step of way.slice(0, -1)) {
    const inner = Object.values(at).filter(each => typeof each === 'object' && each !== null);
    if (inner.length === 0) break;
    at = inner[step % inner.length];
  }
  const keys = Object.keys(at);
  const key = keys[(way.at(-1) ?? 0) % keys.length];
  if (what === 0) at[name] = put;
  else if (key === undefined) return;
  else if (what === 1 && !Array.isArray(at)) delete at[key];
  else if (what === 2 && Array.isArray(at)) at.push(at[Number(key)]);
  else if (what === 3 && Array.isArray(at)) at.splice(Number(key), 1);
  else at[key] = put;
}

test('however an image is changed, it is restored, or refused in one sentence without a trace', async t => {
  const host = await start(t);
  const restored = { good: 0, refused: 0 };
  // What the first restore leaves: bridges, and nodes beside domains.
  for (const hosted of await restoreHost(host, parseHostImage(text, 'x.json'))) await host.destroy(hosted);
  const changed = fc.array(change, { minLength: 1, maxLength: 2 });
  const property = fc.asyncProperty(changed, async changes => {
    const image = JSON.parse(text);
    for (const each of changes) mutate(image, each);
    const first = await everything(host);
    try {
      const all = await restoreHost(host, parseHostImage(JSON.stringify(image), 'x.json'));
      restored.good++;
      for (const hosted of all) await host.destroy(hosted);
    } catch (error) {
      restored.refused++;
      assert.ok(error instanceof ErrnoError, String((error as Error).stack));
      assert.match(error.message, /^E[A-Z0-9]+: [^\n]{1,300}$/);
      assert.deepEqual(await everything(host), first);
    }
  });
  await fc.assert(property, { numRuns: Number(process.env['PVNET_IMAGE_RUNS'] ?? 300) });
  assert.ok(restored.good > 5 && restored.refused > 50, JSON.stringify(restored));
});
