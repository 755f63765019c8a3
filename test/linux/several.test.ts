import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { domain, NO_LINUX, sh, startHost } from '../support/linux.js';

describe('several Linux guests', { skip: NO_LINUX }, () => {
  test('run in threads of their own, on one bridge, and reach each other at the same time', async t => {
    const host = await startHost(t);
    const { grants, events } = host.dom0.platform;
    const before = [grants.mapped, events.allocated];
    const names = ['first', 'second', 'third'];
    const guests = await Promise.all(
      names.map((name, i) => host.create(domain(name, 'guest = "linux"', `vif = ['ip=10.0.0.${i + 1}']`))),
    );
    for (const guest of guests) assert.deepEqual(await host.settled(guest), []);
    const sums = await Promise.all(
      guests.map(async (guest, i) => {
        await sh(guest, `dd if=/dev/urandom of=/www/file bs=64k count=${4 + i} 2>/dev/null; httpd -h /www`);
        return sh(guest, 'sha256sum < /www/file');
      }),
    );
    // Each from the next one, all at once.
    const fetched = guests.map((guest, i) =>
      sh(guest, `wget -q -O - http://10.0.0.${((i + 1) % 3) + 1}/file | sha256sum`),
    );
    assert.deepEqual(await Promise.all(fetched), [sums[1], sums[2], sums[0]]);
    await host.destroy(guests[0]);
    assert.match(await sh(guests[1], 'ping -c 2 -i 0.1 10.0.0.3'), / 0% packet loss/);
    for (const guest of guests.slice(1)) await host.destroy(guest);
    assert.deepEqual([grants.mapped, events.allocated], before);
    assert.deepEqual(host.hypervisor.dyingDomains, []);
  });
});
