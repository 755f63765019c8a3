import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { XS } from '../../src/abi/xs-wire.js';
import type { ByteStream } from '../../src/platform/platform.js';
import { restoreState, saveState, XenStoreClient, XenStoreError } from '../../src/xenstore/index.js';
import { latin1 } from '../../src/xenstore/latin1.js';
import { formatPermission } from '../../src/xenstore/permissions.js';
import { SELF } from '../../src/xenstore/store.js';
import type { Transaction } from '../../src/xenstore/transaction.js';
import { walk } from '../../src/xenstore/tree.js';
import { valueBytes } from '../../src/xenstore/value.js';
import { Lab } from './lab.js';
import { message, RawClient } from './raw.js';

/** A stream whose other end can be handed from one server to the next, as a socket is. */
class Movable implements ByteStream {
  #onData: (bytes: Uint8Array) => void = () => {};
  #end!: ByteStream;

  constructor(lab: Lab) {
    this.moveTo(lab.stream());
  }

  moveTo(end: ByteStream): void {
    this.#end = end;
    end.onData(bytes => this.#onData(bytes));
  }

  write(bytes: Uint8Array): void {
    this.#end.write(bytes);
  }

  onData(listener: (bytes: Uint8Array) => void): void {
    this.#onData = listener;
  }

  onClose(): void {}
  close(): void {}
}

/** Saves one lab's server and takes it up in another, socket clients and domains included. */
function update(from: Lab, to: Lab, streams: Movable[]): void {
  const connections = [...from.server.connections].filter(({ domid }) => domid === 0);
  const bytes = saveState(from.server, {
    fdOf: connection => (connections.includes(connection) ? connections.indexOf(connection) : undefined),
  });
  for (const [domid, state] of from.states) to.states.set(domid, state);
  for (const [domid, guest] of from.guests) {
    to.guests.set(domid, guest);
    Object.assign(guest, { lab: to });
  }
  restoreState(to.server, bytes, {
    serve: fd => {
      streams[fd].moveTo(to.stream());
      return [...to.server.connections].at(-1)!;
    },
  });
}

/** What a client and its transactions can both do. */
type Nodes = Pick<XenStoreClient, 'read' | 'directory' | 'write' | 'rm' | 'setPerms'>;

/** The only transaction that is open. */
function transactionOf({ server }: Lab): Transaction {
  return [...server.connections].flatMap(({ transactions }) => [...transactions.values()])[0];
}

/** All nodes of the store, or as its only transaction sees them. */
function contents(lab: Lab, inTransaction: boolean): Record<string, string> {
  const nodes: Record<string, string> = {};
  const tree = inTransaction ? transactionOf(lab).tree : lab.server.store.tree;
  walk(tree.root, '/', ({ value, permissions }, path) => {
    nodes[path] = `${latin1(valueBytes(value))} ${permissions.map(formatPermission)}`;
  });
  return nodes;
}

describe('a saved state', () => {
  test('holds connections, watches, transactions, quotas and half a message', async () => {
    const [before, after] = [new Lab(1), new Lab(2)];
    const streams = [new Movable(before), new Movable(before)];
    const client = new XenStoreClient(streams[0]);
    const raw = new RawClient(streams[1]);
    const seen: string[] = [];
    client.onWatchEvent = (path, token) => seen.push(`${path} ${token}`);
    const guest = before.domain(5);
    let t: Awaited<ReturnType<XenStoreClient['begin']>> | undefined;
    let lost: typeof t;
    await before.run(
      (async () => {
        await client.write('/a/b', 'v');
        await client.write('/n', 'x\0y');
        await client.setPerms('/a/b', ['n0', 'r5']);
        await client.setQuota('nodes', 77);
        await client.setQuota('watches', 9, 5);
        await client.watchRaw('/a', 't', 1);
        await client.mkdir('/local/domain/5');
        await client.setPerms('/local/domain/5', ['n5']);
        await guest.client.watchRaw('rel', 'r');
        t = await client.begin();
        await t.write('/a/new/x', 'pending');
        assert.equal(await t.read('/a/b'), 'v');
        lost = await client.begin();
        await lost.read('/n');
        await lost.write('/m', '1');
        await client.write('/n', 'changed');
      })(),
    );
    const half = message(XS.READ, '/a/b\0');
    streams[1].write(half.subarray(0, 18));
    await before.scheduler.runFor(10);
    update(before, after, streams);
    streams[1].write(half.subarray(18));
    seen.length = 0;
    await after.run(
      (async () => {
        assert.deepEqual(await client.getPerms('/a/b'), ['n0', 'r5']);
        assert.equal(await client.read('/n'), 'changed');
        assert.equal(await client.getQuota('nodes'), 77);
        assert.equal(await client.getQuota('watches', 5), 9);
        assert.equal(await client.exists('/a/new'), false);
        await client.write('/a/b', 'w');
        await client.write('/a/b/too/deep', 'w');
        await assert.rejects(t!.commit(), { code: 'EAGAIN' });
        await assert.rejects(lost!.commit(), { code: 'EAGAIN' });
        const again = await client.begin();
        assert.ok(again.id > lost!.id);
        await again.commit();
        assert.equal(await guest.client.read('/a/b'), 'w');
        await guest.client.write('rel/x', '1');
        assert.deepEqual(after.server.store.check(), []);
      })(),
    );
    assert.deepEqual(raw.take(), ['v']);
    assert.deepEqual(seen, ['/a/b t']);
  });

  test('gives nobody what a domain of the same number had that is gone', async () => {
    const [before, after] = [new Lab(1), new Lab(2)];
    const stream = new Movable(before);
    const admin = new XenStoreClient(stream, { scheduler: before.scheduler });
    before.domain(5);
    before.domain(7);
    await before.run(admin.write('/x', 'secret'));
    await before.run(admin.setPerms('/x', ['n0', 'r5', 'r7']));
    before.destroyDomain(7);
    before.domain(7);
    update(before, after, [stream]);
    const read = (domid: number) => {
      const guest = after.guests.get(domid)!;
      return after.run(new XenStoreClient(guest.stream(), { scheduler: after.scheduler }).read('/x'));
    };
    assert.equal(await read(5), 'secret');
    await assert.rejects(read(7), { code: 'EACCES' });
  });

  test('lets a transaction that nobody disturbed commit', async () => {
    const [before, after] = [new Lab(1), new Lab(2)];
    const streams = [new Movable(before)];
    const client = new XenStoreClient(streams[0]);
    await before.run(client.write('/a', '1'));
    await before.run(client.write('/gone/x', '1'));
    const t = await before.run(client.begin());
    await before.run(t.read('/a'));
    await before.run(t.write('/b/c', '2'));
    await before.run(t.rm('/gone'));
    update(before, after, streams);
    await after.run(client.write('/else', '3'));
    await after.run(t.commit());
    assert.equal(await after.run(client.read('/b/c')), '2');
    assert.equal(await after.run(client.exists('/gone')), false);
    assert.deepEqual(after.server.store.check(), []);
  });

  test('a transaction goes on with the store as it was when it began, and commits as it would have', async () => {
    const step = fc.record({
      kind: fc.constantFrom('read', 'directory', 'write', 'write', 'rm', 'chmod'),
      path: fc
        .array(fc.constantFrom('a', 'b', 'c'), { minLength: 1, maxLength: 3 })
        .map(p => `/${p.join('/')}`),
      value: fc.constantFrom('', 'x', 'long enough not to be kept as a text'),
      where: fc.constantFrom('before', 'live', 'live', 'transaction', 'transaction'),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 30 }), async steps => {
        const [before, after] = [new Lab(1), new Lab(2)];
        const streams = [new Movable(before)];
        const client = new XenStoreClient(streams[0]);
        const run = (nodes: Nodes, { kind, path, value }: (typeof steps)[0]) => {
          if (kind === 'write') return nodes.write(path, value);
          if (kind === 'rm') return nodes.rm(path);
          if (kind === 'chmod') return nodes.setPerms(path, ['r0', `r${value.length}`]);
          return kind === 'read' ? nodes.read(path) : nodes.directory(path);
        };
        const tolerant = (promise: Promise<unknown>) => promise.catch(() => {});
        for (const s of steps) if (s.where === 'before') await before.run(tolerant(run(client, s)));
        const t = await before.run(client.begin());
        for (const s of steps) {
          if (s.where !== 'before') await before.run(tolerant(run(s.where === 'live' ? client : t, s)));
        }
        const seen = contents(before, true);
        update(before, after, streams);
        assert.deepEqual(contents(after, true), seen);
        assert.deepEqual(contents(after, false), contents(before, false));
        const { outcome } = before.server.store.commit(transactionOf(before), SELF);
        const committed = await after.run(
          t.commit().then(
            () => '',
            error => error.code,
          ),
        );
        assert.equal(committed, outcome);
        assert.deepEqual(contents(after, false), contents(before, false));
        assert.deepEqual(after.server.store.check(), []);
      }),
      {
        numRuns: Number(process.env['PVNET_SAVED_RUNS'] ?? 60),
        examples: [
          [
            [
              { kind: 'write', path: '/c', value: '', where: 'live' },
              { kind: 'write', path: '/c/a', value: '', where: 'transaction' },
              { kind: 'rm', path: '/c/a', value: '', where: 'transaction' },
            ],
          ],
          [
            [
              { kind: 'write', path: '/b/a', value: '', where: 'before' },
              { kind: 'rm', path: '/b', value: '', where: 'transaction' },
              { kind: 'write', path: '/b/b/a', value: '', where: 'live' },
              { kind: 'rm', path: '/b/b', value: '', where: 'live' },
            ],
          ],
        ],
      },
    );
  });

  test('what is none is refused', () => {
    const whole = saveState(new Lab().server);
    const cases = [
      new Uint8Array(0),
      new Uint8Array(100),
      whole.slice(0, whole.length - 8),
      whole.slice(0, 40),
    ];
    const wrongVersion = whole.slice();
    wrongVersion[11] = 9;
    for (const bytes of [...cases, wrongVersion]) {
      assert.throws(() => restoreState(new Lab().server, bytes), XenStoreError);
    }
  });
});
