import { bootKernel, type Kernel } from '../src/kernel/index.js';
import { Bridge, type NetDevice } from '../src/net/index.js';
import { registerNetback } from '../src/netback/index.js';
import { registerNetfront } from '../src/netfront/index.js';
import { type Domain, EventLoopScheduler, Hypervisor } from '../src/platform/sim/index.js';
import { type SimXenstored, startSimXenstored } from '../src/toolstack/sim-xenstored.js';
import { streamPair, XenStoreClient } from '../src/xenstore/index.js';

/** A domain with a kernel. */
export interface BenchDomain {
  readonly domain: Domain;
  readonly kernel: Kernel;
}

/** A guest whose eth0 is connected. */
export interface BenchGuest extends BenchDomain {
  readonly dev: NetDevice;
}

const CONNECT_TIMEOUT_MS = 10_000;
/** How long tasks run before the event loop has its turn. */
const SLICE_MS = 2;

/** CPU time that this process has used. */
export function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

/** A simulated host in this process as `pvnet up` makes one: xenstored, domain 0 with a bridge, guests. */
export class BenchHost {
  readonly scheduler: EventLoopScheduler;
  readonly hypervisor: Hypervisor;

  private constructor(
    scheduler: EventLoopScheduler,
    hypervisor: Hypervisor,
    private readonly xenstored: SimXenstored,
    private readonly xs: XenStoreClient,
    readonly dom0: Kernel,
    readonly bridge: Bridge,
  ) {
    this.scheduler = scheduler;
    this.hypervisor = hypervisor;
  }

  /** Runs the host until it has used so much CPU time. */
  async runFor(ms: number): Promise<void> {
    const end = cpuSeconds() + ms / 1000;
    do {
      this.scheduler.drain(SLICE_MS);
      await new Promise(resolve => setImmediate(resolve));
    } while (cpuSeconds() < end);
  }

  static async boot(memoryBytes = 256 << 20): Promise<BenchHost> {
    const scheduler = new EventLoopScheduler({
      setImmediate,
      setTimeout,
      clearTimeout,
      now: () => performance.now(),
    });
    const hypervisor = new Hypervisor({ scheduler, memoryBytes });
    const { platform } = hypervisor.createDomain({ name: 'Domain-0', privileged: true });
    const dom0 = await bootKernel(platform, { name: 'Domain-0' });
    const xenstored = startSimXenstored(hypervisor, dom0);
    const [mine, its] = streamPair(scheduler);
    xenstored.server.attach(its);
    const xs = new XenStoreClient(mine);
    await dom0.xenbus.ready;
    const bridge = new Bridge(dom0.net, 'xenbr0');
    dom0.net.register(bridge as NetDevice);
    bridge.open();
    await registerNetback(dom0);
    return new BenchHost(scheduler, hypervisor, xenstored, xs, dom0, bridge);
  }

  /** A new domain with one vif on the bridge; resolves when both ends are Connected. */
  async guest(name: string): Promise<BenchGuest> {
    const [guest] = await this.connect([await this.createDomain(name)]);
    return guest;
  }

  /** A new domain with a kernel, and no vif yet. */
  async createDomain(name: string): Promise<BenchDomain> {
    const { xs } = this;
    const domain = this.hypervisor.createDomain({ name });
    const { domid, platform } = domain;
    const home = `/local/domain/${domid}`;
    await xs.mkdir(home);
    await xs.setPerms(home, [`n${domid}`]);
    this.xenstored.server.introduce(domid, platform.memory.gfn(domain.storePage), domain.storePort);
    const kernel = await bootKernel(platform, { name });
    await registerNetfront(kernel);
    return { domain, kernel };
  }

  /** Gives each domain a vif on the bridge; resolves when both ends of all are Connected. */
  async connect(domains: readonly BenchDomain[]): Promise<BenchGuest[]> {
    const { dom0, xs, bridge } = this;
    const hotplugged: Promise<void>[] = [];
    const stop = dom0.net.monitor(({ event, device: vif }) => {
      if (event !== 'REGISTER' || !vif.name.startsWith('vif')) return;
      bridge.addPort(vif);
      vif.open();
      const back = `/local/domain/0/backend/vif/${vif.name.slice('vif'.length).replace('.', '/')}`;
      hotplugged.push(xs.write(`${back}/hotplug-status`, 'connected'));
    });
    for (const { domain } of domains) await this.addVif(domain.domid);
    const guests: BenchGuest[] = [];
    for (const { domain, kernel } of domains) {
      const vif = await until(`vif${domain.domid}.0`, () => dom0.net.byName(`vif${domain.domid}.0`));
      const dev = await until(`eth0 of ${kernel.name}`, () => {
        const eth0 = kernel.net.byName('eth0');
        return eth0?.carrierOk && vif.carrierOk ? eth0 : undefined;
      });
      guests.push({ domain, kernel, dev });
    }
    stop();
    await Promise.all(hotplugged);
    return guests;
  }

  /** Takes a guest away again. */
  async remove({ domain }: BenchGuest): Promise<void> {
    const { xs, dom0 } = this;
    const { domid } = domain;
    await xs.rm(`/local/domain/${domid}`);
    await xs.rm(`/local/domain/0/backend/vif/${domid}`);
    await until(`no vif${domid}.0`, () =>
      dom0.net.byName(`vif${domid}.0`) === undefined ? true : undefined,
    );
    domain.destroy();
  }

  private async addVif(domid: number): Promise<void> {
    const front = `/local/domain/${domid}/device/vif/0`;
    const back = `/local/domain/0/backend/vif/${domid}/0`;
    const [high, low] = [domid >> 8, domid & 0xff].map(byte => byte.toString(16).padStart(2, '0'));
    const mac = `00:16:3e:00:${high}:${low}`;
    const keys = {
      [front]: { backend: back, 'backend-id': 0, state: 1, handle: 0, mac },
      [back]: {
        frontend: front,
        'frontend-id': domid,
        online: 1,
        state: 1,
        handle: 0,
        mac,
        bridge: 'xenbr0',
        'hotplug-status': '',
      },
    };
    await this.xs.transaction(async t => {
      for (const [path, values] of Object.entries(keys)) {
        await t.mkdir(path);
        await t.setPerms(path, path === front ? [`n${domid}`, 'r0'] : ['n0', `r${domid}`]);
        for (const [key, value] of Object.entries(values)) await t.write(`${path}/${key}`, String(value));
      }
    });
  }
}

async function until<T>(what: string, find: () => T | undefined): Promise<T> {
  const deadline = performance.now() + CONNECT_TIMEOUT_MS;
  for (;;) {
    const found = find();
    if (found !== undefined) return found;
    if (performance.now() > deadline) throw new Error(`${what} did not come up`);
    await new Promise(resolve => setTimeout(resolve, 1));
  }
}
