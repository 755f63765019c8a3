// Nanoseconds per grant copy, grant and event: node dist/bench/micro/grant-copy.js
import { Irqs } from '../../src/events/index.js';
import { COPY_LOCAL, CopyBatch, Memory } from '../../src/platform/index.js';
import { EventLoopScheduler, Hypervisor } from '../../src/platform/sim/index.js';

const scheduler = new EventLoopScheduler({
  setImmediate,
  setTimeout,
  clearTimeout,
  now: () => performance.now(),
});
const hypervisor = new Hypervisor({ scheduler, memoryBytes: 64 << 20 });
const dom0 = hypervisor.createDomain();
const a = hypervisor.createDomain();
const b = hypervisor.createDomain();
const v2 = hypervisor.createDomain({ grantVersion: 2 });

/** A guest like an emulated PC, whose kernel runs in another thread. */
const threaded = hypervisor.createDomain({
  wordBits: 32,
  bank: { memory: new Memory(new SharedArrayBuffer(300 * 4096)), pages: 300, threaded: true },
});

const PAGES = 256;
const BATCH = 64;

/** The median of several runs, in ns for each of `count` operations of a run. */
function measure(count: number, run: () => void): number {
  const results: number[] = [];
  for (let i = 0; i < 15; i++) {
    const start = performance.now();
    run();
    results.push(((performance.now() - start) * 1e6) / count);
  }
  return results.slice(5).sort((x, y) => x - y)[5];
}

function grants(domain: typeof a, readonly: boolean): number[] {
  const { memory, grants } = domain.platform;
  return Array.from({ length: PAGES }, () => grants.grantAccess(0, memory.allocPage(), readonly));
}

const fromA = grants(a, true);
const toB = grants(b, false);
const fromV2 = grants(v2, true);
const ofThreaded = Array.from({ length: PAGES }, (_, i) => {
  const at = threaded.grantTable.entryWord(i + 8);
  hypervisor.memory.i32[at + 1] = i;
  hypervisor.memory.i32[at] = 1;
  return i + 8;
});
const local = Array.from({ length: PAGES }, () => dom0.platform.memory.allocPage());
const batch = new CopyBatch(BATCH);
const COPIES = 200_000;

type Side = readonly [domid: number, refs: readonly number[]];

function copies(source: Side, dest: Side, length: number): number {
  let at = 0;
  return measure(COPIES, () => {
    for (let done = 0; done < COPIES; done += BATCH) {
      batch.clear();
      for (let i = 0; i < BATCH; i++) {
        batch.add(source[0], source[1][at & 255], 0, dest[0], dest[1][at & 255], 0, length);
        at++;
      }
      dom0.platform.grants.copy(batch);
    }
  });
}

const rows: [string, Side, Side][] = [
  ['grant to grant', [a.domid, fromA], [b.domid, toB]],
  ['grant to local', [a.domid, fromA], [COPY_LOCAL, local]],
  ['local to grant', [COPY_LOCAL, local], [b.domid, toB]],
  ['v2 grant to grant', [v2.domid, fromV2], [b.domid, toB]],
  ['grant to other thread', [a.domid, fromA], [threaded.domid, ofThreaded]],
  ['within another thread', [threaded.domid, ofThreaded], [threaded.domid, ofThreaded]],
];
console.log('ns per copy (batches of 64)        64 B    1500 B    4096 B');
for (const [name, source, dest] of rows) {
  const figures = [64, 1500, 4096].map(length => copies(source, dest, length).toFixed(1).padStart(10));
  console.log(`${name.padEnd(28)}${figures.join('')}`);
}
const plain = [64, 1500, 4096].map(length => {
  const { memory } = hypervisor;
  let at = 0;
  const ns = measure(COPIES, () => {
    for (let i = 0; i < COPIES; i++) {
      memory.copy(local[at & 255] * 4096, local[(at + 7) & 255] * 4096, length);
      at++;
    }
  });
  return ns.toFixed(1).padStart(10);
});
console.log(`${'memory.copy alone'.padEnd(28)}${plain.join('')}`);

const { grants: table, memory } = a.platform;
const page = memory.allocPage();
const gref = table.alloc();
const pair = measure(COPIES, () => {
  for (let i = 0; i < COPIES; i++) {
    table.grant(gref, 0, page, false);
    table.end(gref);
  }
});
console.log(`\ngrant and end of one reference   ${pair.toFixed(1)} ns`);
const cycle = measure(COPIES, () => {
  for (let i = 0; i < COPIES; i++) table.endAccess(table.grantAccess(0, page, false));
});
console.log(`grantAccess and endAccess        ${cycle.toFixed(1)} ns`);
const map = measure(COPIES, () => {
  for (let i = 0; i < COPIES; i++)
    dom0.platform.grants.unmap(dom0.platform.grants.map(a.domid, fromA[i & 255], true));
});
console.log(`map and unmap                    ${map.toFixed(1)} ns`);
const port = a.platform.events.allocUnbound(0);
const sender = dom0.platform.events.bindInterdomain(a.domid, port);
const send = measure(COPIES, () => {
  for (let i = 0; i < COPIES; i++) {
    dom0.platform.events.notify(sender);
    a.clearPending(port);
  }
});
console.log(`event sent, and cleared          ${send.toFixed(1)} ns`);

let handled = 0;
const irqs = new Irqs(b.platform);
const listening = irqs.bindListeningPortToIrqhandler(0, () => handled++, 'bench');
const toListening = dom0.platform.events.bindInterdomain(b.domid, listening.port);
const delivered = measure(COPIES, () => {
  for (let i = 0; i < COPIES; i++) {
    dom0.platform.events.notify(toListening);
    scheduler.drain();
  }
});
console.log(`event sent, upcall and handler   ${delivered.toFixed(1)} ns`);
if (handled < COPIES) throw new Error('events were lost');
