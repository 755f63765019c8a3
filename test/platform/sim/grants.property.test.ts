import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import * as abi from '../../../src/abi/index.js';
import {
  COPY_LOCAL,
  CopyBatch,
  GrantError,
  type GrantMapping,
  PAGE_SIZE,
} from '../../../src/platform/index.js';
import type { Domain } from '../../../src/platform/sim/index.js';
import { makeHost } from './host.js';

const { GNTST } = abi;
const DOMAINS = 4;
const MAX_MAPPINGS = 3;

/** What the model knows of a page: who has it, what its first byte is, how often it is mapped. */
interface Page {
  readonly page: number;
  owner: ModelDomain | null;
  value: number;
  mappings: number;
}

interface Grant {
  readonly gref: number;
  readonly granter: ModelDomain;
  readonly to: number;
  readonly page: Page;
  readonly readonly: boolean;
  readers: number;
  writers: number;
  ended: boolean;
}

interface Mapping {
  readonly by: ModelDomain;
  readonly grant: Grant;
  readonly readonly: boolean;
  readonly mapping: GrantMapping;
}

interface ModelDomain {
  readonly domain: Domain;
  readonly pages: Page[];
  readonly grants: Grant[];
  alive: boolean;
}

const pick = <T>(list: readonly T[], n: number): T | undefined => list[n % Math.max(1, list.length)];

/** Random operations on a real hypervisor and on a model of it, which must agree after each. */
class World {
  readonly host = makeHost();
  readonly hypervisor = this.host.hypervisor;
  readonly initial = this.hypervisor.freePages;
  domains: ModelDomain[] = [];
  mappings: Mapping[] = [];
  /** Frames that the hypervisor keeps for domains. */
  private next = 1;

  constructor(private readonly version: 1 | 2) {
    for (let i = 0; i < DOMAINS; i++) this.create();
  }

  create(): void {
    if (this.domains.filter(domain => domain.alive).length >= DOMAINS) return;
    const domain = this.hypervisor.createDomain({
      grantVersion: this.version,
      limits: { maxMappings: MAX_MAPPINGS },
    });
    this.domains.push({ domain, pages: [], grants: [], alive: true });
  }

  private alive(n: number): ModelDomain | undefined {
    return pick(
      this.domains.filter(domain => domain.alive),
      n,
    );
  }

  step(op: number, a: number, b: number, c: number): void {
    const domain = this.alive(a);
    if (op === 8) this.create();
    else if (domain === undefined) return;
    else if (op === 0) this.allocPage(domain);
    else if (op === 1) this.freePage(domain, b);
    else if (op === 2) this.grant(domain, b, c);
    else if (op === 3) this.end(domain, b);
    else if (op === 4) this.map(domain, b, c);
    else if (op === 5) this.unmap(b);
    else if (op === 6) this.copy(domain, b, c);
    else if (op === 7 && c % 3 === 0) this.destroy(domain);
    this.check();
  }

  private allocPage(domain: ModelDomain): void {
    const page = domain.domain.platform.memory.allocPage();
    assert.equal(this.hypervisor.memory.u8[page * PAGE_SIZE], 0, 'a page starts as zeros');
    const value = this.next++ & 0xff;
    this.hypervisor.memory.u8[page * PAGE_SIZE] = value;
    domain.pages.push({ page, owner: domain, value, mappings: 0 });
  }

  private freePage(domain: ModelDomain, n: number): void {
    const page = pick(domain.pages, n);
    if (!page) return;
    domain.domain.platform.memory.freePage(page.page);
    domain.pages.splice(domain.pages.indexOf(page), 1);
    page.owner = null;
  }

  private grant(domain: ModelDomain, n: number, c: number): void {
    const page = pick(domain.pages, n);
    const peer = this.alive(c);
    if (!page || !peer) return;
    const readonly = n % 2 === 0;
    const to = peer.domain.domid;
    const gref = domain.domain.platform.grants.grantAccess(to, page.page, readonly);
    domain.grants.push({ gref, granter: domain, to, page, readonly, readers: 0, writers: 0, ended: false });
  }

  private end(domain: ModelDomain, n: number): void {
    const grant = pick(domain.grants, n);
    if (!grant) return;
    const used = grant.readers + grant.writers > 0;
    assert.equal(domain.domain.platform.grants.endAccess(grant.gref), !used);
    // A version 2 entry is revoked at once, even when the reference cannot be reused yet.
    if (used && this.version === 2) grant.ended = true;
    if (!used) domain.grants.splice(domain.grants.indexOf(grant), 1);
  }

  /** What Xen says of using a grant. */
  private verdict(grant: Grant, by: ModelDomain, write: boolean): number {
    if (!grant.granter.alive) return GNTST.bad_domain;
    if (grant.to !== by.domain.domid || grant.ended) return GNTST.general_error;
    if (write && grant.readonly) return GNTST.general_error;
    return GNTST.okay;
  }

  private map(by: ModelDomain, n: number, c: number): void {
    const grant = pick(
      this.domains.flatMap(domain => domain.grants),
      n,
    );
    if (!grant) return;
    const readonly = c % 2 === 0;
    let expected = this.verdict(grant, by, !readonly);
    // The page may have been freed and its number in the domain reused: then any page of the granter is shown.
    if (expected === GNTST.okay && grant.page.owner !== grant.granter) return;
    const used = this.mappings.filter(mapping => mapping.by === by).length;
    if (expected === GNTST.okay && used === MAX_MAPPINGS) expected = GNTST.no_device_space;
    const { grants } = by.domain.platform;
    if (expected !== GNTST.okay) {
      assert.throws(
        () => grants.map(grant.granter.domain.domid, grant.gref, readonly),
        (error: unknown) => error instanceof GrantError && error.status === expected,
      );
      return;
    }
    const mapping = grants.map(grant.granter.domain.domid, grant.gref, readonly);
    assert.equal(mapping.address, grant.page.page * PAGE_SIZE);
    if (readonly) grant.readers++;
    else grant.writers++;
    grant.page.mappings++;
    this.mappings.push({ by, grant, readonly, mapping });
  }

  private forget(mapping: Mapping): void {
    this.mappings.splice(this.mappings.indexOf(mapping), 1);
    if (mapping.readonly) mapping.grant.readers--;
    else mapping.grant.writers--;
    mapping.grant.page.mappings--;
  }

  private unmap(n: number): void {
    const mapping = pick(this.mappings, n);
    if (!mapping) return;
    mapping.by.domain.platform.grants.unmap(mapping.mapping);
    this.forget(mapping);
  }

  private copy(by: ModelDomain, b: number, c: number): void {
    const grants = this.domains.flatMap(domain => domain.grants);
    const side = (n: number, write: boolean) => {
      const grant = n % 4 === 0 ? undefined : pick(grants, n);
      if (grant) {
        const status = this.verdict(grant, by, write);
        const stale = status === GNTST.okay && grant.page.owner !== grant.granter;
        return { domid: grant.granter.domain.domid, ref: grant.gref, page: grant.page, status, stale };
      }
      const page = pick(by.pages, n);
      return page && { domid: COPY_LOCAL, ref: page.page, page, status: GNTST.okay, stale: false };
    };
    const source = side(b, false);
    const dest = side(c, true);
    if (!source || !dest || source.stale || dest.stale) return;
    const batch = new CopyBatch(1);
    batch.add(source.domid, source.ref, 0, dest.domid, dest.ref, 0, 1);
    by.domain.platform.grants.copy(batch);
    const expected = source.status !== GNTST.okay ? source.status : dest.status;
    assert.equal(batch.status(0), expected);
    if (expected === GNTST.okay) dest.page.value = source.page.value;
  }

  destroy(domain: ModelDomain): void {
    for (const mapping of this.mappings.filter(({ by }) => by === domain)) this.forget(mapping);
    domain.domain.destroy();
    domain.alive = false;
    for (const page of domain.pages) page.owner = null;
  }

  check(): void {
    const { hypervisor } = this;
    const { u8, u16, i32 } = hypervisor.memory;
    // The leaf of the directory of domains.
    let inUse = 1;
    const mapped = new Map<Domain, number>();
    const heldPages = new Set<Page>();
    for (const { grant } of this.mappings) {
      mapped.set(grant.granter.domain, (mapped.get(grant.granter.domain) ?? 0) + 1);
      if (grant.page.owner === null) heldPages.add(grant.page);
    }
    for (const { domain, alive, pages, grants } of this.domains) {
      const held = mapped.get(domain) ?? 0;
      assert.equal(domain.mappedByOthers, held);
      assert.equal(domain.state, alive ? 'running' : held > 0 ? 'dying' : 'dead');
      // Each frame of the table has one with pins.
      const tables = 2 * domain.grantTable.frames.length + domain.grantTable.statusFrames.length;
      // Its shared info, its record, and the two levels of its physmap.
      inUse += tables + (domain.state === 'dead' ? 0 : 4);
      if (domain.state === 'dead') continue;
      if (alive) {
        inUse += 2;
        assert.equal(domain.platform.memory.allocated, pages.length);
        assert.equal(domain.platform.grants.allocated, grants.length);
        assert.equal(domain.maptrack.used, this.mappings.filter(({ by }) => by.domain === domain).length);
        for (const page of pages) {
          inUse++;
          assert.equal(u8[page.page * PAGE_SIZE], page.value);
        }
      }
      for (const { gref, readers, writers } of grants) {
        const at = domain.grantTable.entryWord(gref);
        const flags = this.version === 1 ? i32[at] : u16[domain.grantTable.statusHalfword(gref)];
        assert.equal((flags & abi.GTF_writing) !== 0, writers > 0);
        assert.equal((flags & abi.GTF_reading) !== 0, writers + readers > 0);
      }
    }
    assert.equal(hypervisor.freePages, this.initial - inUse - heldPages.size, 'every frame is accounted for');
  }

  finish(): void {
    for (const domain of this.domains) if (domain.alive) this.destroy(domain);
    for (const mapping of [...this.mappings]) this.unmap(this.mappings.indexOf(mapping));
    this.check();
    assert.equal(this.hypervisor.freePages, this.initial - 1, 'the directory keeps its leaf');
    assert.deepEqual(this.hypervisor.domains, []);
    assert.deepEqual(this.hypervisor.dyingDomains, []);
  }
}

const number = fc.nat(1000);
const operation = fc.tuple(
  fc.oneof(
    { weight: 3, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.constant(1) },
    { weight: 5, arbitrary: fc.constant(2) },
    { weight: 2, arbitrary: fc.constant(3) },
    { weight: 5, arbitrary: fc.constant(4) },
    { weight: 2, arbitrary: fc.constant(5) },
    { weight: 5, arbitrary: fc.constant(6) },
    { weight: 1, arbitrary: fc.constant(7) },
    { weight: 1, arbitrary: fc.constant(8) },
  ),
  number,
  number,
  number,
);

for (const version of [1, 2] as const) {
  test(`any sequence of grant operations agrees with a model (v${version})`, () => {
    fc.assert(
      fc.property(fc.array(operation, { minLength: 20, maxLength: 150 }), operations => {
        const world = new World(version);
        for (const [op, a, b, c] of operations) world.step(op, a, b, c);
        world.finish();
      }),
      { numRuns: 60 },
    );
  });
}
