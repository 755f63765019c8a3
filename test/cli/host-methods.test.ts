import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { registerHostMethods } from '../../src/cli/host-methods.js';
import { registerLifeMethods } from '../../src/cli/life-methods.js';
import { RpcRegistry } from '../../src/cli/rpc.js';
import { Host, type HostedDomain, parseDomain, parseHostImage } from '../../src/toolstack/index.js';

/** A host as `pvnet up` has it, without its sockets. */
class Served {
  ended = false;
  private readonly registry = new RpcRegistry();

  private constructor(readonly host: Host) {
    const down = () => {
      this.ended = true;
    };
    registerHostMethods(this.registry, host, down);
    registerLifeMethods(this.registry, host, down);
  }

  static async start(t: TestContext): Promise<Served> {
    const host = await Host.start({ memoryBytes: 64 << 20 });
    t.after(() => host.close());
    return new Served(host);
  }

  call(method: string, params: object): Promise<unknown> {
    return this.registry.call(method, params, { emit() {}, signal: new AbortController().signal });
  }

  async create(name: string, vif = "''"): Promise<HostedDomain> {
    const hosted = await this.host.create(
      parseDomain(`name = "${name}"\nguest = "echo"\nvif = [ ${vif} ]`, `${name}.cfg`),
    );
    assert.deepEqual(await this.host.settled(hosted), []);
    return hosted;
  }
}

const soon = () => new Promise(resolve => setImmediate(resolve));

test('vif-attach says that the vif was detached, or its domain destroyed, before it was connected', async t => {
  const served = await Served.start(t);
  const { host } = served;
  for (const [end, why] of [
    [(a: HostedDomain) => host.detachVif(a, 1), /^ENODEV: vif 1 of the domain a was detached while it was/],
    [(a: HostedDomain) => host.destroy(a), /^ESRCH: the domain a was destroyed$/],
  ] as const) {
    const a = await served.create('a');
    const attached = served.call('vif-attach', { domain: 'a', vif: '' });
    const refused = assert.rejects(attached, (error: Error) => why.test(error.message));
    while (a.vifs.get(1)?.status !== null) await soon();
    await end(a);
    await refused;
    await host.destroy(a);
  }
});

test('vif-attach waits for its own vif, and not ten seconds for another one', { timeout: 8000 }, async t => {
  const served = await Served.start(t);
  const { host } = served;
  const a = await served.create('a');
  const first = a.vifs.get(0)!;
  await host.xs.write(`${first.paths.backend}/state`, '3');
  assert.deepEqual(await served.call('vif-attach', { domain: 'a', vif: '' }), { devid: 1, waitingFor: null });
  assert.deepEqual(await host.settled(a, { timeoutMs: 0 }), [first]);
});

test('nothing comes between the image of a host that goes on and its domains going on', async t => {
  const served = await Served.start(t);
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-save-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, 'host.pvnet');
  // What is written over was for all to read.
  writeFileSync(file, 'an older image', { mode: 0o644 });
  const all = [await served.create('a'), await served.create('b'), await served.create('c')];
  let saving = true;
  const saved = served.call('save', { file, leaveRunning: true }).finally(() => {
    saving = false;
  });
  let attempts = 0;
  while (saving) {
    for (const { config } of all) {
      const resumed = served.call('resume', { domain: config.name, cancelled: true });
      await assert.rejects(resumed, new RegExp(`EBUSY: the domain ${config.name} is being saved$`));
      attempts++;
    }
    await soon();
  }
  assert.deepEqual(readdirSync(folder), ['host.pvnet']);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.deepEqual(await saved, { domains: ['a', 'b', 'c'], notes: [] });
  assert.ok(attempts > 3);
  assert.equal(parseHostImage(readFileSync(file, 'utf8'), file).domains.length, 3);
  for (const hosted of all) assert.deepEqual(await served.host.settled(hosted), []);
  assert.equal(served.ended, false);
});

test('a host that cannot be saved goes on: no file, or a domain that came meanwhile', async t => {
  const served = await Served.start(t);
  const a = await served.create('a');
  await assert.rejects(
    served.call('save', { file: '/nonexistent/host.pvnet' }),
    /EIO: \/nonexistent\/host\.pvnet cannot be written \(ENOENT\); all goes on$/,
  );
  assert.deepEqual(await served.host.settled(a), []);
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-save-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const saved = served.call('save', { file: join(folder, 'host.pvnet') });
  const refused = assert.rejects(saved, /EBUSY: the domain b was created meanwhile, and is not saved$/);
  const b = served.host.create(parseDomain('name = "b"\nguest = "echo"', 'b.cfg'));
  await refused;
  assert.deepEqual(await served.host.settled(a), []);
  assert.equal((await b).domain.state, 'running');
  assert.equal(served.ended, false);
});

test('the commands of vifs are refused while something else is under way with their domain', async t => {
  const served = await Served.start(t);
  const a = await served.create('a');
  const commands: readonly [string, object][] = [
    ['vif-carrier', { devid: 0, up: false }],
    ['vif-attach', { vif: '' }],
    ['vif-detach', { devid: 0 }],
    ['vif-detach', { devid: 0, force: true }],
  ];
  await served.host.exclusively([a], 'being suspended', async () => {
    for (const [method, params] of commands) {
      await assert.rejects(
        served.call(method, { domain: 'a', ...params }),
        /EBUSY: the domain a is being suspended$/,
        method,
      );
    }
  });
  assert.deepEqual([...a.vifs.keys()], [0]);
  assert.deepEqual(await served.host.settled(a), []);
  await served.call('vif-carrier', { domain: 'a', devid: 0, up: false });
  assert.match(served.host.waitingFor(a, a.vifs.get(0)!)!, /without carrier/);
});
