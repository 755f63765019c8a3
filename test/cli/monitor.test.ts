import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ip } from '../../src/cli/ip.js';
import { monitorHost } from '../../src/cli/monitor.js';
import { parseDomain } from '../../src/toolstack/domain-config.js';
import { Host } from '../../src/toolstack/host.js';

function echo(name: string, address: string): ReturnType<typeof parseDomain> {
  return parseDomain(`name = "${name}"\nguest = "echo"\nvif = [ 'ip=${address}' ]`, `${name}.cfg`);
}

test('a monitor follows the domains that come and go', async t => {
  const host = await Host.start({ memoryBytes: 64 << 20 });
  t.after(() => host.close());
  const a = await host.create(echo('a', '10.0.0.1'));
  await host.settled(a);
  const all: string[] = [];
  const ofB: { domain: string; event: string; ifname?: string }[] = [];
  const stops = [
    monitorHost(host, null, {}, line => all.push(line)),
    monitorHost(host, 'b', { json: true }, line => ofB.push(JSON.parse(line))),
  ];
  const heard = (line: string): boolean => all.includes(line);
  assert.deepEqual(all, [], 'what is there is no news');

  for (const round of [1, 2]) {
    const b = await host.create(echo('b', '10.0.0.2'));
    await host.settled(b);
    assert.ok(heard('b: the domain boots [BOOT]'), `round ${round}`);
    assert.ok(heard('b: eth0 is registered [REGISTER]'), 'its devices from the first on');
    assert.ok(heard(`Domain-0: vif${b.domain.domid}.0 is registered [REGISTER]`));
    await host.destroy(b);
    assert.ok(heard('b: the domain has ended [END]'));
    assert.equal(ofB[0].event, 'BOOT');
    assert.equal(ofB.at(-1)?.event, 'END');
    assert.ok(ofB.some(line => line.event === 'REGISTER' && line.ifname === 'eth0'));
    assert.ok(ofB.every(line => line.domain === 'b'));
    all.length = 0;
    ofB.length = 0;
  }

  for (const stop of stops) stop();
  await host.destroy(await host.create(echo('c', '10.0.0.3')));
  assert.deepEqual([all, ofB], [[], []]);
});

test('a bridge that ip makes is one for vifs, too', async t => {
  const host = await Host.start({ memoryBytes: 64 << 20 });
  t.after(() => host.close());
  const { net } = host.dom0;
  assert.equal(ip(net, ['link', 'add', 'mybr', 'type', 'bridge']).status, 0);
  assert.deepEqual(host.bridgeNames, ['mybr']);
  const config = parseDomain(`name = "a"\nguest = "echo"\nvif = [ 'bridge=mybr' ]`, 'a.cfg');
  const a = await host.create(config);
  assert.equal(net.byName(`vif${a.domain.domid}.0`)!.master, net.byName('mybr'));
});
