import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XS } from '../../src/abi/xs-wire.js';
import { QUOTA_NAMES } from '../../src/xenstore/index.js';
import { Lab } from './lab.js';
import { RawClient } from './raw.js';

describe('requests', () => {
  test('write creates missing parents; read, directory and rm see the same tree', async () => {
    const lab = new Lab();
    const client = lab.client();
    await lab.run(
      (async () => {
        await client.write('/a/b/c', 'value');
        assert.equal(await client.read('/a/b/c'), 'value');
        assert.equal(await client.read('/a/b'), '');
        assert.deepEqual(await client.directory('/a'), ['b']);
        assert.deepEqual(await client.getPerms('/a/b/c'), ['n0']);
        await client.rm('/a/b');
        await assert.rejects(client.read('/a/b/c'), { code: 'ENOENT' });
        await client.rm('/a/b');
        await assert.rejects(client.rm('/a/b/c'), { code: 'ENOENT' });
        await assert.rejects(client.rm('/'), { code: 'EINVAL' });
        await client.mkdir('/a/b');
        await client.mkdir('/a/b');
        assert.deepEqual(lab.server.store.check(), []);
      })(),
    );
  });

  test('of a path that is none the client says what one is', async () => {
    const lab = new Lab();
    const xs = lab.client();
    await lab.run(
      (async () => {
        await assert.rejects(xs.read('nope//x'), {
          code: 'EINVAL',
          message: /READ nope\/\/x: it is no path: names of /,
        });
        await assert.rejects(xs.watch('bad path'), {
          code: 'EINVAL',
          message: /WATCH bad path: it is no path/,
        });
        await assert.rejects(xs.rm('/'), { code: 'EINVAL', message: /RM \/: malformed, or not possible/ });
      })(),
    );
  });

  test('a domain speaks over its ring, with relative paths', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const { client } = lab.domain(5);
    await lab.run(
      (async () => {
        await admin.write('/local/domain/5/name', 'guest');
        await admin.setPerms('/local/domain/5', ['n5']);
        await admin.setPerms('/local/domain/5/name', ['n0', 'r5']);
        assert.equal(await client.read('name'), 'guest');
        await client.write('data/x', 'y'.repeat(2000));
        assert.equal((await client.read('data/x')).length, 2000);
        assert.deepEqual(await admin.getPerms('/local/domain/5/data/x'), ['n5']);
        await assert.rejects(client.write('name', 'me'), { code: 'EACCES' });
        await assert.rejects(client.read('/tool/xenstored'), { code: 'EACCES' });
        await assert.rejects(client.read('/tool/nothing'), { code: 'EACCES' });
        assert.equal(await client.getDomainPath(7), '/local/domain/7');
        assert.equal(await client.isDomainIntroduced(5), true);
        assert.deepEqual(lab.server.store.check(), []);
      })(),
    );
  });

  test('watches: the first event at once, relative paths stay relative, removal of an ancestor', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const { client } = lab.domain(5);
    const seen: string[] = [];
    client.onWatchEvent = (path, token) => seen.push(`${path} ${token}`);
    await lab.run(
      (async () => {
        await admin.write('/local/domain/5/device/vif/0/state', '1');
        await admin.setPerms('/local/domain/5/device', ['n5']);
        await admin.setPerms('/local/domain/5/device/vif', ['n5']);
        await admin.setPerms('/local/domain/5/device/vif/0', ['n5']);
        await admin.setPerms('/local/domain/5/device/vif/0/state', ['n5']);
        await client.watchRaw('device', 't');
        await client.watchRaw('device/vif/0/state', 'u');
        await assert.rejects(client.watchRaw('device', 't'), { code: 'EEXIST' });
        await admin.write('/local/domain/5/device/vif/0/state', '2');
        await client.read('device');
        assert.deepEqual(seen.splice(0), [
          'device t',
          'device/vif/0/state u',
          'device/vif/0/state t',
          'device/vif/0/state u',
        ]);
        await admin.rm('/local/domain/5/device/vif');
        await client.read('device');
        assert.deepEqual(seen.splice(0), ['device/vif t', 'device/vif/0/state u']);
        await client.unwatchRaw('device', 't');
        await assert.rejects(client.unwatchRaw('device', 't'), { code: 'ENOENT' });
      })(),
    );
  });

  test('transactions: a snapshot, all or nothing, conflicts path by path', async () => {
    const lab = new Lab();
    const a = lab.client();
    const b = lab.client();
    await lab.run(
      (async () => {
        await a.write('/d/x', '1');
        const t = await a.begin();
        assert.equal(await t.read('/d/x'), '1');
        await b.write('/d/y', '2');
        assert.deepEqual(await t.exists('/d/y'), false);
        await t.write('/d/z', '3');
        await assert.rejects(a.read('/d/z'), { code: 'ENOENT' });
        await assert.rejects(t.commit(), { code: 'EAGAIN' });
        const u = await a.begin();
        await u.write('/d/z', '3');
        await b.write('/d/w', '4');
        await u.commit();
        assert.deepEqual(await a.directory('/d'), ['x', 'y', 'w', 'z']);
        const [v, w] = [await a.begin(), await b.begin()];
        await v.write('/dev/vif/1/0/state', '1');
        await w.write('/dev/vif/2/0/state', '1');
        await v.commit();
        await w.commit();
        assert.deepEqual(await a.directory('/dev/vif'), ['1', '2']);
        assert.equal(lab.server.store.openTransactions, 0);
        assert.deepEqual(lab.server.store.check(), []);
      })(),
    );
  });

  test('what is given up before its answer leaves no watch and no transaction behind', async () => {
    const lab = new Lab();
    const { client } = lab.domain(5);
    const { usage } = lab.server.store.domains.get(5)!;
    const givenUp = { name: 'AbortError' };
    const abort = new AbortController();
    // More than there may be at a time, for the client and for xenstored.
    const begun = Array.from({ length: 12 }, () => client.begin({ signal: abort.signal }));
    const watched = Array.from({ length: 3 }, () => client.watch('x', { signal: abort.signal }));
    const refused = client.watch('/a//b', { signal: abort.signal });
    abort.abort();
    for (const request of [...begun, ...watched, refused]) await assert.rejects(request, givenUp);
    const next = await lab.run(Promise.all(Array.from({ length: 8 }, () => client.begin())));
    for (const t of next) await lab.run(t.abort());
    assert.equal(usage.transactions, 0);
    assert.equal(usage.watches, 0);
  });

  test('there are no quotas but those that have names', async () => {
    const lab = new Lab();
    const admin = lab.client();
    for (const name of ['toString', '__proto__', 'none']) {
      await assert.rejects(lab.run(admin.getQuota(name)), { code: 'EINVAL' });
      await assert.rejects(lab.run(admin.setQuota(name, 1)), { code: 'EINVAL' });
      await assert.rejects(lab.run(admin.control('quota', 'set', name, '1')), { code: 'EINVAL' });
    }
  });

  test('features and quotas are those of a domain that there is', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const { client } = lab.domain(5);
    lab.createDomain(6);
    assert.deepEqual(await lab.run(admin.quotaNames()), QUOTA_NAMES);
    await lab.run(admin.setQuota('watches', 3, 6));
    assert.equal(await lab.run(admin.getQuota('watches', 6)), 3);
    assert.equal(await lab.run(admin.getQuota('watches', 5)), 128);
    await lab.run(admin.setFeature(6, 1));
    assert.equal(await lab.run(admin.getFeature(6)), 1);
    assert.equal(await lab.run(client.getFeature()), 7);
    await assert.rejects(lab.run(client.getFeature(5)), { code: 'EACCES' });
    await assert.rejects(lab.run(admin.setFeature(6, 8)), { code: 'EINVAL' });
    await assert.rejects(lab.run(admin.setFeature(5, 1)), { code: 'EBUSY' });
    for (const [domid, error] of [
      [7, 'ENOENT'],
      [-1, 'EINVAL'],
      [70000, 'EINVAL'],
    ] as const) {
      await assert.rejects(lab.run(admin.getFeature(domid)), { code: error });
      await assert.rejects(lab.run(admin.setFeature(domid, 1)), { code: error });
      await assert.rejects(lab.run(admin.getQuota('nodes', domid)), { code: error });
      await assert.rejects(lab.run(admin.setQuota('nodes', 1, domid)), { code: error });
    }
  });

  test('a log of requests has a line for each, whatever they hold', async () => {
    const lab = new Lab();
    const { guest } = lab.domain(5);
    await lab.run(lab.client().control('log', 'on'));
    const before = lab.log.length;
    const raw = new RawClient(guest.stream());
    raw.send(XS.READ, '\u001b[2J\nconnection 7\0');
    raw.send(XS.READ, 'x\0');
    raw.send(99, '');
    await lab.scheduler.runFor(10);
    assert.deepEqual(
      lab.log.slice(before).map(line => line.replace(/^\d+ /, '')),
      ['(domain 5) READ ?[2J?connection 7 EINVAL', '(domain 5) READ x EACCES', '(domain 5) type 99  ENOSYS'],
    );
  });

  test('introduce, release and the special watches', async () => {
    const lab = new Lab();
    const admin = lab.client();
    const seen: string[] = [];
    admin.onWatchEvent = (path, token) => seen.push(`${path} ${token}`);
    const guest = lab.createDomain(7);
    await lab.run(
      (async () => {
        await admin.watchRaw('@introduceDomain', 'i');
        await admin.watchRaw('@releaseDomain', 'r');
        await admin.introduce(7, 1, 1);
        await assert.rejects(admin.introduce(8, 1, 1), { code: 'ENOENT' });
        assert.equal(await admin.isDomainIntroduced(7), true);
        await admin.release(7);
        await assert.rejects(admin.release(7), { code: 'ENOENT' });
        assert.equal(await admin.isDomainIntroduced(7), false);
      })(),
    );
    assert.deepEqual(seen, [
      '@introduceDomain i',
      '@releaseDomain r',
      '@introduceDomain i',
      '@releaseDomain r',
    ]);
    assert.equal(guest.mapped, 0);
  });
});
