import { Irqs } from '../../src/events/index.js';
import { Bridge } from '../../src/net/bridge.js';
import { NETIF_F_ALL_TSO, NETIF_F_CSUM_MASK, NETIF_F_SG, Net, type NetDevice } from '../../src/net/index.js';
import { FastPathModule } from '../../src/netback/fast-path.js';
import { type FrontendFeatures, Vif } from '../../src/netback/index.js';
import { Queue as FrontQueue, GrantedPool, QUEUE_LIMIT_MIN } from '../../src/netfront/index.js';
import {
  type GrantMapping,
  GrantReclaimer,
  HypercallError,
  type Platform,
} from '../../src/platform/index.js';
import { type Domain, Hypervisor, SeededScheduler } from '../../src/platform/sim/index.js';

export const ALL_FEATURES: FrontendFeatures = {
  sg: true,
  gsoTcpv4: true,
  gsoTcpv6: true,
  noCsumOffload: false,
  ipv6CsumOffload: true,
  rxNotify: true,
  xdpHeadroom: 0,
};

/** What a domain's kernel has for the data path; no xenbus. */
export class Dom {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly reclaimer: GrantReclaimer;

  constructor(
    readonly domain: Domain,
    platform = domain.platform,
    pageLimit?: number,
  ) {
    const { scheduler, memory, grants } = platform;
    this.platform = platform;
    this.irqs = new Irqs(platform);
    this.net = new Net({
      scheduler,
      memory,
      grants,
      log: line => platform.log(line),
      random: () => platform.random(),
      pageLimit,
    });
    this.reclaimer = new GrantReclaimer(platform);
  }
}

/** The same platform with something else in the place of some of its grant operations. */
export function withGrants(platform: Platform, changes: Readonly<Record<string, unknown>>): Platform {
  const grants = new Proxy(platform.grants, {
    get(target, key) {
      if (typeof key === 'string' && key in changes) return changes[key];
      const value = Reflect.get(target, key);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  return new Proxy(platform, {
    get: (target, key) => {
      if (key === 'grants') return grants;
      const value = Reflect.get(target, key);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

/** The same platform without the grant operations that a process on a real Xen host does not have. */
export function tieGrants(platform: Platform): Platform {
  const refuse = (): never => {
    throw new HypercallError('EOPNOTSUPP', 'grants are tied to their pages');
  };
  return withGrants(platform, {
    regrantable: false,
    alloc: refuse,
    free: refuse,
    grant: refuse,
    end: refuse,
  });
}

/** A guest whose eth0 is connected to a vif on dom0's bridge, without the xenbus handshake. */
export interface Guest {
  readonly dom: Dom;
  readonly dev: NetDevice;
  readonly queue: FrontQueue;
  readonly vif: Vif;
  readonly broken: string[];
  readonly fatal: string[];
  /** Lets go of the rings as they are, as a backend that dies, and connects to them anew. */
  replaceBackend(): void;
  disconnect(): void;
}

/** A host of the data path alone, on virtual time. */
export class DataPath {
  readonly scheduler: SeededScheduler;
  readonly hypervisor: Hypervisor;
  readonly dom0: Dom;
  readonly bridge: Bridge;
  /** What all vifs of guests, and of attackers, pass usual packets with. */
  readonly fastPathModule: FastPathModule | null;
  /** Packets that took the fast path. */
  fastPackets = 0;

  /**
   * @param pageLimit pages that packets of domain 0 may take together
   * @param fastPath false to have TypeScript take every packet
   */
  constructor(seed = 1, pageLimit?: number, fastPath = true) {
    this.scheduler = new SeededScheduler(seed, {
      yieldToMicrotasks: () => new Promise(resolve => setImmediate(resolve)),
    });
    const { random } = this.scheduler;
    this.hypervisor = new Hypervisor({ scheduler: this.scheduler, random, memoryBytes: 64 << 20 });
    const domain = this.hypervisor.createDomain({ name: 'dom0', privileged: true });
    this.dom0 = new Dom(domain, domain.platform, pageLimit);
    this.bridge = new Bridge(this.dom0.net, 'xenbr0');
    this.dom0.net.register(this.bridge as NetDevice);
    this.bridge.open();
    this.fastPathModule = fastPath ? this.loadFastPath() : null;
  }

  private loadFastPath(): FastPathModule | null {
    const module = FastPathModule.load(this.dom0.platform);
    if (module === null) return null;
    const forward = (block: number, limit: number): number => {
      const packets = module.forward(block, limit);
      this.fastPackets += packets;
      return packets;
    };
    return Object.create(module, { forward: { value: forward, configurable: true } });
  }

  /**
   * @param options.mtu of both ends; the bridge takes the lowest of its ports
   * @param options.gsoPrefix what the frontend knows of GSO prefixes; the backend does what `features` say
   * @param options.tied the guest's grants are tied to their pages, as those of a process on a real Xen host
   */
  guest(
    options: {
      features?: FrontendFeatures;
      split?: boolean;
      mtu?: number;
      tied?: boolean;
      gsoPrefix?: boolean;
    } = {},
  ): Guest {
    const domain = this.hypervisor.createDomain();
    const dom = new Dom(domain, options.tied ? tieGrants(domain.platform) : domain.platform);
    const { domid } = dom.platform;
    const broken: string[] = [];
    const fatal: string[] = [];
    const dev = dom.net.allocEtherdev('eth%d', {
      startXmit: packet => queue.startXmit(packet),
      flush: () => queue.flush(),
    }) as NetDevice;
    dev.txQueues[0].setMinLimit(QUEUE_LIMIT_MIN);
    if (options.mtu !== undefined) dev.mtu = options.mtu;
    dev.address.set([0, 0x16, 0x3e, 0, 0, domid]);
    dev.hwFeatures = NETIF_F_SG | NETIF_F_ALL_TSO | NETIF_F_CSUM_MASK;
    dev.features = dev.hwFeatures;
    dom.net.register(dev);
    const granted = new GrantedPool(dom.platform, dom.reclaimer, 0, 512);
    const queue: FrontQueue = new FrontQueue(
      {
        ...dom,
        dev,
        backendId: 0,
        trusted: true,
        gsoPrefix: options.gsoPrefix,
        broken: reason => broken.push(reason),
      },
      0,
      options.split ?? true,
      granted,
    );
    dev.txPool = granted.pages;
    const { platform } = this.dom0;
    const onFatal = (reason: string) => fatal.push(reason);
    const vif = new Vif(this.dom0, { domid, handle: 0, onFatal, fastPathModule: this.fastPathModule });
    if (options.mtu !== undefined) vif.dev.mtu = options.mtu;
    const { txRef, rxRef, txPort, rxPort } = queue.publication;
    let mappings: GrantMapping[] = [];
    const connect = (): void => {
      mappings = [txRef, rxRef].map(ref => platform.grants.map(domid, ref, false));
      const [txRing, rxRing] = mappings;
      vif.connect(options.features ?? ALL_FEATURES, [{ domid, txRing, rxRing, txPort, rxPort }]);
    };
    const disconnect = (): void => {
      vif.disconnect();
      for (const mapping of mappings) platform.grants.unmap(mapping);
    };
    connect();
    this.bridge.addPort(vif.dev as NetDevice);
    dev.open();
    queue.start();
    return {
      dom,
      dev,
      queue,
      vif,
      broken,
      fatal,
      replaceBackend() {
        disconnect();
        connect();
      },
      disconnect() {
        disconnect();
        queue.destroy();
        granted.retire();
      },
    };
  }

  async settle(): Promise<void> {
    await this.scheduler.runUntil(() => this.scheduler.idle);
  }
}
