import type { Irqs } from '../events/index.js';
import { type NetDevice, parseAddress } from '../net/device.js';
import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import type { Net } from '../net/net.js';
import type { Packet } from '../net/packet.js';
import { NETDEV_TX_OK } from '../net/tx-queue.js';
import type { Platform } from '../platform/platform.js';
import type { Rate } from './credit.js';
import { Queue, type QueueConnection, type QueueVif } from './queue.js';

/** Packets that wait in the qdisc of a vif (XENVIF_QUEUE_LENGTH). */
const QUEUE_LENGTH = 32;
/** An Ethernet header with a VLAN tag: what the longest packet leaves for the payload. */
const VLAN_ETH_HLEN = 18;
const ETH_MAX_MTU = 65535;
const ETH_DATA_LEN = 1500;
/** Every vif has this address, so that a bridge never picks a guest's for its own. */
const VIF_ADDRESS = 'fe:ff:ff:ff:ff:ff';

/** What the frontend said it can take, and where its rings are. */
export interface FrontendFeatures {
  readonly sg: boolean;
  readonly gsoTcpv4: boolean;
  readonly gsoTcpv6: boolean;
  readonly noCsumOffload: boolean;
  readonly ipv6CsumOffload: boolean;
}

const NO_FEATURES: FrontendFeatures = {
  sg: false,
  gsoTcpv4: false,
  gsoTcpv6: false,
  noCsumOffload: true,
  ipv6CsumOffload: false,
};

/** The backend's end of one virtual interface: the device vif<domid>.<handle> and its queues. */
export class Vif implements QueueVif {
  readonly dev: NetDevice<Vif>;
  /** In the order of the frontend's numbers; none while disconnected. */
  readonly queues: Queue[] = [];
  private frontend = NO_FEATURES;
  /** What the guest may send, null without a bound. */
  rate: Rate | null = null;
  /** Set once the frontend broke the protocol, until it reconnects. */
  disabled = false;

  /**
   * Registers the device, without carrier.
   * @param maxQueues queues that a frontend may ask for
   * @param onFatal what to do about a frontend that broke the protocol; called once a connection, from
   *   the data path, and so must put off whatever takes time
   * @throws NetError as `register`
   */
  constructor(
    readonly platform: Platform,
    readonly irqs: Irqs,
    readonly net: Net,
    readonly domid: number,
    readonly handle: number,
    maxQueues: number,
    private readonly onFatal: (reason: string) => void,
  ) {
    this.dev = net.allocEtherdev<Vif>(
      `vif${domid}.${handle}`,
      {
        startXmit: packet => this.startXmit(packet),
        fixFeatures: (_, features) => this.fixFeatures(features),
        changeMtu: (_, mtu) => this.checkMtu(mtu),
      },
      { priv: this, txQueues: maxQueues, rxQueues: maxQueues },
    );
    const { dev } = this;
    dev.hwFeatures = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6;
    dev.features = dev.hwFeatures | NETIF_F_RXCSUM;
    dev.txQueueLen = QUEUE_LENGTH;
    dev.address.set(parseAddress(VIF_ADDRESS));
    dev.maxMtu = ETH_MAX_MTU - VLAN_ETH_HLEN;
    dev.carrierOff();
    net.register(dev as NetDevice);
  }

  get name(): string {
    return this.dev.name;
  }

  get connected(): boolean {
    return this.queues.length > 0;
  }

  /** Attaches to the frontend's rings. @throws as `Queue`; nothing stays behind then */
  connect(frontend: FrontendFeatures, connections: readonly QueueConnection[]): void {
    this.frontend = frontend;
    this.disabled = false;
    try {
      for (const connection of connections) {
        const suffix = connections.length === 1 ? '' : `-q${this.queues.length}`;
        this.queues.push(new Queue(this, connection, `${this.dev.name}${suffix}`));
      }
    } catch (error) {
      this.destroyQueues();
      throw error;
    }
    this.dev.setRealNumTxQueues(connections.length);
    this.dev.setRealNumRxQueues(connections.length);
    this.net.updateFeatures(this.dev as NetDevice);
    if (!frontend.sg && this.dev.mtu > ETH_DATA_LEN) this.dev.mtu = ETH_DATA_LEN;
    this.dev.open();
    for (const queue of this.queues) queue.start();
    this.setRate(this.rate);
    this.dev.carrierOn();
  }

  /** Bounds what the guest may send, shared evenly by its queues; also for later connections. */
  setRate(rate: Rate | null): void {
    this.rate = rate;
    const share = Math.max(this.queues.length, 1);
    for (const queue of this.queues) {
      queue.setRate(rate === null ? null : { bytes: Math.ceil(rate.bytes / share), usec: rate.usec });
    }
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
    this.dev.carrierOff();
    this.onFatal(reason);
  }

  private destroyQueues(): void {
    for (const queue of this.queues.splice(0)) queue.destroy();
  }

  private startXmit(packet: Packet): number {
    const queue = this.queues[packet.queue];
    if (queue === undefined) {
      this.dev.stats.txDropped++;
      packet.release();
    } else queue.enqueue(packet);
    return NETDEV_TX_OK;
  }

  private fixFeatures(features: number): number {
    const { sg, gsoTcpv4, gsoTcpv6, noCsumOffload, ipv6CsumOffload } = this.frontend;
    if (!sg) features &= ~NETIF_F_SG;
    if (!gsoTcpv4) features &= ~NETIF_F_TSO;
    if (!gsoTcpv6) features &= ~NETIF_F_TSO6;
    if (noCsumOffload) features &= ~NETIF_F_IP_CSUM;
    if (!ipv6CsumOffload) features &= ~NETIF_F_IPV6_CSUM;
    return features;
  }

  private checkMtu(mtu: number): void {
    // The script sets the MTU before the frontend has said what it can; `connect` cuts what is too much.
    const max = this.frontend.sg || !this.connected ? ETH_MAX_MTU - VLAN_ETH_HLEN : ETH_DATA_LEN;
    if (mtu > max) throw this.dev.error('EINVAL', `MTU ${mtu} is more than the ${max} that it can send`);
  }
}
