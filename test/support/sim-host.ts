import type { Irqs } from '../../src/events/index.js';
import { Kernel } from '../../src/kernel/index.js';
import type { Net } from '../../src/net/index.js';
import type { Platform } from '../../src/platform/platform.js';
import {
  type Domain,
  type DomainOptions,
  Hypervisor,
  type HypervisorOptions,
  SeededScheduler,
} from '../../src/platform/sim/index.js';
import { type SimXenstored, startSimXenstored } from '../../src/toolstack/sim-xenstored.js';
import type { Xenbus, XenbusTraceEvent } from '../../src/xenbus/index.js';
import { streamPair, XenStoreClient, type XenStoreServerOptions } from '../../src/xenstore/index.js';

/** A domain with a kernel, the kernel's parts at hand, and what its xenbus did so far. */
export interface SimKernel {
  readonly domain: Domain;
  readonly domid: number;
  readonly kernel: Kernel;
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly xenbus: Xenbus;
  readonly net: Net;
  readonly trace: XenbusTraceEvent[];
}

export interface SimHostOptions {
  hypervisor?: Partial<HypervisorOptions>;
  xenstored?: Partial<Omit<XenStoreServerOptions, 'host'>>;
}

export interface PlugOptions {
  /** "vif" */
  type: string;
  front: SimKernel;
  back: SimKernel;
  devid?: number;
  /** Nodes beyond those that every device has. */
  frontNodes?: Record<string, string | number>;
  backNodes?: Record<string, string | number>;
}

/** What a domain holds, to be compared before and after. */
export interface Holdings {
  ports: number;
  grants: number;
  mappings: number;
  pages: number;
  irqs: number;
  watches: number;
  transactions: number;
}

/**
 * A whole simulated host for tests, without mocks: a hypervisor in virtual time, xenstored in domain 0, and domains with
 * a xenbus each. The same seed gives the same run. `toolstack` is what xl has: a privileged connection.
 */
export class SimHost {
  readonly scheduler: SeededScheduler;
  readonly hypervisor: Hypervisor;
  readonly dom0: SimKernel;
  readonly xenstored: SimXenstored;
  readonly toolstack: XenStoreClient;
  readonly kernels: SimKernel[] = [];

  /** Domain 0's xenbus is made but not initialised; nothing has run. */
  constructor(seed = 1, options: SimHostOptions = {}) {
    this.scheduler = new SeededScheduler(seed, { yieldToMicrotasks: () => new Promise(setImmediate) });
    const { scheduler } = this;
    this.hypervisor = new Hypervisor({
      scheduler,
      random: scheduler.random,
      memoryBytes: 64 << 20,
      ...options.hypervisor,
    });
    this.dom0 = this.#kernel(this.hypervisor.createDomain({ name: 'Domain-0', domid: 0 }));
    this.xenstored = startSimXenstored(this.hypervisor, this.dom0, options.xenstored);
    const [client, server] = streamPair(scheduler);
    this.xenstored.server.attach(server);
    this.toolstack = new XenStoreClient(client, { scheduler, random: scheduler.random });
  }

  /** A host whose domain 0 is up. */
  static async boot(seed = 1, options: SimHostOptions = {}): Promise<SimHost> {
    const host = new SimHost(seed, options);
    await host.start();
    return host;
  }

  /** Brings domain 0 up. */
  protected async start(): Promise<void> {
    await this.run(this.toolstack.mkdir('/local/domain/0'));
    await this.run(this.dom0.xenbus.init());
    await this.run(this.dom0.xenbus.ready);
  }

  /** Runs the host until `work` has settled. @throws what it throws; Error when nothing is left to run before */
  run<T>(work: Promise<T>, timeoutMs?: number): Promise<T> {
    return this.scheduler.runToEnd(work, timeoutMs);
  }

  /** Watch events that wait in a domain's kernel, busy with another, after nodes came and went below a path. */
  async eventsAfterFlood({ xenbus }: SimKernel, path: string): Promise<number> {
    let goOn = () => {};
    const busy = xenbus.runOnXenwatch(() => new Promise<void>(resolve => (goOn = resolve)));
    await this.settle();
    for (let i = 0; i < 200; i++) {
      void this.toolstack.write(`${path}/${i}`, '');
      void this.toolstack.rm(`${path}/${i}`);
    }
    await this.settle();
    const { pendingEvents } = xenbus;
    goOn();
    await this.run(busy);
    return pendingEvents;
  }

  /** Runs the host until `condition` holds, or throws after that much virtual time. */
  until(condition: () => boolean, timeoutMs?: number): Promise<void> {
    return this.scheduler.runUntil(condition, timeoutMs);
  }

  /**
   * Makes a domain as xl does: home directory with its permissions, and introduction to xenstored. Its kernel's xenbus
   * is not initialised.
   */
  async addDomain(options: DomainOptions = {}): Promise<SimKernel> {
    const kernel = this.#kernel(this.hypervisor.createDomain(options));
    const { domid, domain } = kernel;
    const home = `/local/domain/${domid}`;
    await this.run(
      this.toolstack.transaction(async t => {
        const make = async (path: string, perms: string[]) => {
          await t.mkdir(path);
          await t.setPerms(path, perms);
        };
        await make(home, ['n0', `r${domid}`]);
        for (const name of ['device', 'control']) await make(`${home}/${name}`, ['n0', `r${domid}`]);
        for (const name of ['data', 'drivers', 'feature', 'attr', 'error', 'backend']) {
          await make(`${home}/${name}`, [`n${domid}`]);
        }
        await t.write(`${home}/name`, domain.name);
        await t.write(`${home}/domid`, String(domid));
      }),
    );
    await this.run(
      this.toolstack.introduce(domid, kernel.platform.memory.gfn(domain.storePage), domain.storePort),
    );
    return kernel;
  }

  /** A domain whose kernel is up. */
  async bootDomain(options: DomainOptions = {}): Promise<SimKernel> {
    const kernel = await this.addDomain(options);
    await this.run(kernel.xenbus.init());
    return kernel;
  }

  frontDir({ type, front, devid = 0 }: PlugOptions): string {
    return `/local/domain/${front.domid}/device/${type}/${devid}`;
  }

  backDir({ type, front, back, devid = 0 }: PlugOptions): string {
    return `/local/domain/${back.domid}/backend/${type}/${front.domid}/${devid}`;
  }

  /** Attaches a device as libxl does, in one transaction. */
  plug(options: PlugOptions): Promise<void> {
    const { front, back, frontNodes = {}, backNodes = {} } = options;
    const frontPath = this.frontDir(options);
    const backPath = this.backDir(options);
    return this.run(
      this.toolstack.transaction(async t => {
        const fill = async (path: string, perms: string[], nodes: Record<string, string | number>) => {
          if (await t.exists(path)) await t.rm(path);
          await t.mkdir(path);
          await t.setPerms(path, perms);
          for (const [name, value] of Object.entries(nodes)) await t.write(`${path}/${name}`, String(value));
        };
        await fill(frontPath, [`n${front.domid}`, `r${back.domid}`], {
          backend: backPath,
          'backend-id': back.domid,
          state: 1,
          handle: options.devid ?? 0,
          ...frontNodes,
        });
        await fill(backPath, [`n${back.domid}`, `r${front.domid}`], {
          frontend: frontPath,
          'frontend-id': front.domid,
          online: 1,
          state: 1,
          handle: options.devid ?? 0,
          ...backNodes,
        });
      }),
    );
  }

  /**
   * Detaches a device as libxl does: asks the backend to close, waits for Closed, removes both directories.
   * @returns whether the backend went to Closed within the 10 s that libxl gives it
   */
  async unplug(options: PlugOptions): Promise<boolean> {
    const backPath = this.backDir(options);
    await this.run(
      this.toolstack.transaction(async t => {
        if (!(await t.exists(`${backPath}/state`))) return;
        await t.write(`${backPath}/online`, '0');
        if ((await t.read(`${backPath}/state`)) !== '6') await t.write(`${backPath}/state`, '5');
      }),
    );
    let closed = false;
    const deadline = this.scheduler.now() + 10_000;
    while (!closed && this.scheduler.now() < deadline) {
      const state = await this.run(this.toolstack.readIfExists(`${backPath}/state`));
      closed = state === undefined || state === '6';
      if (!closed) await this.scheduler.runFor(10);
    }
    await this.removeDirs(options);
    return closed;
  }

  /** Removes both directories, whatever their drivers say. */
  async removeDirs(options: PlugOptions): Promise<void> {
    await this.run(
      this.toolstack.transaction(async t => {
        for (const path of [this.frontDir(options), this.backDir(options)]) {
          if (await t.exists(path)) await t.rm(path);
        }
      }),
    );
    await this.settle();
  }

  /** The value of a node, undefined when it is not there. */
  read(path: string): Promise<string | undefined> {
    return this.run(this.toolstack.readIfExists(path));
  }

  write(path: string, value: string | number): Promise<void> {
    return this.run(this.toolstack.write(path, String(value)));
  }

  /** Runs what is ready, not waiting for timers. */
  settle(): Promise<void> {
    return this.scheduler.runReady();
  }

  /** What a kernel holds at the moment. */
  holdings(kernel: SimKernel): Holdings {
    const { server } = this.xenstored;
    let watches = 0;
    let transactions = 0;
    for (const connection of server.connections) {
      if (connection.domid !== kernel.domid) continue;
      watches += connection.watches.size;
      transactions += connection.transactions.size;
    }
    return {
      ports: kernel.platform.events.allocated,
      grants: kernel.platform.grants.allocated,
      mappings: kernel.platform.grants.mapped,
      pages: kernel.platform.memory.allocated,
      irqs: kernel.irqs.counts.length,
      watches,
      transactions,
    };
  }

  /** Hears what any xenbus does. */
  protected seen(_event: XenbusTraceEvent): void {}

  #kernel(domain: Domain): SimKernel {
    const trace: XenbusTraceEvent[] = [];
    const kernel = new Kernel(domain.platform, {
      name: domain.name,
      trace: event => {
        trace.push(event);
        this.seen(event);
      },
    });
    const { platform, irqs, xenbus, net } = kernel;
    const made = { domain, domid: domain.domid, kernel, platform, irqs, xenbus, net, trace };
    this.kernels.push(made);
    return made;
  }
}
