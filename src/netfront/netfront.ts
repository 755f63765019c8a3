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
import { text, type XenbusDevice, type XenbusDriver } from '../xenbus/index.js';
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
}

/** The frontend of one virtual interface: the guest's eth%d. */
export class Netfront implements QueueDevice {
  readonly dev: NetDevice<Netfront>;
  private queue: Queue | null = null;
  private backend: BackendFeatures | null = null;
  /** Why the backend is not to be trusted any more, until it reconnects. */
  private brokenReason = '';

  constructor(
    private readonly kernel: Kernel,
    readonly xbdev: XenbusDevice,
  ) {
    this.dev = kernel.net.allocEtherdev<Netfront>(
      'eth%d',
      {
        startXmit: (packet, dev) => {
          if (this.queue !== null) return this.queue.startXmit(packet);
          dev.stats.txDropped++;
          packet.release();
          return 0;
        },
        flush: () => this.queue?.flush(),
        fixFeatures: (_, features) => this.fixFeatures(features),
        changeMtu: (dev, mtu) => {
          const max = this.maxMtu;
          if (mtu > max)
            throw dev.error('EINVAL', `MTU ${mtu} is more than the ${max} that its backend takes`);
        },
      },
      { priv: this },
    );
    const { dev } = this;
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

  /** The counters of the connection, while there is one. */
  get queueStats() {
    return this.queue?.stats;
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
      const { splitEventChannels } = this.backend;
      this.queue = this.makeQueue(splitEventChannels);
      await this.publish(this.queue);
    } catch (error) {
      this.disconnect();
      await xbdev.fatal(error, 'connecting to the backend');
      return;
    }
    this.brokenReason = '';
    this.net.updateFeatures(this.dev as NetDevice);
    if (this.dev.mtu > this.maxMtu) this.dev.mtu = this.maxMtu;
    this.dev.txPool = this.queue.txPool;
    this.dev.open();
    this.queue.start();
    await xbdev.switchState(XenbusState.Connected);
    this.dev.carrierOn();
  }

  /** Takes the rings down; the device stays, without carrier. */
  disconnect(): void {
    this.dev.carrierOff();
    this.dev.txPool = null;
    this.queue?.destroy();
    this.queue = null;
  }

  async remove(): Promise<void> {
    this.disconnect();
    if (this.dev.registered) await this.net.unregister(this.dev as NetDevice);
  }

  broken(reason: string): void {
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

  /** With split event channels if the backend has them and there are ports enough. */
  private makeQueue(split: boolean): Queue {
    try {
      return new Queue(this, 0, split);
    } catch (error) {
      if (!split) throw error;
      return new Queue(this, 0, false);
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

  private async publish(queue: Queue): Promise<void> {
    const { xbdev } = this;
    const { txRef, rxRef, txPort, rxPort } = queue.publication;
    const channels: [string, number][] =
      txPort === rxPort
        ? [['event-channel', txPort]]
        : [
            ['event-channel-tx', txPort],
            ['event-channel-rx', rxPort],
          ];
    const keys: [string, number][] = [
      ['tx-ring-ref', txRef],
      ['rx-ring-ref', rxRef],
      ...channels,
      ['request-rx-copy', 1],
      ['feature-rx-notify', 1],
      ['feature-sg', 1],
      ['feature-gso-tcpv4', 1],
      ['feature-gso-tcpv6', 1],
      ['feature-ipv6-csum-offload', 1],
    ];
    await xbdev.transaction(async t => {
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
      // A backend that came back while we were Closed has to be told to start over first.
      if (xbdev.state === XenbusState.Closed) await xbdev.switchState(XenbusState.Initialising);
      else if (xbdev.state === XenbusState.Initialising) await front.connect();
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
export function netfrontDriver(kernel: Kernel): XenbusDriver {
  const of = (dev: XenbusDevice) => dev.driverData as Netfront | undefined;
  return {
    name: 'netfront',
    ids: ['vif'],
    probe(dev) {
      dev.driverData = new Netfront(kernel, dev);
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
export async function registerNetfront(kernel: Kernel): Promise<void> {
  await kernel.xenbus.registerFrontend(netfrontDriver(kernel));
}
