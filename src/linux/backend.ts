import { parseXenbusState, XenbusState, xenbusStateName } from '../abi/xenbus-state.js';
import { Bridge } from '../net/bridge.js';
import type { NetDevice } from '../net/device.js';
import { NETDEV_REGISTER, NETDEV_UNREGISTER } from '../net/notifier.js';
import { type NetbackOptions, registerNetback } from '../netback/netback.js';
import { Vif, vifsOf } from '../netback/vif.js';
import type { VifInfo } from '../toolstack/host.js';
import { publishedRings } from '../toolstack/published-rings.js';
import { openTap } from '../uplink/tap.js';
import { TapFace } from '../uplink/tap-face.js';
import { TapPort } from '../uplink/tap-port.js';
import type { XenbusDevice } from '../xenbus/index.js';
import { type LinuxHost, openLinuxHost, untilEnded } from './host.js';
import { rerunHotplug } from './rerun-hotplug.js';
import { until } from './until.js';
import { matchesVif } from './vif-pattern.js';

/** How long packets on their way are waited for when vifs are handed over. */
const DRAIN_MS = 1000;
/** How long frontends have to close. */
const CLOSE_MS = 5000;

export interface LinuxBackendOptions {
  /**
   * The vifs are ports of this bridge of ours, and a TAP of the same name is its way to this machine. Without it each vif is
   * a TAP of its own, vif<domid>.<handle>.
   */
  bridge?: string;
  /** Vifs to serve, one match is enough; all when there are none. See `matchesVif`. */
  match?: readonly string[];
  /** `prepare` sees each vif before its guest does: there it gets its `filter`, a `sourceFilter`, or a rate. */
  netback?: Omit<NetbackOptions, 'match'>;
  /** Gets a line, without its end, for each of what there is to say. */
  log: (line: string) => void;
}

/**
 * The backend of other domains' vifs in this domain's user space. Each vif is a port of a bridge of ours, or has
 * a TAP vif<domid>.<handle> on this machine, made before the toolstack's hotplug script asks for it.
 */
export class LinuxBackend {
  private readonly faces = new Map<NetDevice, TapFace>();
  private bridge: Bridge | null = null;
  private uplink: TapPort | null = null;
  private stopping = false;
  private setFinished: () => void = () => {};
  private readonly finished = new Promise<void>(resolve => {
    this.setFinished = resolve;
  });

  private constructor(
    readonly host: LinuxHost,
    private readonly options: LinuxBackendOptions,
  ) {}

  /**
   * Opens Xen, and serves vifs from then on: those that are there, and those that come.
   * @throws as `openLinuxHost`, UplinkError for a TAP that cannot be had, NetError for a bridge's name
   */
  static async start(options: LinuxBackendOptions): Promise<LinuxBackend> {
    const host = await openLinuxHost('backend', options.log);
    const backend = new LinuxBackend(host, options);
    try {
      await backend.serve();
    } catch (error) {
      await backend.finish();
      throw error;
    }
    return backend;
  }

  /** The vifs that it serves, connected or not. Their `counters()` are what `pvnet stats` shows. */
  get vifs(): Vif[] {
    return vifsOf(this.net);
  }

  private get net() {
    return this.host.kernel.net;
  }

  private async serve(): Promise<void> {
    const { kernel, poller } = this.host;
    const { bridge: name, netback } = this.options;
    if (name !== undefined) {
      const tap = openTap(name);
      this.uplink = new TapPort(this.net, poller, tap, 'uplink');
      const bridge = new Bridge(this.net, name);
      this.net.register(bridge);
      this.bridge = bridge;
      this.bridge.open();
      this.bridge.addPort(this.uplink.device);
      this.uplink.device.open();
    }
    this.net.registerNotifier({
      name: 'backend',
      notifierCall: (event, device) => {
        if (!(device.priv instanceof Vif)) return;
        if (event === NETDEV_REGISTER) this.added(device);
        else if (event === NETDEV_UNREGISTER) this.removed(device);
      },
    });
    const match = (device: XenbusDevice): Promise<boolean> => this.isOurs(device.nodename);
    await registerNetback(kernel, { ...netback, match });
    await this.takeOver();
  }

  private async isOurs(nodename: string): Promise<boolean> {
    const { match = [] } = this.options;
    if (match.length === 0) return true;
    const { xs } = this.host.kernel.xenbus;
    const [, , domid, handle] = nodename.split('/');
    const names = {
      vif: `vif${domid}.${handle}`,
      domain: (await xs.readOptional(`/local/domain/${domid}/name`)) ?? '',
      bridge: (await xs.readOptional(`${nodename}/bridge`)) ?? '',
    };
    return match.some(pattern => matchesVif(pattern, names));
  }

  /** A vif's device appears, before its state says so to the toolstack. */
  private added(device: NetDevice): void {
    if (this.bridge !== null) {
      this.bridge.addPort(device);
      return;
    }
    const tap = openTap(device.name);
    try {
      // Whoever configures the interface decides on the MTU, as for a vif of the kernel's.
      const face = new TapFace(device, tap, this.host.poller, () => {});
      this.faces.set(device, face);
      face.start();
    } catch (error) {
      tap.close();
      throw error;
    }
  }

  private removed(device: NetDevice): void {
    this.faces.get(device)?.close();
    this.faces.delete(device);
  }

  /**
   * Takes up the vifs that a backend before this one left: their state is set back to Initialising, so that the bus
   * finds them as new ones. Their frontends stay Connected; the rings go on where they are.
   */
  private async takeOver(): Promise<void> {
    const { xs } = this.host.kernel.xenbus;
    const list = async (dir: string): Promise<string[]> => ((await xs.exists(dir)) ? xs.directory(dir) : []);
    for (const domid of await list('backend/vif')) {
      for (const handle of await list(`backend/vif/${domid}`)) {
        const dir = `backend/vif/${domid}/${handle}`;
        if (this.host.kernel.xenbus.backend.devices.has(dir) || !(await this.isOurs(dir))) continue;
        const state = parseXenbusState(await xs.readOptional(`${dir}/state`));
        if (state === XenbusState.Unknown || state === XenbusState.Initialising) continue;
        if ((await xs.readOptional(`${dir}/online`)) !== '1') {
          // The toolstack waits for somebody to say so before it removes the vif.
          await xs.write(`${dir}/state`, String(XenbusState.Closed));
          continue;
        }
        this.options.log(`vif${domid}.${handle}: taking over in state ${xenbusStateName(state)}`);
        // The one before took its interface along. A port of our bridge is none that a script would set up.
        const hotplug = `${dir}/hotplug-status`;
        if (this.bridge !== null && (await xs.readOptional(hotplug)) === '')
          await xs.write(hotplug, 'connected');
        await xs.write(`${dir}/state`, String(XenbusState.Initialising));
        const vif = `vif${domid}.${handle}`;
        if (this.bridge === null) void rerunHotplug(this.host.kernel, dir, vif, this.options.log);
      }
    }
  }

  private backendDevices(): XenbusDevice[] {
    return [...this.host.kernel.xenbus.backend.devices.values()].filter(device => device.driver !== null);
  }

  /**
   * Serves until a signal ends it, SIGTERM and SIGINT as `close` does, SIGUSR2 as `handOver`, or one of the two was called.
   * @throws SystemError ENOTCONN when the connection to xenstored is lost: the process has to end, and be started anew
   */
  run(): Promise<void> {
    const close = (): Promise<void> => this.close();
    const ends = { SIGTERM: close, SIGINT: close, SIGUSR2: () => this.handOver() };
    return untilEnded(this.host.kernel.xenbus, ends, this.finished);
  }

  /** Closes every vif and waits for the frontends to let go: they have no network afterwards. */
  async close(): Promise<void> {
    if (this.stopping) return;
    this.stopping = true;
    const devices = this.backendDevices();
    for (const device of devices) await device.switchState(XenbusState.Closing);
    const closed = (device: XenbusDevice) =>
      device.gone || device.state === XenbusState.Closed || device.otherendState === XenbusState.Closed;
    await until(() => devices.every(closed), CLOSE_MS);
    await this.finish();
  }

  /** Leaves every vif to the next backend that starts: the frontends stay connected and notice nothing but a pause. */
  async handOver(): Promise<void> {
    if (this.stopping) return;
    this.stopping = true;
    const queues = this.vifs.flatMap(vif => vif.queues);
    for (const queue of queues) queue.pause();
    const drained = await until(() => queues.every(queue => queue.inFlight === 0), DRAIN_MS);
    if (!drained) this.options.log('some packets were still on their way; their frontends may complain');
    await this.finish();
  }

  private async finish(): Promise<void> {
    await this.host.kernel.shutdown();
    for (const device of [...this.faces.keys()]) this.removed(device);
    await this.uplink?.close();
    if (this.bridge !== null) await this.net.unregister(this.bridge);
    this.host.close();
    this.setFinished();
  }

  /** What `pvnet vif-list` shows. @param domain a domain's name or number; all when undefined */
  async vifList(domain?: string): Promise<VifInfo[]> {
    const { xs } = this.host.kernel.xenbus;
    const { domid: backendDomid } = this.host.platform;
    const infos: VifInfo[] = [];
    for (const device of this.backendDevices()) {
      const [, , domid, handle] = device.nodename.split('/');
      const name = (await xs.readOptional(`/local/domain/${domid}/name`)) ?? domid;
      if (domain !== undefined && domain !== name && domain !== domid) continue;
      const front = (key: string) => xs.readOptional(`${device.otherend}/${key}`);
      infos.push({
        domid: Number(domid),
        domain: name,
        devid: Number(handle),
        backendDomid,
        mac: (await xs.readOptional(`${device.nodename}/mac`)) ?? '',
        bridge: this.options.bridge ?? (await xs.readOptional(`${device.nodename}/bridge`)) ?? '',
        vif: `vif${domid}.${handle}`,
        frontendState: xenbusStateName(await device.readOtherendState()),
        backendState: xenbusStateName(device.state),
        ...(await publishedRings(front)),
        backendPath: `/local/domain/${backendDomid}/${device.nodename}`,
        waitingFor: device.waitingFor(),
      });
    }
    return infos;
  }

  /** Counters of this process's calls into Xen, and what it holds of Xen. */
  xenCounters(): Record<string, number> {
    const { grants, events, memory } = this.host.platform;
    const cpu = process.cpuUsage();
    return {
      ...grants.counts,
      ...events.counts,
      grantsMapped: grants.mapped,
      eventChannels: events.allocated,
      pages: memory.allocated,
      cpuMs: Math.round((cpu.user + cpu.system) / 1000),
    };
  }
}
