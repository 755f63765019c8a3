import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { xenstore } from '../../src/cli/xenstore.js';
import { XenStoreClient } from '../../src/xenstore/index.js';
import { connectSocket, Daemon, listen } from '../../src/xenstore/node/index.js';

const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const exec = promisify(execFile);
const hasTools = spawnSync('xenstore-ls', ['-h']).error === undefined;
const noTools = hasTools ? false : "Debian's xenstore-utils is not installed";

let folder: string;
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'pvnet-xs-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** `pvnet xenstored` in a process of its own, once it listens. */
async function start(args: string[]): Promise<ChildProcess> {
  const child = spawn(process.execPath, [main, 'xenstored', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise<void>((resolve, reject) => {
    child.stdout!.once('data', () => resolve());
    child.once('exit', status => reject(new Error(`xenstored ended with ${status}`)));
  });
  return child;
}

async function stop(child: ChildProcess, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  const ended = new Promise(resolve => child.once('exit', resolve));
  child.kill(signal);
  await ended;
}

async function until(done: () => boolean): Promise<void> {
  for (const end = Date.now() + 10_000; !done(); await sleep(20)) {
    assert.ok(Date.now() < end, 'it took more than 10 s');
  }
}

/** Connects so many clients that read nothing. */
function connectMany(path: string, count: number): Promise<Socket[]> {
  const one = (): Promise<Socket> =>
    new Promise((resolve, reject) => {
      const socket = createConnection(path, () => resolve(socket)).once('error', reject);
    });
  return Promise.all(Array.from({ length: count }, one));
}

/** A tool's output and status, ours and Debian's alike. */
async function run(file: string, args: string[], socket: string) {
  try {
    const { stdout } = await exec(file, args, { env: { ...process.env, XENSTORED_PATH: socket } });
    return { stdout, status: 0 };
  } catch (error) {
    const { stdout, code } = error as { stdout: string; code: number };
    return { stdout, status: code };
  }
}

/** `pvnet xenstore`, in this process. */
async function ours(args: string[], socket: string) {
  const chunks: Buffer[] = [];
  const output = { write: (text: string | Uint8Array) => chunks.push(Buffer.from(text)) };
  const status = await xenstore([args[0], '--socket', socket, ...args.slice(1)], output);
  return { stdout: Buffer.concat(chunks).toString(), status };
}

describe('pvnet xenstored', () => {
  test('serves a socket that only the user may open, and leaves nothing behind', async () => {
    const socket = join(folder, 'own');
    const daemon = await Daemon.start({ socket, log: () => {} });
    assert.equal(statSync(socket).mode & 0o777, 0o600);
    await assert.rejects(Daemon.start({ socket, log: () => {} }), { code: 'EADDRINUSE' });
    const client = new XenStoreClient(connectSocket(socket));
    await client.write('/a', 'b');
    assert.equal(await client.read('/a'), 'b');
    const ended = assert.rejects(
      client.waitFor('/a', () => false),
      { code: 'ECONNRESET' },
    );
    await daemon.close();
    await ended;
    assert.equal(existsSync(socket), false);
  });

  test('takes the place of a socket whose server is gone, but not of a file', async () => {
    const socket = join(folder, 'stale');
    const child = await start(['--socket', socket]);
    await stop(child, 'SIGKILL');
    assert.ok(existsSync(socket));
    const again = await start(['--socket', socket]);
    await stop(again);
    writeFileSync(socket, 'mine');
    await assert.rejects(Daemon.start({ socket, log: () => {} }), { code: 'EEXIST' });
  });

  test('says what is wrong with its arguments', async () => {
    for (const [args, pattern] of [
      [['--quota', 'nodes=x'], /--quota nodes=x: NAME=N/],
      [['--timeout', 'read=1'], /--timeout read=1: watch-event=SECONDS/],
      [['--nonsense'], /--nonsense/],
      [['--socket', `${folder}/${'x'.repeat(120)}`], /at most 107 bytes/],
    ] as const) {
      const { stderr, status } = spawnSync(process.execPath, [main, 'xenstored', ...args], {
        encoding: 'utf8',
      });
      assert.match(stderr, pattern);
      assert.notEqual(status, 0);
    }
  });

  test('serves clients for whom there is no file descriptor once there is one', async () => {
    const socket = join(folder, 'full');
    const limited = ['-c', 'ulimit -n 128; exec "$@"', 'sh', process.execPath, main, 'xenstored'];
    const child = spawn('sh', [...limited, '--socket', socket], { stdio: ['ignore', 'pipe', 'pipe'] });
    let log = '';
    child.stderr!.on('data', text => (log += text));
    try {
      await once(child.stdout!, 'data');
      for (let times = 1; times <= 2; times++) {
        const clients = await connectMany(socket, 150);
        const last = new XenStoreClient(connectSocket(socket));
        const answer = last.read('/tool');
        await until(() => log.split('no file descriptor is left').length > times);
        for (const client of clients) client.destroy();
        assert.equal(await answer, '');
        last.close();
      }
      assert.equal(log.split('\n').length, 3, log);
    } finally {
      await stop(child);
    }
  });

  test('that is ended while it saves its state ends with all of it saved', async () => {
    const socket = join(folder, 'ended');
    const state = join(folder, 'ended.state');
    const daemon = await Daemon.start({ socket, stateFile: state, log: () => {} });
    for (let i = 0; i < 10_000; i++) daemon.server.store.ensure(`/node${i}`);
    while (!existsSync(`${state}.new`)) await new Promise(setImmediate);
    await daemon.close();
    assert.ok(readFileSync(state).includes('/node9999'));
    assert.equal(existsSync(`${state}.new`), false);
  });

  test('goes on as before when a live update fails', async () => {
    const socket = join(folder, 'fails');
    const state = join(folder, 'fails.state');
    // Where it would leave its state for the next one, which can be written to no more.
    mkdirSync(`${socket}.live-update`);
    const child = await start(['--socket', socket, '--state', state, '--trace-file', `${socket}.log`]);
    try {
      const client = new XenStoreClient(connectSocket(socket));
      await client.write('/before', '1');
      assert.equal(await client.control('live-update', '-s'), 'OK');
      await until(() => readFileSync(`${socket}.log`, 'utf8').includes('live update failed: EISDIR'));
      assert.ok(readFileSync(state).includes('/before'));
      await client.write('/after', '1');
      await until(() => readFileSync(state).includes('/after'));
      client.close();
    } finally {
      await stop(child);
    }
  });

  test('is updated while it runs: connections, watches and transactions go on', async () => {
    const socket = join(folder, 'live');
    const child = await start(['--socket', socket, '--quota', 'nodes=55']);
    try {
      const client = new XenStoreClient(connectSocket(socket));
      const seen: string[] = [];
      client.onWatchEvent = path => seen.push(path);
      await client.write('/a', '1');
      await client.watchRaw('/a', 't');
      const t = await client.begin();
      await t.write('/b', '2');
      for (let round = 0; round < 2; round++) {
        assert.equal(await client.control('live-update', '-s'), 'OK');
        const reads = Array.from({ length: 200 }, () => client.read('/a'));
        assert.deepEqual(new Set(await Promise.all(reads)), new Set(['1']));
      }
      await t.commit();
      assert.equal(await client.read('/b'), '2');
      assert.equal(await client.getQuota('nodes'), 55);
      await client.write('/a', '1');
      await client.read('/a');
      assert.deepEqual(seen, ['/a', '/a']);
      assert.equal(await client.control('check'), 'OK');
      const other = new XenStoreClient(connectSocket(socket));
      assert.equal(await other.read('/a'), '1');
      other.close();
      assert.match(await client.control('live-update', '-f', '/nonexistent'), /no file/);
      // A command line that the new program does not take leaves the old one running.
      const log = join(folder, 'live.log');
      assert.equal(await client.control('live-update', '-c', '--quota nodes=x'), 'OK');
      assert.match(await client.control('live-update', '-s'), /does not start: .*NAME=N/);
      assert.equal(await client.control('live-update', '-c', `--trace-file ${log}`), 'OK');
      assert.equal(await client.control('live-update', '-s'), 'OK');
      assert.equal(await client.control('print', 'hello'), 'OK');
      assert.match(
        readFileSync(log, 'latin1'),
        /live update: goes on with 1 connections\n.* control: hello\n$/,
      );
      const other2 = join(folder, 'live2.log');
      assert.equal(await client.control('logfile', other2), 'OK');
      await assert.rejects(client.control('logfile', join(folder, 'no', 'such')), { code: 'ENOENT' });
      assert.equal(await client.control('live-update', '-s'), 'OK');
      assert.equal(await client.control('print', 'again'), 'OK');
      assert.match(readFileSync(other2, 'latin1'), /control: again\n$/);
      // What xenstore-control has in one command.
      const updated = await ours(['control', 'live-update', '-c', `-T ${log}`, '-t', '5', main], socket);
      assert.deepEqual(updated, { stdout: 'OK\n', status: 0 });
      const refused = await ours(['control', 'live-update', join(folder, 'none')], socket);
      assert.equal(refused.status, 1);
      assert.equal((await ours(['control', 'live-update', '--bogus'], socket)).status, 1);
      assert.equal(await client.control('print', 'once more'), 'OK');
      assert.match(readFileSync(log, 'latin1'), /control: once more\n$/);
      client.close();
    } finally {
      await stop(child);
    }
    assert.equal(existsSync(socket), false);
  });

  test('reports on memory to its log, or to a file', async () => {
    const lines: string[] = [];
    const socket = join(folder, 'memory');
    const daemon = await Daemon.start({ socket, log: line => lines.push(line) });
    const client = new XenStoreClient(connectSocket(socket));
    const file = join(folder, 'report');
    assert.equal(await client.control('memreport'), 'OK');
    assert.equal(await client.control('memreport', file), 'OK');
    const report = readFileSync(file, 'latin1');
    assert.match(report, /^3 nodes, 1 connections\ndomain 0: 0 bytes, 3 nodes\n$/);
    assert.deepEqual(
      lines.map(line => `${line}\n`).join(''),
      report.replace(/^/gm, 'memreport: ').slice(0, -'memreport: '.length),
    );
    await assert.rejects(client.control('memreport', join(folder, 'no', 'such')), { code: 'ENOENT' });
    await assert.rejects(client.control('memreport', file, 'more'), { code: 'EINVAL' });
    client.close();
    await daemon.close();
  });

  test('keeps its nodes in a file', async () => {
    const socket = join(folder, 'kept');
    const state = join(folder, 'kept.state');
    const child = await start(['--socket', socket, '--state', state]);
    const client = new XenStoreClient(connectSocket(socket));
    await client.write('/a/b', 'kept');
    await client.setPerms('/a/b', ['n0', 'r5']);
    for (let i = 0; i < 5000; i++) client.write(`/many/${i}`, String(i));
    await client.read('/a/b');
    client.close();
    await stop(child);
    const again = await start(['--socket', socket, '--state', state]);
    const reader = new XenStoreClient(connectSocket(socket));
    assert.equal(await reader.read('/a/b'), 'kept');
    assert.deepEqual(await reader.getPerms('/a/b'), ['n0', 'r5']);
    assert.equal((await reader.directory('/many')).length, 5000);
    assert.equal(await reader.read('/many/4999'), '4999');
    await reader.write('/late', '1');
    // What is not a second old may be lost by a crash, what is older is not.
    const size = statSync(state).size;
    while (statSync(state).size === size) await new Promise(resolve => setTimeout(resolve, 50));
    reader.close();
    await stop(again, 'SIGKILL');
    const last = await Daemon.start({ socket, stateFile: state, log: () => {} });
    assert.equal(last.server.store.nodeCount, 5007);
    await last.close();
    writeFileSync(state, 'nonsense');
    await assert.rejects(Daemon.start({ socket, stateFile: state, log: () => {} }), { code: 'EIO' });
  });

  test('serves sockets through Node alone too', async () => {
    const socket = join(folder, 'net');
    const lab = await Daemon.start({ socket: join(folder, 'unused'), log: () => {} });
    const listening = await listen(lab.server, socket);
    const client = new XenStoreClient(connectSocket(socket));
    await Promise.all(Array.from({ length: 2000 }, (_, i) => client.write(`/n/${i}`, 'x'.repeat(100))));
    assert.equal((await client.directory('/n')).length, 2000);
    client.close();
    await listening.close();
    await lab.close();
    assert.equal(existsSync(socket), false);
  });
});

describe('the xenstore tools', () => {
  let daemon: Daemon;
  let socket: string;
  before(async () => {
    socket = join(folder, 'tools');
    daemon = await Daemon.start({ socket, log: () => {} });
    const client = new XenStoreClient(connectSocket(socket));
    await client.write('/a/b', 'hello');
    await client.write('/a/bin', new Uint8Array([0, 9, 10, 13, 27, 92, 127, 200]));
    await client.write(`/a/${'long-name-'.repeat(9)}`, 'v');
    await client.write('/a/long', 'value '.repeat(30));
    await client.write('/a/b/c/d', '');
    await client.setPerms('/a/b/c', ['n0', 'r5', 'b7']);
    client.close();
  });
  after(() => daemon.close());

  const alike: [string, string[]][] = [
    ['ls', []],
    ['ls', ['-p']],
    ['ls', ['-f', '-p']],
    ['ls', ['-fp', '/a']],
    ['ls', ['/nothing']],
    ['read', ['/a/b']],
    ['read', ['-p', '/a/b', '/a/bin']],
    ['read', ['-R', '/a/bin']],
    ['read', ['/nothing']],
    ['list', ['/a']],
    ['list', ['-p', '/a']],
    ['list', ['/nothing']],
    ['exists', ['/a']],
    ['exists', ['/a', '/nothing']],
    ['write', ['/w/x', 'one\\ttwo\\x41\\101\\q']],
    ['read', ['/w/x']],
    ['write', ['/w/y', '1', '/w/z', '2']],
    ['write', ['/w/y']],
    ['chmod', ['-u', '/a/b/c/d', 'n0', 'r9']],
    ['chmod', ['-r', '/a', 'n3', 'b4']],
    ['ls', ['-fp']],
    ['rm', ['/nothing/at/all']],
    ['watch', ['-n', '1', '/a']],
  ];
  for (const [mode, args] of alike) {
    test(`xenstore-${mode} ${args.join(' ')}: as Debian's`, { skip: noTools }, async () => {
      const theirs = await run(`xenstore-${mode}`, args, socket);
      assert.deepEqual(await ours([mode, ...args], socket), theirs);
    });
  }

  test('rm -t removes what is left empty above', async () => {
    await ours(['write', '/t/u/v', '', '/t/w', ''], socket);
    assert.equal((await ours(['rm', '-t', '/t/u/v'], socket)).status, 0);
    assert.equal((await ours(['list', '/t'], socket)).stdout, 'w\n');
    await ours(['rm', '-t', '/t/w'], socket);
    assert.equal((await ours(['exists', '/t'], socket)).status, 1);
  });

  test('--json', async () => {
    assert.equal((await ours(['read', '--json', '/a/b'], socket)).stdout, '{"/a/b":"hello"}\n');
    const { stdout } = await ours(['ls', '--json', '/a/b/c'], socket);
    assert.deepEqual(JSON.parse(stdout)[0].path, '/a/b/c/d');
    assert.equal((await ours(['exists', '--json', '/no'], socket)).stdout, '{"/no":false}\n');
    assert.deepEqual(await ours(['exists', '--json', '__proto__'], socket), {
      stdout: '{"__proto__":false}\n',
      status: 1,
    });
  });

  describe('without a server, the message says what was tried and what to do', () => {
    const failing = (path: string) =>
      spawnSync(process.execPath, [main, 'xenstore', 'read', '/a'], {
        encoding: 'utf8',
        env: { ...process.env, XENSTORED_PATH: path },
      });

    test('no socket', () => {
      const path = join(folder, 'nowhere');
      const { stderr, status } = failing(path);
      assert.match(stderr, /^xenstore read: ENOENT: no xenstored runs here: /);
      assert.ok(
        stderr.includes(`there is no socket ${path}; start one with "pvnet xenstored --socket ${path}"`),
      );
      assert.equal(status, 1);
    });

    test('nobody listens', () => {
      const path = join(folder, 'left-behind');
      writeFileSync(path, '');
      assert.match(
        failing(path).stderr,
        /^xenstore read: ECONNREFUSED: no xenstored runs here: nobody listens/,
      );
    });

    test('no device', () => {
      assert.match(
        failing('/dev/xen-nowhere').stderr,
        /^xenstore read: ENOENT: there is no \/dev\/xen-nowhere: /,
      );
    });
  });
});
