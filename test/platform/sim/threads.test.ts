import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { GNTST } from '../../../src/abi/index.js';
import { COPY_LOCAL, CopyBatch, Memory, PAGE_SIZE } from '../../../src/platform/index.js';
import { makeHost } from './host.js';

for (const grantVersion of [1, 2] as const) {
  const name = `a kernel in another thread may reuse a page whose v${grantVersion} grant it revoked: no copy writes to it`;
  test(name, { timeout: 60_000 }, async () => {
    const { hypervisor } = makeHost();
    const dom0 = hypervisor.createDomain();
    const ram = new Memory(new SharedArrayBuffer(4 * PAGE_SIZE));
    const guest = hypervisor.createDomain({ grantVersion, bank: { memory: ram, pages: 4, threaded: true } });
    const gref = 20;
    const flags = new Int32Array(new SharedArrayBuffer(16));
    const worker = new Worker(new URL('./revoker.js', import.meta.url), {
      workerData: {
        table: hypervisor.memory.buffer,
        entry: guest.grantTable.entryWord(gref),
        status: grantVersion === 1 ? -1 : guest.grantTable.statusHalfword(gref),
        ram: ram.buffer,
        gfn: 2,
        flags: flags.buffer,
      },
    });
    const exited = new Promise<number>((resolve, reject) => {
      worker.on('error', reject);
      worker.on('exit', resolve);
    });
    const batch = new CopyBatch(8);
    const local = dom0.platform.memory.allocPage();
    const seen = new Map<number, number>([
      [GNTST.okay, 0],
      [GNTST.general_error, 0],
    ]);
    // However the threads are scheduled: until enough copies met the grant, and enough did not.
    while (Math.min(seen.get(GNTST.okay)!, seen.get(GNTST.general_error)!) < 2000) {
      for (let burst = 0; burst < 50; burst++) {
        batch.clear();
        for (let i = 0; i < 8; i++) batch.add(COPY_LOCAL, local, 0, guest.domid, gref, 0, PAGE_SIZE);
        dom0.platform.grants.copy(batch);
        for (let i = 0; i < 8; i++) seen.set(batch.status(i), (seen.get(batch.status(i)) ?? 0) + 1);
      }
      await new Promise(setImmediate);
    }
    Atomics.store(flags, 3, 1);
    assert.equal(await exited, 0);
    assert.equal(flags[1], 0, 'bytes that changed while the page was not granted');
    assert.equal(seen.size, 2, 'each copy was done, or refused because the entry did not grant');
    assert.equal(guest.grantTable.pinned, 0);
  });
}
