import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XENSTORE_RING as R, XS, XS_HEADER_SIZE } from '../../src/abi/xs-wire.js';
import { Memory, PAGE_SIZE } from '../../src/platform/memory.js';
import type { ByteStream } from '../../src/platform/platform.js';
import { XenStoreClient } from '../../src/xenstore/index.js';
import type { Transport } from '../../src/xenstore/transport.js';
import { Lab } from './lab.js';
import { message, RawClient } from './raw.js';

/** A lab with domain 5, whose home is its own. */
async function withDomain(seed = 1) {
  const lab = new Lab(seed);
  const admin = lab.client();
  const { client, guest } = lab.domain(5);
  await lab.run(admin.mkdir('/local/domain/5'));
  await lab.run(admin.setPerms('/local/domain/5', ['n5']));
  await lab.run(client.write('x', ''));
  const { usage } = lab.server.store.domains.get(5)!;
  return { lab, admin, client, guest, usage };
}

/** What one request over a connection is answered. */
async function ask(lab: Lab, stream: ByteStream, type: number, payload: string): Promise<string[]> {
  const raw = new RawClient(stream);
  raw.send(type, payload);
  await lab.scheduler.runFor(10);
  return raw.take();
}

/** A ring whose guest, in another thread, takes all answers and asks again before the server has looked. */
class BusyRing extends Memory {
  fills = 0;
  /** As long as the ring. */
  private readonly requests = Buffer.concat(Array(32).fill(message(XS.READ, '/tool/xenstored\0')));

  override load(field: number): number {
    if (field === R.REQ_PROD && this.fills < 10_000) this.fill();
    if (field === R.RSP_CONS) this.store(field, super.load(R.RSP_PROD));
    return super.load(field);
  }

  private fill(): void {
    const [prod, cons] = [super.load(R.REQ_PROD), super.load(R.REQ_CONS)];
    if (prod !== cons) return;
    this.fills++;
    this.requests.forEach((byte, i) => {
      this.u8[R.REQ + ((prod + i) & (R.SIZE - 1))] = byte;
    });
    this.store(R.REQ_PROD, (prod + this.requests.length) >>> 0);
  }
}

describe('what a domain may cost', () => {
  test('one whose ring is never empty leaves the others their turns', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const memory = new BusyRing(new SharedArrayBuffer(PAGE_SIZE));
    const guest = Object.assign(lab.createDomain(5), { memory });
    lab.server.introduce(5, 1, 1);
    guest.notifyServer();
    for (let i = 0; i < 20; i++) assert.equal(await lab.run(admin.read('/tool')), '');
    assert.ok(memory.fills > 1 && memory.fills < 1000, `${memory.fills} times`);
    lab.destroyDomain(5);
  });

  test('who writes beside others’ transactions is slowed down, and nobody else', async () => {
    const { lab, admin, client } = await withDomain();
    const writes = async (client: XenStoreClient, path: string) => {
      const begin = lab.scheduler.now();
      for (let i = 0; i < 60; i++) await lab.run(client.write(path, ''));
      return lab.scheduler.now() - begin;
    };
    assert.ok((await writes(client, 'x')) < 50);
    const t = await lab.run(admin.begin());
    assert.ok((await writes(admin, '/y')) < 50);
    // All but the 10 that it has saved up, at 200 a second.
    const slow = await writes(client, 'x');
    assert.ok(slow > 200 && slow < 400, `${slow} ms`);
    await lab.run(t.abort());
    // So are those whose commits may make others' fail.
    const u = await lab.run(admin.begin());
    const begin = lab.scheduler.now();
    for (let i = 0; i < 60; i++) {
      await lab.run(
        client.transaction(async t => {
          await t.write('x', '');
        }),
      );
    }
    const commits = lab.scheduler.now() - begin;
    assert.ok(commits > 200 && commits < 450, `${commits} ms`);
    await lab.run(u.abort());
  });

  test('watches count against its memory', async () => {
    const { lab, admin, client, usage } = await withDomain();
    const before = usage.memory;
    await lab.run(admin.setQuota('memory', before + 2000, 5));
    await lab.run(client.watchRaw('x', 't'.repeat(1000)));
    await assert.rejects(lab.run(client.watchRaw('x', 'u'.repeat(1000))), { code: 'ENOMEM' });
    await lab.run(client.unwatchRaw('x', 't'.repeat(1000)));
    assert.equal(usage.memory, before);
  });

  test('transactions that fit one by one do not add up to more nodes than it may have', async () => {
    const { lab, admin, client, usage } = await withDomain();
    await lab.run(admin.setQuota('nodes', usage.nodes + 3, 5));
    const [t, u] = [await lab.run(client.begin()), await lab.run(client.begin())];
    await lab.run(t.mkdir('a/b'));
    await lab.run(u.mkdir('c/d'));
    await lab.run(t.commit());
    await assert.rejects(lab.run(u.commit()), { code: 'ENOSPC' });
    assert.equal(await lab.run(client.exists('c')), false);
  });

  test('who sends megabytes ahead, where nothing holds it back, is given up', async () => {
    const { lab, admin } = await withDomain();
    // While others have transactions, it has to wait.
    await lab.run(admin.begin());
    const raw = new RawClient(lab.stream(5));
    for (let i = 0; i < 1000; i++) raw.send(XS.WRITE, `x\0${'v'.repeat(1500)}`);
    await lab.scheduler.runFor(10);
    assert.equal(raw.isClosed, true);
    await lab.run(admin.read('/'));
  });

  test('who connects anew has nothing of what waited for it, and nothing counted', async () => {
    const { lab, admin, guest } = await withDomain();
    for (let round = 0; round < 6; round++) {
      const stream = guest.stream();
      const raw = new RawClient(stream);
      raw.send(XS.WATCH, `/local/domain/5\0${'t'.repeat(3000)}\0`);
      await lab.scheduler.runFor(10);
      guest.onEvent = () => {};
      for (let i = 0; i < 200; i++) await lab.run(admin.write(`/local/domain/5/${i}`, ''));
      guest.onEvent = () => stream.onEvent();
      stream.reconnect();
      await lab.scheduler.runReady();
      assert.ok(lab.scheduler.idle, 'a timer runs for events that are gone');
      assert.equal(guest.get('ERROR'), 0);
    }
    assert.deepEqual(await ask(lab, guest.stream(), XS.READ, 'x\0'), ['']);
  });

  test('a message that is longer than any ends the client’s connection', async () => {
    const lab = new Lab();
    let give: (bytes: Uint8Array) => void = () => {};
    let isClosed = false;
    const client = new XenStoreClient({
      write() {},
      onData: listener => {
        give = listener;
      },
      onClose() {},
      close: () => {
        isClosed = true;
      },
    });
    const read = assert.rejects(client.read('/x'), { code: 'EIO' });
    give(message(XS.READ, '', { length: 0xffffffff }).subarray(0, XS_HEADER_SIZE));
    await read;
    assert.ok(isClosed && lab.scheduler.idle);
  });
});

describe('what ends', () => {
  test('who may not read a node any more is told that it changed, and nothing from then on', async () => {
    const { lab, admin, client } = await withDomain();
    await lab.run(admin.write('/node', ''));
    await lab.run(admin.setPerms('/node', ['n0', 'r5']));
    let told = -1;
    client.onWatchEvent = () => told++;
    await lab.run(client.watchRaw('/node', 't'));
    await lab.run(admin.setPerms('/node', ['n0']));
    await lab.run(admin.write('/node', 'secret'));
    await lab.run(client.read('x'));
    assert.equal(told, 1);
  });

  test('a domain that was given up is served again when it connects anew', async () => {
    const { lab, guest } = await withDomain();
    const stream = guest.stream();
    new RawClient(stream).send(XS.READ, '', { length: 5000 });
    await lab.scheduler.runFor(10);
    assert.equal(guest.get('ERROR'), 3);
    stream.reconnect();
    await lab.scheduler.runFor(10);
    assert.equal(guest.get('ERROR'), 0);
    assert.deepEqual(await ask(lab, guest.stream(), XS.GET_DOMAIN_PATH, '5\0'), ['/local/domain/5|']);
  });

  test('what a domain sets up after it has connected anew stays, however soon that was', async () => {
    for (let seed = 1; seed <= 100; seed++) {
      const { lab, admin, guest } = await withDomain(seed);
      const stream = guest.stream();
      const raw = new RawClient(stream);
      raw.send(XS.READ, '', { length: 5000 });
      await lab.scheduler.runUntil(() => guest.get('ERROR') === 3);
      stream.reconnect();
      raw.send(XS.WATCH, 'y\0t\0');
      await lab.scheduler.runReady();
      await lab.run(admin.write('/local/domain/5/y', ''));
      await lab.scheduler.runReady();
      assert.deepEqual(raw.take(), ['OK|', 'y|t|', 'y|t|'], `seed ${seed}`);
    }
  });

  test('the shutdown of a domain is told once, and once more after a resume', async () => {
    const { lab, admin } = await withDomain();
    let told = -1;
    admin.onWatchEvent = () => told++;
    await lab.run(admin.watchRaw('@releaseDomain', 't'));
    lab.states.set(5, 'shutdown');
    for (let i = 0; i < 3; i++) lab.server.domainsChanged();
    await lab.run(admin.read('/'));
    assert.equal(told, 1);
    await lab.run(admin.resume(5));
    lab.server.domainsChanged();
    await lab.run(admin.read('/'));
    assert.equal(told, 2);
  });

  test('the rights that SET_TARGET gave end with the target, whoever has its number next', async () => {
    const { lab, admin, client } = await withDomain();
    const target = async (secret: string) => {
      lab.domain(6);
      await lab.run(admin.write('/local/domain/6/secret', secret));
      await lab.run(admin.setPerms('/local/domain/6/secret', ['n6']));
    };
    await target('1');
    await lab.run(admin.setTarget(5, 6));
    assert.equal(await lab.run(client.read('/local/domain/6/secret')), '1');
    lab.destroyDomain(6);
    await target('2');
    await assert.rejects(lab.run(client.read('/local/domain/6/secret')), { code: 'EACCES' });
  });

  test('a special name is the control domain’s again when who had it is gone', async () => {
    const { lab, admin } = await withDomain();
    await lab.run(admin.setPerms('@releaseDomain', ['b5', 'r7']));
    lab.destroyDomain(5);
    assert.deepEqual(await lab.run(admin.getPerms('@releaseDomain')), ['n0']);
  });

  test('a watch that was taken back brings no event that waited', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const sent: Buffer[] = [];
    let isFull = false;
    const transport: Transport = {
      write(bytes, start, end) {
        if (isFull) return 0;
        sent.push(Buffer.from(bytes.slice(start, end)));
        return end - start;
      },
      resume() {},
      close() {},
    };
    const connection = lab.server.connect(transport);
    const send = (type: number) => {
      const bytes = message(type, '/a\0t\0');
      connection.receive(bytes, 0, bytes.length);
    };
    send(XS.WATCH);
    isFull = true;
    // The first is in the output, the second one waits.
    for (let i = 0; i < 2; i++) await lab.run(admin.write('/a', ''));
    send(XS.UNWATCH);
    isFull = false;
    connection.drained();
    const types = sent.flatMap(bytes => {
      const found: number[] = [];
      for (let at = 0; at < bytes.length; at += XS_HEADER_SIZE + bytes.readUInt32LE(at + 12)) {
        found.push(bytes.readUInt32LE(at));
      }
      return found;
    });
    assert.deepEqual(types, [XS.WATCH, XS.WATCH_EVENT, XS.WATCH_EVENT, XS.UNWATCH]);
  });

  test('a transaction that removes a node does not take what others put below meanwhile', async () => {
    const { lab, admin, client } = await withDomain();
    await lab.run(client.mkdir('dir'));
    const t = await lab.run(client.begin());
    await lab.run(t.rm('dir'));
    await lab.run(admin.write('/local/domain/5/dir/theirs', ''));
    await assert.rejects(lab.run(t.commit()), { code: 'EAGAIN' });
    assert.equal(await lab.run(admin.exists('/local/domain/5/dir/theirs')), true);
  });
});
