import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { XS, XS_HEADER_SIZE } from '../../src/abi/xs-wire.js';
import type { ClientTransaction, XenStoreClient, XenStoreError } from '../../src/xenstore/index.js';
import { Lab } from './lab.js';
import { RawClient } from './raw.js';

/** A store that is a plain map of paths: slow, and obviously right. */
class Model {
  constructor(readonly nodes = new Map([['/', '']])) {}

  copy(): Model {
    return new Model(new Map(this.nodes));
  }

  read(path: string): string {
    const value = this.nodes.get(path);
    return value === undefined ? 'ENOENT' : `=${value}`;
  }

  directory(path: string): string {
    if (!this.nodes.has(path)) return 'ENOENT';
    const front = path === '/' ? '/' : `${path}/`;
    const names = [...this.nodes.keys()].filter(
      other => other !== '/' && other.startsWith(front) && !other.slice(front.length).includes('/'),
    );
    return `=${names
      .map(name => name.slice(front.length))
      .sort()
      .join(' ')}`;
  }

  mkdir(path: string): string {
    if (this.nodes.has(path)) return '=';
    for (let at = path.indexOf('/', 1); at > 0; at = path.indexOf('/', at + 1)) {
      if (!this.nodes.has(path.slice(0, at))) this.nodes.set(path.slice(0, at), '');
    }
    this.nodes.set(path, '');
    return '=';
  }

  write(path: string, value: string): string {
    this.mkdir(path);
    this.nodes.set(path, value);
    return '=';
  }

  rm(path: string): string {
    if (path === '/') return 'EINVAL';
    const parent = path.slice(0, path.lastIndexOf('/')) || '/';
    if (!this.nodes.has(parent)) return 'ENOENT';
    for (const other of [...this.nodes.keys()]) {
      if (other === path || other.startsWith(`${path}/`)) this.nodes.delete(other);
    }
    return '=';
  }
}

type Kind = 'read' | 'directory' | 'mkdir' | 'write' | 'rm';

interface Step {
  client: number;
  /** Whether the step is one of the client's transaction, which it begins when there is none. */
  inTransaction: boolean;
  kind: Kind | 'commit' | 'abort';
  path: string;
  value: string;
}

const path = fc
  .array(fc.constantFrom('a', 'b', 'c'), { minLength: 0, maxLength: 3 })
  .map(names => `/${names.join('/')}`);

const step: fc.Arbitrary<Step> = fc.record({
  client: fc.nat(2),
  inTransaction: fc.boolean(),
  kind: fc.constantFrom('read', 'directory', 'mkdir', 'write', 'write', 'rm', 'commit', 'abort'),
  path,
  value: fc.string({ maxLength: 4, unit: fc.constantFrom('x', 'y', '0') }),
});

async function run(on: XenStoreClient | ClientTransaction, { kind, path, value }: Step): Promise<string> {
  try {
    switch (kind) {
      case 'read':
        return `=${await on.read(path)}`;
      case 'directory':
        return `=${(await on.directory(path)).sort().join(' ')}`;
      case 'write':
        await on.write(path, value);
        return '=';
      case 'mkdir':
        await on.mkdir(path);
        return '=';
      default:
        await on.rm(path);
        return '=';
    }
  } catch (error) {
    return (error as XenStoreError).code;
  }
}

function apply(model: Model, { kind, path, value }: Step): string {
  return kind === 'write' ? model.write(path, value) : model[kind as Exclude<Kind, 'write'>](path);
}

interface Open {
  t: ClientTransaction;
  /** The store as the transaction sees it. */
  view: Model;
  steps: { step: Step; result: string }[];
  /** Changes of the store when it began. */
  began: number;
}

describe('the store against a model', () => {
  test('any sequence of operations and transactions is as if done one after the other', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async steps => {
        const lab = new Lab();
        const clients = [lab.client(), lab.client(), lab.client()];
        const open: (Open | undefined)[] = [];
        const model = new Model();
        let changes = 0;
        await lab.run(
          (async () => {
            await clients[0].rm('/tool');
            for (const step of steps) {
              const client = clients[step.client];
              const current = open[step.client];
              if (step.kind === 'commit' || step.kind === 'abort') {
                if (current === undefined) continue;
                open[step.client] = undefined;
                if (step.kind === 'abort') {
                  await current.t.abort();
                  continue;
                }
                const code = await current.t.commit().then(
                  () => '',
                  error => (error as XenStoreError).code,
                );
                if (code === '') {
                  // It must be as if all of it happened now.
                  for (const { step, result } of current.steps) assert.equal(apply(model, step), result);
                  changes++;
                } else {
                  assert.equal(code, 'EAGAIN');
                  assert.notEqual(changes, current.began, 'a conflict with nobody');
                }
              } else if (step.inTransaction) {
                const t = current ?? {
                  t: await client.begin(),
                  view: model.copy(),
                  steps: [],
                  began: changes,
                };
                open[step.client] = t;
                const result = await run(t.t, step);
                assert.equal(result, apply(t.view, step), 'a snapshot, with its own changes');
                t.steps.push({ step, result });
              } else {
                assert.equal(await run(client, step), apply(model, step));
                changes++;
              }
            }
            for (const [at, value] of model.nodes) assert.equal(await clients[0].read(at), value);
            assert.deepEqual(lab.server.store.check(), []);
            assert.equal(lab.server.store.nodeCount, model.nodes.size);
          })(),
        );
      }),
      { numRuns: 300 },
    );
  });

  test('a large directory keeps its order and contents', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.boolean(), fc.nat(80)), { maxLength: 200 }), async changes => {
        const lab = new Lab();
        const client = lab.client();
        const names = new Set<string>();
        await lab.run(
          (async () => {
            await client.mkdir('/d');
            for (const [add, n] of changes) {
              const t = n % 3 === 0 ? await client.begin() : undefined;
              if (add) await client.write(`/d/${n}`, '');
              else await client.rm(`/d/${n}`);
              await t?.abort();
              if (add) names.add(String(n));
              else names.delete(String(n));
            }
            assert.deepEqual(await client.directory('/d'), [...names]);
          })(),
        );
      }),
      { numRuns: 100 },
    );
  });

  test('whatever bytes a client sends, in whatever pieces, nobody else notices', async () => {
    const header = fc
      .record({
        type: fc.oneof(fc.nat(30), fc.nat()),
        txId: fc.constantFrom(0, 0, 0, 1, 7),
        length: fc.oneof(fc.nat(64), fc.nat(5000), fc.constantFrom(0xffffffff, 0x80000000)),
        body: fc.oneof(
          fc.uint8Array({ maxLength: 64 }),
          fc
            .array(fc.constantFrom('/', '/a', 'a/b', '@releaseDomain', 'n5', 'T', '1', '', 'x'.repeat(40)), {
              maxLength: 4,
            })
            .map(words => new TextEncoder().encode(words.map(word => `${word}\0`).join(''))),
        ),
        honest: fc.boolean(),
      })
      .map(({ type, txId, length, body, honest }) => {
        const bytes = Buffer.alloc(XS_HEADER_SIZE + body.length);
        bytes.writeUInt32LE(type >>> 0, 0);
        bytes.writeUInt32LE(txId, 8);
        bytes.writeUInt32LE(honest ? body.length : length >>> 0, 12);
        bytes.set(body, XS_HEADER_SIZE);
        return bytes;
      });
    await fc.assert(
      fc.asyncProperty(
        fc.array(header, { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 20 }),
        fc.boolean(),
        async (messages, sizes, privileged) => {
          const lab = new Lab();
          lab.states.set(5, 'alive');
          const stream = lab.stream(privileged ? 0 : 5);
          const raw = new RawClient(stream);
          const bytes = Buffer.concat(messages);
          for (let at = 0, i = 0; at < bytes.length; i++) {
            const size = sizes[i % sizes.length];
            stream.write(bytes.subarray(at, at + size));
            at += size;
          }
          const client = lab.client();
          await lab.run(client.write('/still', 'here'));
          assert.equal(await lab.run(client.read('/still')), 'here');
          await lab.scheduler.runFor(10_000);
          for (const { type } of raw.messages) assert.ok(type <= XS.SET_QUOTA);
          stream.close();
          await lab.scheduler.runFor(10);
          assert.equal(lab.server.connections.size, 1);
          assert.equal(lab.server.store.openTransactions, 0);
          assert.ok(lab.server.store.watches.isEmpty);
          assert.deepEqual(lab.server.store.check(), []);
        },
      ),
      { numRuns: 300 },
    );
  });
});
