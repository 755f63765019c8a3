import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { RpcClient, RpcRegistry, RpcServer, requireOwn } from '../../src/cli/rpc.js';

describe('the control socket', () => {
  let folder: string;
  let socket: string;
  let server: RpcServer;
  /** Of the method "flood": how much it has sent, and whether its caller hung up. */
  const flood = { sent: 0, ended: false };

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'pvnet-rpc-'));
    socket = join(folder, 'c.sock');
    const registry = new RpcRegistry();
    registry.register('echo', params => params);
    registry.register('long', ({ bytes }) => 'x'.repeat(bytes));
    registry.register('late', async () => {
      await new Promise(resolve => setTimeout(resolve, 20));
      return 'at last';
    });
    registry.register('flood', (_params, { emit, signal }) => {
      flood.sent = 0;
      flood.ended = false;
      return new Promise(resolve => {
        const timer = setInterval(() => {
          for (let i = 0; i < 100; i++) emit('x'.repeat(10_000));
          flood.sent += 1e6;
        }, 1);
        signal.addEventListener('abort', () => {
          clearInterval(timer);
          flood.ended = true;
          resolve(null);
        });
      });
    });
    server = await RpcServer.listen(registry, socket);
  });
  after(async () => {
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function connected(): Promise<Socket> {
    const raw = createConnection({ path: socket });
    await new Promise(resolve => raw.once('connect', resolve));
    return raw.on('error', () => {});
  }

  for (const line of [
    '',
    'nonsense',
    '5',
    'null',
    '[]',
    '{"id":{"toString":1},"method":"echo"}',
    '{"id":1}',
    '{"id":1,"method":{"toString":1}}',
    '{"id":1,"method":["echo"],"params":5}',
    '{"id":1,"method":"constructor"}',
    '{"id":1,"method":"echo","params":null}',
  ]) {
    test(`answers ${JSON.stringify(line)}, and goes on`, async () => {
      const raw = await connected();
      raw.write(`${line}\n`);
      const [answer] = await new Promise<Buffer[]>(resolve => raw.once('data', (...data) => resolve(data)));
      assert.match(String(answer), /^\{.*"(error|result)":/);
      raw.destroy();
      const client = await RpcClient.connect(socket);
      assert.deepEqual(await client.call('echo', { a: 1 }), { a: 1 });
      client.close();
    });
  }

  test('gives answers of any length', async () => {
    const client = await RpcClient.connect(socket);
    const answers = await Promise.all([1, 30e6, 2].map(bytes => client.call<string>('long', { bytes })));
    assert.deepEqual(
      answers.map(({ length }) => length),
      [1, 30e6, 2],
    );
    client.close();
  });

  test('answers who has ended its own side, then hangs up', async () => {
    const raw = await connected();
    const answers = text(raw);
    raw.end('{"id":1,"method":"late"}\n{"id":2,"method":"echo","params":5}\n');
    assert.deepEqual((await answers).trim().split('\n').sort(), [
      '{"id":1,"result":"at last"}',
      '{"id":2,"result":5}',
    ]);
  });

  test('ends what goes on until its caller hangs up for one that has ended its own side', async () => {
    const raw = await connected();
    raw.end('{"id":1,"method":"flood"}\n');
    assert.match(await text(raw), /"result":null\}\n$/);
  });

  test('hangs up on who sends a line without end', async () => {
    const raw = await connected();
    const closed = new Promise(resolve => raw.once('close', resolve));
    raw.write('x'.repeat(1 << 21));
    await closed;
  });

  test('hangs up on who does not read, before that takes much memory', async () => {
    const raw = await connected();
    raw.pause();
    raw.write('{"id":1,"method":"flood"}\n');
    while (flood.ended) await new Promise(resolve => setTimeout(resolve, 5));
    while (!flood.ended && flood.sent < 400e6) await new Promise(resolve => setTimeout(resolve, 5));
    raw.destroy();
    assert.ok(flood.ended && flood.sent < 100e6, `${flood.sent} bytes were sent to who does not read`);
  });

  test('is nowhere where somebody else could put another in its place', () => {
    const own = join(folder, 'own');
    requireOwn(own);
    mkdirSync(own, { mode: 0o700 });
    requireOwn(own);
    symlinkSync(own, join(folder, 'link'));
    assert.throws(() => requireOwn(join(folder, 'link')), { code: 'EACCES' });
    chmodSync(own, 0o777);
    assert.throws(() => requireOwn(own), { code: 'EACCES' });
  });
});
