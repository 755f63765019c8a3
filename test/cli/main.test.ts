import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { cachedFiles } from '../../src/guests/linux/files.js';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const linuxIsThere = cachedFiles() !== null;
const GUIDE = fileURLToPath(new URL('../../../docs/guide.md', import.meta.url));

function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'pvnet-cli-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

function pvnet(cwd: string, ...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const env = { ...process.env, PVNET_SOCKET: join(cwd, 'c.sock') };
  return spawnSync(process.execPath, [MAIN, ...args], { cwd, env, encoding: 'utf8', timeout: 60_000 });
}

async function up(
  t: TestContext,
  cwd: string,
  ...args: string[]
): Promise<{ child: ChildProcess; output: string; errors: () => string }> {
  const env = { ...process.env, PVNET_SOCKET: join(cwd, 'c.sock') };
  const child = spawn(process.execPath, [MAIN, 'up', ...args], {
    cwd,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => void child.kill('SIGKILL'));
  let output = '';
  let errors = '';
  await new Promise<void>((resolve, reject) => {
    child.stderr!.on('data', chunk => {
      output += chunk;
      errors += chunk;
    });
    child.stdout!.on('data', chunk => {
      output += chunk;
      if (output.includes('ready;')) resolve();
    });
    child.on('exit', () => reject(new Error(`pvnet up ended: ${output}`)));
  });
  return { child, output, errors: () => errors };
}

function ended(child: ChildProcess): Promise<number | null> {
  return new Promise(resolve => child.on('exit', code => resolve(code)));
}

describe('pvnet', () => {
  test('runs a host that its other commands work on, and leaves nothing behind', async t => {
    const cwd = folder(t);
    writeFileSync(join(cwd, 'a.cfg'), `name = "a"\nguest = "echo"\nvif = [ 'ip=10.0.0.1' ]\n`);
    writeFileSync(join(cwd, 'b.cfg'), `name = "b"\nguest = "echo"\nvif = [ 'ip=10.0.0.2' ]\ndisk = []\n`);
    const { child, output } = await up(t, cwd, 'a.cfg');
    assert.match(output, /domain 1: a\n/);
    assert.ok(output.includes(`XENSTORED_PATH=${join(cwd, 'c-xenstored.sock')}`));

    const created = pvnet(cwd, 'create', 'b.cfg');
    assert.match(created.stdout, /created b as domain 2\n.*b\.cfg:4: disk: pvnet has no use for it/);
    assert.deepEqual(
      JSON.parse(pvnet(cwd, 'list', '--json').stdout).map((domain: { name: string }) => domain.name),
      ['Domain-0', 'a', 'b'],
    );
    assert.match(pvnet(cwd, 'ping', 'a', '10.0.0.2', '-c', '1').stdout, /answer from 10\.0\.0\.2: seq=1/);
    assert.equal(pvnet(cwd, 'ping', 'a', 'b').stderr, 'pvnet ping: EINVAL: "b" is no IP address\n');
    assert.match(pvnet(cwd, 'vif-attach', 'a', 'ip=10.0.1.1', 'mtu=9000').stdout, /attached vif 1 to a/);
    assert.match(pvnet(cwd, 'vif-list', 'a').stdout, /\na +1 +vif1\.1 .*Connected +Connected/);
    assert.equal(pvnet(cwd, 'vif-detach', 'a', '1').status, 0);
    assert.match(
      pvnet(cwd, 'vif-detach', 'a', '1').stderr,
      /pvnet vif-detach: ENODEV: the domain a has no vif 1/,
    );
    assert.match(pvnet(cwd, 'interrupts', 'Domain-0').stdout, /vif1\.0/);
    assert.match(pvnet(cwd, 'dmesg', 'a').stdout, /echo: eth0 answers for 10\.0\.0\.1/);
    assert.match(pvnet(cwd, 'exec', 'a', '--', 'true').stderr, /EOPNOTSUPP: a: a guest of kind "echo"/);
    assert.equal(pvnet(cwd, 'shutdown', 'b').status, 0);
    assert.equal(pvnet(cwd, 'destroy', 'a').status, 0);
    assert.equal(pvnet(cwd, 'up').status, 1);

    child.kill('SIGINT');
    assert.equal(await ended(child), 0);
    assert.deepEqual(readdirSync(cwd).sort(), ['a.cfg', 'b.cfg']);
  });

  test('"down" ends the host, and returns when nothing of it is there', async t => {
    const cwd = folder(t);
    writeFileSync(join(cwd, 'a.cfg'), 'name = "a"\nguest = "echo"\nvif = [ "", "" ]\n');
    const sockets = ['--socket', 'run/deep/c.sock', '--xenstored', 'run/store/xs.sock'];
    const { child } = await up(t, cwd, 'a.cfg', ...sockets);
    const end = ended(child);
    assert.equal(pvnet(cwd, 'down', '--socket', 'run/deep/c.sock').status, 0);
    assert.deepEqual(readdirSync(cwd), ['a.cfg']);
    assert.equal(await end, 0);
  });

  test('a host that cannot have its sockets leaves nothing behind', t => {
    const cwd = folder(t);
    writeFileSync(join(cwd, 'file'), '');
    const { status, stderr } = pvnet(cwd, 'up', '--socket', 'run/deep/c.sock', '--xenstored', 'file');
    assert.match(stderr, /^pvnet up: EEXIST: .*file is there and is no socket/);
    assert.equal(status, 1);
    assert.deepEqual(readdirSync(cwd), ['file']);
  });

  test('a folder for a socket that cannot be made is said to be so', t => {
    const cwd = folder(t);
    for (const args of [
      ['up', '--socket', '/proc/none/c.sock'],
      ['up', '--socket', 'run/c.sock', '--xenstored', '/proc/none/xs.sock'],
      ['xenstored', '--socket', '/proc/none/deep/xs.sock'],
    ]) {
      const { status, stderr } = pvnet(cwd, ...args);
      assert.match(stderr, /: EIO: \/proc\/none cannot be made \(ENOENT\); --socket names another place\n$/);
      assert.equal(status, 1);
    }
    assert.deepEqual(readdirSync(cwd), []);
  });

  test('a host whose output nobody reads any more leaves nothing behind', async t => {
    const cwd = folder(t);
    const env = { ...process.env, PVNET_SOCKET: join(cwd, 'run', 'c.sock') };
    const child = spawn(process.execPath, [MAIN, 'up'], { env, stdio: ['ignore', 'pipe', 'ignore'] });
    child.stdout.destroy();
    assert.equal(await ended(child), 0);
    assert.deepEqual(readdirSync(cwd), []);
  });

  test('a host that is told to end while a domain boots says that, and leaves nothing behind', async t => {
    const cwd = folder(t);
    writeFileSync(
      join(cwd, 'slow.mjs'),
      'export default () => { console.error("boots"); return new Promise(() => {}); }',
    );
    writeFileSync(join(cwd, 'slow.cfg'), 'name = "slow"\nguest = "module:./slow.mjs"\n');
    const env = { ...process.env, PVNET_SOCKET: join(cwd, 'run', 'c.sock') };
    const argv = [MAIN, 'up', 'slow.cfg'];
    const child = spawn(process.execPath, argv, { cwd, env, stdio: ['ignore', 'ignore', 'pipe'] });
    let errors = '';
    child.stderr.on('data', chunk => {
      errors += chunk;
      if (String(chunk).includes('boots')) child.kill('SIGTERM');
    });
    assert.equal(await ended(child), 1);
    assert.equal(errors, 'boots\npvnet up: EINTR: told to end before all domains were up\n');
    assert.deepEqual(readdirSync(cwd).sort(), ['slow.cfg', 'slow.mjs']);
  });

  test('what cannot be printed is an error', {
    skip: existsSync('/dev/full') ? false : 'no /dev/full',
  }, t => {
    const full = openSync('/dev/full', 'w');
    t.after(() => closeSync(full));
    const argv = [MAIN, 'selftest', '--json'];
    const { status, stderr } = spawnSync(process.execPath, argv, {
      stdio: ['ignore', full, 'pipe'],
      encoding: 'utf8',
    });
    assert.match(stderr, /^pvnet: what it prints cannot be written: ENOSPC.*\n$/);
    assert.equal(status, 1);
  });

  test('has a backend as its options say, with a filter that sees each packet', async t => {
    const cwd = folder(t);
    for (const [name, ip] of Object.entries({ a: '10.0.0.1', b: '10.0.0.2' })) {
      const settings = `name = "${name}"\nvif = [ 'ip=${ip}' ]\nnetfront = "max_queues=4"\n`;
      writeFileSync(join(cwd, `${name}.cfg`), settings);
    }
    writeFileSync(
      join(cwd, 'filter.mjs'),
      // No ICMP.
      'export const filter = packet => Number(packet.u16(12) === 0x0800 && packet.u8(23) === 1);',
    );
    const options = ['--max-queues', '2', '--without', 'sg,gso-tcpv4', '--without', 'ctrl-ring'];
    const { child } = await up(t, cwd, ...options, '--filter', 'filter.mjs', 'a.cfg', 'b.cfg');
    const store = (...args: string[]) =>
      pvnet(cwd, 'xenstore', ...args, '--socket', join(cwd, 'c-xenstored.sock'));
    assert.equal(pvnet(cwd, 'ping', 'a', '10.0.0.2', '-c', '1').status, 1);
    const dropped = JSON.parse(pvnet(cwd, 'stats', '--json').stdout).map(
      ({ counters }: { counters: { filterDrops: number } }) => counters.filterDrops,
    );
    assert.deepEqual(dropped, [1, 0]);
    const listed = store('ls', '/local/domain/0/backend/vif/1/0').stdout;
    assert.match(listed, /^multi-queue-max-queues = "2"$/m);
    assert.match(listed, /^feature-gso-tcpv6 = "1"$/m);
    assert.doesNotMatch(listed, /feature-(sg|gso-tcpv4|ctrl-ring)/);
    child.kill('SIGINT');
    assert.equal(await ended(child), 0);
  });

  test('a guest whose handler throws harms no other, and its log says so', async t => {
    const cwd = folder(t);
    writeFileSync(
      join(cwd, 'bad.mjs'),
      `export default async ({ device }) => {
        device(0).then(eth0 => {
          eth0.rxHandler = packet => { packet.release(); throw new Error('a bug of mine'); };
        });
        return () => {};
      }`,
    );
    for (const name of ['bad', 'worse']) {
      writeFileSync(join(cwd, `${name}.cfg`), `name = "${name}"\nguest = "module:./bad.mjs"\nvif = [ "" ]\n`);
    }
    for (const [name, ip] of Object.entries({ a: '10.0.0.1', b: '10.0.0.2' })) {
      writeFileSync(join(cwd, `${name}.cfg`), `name = "${name}"\nguest = "echo"\nvif = [ 'ip=${ip}' ]\n`);
    }
    const running = await up(t, cwd, 'bad.cfg', 'worse.cfg', 'a.cfg', 'b.cfg');
    // Each asks with a broadcast for the other's address.
    for (const [from, to] of [
      ['a', '10.0.0.2'],
      ['b', '10.0.0.1'],
      ['a', '10.0.0.2'],
    ]) {
      assert.equal(pvnet(cwd, 'ping', from, to, '-c', '2').status, 0);
    }
    assert.match(pvnet(cwd, 'dmesg', 'bad').stdout, /net softirq: Error: a bug of mine\n.*at .*bad\.mjs:3/);
    assert.equal(pvnet(cwd, 'dmesg', 'a').stdout.includes('a bug'), false);
    const told = running
      .errors()
      .match(/^domain \d \(.*\): Error: a bug of mine; pvnet dmesg \d has more$/gm);
    assert.deepEqual(told?.sort(), [
      'domain 1 (bad): Error: a bug of mine; pvnet dmesg 1 has more',
      'domain 2 (worse): Error: a bug of mine; pvnet dmesg 2 has more',
    ]);
    assert.equal(pvnet(cwd, 'down').status, 0);
  });

  test('a guest whose promises and timers fail harms no other, and its log says so', async t => {
    const cwd = folder(t);
    writeFileSync(
      join(cwd, 'bad.mjs'),
      `export default function ({ name, device }) {
        setTimeout(() => { throw new Error(name + ': a timer of mine'); }, 1);
        setTimeout(() => { throw null; }, 2);
        void (async () => { await 1; throw name + ': a text of mine'; })();
        device(0).then(eth0 => {
          eth0.rxHandler = async packet => { packet.release(); await 1; throw new Error('a handler of mine'); };
          throw new Error(name + ': a promise of mine');
        });
      }`,
    );
    for (const name of ['bad', 'worse']) {
      writeFileSync(join(cwd, `${name}.cfg`), `name = "${name}"\nguest = "module:./bad.mjs"\nvif = [ "" ]\n`);
    }
    writeFileSync(join(cwd, 'a.cfg'), `name = "a"\nguest = "echo"\nvif = [ 'ip=10.0.0.1' ]\n`);
    writeFileSync(join(cwd, 'b.cfg'), `name = "b"\nguest = "echo"\nvif = [ 'ip=10.0.0.2' ]\n`);
    const running = await up(t, cwd, 'bad.cfg', 'worse.cfg', 'a.cfg', 'b.cfg');
    assert.equal(pvnet(cwd, 'ping', 'a', '10.0.0.2', '-c', '2').status, 0);
    for (const name of ['bad', 'worse']) {
      const log = pvnet(cwd, 'dmesg', name).stdout;
      for (const what of ['timer', 'promise']) {
        assert.match(log, new RegExp(`module: Error: ${name}: a ${what} of mine\\n.*at .*bad\\.mjs:`));
      }
      assert.match(log, new RegExp(`module: ${name}: a text of mine$`, 'm'));
      assert.match(log, /module: null$/m);
      assert.match(log, /module: Error: a handler of mine\n.*at .*bad\.mjs:/);
    }
    assert.equal(pvnet(cwd, 'dmesg', 'a').stdout.includes('of mine'), false);
    assert.match(
      running.errors(),
      /^domain 1 \(bad\): Error: bad: a promise of mine; pvnet dmesg 1 has more$/m,
    );
    assert.equal(pvnet(cwd, 'down').status, 0);
  });

  test('a socket that a dead host left is taken over', async t => {
    const cwd = folder(t);
    const first = await up(t, cwd);
    first.child.kill('SIGKILL');
    await ended(first.child);
    assert.ok(readdirSync(cwd).includes('c.sock'));
    const { child } = await up(t, cwd);
    child.kill('SIGTERM');
    assert.equal(await ended(child), 0);
    assert.deepEqual(readdirSync(cwd), []);
  });

  test('says what is wrong with a domain file, and starts nothing', t => {
    const cwd = folder(t);
    writeFileSync(join(cwd, 'bad.cfg'), 'name = "a"\nvif = [ "mac=1" ]\n');
    const { status, stderr } = pvnet(cwd, 'up', 'bad.cfg');
    assert.equal(status, 1);
    assert.match(stderr, /^pvnet up: EINVAL: bad\.cfg:2: vif\[0\]: mac: "1" is no MAC address/);
    assert.deepEqual(readdirSync(cwd), ['bad.cfg']);
  });

  const guests: [guest: string, message: RegExp][] = [
    ['module:./no.mjs', /^pvnet up: EINVAL: a: .*\/no\.mjs cannot be loaded: there is no such file\n$/],
    ['module:.', /^pvnet up: EINVAL: a: .* cannot be loaded: it is a folder\n$/],
    ['module:./throws.mjs', /^pvnet up: EIO: a: .*\/throws\.mjs threw: a bug of mine\n$/],
    [
      'linux"\nkernel = "a.cfg',
      /^pvnet up: EINVAL: the kernel .*\/a\.cfg is no Linux kernel: it wants a bzImage/,
    ],
  ];
  for (const [guest, message] of guests) {
    test(`says what is wrong with guest = "${guest}"`, t => {
      const cwd = folder(t);
      writeFileSync(join(cwd, 'a.cfg'), `name = "a"\nguest = "${guest}"\n`);
      writeFileSync(join(cwd, 'throws.mjs'), 'export default () => { throw new Error("a bug of mine"); }');
      const { status, stderr } = pvnet(cwd, 'up', 'a.cfg');
      assert.match(stderr, message);
      assert.equal(status, 1);
    });
  }

  test('a socket that is something else is not touched', async t => {
    const cwd = folder(t);
    writeFileSync(join(cwd, 'c.sock'), '');
    assert.match(pvnet(cwd, 'up').stderr, /EEXIST: .*c\.sock is there and is no socket/);
    assert.deepEqual(readdirSync(cwd), ['c.sock']);
  });

  test('the guide names every command', t => {
    const { stdout } = pvnet(folder(t), '--help');
    const commands = [...stdout.matchAll(/^ {2}([a-z-]+) /gm)].map(([, name]) => name);
    const guide = readFileSync(GUIDE, 'utf8');
    assert.ok(commands.length > 30, stdout);
    assert.deepEqual(
      commands.filter(name => !new RegExp(`^\\|.*\`${name}[ \`]`, 'm').test(guide)),
      [],
    );
  });

  const usage: [string[], number, RegExp][] = [
    [[], 2, /Usage: pvnet COMMAND/],
    [['--help'], 0, /up +Starts a simulated Xen host/],
    [['list', '--help'], 0, /Usage: pvnet list/],
    [['help', 'up'], 0, /--uplink BRIDGE=TAP/],
    [['help', 'xenstore'], 0, /^Usage: pvnet xenstore ls\|read/],
    [['help', 'xenstored'], 0, /^Usage: pvnet xenstored /],
    [['help', 'frobnicate'], 2, /^pvnet: there is no command "frobnicate"/],
    [['--version'], 0, /^pvnet \d+\.\d+\.\d+\n$/],
    [
      ['linux', 'status', '--json'],
      linuxIsThere ? 0 : 1,
      /^\{\n {2}"ready": (true|false),\n {2}"folder": "\//,
    ],
    [['frobnicate'], 2, /there is no command "frobnicate"/],
    [['constructor'], 2, /there is no command "constructor"/],
    [['xenstore', 'ls', '--nonsense'], 1, /nonsense|sage/],
    [['vif-detach', 'a'], 2, /it needs DOMAIN DEVID/],
    [['list', 'x'], 2, /"x" is one argument too many/],
    [['list', '--frob'], 2, /--frob/],
    [['xenstored', '--quota', 'nodes=1=2', '--socket', 'xs.sock'], 1, /--quota nodes=1=2: NAME=N is wanted/],
    [['list'], 1, /no pvnet host runs there; start one with "pvnet up FILE"/],
    [
      ['up', '--without', 'sg,tso'],
      2,
      /^pvnet up: --without: "tso" is no feature .*; there are sg, gso-tcpv4/,
    ],
    [['up', '--max-queues', 'x'], 2, /^pvnet up: --max-queues "x": it is a number from 1 to 8/],
    [['backend', '--max-queues', '9'], 2, /^pvnet backend: --max-queues "9": it is a number from 1 to 8/],
    [['backend', '--bridge', 'b', '--tap'], 2, /^pvnet backend: a vif is a port of --bridge or has a --tap/],
    [['up', '--filter', 'no.mjs'], 1, /^pvnet up: EINVAL: --filter .*\/no\.mjs: there is no such file\n$/],
    [['up', '--filter', '.'], 1, /^pvnet up: EINVAL: --filter .*: it is a folder\n$/],
    [['backend', '--help'], 0, /--without FEATURE.* sg, gso-tcpv4.*multi-queue/],
    [['frontend', '--help'], 0, /--without FEATURE.* sg, gso-tcpv4.*rx-notify.*\n.*--static-grants/],
    [
      ['frontend', '--without', 'multi-queue'],
      2,
      /^pvnet frontend: --without: "multi-queue" is no feature .*; there are sg, gso-tcpv4.*rx-notify/,
    ],
    [['frontend', '--max-queues', '0'], 2, /^pvnet frontend: --max-queues "0": it is a number from 1 to 8/],
    [['frontend', '--trusted', 'no'], 2, /^pvnet frontend: --trusted "no": it is 0 or 1/],
    [['create', '--help'], 0, /netfront = "max_queues=N.*\n.*features are sg, .*rx-notify/],
    [['up', '--uplink', 'x'], 2, /--uplink x: it is BRIDGE=TAP/],
    [['up', '--uplink', 'b=too-long-for-a-tap'], 2, /: "too-long-for-a-tap" is no interface name: it has 18/],
    [['up', '--uplink', 'b/0=t'], 2, /: "b\/0" is no interface name: it contains '\/'/],
    [['up', '--uplink', 'b=t,10.0.0.256/24'], 2, /: "10\.0\.0\.256\/24" is no IP address, as/],
    // What is wrong with the command line is said before any file is read, or any host is asked.
    [['up', 'no.cfg', '--uplink', 'x'], 2, /^pvnet up: --uplink x: it is BRIDGE=TAP/],
    [['restore', 'no.pvnet', '--max-queues', '9'], 2, /^pvnet restore: --max-queues "9": it is a number/],
    [['restore', 'no.pvnet'], 1, /^pvnet restore: ENOENT: no\.pvnet: there is no such file\n$/],
    [['restore', '.'], 1, /^pvnet restore: EIO: \.: it cannot be read \(EISDIR\)\n$/],
    [['migrate', 'a'], 2, /^pvnet migrate: say with --to which host gets the domain/],
    [['vif-carrier', 'a', '0', 'off'], 2, /^pvnet vif-carrier: "off" is neither up nor down/],
    [['ping', 'a', '10.0.0.1', '-c', '0'], 2, /^pvnet ping: the count "0": it is a number from 1/],
    [['cat', '/proc/interrupts'], 2, /^pvnet cat: "\/proc\/interrupts": it is DOMAIN:PATH/],
    [['nlmon', 'a'], 2, /^pvnet nlmon: where to\? -w FILE/],
    [['linux', 'boot'], 2, /^pvnet linux: "boot": it is "fetch" or "status"/],
  ];
  for (const [args, expected, message] of usage) {
    test(`pvnet ${args.join(' ')}`, t => {
      const { status, stdout, stderr } = pvnet(folder(t), ...args);
      assert.match(stdout + stderr, message);
      assert.equal(status, expected);
    });
  }

  test('a request that is no JSON, or for no method, gets an error', async t => {
    const cwd = folder(t);
    const { child } = await up(t, cwd);
    const { createConnection } = await import('node:net');
    const socket = createConnection({ path: join(cwd, 'c.sock') });
    let answer = '';
    const two = new Promise<void>(resolve => {
      socket.on('data', chunk => {
        answer += chunk;
        if (answer.split('\n').length > 2) resolve();
      });
    });
    socket.write('nonsense\n{"id":1,"method":"frob"}\n');
    await two;
    const codes = answer
      .trim()
      .split('\n')
      .map(line => JSON.parse(line).error.code);
    assert.deepEqual(codes.sort(), ['EBADMSG', 'ENOSYS']);
    socket.destroy();
    child.kill('SIGINT');
    assert.equal(await ended(child), 0);
  });

  test('a host that hangs up ends a call', async t => {
    const cwd = folder(t);
    const server = createServer(socket => socket.once('data', () => socket.destroy()));
    await new Promise<void>(resolve => server.listen(join(cwd, 'c.sock'), resolve));
    const env = { ...process.env, PVNET_SOCKET: join(cwd, 'c.sock') };
    const child = spawn(process.execPath, [MAIN, 'list'], { env, stdio: ['ignore', 'ignore', 'pipe'] });
    let stderr = '';
    child.stderr.on('data', chunk => {
      stderr += chunk;
    });
    assert.equal(await ended(child), 1);
    assert.match(stderr, /ECONNRESET: the host went away/);
    await new Promise(resolve => server.close(resolve));
  });
});
