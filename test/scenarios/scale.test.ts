import assert from 'node:assert/strict';
import { test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { Host } from '../support/host.js';

const GUESTS = 10;
const VIFS_EACH = 10;

test('100 vifs connect, take little memory, and then nothing happens for an hour: no timer, no task', async () => {
  const host = await Host.boot(601);
  const vifs: [Awaited<ReturnType<Host['createGuest']>>, number][] = [];
  for (let i = 0; i < GUESTS; i++) {
    const guest = await host.createGuest(`guest${i}`);
    for (let devid = 0; devid < VIFS_EACH; devid++) vifs.push([guest, devid]);
  }
  const free = host.hypervisor.freePages;
  for (const [guest, devid] of vifs) await host.addVif(guest, devid);
  for (const [guest, devid] of vifs) await host.hotplug(guest, devid);
  await host.until(() =>
    vifs.every(([guest, devid]) => host.states(guest, devid).every(state => state === XenbusState.Connected)),
  );
  await host.scheduler.runFor(5_000);
  const kib = ((free - host.hypervisor.freePages) * PAGE_SIZE) / 1024 / vifs.length;
  assert.ok(kib <= 160, `${kib} KiB of pages for a vif that is idle`);
  assert.ok(vifs.every(([guest]) => [...guest.kernel.net.devices].every(dev => dev.carrierOk)));
  const { steps } = host.scheduler;
  await host.scheduler.runFor(3_600_000);
  assert.equal(host.scheduler.steps - steps, 0, 'tasks and timers that ran');
  assert.ok(host.scheduler.idle, 'and none is to come');
});
