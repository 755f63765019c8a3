import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream, createWriteStream } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { missingPrograms, namespaceObstacle, steeringObstacle } from '../uplink/machine.js';
import { PvnetUp } from './pvnet.js';

const MB = 1 << 20;
const programs = ['ip', 'ping', 'iperf3', 'curl', 'tcpdump', 'tshark', 'xenstore-ls', 'python3'];
const skip = missingPrograms(...programs) || (await namespaceObstacle());
const unsteerable = skip || (await steeringObstacle());

function domain(name: string, number: number, extra = ''): string {
  const mac = `00:16:3e:77:00:0${number}`;
  return `name = "${name}"\nguest = "netns"\nvif = [ 'mac=${mac},bridge=xenbr0,ip=10.77.7.${number}/24${extra}' ]\n`;
}

interface Iperf {
  end: { sum_received: { bits_per_second: number; lost_percent?: number }; sum: { lost_percent: number } };
}

interface LinkStatistics {
  ifname: string;
  stats64: Record<'rx' | 'tx', { dropped: number; errors: number }>;
}

type Dropped = [device: string, rx: number, tx: number];

describe('two network namespaces and the outside, across the split driver', {
  skip,
  timeout: 240_000,
}, () => {
  let host: PvnetUp;

  before(async () => {
    host = await PvnetUp.start({ web: domain('web', 1), db: domain('db', 2) }, [
      '--uplink',
      'xenbr0=pvuplink0,10.77.7.100/24',
    ]);
  });

  after(async () => {
    const { status } = await host.stop();
    assert.equal(status, 0);
    const links = spawnSync('ip', ['-br', 'link'], { encoding: 'utf8' }).stdout;
    assert.doesNotMatch(links, /pvuplink0/, 'the uplink is gone');
  });

  async function iperf(...args: string[]): Promise<Iperf> {
    const server = host.spawn('exec', 'db', '--', 'iperf3', '-s', '-1', '--forceflush');
    await new Promise<void>(resolve => {
      server.stdout?.on('data', chunk => {
        if (`${chunk}`.includes('listening')) resolve();
      });
    });
    return JSON.parse(await host.exec('web', 'iperf3', '-J', '-c', '10.77.7.2', '-t', '1', ...args)) as Iperf;
  }

  /** Packets dropped so far by each device of the host's kernels, not of the namespaces behind them. */
  async function dropped(): Promise<Dropped[]> {
    const kernels = ['Domain-0', 'web', 'db'];
    const shown = await Promise.all(kernels.map(name => host.ok('ip', name, '-s', '-j', 'link')));
    return shown.flatMap(text =>
      (JSON.parse(text) as LinkStatistics[]).map(
        ({ ifname, stats64: { rx, tx } }): Dropped => [
          ifname,
          rx.dropped + rx.errors,
          tx.dropped + tx.errors,
        ],
      ),
    );
  }

  /** Runs tcpdump in a guest while something goes on. @returns the file of at most 400 packets */
  async function capture(name: string, filter: string[], during: () => Promise<unknown>): Promise<string> {
    const file = join(host.dir, `${name}.pcap`);
    const dump = host.spawn('exec', name, '--', 'tcpdump', '-ni', 'eth0', '-c', '400', '-w', file, ...filter);
    const ended = once(dump, 'close');
    await new Promise<void>(resolve => {
      dump.stderr?.on('data', chunk => {
        if (`${chunk}`.includes('listening')) resolve();
      });
    });
    await during();
    dump.kill('SIGINT');
    await ended;
    return file;
  }

  test('ping, and nothing is lost', async () => {
    assert.deepEqual(lostPings(await host.exec('web', 'ping', ...pings(20), '10.77.7.2')), []);
  });

  test('ping of the largest size, over many slots', async () => {
    assert.deepEqual(lostPings(await host.exec('web', 'ping', ...pings(5), '-s', '65507', '10.77.7.2')), []);
  });

  test('curl of 100 MB arrives with its checksum', async () => {
    const file = join(host.dir, 'file');
    const expected = await writeRandom(file, 100);
    const server = host.spawn('exec', 'db', '--', 'python3', '-m', 'http.server', '-d', host.dir, '8000');
    const ended = once(server, 'close');
    const copy = join(host.dir, 'copy');
    const url = 'http://10.77.7.2:8000/file';
    await host.exec(
      'web',
      'curl',
      '-sS',
      '--retry',
      '20',
      '--retry-connrefused',
      '--retry-delay',
      '1',
      '-o',
      copy,
      url,
    );
    server.kill('SIGTERM');
    await ended;
    assert.equal(await digest(copy), expected);
  });

  for (const [what, args] of [
    ['TCP', []],
    ['TCP, the other way', ['-R']],
    ['four TCP streams', ['-P', '4']],
    ['four TCP streams, the other way', ['-P', '4', '-R']],
  ] as const) {
    test(`iperf3: ${what}`, async () => {
      const { end } = await iperf(...args);
      assert.ok(end.sum_received.bits_per_second > 1e7, `${end.sum_received.bits_per_second} bit/s`);
    });
  }

  test('iperf3: TCP through a VXLAN tunnel between the guests', async t => {
    const addTunnel = (own: number, other: number) =>
      `ip link add vx0 type vxlan id 7 remote 10.77.7.${other} dstport 4789 dev eth0 &&
        ip addr add 10.77.8.${own}/24 dev vx0 && ip link set vx0 up`;
    try {
      await host.exec('web', 'sh', '-c', addTunnel(1, 2));
    } catch (error) {
      t.skip(`no VXLAN can be had: ${(error as Error).message}`);
      return;
    }
    await host.exec('db', 'sh', '-c', addTunnel(2, 1));
    const { end } = await iperf('-c', '10.77.8.2');
    assert.ok(end.sum_received.bits_per_second > 1e7, `${end.sum_received.bits_per_second} bit/s`);
    await host.exec('web', 'ip', 'link', 'del', 'vx0');
    await host.exec('db', 'ip', 'link', 'del', 'vx0');
  });

  for (const args of [[], ['-R']]) {
    // On a busy machine the kernel's queues before and behind us overflow; ours must not.
    test(`iperf3: UDP ${args.join('')}`, async () => {
      const before = await dropped();
      const { end } = await iperf('-u', '-b', '20M', ...args);
      assert.ok(end.sum.lost_percent < 90, `${end.sum.lost_percent} % lost`);
      assert.deepEqual(await dropped(), before);
    });
  }

  test('tcpdump in a guest sees segments far above the MTU while TCP flows', async () => {
    const file = await capture('db', ['tcp', 'and', 'greater', '3000'], () => iperf());
    const lengths = spawnSync('tshark', ['-r', file, '-T', 'fields', '-e', 'frame.len'], {
      encoding: 'utf8',
    });
    const largest = Math.max(...lengths.stdout.split('\n').map(Number));
    assert.ok(largest > 20_000, `the largest of ${file} has ${largest} bytes`);
  });

  test('who sends in segments has others run its TCP meanwhile, and who receives has not', {
    skip: unsteerable,
  }, async () => {
    const steered = '/sys/class/net/eth0/queues/rx-0/rps_cpus';
    const wait = ['sh', '-c', `for i in $(seq 500); do grep [1-9a-f] ${steered} && exit; sleep 0.02; done`];
    await host.ok('ethtool', 'web', '-K', 'eth0', 'tso', 'off');
    const [set] = await Promise.all([host.exec('web', ...wait), iperf()]);
    await host.ok('ethtool', 'web', '-K', 'eth0', 'tso', 'on');
    assert.match(set, /^[0-9a-f,]+\n$/);
    assert.match(await host.exec('db', 'cat', steered), /^[0,]+\n$/);
    // Pings end it once the window in which the stream ended is over.
    await host.exec('web', 'ping', '-c', '30', '-i', '0.01', '10.77.7.2');
    assert.match(await host.exec('web', 'cat', steered), /^[0,]+\n$/);
  });

  test('a guest reaches the outside through the uplink, and the outside the guest', async () => {
    assert.deepEqual(lostPings(await host.exec('web', 'ping', ...pings(3), '10.77.7.100')), []);
    const outside = spawnSync('ping', [...pings(3), '10.77.7.2'], { encoding: 'utf8' });
    assert.deepEqual(lostPings(outside.stdout), []);
  });

  test('a peer without offload gets segments of its MTU with right checksums', async () => {
    // What domain 0's interface towards the guest cannot do any more, netback does before the ring.
    const off = ['tx', 'tso', 'gso'].flatMap(feature => [feature, 'off']);
    await host.ok('ethtool', 'Domain-0', '-K', 'vif1.0', ...off);
    await host.ok('ethtool', 'web', '-K', 'eth0', 'gro', 'off');
    const file = await capture('web', ['tcp', 'and', 'src', '10.77.7.2'], () => iperf('-R'));
    await host.ok('ethtool', 'Domain-0', '-K', 'vif1.0', ...off.map(word => (word === 'off' ? 'on' : word)));
    await host.ok('ethtool', 'web', '-K', 'eth0', 'gro', 'on');
    const fields = ['-e', 'frame.len', '-e', 'tcp.checksum.status'];
    const args = ['-r', file, '-o', 'tcp.check_checksum:TRUE', '-T', 'fields', ...fields];
    const rows = spawnSync('tshark', args, { encoding: 'utf8' }).stdout.trim().split('\n');
    assert.ok(rows.length > 100);
    for (const row of rows) {
      const [length, status] = row.split('\t');
      assert.ok(Number(length) <= 1514, `${length} bytes`);
      assert.equal(status, '1', 'the checksum is good');
    }
  });

  test("Debian's tools read, write and watch the live store", async () => {
    const ls = await host.xenstore('ls', '-fp');
    assert.equal(ls.status, 0);
    assert.match(ls.stdout, /\/local\/domain\/1\/device\/vif\/0\/state = "4" {3}\(n1,r0\)/);
    assert.equal((await host.xenstore('write', '/test/key', 'value')).status, 0);
    assert.equal((await host.xenstore('read', '/test/key')).stdout, 'value\n');
    assert.equal((await host.xenstore('chmod', '/test/key', 'n0', 'r1')).status, 0);
    assert.match((await host.xenstore('ls', '-p', '/test')).stdout, /key = "value"[ .]+\(n0,r1\)/);
    let watched: string | undefined;
    host.xenstore('watch', '-n', '2', '/test/key').then(({ stdout }) => {
      watched = stdout;
    });
    // It may not have begun yet.
    while (watched === undefined)
      assert.equal((await host.xenstore('write', '/test/key', 'other')).status, 0);
    assert.equal(watched, '/test/key\n/test/key\n');
    assert.equal((await host.xenstore('rm', '/test')).status, 0);
    assert.notEqual((await host.xenstore('read', '/test/key')).status, 0);
  });

  test('vifs come and go while another carries traffic: nothing of it is lost, and nothing stays', async () => {
    const baseline = await leftovers(host);
    const ping = host.exec('web', 'ping', ...pings(400), '10.77.7.2');
    for (let i = 0; i < 3; i++) {
      await host.ok('vif-attach', 'web', 'bridge=xenbr0,ip=10.78.0.1/24');
      assert.match(await host.exec('web', 'ip', '-br', 'link'), /eth1/);
      await host.ok('vif-detach', 'web', '1');
      assert.doesNotMatch(await host.exec('web', 'ip', '-br', 'link'), /eth1/);
    }
    assert.deepEqual(lostPings(await ping), []);
    assert.deepEqual(await leftovers(host), baseline);
  });

  test('a vif whose interface its guest deleted goes as any other, and leaves its name', async () => {
    const baseline = await leftovers(host);
    for (let i = 0; i < 2; i++) {
      await host.ok('vif-attach', 'web', 'bridge=xenbr0,ip=10.78.0.1/24');
      await host.exec('web', 'ip', 'link', 'del', 'eth1');
      await host.ok('vif-detach', 'web', '1');
      assert.deepEqual(await leftovers(host), baseline);
    }
  });
});

/** Arguments for a ping that ends when `count` were answered, however late on a loaded machine. */
function pings(count: number): string[] {
  return ['-c', `${count}`, '-w', '60', '-i', '0.01'];
}

/** Sequence numbers without an answer, up to the last that has one. */
function lostPings(output: string): number[] {
  const answered = new Set([...output.matchAll(/icmp_seq=(\d+)/g)].map(([, sequence]) => Number(sequence)));
  assert.ok(answered.size > 0, output);
  const all = Array.from({ length: Math.max(...answered) }, (_, i) => i + 1);
  return all.filter(sequence => !answered.has(sequence));
}

/** What would grow if a vif left something behind: nodes, and interrupts of both ends. */
async function leftovers(host: PvnetUp): Promise<object> {
  const names = async (name: string) =>
    (await host.ok('interrupts', name))
      .split('\n')
      .map(line => line.split(/\s+/).at(-1))
      .sort();
  const store = (await host.xenstore('ls', '-f')).stdout.split('\n').map(line => line.split(' =')[0]);
  return { store: store.sort(), dom0: await names('Domain-0'), web: await names('web') };
}

async function writeRandom(file: string, megabytes: number): Promise<string> {
  const hash = createHash('sha256');
  const out = createWriteStream(file);
  for (let i = 0; i < megabytes; i++) {
    const chunk = randomBytes(MB);
    hash.update(chunk);
    if (!out.write(chunk)) await once(out, 'drain');
  }
  out.end();
  await once(out, 'finish');
  return hash.digest('hex');
}

async function digest(file: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}
