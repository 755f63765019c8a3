import { isSameAddress } from './address-list.js';
import {
  etherSetup,
  type Forwarder,
  formatAddress,
  isValidEtherAddress,
  makeUpAddress,
  NET_ADDR_RANDOM,
  NetDevice,
  type RxHandler,
} from './device.js';
import { FDB_LOCAL, Fdb, type FdbEntry } from './fdb.js';
import {
  NETIF_F_ALL_TSO,
  NETIF_F_FRAGLIST,
  NETIF_F_GSO,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_LLTX,
  NETIF_F_NETNS_LOCAL,
  NETIF_F_SG,
} from './features.js';
import { ARPHRD_ETHER, ETH_HLEN, ETH_MAX_MTU, IFF_LOOPBACK, VLAN_HLEN } from './flags.js';
import type { Net } from './net.js';
import type { NotifierBlock } from './notifier.js';
import {
  NETDEV_CHANGE,
  NETDEV_CHANGEADDR,
  NETDEV_CHANGEMTU,
  NETDEV_CHANGEUPPER,
  NETDEV_DOWN,
  NETDEV_UNREGISTER,
  NETDEV_UP,
} from './notifier.js';
import type { Packet } from './packet.js';
import { GSO_NONE } from './packet.js';
import { NETDEV_TX_OK } from './tx-queue.js';

/** Ports that one bridge has at most (BR_MAX_PORTS of Linux, which has 10 bits for them). */
export const BR_MAX_PORTS = 1023;

/** What the packet's destination address is, besides an address. */
const IS_UNICAST = 0;
const IS_GROUP = 1;
/** 01:80:c2:00:00:02 … 0f: for this bridge, never forwarded (IEEE 802.1D reserved). */
const IS_RESERVED = 2;
/** 01:80:c2:00:00:01: a pause frame that its MAC should have eaten. */
const IS_PAUSE = 3;

/** A device that is a port of a bridge. */
export class BridgePort {
  /** It does not learn from this port when false. */
  learning = true;
  /** Frames to unknown addresses, to groups and to all go out here. */
  unicastFlood = true;
  multicastFlood = true;
  broadcastFlood = true;
  /** A frame may go out where it came in. */
  hairpin = false;
  /** Isolated ports do not reach each other. */
  isolated = false;
  /** Keeps the address that is registered as local, to remove it again. */
  localHigh = 0;
  localLow = 0;
  /**
   * The addresses of the last frame that another port had to be found for, as they lie in memory, and what was
   * found, which holds for the same addresses in the same softirq round and `fdb.version`. Frames come in bursts of a
   * flow.
   */
  readonly lastAddresses = new Int32Array(3);
  lastTarget: BridgePort | null = null;
  lastRound = 0;
  lastVersion = 0;
  /** What `device` gives its packets to. */
  readonly handler: RxHandler;

  constructor(
    readonly bridge: Bridge,
    readonly device: NetDevice,
    /** 1 …, as brport/port_no. */
    readonly number: number,
    receive: (port: BridgePort, packet: Packet) => void,
  ) {
    this.handler = packet => receive(this, packet);
  }

  get forwarding(): boolean {
    return this.device.passesPackets;
  }
}

export interface BridgeOptions {
  /** Remembered addresses, in all and from one port. */
  maxEntries?: number;
  maxPerPort?: number;
  /** 300 s by default; 0 floods everything. */
  ageingMs?: number;
}

/**
 * A learning Ethernet bridge. It is a device itself: what is for its own address, and all that goes to
 * groups, is received by it (`rxHandler`), and what is sent through it goes to the ports.
 *
 * It decides on the packet's head alone and never touches the data. Every port gets a packet with one
 * reference; a flooded packet becomes one packet a port over the same data.
 */
export class Bridge extends NetDevice<undefined> implements Forwarder {
  readonly fdb: Fdb;
  private readonly ports: BridgePort[] = [];
  private readonly portByNumber: (BridgePort | undefined)[] = [];
  private readonly portByDevice = new Map<NetDevice, BridgePort>();
  private readonly notifier: NotifierBlock;
  private addressIsSet = false;
  private mtuIsSet = false;

  /** Makes it; register it as any device. */
  constructor(net: Net, name: string, options: BridgeOptions = {}) {
    super(
      net,
      name,
      {
        init: device => (device as Bridge).start(),
        uninit: device => (device as Bridge).finish(),
        startXmit: (packet, device) => (device as Bridge).sendLocal(packet),
        changeMtu: device => {
          (device as Bridge).mtuIsSet = true;
        },
        setMacAddress: (device, address) => (device as Bridge).chooseAddress(address),
      },
      undefined,
      1,
      1,
    );
    etherSetup(this);
    this.noQueue = true;
    this.kind = 'bridge';
    this.driver = 'bridge';
    this.netnsLocal = true;
    this.maxMtu = ETH_MAX_MTU;
    this.hwFeatures =
      NETIF_F_SG | NETIF_F_FRAGLIST | NETIF_F_HIGHDMA | NETIF_F_HW_CSUM | NETIF_F_GSO | NETIF_F_ALL_TSO;
    this.features = this.hwFeatures | NETIF_F_LLTX | NETIF_F_NETNS_LOCAL;
    this.addrAssignType = NET_ADDR_RANDOM;
    makeUpAddress(this.address, net.random);
    this.fdb = new Fdb(
      Math.floor(net.random() * 0x7fffffff),
      options.maxEntries,
      options.maxPerPort,
      options.ageingMs,
    );
    this.notifier = {
      name: `bridge ${name}`,
      notifierCall: (event, device) => this.portEvent(event, device),
    };
  }

  /** Its ports, in the order in which they were added. */
  get portList(): readonly BridgePort[] {
    return this.ports;
  }

  portOf(device: NetDevice): BridgePort | undefined {
    return this.portByDevice.get(device);
  }

  /**
   * Makes a device a port (br_add_if).
   * @throws NetError EINVAL for a device that is not Ethernet, ELOOP for a bridge, EBUSY for a port already,
   *   EXFULL (ENOSPC here) when the bridge has 1023 ports
   */
  addPort(device: NetDevice): BridgePort {
    if ((device.flags & IFF_LOOPBACK) !== 0 || device.type !== ARPHRD_ETHER || device.addrLen !== 6) {
      throw this.error('EINVAL', `${device.name} is no Ethernet device`);
    }
    if (device instanceof Bridge) {
      throw this.error('ELOOP', `${device.name} is a bridge, and bridges cannot be ports`);
    }
    if (device.master !== null) {
      throw this.error('EBUSY', `${device.name} is a port of ${device.master.name} already`);
    }
    if (device.rxHandler !== null) throw this.error('EBUSY', `${device.name} has a receiver already`);
    let number = 1;
    while (this.portByNumber[number] !== undefined) number++;
    if (number > BR_MAX_PORTS) throw this.error('ENOSPC', `a bridge has at most ${BR_MAX_PORTS} ports`);
    const port = new BridgePort(this, device, number, (from, packet) => this.receiveFrom(from, packet));
    device.master = this;
    device.rxHandler = port.handler;
    device.forwarder = this;
    device.setAllmulti(1);
    device.setPromiscuity(1);
    this.ports.push(port);
    this.portByNumber[number] = port;
    this.portByDevice.set(device, port);
    this.setLocal(port);
    this.portsChanged();
    if (device.registered) this.net.notify(NETDEV_CHANGEUPPER, device);
    return port;
  }

  /** @throws NetError EINVAL when the device is no port of this bridge */
  removePort(device: NetDevice): void {
    const port = this.portOf(device);
    if (port === undefined) throw this.error('EINVAL', `${device.name} is not a port of it`);
    this.ports.splice(this.ports.indexOf(port), 1);
    this.portByNumber[port.number] = undefined;
    this.portByDevice.delete(device);
    device.master = null;
    device.rxHandler = null;
    device.forwarder = null;
    device.setAllmulti(-1);
    device.setPromiscuity(-1);
    this.fdb.flushPort(port.number);
    this.refreshLocals();
    this.portsChanged();
    if (device.registered) this.net.notify(NETDEV_CHANGEUPPER, device);
  }

  /** The addresses it knows, as `bridge fdb` shows them. */
  forwardingTable(): (FdbEntry & { readonly device: NetDevice })[] {
    return this.fdb.entries(this.net.now).map(entry => ({
      ...entry,
      device: entry.local ? this : (this.portByNumber[entry.port]?.device ?? this),
    }));
  }

  private start(): void {
    this.net.notifiers.add(this.notifier);
    this.setLocalAddress(this.address);
    this.portsChanged();
  }

  private finish(): void {
    this.net.notifiers.remove(this.notifier);
    for (const port of [...this.ports]) this.removePort(port.device);
  }

  private portEvent(event: number, device: NetDevice): void {
    if (device.master !== this) return;
    const port = this.portOf(device);
    if (port === undefined) return;
    switch (event) {
      case NETDEV_UNREGISTER:
        this.removePort(device);
        break;
      case NETDEV_CHANGEADDR:
        this.refreshLocals();
        this.portsChanged();
        break;
      case NETDEV_DOWN:
        this.fdb.flushPort(port.number);
        this.portsChanged();
        break;
      case NETDEV_UP:
      case NETDEV_CHANGE:
      case NETDEV_CHANGEMTU:
        this.portsChanged();
        break;
    }
  }

  /** Address, MTU and carrier follow the ports, unless the user has chosen. */
  private portsChanged(): void {
    if (!this.addressIsSet) {
      let lowest: Uint8Array | null = null;
      for (const { device } of this.ports) {
        if (lowest === null || compare(device.address, lowest) < 0) lowest = device.address;
      }
      if (lowest !== null && !isSameAddress(lowest, this.address)) {
        this.address = lowest.slice();
        if (this.registered) this.net.notify(NETDEV_CHANGEADDR, this);
      }
    }
    if (!this.mtuIsSet && this.ports.length > 0) {
      const mtu = Math.min(...this.ports.map(port => port.device.mtu));
      if (mtu !== this.mtu) {
        this.mtu = mtu;
        if (this.registered) this.net.notify(NETDEV_CHANGEMTU, this);
      }
    }
    if (this.ports.some(port => port.forwarding)) this.carrierOn();
    else this.carrierOff();
  }

  private chooseAddress(address: Uint8Array): void {
    if (!isValidEtherAddress(address)) {
      throw this.error('EADDRNOTAVAIL', `${formatAddress(address)} is no interface's address`);
    }
    this.addressIsSet = true;
    this.fdb.removeLocal(highOf(this.address), lowOf(this.address));
    this.address = address.slice();
    this.refreshLocals();
  }

  private setLocal(port: BridgePort): void {
    port.localHigh = highOf(port.device.address);
    port.localLow = lowOf(port.device.address);
    this.fdb.addLocal(port.localHigh, port.localLow);
  }

  private setLocalAddress(address: Uint8Array): void {
    this.fdb.addLocal(highOf(address), lowOf(address));
  }

  /** Addresses of ports may be shared (every vif has fe:ff:ff:ff:ff:ff): all are set anew. */
  private refreshLocals(): void {
    for (const entry of this.fdb.entries(0)) {
      if (entry.local) this.fdb.removeLocal(highOf(entry.address), lowOf(entry.address));
    }
    for (const port of this.ports) this.setLocal(port);
    this.setLocalAddress(this.address);
  }

  /** A frame came in on a port. Takes the reference. */
  private receiveFrom(port: BridgePort, packet: Packet): void {
    if (packet.linear < ETH_HLEN || !this.running || !port.forwarding) {
      port.device.stats.rxDropped++;
      packet.release();
      return;
    }
    const { lastTarget, lastAddresses } = port;
    if (
      lastTarget !== null &&
      port.lastRound === this.net.round &&
      port.lastVersion === this.fdb.version &&
      (packet.data & 3) === 0
    ) {
      const { i32 } = packet.memory;
      const at = packet.data >>> 2;
      if (
        i32[at] === lastAddresses[0] &&
        i32[at + 1] === lastAddresses[1] &&
        i32[at + 2] === lastAddresses[2]
      ) {
        this.forwardFrom(port, lastTarget, packet);
        return;
      }
    }
    this.learnAndForward(port, packet);
  }

  route(from: NetDevice, high: number, low: number, sourceHigh: number, sourceLow: number): NetDevice | null {
    const port = this.portByDevice.get(from);
    if (port === undefined || from.rxHandler !== port.handler || !this.running || !port.forwarding)
      return null;
    if (!mayBeSource(sourceHigh, sourceLow) || classify(high, low) !== IS_UNICAST) return null;
    if (this.promiscuity > 0 && this.rxHandler !== null) return null;
    // Learning its source changes where it goes.
    if (high === sourceHigh && low === sourceLow) return null;
    const found = this.fdb.lookup(high, low, this.net.now);
    const target = found >= 0 ? this.portByNumber[found] : undefined;
    return target !== undefined && mayPass(port, target) ? target.device : null;
  }

  came(from: NetDevice, sourceHigh: number, sourceLow: number): void {
    const port = this.portByDevice.get(from);
    if (port?.learning) this.fdb.learn(sourceHigh, sourceLow, port.number, this.net.now);
  }

  private learnAndForward(port: BridgePort, packet: Packet): void {
    const { u8 } = packet.memory;
    const at = packet.data;
    const { now } = this.net;
    const sourceHigh = (u8[at + 6] << 8) | u8[at + 7];
    const sourceLow = (u8[at + 8] << 24) | (u8[at + 9] << 16) | (u8[at + 10] << 8) | u8[at + 11];
    if (!mayBeSource(sourceHigh, sourceLow)) {
      port.device.stats.rxDropped++;
      packet.release();
      return;
    }
    if (port.learning) this.fdb.learn(sourceHigh, sourceLow, port.number, now);
    const high = (u8[at] << 8) | u8[at + 1];
    const low = (u8[at + 2] << 24) | (u8[at + 3] << 16) | (u8[at + 4] << 8) | u8[at + 5];
    switch (classify(high, low)) {
      case IS_UNICAST: {
        const found = this.fdb.lookup(high, low, now);
        if (found === FDB_LOCAL) {
          this.deliver(packet);
          return;
        }
        const target = found >= 0 ? this.portByNumber[found] : undefined;
        if (target === undefined) {
          this.flood(packet, port, high, low, this.promiscuity > 0);
          return;
        }
        if ((at & 3) === 0) this.remember(port, target, packet);
        this.forwardFrom(port, target, packet);
        return;
      }
      case IS_GROUP:
        this.stats.multicast++;
        this.flood(packet, port, high, low, true);
        return;
      case IS_RESERVED:
        this.deliver(packet);
        return;
      default:
        packet.release();
    }
  }

  private remember(port: BridgePort, target: BridgePort, packet: Packet): void {
    const { round } = this.net;
    const { i32 } = packet.memory;
    for (let i = 0; i < 3; i++) port.lastAddresses[i] = i32[(packet.data >>> 2) + i];
    port.lastTarget = round === 0 ? null : target;
    port.lastRound = round;
    port.lastVersion = this.fdb.version;
  }

  private forwardFrom(port: BridgePort, target: BridgePort, packet: Packet): void {
    if (this.promiscuity > 0 && this.rxHandler !== null) this.deliverCopy(packet);
    this.forward(target, port, packet);
  }

  /** A frame that this host sends through the bridge. */
  private sendLocal(packet: Packet): number {
    this.stats.txPackets++;
    this.stats.txBytes += packet.length;
    if (packet.linear < ETH_HLEN) {
      packet.release();
      return NETDEV_TX_OK;
    }
    const { u8 } = packet.memory;
    const at = packet.data;
    const high = (u8[at] << 8) | u8[at + 1];
    const low = (u8[at + 2] << 24) | (u8[at + 3] << 16) | (u8[at + 4] << 8) | u8[at + 5];
    const found = classify(high, low) === IS_UNICAST ? this.fdb.lookup(high, low, this.net.now) : -1;
    const target = found >= 0 ? this.portByNumber[found] : undefined;
    if (found === FDB_LOCAL) packet.release();
    else if (target !== undefined) this.forward(target, null, packet);
    else this.flood(packet, null, high, low, false);
    return NETDEV_TX_OK;
  }

  /** Whether a packet may go out there; counts one that is only too long. */
  private mayForward(target: BridgePort, from: BridgePort | null, packet: Packet): boolean {
    if (!mayPass(from, target)) return false;
    const { device } = target;
    if (packet.gsoType !== GSO_NONE || packet.length <= device.mtu + device.hardHeaderLen + VLAN_HLEN)
      return true;
    device.stats.txDropped++;
    return false;
  }

  private forward(target: BridgePort, from: BridgePort | null, packet: Packet): void {
    if (!this.mayForward(target, from, packet)) {
      packet.release();
      return;
    }
    const only = packet.references === 1 ? packet : this.net.materialiser.share(packet);
    if (only !== null) target.device.xmit(only, true);
  }

  /** Gives the packet to every port that may have it. A packet for one port only goes there itself. */
  private flood(packet: Packet, from: BridgePort | null, high: number, low: number, local: boolean): void {
    const { ports } = this;
    const broadcast = high === 0xffff && low === -1;
    const group = (high & 0x100) !== 0;
    if (local && this.rxHandler === null) local = false;
    let last: BridgePort | null = null;
    for (let i = 0; i < ports.length; i++) {
      const port = ports[i];
      if (group ? (broadcast ? !port.broadcastFlood : !port.multicastFlood) : !port.unicastFlood) continue;
      if (!this.mayForward(port, from, packet)) continue;
      if (last !== null) this.sendCopy(last, packet);
      last = port;
    }
    if (last === null) {
      if (local) this.deliver(packet);
      else packet.release();
      return;
    }
    if (local) this.deliverCopy(packet);
    const only = packet.references === 1 ? packet : this.net.materialiser.share(packet);
    if (only !== null) last.device.xmit(only, true);
  }

  private sendCopy(port: BridgePort, packet: Packet): void {
    const copy = this.copyFor(packet);
    if (copy !== null) port.device.xmit(copy, true);
  }

  private deliverCopy(packet: Packet): void {
    const copy = this.copyFor(packet);
    if (copy !== null) this.deliver(copy);
  }

  private copyFor(packet: Packet): Packet | null {
    packet.hold();
    return this.net.materialiser.share(packet);
  }

  /** The frame is for this host. Takes the reference. */
  private deliver(packet: Packet): void {
    this.stats.rxPackets++;
    this.stats.rxBytes += packet.length;
    this.receive(packet);
  }
}

/** Whether frames may go from one port, or from this host, to another. */
function mayPass(from: BridgePort | null, target: BridgePort): boolean {
  if (!target.forwarding) return false;
  if (from === null) return true;
  return (target !== from || from.hairpin) && !(target.isolated && from.isolated);
}

/** No group, and not all zero. */
function mayBeSource(high: number, low: number): boolean {
  return (high & 0x100) === 0 && (high | low) !== 0;
}

function classify(high: number, low: number): number {
  if ((high & 0x100) === 0) return IS_UNICAST;
  if (high !== 0x0180 || low >>> 4 !== 0x0c200000) return IS_GROUP;
  const last = low & 15;
  // Without a spanning tree its frames are passed on as any group's.
  if (last === 0) return IS_GROUP;
  return last === 1 ? IS_PAUSE : IS_RESERVED;
}

function highOf(address: Uint8Array): number {
  return (address[0] << 8) | address[1];
}

function lowOf(address: Uint8Array): number {
  return (address[2] << 24) | (address[3] << 16) | (address[4] << 8) | address[5];
}

function compare(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
}

/** Makes a bridge and registers it. @throws NetError as `Net.register` */
export function createBridge(net: Net, name: string, options?: BridgeOptions): Bridge {
  const bridge = new Bridge(net, name, options);
  net.register(bridge);
  return bridge;
}
