import assert from 'node:assert/strict';
import type { FrontRing } from '../../src/abi/ring.js';
import type { PeerOffloads } from '../../src/kernel/index.js';
import { DoubleFetchMemory, HostileBackend, HostileFrontend } from '../../src/mock/index.js';
import {
  NETIF_F_ALL_TSO,
  NETIF_F_CSUM_MASK,
  NETIF_F_GRO,
  NETIF_F_SG,
  type NetDevice,
  type Packet,
} from '../../src/net/index.js';
import {
  type FrontendFeatures,
  type NetbackFeature,
  type QueueConnection,
  Vif,
} from '../../src/netback/index.js';
import { Queue as FrontQueue, GrantedPool, QUEUE_LIMIT_MIN } from '../../src/netfront/index.js';
import type { DomainMemory, GrantMapping, Memory, Platform } from '../../src/platform/index.js';
import type { Domain, DomainLimits, DomainOptions } from '../../src/platform/sim/index.js';
import { buildFrame } from '../net/frames.js';
import { ALL_FEATURES, type DataPath, Dom, type Guest, tieGrants, withGrants } from './data-path.js';
import { bytesOf, packetFrom } from './packets.js';

/** Steps of the scheduler that any attack may cost at most before the host is quiet again. */
export const STEPS_MAX = 20_000;

/**
 * What must be as it was before: the host's view of every domain, and the backend's own books. Guests may
 * grant more pages as they go, up to their pools' bounds: those of `growing` do not count.
 */
export function holdings(path: DataPath, growing: readonly number[] = []): unknown {
  const { dom0, hypervisor } = path;
  return {
    packets: dom0.net.packets.used,
    pages: dom0.net.pages.used,
    reclaiming: dom0.reclaimer.pending,
    domains: hypervisor.domains.map(({ domid, platform }) => ({
      domid,
      grants: growing.includes(domid) ? 'any' : platform.grants.allocated,
      mapped: platform.grants.mapped,
      ports: platform.events.allocated,
    })),
  };
}

/** A frontend of ours to do evil with, on a vif of dom0's bridge. */
export class Attacker {
  readonly domain: Domain;
  readonly vif: Vif;
  /** Reasons that the vif was disabled for; at most one a connection. */
  readonly fatal: string[] = [];
  front!: HostileFrontend;
  /** One for each queue. */
  fronts: HostileFrontend[] = [];
  /** What the backend sees the rings through, when asked for. */
  txMemory: DoubleFetchMemory | null = null;
  rxMemory: DoubleFetchMemory | null = null;
  /** Puts right what `prepare` took away, before all is given back. */
  afterFailure: (front: HostileFrontend) => void = () => {};
  private unmap: (() => void)[] = [];

  constructor(
    readonly path: DataPath,
    private readonly options: {
      split?: boolean;
      features?: FrontendFeatures;
      doubleFetch?: boolean;
      mtu?: number;
      domain?: DomainOptions;
      /** Queues that the backend connects to, each with a frontend's rings: the first are `front`'s. */
      queues?: number;
      /** false: TCP data is not put together, and so may take the fast path. */
      gro?: boolean;
      /** What its backend does not take. */
      without?: readonly NetbackFeature[];
    } = {},
  ) {
    this.domain = path.hypervisor.createDomain(options.domain);
    this.vif = new Vif(path.dom0, {
      domid: this.domain.domid,
      handle: 0,
      onFatal: reason => this.fatal.push(reason),
      maxQueues: options.queues,
      fastPathModule: path.fastPathModule,
      without: new Set(options.without),
    });
    this.vif.dev.mtu = options.mtu ?? 9000;
    if (options.gro === false) this.vif.dev.wantedFeatures &= ~NETIF_F_GRO;
    path.bridge.addPort(this.vif.dev as NetDevice);
  }

  get mac(): number[] {
    return [0, 0x16, 0x3e, 0, 0, this.domain.domid];
  }

  /** Connects with rings made anew. @param prepare writes to them before the backend looks */
  connect(prepare: (front: HostileFrontend) => void = () => {}): HostileFrontend {
    const { split, features, queues } = this.options;
    const { platform } = this.domain;
    this.fronts = Array.from({ length: queues ?? 1 }, () => new HostileFrontend(platform, 0, { split }));
    [this.front] = this.fronts;
    prepare(this.front);
    const connections = this.fronts.map(front => this.mapRings(front));
    try {
      this.vif.connect(features ?? ALL_FEATURES, connections);
    } catch (error) {
      this.afterFailure(this.front);
      this.disconnect();
      throw error;
    }
    return this.front;
  }

  private mapRings({ publication }: HostileFrontend): QueueConnection {
    const { grants } = this.path.dom0.platform;
    const { domid } = this.domain;
    const { txRef, rxRef, txPort, rxPort } = publication;
    const mappings = [txRef, rxRef].map(ref => grants.map(domid, ref, false));
    this.unmap.push(...mappings.map(mapping => () => grants.unmap(mapping)));
    const { doubleFetch } = this.options;
    const rings = mappings.map(mapping =>
      doubleFetch ? { ...mapping, memory: new DoubleFetchMemory(mapping.memory, mapping.address) } : mapping,
    );
    if (doubleFetch) {
      [this.txMemory, this.rxMemory] = rings.map(({ memory }) => memory as DoubleFetchMemory);
    }
    const [txRing, rxRing] = rings;
    return { domid, txRing, rxRing, txPort, rxPort };
  }

  /** A frame from this domain. */
  frame(to: readonly number[], length: number): Uint8Array {
    return buildFrame({
      source: this.mac,
      destination: to,
      payload: Uint8Array.from({ length }, (_, i) => (i * 11) & 0xff),
    });
  }

  /** Publishes, notifies, and lets the host run until it is quiet, which must not take long. */
  async strike(): Promise<void> {
    const { front } = this;
    const tx = front.tx.reqProd !== front.txNext;
    const rx = front.rx.reqProd !== front.rxNext;
    front.push();
    // Events for nothing would be held against us.
    if (tx) front.kickTx();
    if (rx) front.kickRx();
    await quiet(this.path);
  }

  /** The backend's part of a disconnect, when the domain is gone. */
  disconnectAfterDeath(): void {
    this.vif.disconnect();
    for (const step of this.unmap.splice(0)) step();
  }

  /** @returns false when the backend kept something of the frontend's */
  disconnect(): boolean {
    this.vif.disconnect();
    for (const step of this.unmap.splice(0)) step();
    return this.fronts.map(front => front.destroy()).every(gone => gone);
  }
}

/** What a victim of ours is like. */
export interface VictimOptions {
  split?: boolean;
  maxPages?: number;
  limits?: Partial<DomainLimits>;
  /** What the frontend sees its rx ring, at `page`, through; or the page that it allocates as the so many-th. */
  memoryOf?: (memory: Memory, page: number) => Memory;
  watchPage?: number;
  /** false to have TypeScript write and read all slots. */
  ringCode?: boolean;
  /** true for grants that are tied to their pages. */
  tied?: boolean;
  /** true for pages to receive into that the backend keeps mapped, from `keepMapped` on. */
  mapped?: boolean;
  /** false for a backend that may not see what else lies in a page. */
  trusted?: boolean;
  /** true for a frontend that takes GSO packets with a prefix. */
  gsoPrefix?: boolean;
  /** The offloads that the frontend takes; all when absent. */
  taken?: PeerOffloads | null;
  /** The rings' first index. */
  start?: number;
}

/** The same platform, seen through other memory from the page on that is allocated as the `nth`. */
export function withPage(
  platform: Platform,
  nth: number,
  memoryOf: (memory: Memory, page: number) => Memory,
): Platform {
  const inner = platform.memory;
  let pages = 0;
  let seen = inner.memory;
  const memory: DomainMemory = {
    get memory() {
      return seen;
    },
    allocPage() {
      const page = inner.allocPage();
      if (++pages === nth) seen = memoryOf(inner.memory, page);
      return page;
    },
    freePage: page => inner.freePage(page),
    gfn: page => inner.gfn(page),
    get allocated() {
      return inner.allocated;
    },
  };
  return Object.create(platform, { memory: { value: memory } });
}

/** A device whose backend is ours to do evil with, in dom0. */
export class Victim {
  readonly domain: Domain;
  readonly dom: Dom;
  readonly dev: NetDevice;
  readonly broken: string[] = [];
  readonly got: Uint8Array[] = [];
  queue!: FrontQueue;
  granted!: GrantedPool;
  back!: HostileBackend;
  /** What the backend has mapped for good, by reference. */
  readonly mapped = new Map<number, GrantMapping>();

  constructor(
    readonly path: DataPath,
    private readonly options: VictimOptions = {},
  ) {
    this.domain = path.hypervisor.createDomain({ maxPages: options.maxPages, limits: options.limits });
    const { platform } = this.domain;
    const plain = options.ringCode === false ? withGrants(platform, { wasm: null }) : platform;
    this.dom = new Dom(this.domain, options.tied ? tieGrants(plain) : plain);
    this.dev = this.dom.net.allocEtherdev('eth%d', {
      startXmit: packet => this.queue.startXmit(packet),
      xdpXmit: (_, frames) => this.queue.xdpXmit(frames),
      flush: () => this.queue.flush(),
    }) as NetDevice;
    this.dev.txQueues[0].setMinLimit(QUEUE_LIMIT_MIN);
    this.dev.mtu = 9000;
    this.dev.address.set(this.mac);
    this.dev.hwFeatures = NETIF_F_SG | NETIF_F_ALL_TSO | NETIF_F_CSUM_MASK;
    this.dev.features = this.dev.hwFeatures;
    this.dev.rxHandler = packet => {
      this.got.push(bytesOf(packet));
      packet.release();
    };
    this.dom.net.register(this.dev);
    this.dev.open();
  }

  get mac(): number[] {
    return [0, 0x16, 0x3e, 0, 0, this.dom.platform.domid];
  }

  /** Pages of the domain's, without those that its pools never give back. */
  get pages(): number {
    const { net } = this.dom;
    const { made } = net.pages as unknown as { made: number };
    return this.domain.pages - net.packets.pages - made;
  }

  connect(): HostileBackend {
    const { dom, dev, path, broken } = this;
    const { split = true, trusted = true, gsoPrefix, taken, start = 0 } = this.options;
    this.granted = new GrantedPool(dom.platform, dom.reclaimer, 0, 512);
    this.queue = new FrontQueue(
      {
        ...dom,
        platform: this.platform(),
        dev,
        backendId: 0,
        trusted,
        gsoPrefix,
        taken,
        broken: reason => broken.push(reason),
      },
      0,
      split,
      this.granted,
    );
    dev.txPool = trusted ? this.granted.pages : null;
    this.back = new HostileBackend(path.dom0.platform, dom.platform.domid, this.queue.publication);
    if (start !== 0) this.startAt(start);
    this.queue.start();
    this.dev.carrierOn();
    return this.back;
  }

  /** Maps what is to be received into, and has the frontend post nothing else any more. */
  async keepMapped(): Promise<void> {
    const { back, mapped, queue } = this;
    for (const gref of queue.offerRxPages()) mapped.set(gref, back.map(gref));
    queue.rxPagesMapped(true);
    for (let i = 0; !mapped.has(back.rxGref); i++) {
      assert.ok(i < back.rx.size);
      back.packet(new Uint8Array(100));
      await this.strike();
    }
    this.got.length = 0;
  }

  /** Has both rings begin at an index, as if they had been in use for long. */
  private startAt(index: number): void {
    const { back } = this;
    const { tx, rx } = this.queue as unknown as {
      tx: { ring: FrontRing; published: number };
      rx: { ring: FrontRing };
    };
    for (const { ring } of [tx, rx]) {
      ring.reqProdPvt = index | 0;
      ring.rspCons = index | 0;
    }
    tx.published = index | 0;
    for (const ring of [back.tx, back.rx]) {
      ring.reqProd = index;
      ring.rspProd = index;
      ring.reqEvent = index + 1;
      ring.rspEvent = index + 1;
    }
    Object.assign(back, { txNext: index, rxNext: index, txSeen: index });
  }

  private platform(): Platform {
    const { platform } = this.dom;
    const { memoryOf, watchPage = 2 } = this.options;
    return memoryOf === undefined ? platform : withPage(platform, watchPage, memoryOf);
  }

  async strike(): Promise<void> {
    const { back } = this;
    const tx = back.tx.rspProd !== back.txNext;
    const rx = back.rx.rspProd !== back.rxNext;
    back.push();
    // Events for nothing would be held against us.
    if (tx) back.kickTx();
    if (rx) back.kickRx();
    await quiet(this.path);
  }

  /** The backend first, as when it crashed; then the frontend. */
  disconnect(): void {
    this.mapped.clear();
    this.back.destroy();
    this.dev.carrierOff();
    this.dev.txPool = null;
    this.queue.destroy();
    this.granted.retire();
    this.dom.reclaimer.retry();
  }
}

/** Lets the host run until nothing is to be done, and fails when that takes more steps than a ring is worth. */
export async function quiet(path: DataPath): Promise<void> {
  const { scheduler } = path;
  const before = scheduler.steps;
  await scheduler.runReady();
  assert.ok(
    scheduler.steps - before < STEPS_MAX,
    `${scheduler.steps - before} steps until the host was quiet`,
  );
}

/** Two guests that mind their own business; whatever an attacker does, they must not notice. */
export class Bystanders {
  private readonly a: Guest;
  private readonly b: Guest;
  private readonly sent: Uint8Array[] = [];
  private readonly got: Uint8Array[] = [];
  /** What others sent to the target. */
  readonly heard: Uint8Array[] = [];

  constructor(private readonly path: DataPath) {
    this.a = path.guest({ mtu: 9000 });
    this.b = path.guest({ mtu: 9000 });
    this.b.dev.rxHandler = (packet: Packet) => {
      const bytes = bytesOf(packet);
      const list = this.a.dev.address.every((byte, i) => byte === bytes[6 + i]) ? this.got : this.heard;
      list.push(bytes);
      packet.release();
    };
    // The bridge learns where they are, and keeps what they send from others.
    const hello = buildFrame({
      source: this.target,
      destination: [...this.a.dev.address],
      payload: new Uint8Array(0),
    });
    this.b.dev.xmit(packetFrom(this.b.dev, hello));
  }

  get domids(): number[] {
    return [this.a, this.b].map(({ dom }) => dom.platform.domid);
  }

  /** MAC address of one of them, for an attacker to aim at. */
  get target(): number[] {
    return [...this.b.dev.address];
  }

  /** Sends a packet on its way, of a size and a kind that go round. */
  send(): void {
    const n = this.sent.length;
    const bytes = buildFrame({
      source: [...this.a.dev.address],
      destination: this.target,
      payload: Uint8Array.from({ length: [10, 1000, 5000][n % 3] }, (_, i) => (i * 3 + n) & 0xff),
      id: n & 0xffff,
      // The fast path is not for TCP data that may be put together.
      udp: n % 4 < 2,
    });
    this.sent.push(bytes);
    this.a.dev.xmit(packetFrom(this.a.dev, bytes));
  }

  /** Sends a few packets, and checks that all sent so far arrived as they were sent. */
  async check(): Promise<void> {
    for (let i = 0; i < 3; i++) this.send();
    await quiet(this.path);
    // An event that comes just after its work was done is held back for a moment, in the best of hosts.
    await this.path.scheduler.runFor(2);
    assert.equal(this.got.length, this.sent.length, 'packets that arrived between the bystanders');
    for (const [i, bytes] of this.sent.entries()) assert.deepEqual(this.got[i], bytes);
    this.sent.length = 0;
    this.got.length = 0;
    assert.deepEqual([this.a.broken, this.a.fatal, this.b.broken, this.b.fatal], [[], [], [], []]);
  }
}
