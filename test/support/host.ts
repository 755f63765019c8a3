import { XenbusState } from '../../src/abi/index.js';
import { bootKernel, type Kernel } from '../../src/kernel/index.js';
import { Bridge, type NetDevice } from '../../src/net/index.js';
import { type NetbackOptions, registerNetback } from '../../src/netback/index.js';
import { type NetfrontOptions, registerNetfront } from '../../src/netfront/index.js';
import { type Domain, Hypervisor, SeededScheduler } from '../../src/platform/sim/index.js';
import { type SimXenstored, startSimXenstored } from '../../src/toolstack/sim-xenstored.js';
import { formatXenbusTrace, type XenbusTraceEvent } from '../../src/xenbus/index.js';
import { streamPair, XenStoreClient } from '../../src/xenstore/index.js';

/** A domain of the test host with its kernel. */
export interface GuestDomain {
  readonly domain: Domain;
  readonly kernel: Kernel;
}

/**
 * A whole host on virtual time: xenstored, domain 0 with netback and a bridge, and guests with netfront, all
 * of them the real ones. Its toolstack is the least that libxl does, so that a test can stop half-way.
 */
export class Host {
  readonly scheduler: SeededScheduler;
  readonly hypervisor: Hypervisor;
  readonly trace: string[] = [];
  dom0!: Kernel;
  bridge!: Bridge;
  xenstored!: SimXenstored;
  /** The toolstack's connection. */
  xs!: XenStoreClient;

  private constructor(seed: number) {
    this.scheduler = new SeededScheduler(seed, {
      yieldToMicrotasks: () => new Promise(resolve => setImmediate(resolve)),
    });
    this.hypervisor = new Hypervisor({ scheduler: this.scheduler, memoryBytes: 64 << 20 });
  }

  static async boot(seed = 1, netback: NetbackOptions = {}): Promise<Host> {
    const host = new Host(seed);
    const domain = host.hypervisor.createDomain({ name: 'Domain-0', privileged: true });
    host.dom0 = await bootKernel(domain.platform, { name: 'Domain-0', trace: host.record });
    host.xenstored = startSimXenstored(host.hypervisor, host.dom0);
    const [mine, its] = streamPair(host.scheduler);
    host.xenstored.server.attach(its);
    host.xs = new XenStoreClient(mine);
    await host.run(host.dom0.xenbus.ready);
    host.bridge = new Bridge(host.dom0.net, 'xenbr0');
    host.dom0.net.register(host.bridge as NetDevice);
    host.bridge.open();
    await host.run(registerNetback(host.dom0, netback));
    return host;
  }

  readonly record = (event: XenbusTraceEvent): void => {
    this.trace.push(formatXenbusTrace(event));
  };

  /** Lets the host run until a promise of its own is settled. */
  async run<T>(promise: Promise<T>): Promise<T> {
    let done = false;
    const mark = () => {
      done = true;
    };
    promise.then(mark, mark);
    await this.scheduler.runUntil(() => done);
    return promise;
  }

  /** Lets the host run until `condition` holds. @throws after a minute of virtual time */
  until(condition: () => boolean): Promise<void> {
    return this.scheduler.runUntil(condition);
  }

  /** A domain that xenstored knows, with a home directory, and a kernel; with null without netfront. */
  async createGuest(name: string, netfront: NetfrontOptions | null = {}): Promise<GuestDomain> {
    const domain = this.hypervisor.createDomain({ name });
    const { domid, platform } = domain;
    const { xs } = this;
    const home = `/local/domain/${domid}`;
    await this.run(
      (async () => {
        await xs.mkdir(home);
        await xs.setPerms(home, [`n${domid}`]);
        await xs.mkdir(`${home}/device`);
        await xs.setPerms(`${home}/device`, [`n${domid}`]);
        await xs.write(`${home}/name`, name);
        this.xenstored.server.introduce(domid, platform.memory.gfn(domain.storePage), domain.storePort);
      })(),
    );
    const kernel = await this.run(bootKernel(platform, { name, trace: this.record }));
    if (netfront !== null) await this.run(registerNetfront(kernel, netfront));
    return { domain, kernel };
  }

  /** What libxl writes for a vif, in one transaction. */
  async addVif(guest: GuestDomain, devid = 0, keys: { front?: object; back?: object } = {}): Promise<void> {
    const { domid } = guest.domain;
    const front = `/local/domain/${domid}/device/vif/${devid}`;
    const back = `/local/domain/0/backend/vif/${domid}/${devid}`;
    const mac = `00:16:3e:00:${domid.toString(16).padStart(2, '0')}:${devid.toString(16).padStart(2, '0')}`;
    const frontKeys = { backend: back, 'backend-id': 0, state: 1, handle: devid, mac, ...keys.front };
    const backKeys = {
      frontend: front,
      'frontend-id': domid,
      online: 1,
      state: 1,
      handle: devid,
      mac,
      bridge: 'xenbr0',
      script: '/etc/xen/scripts/vif-bridge',
      'hotplug-status': '',
      ...keys.back,
    };
    await this.run(
      this.xs.transaction(async t => {
        await t.mkdir(front);
        await t.setPerms(front, [`n${domid}`, 'r0']);
        await t.mkdir(back);
        await t.setPerms(back, ['n0', `r${domid}`]);
        for (const [key, value] of Object.entries(frontKeys)) await t.write(`${front}/${key}`, String(value));
        for (const [key, value] of Object.entries(backKeys)) await t.write(`${back}/${key}`, String(value));
      }),
    );
  }

  /** What the hotplug script does: the vif joins the bridge, and the backend hears of it. */
  async hotplug(guest: GuestDomain, devid = 0): Promise<void> {
    const name = `vif${guest.domain.domid}.${devid}`;
    await this.until(() => this.dom0.net.byName(name) !== undefined);
    const vif = this.dom0.net.byName(name)!;
    this.bridge.addPort(vif);
    vif.open();
    await this.run(this.xs.write(`${this.backPath(guest, devid)}/hotplug-status`, 'connected'));
  }

  /** A vif that is connected at both ends. @returns the guest's device */
  async connectVif(guest: GuestDomain, devid = 0, keys: { front?: object; back?: object } = {}) {
    await this.addVif(guest, devid, keys);
    await this.hotplug(guest, devid);
    await this.until(() => this.states(guest, devid).every(state => state === XenbusState.Connected));
    const { net } = guest.kernel;
    return [...net.devices].at(-1)!;
  }

  backPath(guest: GuestDomain, devid = 0): string {
    return `/local/domain/0/backend/vif/${guest.domain.domid}/${devid}`;
  }

  frontPath(guest: GuestDomain, devid = 0): string {
    return `/local/domain/${guest.domain.domid}/device/vif/${devid}`;
  }

  /** Both ends' states as the buses have them: [frontend, backend]; -1 for none. */
  states(guest: GuestDomain, devid = 0): [front: number, back: number] {
    const front = guest.kernel.xenbus.frontend.devices.get(`device/vif/${devid}`);
    const back = this.dom0.xenbus.backend.devices.get(`backend/vif/${guest.domain.domid}/${devid}`);
    return [front?.state ?? -1, back?.state ?? -1];
  }

  /** What libxl writes to take a vif away; the directories go when the backend is closed. */
  async detachVif(guest: GuestDomain, devid = 0): Promise<void> {
    const { xs } = this;
    const back = this.backPath(guest, devid);
    await this.run(
      xs.transaction(async t => {
        await t.write(`${back}/online`, '0');
        await t.write(`${back}/state`, String(XenbusState.Closing));
      }),
    );
    await this.until(
      () => this.states(guest, devid)[1] === XenbusState.Closed || this.states(guest, devid)[1] < 0,
    );
    await this.run(
      xs.transaction(async t => {
        await t.rm(this.frontPath(guest, devid));
        await t.rm(back);
      }),
    );
    await this.until(() => this.states(guest, devid).every(state => state === -1));
  }

  /** What every domain holds of Xen's resources; the same before and after, or something leaked. */
  holdings(): object {
    return Object.fromEntries(
      this.hypervisor.domains.map(({ domid, platform }) => [
        domid,
        {
          grants: platform.grants.allocated,
          mapped: platform.grants.mapped,
          ports: platform.events.allocated,
          pages: platform.memory.allocated,
        },
      ]),
    );
  }
}
