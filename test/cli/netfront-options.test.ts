import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runCommand } from '../../src/cli/command.js';
import { NETFRONT_OPTIONS, readNetfrontOptions } from '../../src/cli/netfront-options.js';
import type { NetfrontOptions } from '../../src/netfront/index.js';

async function read(...args: string[]): Promise<NetfrontOptions> {
  let options: NetfrontOptions | null = null;
  const status = await runCommand(
    'test',
    {
      usage: '',
      summary: '',
      options: NETFRONT_OPTIONS,
      arguments: [0, 0],
      async run(invocation) {
        options = readNetfrontOptions(invocation);
        return 0;
      },
    },
    args,
  );
  assert.equal(status, 0);
  return options!;
}

test('the options of a command that has a netfront are those of netfront', async () => {
  const none = { maxQueues: undefined, without: [], staticGrants: false, gsoPrefix: false, trusted: true };
  assert.deepEqual(await read(), none);
  assert.deepEqual(
    await read('--max-queues', '4', '--without', 'sg,rx-notify', '--without=ctrl-ring', '--static-grants'),
    { ...none, maxQueues: 4, without: ['sg', 'rx-notify', 'ctrl-ring'], staticGrants: true },
  );
  assert.deepEqual(await read('--gso-prefix', '--trusted', '0'), {
    ...none,
    gsoPrefix: true,
    trusted: false,
  });
});
