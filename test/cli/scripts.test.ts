import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { namespaceObstacle } from '../uplink/machine.js';

const root = fileURLToPath(new URL('../../..', import.meta.url));
/** The programs behind npm's commands, and what each calls itself. */
const PROGRAMS = {
  'npm start': 'scripts/start.mjs',
  'npm test': 'scripts/test.mjs',
  'npm run fuzz': 'scripts/fuzz.mjs',
  'npm run bench': 'bench/run.mjs',
  'npm run bench:xenstore': 'bench/xenstore/run.mjs',
  'npm run test:xen': 'test/xen/run.mjs',
};

const run = (...argv: string[]) => spawnSync(process.execPath, argv, { cwd: root, encoding: 'utf8' });

for (const [command, program] of Object.entries(PROGRAMS)) {
  test(`${command}: --help, and a wrong option`, () => {
    const help = run(program, '--help');
    assert.equal(help.status, 0, help.stderr);
    assert.ok(help.stdout.startsWith(`usage: ${command} [-- `), help.stdout);
    const wrong = run(program, '--bogus');
    assert.equal(wrong.status, 2);
    assert.equal(wrong.stderr, `Unknown option '--bogus'\n${help.stdout}`);
    assert.equal(wrong.stdout, '');
  });
}

test('npm start whose output nobody reads any more ends without a word, and leaves nothing behind', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-scripts-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  // In the folder where it would be when another host has its usual place.
  mkdirSync(join(folder, 'taken'));
  const other = createServer().listen(join(folder, 'taken', 'c.sock'));
  t.after(() => other.close());
  const PVNET_SOCKET = join(folder, 'taken', 'c.sock');
  const env = { ...process.env, PVNET_SOCKET, PVNET_NO_INSTALL: '1', TMPDIR: folder };
  const argv = ['scripts/start.mjs', '--no-linux'];
  const child = spawn(process.execPath, argv, { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => void child.kill('SIGKILL'));
  let errors = '';
  child.stderr.on('data', chunk => {
    errors += chunk;
  });
  child.stdout.once('data', () => child.stdout.destroy());
  const [status] = await once(child, 'exit');
  assert.equal(errors, '');
  assert.equal(status, 0);
  assert.deepEqual(readdirSync(folder), ['taken']);
});

test('npm start where ping and iperf3 are not installed shows the rest', {
  skip: await namespaceObstacle(),
}, t => {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-scripts-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  mkdirSync(join(folder, 'bin'));
  symlinkSync(process.execPath, join(folder, 'bin', 'node'));
  for (const program of ['ip', 'nsenter', 'sh', 'unshare']) {
    const found = ['/usr/sbin', '/usr/bin'].map(path => join(path, program)).find(existsSync);
    if (found !== undefined) symlinkSync(found, join(folder, 'bin', program));
  }
  const env = { PATH: join(folder, 'bin'), PVNET_SOCKET: join(folder, 'c.sock'), PVNET_NO_INSTALL: '1' };
  const argv = ['scripts/start.mjs', '--exit', '--no-linux'];
  const { status, stdout, stderr } = spawnSync(process.execPath, argv, { cwd: root, env, encoding: 'utf8' });
  assert.equal(stderr, '');
  assert.equal(status, 0, stdout);
  assert.match(
    stdout,
    /\(ping is not installed: none are sent\)\n {2}✓ TCP, 100 MB .*\n {2}\(iperf3 is not installed/,
  );
});

test('what is named or has a value that cannot be is refused', () => {
  for (const argv of [
    ['bench/run.mjs', 'rings'],
    ['bench/run.mjs', '--rounds', '0'],
    ['bench/xenstore/run.mjs', '--only', 'all'],
    ['bench/xenstore/run.mjs', '--scale', 'x'],
    ['test/xen/run.mjs', 'dead'],
    ['scripts/fuzz.mjs', '--cases', '1.5'],
    ['scripts/fuzz.mjs', '--path', 'long'],
    ['scripts/start.mjs', 'now'],
  ]) {
    const { status, stderr } = run(...argv);
    assert.equal(status, 2, argv.join(' '));
    assert.ok(stderr.includes(argv.at(-1)!), stderr);
    assert.ok(stderr.includes('\nusage: npm '), stderr);
  }
});
