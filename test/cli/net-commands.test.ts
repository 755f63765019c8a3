import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { RpcClient } from '../../src/cli/rpc.js';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

function until(child: ChildProcess, text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let output = '';
    child.stdout!.on('data', chunk => {
      output += chunk;
      if (output.includes(text)) resolve();
    });
    child.on('exit', () => reject(new Error(`it ended: ${output}`)));
  });
}

test('a host that runs shows its domains’ networks as their users would see them', async t => {
  const cwd = mkdtempSync(join(tmpdir(), 'pvnet-net-commands-'));
  t.after(() => rmSync(cwd, { recursive: true, force: true }));
  const socket = join(cwd, 'c.sock');
  const env = { ...process.env, PVNET_SOCKET: socket };
  writeFileSync(
    join(cwd, 'a.cfg'),
    `name = "a"\nguest = "echo"\nvif = [ 'ip=10.0.0.1,mac=00:16:3e:00:00:01' ]\n`,
  );
  const host = spawn(process.execPath, [MAIN, 'up', 'a.cfg'], {
    cwd,
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => void host.kill('SIGKILL'));
  await until(host, 'ready;');
  const client = await RpcClient.connect(socket);
  const monitored: string[] = [];
  const capture: string[] = [];
  // These end when the host does.
  const watching = [
    client.call('monitor', {}, line => monitored.push(String(line))),
    client.call('nlmon', { domain: 'a' }, bytes => capture.push(String(bytes))),
  ].map(call => call.catch(() => {}));

  const pvnet = (...args: string[]) =>
    spawnSync(process.execPath, [MAIN, ...args], { cwd, env, encoding: 'utf8' });
  const shown = pvnet('ip', 'a', '-j', 'link', 'show', 'eth0');
  assert.equal(JSON.parse(shown.stdout)[0].address, '00:16:3e:00:00:01');
  assert.deepEqual(
    JSON.parse(pvnet('ip', '--json', 'a', 'link', 'show', 'eth0').stdout),
    JSON.parse(shown.stdout),
  );
  assert.deepEqual(JSON.parse(pvnet('ls', 'a:/sys/class/net', '--json').stdout), { text: 'eth0\nlo\n' });
  writeFileSync(join(cwd, 'old.pcap'), 'old');
  assert.match(pvnet('nlmon', 'b', '-w', 'old.pcap').stderr, /^pvnet nlmon: ESRCH: there is no domain "b"/);
  assert.equal(readFileSync(join(cwd, 'old.pcap'), 'utf8'), 'old');
  if (existsSync('/dev/full')) {
    const { status, stderr } = pvnet('nlmon', 'a', '-w', '/dev/full');
    assert.equal(stderr, 'pvnet nlmon: EIO: /dev/full cannot be written (ENOSPC)\n');
    assert.equal(status, 1);
  }
  assert.equal(pvnet('write', 'a:/sys/class/net/eth0/mtu', '1400').status, 0);
  assert.equal(pvnet('cat', 'a:/sys/class/net/eth0/mtu').stdout, '1400\n');
  const refused = pvnet('ip', 'a', 'link', 'set', 'eth0', 'mtu', '1');
  assert.deepEqual(
    [refused.status, refused.stderr.split('\n')[0]],
    [2, 'Error: mtu less than device minimum.'],
  );
  assert.match(pvnet('ethtool', 'Domain-0', '-k', 'vif1.0').stdout, /\ntx-checksumming: on\n/);
  assert.match(pvnet('ls', '-l', 'Domain-0:/sys/class/net').stdout, /vif1\.0 -> /);
  assert.match(pvnet('cat', 'nowhere').stderr, /it is DOMAIN:PATH/);
  // The commands ran while this process slept: what they caused arrives now.
  for (let i = 0; i < 500 && capture.length < 2; i++) await new Promise(resolve => setTimeout(resolve, 10));
  assert.ok(
    monitored.some(line => line === 'a: eth0 has another MTU, 1400 [CHANGEMTU]'),
    monitored.join('\n'),
  );
  assert.equal(Buffer.from(capture[0], 'base64').readUInt32LE(20), 253);
  assert.ok(capture.length > 1);
  const ended = new Promise(resolve => host.on('exit', resolve));
  client.close();
  host.kill('SIGINT');
  assert.equal(await ended, 0);
  await Promise.all(watching);
});
