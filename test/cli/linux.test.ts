import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const START = new URL('../../src/cli/start.js', import.meta.url).href;

/** A machine with nothing in its PATH and an empty cache. */
function bareMachine(t: TestContext): {
  run(...argv: string[]): ReturnType<typeof spawnSync>;
  cache: string;
} {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-cli-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const bin = join(folder, 'bin');
  mkdirSync(bin);
  const env = { PATH: bin, XDG_CACHE_HOME: folder, HOME: folder, PVNET_SOCKET: join(folder, 'c.sock') };
  return {
    run: (...argv) => spawnSync(process.execPath, argv, { cwd: folder, env, encoding: 'utf8' }),
    cache: join(folder, 'pvnet/linux'),
  };
}

describe('without apt', () => {
  test('"pvnet linux fetch" says what is missing and what can be done, and leaves nothing half done', t => {
    const { run, cache } = bareMachine(t);
    const fetched = run(MAIN, 'linux', 'fetch');
    assert.equal(fetched.status, 1);
    assert.match(String(fetched.stderr), /this machine has no apt-get.* kernel = "…", ramdisk = "…"/);
    assert.deepEqual(
      readdirSync(cache).filter(name => name.startsWith('fetch-')),
      [],
    );
    const status = run(MAIN, 'linux', 'status');
    assert.equal(status.status, 1);
    assert.ok(String(status.stdout).includes(cache));
  });

  test('"npm start" does without a Linux guest, and that is no error', t => {
    const { run } = bareMachine(t);
    const script = `import(${JSON.stringify(START)}).then(async m => process.exit(await m.start({ exit: true, linux: true })))`;
    const { status, stdout } = run('-e', script);
    assert.equal(status, 0, String(stdout));
    assert.match(String(stdout), /There is no Linux guest: this machine has no apt-get/);
    assert.match(String(stdout), /20 pings to fd00::2 +all answered/);
  });

  test('a domain file that wants a Linux guest is told how to get one', t => {
    const { run, cache } = bareMachine(t);
    const file = join(cache, '../guest.cfg');
    mkdirSync(join(cache, '..'), { recursive: true });
    writeFileSync(file, 'name = "guest"\nguest = "linux"\n');
    const { status, stderr } = run(MAIN, 'up', file);
    assert.equal(status, 1);
    assert.match(String(stderr), /"pvnet linux fetch" gets it/);
  });
});
