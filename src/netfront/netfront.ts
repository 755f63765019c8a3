import { XenbusState } from '../abi/xenbus-state.js';
import type { Kernel } from '../kernel/kernel.js';
import { isValidEtherAddress, type NetDevice, parseAddress } from '../net/device.js';
import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import { NETDEV_NOTIFY_PEERS } from '../net/notifier.js';
import { netfrontRxbufAttributes } from '../net/sysfs.js';
import { NETDEV_TX_OK } from '../net/tx-queue.js';
import { text, type XenbusDevice, type XenbusDriver } from '../xenbus/index.js';
import { Control, type HashSettings } from './control.js';
import { GrantedPool } from './granted-pool.js';
import { Queue, type QueueDevice } from './queue.js';

const ETH_DATA_LEN = 1500;
const ETH_MAX_MTU = 65535;
const ETH_MIN_MTU = 68;

/** What the backend can do, as its xenstore keys say. */
interface BackendFeatures {
  sg: boolean;
  gsoTcpv4: boolean;
  gsoTcpv6: boolean;
  noCsumOffload: boolean;
  ipv6CsumOffload: boolean;
  splitEventChannels: boolean;
  /** 0 when the backend knows one queue only. */
  maxQueues: number;
  controlRing: boolean;
}

export interface NetfrontOptions {
  /** Queues that a device uses if its backend has as many: 1 … 8. Linux has one a processor. */
  maxQueues?: number;
}

/** Queues of a device at most; more were never useful (XENNET's and XENVIF's default bound). */
export const MAX_QUEUES = 8;
/** The keys that tell of rings and event channels. */
const RING_KEY = /^(queue-\d+|(tx|rx|ctrl)-ring-ref|event-channel(-(tx|rx|ctrl))?|multi-queue-num-queues)$/;
/** Pages that a queue sends from: a ring of them on their way, and as many being filled. */
const TX_PAGES_PER_QUEUE = 512;

/** The frontend of one virtual interface: the guest's eth%d. */
export class Netfront implements QueueDevice {
  readonly dev: NetDevice<Netfront>;
  private queues: Queue[] = [];
  private txPool: GrantedPool | null = null;
  private control: Control | null = null;
  private backend: BackendFeatures | null = null;
  /** Why the backend is not to be trusted any more, until it reconnects. */
  private brokenReason = '';

  constructor(
    private readonly kernel: Kernel,
    readonly xbdev: XenbusDevice,
    private readonly options: NetfrontOptions = {},
  ) {
    this.dev = kernel.net.allocEtherdev<Netfront>(
      'eth%d',
      {
        startXmit: (packet, dev) => {
          const queue = this.queues[packet.queue];
          if (queue !== undefined) return queue.startXmit(packet);
          dev.stats.txDropped++;
          packet.release();
          return NETDEV_TX_OK;
        },
        flush: () => {
          for (const queue of this.queues) queue.flush();
        },
        fixFeatures: (_, features) => this.fixFeatures(features),
        changeMtu: (dev, mtu) => {
          const max = this.maxMtu;
          if (mtu > max)
            throw dev.error('EINVAL', `MTU ${mtu} is more than the ${max} that its backend takes`);
        },
      },
      { priv: this, txQueues: options.maxQueues ?? 1, rxQueues: options.maxQueues ?? 1 },
    );
    const { dev } = this;
    dev.setParent('xen', xbdev.id, 'vif');
    dev.sysfs = netfrontRxbufAttributes(dev);
    dev.hwFeatures = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6;
    dev.features = dev.hwFeatures | NETIF_F_RXCSUM;
    dev.minMtu = ETH_MIN_MTU;
    dev.maxMtu = ETH_MAX_MTU;
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

  get backendId(): number {
    return this.xbdev.otherendId;
  }

  /** The counters of the connection, a queue each. */
  get queueStats() {
    return this.queues.map(queue => queue.stats);
  }

  private get maxMtu(): number {
    return this.backend === null || this.backend.sg ? ETH_MAX_MTU : ETH_DATA_LEN;
  }

  /** The backend published its features: answers with the rings and goes to Connected. */
  async connect(): Promise<void> {
    const { xbdev } = this;
    this.disconnect();
    try {
      this.backend = await this.readBackend();
      await this.readAddress();
      if (!this.dev.registered) await this.register();
      this.makeQueues(this.backend);
      if (this.backend.controlRing) this.control = new Control(this, this.dev.name);
      await this.publish(this.backend);
    } catch (error) {
      this.disconnect();
      await xbdev.fatal(error, 'connecting to the backend');
      return;
    }
    this.brokenReason = '';
    this.net.updateFeatures(this.dev as NetDevice);
    if (this.dev.mtu > this.maxMtu) this.dev.mtu = this.maxMtu;
    this.dev.txPool = this.txPool!.pages;
    this.dev.open();
    for (const queue of this.queues) queue.start();
    await xbdev.switchState(XenbusState.Connected);
    this.dev.carrierOn();
  }

  /** Takes the rings down; the device stays, without carrier. */
  disconnect(): void {
    this.dev.carrierOff();
    this.dev.txPool = null;
    for (const queue of this.queues.splice(0)) queue.destroy();
    this.control?.destroy();
    this.control = null;
    this.txPool?.retire();
    this.txPool = null;
  }

  /**
   * Sets how the backend hashes packets to this guest and spreads them over its queues.
   * @throws EOPNOTSUPP without a control ring, EINVAL when the backend refuses
   */
  async setHash(settings: HashSettings): Promise<void> {
    if (this.control === null)
      throw this.dev.error('EOPNOTSUPP', 'there is no control ring with its backend');
    await this.control.setHash(settings);
  }

  async remove(): Promise<void> {
    this.disconnect();
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

  /** What the device waits for where the two states do not say it; null when they do. */
  waitingFor(): string | null {
    return this.brokenReason === '' ? null : `waiting for the backend to reconnect: ${this.brokenReason}`;
  }

  private async register(): Promise<void> {
    this.net.register(this.dev as NetDevice);
    const mtu = await this.xbdev.readUnsigned(this.xbdev.nodename, 'mtu', ETH_DATA_LEN);
    if (mtu >= ETH_MIN_MTU && mtu <= this.maxMtu) this.dev.mtu = mtu;
  }

  /** As many queues as both ends want, or as many as there are ports and grants for. */
  private makeQueues(backend: BackendFeatures): void {
    const wanted = Math.min(this.options.maxQueues ?? 1, Math.max(backend.maxQueues, 1), MAX_QUEUES);
    const { platform, reclaimer, backendId } = this;
    this.txPool = new GrantedPool(platform, reclaimer, backendId, wanted * TX_PAGES_PER_QUEUE);
    for (let i = 0; i < wanted; i++) {
      try {
        this.queues.push(this.makeQueue(i, backend.splitEventChannels, this.txPool));
      } catch (error) {
        if (i === 0) throw error;
        platform.log(`${this.dev.name}: only ${i} of ${wanted} queues: ${(error as Error).message}`);
        break;
      }
    }
    this.dev.setRealNumTxQueues(this.queues.length);
    this.dev.setRealNumRxQueues(this.queues.length);
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

  private async readBackend(): Promise<BackendFeatures> {
    const { xbdev } = this;
    const has = async (key: string) => (await xbdev.readUnsigned(xbdev.otherend, key, 0)) !== 0;
    if (!(await has('feature-rx-copy'))) {
      throw this.dev.error(
        'ENODEV',
        'the backend has no feature-rx-copy, and page flipping is not supported',
      );
    }
    return {
      sg: await has('feature-sg'),
      gsoTcpv4: await has('feature-gso-tcpv4'),
      gsoTcpv6: await has('feature-gso-tcpv6'),
      noCsumOffload: await has('feature-no-csum-offload'),
      ipv6CsumOffload: await has('feature-ipv6-csum-offload'),
      splitEventChannels: await has('feature-split-event-channels'),
      maxQueues: await xbdev.readUnsigned(xbdev.otherend, 'multi-queue-max-queues', 0),
      controlRing: await has('feature-ctrl-ring'),
    };
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
    this.dev.address.set(address);
  }

  private async publish(backend: BackendFeatures): Promise<void> {
    const { xbdev } = this;
    const keys: [string, number][] = [];
    if (backend.maxQueues > 0) keys.push(['multi-queue-num-queues', this.queues.length]);
    for (const queue of this.queues) {
      // One queue's keys lie in the device's own directory, those of several in one each.
      const prefix = this.queues.length === 1 ? '' : `queue-${queue.index}/`;
      const { txRef, rxRef, txPort, rxPort } = queue.publication;
      keys.push([`${prefix}tx-ring-ref`, txRef], [`${prefix}rx-ring-ref`, rxRef]);
      if (txPort === rxPort) keys.push([`${prefix}event-channel`, txPort]);
      else keys.push([`${prefix}event-channel-tx`, txPort], [`${prefix}event-channel-rx`, rxPort]);
    }
    keys.push(
      ['request-rx-copy', 1],
      ['feature-rx-notify', 1],
      ['feature-sg', 1],
      ['feature-gso-tcpv4', 1],
      ['feature-gso-tcpv6', 1],
      ['feature-ipv6-csum-offload', 1],
    );
    if (this.control !== null) {
      keys.push(['ctrl-ring-ref', this.control.ringRef], ['event-channel-ctrl', this.control.port]);
    }
    await xbdev.transaction(async t => {
      // A connection before this one may have had other queues or channels.
      for (const key of await t.directory(xbdev.nodename)) {
        if (RING_KEY.test(key)) await t.rm(`${xbdev.nodename}/${key}`);
      }
      for (const [key, value] of keys) await t.write(`${xbdev.nodename}/${key}`, String(value));
    });
  }

  private fixFeatures(features: number): number {
    const { backend } = this;
    if (backend === null) return features;
    if (!backend.sg) features &= ~NETIF_F_SG;
    if (!backend.gsoTcpv4) features &= ~NETIF_F_TSO;
    if (!backend.gsoTcpv6) features &= ~NETIF_F_TSO6;
    if (backend.noCsumOffload) features &= ~NETIF_F_IP_CSUM;
    if (!backend.ipv6CsumOffload) features &= ~NETIF_F_IPV6_CSUM;
    return features;
  }
}

async function backendChanged(front: Netfront, state: number): Promise<void> {
  const { xbdev } = front;
  switch (state) {
    case XenbusState.InitWait:
      // A backend that came back while we were Closed waits for us to start over.
      if (xbdev.state === XenbusState.Closed) await xbdev.switchState(XenbusState.Initialising);
      if (xbdev.state === XenbusState.Initialising) await front.connect();
      break;
    case XenbusState.Connected:
      front.net.notifiers.call(NETDEV_NOTIFY_PEERS, front.dev as NetDevice);
      break;
    case XenbusState.Closing:
    case XenbusState.Closed:
      await backendClosed(front, state);
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
  if (online === 1) await xbdev.switchState(XenbusState.Initialising);
}

/** The xenbus driver for a kernel's own interfaces. */
export function netfrontDriver(kernel: Kernel, options: NetfrontOptions = {}): XenbusDriver {
  const of = (dev: XenbusDevice) => dev.driverData as Netfront | undefined;
  return {
    name: 'netfront',
    ids: ['vif'],
    probe(dev) {
      dev.driverData = new Netfront(kernel, dev, options);
    },
    async otherendChanged(dev, state) {
      const front = of(dev);
      if (front !== undefined) await backendChanged(front, state);
    },
    async remove(dev) {
      await of(dev)?.remove();
      dev.driverData = undefined;
    },
    resume: dev => of(dev)?.disconnect(),
    waitingFor: dev => of(dev)?.waitingFor() ?? null,
  };
}

/** Registers netfront with a kernel's frontend bus: each vif of the domain becomes an eth%d. */
export async function registerNetfront(kernel: Kernel, options: NetfrontOptions = {}): Promise<void> {
  await kernel.xenbus.registerFrontend(netfrontDriver(kernel, options));
}
