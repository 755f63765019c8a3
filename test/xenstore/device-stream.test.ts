import assert from 'node:assert/strict';
import { test } from 'node:test';
import { XS, XS_HEADER_SIZE } from '../../src/abi/xs-wire.js';
import { XenStoreClient } from '../../src/xenstore/index.js';
import { connectDevice, type DeviceCalls } from '../../src/xenstore/node/device-stream.js';

type Done = (error: NodeJS.ErrnoException | null, count: number) => void;

/** What Linux's /dev/xen/xenbus does: whole messages are queued for reads, and some requests fail in the write itself. */
class Kernel {
  /** Errno of writes of a type. */
  readonly refused = new Map<number, string>();
  closed = 0;
  #queue: number[] = [];
  #reader: { into: Uint8Array; done: Done } | null = null;
  /** Holds replies back. */
  paused = false;
  readonly calls = {
    open: (_path: string, _flags: string, done: Done) => setImmediate(done, null, 7),
    close: (_fd: number, done: () => void) => {
      this.closed++;
      setImmediate(done);
    },
    read: (_fd: number, into: Uint8Array, _at: number, _length: number, _position: null, done: Done) => {
      this.#reader = { into, done };
      this.deliver();
    },
    write: (_fd: number, bytes: Uint8Array, at: number, length: number, _position: null, done: Done) => {
      setImmediate(() => this.#written(bytes.slice(at, at + length), done));
    },
  } as unknown as DeviceCalls;

  /** Gives a waiting reader what fits its buffer. */
  deliver(): void {
    const reader = this.#reader;
    if (reader === null || this.#queue.length === 0 || this.paused) return;
    this.#reader = null;
    const bytes = this.#queue.splice(0, reader.into.length);
    reader.into.set(bytes);
    setImmediate(reader.done, null, bytes.length);
  }

  /** Answers each request with its own body. */
  #written(message: Uint8Array, done: Done): void {
    const type = new DataView(message.buffer).getUint32(0, true);
    const code = this.refused.get(type) ?? (message.length > 4096 ? 'EINVAL' : undefined);
    if (code !== undefined) {
      done(Object.assign(new Error(code), { code }), 0);
      return;
    }
    for (const byte of message) this.#queue.push(byte);
    done(null, message.length);
    this.deliver();
  }
}

function connect(): { kernel: Kernel; client: XenStoreClient } {
  const kernel = new Kernel();
  return { kernel, client: new XenStoreClient(connectDevice('/dev/xen/xenbus', kernel.calls)) };
}

test('a watch that the kernel refuses in the write fails alone, the connection stays', async () => {
  const { kernel, client } = connect();
  kernel.refused.set(XS.WATCH, 'ENOSPC');
  await assert.rejects(client.watchRaw('backend', 'b'), { code: 'ENOSPC', message: /WATCH backend/ });
  assert.equal(await client.read('name'), 'name\0');
  assert.equal(kernel.closed, 0);
});

test('a request that does not fit the kernel’s buffer is refused', async () => {
  const { client } = connect();
  await assert.rejects(client.request(XS.WRITE, new Uint8Array(4096 - XS_HEADER_SIZE + 1)), {
    code: 'EINVAL',
  });
  assert.equal((await client.request(XS.WRITE, new Uint8Array(4096 - XS_HEADER_SIZE))).length, 4080);
});

test('a refusal does not come in between two parts of a message', async () => {
  const { kernel, client } = connect();
  kernel.refused.set(XS.WATCH, 'EINVAL');
  await client.read('a');
  kernel.paused = true;
  const bodies = [3000, 3000, 3000, 3000].map(length => client.request(XS.READ, new Uint8Array(length)));
  await new Promise(resolve => setTimeout(resolve, 5));
  kernel.paused = false;
  kernel.deliver();
  const refused = assert.rejects(client.watchRaw('x', 'x'), { code: 'EINVAL' });
  for (const body of bodies) assert.equal((await body).length, 3000);
  await refused;
});

test('another error of the device ends the connection', async () => {
  const { kernel, client } = connect();
  kernel.refused.set(XS.READ, 'ENODEV');
  await assert.rejects(client.read('a'), { code: 'EIO', message: /\/dev\/xen\/xenbus: ENODEV/ });
  assert.equal(kernel.closed, 1);
});

test('closing ends the read that waits', async () => {
  const { kernel, client } = connect();
  await client.read('a');
  client.close();
  for (let i = 0; i < 20 && kernel.closed === 0; i++) await new Promise(setImmediate);
  assert.equal(kernel.closed, 1);
});
