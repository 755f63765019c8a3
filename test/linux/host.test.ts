import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { bootKernel, Kernel } from '../../src/kernel/kernel.js';
import { untilEnded } from '../../src/linux/index.js';
import { EventLoopScheduler } from '../../src/platform/sim/event-loop-scheduler.js';
import { Hypervisor } from '../../src/platform/sim/index.js';
import { connectSocket } from '../../src/xenstore/node/index.js';

test('what ends by itself is not waited for any longer, and signals are let be', async () => {
  const scheduler = new EventLoopScheduler({ setImmediate, setTimeout, clearTimeout, now: () => 0 });
  const { platform } = new Hypervisor({ scheduler, memoryBytes: 16 << 20 }).createDomain({
    privileged: true,
  });
  const { xenbus } = new Kernel(platform, { name: 'test' });
  const before = process.listenerCount('SIGUSR2');
  let end = (): void => {};
  const byItself = new Promise<void>(resolve => {
    end = resolve;
  });
  const ended = untilEnded(xenbus, { SIGUSR2: async () => {} }, byItself);
  assert.equal(process.listenerCount('SIGUSR2'), before + 1);
  end();
  await ended;
  assert.equal(process.listenerCount('SIGUSR2'), before);
});

test('a process whose xenstored ends says so and fails, for whoever starts it again', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-lost-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'socket');
  const xenstored = createServer();
  const connection = new Promise<Socket>(resolve => xenstored.on('connection', resolve));
  await new Promise<void>(resolve => xenstored.listen(path, resolve));
  t.after(() => xenstored.close());

  const scheduler = new EventLoopScheduler({
    setImmediate,
    setTimeout,
    clearTimeout,
    now: () => performance.now(),
  });
  const domain = new Hypervisor({ scheduler, memoryBytes: 16 << 20 }).createDomain({ privileged: true });
  const log: string[] = [];
  const platform = Object.create(domain.platform, {
    xenstore: { value: { kind: 'stream', open: () => connectSocket(path) } },
    log: { value: (line: string) => log.push(line) },
  });
  const { xenbus } = await bootKernel(platform, { name: 'test' });
  const ended = untilEnded(xenbus, {});
  (await connection).destroy();
  await assert.rejects(ended, { code: 'ENOTCONN', message: /connection to xenstored is lost/ });
  assert.ok(log.some(line => line.includes('connection to xenstored lost')));
});
