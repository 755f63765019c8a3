import { XenbusState, xenbusStateName } from '../abi/xenbus-state.js';
import { type BootedGuest, bootGuest, GUEST_KINDS, MACHINE_KINDS } from '../guests/index.js';
import { isFromModule, kernelOfRunningModule } from '../guests/module.js';
import { bootKernel, type Kernel } from '../kernel/kernel.js';
import { Bridge } from '../net/bridge.js';
import type { NetDevice } from '../net/device.js';
import { NETDEV_REGISTER } from '../net/notifier.js';
import { type NetbackOptions, registerNetback } from '../netback/netback.js';
import { abortable } from '../platform/abort.js';
import { describeError } from '../platform/errors.js';
import type { Domain } from '../platform/sim/domain.js';
import { EventLoopScheduler } from '../platform/sim/event-loop-scheduler.js';
import { Hypervisor } from '../platform/sim/hypervisor.js';
import { Poller } from '../uplink/poller.js';
import { openTap } from '../uplink/tap.js';
import { TapPort } from '../uplink/tap-port.js';
import type { XenbusDevice, XenbusTrace } from '../xenbus/index.js';
import { streamPair, XenStoreClient } from '../xenstore/index.js';
import { type DomainConfig, GUEST_ARGUMENTS } from './domain-config.js';
import { type DomainIdentity, removeDomain, writeDomain } from './domain-store.js';
import { ToolstackError } from './error.js';
import { hotplugOnline } from './hotplug.js';
import { type PublishedRings, publishedRings } from './published-rings.js';
import { configNow } from './save.js';
import { type SimXenstored, startSimXenstored } from './sim-xenstored.js';
import { isSuspended, resumeDomain, stateOf, suspendDomain } from './suspend.js';
import { randomMac, type VifConfig } from './vif-config.js';
import { removeVifNodes, requestClose, type VifPaths, vifPaths, writeVif } from './vif-store.js';

/** LIBXL_INIT_TIMEOUT and LIBXL_DESTROY_TIMEOUT. */
const INIT_TIMEOUT_MS = 10_000;
const DESTROY_TIMEOUT_MS = 10_000;
/** How long a kernel has to notice that a device is gone before nobody waits for it any more. */
const GONE_TIMEOUT_MS = 2_000;
/** How long a guest has to power off before it is destroyed. */
const SHUTDOWN_TIMEOUT_MS = 10_000;
/** How long a driver domain has for what a hotplug script does. */
const HOTPLUG_TIMEOUT_MS = 30_000;
const PAGES_PER_MIB = 256;

export interface HostOptions {
  /** Sees what the buses of all domains do. */
  trace?: XenbusTrace;
  /** Gets each line that a domain's kernel logs. */
  onLog?: (domid: number, line: string) => void;
  /**
   * Gets what a task of a domain's kernel throws, a bug in a guest's handler for one: it is in that kernel's log then, and all
   * go on. Without it the error is an uncaught one.
   */
  onError?: (domain: Domain, error: unknown) => void;
  /** What domain 0's netback offers, and does with each vif. */
  netback?: NetbackOptions;
  /** Machine memory. */
  memoryBytes?: number;
  random?: () => number;
}

/** Follows the domains of a host whose kernels are ours: domain 0, and all but Linux guests. */
export interface KernelWatcher {
  /** The kernel runs; of its devices none but `lo` is there yet when it has just booted. */
  came(name: string, kernel: Kernel): void;
  went(name: string): void;
}

/** A vif of a domain, as the toolstack knows it. */
export interface AttachedVif {
  readonly devid: number;
  readonly config: VifConfig;
  readonly mac: string;
  readonly backendDomid: number;
  readonly paths: VifPaths;
  /** What the toolstack itself does about it now, or what went wrong; null when it is done. */
  status: string | null;
  /** The backend's interface, once it is on its bridge. */
  device: NetDevice | null;
  /** What the toolstack or its script wrote of it last, or writes now: its end waits for that. */
  writing: Promise<void> | null;
  /** Its end, for all who ask for it; null while nobody has. */
  ending: Promise<void> | null;
}

/** A domain of the host. */
export interface HostedDomain {
  readonly domain: Domain;
  readonly config: DomainConfig;
  readonly identity: DomainIdentity;
  readonly vifs: Map<number, AttachedVif>;
  booted: BootedGuest | null;
  /** What is being done with it that nothing else may come between, as in "being saved"; null when nothing is. */
  underWay: string | null;
  /** Aborted, with an error that says so, when it is destroyed or ends by itself: nothing of it answers any more. */
  readonly destroyed: AbortSignal;
}

/** What a domain continues that ran before: on another host, or until it was saved or rebooted. */
export interface Continuation {
  /** The number that it must have; by default the next. */
  readonly domid?: number;
  readonly uuid: string;
  /**
   * Called when all is there but the guest, with its backends waiting. When it throws, nothing of the new domain stays.
   * @returns the `state` that the guest goes on with
   */
  handOver?(domain: Domain): Promise<unknown>;
}

interface Start {
  /** Resolves when the guest is there to be stopped. */
  readonly done: Promise<void>;
  /** The domain is gone: nobody waits for its guest any more. */
  giveUp(): void;
}

/** What `vif-list` shows of a vif. */
export interface VifInfo extends PublishedRings {
  readonly domid: number;
  readonly domain: string;
  readonly devid: number;
  readonly backendDomid: number;
  readonly mac: string;
  readonly bridge: string;
  /** The backend's interface. */
  readonly vif: string;
  readonly frontendState: string;
  readonly backendState: string;
  readonly backendPath: string;
  /** What it waits for, in words; null when it is connected. */
  readonly waitingFor: string | null;
}

/** What `list` shows of a domain. */
export interface DomainInfo {
  readonly domid: number;
  readonly name: string;
  readonly memoryMib: number;
  readonly vcpus: number;
  readonly state: string;
  readonly guest: string;
  readonly vifs: number;
}

function destroyedError({ config }: HostedDomain): ToolstackError {
  return new ToolstackError('ESRCH', `the domain ${config.name} was destroyed`);
}

/**
 * A simulated Xen host in this process: hypervisor, xenstored, domain 0 with netback and bridges, and what a
 * toolstack does with domains and their vifs.
 */
export class Host {
  readonly hypervisor: Hypervisor;
  /** The toolstack's own connection. */
  xs!: XenStoreClient;
  dom0!: Kernel;
  xenstored!: SimXenstored;
  private readonly hosted = new Map<number, HostedDomain>();
  private readonly uplinks: TapPort[] = [];
  private pollerMade: Poller | null = null;
  /** Ends of domains that are under way, or over. */
  private readonly endings = new WeakMap<HostedDomain, Promise<void>>();
  /** What aborts the `destroyed` of each domain. */
  private readonly destroyers = new WeakMap<HostedDomain, AbortController>();
  /** Domains that come back when they have ended. */
  private readonly rebooting = new Set<HostedDomain>();
  /** Guests that are being started. */
  private readonly starts = new Map<HostedDomain, Start>();
  /** Kernels of the domains but domain 0, as soon as they run. */
  private readonly kernels = new Map<HostedDomain, Kernel>();
  private readonly kernelWatchers = new Set<KernelWatcher>();
  /** Names of domains that are being created. */
  private readonly creating = new Set<string>();
  private stopping = false;
  private closing: Promise<void> | null = null;

  private constructor(
    readonly scheduler: EventLoopScheduler,
    private readonly options: HostOptions,
  ) {
    this.hypervisor = new Hypervisor({
      scheduler,
      random: options.random,
      memoryBytes: options.memoryBytes,
      onLog: (domain, line) => options.onLog?.(domain.domid, line),
    });
  }

  /** Boots domain 0 with xenstored and netback. */
  static async start(options: HostOptions = {}): Promise<Host> {
    const scheduler = new EventLoopScheduler({
      setImmediate,
      setTimeout,
      clearTimeout,
      now: () => performance.now(),
      onError: options.onError === undefined ? undefined : (error, task) => host.failed(error, task),
    });
    const host = new Host(scheduler, options);
    await host.boot();
    return host;
  }

  private failed(error: unknown, task: string): void {
    const owner = this.scheduler.current?.owner;
    const { domains } = this.hypervisor;
    // What is nobody's task is the host's own.
    this.blame(domains.find(({ scheduler }) => scheduler === owner) ?? domains[0], task, error);
  }

  /**
   * Takes what the process caught of the promises and timers of guest modules, as what a task throws.
   * @returns false when none of this host's modules is known to have thrown it
   */
  moduleFailed(error: unknown): boolean {
    const kernel = kernelOfRunningModule();
    // It was told of its end, and did not listen.
    if (kernel?.destroyed?.aborted && kernel.destroyed.reason === error) return true;
    const guilty = [...this.domains].filter(({ domain, config: { guest } }) =>
      kernel === undefined
        ? guest.kind === 'module' && guest.argument !== '' && isFromModule(error, guest.argument)
        : domain.platform === kernel.platform,
    );
    for (const { domain } of guilty) this.blame(domain, 'module', error);
    if (guilty.length === 0 && kernel !== undefined) {
      this.dom0.platform.log(`${kernel.name}, which is gone: ${describeError(error)}`);
    }
    return guilty.length > 0 || kernel !== undefined;
  }

  private blame(domain: Domain, what: string, error: unknown): void {
    for (const line of `${what}: ${describeError(error)}`.split('\n')) domain.log(line);
    this.options.onError?.(domain, error);
  }

  private async boot(): Promise<void> {
    const { hypervisor, scheduler } = this;
    const domain = hypervisor.createDomain({ name: 'Domain-0', privileged: true });
    this.dom0 = await bootKernel(domain.platform, { name: 'Domain-0', trace: this.options.trace });
    this.xenstored = startSimXenstored(hypervisor, this.dom0);
    const [mine, its] = streamPair(scheduler);
    this.xenstored.server.attach(its);
    this.xs = new XenStoreClient(mine, { scheduler, random: hypervisor.random });
    await this.dom0.xenbus.ready;
    await this.xs.write('/local/domain/0/name', 'Domain-0');
    await this.xs.write('/local/domain/0/domid', '0');
    await registerNetback(this.dom0, this.options.netback);
    hypervisor.onDomainChange(changed => this.domainChanged(changed));
    this.dom0.net.registerNotifier({
      name: 'toolstack',
      notifierCall: (event, device) => {
        if (event === NETDEV_REGISTER) this.interfaceCame(device);
      },
    });
  }

  /** The interface of a vif that is there: its netback was restarted, and the script has to run again. */
  private interfaceCame(device: NetDevice): void {
    for (const { domain, vifs } of this.hosted.values()) {
      for (const vif of vifs.values()) {
        const isIt = device.name === `vif${domain.domid}.${vif.devid}` && vif.backendDomid === 0;
        if (!isIt || vif.status !== null) continue;
        vif.writing = this.online(vif, device.name);
        vif.writing.catch(error => this.dom0.platform.log(`toolstack: ${device.name}: ${error.message}`));
      }
    }
  }

  /** Runs the hotplug script. */
  private async online(vif: AttachedVif, name: string): Promise<void> {
    const { xs, dom0 } = this;
    const { config, paths, mac } = vif;
    vif.device = await hotplugOnline(xs, dom0.net, this.bridge(config.bridge), paths, name, mac, config);
  }

  /** What reads the machine's devices; made when the first one is there. */
  readonly poller = (): Poller => {
    this.pollerMade ??= new Poller(this.scheduler);
    return this.pollerMade;
  };

  /** The domains but domain 0. */
  get domains(): IterableIterator<HostedDomain> {
    return this.hosted.values();
  }

  /** @throws ToolstackError ESRCH when there is no domain of that name or number */
  find(nameOrDomid: string | number): HostedDomain {
    const wanted = String(nameOrDomid);
    for (const hosted of this.hosted.values()) {
      if (hosted.config.name === wanted || String(hosted.domain.domid) === wanted) return hosted;
    }
    const names = [...this.hosted.values()].map(({ config }) => config.name).join(', ') || 'none';
    throw new ToolstackError('ESRCH', `there is no domain "${wanted}"; there are: ${names}`);
  }

  /**
   * The kernel of a domain, domain 0 included.
   * @throws ToolstackError ESRCH, EAGAIN while it boots, EOPNOTSUPP for a guest with a kernel of its own
   */
  kernelOf(nameOrDomid: string | number): { kernel: Kernel; domain: Domain } {
    if (nameOrDomid === 'Domain-0' || String(nameOrDomid) === '0') {
      return { kernel: this.dom0, domain: this.hypervisor.domain(0)! };
    }
    const { booted, domain, config } = this.find(nameOrDomid);
    if (booted === null) throw new ToolstackError('EAGAIN', `the domain ${config.name} has not booted yet`);
    if (booted.kernel === null) {
      throw new ToolstackError('EOPNOTSUPP', `the domain ${config.name} has a kernel of its own: ask it`);
    }
    return { kernel: booted.kernel, domain };
  }

  // ---------------------------------------------------------------- bridges and uplinks

  /** The bridge of that name in domain 0; made when there is none yet. @throws NetError EEXIST for another device's name */
  bridge(name: string): Bridge {
    const { net } = this.dom0;
    const found = net.byName(name);
    if (found instanceof Bridge) return found;
    const bridge = new Bridge(net, name);
    net.register(bridge as NetDevice);
    bridge.open();
    return bridge;
  }

  /** Takes a bridge away that has no ports. */
  async removeBridge(name: string): Promise<void> {
    const { net } = this.dom0;
    const found = net.byName(name);
    if (found instanceof Bridge && found.portList.length === 0) await net.unregister(found as NetDevice);
  }

  /** The names of the bridges in domain 0, whoever made them. */
  get bridgeNames(): string[] {
    return [...this.dom0.net.devices].filter(device => device instanceof Bridge).map(({ name }) => name);
  }

  /**
   * Connects a bridge with the machine by a TAP.
   * @param tapName the TAP's name on the machine
   * @throws UplinkError that says what is missing
   */
  addUplink(bridgeName: string, tapName: string): TapPort {
    const port = new TapPort(this.dom0.net, this.poller(), openTap(tapName));
    this.uplinks.push(port);
    this.bridge(bridgeName).addPort(port.device);
    port.device.open();
    return port;
  }

  // ---------------------------------------------------------------- domains

  /**
   * Creates a domain, attaches its vifs and boots it. When anything fails nothing of it stays.
   * @param continued the domain that it continues
   * @throws ToolstackError EEXIST for a name that is in use, ESRCH when it is destroyed meanwhile; what the guest's kind and
   * the vifs throw
   */
  async create(config: DomainConfig, continued?: Continuation): Promise<HostedDomain> {
    const { name } = config;
    const others = [...this.hosted.values()];
    const taken = this.creating.has(name) || others.some(other => other.config.name === name);
    if (taken || name === 'Domain-0')
      throw new ToolstackError('EEXIST', `there is a domain "${name}" already`);
    const same = others.find(({ identity: { uuid } }) => uuid === continued?.uuid);
    if (same !== undefined) {
      const { config, identity } = same;
      throw new ToolstackError('EEXIST', `the domain ${config.name} has the uuid ${identity.uuid} already`);
    }
    this.creating.add(name);
    try {
      return await this.build(config, continued);
    } finally {
      this.creating.delete(name);
    }
  }

  private async build(config: DomainConfig, continued?: Continuation): Promise<HostedDomain> {
    const { hypervisor, xs } = this;
    const { kind } = config.guest;
    if (!Object.hasOwn(GUEST_ARGUMENTS, kind)) {
      const there = Object.keys(GUEST_ARGUMENTS).join(', ');
      throw new ToolstackError('EINVAL', `${config.name}: "${kind}" is no kind of guest; there are ${there}`);
    }
    const machine = await MACHINE_KINDS[config.guest.kind]?.(config);
    let domain: Domain;
    try {
      domain = hypervisor.createDomain({
        name: config.name,
        domid: continued?.domid,
        maxPages: machine === undefined ? config.memory * PAGES_PER_MIB : undefined,
        ...machine?.domainOptions,
      });
    } catch (error) {
      await machine?.destroy();
      throw error;
    }
    const uuid = continued?.uuid ?? this.uuid();
    const identity = { domid: domain.domid, name: config.name, uuid, memoryMib: config.memory };
    const destroyer = new AbortController();
    const hosted: HostedDomain = {
      domain,
      config,
      identity,
      vifs: new Map(),
      booted: null,
      underWay: 'being created',
      destroyed: destroyer.signal,
    };
    this.destroyers.set(hosted, destroyer);
    this.hosted.set(domain.domid, hosted);
    try {
      await writeDomain(xs, identity);
      await xs.introduce(domain.domid, hypervisor.frames.gfn[domain.storePage], domain.storePort);
      await Promise.all(config.vifs.map((vif, index) => this.attach(hosted, vif, vif.devid ?? index)));
      const state = await continued?.handOver?.(domain);
      this.requireAlive(hosted);
      const booting =
        machine !== undefined
          ? machine.start(domain, this.dom0, state)
          : bootGuest({
              domain,
              kind: GUEST_KINDS[config.guest.kind],
              argument: config.guest.argument,
              module: config.guest.module,
              vif: devid => hosted.vifs.get(devid)?.config,
              poller: this.poller,
              netfront: config.netfront,
              trace: this.options.trace,
              state,
              destroyed: hosted.destroyed,
              onKernel: kernel => this.kernelCame(hosted, kernel),
            });
      await this.started(hosted, booting);
      this.requireAlive(hosted);
      hosted.underWay = null;
      return hosted;
    } catch (error) {
      const wasDestroyed = this.hasEnded(hosted);
      await machine?.destroy();
      await this.destroy(hosted);
      // What failed then did so for that reason.
      if (wasDestroyed) this.requireAlive(hosted);
      throw error;
    }
  }

  /** Waits for a guest that is being started, but not longer than its domain is there. */
  private async started(hosted: HostedDomain, booting: Promise<BootedGuest>): Promise<void> {
    const done = booting.then(booted => {
      hosted.booted = booted;
    });
    try {
      await new Promise<void>((resolve, reject) => {
        this.starts.set(hosted, { done, giveUp: resolve });
        done.then(resolve, reject);
      });
    } finally {
      this.starts.delete(hosted);
    }
  }

  /**
   * Waits until every vif of a domain is connected at both ends, and set up in the guest.
   * @param options.timeoutMs how long, 10 s by default
   * @param options.vif waits for this vif alone, while the domain has it
   * @returns those that are not
   * @throws ToolstackError ESRCH when the domain is gone, or ends meanwhile
   */
  settled(
    hosted: HostedDomain,
    options: { timeoutMs?: number; vif?: AttachedVif } = {},
  ): Promise<AttachedVif[]> {
    return abortable(this.untilSettled(hosted, options), hosted.destroyed);
  }

  private async untilSettled(
    hosted: HostedDomain,
    options: { timeoutMs?: number; vif?: AttachedVif },
  ): Promise<AttachedVif[]> {
    const { timeoutMs = INIT_TIMEOUT_MS, vif: one } = options;
    // A machine takes its time to boot, and nothing can be said of its devices before.
    if (hosted.booted?.kernel === null) await hosted.booted.guest.settled();
    const end = this.scheduler.now() + timeoutMs;
    for (;;) {
      const vifs = [...hosted.vifs.values()].filter(vif => one === undefined || vif === one);
      const left = await this.unconnected(hosted, vifs);
      if (left.length === 0) await hosted.booted?.guest.settled();
      if (left.length === 0 || this.scheduler.now() >= end || this.hasEnded(hosted)) return left;
      await new Promise<void>(resolve => {
        const done = (): void => {
          for (const stop of stops) stop();
          this.scheduler.cancel(timer);
          resolve();
        };
        const timer = this.scheduler.after(Math.min(250, end - this.scheduler.now()), done);
        const stops = [this.dom0, hosted.booted?.kernel ?? this.dom0].map(kernel =>
          kernel.xenbus.onDevicesChanged(done),
        );
      });
    }
  }

  /** Those of a domain's vifs that are not connected at both ends, whoever has them. */
  private async unconnected(hosted: HostedDomain, vifs: readonly AttachedVif[]): Promise<AttachedVif[]> {
    const connected = String(XenbusState.Connected);
    const waits = await Promise.all(
      vifs.map(async vif => {
        const wait = this.waitingFor(hosted, vif);
        // A link that was taken down does not come up by itself.
        if (wait !== null && !wait.startsWith('connected, without carrier')) return vif;
        // An end in a machine's kernel shows in xenstore only.
        const { frontend, backend } = vif.paths;
        const states = await Promise.all(
          [frontend, backend].map(path => this.xs.readIfExists(`${path}/state`)),
        );
        return states.every(state => state === connected) ? null : vif;
      }),
    );
    return waits.filter(vif => vif !== null);
  }

  /**
   * Does something with domains that nothing else may come between, but their end: `destroy` waits for nobody.
   * @param doing what it is, as in "being saved"
   * @throws ToolstackError EBUSY that says what is under way with one of them, ESRCH when one is gone; what `work` throws
   */
  async exclusively<T>(domains: readonly HostedDomain[], doing: string, work: () => Promise<T>): Promise<T> {
    for (const hosted of domains) this.requireFree(hosted);
    for (const hosted of domains) hosted.underWay = doing;
    try {
      return await work();
    } finally {
      for (const hosted of domains) hosted.underWay = null;
    }
  }

  /** @throws ToolstackError EBUSY, ESRCH as `exclusively` */
  requireFree(hosted: HostedDomain): void {
    const { domain, config, underWay } = hosted;
    if (this.hosted.get(domain.domid) !== hosted) {
      throw new ToolstackError('ESRCH', `the domain ${config.name} is gone`);
    }
    const doing = this.hasEnded(hosted) ? 'being destroyed' : underWay;
    if (doing !== null) throw new ToolstackError('EBUSY', `the domain ${config.name} is ${doing}`);
  }

  /** True for a domain that was destroyed, or is being destroyed. */
  hasEnded(hosted: HostedDomain): boolean {
    return this.endings.has(hosted);
  }

  /** @throws ToolstackError ESRCH for a domain that has ended */
  requireAlive(hosted: HostedDomain): void {
    if (this.hasEnded(hosted)) throw destroyedError(hosted);
  }

  /**
   * Asks a domain's kernel to power off or reboot, and waits until it has.
   * @throws ToolstackError EINVAL for a suspended one, which would learn of it when it is resumed; ETIMEDOUT; EBUSY, ESRCH as
   * `exclusively`
   */
  shutdown(hosted: HostedDomain, how: 'poweroff' | 'reboot' = 'poweroff'): Promise<void> {
    return this.exclusively([hosted], 'being shut down', async () => {
      const { domain, config } = hosted;
      if (isSuspended(domain)) {
        throw new ToolstackError(
          'EINVAL',
          `the domain ${config.name} is suspended: resume it first, or destroy it`,
        );
      }
      await this.xs.write(`/local/domain/${domain.domid}/control/shutdown`, how);
      const end = this.scheduler.now() + SHUTDOWN_TIMEOUT_MS;
      while (!this.hasEnded(hosted)) {
        if (this.scheduler.now() >= end) {
          throw new ToolstackError('ETIMEDOUT', `the domain ${config.name} did not go down; destroy it`);
        }
        await new Promise(resolve => this.scheduler.after(10, () => resolve(undefined)));
      }
      await this.endings.get(hosted);
    });
  }

  /**
   * Asks a domain's kernel to suspend itself (control/shutdown), and waits until it has. Its devices stay as they
   * are, without carrier.
   * @throws ToolstackError EOPNOTSUPP for a guest that cannot, EINVAL when it does not run, EBUSY while one of its vifs is
   * being attached or detached, ETIMEDOUT, ESRCH when it ends instead; EBUSY, ESRCH as `exclusively`
   */
  suspend(hosted: HostedDomain): Promise<void> {
    return this.exclusively([hosted], 'being suspended', () => suspendDomain(this, hosted));
  }

  /**
   * Lets a suspended domain go on. Its frontends connect anew, as on another host, unless the suspend is said to have
   * been called off. A machine with a kernel of its own is always told that: as an HVM guest it takes the other answer
   * for another domain, with nothing of this one's event channels (libxl refuses that, too).
   * @throws ToolstackError EINVAL when it is not suspended; EBUSY, ESRCH as `exclusively`
   */
  resume(hosted: HostedDomain, options: { cancelled?: boolean } = {}): Promise<void> {
    return this.exclusively([hosted], 'being resumed', () => resumeDomain(this, hosted, options));
  }

  /** Ends a domain at once, whatever is under way with it (a guest that is half started has 10 s to be there), and removes its devices and its part of xenstore. */
  destroy(hosted: HostedDomain): Promise<void> {
    this.rebooting.delete(hosted);
    return this.endOnce(hosted);
  }

  private endOnce(hosted: HostedDomain): Promise<void> {
    let ending = this.endings.get(hosted);
    if (ending === undefined) {
      ending = this.end(hosted).catch(error => {
        this.endings.delete(hosted);
        throw error;
      });
      this.endings.set(hosted, ending);
      this.destroyers.get(hosted)?.abort(destroyedError(hosted));
    }
    return ending;
  }

  private async end(hosted: HostedDomain): Promise<void> {
    const { domain, identity } = hosted;
    const start = this.starts.get(hosted);
    // What is half started cannot be stopped.
    if (start !== undefined)
      await this.unlessLate(
        start.done.catch(() => {}),
        DESTROY_TIMEOUT_MS,
      );
    try {
      await hosted.booted?.guest.stop();
    } catch (error) {
      domain.platform.log(`stopping the guest: ${(error as Error).message}`);
    }
    hosted.booted?.kernel?.reclaimer.stop();
    domain.destroy();
    start?.giveUp();
    await Promise.all([...hosted.vifs.values()].map(vif => this.detach(hosted, vif, true)));
    await removeDomain(this.xs, identity);
    this.hosted.delete(domain.domid);
    if (!this.kernels.delete(hosted)) return;
    for (const watcher of this.kernelWatchers) watcher.went(hosted.config.name);
  }

  private kernelCame(hosted: HostedDomain, kernel: Kernel): void {
    this.kernels.set(hosted, kernel);
    for (const watcher of this.kernelWatchers) watcher.came(hosted.config.name, kernel);
  }

  /** Tells of the kernels that run now, then of those that come and go. @returns a function that ends it */
  watchKernels(watcher: KernelWatcher): () => void {
    watcher.came('Domain-0', this.dom0);
    for (const [{ config }, kernel] of this.kernels) watcher.came(config.name, kernel);
    this.kernelWatchers.add(watcher);
    return () => this.kernelWatchers.delete(watcher);
  }

  private domainChanged(domain: Domain): void {
    const hosted = this.hosted.get(domain.domid);
    if (hosted?.domain !== domain || domain.state !== 'shutdown' || domain.shutdownReason === 'suspend')
      return;
    const ended = domain.shutdownReason === 'reboot' ? this.reboot(hosted) : this.destroy(hosted);
    ended.catch(error => {
      this.dom0.platform.log(`toolstack: ${hosted.config.name}: ${(error as Error).message}`);
    });
  }

  /** Ends a domain, and creates it anew as it is now, unless somebody destroys it meanwhile. */
  private async reboot(hosted: HostedDomain): Promise<void> {
    this.rebooting.add(hosted);
    const config = await configNow(this, hosted);
    await this.endOnce(hosted);
    if (!this.rebooting.delete(hosted) || this.stopping) return;
    await this.create(config, { uuid: hosted.identity.uuid });
  }

  list(): DomainInfo[] {
    const info = (domain: Domain, guest: string, memoryMib: number, vifs: number): DomainInfo => {
      const { domid, name, vcpus } = domain;
      return { domid, name, memoryMib, vcpus: vcpus.length, state: stateOf(domain), guest, vifs };
    };
    const dom0 = this.hypervisor.domain(0)!;
    return [
      info(dom0, 'netback', Math.ceil(dom0.pages / PAGES_PER_MIB), 0),
      ...Array.from(this.hosted.values(), ({ domain, config, vifs }) =>
        info(domain, config.guest.kind, config.memory, vifs.size),
      ),
    ];
  }

  // ---------------------------------------------------------------- vifs

  /**
   * Attaches a vif to a domain.
   * @returns its devid
   * @throws ToolstackError EEXIST for a devid that is in use, EINVAL for a backend that is none, ETIMEDOUT, ENODEV when it
   * is detached meanwhile, EOPNOTSUPP for antispoof with another domain's backend; EBUSY, ESRCH as `exclusively`
   */
  async attachVif(hosted: HostedDomain, vif: VifConfig): Promise<number> {
    this.requireFree(hosted);
    let devid = vif.devid ?? 0;
    if (vif.devid === undefined) while (hosted.vifs.has(devid)) devid++;
    await this.attach(hosted, vif, devid);
    return devid;
  }

  /**
   * Detaches a vif: asks its backend to close, waits for that, removes its nodes. Whoever asks while it is being detached
   * waits for the same end.
   * @param force does not wait for the guest
   * @throws ToolstackError ENODEV; EBUSY, ESRCH as `exclusively`
   */
  async detachVif(hosted: HostedDomain, devid: number, force = false): Promise<void> {
    this.requireFree(hosted);
    const vif = hosted.vifs.get(devid);
    if (vif === undefined) {
      const there = [...hosted.vifs.keys()].join(', ') || 'none';
      throw new ToolstackError(
        'ENODEV',
        `the domain ${hosted.config.name} has no vif ${devid}; there are: ${there}`,
      );
    }
    await this.detach(hosted, vif, force);
  }

  private async attach(hosted: HostedDomain, config: VifConfig, devid: number): Promise<void> {
    const { domid } = hosted.domain;
    this.requireAlive(hosted);
    if (hosted.vifs.has(devid)) {
      throw new ToolstackError('EEXIST', `the domain ${hosted.config.name} has a vif ${devid} already`);
    }
    const driver = this.driverDomain(config.backend);
    if (driver !== null && config.antispoof) {
      const { name } = driver.config;
      throw new ToolstackError(
        'EOPNOTSUPP',
        `antispoof: the backend in ${name} is not ours to set a filter in`,
      );
    }
    const backendDomid = driver?.domain.domid ?? 0;
    const mac = config.mac ?? randomMac(() => this.hypervisor.random());
    const paths = vifPaths(domid, devid, backendDomid);
    const vif: AttachedVif = {
      devid,
      config,
      mac,
      backendDomid,
      paths,
      status: 'waiting for the toolstack',
      device: null,
      writing: null,
      ending: null,
    };
    hosted.vifs.set(devid, vif);
    try {
      await this.bringUp(hosted, vif, driver);
    } catch (error) {
      vif.status = (error as Error).message;
      await this.detach(hosted, vif, true);
      // What failed then did so for that reason.
      this.requireAlive(hosted);
      throw error;
    }
  }

  private async bringUp(hosted: HostedDomain, vif: AttachedVif, driver: HostedDomain | null): Promise<void> {
    const { domid } = hosted.domain;
    const { devid, backendDomid, mac, config, paths } = vif;
    vif.writing = writeVif(this.xs, { domid, devid, backendDomid, mac }, config);
    await vif.writing;
    // Its kernel boots first.
    await driver?.booted?.guest.settled();
    vif.status = 'the toolstack waits for the backend to reach InitWait';
    const reached = await this.waitForState(
      `${paths.backend}/state`,
      state => state === undefined || Number(state) >= XenbusState.InitWait,
      INIT_TIMEOUT_MS,
    );
    this.mustStay(hosted, vif);
    if (!reached) {
      const why = this.waitingFor(hosted, vif) ?? 'no reason known';
      throw new ToolstackError(
        'ETIMEDOUT',
        `vif ${domid}.${devid}: the backend did not reach InitWait in ${INIT_TIMEOUT_MS / 1000} s (${why})`,
      );
    }
    const refusal = driver === null ? this.backendOf(domid, devid)?.refusal : null;
    if (refusal) {
      throw new ToolstackError('ENODEV', `vif ${domid}.${devid}: netback does not serve it: ${refusal}`);
    }
    vif.status = 'hotplug';
    if (driver === null) {
      vif.writing = this.online(vif, `vif${domid}.${devid}`);
      await vif.writing;
    } else {
      await this.hotplugElsewhere(driver, paths);
    }
    this.mustStay(hosted, vif);
    if (driver !== null && this.hasEnded(driver)) {
      const { name } = driver.config;
      throw new ToolstackError('ENODEV', `vif ${domid}.${devid}: its backend's domain, ${name}, is gone`);
    }
    vif.status = null;
  }

  /** @throws ToolstackError ENODEV for a vif that is being attached, and somebody has detached it; ESRCH with its domain */
  mustStay(hosted: HostedDomain, { devid, ending }: AttachedVif): void {
    if (ending === null) return;
    this.requireAlive(hosted);
    const { config } = hosted;
    throw new ToolstackError(
      'ENODEV',
      `vif ${devid} of the domain ${config.name} was detached while it was being attached`,
    );
  }

  /** The domain whose netback serves a vif; null for domain 0. @throws ToolstackError EINVAL */
  private driverDomain(backend: string): HostedDomain | null {
    if (backend === '0' || backend === 'Domain-0') return null;
    const driver = [...this.hosted.values()].find(
      ({ config, domain }) => config.name === backend || String(domain.domid) === backend,
    );
    if (driver?.config.linux?.driverDomain !== true) {
      throw new ToolstackError(
        'EINVAL',
        `backend=${backend}: netback is in domain 0, and in guests of kind "linux" with driver_domain = 1`,
      );
    }
    return driver;
  }

  /** A driver domain does by itself what the script vif-bridge does, as "xl devd" would there. */
  private async hotplugElsewhere(driver: HostedDomain, paths: VifPaths): Promise<void> {
    const done = await this.waitForState(
      `${paths.backend}/hotplug-status`,
      status => status === undefined || status === 'connected',
      HOTPLUG_TIMEOUT_MS,
    );
    if (!done) {
      throw new ToolstackError(
        'ETIMEDOUT',
        `${paths.backend}: ${driver.config.name} did not say hotplug-status "connected"`,
      );
    }
  }

  /** Ends a vif once, whoever asks; with `force` an end that waits for the guest does so no longer. */
  private async detach(hosted: HostedDomain, vif: AttachedVif, force: boolean): Promise<void> {
    if (vif.ending === null) {
      vif.ending = this.remove(hosted, vif, force).catch(error => {
        vif.ending = null;
        throw error;
      });
    } else if (force && hosted.vifs.get(vif.devid) === vif) {
      await requestClose(this.xs, vif.paths, true);
    }
    await vif.ending;
  }

  private async remove(hosted: HostedDomain, vif: AttachedVif, force: boolean): Promise<void> {
    const { paths, devid } = vif;
    vif.status = 'detaching: the toolstack waits for the backend to close';
    // Whoever writes hears of the errors.
    await vif.writing?.catch(() => {});
    if (await requestClose(this.xs, paths, force)) {
      const closed = await this.waitForState(
        `${paths.backend}/state`,
        state => state === undefined || state === String(XenbusState.Closed),
        DESTROY_TIMEOUT_MS,
      );
      if (!closed) {
        this.dom0.platform.log(
          `toolstack: ${paths.backend} did not close in ${DESTROY_TIMEOUT_MS / 1000} s: removed`,
        );
      }
    }
    const { device } = vif;
    vif.device = null;
    if (device !== null && device.master !== null) (device.master as Bridge).removePort(device);
    await removeVifNodes(this.xs, paths);
    if (vif.backendDomid === 0) {
      await this.unlessLate(this.untilGone(this.dom0, `backend/vif/${hosted.domain.domid}/${devid}`));
    }
    const kernel = hosted.booted?.kernel ?? null;
    if (kernel !== null && hosted.domain.state === 'running') {
      await this.unlessLate(this.untilGone(kernel, `device/vif/${devid}`));
    }
    if (hosted.vifs.get(devid) === vif) hosted.vifs.delete(devid);
  }

  /** Resolves when a kernel's bus has let go of a device whose directory is gone. */
  private async untilGone({ xenbus }: Kernel, nodename: string): Promise<void> {
    const { devices } = nodename.startsWith('device/') ? xenbus.frontend : xenbus.backend;
    while (devices.has(nodename)) {
      await new Promise<void>(resolve => {
        const stop = xenbus.onDevicesChanged(() => {
          stop();
          resolve();
        });
      });
    }
  }

  private unlessLate(work: Promise<void>, timeoutMs = GONE_TIMEOUT_MS): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = this.scheduler.after(timeoutMs, resolve);
      work.finally(() => this.scheduler.cancel(timer)).then(resolve, reject);
    });
  }

  /** @returns false when that took too long */
  private async waitForState(
    path: string,
    accept: (state: string | undefined) => boolean,
    timeoutMs: number,
  ): Promise<boolean> {
    const abort = new AbortController();
    const timer = this.scheduler.after(timeoutMs, () => abort.abort());
    try {
      await this.xs.waitFor(path, accept, { signal: abort.signal });
      return true;
    } catch (error) {
      if (abort.signal.aborted) return false;
      throw error;
    } finally {
      this.scheduler.cancel(timer);
    }
  }

  /** The backend's end of a vif that domain 0 serves, once its bus has found it. */
  private backendOf(domid: number, devid: number): XenbusDevice | undefined {
    return this.dom0.xenbus.backend.devices.get(`backend/vif/${domid}/${devid}`);
  }

  /** What a vif waits for, in words; null when it is connected. */
  waitingFor(hosted: HostedDomain, vif: AttachedVif): string | null {
    if (vif.status !== null) return vif.status;
    if (hosted.domain.shutdownReason === 'suspend') return 'the domain is suspended';
    const { domid } = hosted.domain;
    const { booted } = hosted;
    let wait: string | null = null;
    if (vif.backendDomid === 0) {
      const back = this.backendOf(domid, vif.devid);
      if (back === undefined) return 'waiting for the backend bus to find it';
      wait = back.waitingFor();
    }
    if (booted === null) return 'waiting for the domain to boot';
    if (wait !== null || booted.kernel === null) return wait;
    const front = booted.kernel.xenbus.frontend.devices.get(`device/vif/${vif.devid}`);
    if (front === undefined) return 'waiting for the frontend bus to find it';
    return front.waitingFor();
  }

  /** What `pvnet vif-list` shows of a domain. */
  async vifList(hosted: HostedDomain): Promise<VifInfo[]> {
    const { xs } = this;
    const { domid } = hosted.domain;
    const stateName = (state: string | undefined): string =>
      state === undefined ? 'absent' : xenbusStateName(Number(state));
    return Promise.all(
      [...hosted.vifs.values()].map(async vif => {
        const { frontend, backend } = vif.paths;
        const read = (path: string): Promise<string | undefined> => xs.readIfExists(path);
        return {
          domid,
          domain: hosted.config.name,
          devid: vif.devid,
          backendDomid: vif.backendDomid,
          mac: vif.mac,
          bridge: vif.config.bridge,
          vif: vif.device?.name ?? `vif${domid}.${vif.devid}`,
          frontendState: stateName(await read(`${frontend}/state`)),
          backendState: stateName(await read(`${backend}/state`)),
          ...(await publishedRings(node => read(`${frontend}/${node}`))),
          backendPath: backend,
          waitingFor: this.waitingFor(hosted, vif),
        };
      }),
    );
  }

  // ----------------------------------------------------------------

  /** Shuts everything down: domains in order, uplinks, xenstored. Nothing stays behind. Once is enough. */
  close(): Promise<void> {
    this.closing ??= this.closeOnce();
    return this.closing;
  }

  private async closeOnce(): Promise<void> {
    this.stopping = true;
    await Promise.all(
      [...this.hosted.values()].map(async hosted => {
        if (hosted.booted !== null && hosted.domain.state === 'running') {
          await this.shutdown(hosted).catch(() => {});
        }
        await this.destroy(hosted);
      }),
    );
    await this.abandon();
  }

  /** Lets go of the machine at once: TAPs, namespaces, the poller. For the way out in a hurry. */
  async abandon(): Promise<void> {
    this.stopping = true;
    await Promise.all([...this.hosted.values()].map(hosted => hosted.booted?.guest.stop().catch(() => {})));
    for (const uplink of this.uplinks.splice(0)) await uplink.close();
    await this.dom0.shutdown();
    this.xs.close();
    this.xenstored.close();
    this.pollerMade?.close();
    this.pollerMade = null;
  }

  private uuid(): string {
    const hex = Array.from({ length: 32 }, () => Math.floor(this.hypervisor.random() * 16).toString(16)).join(
      '',
    );
    const variant = '89ab'[Number.parseInt(hex[16], 16) & 3];
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
  }
}
