import { type ExtraInfos, RING_SIZES, XEN_NETIF_EXTRA_TYPE_MCAST_ADD } from '../abi/netif.js';
import type { Irqs } from '../events/index.js';
import type { Kernel } from '../kernel/kernel.js';
import { offloadsWithout, type PeerOffloads, withoutUntaken } from '../kernel/peer-offloads.js';
import { GSO_MAX_SIZE, type NetDevice, type NetDeviceOps, parseAddress } from '../net/device.js';
import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import { ETH_DATA_LEN, ETH_HLEN, ETH_MAX_MTU, VLAN_HLEN } from '../net/flags.js';
import { Headers } from '../net/headers.js';
import type { Napi } from '../net/napi.js';
import type { Net } from '../net/net.js';
import type { Packet } from '../net/packet.js';
import { ethtoolQueueStats } from '../net/stats.js';
import { NETDEV_TX_OK } from '../net/tx-queue.js';
import type { Platform } from '../platform/platform.js';
import { type ControlConnection, ControlRing, type ControlTarget } from './control.js';
import { CreditLimiter, type Rate } from './credit.js';
import type { FastPath, FastPathModule } from './fast-path.js';
import type { NetbackFeature } from './features.js';
import { FILTER_PASS, FILTER_REDIRECT, FilteredPacket, type PacketFilter } from './filter.js';
import { HashConfig } from './hash.js';
import { MulticastFilter } from './multicast.js';
import { Queue, type QueueConnection, type QueueVif } from './queue.js';
import { RX_QUEUE_BYTES_MAX } from './rx-ring.js';
import { rxBytesMax, XDP_HEADROOM_MAX } from './rx-slots.js';
import type { SourceFilter } from './source-filter.js';
import type { StaticGrants } from './static-grants.js';

/** Packets that wait in the qdisc of a vif (XENVIF_QUEUE_LENGTH). */
const QUEUE_LENGTH = 32;
/**
 * The least that the byte queue limit of a queue leaves: a burst of small packets goes to the guest together, and
 * one that comes before the guest has posted requests is not lost.
 */
const QUEUE_LIMIT_MIN = RX_QUEUE_BYTES_MAX / 4;
/** An Ethernet header with a VLAN tag: what the longest packet leaves for the payload. */
const VLAN_ETH_HLEN = ETH_HLEN + VLAN_HLEN;
/** Every vif has this address, so that a bridge never picks a guest's for its own. */
const VIF_ADDRESS = 'fe:ff:ff:ff:ff:ff';

/** What the frontend said it can take. */
export interface FrontendFeatures extends PeerOffloads {
  /** GSO types, a bit each, that it takes with a prefix instead of an extra info (feature-gso-tcpv4-prefix, …). */
  readonly gsoPrefix?: number;
  /** It tells when it has posted rx requests. */
  readonly rxNotify: boolean;
  /** Bytes that it wants before the data of each rx page. */
  readonly xdpHeadroom: number;
}

const NO_FEATURES: FrontendFeatures = {
  sg: false,
  gsoTcpv4: false,
  gsoTcpv6: false,
  noCsumOffload: true,
  ipv6CsumOffload: false,
  rxNotify: false,
  xdpHeadroom: 0,
};

/** What a vif did to packets besides moving them. */
export class VifStats {
  /** From other addresses than the guest's own. */
  spoofed = 0;
  /** Dropped or redirected by the user's filter, and errors that it threw. */
  filterDrops = 0;
  filterRedirects = 0;
  filterErrors = 0;
  /** To groups that the guest did not ask for. */
  multicastFiltered = 0;
  /** Sent by the guest while the operator had taken its carrier. */
  carrierDrops = 0;
}

/** A class, and not a closure for each vif: the compiler finds where a call of `startXmit` goes. */
class VifOps implements NetDeviceOps<Vif> {
  startXmit(packet: Packet, dev: NetDevice<Vif>): number {
    return dev.priv.startXmit(packet);
  }

  selectQueue(packet: Packet, dev: NetDevice<Vif>): number {
    return dev.priv.selectQueue(packet);
  }

  fixFeatures(dev: NetDevice<Vif>, features: number): number {
    return withoutUntaken(features, dev.priv.frontend);
  }

  ringSizes() {
    return RING_SIZES;
  }

  ethtoolStats(dev: NetDevice<Vif>) {
    return ethtoolQueueStats(
      dev.priv.queues.map(queue => queue.stats),
      dev.txQueues,
    );
  }

  changeMtu(dev: NetDevice<Vif>, mtu: number): void {
    dev.priv.checkMtu(mtu);
  }
}

const OPS = new VifOps();

export interface VifOptions {
  /** Of the guest. */
  domid: number;
  /** The number of its interface. */
  handle: number;
  /**
   * What to do about a frontend that broke the protocol; called once a connection, from the data path, and so must put
   * off whatever takes time.
   */
  onFatal: (reason: string) => void;
  /** Queues that a frontend may ask for; 1 unless said otherwise. */
  maxQueues?: number;
  /** Code for packets that need nothing but checks and copies. */
  fastPathModule?: FastPathModule | null;
  /** What is not taken from the guest; of it, offloads and multicast-control count here. */
  without?: ReadonlySet<NetbackFeature>;
}

/** The backend's end of one virtual interface: the device vif<domid>.<handle> and its queues. */
export class Vif implements QueueVif, ControlTarget {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly domid: number;
  readonly handle: number;
  readonly fastPathModule: FastPathModule | null;
  private readonly onFatal: (reason: string) => void;
  private readonly without: ReadonlySet<NetbackFeature>;
  readonly dev: NetDevice<Vif>;
  /** In the order of the frontend's numbers; none while disconnected. */
  readonly queues: Queue[] = [];
  readonly stats = new VifStats();
  readonly hash = new HashConfig();
  readonly multicast = new MulticastFilter();
  /** Whether the guest gets only the groups that it asked for (request-multicast-control). */
  multicastControl = false;
  /** Whom the guest may send as; null for anybody. */
  sourceFilter: SourceFilter | null = null;
  /** Sees every packet, both ways. */
  filter: PacketFilter | null = null;
  readonly taken: PeerOffloads | null;
  private readonly filtered: FilteredPacket;
  private readonly headers = new Headers();
  private control: ControlRing | null = null;
  frontend = NO_FEATURES;
  credit: CreditLimiter | null = null;
  /** Set once the frontend broke the protocol, until it reconnects. */
  disabled = false;
  /** The MTU that was asked for, when the guest takes only less. */
  private cutMtu: number | null = null;
  /** Whether the operator lets the link be up. */
  carrier = true;
  xdpHeadroom = 0;
  /** The first connection has brought the device up: whoever takes it down later wants it down, whatever the guest does. */
  private opened = false;
  /** Queues whose guest has not posted rx requests for too long. */
  stalledQueues = 0;

  /** Registers the device, without carrier. @throws NetError as `register` */
  constructor({ platform, irqs, net }: Pick<Kernel, 'platform' | 'irqs' | 'net'>, options: VifOptions) {
    const { domid, handle, onFatal, maxQueues = 1, fastPathModule = null, without = new Set() } = options;
    this.platform = platform;
    this.irqs = irqs;
    this.net = net;
    this.domid = domid;
    this.handle = handle;
    this.onFatal = onFatal;
    this.fastPathModule = fastPathModule;
    this.without = without;
    this.taken = offloadsWithout(without);
    const queues = { txQueues: maxQueues, rxQueues: maxQueues };
    this.dev = net.allocEtherdev<Vif>(`vif${domid}.${handle}`, OPS, { priv: this, ...queues });
    this.filtered = new FilteredPacket(net.materialiser);
    const { dev } = this;
    dev.hwFeatures = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6;
    dev.features = dev.hwFeatures | NETIF_F_RXCSUM;
    dev.txQueueLen = QUEUE_LENGTH;
    for (const queue of dev.txQueues) queue.setMinLimit(QUEUE_LIMIT_MIN);
    dev.address.set(parseAddress(VIF_ADDRESS));
    dev.maxMtu = ETH_MAX_MTU - VLAN_ETH_HLEN;
    dev.carrierOff();
    net.register(dev as NetDevice);
  }

  get name(): string {
    return this.dev.name;
  }

  get sendsPlainly(): boolean {
    return this.carrier && this.sourceFilter === null && this.filter === null && this.taken === null;
  }

  get receivesPlainly(): boolean {
    return (
      this.queues.length === 1 &&
      this.dev.realNumTxQueues === 1 &&
      !this.disabled &&
      !this.hash.enabled &&
      this.filter === null
    );
  }

  targetOf({ priv }: NetDevice): FastPath | null {
    return priv instanceof Vif && priv.queues.length === 1 ? priv.queues[0].fastPath : null;
  }

  get connected(): boolean {
    return this.queues.length > 0;
  }

  /** Attaches to the frontend's rings. @throws as `Queue`; nothing stays behind then */
  connect(
    frontend: FrontendFeatures,
    connections: readonly QueueConnection[],
    control: ControlConnection | null = null,
  ): void {
    this.frontend = frontend;
    this.disabled = false;
    try {
      for (const connection of connections) {
        const index = this.queues.length;
        const suffix = connections.length === 1 ? '' : `-q${index}`;
        this.queues.push(new Queue(this, index, connection, `${this.dev.name}${suffix}`));
      }
      if (control !== null) this.control = new ControlRing(this, control, this.dev.name);
    } catch (error) {
      this.destroyQueues();
      throw error;
    }
    this.dev.setRealNumTxQueues(connections.length);
    this.dev.setRealNumRxQueues(connections.length);
    this.net.updateFeatures(this.dev as NetDevice);
    this.fitMtu();
    if (!this.opened) this.dev.open();
    this.opened = true;
    for (const queue of this.queues) queue.start();
    this.setXdpHeadroom(frontend.xdpHeadroom);
    this.updateCarrier();
  }

  /** Without scatter-gather the guest takes no long frames; one that takes them later gets them again. */
  private fitMtu(): void {
    const wanted = this.cutMtu ?? this.dev.mtu;
    const mtu = this.frontend.sg ? wanted : Math.min(wanted, ETH_DATA_LEN);
    try {
      if (mtu !== this.dev.mtu) this.dev.setMtu(mtu);
    } catch (error) {
      this.platform.log(`${this.name}: MTU ${mtu}: ${(error as Error).message}`);
    }
    this.cutMtu = mtu < wanted ? wanted : null;
  }

  /** The guest computes checksums itself from now on, and wants those of others computed; or no longer. */
  setNoCsumOffload(noCsumOffload: boolean): void {
    this.frontend = { ...this.frontend, noCsumOffload };
    this.net.updateFeatures(this.dev as NetDevice);
  }

  /** The counters of the device, of the vif, and of its queues together, by name, as `pvnet stats` shows them. */
  counters(): Record<string, number> {
    const counters: Record<string, number> = { ...this.dev.stats, ...this.stats };
    for (const { stats } of this.queues) {
      for (const [key, value] of Object.entries(stats)) counters[key] = (counters[key] ?? 0) + value;
    }
    return counters;
  }

  /** The control ring and what was set by it, a line each; nothing without one. */
  dumpControl(): string[] {
    return this.control === null ? [] : [this.control.dump(), this.hash.dump()];
  }

  get waitingPages(): number {
    return this.queues.reduce((sum, queue) => sum + queue.waitingPages, 0);
  }

  get rxNotify(): boolean {
    return this.frontend.rxNotify;
  }

  get gsoPrefix(): number {
    return this.frontend.gsoPrefix ?? 0;
  }

  /** Takes the link down, whatever the frontend does, or lets it be up again; also for later connections. */
  setCarrier(up: boolean): void {
    this.carrier = up;
    this.updateCarrier();
  }

  /** Leaves so many bytes, or as many as a page can spare, before the data of each rx page. */
  setXdpHeadroom(bytes: number): void {
    this.xdpHeadroom = Math.min(bytes, XDP_HEADROOM_MAX);
    this.dev.gsoMaxSize = Math.min(GSO_MAX_SIZE, rxBytesMax(this.xdpHeadroom));
  }

  rxStalled(stalled: boolean): void {
    this.stalledQueues += stalled ? 1 : -1;
    if (stalled) this.platform.log(`${this.name}: the guest has posted no rx requests for too long`);
    this.updateCarrier();
  }

  private updateCarrier(): void {
    if (this.connected && this.carrier && !this.disabled && this.stalledQueues === 0) this.dev.carrierOn();
    else this.dev.carrierOff();
  }

  /** Bounds what the guest may send, on all queues together; also for later connections. */
  setRate(rate: Rate | null): void {
    const { credit } = this;
    this.credit = rate === null ? null : new CreditLimiter(this.platform.scheduler, rate);
    credit?.stop();
  }

  /** Lets go of the rings; the device stays, without carrier. */
  disconnect(): void {
    this.dev.carrierOff();
    this.destroyQueues();
  }

  /** Disconnects and unregisters the device. */
  async destroy(): Promise<void> {
    this.disconnect();
    await this.net.unregister(this.dev as NetDevice);
  }

  fatal(reason: string): void {
    if (this.disabled) return;
    this.disabled = true;
    this.platform.log(`${this.name}: ${reason}: the vif is disabled`);
    for (const queue of this.queues) queue.stop();
    this.dev.carrierOff();
    this.onFatal(reason);
  }

  get staticGrants(): readonly StaticGrants[] {
    return this.queues.map(queue => queue.staticGrants);
  }

  receive(packet: Packet, napi: Napi): void {
    const { sourceFilter, filter, dev } = this;
    if (!this.carrier) {
      this.stats.carrierDrops++;
      dev.stats.rxDropped++;
      packet.release();
      return;
    }
    if (sourceFilter !== null && !sourceFilter.allows(packet, this.headers)) {
      this.stats.spoofed++;
      dev.stats.rxDropped++;
      packet.release();
      return;
    }
    if (filter === null || this.passes(filter, packet, true)) napi.receive(packet);
  }

  changeMulticast(infos: ExtraInfos): boolean {
    if (this.without.has('multicast-control')) return false;
    if (infos.multicast === XEN_NETIF_EXTRA_TYPE_MCAST_ADD) return this.multicast.add(infos.multicastAddress);
    this.multicast.delete(infos.multicastAddress);
    return true;
  }

  /** Asks the user's filter. @returns whether the packet goes on; otherwise its reference is gone */
  private passes(filter: PacketFilter, packet: Packet, fromGuest: boolean): boolean {
    const { stats, filtered } = this;
    let verdict = -1;
    try {
      verdict = filtered.run(filter, packet, this.dev.name, fromGuest);
    } catch (error) {
      // One line for the first, a count for all: a filter that always throws must not fill the log.
      if (stats.filterErrors++ === 0) this.platform.log(`${this.dev.name}: the filter threw ${error}`);
    }
    if (verdict === FILTER_PASS) return true;
    const target = verdict === FILTER_REDIRECT ? this.net.byName(filtered.target) : undefined;
    if (target === undefined) {
      stats.filterDrops++;
      packet.release();
    } else {
      stats.filterRedirects++;
      target.xmit(packet, true);
    }
    return false;
  }

  selectQueue(packet: Packet): number {
    const count = this.queues.length;
    if (count < 2) return 0;
    if (!this.hash.enabled) return this.net.flowHash(packet) % count;
    this.hash.apply(packet, this.headers);
    return this.hash.queueOf(packet, count);
  }

  private destroyQueues(): void {
    this.control?.destroy();
    this.control = null;
    this.multicast.clear();
    Object.assign(this.hash, { algorithm: 0, flags: 0, mappingSize: 0 });
    for (const queue of this.queues.splice(0)) queue.destroy();
    this.credit?.stop();
  }

  startXmit(packet: Packet): number {
    const queue = this.queues[packet.queue];
    if (queue === undefined) {
      this.dev.stats.txDropped++;
      packet.release();
      return NETDEV_TX_OK;
    }
    if (this.multicastControl && !this.multicast.allows(packet.memory.u8, packet.data)) {
      this.stats.multicastFiltered++;
      this.dev.stats.txDropped++;
      packet.release();
      return NETDEV_TX_OK;
    }
    if (this.hash.enabled) {
      if (this.queues.length === 1) this.hash.apply(packet, this.headers);
    } else packet.hashType = -1;
    if (this.filter === null || this.passes(this.filter, packet, false)) queue.enqueue(packet);
    return NETDEV_TX_OK;
  }

  checkMtu(mtu: number): void {
    // The script sets the MTU before the frontend has said what it can; `connect` cuts what is too much.
    const max = this.frontend.sg || !this.connected ? ETH_MAX_MTU - VLAN_ETH_HLEN : ETH_DATA_LEN;
    if (mtu > max) throw this.dev.error('EINVAL', `MTU ${mtu} is more than the ${max} that it can send`);
    this.cutMtu = null;
  }
}

/** The vifs that a kernel serves, as its devices stand in the list. */
export function vifsOf(net: Net): Vif[] {
  return Array.from(net.devices, ({ priv }) => priv).filter(priv => priv instanceof Vif);
}
