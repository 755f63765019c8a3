import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { COPY_LOCAL, CopyBatch, PAGE_SHIFT, PAGE_SIZE } from '../../../src/platform/index.js';
import { type Domain, Hypervisor, SeededScheduler } from '../../../src/platform/sim/index.js';

/** A page that copies name, and what a model has in it. */
interface Page {
  domid: number;
  ref: number;
  address: number;
  readable: boolean;
  writable: boolean;
  bytes: Uint8Array;
}

/** Grants of every kind that a copy is made with: checked by plain reads, pinned, and of version 2; and pages of the caller. */
class World {
  readonly pages: Page[] = [];
  private readonly hypervisor: Hypervisor;
  private readonly caller: Domain;

  constructor() {
    const scheduler = new SeededScheduler(1, { yieldToMicrotasks: () => Promise.resolve() });
    this.hypervisor = new Hypervisor({ scheduler, random: scheduler.random, memoryBytes: 8 << 20 });
    this.caller = this.hypervisor.createDomain({ privileged: true });
    const plain = this.hypervisor.createDomain();
    const pinned = this.hypervisor.createDomain();
    const v2 = this.hypervisor.createDomain({ grantVersion: 2 });
    for (let i = 0; i < 2; i++) this.local();
    for (const granter of [plain, pinned, v2]) {
      this.grant(granter, false);
      this.grant(granter, true);
    }
    pinned.grantTable.plainEntries = 0;
    this.add(plain.domid, 0xfffff, 0, false, false);
    this.add(77, 8, 0, false, false);
    this.add(COPY_LOCAL, plain.platform.memory.allocPage(), 0, false, false);
  }

  private add(domid: number, ref: number, page: number, readable: boolean, writable: boolean): void {
    const bytes = Uint8Array.from({ length: PAGE_SIZE }, (_, i) => (i * (2 * this.pages.length + 1)) & 0xff);
    const address = page << PAGE_SHIFT;
    if (readable) this.hypervisor.memory.u8.set(bytes, address);
    this.pages.push({ domid, ref, address, readable, writable, bytes });
  }

  private local(): void {
    const page = this.caller.platform.memory.allocPage();
    this.add(COPY_LOCAL, page, page, true, true);
  }

  private grant({ platform, domid }: Domain, readonly: boolean): void {
    const page = platform.memory.allocPage();
    const gref = platform.grants.grantAccess(this.caller.domid, page, readonly);
    this.add(domid, gref, page, true, !readonly);
  }

  copy(copies: readonly Copy[]): void {
    const batch = new CopyBatch(copies.length);
    const { pages } = this;
    for (const { from, at, to, begin, length } of copies) {
      const [source, dest] = [pages[from % pages.length], pages[to % pages.length]];
      batch.add(source.domid, source.ref, at, dest.domid, dest.ref, begin, length);
    }
    this.caller.platform.grants.copy(batch);
    for (const [i, { from, at, to, begin, length }] of copies.entries()) {
      const [source, dest] = [pages[from % pages.length], pages[to % pages.length]];
      const fits = at + length <= PAGE_SIZE && begin + length <= PAGE_SIZE;
      const done = length === 0 || (fits && source.readable && dest.writable);
      assert.equal(batch.status(i) === 0, done, `copy ${i}`);
      if (done && length > 0) dest.bytes.set(source.bytes.slice(at, at + length), begin);
    }
  }

  check(): void {
    const { u8 } = this.hypervisor.memory;
    for (const [i, { address, readable, bytes }] of this.pages.entries()) {
      if (readable)
        assert.ok(Buffer.from(bytes).equals(u8.subarray(address, address + PAGE_SIZE)), `page ${i}`);
    }
    for (const { grantTable } of this.hypervisor.domains) {
      for (let gref = 0; gref < grantTable.entries; gref++) assert.ok(!grantTable.isPinned(gref));
    }
  }
}

const offset = fc.oneof(fc.nat(PAGE_SIZE), fc.nat(64), fc.constantFrom(4080, 4095, 4096, 4097));
const copy = fc.record({
  from: fc.nat(100),
  at: offset,
  to: fc.nat(100),
  begin: offset,
  length: fc.oneof(fc.nat(40), fc.nat(PAGE_SIZE), fc.constantFrom(0, 15, 16, 17, 255, 256, 257, 4096, 4097)),
});
type Copy = typeof copy extends fc.Arbitrary<infer T> ? T : never;

test('copies of a batch move the bytes that they say, whatever kind their grants are, and the others none', () => {
  fc.assert(
    fc.property(fc.array(fc.array(copy, { minLength: 1, maxLength: 300 }), { maxLength: 3 }), batches => {
      const world = new World();
      for (const copies of batches) {
        world.copy(copies);
        world.check();
      }
    }),
    { numRuns: Number(process.env['COPY_RUNS'] ?? 60) },
  );
});
