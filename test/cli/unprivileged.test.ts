import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const NOBODY = 65534;
const AS_NOBODY = ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups', '--'];

/** What keeps root from trying things as another user. */
function userObstacle(): string | false {
  if (process.getuid?.() !== 0)
    return 'needs root to become another user; the other tests run as this user anyway';
  const probe = spawnSync('setpriv', [...AS_NOBODY, process.execPath, MAIN, '--help']);
  return probe.status === 0 ? false : 'the user nobody cannot run this build';
}

/** What keeps it from having guests as another user. */
function obstacle(): string | false {
  const other = userObstacle();
  if (other !== false) return other;
  const open = 'exec 3<>/dev/net/tun';
  const tap = spawnSync('setpriv', [
    ...AS_NOBODY,
    'unshare',
    '--user',
    '--map-root-user',
    '--net',
    'sh',
    '-c',
    open,
  ]);
  return tap.status === 0 ? false : 'the user nobody may not open /dev/net/tun in a namespace of its own';
}

test('a user without privilege runs guests in namespaces', { skip: obstacle() }, async t => {
  const cwd = mkdtempSync(join(tmpdir(), 'pvnet-nobody-'));
  t.after(() => rmSync(cwd, { recursive: true, force: true }));
  chownSync(cwd, NOBODY, NOBODY);
  for (const [name, address] of [
    ['a', '10.0.0.1'],
    ['b', '10.0.0.2'],
  ]) {
    writeFileSync(join(cwd, `${name}.cfg`), `name = "${name}"\nguest = "netns"\nvif = [ 'ip=${address}' ]\n`);
  }
  const env = { ...process.env, PVNET_SOCKET: join(cwd, 'run/c.sock') };
  const up = spawn('setpriv', [...AS_NOBODY, process.execPath, MAIN, 'up', 'a.cfg', 'b.cfg'], {
    cwd,
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => void up.kill('SIGKILL'));
  let output = '';
  await new Promise<void>((resolve, reject) => {
    up.stdout.on('data', chunk => {
      output += chunk;
      if (output.includes('ready;')) resolve();
    });
    up.on('exit', () => reject(new Error(`it ended: ${output}`)));
  });
  const ping = ['exec', 'a', '--', 'ping', '-q', '-c3', '-w20', '-i0.1', '10.0.0.2'];
  const { stdout, stderr } = spawnSync('setpriv', [...AS_NOBODY, process.execPath, MAIN, ...ping], {
    cwd,
    env,
    encoding: 'utf8',
  });
  assert.match(stdout, / 0% packet loss/, stderr);
  const ended = new Promise(resolve => up.on('exit', resolve));
  up.kill('SIGINT');
  assert.equal(await ended, 0);
  assert.deepEqual(readdirSync(cwd).sort(), ['a.cfg', 'b.cfg']);
});

test('a folder that another user made where the socket would be is not used', { skip: userObstacle() }, t => {
  const cwd = mkdtempSync(join(tmpdir(), 'pvnet-nobody-'));
  t.after(() => rmSync(cwd, { recursive: true, force: true }));
  chmodSync(cwd, 0o777);
  const squatted = join(cwd, `pvnet-${NOBODY}`);
  mkdirSync(squatted);
  const { PVNET_SOCKET: _socket, XDG_RUNTIME_DIR: _folder, ...others } = process.env;
  for (const command of ['up', 'list']) {
    const { status, stderr } = spawnSync('setpriv', [...AS_NOBODY, process.execPath, MAIN, command], {
      env: { ...others, TMPDIR: cwd },
      encoding: 'utf8',
    });
    assert.match(
      stderr,
      /: EACCES: .*\/pvnet-65534 is not a folder that only this user writes to; remove it, or name a socket/,
    );
    assert.equal(status, 1);
  }
});
