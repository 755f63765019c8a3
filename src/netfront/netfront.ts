import { RING_SIZES, XEN_NETIF_MAX_TX_SIZE, XEN_NETIF_MAX_XDP_HEADROOM } from '../abi/netif.js';
import { XenbusState } from '../abi/xenbus-state.js';
import { checkDriverOptions } from '../kernel/driver-options.js';
import type { Kernel } from '../kernel/kernel.js';
import {
  featureNodes,
  OFFLOADS,
  offloadsWithout,
  type PeerOffloads,
  peerHas,
  readPeerOffloads,
  withoutUntaken,
} from '../kernel/peer-offloads.js';
import { isValidEtherAddress, type NetDevice, type NetDeviceOps, parseAddress } from '../net/device.js';
import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import { ETH_DATA_LEN, ETH_MAX_MTU, ETH_MIN_MTU } from '../net/flags.js';
import { ethMacAddr } from '../net/link.js';
import { NETDEV_NOTIFY_PEERS } from '../net/notifier.js';
import type { Packet } from '../net/packet.js';
import { ethtoolQueueStats } from '../net/stats.js';
import { netfrontRxbufAttributes } from '../net/sysfs.js';
import { NETDEV_TX_OK } from '../net/tx-queue.js';
import type { XdpFrames } from '../net/xdp.js';
import { abortable } from '../platform/abort.js';
import type { Timer } from '../platform/scheduler.js';
import {
  isGone,
  text,
  unsigned,
  type XenbusDevice,
  type XenbusDriver,
  type XsWatch,
} from '../xenbus/index.js';
import { Control, type HashSettings } from './control.js';
import { NETFRONT_FEATURES, type NetfrontFeature } from './features.js';
import { GrantedPool } from './granted-pool.js';
import { isFilterable, MulticastFilterRequests } from './multicast.js';
import { GRANTS_PER_QUEUE, Queue, type QueueDevice } from './queue.js';

/** What the backend can do, as its xenstore keys say. */
interface BackendFeatures extends PeerOffloads {
  splitEventChannels: boolean;
  /** 0 when the backend knows one queue only. */
  maxQueues: number;
  controlRing: boolean;
  xdpHeadroom: boolean;
  multicastControl: boolean;
  /** It follows changes of `request-multicast-control`, too. */
  dynamicMulticast: boolean;
}

export interface NetfrontOptions {
  /** Queues that a device uses if its backend has as many: 1 … 8. Linux has one a processor. */
  maxQueues?: number;
  /**
   * Has a backend with a control ring keep the pages mapped that packets are sent from and received into: memory that is
   * taken at once, 2 and 1 MiB a queue, for a backend that then copies without grant operations. What is received is copied
   * once more here. A backend that is not trusted gets only the pages to receive into, which hold nothing but what it wrote.
   */
  staticGrants?: boolean;
  /**
   * Has a backend that can pass on only those groups that are in the device's list. Whoever sits above the device
   * must put there what it wants; broadcasts come anyway.
   */
  multicastControl?: boolean;
  /**
   * Takes GSO packets as old frontends of Windows did: the response before a packet tells its GSO size, instead of an extra info
   * behind its first (feature-gso-tcpv4-prefix and -tcpv6-prefix in place of feature-gso-tcpv4 and -tcpv6). From a backend
   * that does not know it, as Linux's since 4.9, no GSO packets come.
   */
  gsoPrefix?: boolean;
  /** Features that are not offered to the backend, nor taken or used when it has them; none. */
  without?: readonly NetfrontFeature[];
  /**
   * false trusts no backend, whatever the node `trusted` of a vif says: packets are sent from zeroed pages of their own (Linux's
   * xen_netfront.trusted). True when absent.
   */
  trusted?: boolean;
}

/** Queues of a device at most; more were never useful (XENNET's and XENVIF's default bound). */
export const MAX_QUEUES = 8;
/** The least that the byte queue limit of a queue leaves: the ten segments that TCP begins with go out together. */
export const QUEUE_LIMIT_MIN = 16384;
/** The keys that tell of rings and event channels. */
const RING_KEY = /^(queue-\d+|(tx|rx|ctrl)-ring-ref|event-channel(-(tx|rx|ctrl))?|multi-queue-num-queues)$/;
/** What the backend is offered. */
const OFFERED: readonly NetfrontFeature[] = [...OFFLOADS, 'rx-notify'];
/** How GSO packets are taken: with an extra info each, or with a prefix. */
const GSO_KEYS = ['feature-gso-tcpv4', 'feature-gso-tcpv6'];
/** The nodes of the device's own directory that the toolstack may change at any time. */
const FOLLOWED = /\/(mtu|disconnect|speed)$/;
/** Mb/s: a number, or bit/s with the unit that Windows' frontend takes, too. */
const SPEED = /^([0-9]{1,9})([kKmMgG]?)$/;
const SPEED_UNITS: Readonly<Record<string, number>> = { '': 1, k: 1e-3, m: 1, g: 1e3 };
/** Pauses before a connection is offered again that failed: the first, and the longest. */
const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 60_000;
/** A backend that answers nothing for that long is reminded, as Windows' frontend does. */
const WATCHDOG_MS = 30_000;
/** Pages that a queue sends from: a ring of them on their way, and as many being filled. */
const TX_PAGES_PER_QUEUE = 2 * RING_SIZES.tx;
/** With fewer no packet of 64 KiB could be sent. */
const TX_PAGES_MIN = 32;
/** Of the control ring, and of a page that one of its requests names. */
const CONTROL_GRANTS = 2;

/** A class, and not a closure for each device: the compiler finds where a call of `startXmit` goes. */
class NetfrontOps implements NetDeviceOps<Netfront> {
  startXmit(packet: Packet, dev: NetDevice<Netfront>): number {
    const queue = dev.priv.queues[packet.queue];
    if (queue !== undefined) return queue.startXmit(packet);
    dev.stats.txDropped++;
    packet.release();
    return NETDEV_TX_OK;
  }

  xdpXmit(dev: NetDevice<Netfront>, frames: XdpFrames, queue: number): number {
    return dev.priv.queues[queue]?.xdpXmit(frames) ?? 0;
  }

  flush(dev: NetDevice<Netfront>): void {
    for (const queue of dev.priv.queues) queue.flush();
  }

  setMacAddress(dev: NetDevice<Netfront>, address: Uint8Array): void {
    ethMacAddr(dev as NetDevice, address);
  }

  txTimeout(dev: NetDevice<Netfront>, queue: number): void {
    dev.priv.remind(queue);
  }

  fixFeatures(dev: NetDevice<Netfront>, features: number): number {
    return dev.priv.fixFeatures(features);
  }

  setRxMode(dev: NetDevice<Netfront>): void {
    dev.priv.followGroups();
  }

  ringSizes() {
    return RING_SIZES;
  }

  ethtoolStats(dev: NetDevice<Netfront>) {
    return ethtoolQueueStats(dev.priv.queueStats, dev.txQueues);
  }

  changeMtu(dev: NetDevice<Netfront>, mtu: number): void {
    const max = dev.priv.maxMtu;
    if (mtu > max) throw dev.error('EINVAL', `MTU ${mtu} is more than the ${max} that its backend takes`);
    dev.priv.mtuChosen();
  }
}

const OPS = new NetfrontOps();

/** The frontend of one virtual interface: the guest's eth%d. */
export class Netfront implements QueueDevice {
  readonly dev: NetDevice<Netfront>;
  queues: Queue[] = [];
  private txPool: GrantedPool | null = null;
  private control: Control | null = null;
  private backend: BackendFeatures | null = null;
  /** Why the backend is not to be trusted any more, until it reconnects. */
  private brokenReason = '';
  /** The rings are there, and the state is Connected. */
  connected = false;
  /** Whether the backend may see what else lies in pages that it is granted (`trusted`). */
  trusted = true;
  /** `mtu` of the own directory, as last read; null when it is none. */
  private mtuNode: number | null = null;
  /** `mac` of the own directory, as last read. */
  private macNode = '';
  /** The MTU that was asked for, when the backend takes only less. */
  private cutMtu: number | null = null;
  /** The first connection has brought the device up: whoever takes it down later wants it down. */
  private opened = false;
  /** `disconnect` of the own directory: the operator has pulled the cable. */
  private unplugged = false;
  /** `carrier` of the backend's directory; a backend that has none is up. */
  private backendCarrier = true;
  private carrierWatch: XsWatch | null = null;
  /** Connections in a row that the backend did not complete. */
  private failures = 0;
  /** The queue that the watchdog found last, and when. */
  private timedOut: { queue: number; stoppedAt: number } | null = null;
  private retryTimer: Timer | null = null;
  /** Queues that were last said to be all that there are means for; 0 when nothing lacked. */
  private saidQueues = 0;
  private xdpHeadroom = 0;
  /** What `setHash` was asked for last; null for nothing. */
  private hash: HashSettings | null = null;
  private multicast: MulticastFilterRequests | null = null;
  /** What `request-multicast-control` says. */
  private filtering = false;
  private readonly without: ReadonlySet<NetfrontFeature>;
  readonly taken: PeerOffloads | null;
  /** Who waits for another XDP headroom, and whether the backend was asked for it. */
  private reconfiguring: { resolve(): void; reject(error: Error): void; asked: boolean } | null = null;

  constructor(
    private readonly kernel: Kernel,
    readonly xbdev: XenbusDevice,
    private readonly options: NetfrontOptions = {},
  ) {
    this.without = new Set(options.without);
    this.taken = offloadsWithout(this.without);
    const maxQueues = options.maxQueues ?? 1;
    const queues = { txQueues: maxQueues, rxQueues: maxQueues };
    this.dev = kernel.net.allocEtherdev<Netfront>('eth%d', OPS, { priv: this, ...queues });
    const { dev } = this;
    dev.setParent('xen', xbdev.id, 'vif');
    dev.sysfs = netfrontRxbufAttributes(dev);
    dev.hwFeatures = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6;
    dev.features = dev.hwFeatures | NETIF_F_RXCSUM;
    dev.minMtu = ETH_MIN_MTU;
    dev.maxMtu = ETH_MAX_MTU;
    dev.gsoMaxSize = XEN_NETIF_MAX_TX_SIZE;
    dev.tsoMaxSize = XEN_NETIF_MAX_TX_SIZE;
    dev.watchdogMs = WATCHDOG_MS;
    for (const queue of dev.txQueues) queue.setMinLimit(QUEUE_LIMIT_MIN);
    dev.carrierOff();
  }

  get platform() {
    return this.kernel.platform;
  }

  get irqs() {
    return this.kernel.irqs;
  }

  get net() {
    return this.kernel.net;
  }

  get reclaimer() {
    return this.kernel.reclaimer;
  }

  get gsoPrefix(): boolean {
    return this.options.gsoPrefix ?? false;
  }

  get backendId(): number {
    return this.xbdev.otherendId;
  }

  /** The counters of the connection, a queue each. */
  get queueStats() {
    return this.queues.map(queue => queue.stats);
  }

  get maxMtu(): number {
    return this.backend === null || this.backend.sg ? ETH_MAX_MTU : ETH_DATA_LEN;
  }

  /** Follows the nodes of the own directory. */
  async probe(): Promise<void> {
    const { xbdev } = this;
    const isFollowed = (path: string) => path === xbdev.nodename || FOLLOWED.test(path);
    await xbdev.watchPath(xbdev.nodename, () => this.followNodes(), isFollowed);
  }

  /** The backend published its features: answers with the rings and goes to Connected. */
  async connect(): Promise<void> {
    const { xbdev, dev } = this;
    this.disconnect();
    this.failures++;
    let published: boolean;
    try {
      this.backend = await this.readBackend();
      await this.readAddress();
      await this.followCarrier();
      const trusted = (await xbdev.readUnsigned(xbdev.nodename, 'trusted', 1)) !== 0;
      this.trusted = trusted && this.options.trusted !== false;
      this.register();
      this.makeQueues(this.backend);
      if (this.backend.controlRing) this.control = this.makeControl();
      published = await this.publish(this.backend);
    } catch (error) {
      this.disconnect();
      await xbdev.fatal(error, 'connecting to the backend');
      return;
    }
    if (!published) {
      // The toolstack has taken the device away; the bus is about to tell.
      this.disconnect();
      return;
    }
    this.brokenReason = '';
    this.net.updateFeatures(dev as NetDevice);
    this.applyMtu(this.cutMtu ?? dev.mtu);
    dev.txPool = this.trusted ? this.txPool!.pages : null;
    if (!this.opened) dev.open();
    this.opened = true;
    for (const queue of this.queues) queue.start();
    if (this.options.multicastControl && this.backend.multicastControl) {
      this.multicast = new MulticastFilterRequests(dev as NetDevice, this.queues[0], this.platform.scheduler);
      this.multicast.sync();
    }
    this.connected = await xbdev.switchState(XenbusState.Connected);
    this.updateCarrier();
  }

  /** Takes the rings down; the device stays, without carrier. */
  disconnect(): void {
    this.connected = false;
    this.dev.carrierOff();
    this.dev.txPool = null;
    this.multicast?.stop();
    this.multicast = null;
    for (const queue of this.queues.splice(0)) queue.destroy();
    this.control?.destroy();
    this.control = null;
    this.txPool?.retire();
    this.txPool = null;
    if (this.retryTimer !== null) this.platform.scheduler.cancel(this.retryTimer);
    this.retryTimer = null;
    this.reconfiguring?.reject(this.dev.error('ENOTCONN', 'it was disconnected'));
    this.reconfiguring = null;
  }

  /** The backend is Connected, too. */
  async backendConnected(): Promise<void> {
    const { hash } = this;
    const first = this.failures > 0;
    this.failures = 0;
    this.net.notifiers.call(NETDEV_NOTIFY_PEERS, this.dev as NetDevice);
    // Nothing waits for it: a backend may not answer.
    if (first && this.options.staticGrants) void this.mapGrants();
    // A backend that is connected to anew knows of no hash.
    if (first && hash !== null) void this.ask('the hash', control => control.setHash(hash));
    if (this.connected) await this.reconfigure();
  }

  /** Has the backend map the pages of each queue, as many as it has room for. */
  private async mapGrants(): Promise<void> {
    const { txPool, trusted } = this;
    if (txPool === null) return;
    await this.ask('static grants', async control => {
      for (const queue of this.queues) await mapQueue(queue, control, trusted ? txPool : null);
    });
  }

  /** Asks the backend for something without which packets go, too. */
  private async ask(what: string, request: (control: Control) => Promise<void>): Promise<void> {
    const { control } = this;
    if (control === null) return;
    try {
      await request(control);
    } catch (error) {
      // A connection that has ended is nothing to tell of.
      if (this.control === control) {
        this.platform.log(`${this.dev.name}: ${what}: ${(error as Error).message}`);
      }
    }
  }

  /** The backend began anew while we are connected: the rings that it knew are of no use any more. */
  async backendRestarted(): Promise<void> {
    if (!this.connected || this.failures > 0) return;
    this.disconnect();
    await this.xbdev.switchState(XenbusState.Closing);
  }

  /** The device's list of groups, or how much it wants beside them, has changed. */
  followGroups(): void {
    const { multicast, backend, dev } = this;
    if (multicast === null) return;
    multicast.sync();
    const filtering = isFilterable(dev as NetDevice);
    if (filtering === this.filtering || !backend?.dynamicMulticast) return;
    this.filtering = filtering;
    void this.xbdev.publish({ 'request-multicast-control': Number(filtering) });
  }

  /** Offers to start over: at once after a connection that had worked, ever later after those that did not. */
  async startOver(): Promise<void> {
    const { scheduler } = this.platform;
    if (this.failures === 0) {
      await this.xbdev.switchState(XenbusState.Initialising);
      return;
    }
    const delay = Math.min(RETRY_MIN_MS * 2 ** (this.failures - 1), RETRY_MAX_MS);
    this.retryTimer ??= scheduler.after(delay, () => {
      this.retryTimer = null;
      if (this.xbdev.state === XenbusState.Closed) void this.xbdev.switchState(XenbusState.Initialising);
    });
  }

  /** The domain is about to be suspended: nothing is sent any more. */
  suspend(): void {
    this.dev.carrierOff();
  }

  /** The suspend did not happen. */
  suspendCancel(): void {
    this.updateCarrier();
  }

  /** The domain runs again, with a backend that knows nothing of it. */
  resume(): void {
    this.failures = 0;
    this.disconnect();
  }

  /**
   * Asks the backend to leave that many bytes before the data of each rx page, as an XDP program wants it. 0 for
   * none. Holds for later connections, too.
   * @throws EINVAL beyond 32767, EOPNOTSUPP for a backend that cannot, ENOTCONN when the connection ends before
   *   the backend has answered, what `Kernel.destroyed` says when the domain is destroyed before
   */
  setXdpHeadroom(bytes: number): Promise<void> {
    return abortable(this.changeXdpHeadroom(bytes), this.kernel.destroyed);
  }

  private async changeXdpHeadroom(bytes: number): Promise<void> {
    const { xbdev, dev } = this;
    if (!Number.isInteger(bytes) || bytes < 0 || bytes > XEN_NETIF_MAX_XDP_HEADROOM) {
      throw dev.error('EINVAL', `an XDP headroom is 0 to ${XEN_NETIF_MAX_XDP_HEADROOM} bytes, not ${bytes}`);
    }
    if (!this.connected) {
      this.xdpHeadroom = bytes;
      return;
    }
    if (!this.backend?.xdpHeadroom) throw dev.error('EOPNOTSUPP', 'its backend has no feature-xdp-headroom');
    if (this.reconfiguring !== null) throw dev.error('EBUSY', 'its XDP headroom is being changed');
    this.xdpHeadroom = bytes;
    const done = new Promise<void>((resolve, reject) => {
      this.reconfiguring = { resolve, reject, asked: false };
    });
    done.catch(() => {});
    // One that is on its way there would see Reconfiguring in place of Connected, and not go on.
    if (xbdev.otherendState === XenbusState.Connected) await this.reconfigure();
    await done;
  }

  /** Asks the backend for the XDP headroom that somebody waits for, if that was not done yet. */
  private async reconfigure(): Promise<void> {
    const { xbdev, reconfiguring } = this;
    if (reconfiguring === null || reconfiguring.asked) return;
    reconfiguring.asked = true;
    await xbdev.publish({ 'xdp-headroom': this.xdpHeadroom });
    await xbdev.switchState(XenbusState.Reconfiguring);
  }

  /** The backend has taken what was reconfigured. */
  async reconfigured(): Promise<void> {
    if (this.xbdev.state !== XenbusState.Reconfiguring) return;
    await this.xbdev.switchState(XenbusState.Connected);
    this.reconfiguring?.resolve();
    this.reconfiguring = null;
  }

  /**
   * Sets how the backend hashes packets to this guest and spreads them over its queues. Holds for later connections, too,
   * as far as their backends take it.
   * @throws EOPNOTSUPP without a control ring, EINVAL when the backend refuses, what `Kernel.destroyed` says when the domain is
   *   destroyed before it has answered
   */
  setHash(settings: HashSettings): Promise<void> {
    return abortable(this.changeHash(settings), this.kernel.destroyed);
  }

  private async changeHash(settings: HashSettings): Promise<void> {
    if (this.control === null)
      throw this.dev.error('EOPNOTSUPP', 'there is no control ring with its backend');
    await this.control.setHash(settings);
    this.hash = settings;
  }

  async remove(): Promise<void> {
    this.disconnect();
    this.carrierWatch = null;
    if (this.dev.registered) await this.net.unregister(this.dev as NetDevice);
  }

  broken(reason: string): void {
    if (this.brokenReason !== '') return;
    for (const queue of this.queues) queue.stop();
    this.brokenReason = reason;
    this.platform.log(`${this.dev.name}: ${reason}: disabled until the backend reconnects`);
    this.dev.carrierOff();
    void this.xbdev.error(this.dev.error('EINVAL', reason), 'the backend broke the protocol');
  }

  /** A transmit queue has been stopped for WATCHDOG_MS: an event may have been lost, on its way here or to the backend. */
  remind(queue: number): void {
    const { stoppedAt } = this.dev.txQueues[queue];
    this.timedOut = { queue, stoppedAt };
    this.queues[queue]?.poke();
    this.xbdev.xenbus.devicesChanged();
  }

  /** What the device waits for where the two states do not say it; null when they do. */
  waitingFor(): string | null {
    const { xbdev } = this;
    if (this.brokenReason !== '') return `waiting for the backend to reconnect: ${this.brokenReason}`;
    if (this.retryTimer !== null) {
      const seconds = Math.ceil((this.retryTimer.at - this.platform.scheduler.now()) / 1000);
      const times = this.failures === 1 ? 'a connection' : `${this.failures} connections`;
      return `${times} to the backend failed, see error/${xbdev.nodename}/error; trying again in ${seconds} s`;
    }
    if (xbdev.state === XenbusState.Closed && xbdev.otherendState === XenbusState.Unknown) {
      return `waiting for the backend (domain ${xbdev.otherendId}) to come back at ${xbdev.otherend}`;
    }
    if (this.connected && !this.dev.running) return `connected, but ${this.dev.name} is down`;
    if (this.connected && this.linkDown !== null) return `connected, without carrier: ${this.linkDown}`;
    if (this.connected && this.timedOut !== null) return this.unanswered(this.timedOut);
    return null;
  }

  /** Null once the queue has gone on since. */
  private unanswered({ queue, stoppedAt }: { queue: number; stoppedAt: number }): string | null {
    const { stopped, stoppedAt: since } = this.dev.txQueues[queue];
    if (!stopped || since !== stoppedAt) return null;
    return `connected; the backend has answered no tx requests of queue ${queue} for more than ${WATCHDOG_MS / 1000} s`;
  }

  /** What is wrong with a link that is connected, in words: who has taken its carrier; null when it is up. */
  get linkDown(): string | null {
    if (this.unplugged) return `${this.xbdev.nodename}/disconnect is 1`;
    return this.backendCarrier ? null : `${this.xbdev.otherend}/carrier is 0`;
  }

  private updateCarrier(): void {
    if (this.connected && this.brokenReason === '' && this.linkDown === null) this.dev.carrierOn();
    else this.dev.carrierOff();
    this.xbdev.xenbus.devicesChanged();
  }

  private async followNodes(): Promise<void> {
    const { xbdev } = this;
    const read = (node: string) => xbdev.xs.readOptional(`${xbdev.nodename}/${node}`);
    const mtu = await read('mtu');
    const unplugged = (await read('disconnect')) === '1';
    const [, number, unit] = SPEED.exec((await read('speed')) ?? '') ?? [];
    const speed = number === undefined ? 0 : Math.floor(Number(number) * SPEED_UNITS[unit.toLowerCase()]);
    this.dev.speed = speed > 0 && speed < 0x7fff_ffff ? speed : -1;
    const mtuNode = (mtu === undefined ? undefined : unsigned(mtu)) ?? null;
    if (mtuNode !== this.mtuNode) {
      this.mtuNode = mtuNode;
      if (mtuNode !== null && this.dev.registered) this.applyMtu(mtuNode);
    }
    if (unplugged !== this.unplugged) {
      this.unplugged = unplugged;
      this.updateCarrier();
    }
  }

  /** Follows the backend's `carrier`, which is elsewhere after a migration. */
  private async followCarrier(): Promise<void> {
    const { xbdev } = this;
    const path = `${xbdev.otherend}/carrier`;
    const read = async () => {
      const up = (await xbdev.xs.readOptional(path)) !== '0';
      if (up === this.backendCarrier) return;
      this.backendCarrier = up;
      this.updateCarrier();
    };
    if (this.carrierWatch?.node !== path) {
      if (this.carrierWatch !== null) await xbdev.unwatch(this.carrierWatch);
      // A backend may write anything below, as fast as it likes: one event that waits is enough.
      this.carrierWatch = await xbdev.watchPath(path, read, (_, pending) => pending === 0);
    }
    await read();
  }

  /** The device appears when it is known what its backend can do, with the payload MTU of its `mtu` node. */
  private register(): void {
    const { dev, mtuNode } = this;
    if (dev.registered) return;
    if (mtuNode !== null && mtuNode >= ETH_MIN_MTU) dev.mtu = Math.min(mtuNode, this.maxMtu);
    if (dev.mtu !== (mtuNode ?? dev.mtu)) this.cutMtu = mtuNode;
    this.net.register(dev as NetDevice);
  }

  /** Sets the payload MTU, or as much of it as the backend takes. */
  private applyMtu(wanted: number): void {
    const { dev, maxMtu } = this;
    const mtu = Math.min(wanted, maxMtu);
    try {
      dev.setMtu(mtu);
    } catch (error) {
      this.platform.log(`${dev.name}: MTU ${mtu}: ${(error as Error).message}`);
    }
    this.cutMtu = mtu < wanted ? wanted : null;
  }

  /** The guest has set an MTU: no backend that takes more makes it another. */
  mtuChosen(): void {
    this.cutMtu = null;
  }

  /** As many queues as both ends want, or as many as there are ports and grants for. */
  private makeQueues(backend: BackendFeatures): void {
    const wanted = Math.min(this.options.maxQueues ?? 1, Math.max(backend.maxQueues, 1), MAX_QUEUES);
    const { available } = this.platform.grants;
    const room = available - CONTROL_GRANTS;
    const count = Math.max(1, Math.min(wanted, Math.floor(room / GRANTS_PER_QUEUE)));
    this.txPool = this.makeTxPool(count, room);
    let lack =
      room < wanted * GRANTS_PER_QUEUE
        ? `a queue needs ${GRANTS_PER_QUEUE} grants, and ${available} are left`
        : '';
    for (let i = 0; i < count; i++) {
      try {
        this.queues.push(this.makeQueue(i, backend.splitEventChannels, this.txPool));
      } catch (error) {
        if (i === 0) throw error;
        lack = (error as Error).message;
        break;
      }
    }
    this.sayLack(wanted, lack);
    this.dev.setRealNumTxQueues(this.queues.length);
    this.dev.setRealNumRxQueues(this.queues.length);
  }

  /** Has no more pages than can be granted, beside those of rings and of what is received. */
  private makeTxPool(queues: number, room: number): GrantedPool {
    const { platform, reclaimer, backendId } = this;
    const left = room - queues * (GRANTS_PER_QUEUE - RING_SIZES.tx);
    const pages = Math.min(queues * TX_PAGES_PER_QUEUE, Math.max(left, TX_PAGES_MIN));
    return new GrantedPool(platform, reclaimer, backendId, pages);
  }

  /** Says once, and not with each connection, that there are means for so many queues only. */
  private sayLack(wanted: number, lack: string): void {
    const { length } = this.queues;
    const queues = lack === '' ? 0 : length;
    if (queues !== this.saidQueues && lack !== '') {
      const only = length < wanted ? `only ${length} of ${wanted} queues: ` : '';
      this.platform.log(`${this.dev.name}: ${only}${lack}`);
    }
    this.saidQueues = queues;
  }

  /** With split event channels if the backend has them and there are ports enough. */
  private makeQueue(index: number, split: boolean, pool: GrantedPool): Queue {
    try {
      return new Queue(this, index, split, pool);
    } catch (error) {
      if (!split) throw error;
      return new Queue(this, index, false, pool);
    }
  }

  /** Packets go without it, too. */
  private makeControl(): Control | null {
    try {
      return new Control(this, this.dev.name);
    } catch (error) {
      this.platform.log(`${this.dev.name}: no control ring: ${(error as Error).message}`);
      return null;
    }
  }

  private async readBackend(): Promise<BackendFeatures> {
    const { xbdev } = this;
    if (!(await peerHas(xbdev, 'feature-rx-copy'))) {
      throw this.dev.error(
        'ENODEV',
        'the backend has no feature-rx-copy, and page flipping is not supported',
      );
    }
    return {
      ...(await readPeerOffloads(xbdev)),
      splitEventChannels: await this.uses('split-event-channels'),
      maxQueues: await xbdev.readUnsigned(xbdev.otherend, 'multi-queue-max-queues', 0),
      controlRing: await this.uses('ctrl-ring'),
      xdpHeadroom: await peerHas(xbdev, 'feature-xdp-headroom'),
      multicastControl: await peerHas(xbdev, 'feature-multicast-control'),
      dynamicMulticast: await peerHas(xbdev, 'feature-dynamic-multicast-control'),
    };
  }

  /** Whether both ends have a feature that the backend offers. */
  private async uses(feature: NetfrontFeature): Promise<boolean> {
    return !this.without.has(feature) && (await peerHas(this.xbdev, `feature-${feature}`));
  }

  private async readAddress(): Promise<void> {
    const { xbdev } = this;
    const mac = await xbdev.scanf(xbdev.nodename, 'mac', text);
    const address = /^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/.test(mac) ? parseAddress(mac) : null;
    if (address === null || !isValidEtherAddress(address)) {
      throw this.dev.error(
        'EINVAL',
        `${xbdev.nodename}/mac is "${mac}", not an address as 00:16:3e:01:02:03`,
      );
    }
    // What the guest has set since stays, until the toolstack gives it another.
    if (mac === this.macNode) return;
    this.macNode = mac;
    this.dev.address.set(address);
  }

  /** @returns whether the directory is still ours */
  private async publish(backend: BackendFeatures): Promise<boolean> {
    const { xbdev } = this;
    const nodes: Record<string, number | null> = {};
    // A connection before this one may have had other queues or channels.
    for (const key of await this.directory()) if (RING_KEY.test(key)) nodes[key] = null;
    if (backend.maxQueues > 0) nodes['multi-queue-num-queues'] = this.queues.length;
    for (const queue of this.queues) {
      // One queue's keys lie in the device's own directory, those of several in one each.
      const prefix = this.queues.length === 1 ? '' : `queue-${queue.index}/`;
      const { txRef, rxRef, txPort, rxPort } = queue.publication;
      nodes[`${prefix}tx-ring-ref`] = txRef;
      nodes[`${prefix}rx-ring-ref`] = rxRef;
      if (txPort === rxPort) nodes[`${prefix}event-channel`] = txPort;
      else {
        nodes[`${prefix}event-channel-tx`] = txPort;
        nodes[`${prefix}event-channel-rx`] = rxPort;
      }
    }
    Object.assign(nodes, this.offered());
    if (backend.xdpHeadroom) nodes['xdp-headroom'] = this.xdpHeadroom;
    if (this.options.multicastControl && backend.multicastControl) {
      this.filtering = isFilterable(this.dev as NetDevice);
      nodes['request-multicast-control'] = Number(this.filtering);
    }
    if (this.control !== null) {
      nodes['ctrl-ring-ref'] = this.control.ringRef;
      nodes['event-channel-ctrl'] = this.control.port;
    }
    return xbdev.publish(nodes);
  }

  private offered(): Record<string, number | null> {
    const features = featureNodes(OFFERED, this.without);
    const nodes = { ...features, 'request-rx-copy': 1 };
    if (!this.gsoPrefix) return nodes;
    const prefixes = GSO_KEYS.map(key => [`${key}-prefix`, features[key]]);
    const extras = GSO_KEYS.map(key => [key, 0]);
    return { ...nodes, ...Object.fromEntries([...prefixes, ...extras]) };
  }

  private async directory(): Promise<string[]> {
    try {
      return await this.xbdev.xs.directory(this.xbdev.nodename);
    } catch (error) {
      if (isGone(error)) return [];
      throw error;
    }
  }

  fixFeatures(features: number): number {
    const { backend } = this;
    if (backend === null) return features;
    return withoutUntaken(features, backend);
  }
}

/**
 * A queue's share of the pages that packets are sent from, and all that it receives into: those last, and only if there is
 * room, as they cost a copy here.
 * @param txPool null when none of the former are to be mapped
 */
async function mapQueue(queue: Queue, control: Control, txPool: GrantedPool | null): Promise<void> {
  const { index } = queue;
  const room = await control.mappableGrants(index);
  const sent = txPool?.grantAhead(Math.min(room, TX_PAGES_PER_QUEUE)) ?? [];
  await control.mapGrants(index, sent, true);
  if (room - sent.length < queue.rxPages) return;
  let mapped = false;
  try {
    await control.mapGrants(index, queue.offerRxPages(), false);
    mapped = true;
  } finally {
    queue.rxPagesMapped(mapped);
  }
}

async function backendChanged(front: Netfront, state: number): Promise<void> {
  const { xbdev } = front;
  switch (state) {
    case XenbusState.InitWait:
      // A backend that came back while we were Closed waits for us to start over.
      if (xbdev.state === XenbusState.Closed) await xbdev.switchState(XenbusState.Initialising);
      if (xbdev.state === XenbusState.Initialising) await front.connect();
      else await front.backendRestarted();
      break;
    case XenbusState.Connected:
      await front.backendConnected();
      break;
    case XenbusState.Closing:
    case XenbusState.Closed:
      await backendClosed(front, state);
      break;
    case XenbusState.Unknown:
      // Gone without a word, as a driver domain that died. Should it come back, it finds us ready to start over.
      if (front.connected) await backendClosed(front, state);
      break;
    case XenbusState.Reconfigured:
      await front.reconfigured();
      break;
  }
}

/** Follows the backend to Closed; once it is there and stays online, offers to start over. */
async function backendClosed(front: Netfront, state: number): Promise<void> {
  const { xbdev } = front;
  if (xbdev.state !== XenbusState.Closed) {
    front.disconnect();
    await xbdev.frontendClosed();
  }
  if (state !== XenbusState.Closed) return;
  const online = await xbdev.readUnsigned(xbdev.otherend, 'online', 0);
  if (online === 1) await front.startOver();
}

/** The xenbus driver for a kernel's own interfaces. */
export function netfrontDriver(kernel: Kernel, options: NetfrontOptions = {}): XenbusDriver {
  const of = (dev: XenbusDevice) => dev.driverData as Netfront | undefined;
  return {
    name: 'netfront',
    ids: ['vif'],
    async probe(dev) {
      const front = new Netfront(kernel, dev, options);
      dev.driverData = front;
      await front.probe();
    },
    async otherendChanged(dev, state) {
      const front = of(dev);
      if (front !== undefined) await backendChanged(front, state);
    },
    async remove(dev) {
      await of(dev)?.remove();
      dev.driverData = undefined;
    },
    suspend: dev => of(dev)?.suspend(),
    suspendCancel: dev => of(dev)?.suspendCancel(),
    resume: dev => of(dev)?.resume(),
    waitingFor: dev => of(dev)?.waitingFor() ?? null,
  };
}

/**
 * Registers netfront with a kernel's frontend bus: each vif of the domain becomes an eth%d.
 * @throws ErrnoError EINVAL for options that cannot be; XenbusError EEXIST when it is registered already
 */
export async function registerNetfront(kernel: Kernel, options: NetfrontOptions = {}): Promise<void> {
  checkDriverOptions('netfront', options, NETFRONT_FEATURES);
  await kernel.xenbus.registerFrontend(netfrontDriver(kernel, options));
}
