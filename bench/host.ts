import { bootKernel, type Kernel } from '../src/kernel/index.js';
import { Bridge, type NetDevice } from '../src/net/index.js';
import { registerNetback } from '../src/netback/index.js';
import { registerNetfront } from '../src/netfront/index.js';
import { type Domain, EventLoopScheduler, Hypervisor } from '../src/platform/sim/index.js';
import { type SimXenstored, startSimXenstored } from '../src/toolstack/sim-xenstored.js';
import { streamPair, XenStoreClient } from '../src/xenstore/index.js';

/** A guest whose eth0 is connected. */
export interface BenchGuest {
  readonly domain: Domain;
  readonly kernel: Kernel;
  readonly dev: NetDevice;
}

const CONNECT_TIMEOUT_MS = 10_000;

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

  static async boot(memoryBytes = 256 << 20): Promise<BenchHost> {
    const scheduler = new EventLoopScheduler({
      setImmediate: run => setImmediate(run),
      setTimeout: (run, delayMs) => setTimeout(run, delayMs),
      clearTimeout: handle => clearTimeout(handle as NodeJS.Timeout),
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
    const { xs, dom0 } = this;
    const domain = this.hypervisor.createDomain({ name });
    const { domid, platform } = domain;
    const home = `/local/domain/${domid}`;
    await xs.mkdir(home);
    await xs.setPerms(home, [`n${domid}`]);
    this.xenstored.server.introduce(domid, platform.memory.gfn(domain.storePage), domain.storePort);
    const kernel = await bootKernel(platform, { name });
    await registerNetfront(kernel);
    const back = await this.addVif(domid);
    const vif = await until(`vif${domid}.0`, () => dom0.net.byName(`vif${domid}.0`));
    this.bridge.addPort(vif);
    vif.open();
    await xs.write(`${back}/hotplug-status`, 'connected');
    const dev = await until(`eth0 of ${name}`, () => {
      const eth0 = kernel.net.byName('eth0');
      return eth0?.carrierOk && vif.carrierOk ? eth0 : undefined;
    });
    return { domain, kernel, dev };
  }

  private async addVif(domid: number): Promise<string> {
    const front = `/local/domain/${domid}/device/vif/0`;
    const back = `/local/domain/0/backend/vif/${domid}/0`;
    const mac = `00:16:3e:00:00:${domid.toString(16).padStart(2, '0')}`;
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
      },
    };
    await this.xs.transaction(async t => {
      for (const [path, values] of Object.entries(keys)) {
        await t.mkdir(path);
        await t.setPerms(path, path === front ? [`n${domid}`, 'r0'] : ['n0', `r${domid}`]);
        for (const [key, value] of Object.entries(values)) await t.write(`${path}/${key}`, String(value));
      }
    });
    return back;
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
