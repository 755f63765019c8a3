import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Kernel } from '../../src/kernel/index.js';
import { Host } from '../support/host.js';

test('a kernel that was shut down waits for no grant any more, and has let go of its xenbus', async () => {
  const host = await Host.boot(81);
  const { kernel, platform, domid } = await host.createGuest('a');
  const { reclaimer, xenbus, irqs } = kernel;
  const page = platform.memory.allocPage();
  const gref = platform.grants.grantAccess(0, page, false);
  const mapping = host.dom0.platform.grants.map(domid, gref, false);
  reclaimer.end(gref, page);
  assert.equal(reclaimer.pending, 1);
  assert.ok(irqs.counts.length > 0);
  await host.run(kernel.shutdown());
  assert.equal(reclaimer.pending, 0);
  assert.deepEqual([xenbus.frontend.drivers.length, irqs.counts.map(({ name }) => name)], [0, []]);
  host.dom0.platform.grants.unmap(mapping);
});

test('a stack holds data in as many pages as its kernel is given', async () => {
  const host = await Host.boot(82);
  const { platform } = await host.bootDomain({ name: 'a' });
  const { net } = new Kernel(platform, { name: 'a', pageLimit: 5 });
  const pages = Array.from({ length: 6 }, () => net.pages.alloc());
  assert.deepEqual(pages, [0, 1, 2, 3, 4, -1]);
});
