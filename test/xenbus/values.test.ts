import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { formatXenbusTrace, integer, joinPath, shorten, text, unsigned } from '../../src/xenbus/index.js';
import { scene } from './scene.js';

describe('values', () => {
  test('unsigned takes decimal numbers below 2^32, and nothing that %u would wrap or cut', () => {
    fc.assert(fc.property(fc.integer({ min: 0, max: 0xffff_ffff }), n => unsigned(String(n)) === n));
    for (const bad of [
      '',
      '-1',
      '+1',
      ' 1',
      '1 ',
      '1x',
      '0x10',
      '4294967296',
      '99999999999',
      '1\n',
      '1e3',
      '١',
    ]) {
      assert.equal(unsigned(bad), undefined, JSON.stringify(bad));
    }
    assert.equal(unsigned('0000000007'), 7);
  });

  test('integer takes decimal numbers of 32 bits', () => {
    fc.assert(fc.property(fc.integer(), n => integer(String(n)) === n));
    for (const bad of ['', '-', '2147483648', '-2147483649', '--1', '1.0'])
      assert.equal(integer(bad), undefined);
  });

  test('no text throws', () => {
    fc.assert(
      fc.property(fc.string(), s => {
        const [u, i] = [unsigned(s), integer(s)];
        return (
          (u === undefined || (u >= 0 && u <= 0xffff_ffff)) &&
          (i === undefined || (i | 0) === i) &&
          text(s) === s
        );
      }),
    );
  });

  test('what a peer has written reaches no terminal as it is', () => {
    const value = '\u001b[2J\n\u009b1m é';
    const line = formatXenbusTrace({ kind: 'read', domid: 0, path: '/x', value });
    assert.equal(line, 'd0 read /x = ?[2J??1m ?');
    assert.equal(shorten(value + '0'.repeat(100)), `?[2J??1m ?${'0'.repeat(54)}…`);
  });

  test('a path is its directory when the name is empty', () => {
    assert.equal(joinPath('a/b', 'c'), 'a/b/c');
    assert.equal(joinPath('a/b', ''), 'a/b');
  });

  test('gather is all or nothing, scanf says ERANGE, readUnsigned has a default', async () => {
    const s = await scene(1);
    const { host, domU } = s;
    const { xs } = domU.xenbus;
    await host.run(domU.xenbus.registerFrontend(s.front));
    await host.plug(s.vdev);
    await host.until(() => domU.xenbus.devices.length === 1);
    const [device] = domU.xenbus.devices;
    await host.run(
      Promise.all([xs.write('data/n', 5), xs.write('data/bad', 'five'), xs.write('data/t', 'text')]),
    );
    assert.deepEqual(await host.run(device.gather('data', { n: unsigned, t: text })), { n: 5, t: 'text' });
    await assert.rejects(host.run(device.gather('data', { n: unsigned, none: unsigned })), {
      code: 'ENOENT',
    });
    await assert.rejects(host.run(device.gather('data', { bad: unsigned, n: unsigned })), {
      code: 'EINVAL',
      message: /data\/bad is "five"/,
    });
    await assert.rejects(host.run(device.scanf('data', 'bad', unsigned)), { code: 'ERANGE' });
    assert.equal(await host.run(device.readUnsigned('data', 'n', 9)), 5);
    for (const node of ['bad', 'none']) assert.equal(await host.run(device.readUnsigned('data', node, 9)), 9);
    assert.equal(await host.run(device.readUnsigned('/local/domain/0/secret', 'x', 9)), 9);
    await host.run(device.printf('data', 'p', 12));
    assert.equal(await host.read('/local/domain/1/data/p'), '12');
    assert.deepEqual((await host.run(xs.directory('data'))).sort(), ['bad', 'n', 'p', 't']);
    await host.run(xs.rm('data/none'));
    assert.equal(await host.run(xs.exists('data/p')), true);
    assert.equal(await host.run(xs.exists('data/q')), false);
  });

  test('a transaction that loses runs again, and its trace appears once', async () => {
    const { host, domU } = await scene(1);
    const { xs } = domU.xenbus;
    let runs = 0;
    domU.trace.length = 0;
    await host.run(
      xs.transaction(async t => {
        const n = Number((await t.readOptional('data/n')) ?? 0);
        if (runs++ === 0) await xs.write('data/n', 10);
        await t.write('data/n', n + 1);
      }),
    );
    assert.equal(runs, 2);
    assert.equal(await host.read('/local/domain/1/data/n'), '11');
    const writes = domU.trace.flatMap(event => (event.kind === 'write' ? [event.value] : []));
    assert.deepEqual(writes, ['10', '11']);
  });
});
