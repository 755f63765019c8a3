import { ErrnoError } from '../abi/errno.js';
import { XEN_NETIF_MAX_XDP_HEADROOM } from '../abi/netif.js';
import { XenbusState, xenbusStateName } from '../abi/xenbus-state.js';
import { checkDriverOptions } from '../kernel/driver-options.js';
import type { Kernel } from '../kernel/kernel.js';
import { featureNodes, peerHas, readPeerOffloads } from '../kernel/peer-offloads.js';
import { GSO_TCPV4, GSO_TCPV6 } from '../net/packet.js';
import type { GrantMapping } from '../platform/platform.js';
import { joinPath, shorten, type XenbusDevice, type XenbusDriver, type XsWatch } from '../xenbus/index.js';
import type { ControlConnection } from './control.js';
import { parseRate } from './credit.js';
import { FastPathModule } from './fast-path.js';
import { NETBACK_FEATURES, type NetbackFeature } from './features.js';
import type { QueueConnection } from './queue.js';
import { type FrontendFeatures, Vif } from './vif.js';

/** How pages are received, which is no choice. */
const RX_NODES = { 'feature-rx-copy': 1, 'feature-rx-flip': 0 };

const MAX_HANDLE = 0xffff;
/** Queues that a frontend may have, unless the options say otherwise. */
export const DEFAULT_MAX_QUEUES = 8;

export interface NetbackOptions {
  /** Queues that a frontend may have: 1 … 8 is sensible. */
  maxQueues?: number;
  /**
   * Features that are not offered to frontends, nor taken from those that use them all the same; none. Frontends that stay
   * connected from one backend to the next know nothing of it: what they use beyond that is dropped.
   */
  without?: readonly NetbackFeature[];
  /** Called with each vif before its frontend hears of it, to set its filters; what it throws is why the vif is not served. */
  prepare?: (vif: Vif, device: XenbusDevice) => void | Promise<void>;
  /** Which vifs to serve; all. */
  match?: (device: XenbusDevice) => boolean | Promise<boolean>;
}

/** Grant references and event channel ports are read as u32; nothing larger exists. */
const MAX_U32 = 0xffffffff;

/** A queue's rings and event channels, as the frontend publishes them. */
interface PublishedRings {
  readonly txRef: number;
  readonly rxRef: number;
  readonly txPort: number;
  readonly rxPort: number;
}

interface PublishedControl {
  readonly ref: number;
  readonly port: number;
}

/** The backend of one virtual interface: from its xenstore directory to its `Vif`. */
export class Netback {
  vif: Vif | null = null;
  private mappings: GrantMapping[] = [];
  /** What the frontend had published when we connected. */
  private connectedTo = '';
  /** Of what the frontend may change while it is connected. */
  private readonly watches: XsWatch[] = [];
  private hotplugWatch: XsWatch | null = null;
  private hotplugStatus: string | undefined;
  private fatalReason = '';
  private readonly maxQueues: number;
  private readonly without: Set<NetbackFeature>;

  constructor(
    private readonly kernel: Kernel,
    readonly xbdev: XenbusDevice,
    private readonly options: NetbackOptions,
    private readonly fastPathModule: FastPathModule | null,
  ) {
    const { maxQueues = DEFAULT_MAX_QUEUES, without = [] } = options;
    this.maxQueues = without.includes('multi-queue') ? 1 : maxQueues;
    this.without = new Set(without);
    // The change of a request that is not looked at.
    if (without.includes('multicast-control')) this.without.add('dynamic-multicast-control');
  }

  private offers(feature: NetbackFeature): boolean {
    return !this.without.has(feature);
  }

  /** What the vif waits for where the two states do not say it; null when they do. */
  waitingFor(): string | null {
    const { vif, xbdev } = this;
    if (this.fatalReason !== '') return `disabled: ${this.fatalReason}`;
    if (vif?.connected && !vif.dev.running) return `connected, but ${vif.name} is down`;
    if (vif?.connected && !vif.carrier) return `connected, without carrier: ${xbdev.nodename}/carrier is 0`;
    if (vif !== null && vif.stalledQueues > 0) return 'stalled: the guest posts no rx requests';
    if (vif?.connected && xbdev.state !== XenbusState.Connected) {
      return `waiting for the hotplug script: hotplug-status is "${this.hotplugStatus ?? ''}", not "connected"`;
    }
    return null;
  }

  async probe(): Promise<void> {
    const { xbdev, kernel } = this;
    const handle = await xbdev.readUnsigned(xbdev.nodename, 'handle', -1);
    if (handle < 0 || handle > MAX_HANDLE) {
      throw new ErrnoError('EINVAL', `${xbdev.nodename}/handle is not a number from 0 to ${MAX_HANDLE}`);
    }
    const onFatal = (reason: string) => {
      this.fatalReason = reason;
      // The data path calls this: what is slow happens on xenwatch's turn.
      void xbdev.fatal(
        new ErrnoError('EINVAL', reason),
        `the frontend of ${this.vif?.name} broke the protocol`,
      );
    };
    this.vif = new Vif(kernel, {
      domid: xbdev.otherendId,
      handle,
      onFatal,
      maxQueues: this.maxQueues,
      fastPathModule: this.fastPathModule,
      without: this.without,
    });
    this.vif.dev.setParent('xen-backend', xbdev.id, 'vif');
    await this.options.prepare?.(this.vif, xbdev);
    const carrier = `${xbdev.nodename}/carrier`;
    // What the operator set before the driver was here, and what any tool writes later.
    const followCarrier = async () => {
      this.vif?.setCarrier((await xbdev.xs.readOptional(carrier)) !== '0');
      xbdev.xenbus.devicesChanged();
    };
    await followCarrier();
    await xbdev.watchPath(carrier, followCarrier);
    await xbdev.watchPath(`${xbdev.nodename}/rate`, async path => {
      this.vif?.setRate(parseRate(await xbdev.xs.readOptional(path)));
    });
    if (await xbdev.publish(this.features())) await xbdev.switchState(XenbusState.InitWait);
  }

  private features(): Record<string, number | null> {
    const keys = NETBACK_FEATURES.filter(feature => feature !== 'multi-queue');
    return {
      ...featureNodes(keys, this.without),
      ...RX_NODES,
      'multi-queue-max-queues': this.offers('multi-queue') ? this.maxQueues : null,
    };
  }

  /**
   * Takes the link down at both ends, whatever the frontend does, or lets it be up again: by `carrier` in the
   * backend's directory, which frontends of pvnet follow. What others send meanwhile is dropped.
   */
  async setCarrier(up: boolean): Promise<void> {
    this.vif?.setCarrier(up);
    await this.xbdev.publish({ carrier: up ? 1 : 0 });
    this.xbdev.xenbus.devicesChanged();
  }

  /** The frontend wants another XDP headroom. */
  async reconfigure(): Promise<void> {
    if (!this.vif?.connected) return;
    this.vif.setXdpHeadroom(await this.readXdpHeadroom());
    await this.xbdev.switchState(XenbusState.Reconfigured);
  }

  /** Takes the backend towards a state, through all states that lie between. */
  async setState(target: number): Promise<void> {
    const { xbdev } = this;
    // While the script is waited for there may be rings already, of a frontend that starts over now.
    if (target === XenbusState.InitWait && xbdev.state === target && this.vif?.connected) {
      await this.disconnect();
    }
    // It says so once more: perhaps of other rings than those that we found when it had not published its own yet.
    if (target === XenbusState.Connected && xbdev.state === target) await this.connect();
    while (xbdev.state !== target) {
      const before = xbdev.state;
      const next = await this.step(before, target);
      if (next === before || xbdev.state === before) return;
    }
  }

  /** One step from `state` towards `target`. @returns the state that was asked for */
  private async step(state: number, target: number): Promise<number> {
    const { xbdev } = this;
    const goto = async (next: XenbusState) => {
      await xbdev.switchState(next);
      return next;
    };
    switch (state) {
      case XenbusState.Closed:
        return goto(target === XenbusState.Closing ? XenbusState.Closing : XenbusState.InitWait);
      case XenbusState.Initialising:
      case XenbusState.InitWait:
        if (target === XenbusState.InitWait) return goto(XenbusState.InitWait);
        if (target !== XenbusState.Connected) return goto(XenbusState.Closing);
        return (await this.connect()) ? target : state;
      case XenbusState.Reconfigured:
        if (target === XenbusState.Connected) {
          return this.hotplugStatus === 'connected' ? goto(XenbusState.Connected) : state;
        }
        await this.disconnect();
        return goto(XenbusState.Closing);
      case XenbusState.Connected:
        await this.disconnect();
        return goto(XenbusState.Closing);
      default:
        await this.disconnect();
        return goto(XenbusState.Closed);
    }
  }

  /** Attaches to the frontend's rings. Connected is written when the hotplug script is done, too. */
  private async connect(): Promise<boolean> {
    const { xbdev } = this;
    const vif = this.vif!;
    try {
      const rings = await this.readRings();
      const control = await this.readControl();
      const name = JSON.stringify([rings, control]);
      if (vif.connected && name === this.connectedTo) return true;
      // It went and came back with other rings while nobody here looked.
      if (vif.connected) await this.disconnect();
      this.fatalReason = '';
      const frontend = await this.readFrontend();
      vif.connect(frontend, this.mapRings(rings), this.mapControl(control));
      this.connectedTo = name;
      await this.followFrontend();
    } catch (error) {
      await this.disconnect();
      await xbdev.fatal(error, `connecting ${vif.name}`);
      return false;
    }
    await this.waitForHotplug();
    return true;
  }

  private async waitForHotplug(): Promise<void> {
    const { xbdev } = this;
    const path = `${xbdev.nodename}/hotplug-status`;
    const check = async () => {
      // Without the node no script is going to run: another toolstack's convention.
      this.hotplugStatus = (await xbdev.xs.readOptional(path)) ?? 'connected';
      if (this.hotplugStatus !== 'connected' || !this.vif?.connected) return;
      // In between, the frontend has to see that we are.
      const { state, otherendState } = xbdev;
      if (state === XenbusState.Reconfigured && otherendState !== XenbusState.Connected) return;
      await xbdev.switchState(XenbusState.Connected);
    };
    this.hotplugWatch ??= await xbdev.watchPath(path, check);
  }

  private async disconnect(): Promise<void> {
    const watches = this.watches.splice(0);
    if (this.hotplugWatch !== null) watches.push(this.hotplugWatch);
    this.hotplugWatch = null;
    for (const watch of watches) await this.xbdev.unwatch(watch);
    this.vif?.disconnect();
    for (const mapping of this.mappings.splice(0)) this.kernel.platform.grants.unmap(mapping);
  }

  async remove(): Promise<void> {
    const { xbdev } = this;
    await this.disconnect();
    await this.vif?.destroy();
    this.vif = null;
    // Should a driver take the device up again, the script has to see to its new interface.
    const status = await xbdev.xs.readOptional(`${xbdev.nodename}/hotplug-status`);
    if (status === 'connected') await xbdev.publish({ 'hotplug-status': '' });
  }

  private async readFrontend(): Promise<FrontendFeatures> {
    const { xbdev } = this;
    if (!(await peerHas(xbdev, 'request-rx-copy'))) {
      throw new ErrnoError(
        'EOPNOTSUPP',
        `${xbdev.otherend}/request-rx-copy is not 1; only copying is supported`,
      );
    }
    const offloads = await readPeerOffloads(xbdev);
    // Who says both takes what is usual now.
    const prefix4 = !offloads.gsoTcpv4 && (await peerHas(xbdev, 'feature-gso-tcpv4-prefix'));
    const prefix6 = !offloads.gsoTcpv6 && (await peerHas(xbdev, 'feature-gso-tcpv6-prefix'));
    return {
      ...offloads,
      gsoTcpv4: offloads.gsoTcpv4 || prefix4,
      gsoTcpv6: offloads.gsoTcpv6 || prefix6,
      gsoPrefix: (Number(prefix4) << GSO_TCPV4) | (Number(prefix6) << GSO_TCPV6),
      rxNotify: await peerHas(xbdev, 'feature-rx-notify'),
      xdpHeadroom: await this.readXdpHeadroom(),
    };
  }

  private async readXdpHeadroom(): Promise<number> {
    if (!this.offers('xdp-headroom')) return 0;
    const asked = await this.xbdev.readUnsigned(this.xbdev.otherend, 'xdp-headroom', 0);
    return Math.min(asked, XEN_NETIF_MAX_XDP_HEADROOM);
  }

  /** Where the rings of all queues are that the frontend published. */
  private async readRings(): Promise<PublishedRings[]> {
    const { xbdev } = this;
    const key = 'multi-queue-num-queues';
    const asked = await xbdev.xs.readOptional(joinPath(xbdev.otherend, key));
    const count = asked === undefined ? 1 : await this.readNumber(xbdev.otherend, key);
    if (count < 1 || count > this.maxQueues) {
      throw new ErrnoError(
        'EINVAL',
        `${xbdev.otherend}/${key} is ${count}; there are 1 to ${this.maxQueues} queues`,
      );
    }
    const rings: PublishedRings[] = [];
    for (let i = 0; i < count; i++) {
      const dir = count === 1 ? xbdev.otherend : `${xbdev.otherend}/queue-${i}`;
      const txRef = await this.readNumber(dir, 'tx-ring-ref');
      const rxRef = await this.readNumber(dir, 'rx-ring-ref');
      const [txPort, rxPort] = await this.readPorts(dir);
      rings.push({ txRef, rxRef, txPort, rxPort });
    }
    return rings;
  }

  private async readControl(): Promise<PublishedControl | null> {
    const { xbdev } = this;
    if (!this.offers('ctrl-ring')) return null;
    if ((await xbdev.xs.readOptional(joinPath(xbdev.otherend, 'ctrl-ring-ref'))) === undefined) return null;
    return {
      ref: await this.readNumber(xbdev.otherend, 'ctrl-ring-ref'),
      port: await this.readNumber(xbdev.otherend, 'event-channel-ctrl'),
    };
  }

  private mapRings(rings: readonly PublishedRings[]): QueueConnection[] {
    const domid = this.xbdev.otherendId;
    return rings.map(({ txRef, rxRef, txPort, rxPort }) => {
      return { domid, txRing: this.map(txRef), rxRing: this.map(rxRef), txPort, rxPort };
    });
  }

  private mapControl(control: PublishedControl | null): ControlConnection | null {
    if (control === null) return null;
    return { domid: this.xbdev.otherendId, ring: this.map(control.ref), port: control.port };
  }

  private map(gref: number): GrantMapping {
    const mapping = this.kernel.platform.grants.map(this.xbdev.otherendId, gref, false);
    this.mappings.push(mapping);
    return mapping;
  }

  /** What the frontend may switch on and off while it is connected, and once what it may not. */
  private async followFrontend(): Promise<void> {
    const multicast = (on: boolean) => {
      this.vif!.multicastControl = on;
    };
    if (this.offers('multicast-control')) {
      const key = 'request-multicast-control';
      if (this.offers('dynamic-multicast-control')) await this.follow(key, multicast);
      else multicast(await peerHas(this.xbdev, key));
    }
    await this.follow('feature-no-csum-offload', on => this.vif!.setNoCsumOffload(on));
  }

  private async follow(key: string, change: (on: boolean) => void): Promise<void> {
    const { xbdev } = this;
    const read = async () => {
      const on = await peerHas(xbdev, key);
      if (this.vif?.connected) change(on);
    };
    const lastOnly = (_: string, pending: number) => pending === 0;
    this.watches.push(await xbdev.watchPath(joinPath(xbdev.otherend, key), read, lastOnly));
  }

  private async readPorts(dir: string): Promise<[tx: number, rx: number]> {
    const split = (await this.xbdev.xs.readOptional(joinPath(dir, 'event-channel-tx'))) !== undefined;
    if (split && this.offers('split-event-channels')) {
      return [await this.readNumber(dir, 'event-channel-tx'), await this.readNumber(dir, 'event-channel-rx')];
    }
    const port = await this.readNumber(dir, 'event-channel');
    return [port, port];
  }

  private async readNumber(dir: string, key: string): Promise<number> {
    const path = joinPath(dir, key);
    const text = await this.xbdev.xs.readOptional(path);
    const value = text !== undefined && /^\d{1,10}$/.test(text) ? Number(text) : -1;
    if (value < 0 || value > MAX_U32) {
      const what = text === undefined ? 'is missing' : `is "${shorten(text)}", not a number`;
      throw new ErrnoError('EINVAL', `${path} ${what}`);
    }
    return value;
  }
}

async function frontendChanged(back: Netback, state: number): Promise<void> {
  switch (state) {
    case XenbusState.Initialising:
      await back.setState(XenbusState.InitWait);
      break;
    case XenbusState.Initialised:
      break;
    case XenbusState.Connected:
      await back.setState(XenbusState.Connected);
      break;
    case XenbusState.Reconfiguring:
      await back.reconfigure();
      break;
    case XenbusState.Closing:
      await back.setState(XenbusState.Closing);
      break;
    case XenbusState.Closed:
    case XenbusState.Unknown:
      await back.setState(XenbusState.Closed);
      break;
    default:
      // Who was given up for it is not told of once more, however often it says so.
      if (back.xbdev.state === XenbusState.Closing) break;
      await back.xbdev.fatal(
        new ErrnoError('EINVAL', `a frontend is never in ${xenbusStateName(state)} here`),
        'following the frontend',
      );
  }
}

/** The xenbus driver for the vifs of other domains. */
export function netbackDriver(kernel: Kernel, options: NetbackOptions = {}): XenbusDriver {
  const of = (dev: XenbusDevice) => dev.driverData as Netback | undefined;
  const fastPathModule = FastPathModule.load(kernel.platform);
  return {
    name: 'netback',
    ids: ['vif'],
    allowRebind: true,
    match: options.match,
    async probe(dev) {
      const back = new Netback(kernel, dev, options, fastPathModule);
      dev.driverData = back;
      await back.probe();
    },
    async otherendChanged(dev, state) {
      const back = of(dev);
      if (back !== undefined) await frontendChanged(back, state);
    },
    async remove(dev) {
      await of(dev)?.remove();
      dev.driverData = undefined;
    },
    waitingFor: dev => of(dev)?.waitingFor() ?? null,
  };
}

/** What drives a device of the backend bus; undefined when that is not netback. */
export function netbackOf(device: XenbusDevice): Netback | undefined {
  return device.driverData instanceof Netback ? device.driverData : undefined;
}

/**
 * Registers netback with a kernel's backend bus: it serves every vif whose backend is this domain.
 * @throws ErrnoError EINVAL for options that cannot be; XenbusError EEXIST when it is registered already
 */
export async function registerNetback(kernel: Kernel, options: NetbackOptions = {}): Promise<void> {
  checkDriverOptions('netback', options, NETBACK_FEATURES);
  await kernel.xenbus.registerBackend(netbackDriver(kernel, options));
}
