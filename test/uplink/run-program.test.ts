import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runProgram } from '../../src/uplink/namespace.js';

test('a program that ended has its status, as in a shell where a signal ended it', async () => {
  assert.deepEqual(await runProgram(['sh', '-c', 'cat; echo no >&2; exit 7'], 'yes\n'), {
    status: 7,
    stdout: 'yes\n',
    stderr: 'no\n',
  });
  assert.equal((await runProgram(['sh', '-c', 'kill -9 $$'])).status, 128 + 9);
  assert.equal((await runProgram(['sh', '-c', 'kill -15 $$'])).status, 128 + 15);
  await assert.rejects(runProgram(['no-such-program-of-ours']), { code: 'ENOENT' });
});
