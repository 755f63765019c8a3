import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XS, xsTypeName } from '../../src/abi/xs-wire.js';
import type { ByteStream } from '../../src/platform/platform.js';
import { XenStoreClient } from '../../src/xenstore/index.js';
import { Lab } from './lab.js';
import { RawClient } from './raw.js';

/** A lab with domain 5, which has a home of its own, reached over a ring page or a stream. */
class Case {
  readonly lab = new Lab(Number(process.env['SEED'] ?? 1));
  readonly admin = this.lab.client();
  readonly #streams: ByteStream[] = [];

  constructor(readonly transport: 'ring' | 'stream') {}

  /** Another domain's stream. */
  stream(domid: number): ByteStream {
    if (this.transport === 'ring') {
      const guest = this.lab.createDomain(domid);
      this.lab.server.introduce(domid, 1, 1);
      return guest.stream();
    }
    this.lab.states.set(domid, 'alive');
    const stream = this.lab.stream(domid);
    this.#streams.push(stream);
    return stream;
  }

  domain(domid: number): XenStoreClient {
    return new XenStoreClient(this.stream(domid), { scheduler: this.lab.scheduler });
  }

  async home(domid: number): Promise<void> {
    await this.admin.mkdir(`/local/domain/${domid}`);
    await this.admin.setPerms(`/local/domain/${domid}`, [`n${domid}`]);
  }

  /** The daemon is alive, and its accounts are right. */
  async healthy(): Promise<void> {
    await this.admin.write('/alive', 'yes');
    assert.equal(await this.admin.read('/alive'), 'yes');
    await this.admin.rm('/alive');
    assert.deepEqual(this.lab.server.store.check(), []);
  }
}

function both(name: string, body: (c: Case) => Promise<void>): void {
  for (const transport of ['ring', 'stream'] as const) {
    test(`${name} (${transport})`, async () => {
      const c = new Case(transport);
      await c.lab.run(
        (async () => {
          await body(c);
          await c.healthy();
        })(),
      );
    });
  }
}

describe('XenStore security advisories', () => {
  for (const bad of [1025, 0xffffffff, 0x80000000]) {
    test(`XSA-38: a request ring with ${bad} bytes in it breaks only its own connection`, async () => {
      const lab = new Lab();
      const guest = lab.createDomain(5);
      lab.server.introduce(5, 1, 1);
      guest.put('REQ_PROD', (guest.get('REQ_CONS') + bad) >>> 0);
      guest.notifyServer();
      await lab.scheduler.runFor(10);
      assert.equal(guest.get('ERROR'), 2);
      guest.put('REQ_PROD', guest.get('REQ_CONS'));
      const raw = new RawClient(guest.stream());
      raw.send(XS.READ, '/\0');
      await lab.scheduler.runFor(10);
      assert.deepEqual(raw.take(), []);
      assert.equal(await lab.run(lab.client().isDomainIntroduced(5)), true);
    });
  }

  test('XSA-38: a response ring that is overfull breaks only its own connection', async () => {
    const lab = new Lab();
    const { guest, client } = lab.domain(5);
    guest.put('RSP_CONS', 7);
    const reading = client.read('/');
    reading.catch(() => {});
    await lab.scheduler.runFor(10);
    assert.equal(guest.get('ERROR'), 2);
    assert.equal(await lab.run(lab.client().exists('/tool')), true);
  });

  both('XSA-72: a listing longer than a message is E2BIG, and comes in parts', async c => {
    const names = Array.from({ length: 600 }, (_, i) => `name${String(i).padStart(6, '0')}`);
    for (const name of names) await c.admin.write(`/big/${name}`, '');
    await c.admin.setPerms('/big', ['r0']);
    const raw = new RawClient(c.stream(5));
    raw.send(XS.DIRECTORY, '/big\0');
    await c.admin.read('/');
    for (let i = 0; i < 5; i++) await c.admin.read('/');
    assert.deepEqual(raw.take(), ['E2BIG|']);
    assert.deepEqual(await c.domain(6).directory('/big'), names);
  });

  both('XSA-115: an event is only for who may read the node', async c => {
    const client = c.domain(5);
    const seen: string[] = [];
    client.onWatchEvent = path => seen.push(path);
    await c.home(5);
    await client.watchRaw('/', 'root');
    await client.watchRaw('@releaseDomain', 'gone');
    await client.read('/local/domain/5');
    seen.length = 0;
    await c.admin.write('/secret/x', '1');
    await c.admin.rm('/secret');
    c.stream(9);
    c.lab.destroyDomain(9);
    await c.admin.write('/open', '1');
    await c.admin.setPerms('/open', ['r0']);
    await client.read('/open');
    assert.deepEqual(seen.splice(0), ['/open']);
    await c.admin.write('/open', '2');
    await c.admin.rm('/open');
    await client.read('/local/domain/5');
    assert.deepEqual(seen.splice(0), ['/open', '/open']);
    await c.admin.setPerms('@releaseDomain', ['n0', 'r5']);
    c.domain(8);
    if (c.transport === 'ring') {
      c.lab.destroyDomain(8);
      await client.read('/local/domain/5');
      assert.deepEqual(seen, ['@releaseDomain']);
    }
  });

  both('XSA-206: a domain that writes all the time does not keep others from committing', async c => {
    const aggressor = c.domain(5);
    await c.home(5);
    await aggressor.write('x', '0');
    let isOver = false;
    const flood = (async () => {
      for (let i = 0; !isOver; i++) await aggressor.write('x', String(i));
    })();
    let attempts = 0;
    for (let i = 0; i < 5; i++) {
      await c.admin.transaction(async t => {
        attempts++;
        await t.read('/local/domain/5/x');
        await t.write('/result', String(i));
      });
    }
    isOver = true;
    await flood;
    assert.ok(attempts < 100, `${attempts} attempts for 5 commits`);
  });

  test('XSA-206: nor does a socket client', async () => {
    const lab = new Lab();
    const [victim, aggressor] = [lab.client(), lab.client()];
    let isOver = false;
    let attempts = 0;
    const flood = (async () => {
      for (let i = 0; !isOver; i++) await aggressor.write('/x', String(i));
    })();
    await lab.run(
      victim.transaction(async t => {
        attempts++;
        for (let i = 0; i < 10; i++) await t.exists('/x');
        await t.write('/y', '1');
      }),
    );
    isOver = true;
    await lab.run(flood);
    assert.ok(attempts <= 4, `${attempts} attempts`);
  });

  both('XSA-206: nor does a domain that loses on purpose hold others up', async c => {
    const aggressor = c.domain(5);
    await c.admin.write('/theirs/x', '0');
    for (let i = 0; i < 5; i++) {
      const t = await aggressor.begin();
      await assert.rejects(t.directory('/theirs'), { code: 'EACCES' });
      await c.admin.write(`/theirs/${i}`, '');
      await assert.rejects(t.commit(), { code: 'EAGAIN' });
    }
    let turns = 0;
    let isOver = false;
    const flood = (async () => {
      let t = await aggressor.begin();
      for (; !isOver && turns < 500; turns++) {
        const ended = t.abort();
        const next = aggressor.begin();
        await ended;
        t = await next;
      }
    })();
    await aggressor.getDomainPath(5);
    await c.admin.write('/theirs/y', '1');
    isOver = true;
    await flood;
    assert.ok(turns < 100, `the write had to wait for ${turns} transactions`);
  });

  test('XSA-233: a domain and its stub domain die in one event', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const events: string[] = [];
    admin.onWatchEvent = path => events.push(path);
    const { guest } = lab.domain(5);
    const { guest: stub } = lab.domain(6);
    await lab.run(admin.setTarget(6, 5));
    await lab.run(admin.watchRaw('@releaseDomain', 't'));
    lab.states.set(5, 'absent');
    lab.states.set(6, 'absent');
    lab.server.domainsChanged();
    lab.server.domainsChanged();
    await lab.run(admin.read('/'));
    assert.deepEqual(events, ['@releaseDomain', '@releaseDomain', '@releaseDomain']);
    assert.deepEqual([guest.mapped, stub.mapped], [0, 0]);
  });

  both('XSA-322, XSA-417: a new domain does not inherit what an old one with its number might', async c => {
    await c.admin.write('/a', 'secret');
    c.domain(5);
    await c.admin.setPerms('/a', ['n0', 'r5', 'r7']);
    c.lab.destroyDomain(5);
    assert.deepEqual(await c.admin.getPerms('/a'), ['n0', 'r5', 'r7']);
    await assert.rejects(c.domain(5).read('/a'), { code: 'EACCES' });
    // 7 did not exist when it was named.
    await assert.rejects(c.domain(7).read('/a'), { code: 'EACCES' });
    await c.admin.setPerms('/a', ['n0', 'r7']);
    assert.deepEqual(c.lab.server.store.check(), []);
  });

  both('XSA-323: the length of a path counts once it is absolute', async c => {
    const client = c.domain(5);
    await c.home(5);
    const long = (length: number) => 'a'.repeat(length);
    const name = `/local/domain/5/`;
    assert.equal(await client.exists(long(2048)), false);
    await assert.rejects(client.exists(long(2049)), { code: 'EINVAL' });
    assert.equal(await client.exists(name + long(2048)), false);
    await assert.rejects(client.exists(name + long(2049)), { code: 'EINVAL' });
    assert.equal(await c.admin.exists(`/${long(3071)}`), false);
    await assert.rejects(c.admin.exists(`/${long(3072)}`), { code: 'EINVAL' });
  });

  both('XSA-324: an event that no message can hold is not sent', async c => {
    const client = c.domain(5);
    await c.home(5);
    const seen: string[] = [];
    client.onWatchEvent = path => seen.push(path);
    await client.watchRaw('w', 't'.repeat(4000));
    await client.write(`w/${'x'.repeat(200)}`, '');
    await client.write('w/y', '');
    await client.read('w/y');
    assert.deepEqual(seen, ['w', 'w/y']);
  });

  test('XSA-325: a domain that broke its ring is kept until it is gone, then released once', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const events: string[] = [];
    admin.onWatchEvent = path => events.push(path);
    const { guest, stream } = lab.domain(5);
    await lab.run(admin.watchRaw('@releaseDomain', 't'));
    new RawClient(stream).send(XS.READ, '', { length: 5000 });
    await lab.scheduler.runFor(10);
    assert.equal(guest.get('ERROR'), 3);
    assert.equal(guest.mapped, 1);
    assert.equal(await lab.run(admin.isDomainIntroduced(5)), true);
    assert.equal(events.length, 1);
    lab.destroyDomain(5);
    await lab.run(admin.read('/'));
    assert.equal(events.length, 2);
    assert.equal(guest.mapped, 0);
  });

  test('XSA-326: a guest that does not read holds a bounded amount and nobody else', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const { guest } = lab.domain(5);
    const stream = guest.stream();
    stream.onData(() => {});
    await lab.run(admin.write('/local/domain/5/w', '0'));
    await lab.run(admin.setPerms('/local/domain/5', ['n5']));
    await lab.run(admin.setPerms('/local/domain/5/w', ['n5']));
    // From now on nobody empties the response ring.
    guest.onEvent = () => {};
    const raw = new RawClient(stream);
    guest.onEvent = () => {};
    raw.send(XS.WATCH, 'w\0t\0');
    for (let i = 0; i < 500; i++) raw.send(XS.READ, `/local/domain/5/${'x'.repeat(50)}\0`);
    await lab.scheduler.runFor(50);
    for (let i = 0; i < 2000; i++) await lab.run(admin.write('/local/domain/5/w', String(i)));
    const connection = [...lab.server.connections].find(({ domid }) => domid === 5)!;
    const { input, output } = connection.pending();
    assert.ok(input.length < 8192, `${input.length} bytes of input`);
    assert.ok(output.length < 4096, `${output.length} bytes of output`);
    assert.ok(lab.server.store.domains.get(5)!.usage.outstanding <= 21);
    // A guest that reads again gets all that is left.
    guest.onEvent = () => stream.onEvent();
    stream.onEvent();
    await lab.scheduler.runFor(100);
    assert.equal(raw.messages.filter(({ type }) => type !== XS.WATCH_EVENT).length, 501);
  });

  for (const type of [XS.DIRECTORY, XS.DIRECTORY_PART, XS.GET_PERMS, XS.READ]) {
    test(`XSA-416: replies to ${xsTypeName(type)} that nobody reads leave nothing behind but themselves`, async () => {
      const lab = new Lab();
      const admin = lab.client();
      const { guest } = lab.domain(5);
      await lab.run(admin.setPerms('/', ['r0']));
      for (let i = 0; i < 100; i++)
        await lab.run(admin.write(`/many/with-a-long-name-${i}`, 'v'.repeat(1000)));
      const stream = guest.stream();
      const raw = new RawClient(stream);
      guest.onEvent = () => {};
      const path = type === XS.READ ? '/many/with-a-long-name-1' : '/many';
      const payload = type === XS.DIRECTORY_PART ? `${path}\0${0}\0` : `${path}\0`;
      for (let i = 0; i < 300; i++) raw.send(type, payload);
      await lab.scheduler.runFor(100);
      const connection = [...lab.server.connections].find(({ domid }) => domid === 5)!;
      assert.ok(
        connection.output.bytes.length <= 1 << 16,
        `a buffer of ${connection.output.bytes.length} bytes`,
      );
      guest.onEvent = () => stream.onEvent();
      stream.onEvent();
      await lab.scheduler.runFor(500);
      assert.equal(raw.messages.filter(message => message.type === type).length, 300);
      assert.equal(connection.output.length, 0);
      assert.deepEqual(lab.server.store.check(), []);
    });
  }

  for (const { seconds, timeoutMs, left } of [
    { seconds: 19, timeoutMs: undefined, left: 300 },
    { seconds: 21, timeoutMs: undefined, left: 100 },
    { seconds: 21, timeoutMs: 0, left: 300 },
  ]) {
    test(`XSA-326: after ${seconds} s unread, with a timeout of ${timeoutMs}: at most ${left} events`, async () => {
      const lab = new Lab(1, { watchEventTimeoutMs: timeoutMs });
      const admin = lab.client();
      const { guest } = lab.domain(5);
      const stream = guest.stream();
      await lab.run(admin.setPerms('/', ['r0']));
      const raw = new RawClient(stream);
      raw.send(XS.WATCH, '/\0t\0');
      await lab.scheduler.runFor(10);
      const events = () => raw.messages.filter(({ type }) => type === XS.WATCH_EVENT).length;
      const before = events();
      guest.onEvent = () => {};
      for (let i = 0; i < 300; i++) await lab.run(admin.write(`/${i}`, ''));
      assert.ok(left === 300 || !lab.scheduler.idle);
      await lab.scheduler.runFor(seconds * 1000);
      // Where nothing waits any more, no timer runs.
      assert.equal(lab.scheduler.idle, seconds === 21);
      guest.onEvent = () => stream.onEvent();
      stream.onEvent();
      await lab.scheduler.runFor(100);
      // What was on the ring, or half, is not dropped.
      assert.ok(left === 300 ? events() - before === 300 : events() - before <= left, `${events()} events`);
      assert.ok(lab.scheduler.idle);
      await lab.run(admin.write('/300', ''));
      await lab.scheduler.runFor(10);
      assert.match(String(raw.messages.at(-1)!.text), /^\/300\0t/);
      assert.equal(guest.get('ERROR'), 0);
    });
  }

  test('XSA-326: events that differ add up only to a limit', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const { guest } = lab.domain(5);
    await lab.run(admin.setPerms('/', ['r0']));
    new RawClient(guest.stream()).send(XS.WATCH, `/\0${'t'.repeat(3000)}\0`);
    await lab.scheduler.runFor(10);
    guest.onEvent = () => {};
    for (let i = 0; i < 1200; i++) await lab.run(admin.write(`/n/${i}`, ''));
    await lab.scheduler.runFor(10);
    assert.equal(guest.get('ERROR'), 1);
    assert.equal(lab.server.store.domains.get(5)!.usage.watches, 0);
  });

  both('XSA-326: what a transaction writes over and over counts as long as it is open', async c => {
    const client = c.domain(5);
    await c.home(5);
    await client.write('x', '');
    const { usage } = c.lab.server.store.domains.get(5)!;
    const before = usage.memory;
    await c.admin.setQuota('memory', before + 10_000, 5);
    const enough = async (change: () => Promise<void>) => {
      for (let i = 0; i < 500; i++) await change();
    };
    for (const end of ['commit', 'abort', 'reset'] as const) {
      const t = await client.begin();
      await assert.rejects(
        enough(() => t.write('x', 'v'.repeat(1000))),
        { code: 'ENOMEM' },
      );
      await t.write('x', 'v');
      assert.ok(usage.memory > before + 9_000 && usage.memory <= before + 10_000, `${usage.memory} bytes`);
      if (end === 'reset') await client.resetWatches();
      else await t[end]();
      await client.write('x', '');
      assert.equal(usage.memory, before);
    }
    const t = await client.begin();
    await assert.rejects(
      enough(async () => {
        await t.mkdir('y');
        await t.setPerms('y', ['n5', 'r0']);
        await t.rm('y');
      }),
      { code: 'ENOMEM' },
    );
    await t.abort();
    assert.equal(usage.memory, before);
  });

  both('XSA-330: RESET_WATCHES frees all that a watch takes', async c => {
    const client = c.domain(5);
    const { domains } = c.lab.server.store;
    await c.home(5);
    const before = { ...domains.get(5)!.usage };
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 100; i++) await client.watchRaw(`w/${i}`, 't');
      await client.resetWatches();
    }
    assert.deepEqual({ ...domains.get(5)!.usage, outstanding: 0 }, { ...before, outstanding: 0 });
    assert.ok(c.lab.server.store.watches.isEmpty);
  });

  both('XSA-352: only the control domain gives a node away', async c => {
    const client = c.domain(5);
    await c.home(5);
    c.domain(7);
    await client.write('mine', '');
    await assert.rejects(client.setPerms('mine', ['n7']), { code: 'EPERM' });
    await client.setPerms('mine', ['n5', 'r7']);
    await assert.rejects(client.setPerms('/tool', ['n5']), { code: 'EACCES' });
    await c.admin.setPerms('/local/domain/5/mine', ['n7', 'r5']);
    assert.equal(c.lab.server.store.domains.get(7)!.usage.nodes, 1);
  });

  both('XSA-353: the root is checked like any node', async c => {
    const client = c.domain(5);
    for (const attempt of [
      () => client.directory('/'),
      () => client.read('/'),
      () => client.getPerms('/'),
      () => client.setPerms('/', ['n5']),
      () => client.write('/', 'x'),
      () => client.mkdir('/x'),
      () => client.write('/x', ''),
      () => client.rm('/tool'),
    ]) {
      await assert.rejects(attempt(), { code: 'EACCES' });
    }
    await assert.rejects(
      client.rm('/'),
      (e: { code?: string }) => e.code === 'EACCES' || e.code === 'EINVAL',
    );
    assert.deepEqual(await c.admin.getPerms('/'), ['n0']);
  });

  both('XSA-414: a creation that is refused leaves nothing behind', async c => {
    const client = c.domain(5);
    await c.home(5);
    for (const quota of ['nodes', 'node-size', 'memory', 'path-max']) {
      const { usage } = c.lab.server.store.domains.get(5)!;
      const before = { ...usage, outstanding: 0 };
      const limit = { nodes: usage.nodes + 2, 'node-size': 8, memory: usage.memory + 100, 'path-max': 6 }[
        quota
      ]!;
      await c.admin.setQuota(quota, limit, 5);
      await assert.rejects(client.write('a/bbbb/cccc/dddd', 'v'.repeat(100)));
      await c.admin.setQuota(quota, 100000, 5);
      assert.equal(await client.exists('a'), false);
      assert.deepEqual({ ...usage, outstanding: 0 }, before);
    }
    await client.write('a/b/c', 'v');
  });

  both('XSA-415: a transaction that fails leaves no node without parent', async c => {
    const client = c.domain(5);
    await c.home(5);
    await client.write('p', '');
    const t = await client.begin();
    await t.write('p/child/x', '1');
    await c.admin.rm('/local/domain/5/p');
    await assert.rejects(t.commit(), { code: 'EAGAIN' });
    assert.equal(await client.exists('p/child'), false);
    const u = await client.begin();
    await u.write('q/x', '1');
    await assert.rejects(u.write('/tool/x', '1'), { code: 'EACCES' });
    await u.commit();
    assert.equal(await client.read('q/x'), '1');
  });

  both('XSA-418: a path as deep as can be', async c => {
    const client = c.domain(5);
    await c.home(5);
    await c.admin.setQuota('nodes', 0, 5);
    const path = Array.from({ length: 1000 }, () => 'a').join('/');
    await client.write(path, 'deep');
    assert.equal(await client.read(path), 'deep');
    assert.equal(c.lab.server.store.domains.get(5)!.usage.nodes, 1001);
    await client.rm('a');
    assert.equal(c.lab.server.store.domains.get(5)!.usage.nodes, 1);
    const deepest = `/${Array.from({ length: 1536 }, () => 'a').join('/')}`;
    await c.admin.write(deepest, '');
    await c.admin.rm('/a');
  });

  both('XSA-419: what a domain owns goes with it', async c => {
    const client = c.domain(5);
    await c.home(5);
    await c.admin.write('/shared', '');
    await c.admin.setPerms('/shared', ['b0']);
    await client.write('/shared/of5', '1');
    await c.admin.write('/shared/of5/below', '1');
    c.lab.destroyDomain(5);
    assert.equal(await c.admin.exists('/shared/of5'), false);
    assert.equal(await c.admin.exists('/local/domain/5'), false);
    assert.equal(await c.admin.exists('/shared'), true);
  });

  for (const length of [4097, 0x7fffffff, 0x80000000, 0xffffffff]) {
    both(`XSA-420: a payload of ${length} bytes`, async c => {
      const raw = new RawClient(c.stream(5));
      raw.send(XS.READ, '/\0', { length });
      for (let i = 0; i < 10; i++) await c.admin.read('/');
      assert.deepEqual(raw.take(), []);
      if (c.transport === 'ring') assert.equal(c.lab.guests.get(5)!.get('ERROR'), 3);
      else assert.equal(raw.isClosed, true);
    });
  }

  both('XSA-421: nodes that come and go in one transaction are not counted', async c => {
    const client = c.domain(5);
    await c.home(5);
    const { usage } = c.lab.server.store.domains.get(5)!;
    const before = usage.nodes;
    for (let i = 0; i < 300; i++) {
      const t = await client.begin();
      await t.mkdir('x/y');
      await t.rm('x');
      await t.commit();
    }
    assert.equal(usage.nodes, before);
  });

  both('XSA-481: what is no path is EINVAL', async c => {
    const raw = new RawClient(c.stream(5));
    const admin = new RawClient(c.lab.stream());
    const bad = [
      '/local/domain/',
      '',
      '//',
      '/a//b',
      '/a/',
      'a/',
      '/a b',
      '/a\x01',
      '/\xe9',
      '@nothing',
      '/a.b',
    ];
    const types = [XS.READ, XS.DIRECTORY, XS.MKDIR, XS.RM];
    for (const client of [raw, admin]) {
      for (const type of types) for (const path of bad) client.send(type, `${path}\0`);
      for (const path of bad) client.send(XS.WRITE, `${path}\0value`);
      client.send(XS.READ, '');
      client.send(XS.READ, '/no-nul');
      client.send(XS.READ, '/a\0b\0');
      client.send(XS.WRITE, '/no-nul');
      client.send(XS.WATCH, '/a\0');
      client.send(XS.SET_PERMS, '/a\0');
      client.send(XS.TRANSACTION_END, 'X\0', { txId: 0 });
    }
    await c.lab.scheduler.runFor(0);
    for (let i = 0; i < 60; i++) await c.admin.read('/');
    for (const client of [raw, admin]) {
      const answers = client.take();
      assert.equal(answers.length, types.length * bad.length + bad.length + 7);
      assert.deepEqual([...new Set(answers)], ['EINVAL|']);
    }
  });

  both('XSA-483: a new domain starts with an empty account', async c => {
    for (let round = 0; round < 2; round++) {
      const client = c.domain(5);
      await c.home(5);
      for (let i = 0; i < 900; i++) await client.mkdir(`d${i % 30}/n${i}`);
      assert.ok(c.lab.server.store.domains.get(5)!.usage.nodes > 900);
      c.lab.destroyDomain(5);
      assert.equal(await c.admin.exists('/local/domain/5'), false);
    }
  });

  both('XSA-484: RESET_WATCHES inside a transaction, and a broken header with one open', async c => {
    const raw = new RawClient(c.stream(5));
    raw.send(XS.TRANSACTION_START, '\0');
    raw.send(XS.RESET_WATCHES, '\0', { txId: 1 });
    raw.send(XS.TRANSACTION_END, 'T\0', { txId: 1 });
    raw.send(XS.TRANSACTION_START, '\0');
    raw.send(XS.RESET_WATCHES, '\0');
    raw.send(XS.RESET_WATCHES, '\0');
    raw.send(XS.TRANSACTION_START, '\0');
    for (let i = 0; i < 10; i++) await c.admin.read('/');
    assert.deepEqual(raw.take(), ['1|', 'OK|', 'ENOENT|', '2|', 'OK|', 'OK|', '3|']);
    raw.send(XS.READ, '', { length: 100000 });
    for (let i = 0; i < 10; i++) await c.admin.read('/');
    assert.equal(c.lab.server.store.openTransactions, 0);
  });

  test('XSA-425: resets, reconnections and a new introduction in any order', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const { guest, stream, client } = lab.domain(5);
    await lab.run(client.resetWatches());
    await lab.run(client.resetWatches());
    for (let i = 0; i < 2; i++) {
      new RawClient(stream).send(XS.READ, '/\0');
      stream.reconnect();
      await lab.scheduler.runFor(10);
      assert.equal(guest.get('CONNECTION'), 0);
      assert.equal(guest.get('REQ_PROD'), 0);
    }
    new RawClient(stream).send(XS.READ, '/\0');
    await lab.run(admin.release(5));
    assert.equal(guest.mapped, 0);
    await lab.run(admin.introduce(5, 1, 2));
    await lab.run(admin.introduce(5, 1, 3));
    assert.equal(guest.mapped, 1);
    const again = new XenStoreClient(guest.stream());
    assert.equal(await lab.run(again.isDomainIntroduced(5)), true);
  });
});
