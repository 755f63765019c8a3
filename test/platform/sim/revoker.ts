import { workerData } from 'node:worker_threads';
import { GTF_permit_access, GTF_reading, GTF_writing } from '../../../src/abi/index.js';

/**
 * A kernel in a thread of its own, that grants a page and revokes it as Linux does, and looks whether the
 * page is written to while it is not granted.
 */
const { table, entry, status, ram, gfn, flags } = workerData as {
  table: SharedArrayBuffer;
  /** Index of the entry's first word in the table's memory. */
  entry: number;
  /** Index of the entry's status as a u16; -1 in version 1. */
  status: number;
  ram: SharedArrayBuffer;
  gfn: number;
  /** [0] rounds done, [1] writes after a revocation, [2] times that revoking had to wait, [3] stop. */
  flags: SharedArrayBuffer;
};
const words = new Int32Array(table);
const statuses = new Uint16Array(table);
const PINNED = GTF_reading | GTF_writing;
const page = new Int32Array(ram, gfn * 4096, 1024);
const result = new Int32Array(flags);
const MINE = 0x5a5a5a5a;

for (let round = 0; Atomics.load(result, 3) === 0; round++) {
  words[entry + (status < 0 ? 1 : 2)] = gfn;
  Atomics.store(words, entry, GTF_permit_access);
  for (let i = 0; i < round % 200; i++) Atomics.load(page, 0);
  while (!revoke()) Atomics.add(result, 2, 1);
  page.fill(MINE);
  for (let i = 0; i < 50; i++) {
    if (Atomics.load(page, (i * 37) & 1023) !== MINE) Atomics.add(result, 1, 1);
  }
  Atomics.add(result, 0, 1);
}

function revoke(): boolean {
  if (status < 0) {
    const word = Atomics.load(words, entry);
    return (word & PINNED) === 0 && Atomics.compareExchange(words, entry, word, 0) === word;
  }
  Atomics.store(words, entry, 0);
  return (Atomics.load(statuses, status) & PINNED) === 0;
}
