import type { ErrnoName } from '../abi/errno.js';
import { NetError } from './error.js';
import {
  ARPHRD_ETHER,
  ETH_ALEN,
  ETH_DATA_LEN,
  ETH_HLEN,
  ETH_MIN_MTU,
  IFF_ALLMULTI,
  IFF_BROADCAST,
  IFF_DORMANT,
  IFF_LOWER_UP,
  IFF_MULTICAST,
  IFF_PROMISC,
  IFF_RUNNING,
  IFF_UP,
  IFNAMSIZ,
  LINK_STATE_DORMANT,
  LINK_STATE_NOCARRIER,
  LINK_STATE_PRESENT,
  LINK_STATE_START,
} from './flags.js';
import { NAPI_POLL_WEIGHT, Napi } from './napi.js';
import type { Net } from './net.js';
import type { Packet } from './packet.js';
import type { PagePool } from './page-pool.js';
import { NoopQdisc, NoqueueQdisc, PfifoFastQdisc } from './qdisc.js';
import { LinkStats } from './stats.js';
import { TxQueue } from './tx-queue.js';

/** Registration states (enum of net_device.reg_state). */
export const NETREG_UNINITIALIZED = 0;
export const NETREG_REGISTERED = 1;
export const NETREG_UNREGISTERING = 2;
export const NETREG_UNREGISTERED = 3;
export const NETREG_RELEASED = 4;

/** addr_assign_type: where the hardware address comes from. */
export const NET_ADDR_PERM = 0;
export const NET_ADDR_RANDOM = 1;
export const NET_ADDR_STOLEN = 2;
export const NET_ADDR_SET = 3;

/** name_assign_type: where the name comes from. */
export const NET_NAME_UNKNOWN = 0;
export const NET_NAME_ENUM = 1;
export const NET_NAME_PREDICTABLE = 2;
export const NET_NAME_USER = 3;
export const NET_NAME_RENAMED = 4;

/** Queues of one kind that a device can have. */
export const MAX_QUEUES = 65535;
/** The longest GSO packet that any device takes unless it says otherwise. */
export const GSO_MAX_SIZE = 65536;
export const GSO_MAX_SEGS = 65535;
/** The queue length that a device gets whose setup asked for none. */
export const DEFAULT_TX_QUEUE_LEN = 1000;

/**
 * What a driver does for its device. Whatever may fail throws an ErrnoError; where the kernel looks at the
 * sign of a result (init) a number is accepted too.
 */
export interface NetDeviceOps<Priv = unknown> {
  /** A positive result is EIO, a negative one -errno. */
  init?(device: NetDevice<Priv>): number | void;
  uninit?(device: NetDevice<Priv>): void;
  open?(device: NetDevice<Priv>): void;
  stop?(device: NetDevice<Priv>): void;
  /**
   * Puts a packet on the ring without publishing it. Its data may lie in other domains' grants. The packet
   * has one reference, so that its head may be changed and its `next` used. The driver counts what it
   * sends in `device.stats`.
   * @returns NETDEV_TX_OK, the reference being the driver's now, also when it dropped the packet; or
   *   NETDEV_TX_BUSY, having done nothing (a driver stops its queue before that happens)
   */
  startXmit(packet: Packet, device: NetDevice<Priv>): number;
  /** Publishes what startXmit has queued and notifies the peer, once for the batch. */
  flush?(device: NetDevice<Priv>): void;
  /** The index of the transmit queue for a packet. */
  selectQueue?(packet: Packet, device: NetDevice<Priv>): number;
  changeMtu?(device: NetDevice<Priv>, mtu: number): void;
  setMacAddress?(device: NetDevice<Priv>, address: Uint8Array): void;
  validateAddress?(device: NetDevice<Priv>): void;
  /** @returns the features that the device can really have out of those asked for */
  fixFeatures?(device: NetDevice<Priv>, features: number): number;
  setFeatures?(device: NetDevice<Priv>, features: number): void;
  setRxMode?(device: NetDevice<Priv>): void;
  /** Brings `device.stats` up to date. */
  getStats?(device: NetDevice<Priv>): void;
  txTimeout?(device: NetDevice<Priv>, queue: number): void;
}

/** What a device gives its packets to; takes the reference. */
export type RxHandler = (packet: Packet, device: NetDevice) => void;

const NOOP = new NoopQdisc();

/**
 * A network interface (struct net_device). Made by `Net.allocNetdev…`, filled in by its driver, then
 * registered.
 */
export class NetDevice<Priv = unknown> {
  ifindex = 0;
  /** The interface that this one sends through; its own number when there is none. */
  iflink = -1;
  mtu = 0;
  minMtu = 0;
  /** 0 for no limit. */
  maxMtu = 0;
  /** ARPHRD_*. */
  type = 0;
  hardHeaderLen = 0;
  addrLen = 0;
  address: Uint8Array = new Uint8Array(ETH_ALEN);
  broadcast: Uint8Array = new Uint8Array(ETH_ALEN);
  permAddress: Uint8Array | null = null;
  addrAssignType = NET_ADDR_PERM;
  nameAssignType = NET_NAME_UNKNOWN;
  /** IFF_* that are stored; see `displayFlags` for those that tools print. */
  flags = 0;
  /** LINK_STATE_* bits. */
  state = 0;
  regState = NETREG_UNINITIALIZED;
  /** NETIF_F_*: in use, those that can be switched, and those that the user wants. */
  features = 0;
  hwFeatures = 0;
  wantedFeatures = 0;
  vlanFeatures = 0;
  gsoPartialFeatures = 0;
  gsoMaxSize = GSO_MAX_SIZE;
  gsoMaxSegs = GSO_MAX_SEGS;
  txQueueLen = 0;
  group = 0;
  ifalias = '';
  /** The device needs no queue of its own (IFF_NO_QUEUE): it hands packets on at once. */
  noQueue = false;
  /** Frees itself when unregistering is complete. */
  needsFree = false;
  ops: NetDeviceOps<Priv>;
  readonly stats = new LinkStats();
  readonly txQueues: TxQueue[] = [];
  readonly numTxQueues: number;
  realNumTxQueues: number;
  readonly numRxQueues: number;
  realNumRxQueues: number;
  /** Where received packets go (a bridge, a tap, a stack of ours); without one they are dropped. */
  rxHandler: RxHandler | null = null;
  /** The device that this one is a port of. */
  master: NetDevice | null = null;
  /** Pages that the device can send without granting or copying; a source may read straight into them. */
  txPool: PagePool | null = null;
  carrierUpCount = 0;
  carrierDownCount = 0;
  promiscuity = 0;
  allmulti = 0;
  /** Poll functions of its queues. */
  readonly napis: Napi[] = [];
  private readonly wakeListeners: (() => void)[] = [];
  private dirty = false;

  /** Use `Net.allocNetdevMqs`. */
  constructor(
    public net: Net,
    public name: string,
    ops: NetDeviceOps<Priv>,
    /** The driver's own data. */
    readonly priv: Priv,
    txQueues: number,
    rxQueues: number,
  ) {
    this.ops = ops;
    this.numTxQueues = txQueues;
    this.realNumTxQueues = txQueues;
    this.numRxQueues = rxQueues;
    this.realNumRxQueues = rxQueues;
    for (let i = 0; i < txQueues; i++) this.txQueues.push(new TxQueue(this as NetDevice, i, NOOP));
  }

  get registered(): boolean {
    return this.regState === NETREG_REGISTERED;
  }

  /** Open: its driver is ready (netif_running). */
  get running(): boolean {
    return (this.state & LINK_STATE_START) !== 0;
  }

  get present(): boolean {
    return (this.state & LINK_STATE_PRESENT) !== 0;
  }

  get carrierOk(): boolean {
    return (this.state & LINK_STATE_NOCARRIER) === 0;
  }

  get dormant(): boolean {
    return (this.state & LINK_STATE_DORMANT) !== 0;
  }

  /** Whole flags as tools see them (dev_get_flags): RUNNING, LOWER_UP and DORMANT are computed. */
  get displayFlags(): number {
    let flags = this.flags & ~(IFF_PROMISC | IFF_ALLMULTI | IFF_RUNNING | IFF_LOWER_UP | IFF_DORMANT);
    if (this.promiscuity > 0) flags |= IFF_PROMISC;
    if (this.allmulti > 0) flags |= IFF_ALLMULTI;
    if (this.running) {
      if (this.carrierOk && !this.dormant) flags |= IFF_RUNNING;
      if (this.carrierOk) flags |= IFF_LOWER_UP;
      if (this.dormant) flags |= IFF_DORMANT;
    }
    return flags;
  }

  /** True while a queue is stopped: a source that can wait does, until its wake listener is called. */
  get congested(): boolean {
    const { txQueues } = this;
    for (let i = 0; i < this.realNumTxQueues; i++) if (txQueues[i].state !== 0) return true;
    return false;
  }

  /** Sets who hears that a stopped queue has room again and has sent what waited. */
  onWake(listener: () => void): void {
    this.wakeListeners.push(listener);
  }

  offWake(listener: () => void): void {
    const at = this.wakeListeners.indexOf(listener);
    if (at >= 0) this.wakeListeners.splice(at, 1);
  }

  /** For the softirq: a queue that was woken is running again. */
  queueWoken(): void {
    for (let i = 0; i < this.wakeListeners.length; i++) this.wakeListeners[i]();
  }

  /** Brings the device up. @throws NetError ENODEV when it is not registered, or what the driver throws */
  open(): void {
    this.net.openDevice(this as NetDevice);
  }

  /** Takes the device down; does nothing when it is. */
  close(): void {
    this.net.closeDevice(this as NetDevice);
  }

  carrierOn(): void {
    if (this.carrierOk) return;
    this.state &= ~LINK_STATE_NOCARRIER;
    this.carrierUpCount++;
    this.net.carrierChanged(this as NetDevice);
  }

  carrierOff(): void {
    if (!this.carrierOk) return;
    this.state |= LINK_STATE_NOCARRIER;
    this.carrierDownCount++;
    this.net.carrierChanged(this as NetDevice);
  }

  /** Declares a poll function; it runs after `enable` and `schedule`. */
  napiAdd(poll: (budget: number) => number, weight = NAPI_POLL_WEIGHT): Napi {
    const napi = new Napi(this as NetDevice, poll, weight);
    this.napis.push(napi);
    return napi;
  }

  napiDel(napi: Napi): void {
    napi.disable();
    const at = this.napis.indexOf(napi);
    if (at >= 0) this.napis.splice(at, 1);
  }

  /**
   * Sends a packet (dev_queue_xmit): does in software what the device cannot, queues while it is stopped.
   * Takes the reference.
   * @param more true when the caller sends more at once and calls `Net.flush` afterwards (or is in a
   *   softirq, which does)
   * @returns false when the packet was dropped
   */
  xmit(packet: Packet, more = false): boolean {
    if ((this.flags & IFF_UP) === 0) {
      this.stats.txDropped++;
      packet.release();
      return false;
    }
    const sent = this.txQueues[this.realNumTxQueues === 1 ? 0 : this.pickQueue(packet)].enqueue(packet);
    if (!more) this.flush();
    return sent;
  }

  private pickQueue(packet: Packet): number {
    const count = this.realNumTxQueues;
    const { selectQueue } = this.ops;
    if (selectQueue !== undefined) {
      const queue = selectQueue(packet, this);
      return queue >= 0 && queue < count ? queue : 0;
    }
    return this.net.flowHash(packet) % count;
  }

  /**
   * What the driver's poll calls for each packet that arrived (netif_receive_skb). Takes the reference.
   * The driver counts what it received in `stats`.
   */
  receive(packet: Packet): void {
    const { rxHandler } = this;
    if (rxHandler === null) {
      this.stats.rxNohandler++;
      packet.release();
      return;
    }
    rxHandler(packet, this as NetDevice);
  }

  /** Remembers that there are packets to publish; called by the queues. */
  markDirty(): void {
    if (this.dirty) return;
    this.dirty = true;
    this.net.markDirty(this as NetDevice);
  }

  /** Publishes what has been queued on the ring. */
  flush(): void {
    if (!this.dirty) return;
    this.dirty = false;
    this.ops.flush?.(this);
  }

  /** @throws NetError EINVAL when `count` is not 1 … numTxQueues */
  setRealNumTxQueues(count: number): void {
    if (!(count >= 1 && count <= this.numTxQueues)) {
      throw this.error('EINVAL', `${count} transmit queues: it has 1 to ${this.numTxQueues}`);
    }
    const before = this.realNumTxQueues;
    this.realNumTxQueues = count;
    if (!this.running) return;
    for (let i = count; i < before; i++) this.txQueues[i].reset();
    if (count > before) this.activateQueues();
  }

  /** @throws NetError EINVAL when `count` is not 1 … numRxQueues */
  setRealNumRxQueues(count: number): void {
    if (!(count >= 1 && count <= this.numRxQueues)) {
      throw this.error('EINVAL', `${count} receive queues: it has 1 to ${this.numRxQueues}`);
    }
    this.realNumRxQueues = count;
  }

  /** Stops every transmit queue. */
  stopAllQueues(): void {
    for (let i = 0; i < this.realNumTxQueues; i++) this.txQueues[i].stop();
  }

  wakeAllQueues(): void {
    for (let i = 0; i < this.realNumTxQueues; i++) this.txQueues[i].wake();
  }

  startAllQueues(): void {
    for (let i = 0; i < this.realNumTxQueues; i++) this.txQueues[i].start();
  }

  /** Gives the queues qdiscs that pass packets on (dev_activate); they drop while there is no carrier. */
  activateQueues(): void {
    if (!this.carrierOk) return;
    const direct = this.noQueue || this.txQueueLen === 0;
    for (let i = 0; i < this.realNumTxQueues; i++) {
      const queue = this.txQueues[i];
      if (queue.qdisc !== NOOP) continue;
      queue.qdisc = direct ? new NoqueueQdisc() : new PfifoFastQdisc(this.txQueueLen);
    }
  }

  /** Drops what waits, and all that comes (dev_deactivate). */
  deactivateQueues(): void {
    for (const queue of this.txQueues) {
      queue.reset();
      queue.qdisc = NOOP;
    }
  }

  /** An error that names the device. */
  error(code: ErrnoName, message: string): NetError {
    return new NetError(code, `${this.name}: ${message}`);
  }
}

/** What every Ethernet device starts from (ether_setup). */
export function etherSetup(device: NetDevice): void {
  device.type = ARPHRD_ETHER;
  device.hardHeaderLen = ETH_HLEN;
  device.mtu = ETH_DATA_LEN;
  device.minMtu = ETH_MIN_MTU;
  device.maxMtu = ETH_DATA_LEN;
  device.addrLen = ETH_ALEN;
  device.txQueueLen = DEFAULT_TX_QUEUE_LEN;
  device.flags = IFF_BROADCAST | IFF_MULTICAST;
  device.broadcast.fill(0xff);
}

/** @throws RangeError for a name that no device can be allocated with (the kernel's BUG_ON) */
export function checkAllocName(name: string): void {
  if (name.length >= IFNAMSIZ) {
    throw new RangeError(
      `the device name "${name}" has ${name.length} characters and may have ${IFNAMSIZ - 1}`,
    );
  }
}

/** A MAC address as xx:xx:xx:xx:xx:xx. */
export function formatAddress(address: Uint8Array): string {
  let text = '';
  for (let i = 0; i < address.length; i++) {
    text += (i === 0 ? '' : ':') + address[i].toString(16).padStart(2, '0');
  }
  return text;
}

/** Parses xx:xx:xx:xx:xx:xx. @throws NetError EINVAL */
export function parseAddress(text: string): Uint8Array {
  const parts = text.split(':');
  if (parts.length !== ETH_ALEN || !parts.every(part => /^[0-9a-fA-F]{1,2}$/.test(part))) {
    throw new NetError('EINVAL', `"${text}" is no MAC address: six hexadecimal bytes with colons between`);
  }
  return Uint8Array.from(parts, part => Number.parseInt(part, 16));
}

/** An address that one interface can have: not zero and not a group's (is_valid_ether_addr). */
export function isValidEtherAddress(address: Uint8Array): boolean {
  return (address[0] & 1) === 0 && address.some(byte => byte !== 0);
}
