import type { ErrnoName } from '../abi/errno.js';
import type { Timer } from '../platform/scheduler.js';
import { AddressList } from './address-list.js';
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
  LINK_STATE_TESTING,
} from './flags.js';
import {
  changeAddress,
  changeAllmulti,
  changeMtu,
  changeName,
  changePromiscuity,
  changeXdp,
  closeDevices,
  openDevice,
} from './link.js';
import { NAPI_POLL_WEIGHT, Napi } from './napi.js';
import type { Net } from './net.js';
import { IF_LINK_MODE_DEFAULT, IF_OPER_UNKNOWN } from './operstate.js';
import type { Packet } from './packet.js';
import type { PagePool } from './page-pool.js';
import { NoopQdisc, NoqueueQdisc, PfifoFastQdisc } from './qdisc.js';
import { LinkStats } from './stats.js';
import { TxQueue } from './tx-queue.js';
import type { VirtualNode } from './vfs.js';
import type { AttachedXdp, XdpFrames, XdpProgram } from './xdp.js';

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

/** Bits of privFlags (enum netdev_priv_flags). */
export const IFF_XMIT_DST_RELEASE = 1 << 5;
export const IFF_TX_SKB_SHARING = 1 << 12;
export const IFF_XMIT_DST_RELEASE_PERM = 1 << 17;

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
  /**
   * Puts frames on the ring of a queue and publishes them (ndo_xdp_xmit), as many from the first on as there is room for; when
   * the ring is full, the queue is stopped until it is not. A driver that has it shows what it receives to `device.xdp`.
   * @returns how many; their pages are the driver's now
   */
  xdpXmit?(device: NetDevice<Priv>, frames: XdpFrames, queue: number): number;
  /** The index of the transmit queue for a packet. */
  selectQueue?(packet: Packet, device: NetDevice<Priv>): number;
  /** Takes a new MTU, which is stored in `device.mtu` afterwards. */
  changeMtu?(device: NetDevice<Priv>, mtu: number): void;
  /** Takes a new address and stores it in `device.address`; without it an address cannot be changed. */
  setMacAddress?(device: NetDevice<Priv>, address: Uint8Array): void;
  validateAddress?(device: NetDevice<Priv>): void;
  /** @returns the features that the device can really have out of those asked for */
  fixFeatures?(device: NetDevice<Priv>, features: number): number;
  setFeatures?(device: NetDevice<Priv>, features: number): void;
  setRxMode?(device: NetDevice<Priv>): void;
  changeRxFlags?(device: NetDevice<Priv>, flags: number): void;
  /** Slots of its rings, for ethtool -g. */
  ringSizes?(device: NetDevice<Priv>): { readonly rx: number; readonly tx: number };
  /** Driver statistics as ethtool -S prints them: names and values. */
  ethtoolStats?(device: NetDevice<Priv>): readonly (readonly [string, number])[];
  /** Brings `device.stats` up to date. */
  getStats?(device: NetDevice<Priv>): void;
  txTimeout?(device: NetDevice<Priv>, queue: number): void;
}

/** What passes frames on from one device to another. */
export interface Forwarder {
  /**
   * What would become of a frame with these addresses that came in on `from`, for who passes on many of them. An address is
   * two integers, its first two bytes and the other four.
   * @returns the one device that it goes out of, if it is not too long for that; null when the frame has to be shown
   */
  route(from: NetDevice, high: number, low: number, sourceHigh: number, sourceLow: number): NetDevice | null;
  /** Notes that frames with that source did come in on `from`, and were passed on as `route` said. */
  came(from: NetDevice, sourceHigh: number, sourceLow: number): void;
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
  /** Addresses that it receives besides its own: other hosts' and groups'. */
  readonly uc = new AddressList();
  readonly mc = new AddressList();
  /** IFF_* that are stored; see `displayFlags` for those that tools print. */
  flags = 0;
  /** IFF_PROMISC and IFF_ALLMULTI as the user asked for them, among others who did. */
  gflags = 0;
  /** IFF_* of the kernel's own (IFF_XMIT_DST_RELEASE, IFF_TX_SKB_SHARING …). */
  privFlags = 0;
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
  groMaxSize = GSO_MAX_SIZE;
  tsoMaxSize = GSO_MAX_SIZE;
  txQueueLen = 0;
  group = 0;
  ifalias = '';
  operstate = IF_OPER_UNKNOWN;
  /** IF_LINK_MODE_*. */
  linkMode = IF_LINK_MODE_DEFAULT;
  /** For linkwatch. */
  linkwatchUrgent = false;
  protoDown = false;
  /** The kind that `ip -d link` prints (rtnl_link_ops), if any. */
  kind: string | null = null;
  /** What ethtool prints of its driver and where it sits. */
  driver = '';
  busInfo = '';
  /** Mb/s for ethtool and sysfs; -1 when unknown. */
  speed = -1;
  /** What sysfs keeps for the device without it meaning anything here. */
  readonly tunables = { groFlushTimeout: 0, napiDeferHardIrqs: 0, threaded: 0 };
  /** The driver's own files in the device's sysfs directory. */
  sysfs: Record<string, VirtualNode> = {};
  /** The bus device it belongs to (vif-N), and the bus's name. */
  parentName: string | null = null;
  parentBus: string | null = null;
  /** The device needs no queue of its own (IFF_NO_QUEUE): it hands packets on at once. */
  noQueue = false;
  /** It filters by unicast address: no need to be promiscuous for those in `uc` (IFF_UNICAST_FLT). */
  unicastFilter = false;
  private ucPromisc = false;
  /** Its address may change while it is open (IFF_LIVE_ADDR_CHANGE). */
  liveAddressChange = false;
  /** It cannot leave its namespace. */
  netnsLocal = false;
  /** Frees itself when unregistering is complete. */
  needsFree = false;
  /** Milliseconds after which a queue that stays stopped is a fault; needs `ops.txTimeout`. */
  watchdogMs = 5000;
  /** Holders of the device besides its driver: by name, how many. The driver's own is the first. */
  private readonly holders = new Map<string, number>();
  private references = 1;
  /** For whoever waits that nobody uses the device any more. */
  onReferencesGone: (() => void) | null = null;
  ops: NetDeviceOps<Priv>;
  readonly stats = new LinkStats();
  readonly txQueues: TxQueue[] = [];
  /** The only one of most devices. */
  private readonly firstQueue: TxQueue;
  readonly numTxQueues: number;
  realNumTxQueues: number;
  readonly numRxQueues: number;
  realNumRxQueues: number;
  /** Where received packets go (a bridge, a tap, a stack of ours); without one they are dropped. */
  rxHandler: RxHandler | null = null;
  /** The bridge that `rxHandler` is of. */
  forwarder: Forwarder | null = null;
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
  /** In the softirq's list of devices to flush; for the softirq. */
  inFlushList = false;
  private rootQdisc = 'noop';
  private watchdog: Timer | null = null;
  /** The program that sees what it receives first. */
  xdp: AttachedXdp | null = null;

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
    for (let i = 0; i < txQueues; i++) this.txQueues.push(new TxQueue(this, i, NOOP));
    this.firstQueue = this.txQueues[0];
  }

  /** References in all; 1 when only its driver has it. */
  get refcount(): number {
    return this.references;
  }

  /** Who holds it besides its driver, with counts, for who waits that they let go. */
  get heldBy(): string[] {
    return [...this.holders].map(([who, count]) => (count === 1 ? who : `${who} (${count})`));
  }

  /** dev_hold: the device's unregistering waits for the `put` with the same name. */
  hold(who: string): void {
    this.references++;
    this.holders.set(who, (this.holders.get(who) ?? 0) + 1);
  }

  /** dev_put @throws RangeError when `who` does not hold it */
  put(who: string): void {
    const count = this.holders.get(who);
    if (count === undefined)
      throw new RangeError(`${this.name}: ${who} lets go of a device it does not hold`);
    if (count === 1) this.holders.delete(who);
    else this.holders.set(who, count - 1);
    this.references--;
    if (this.references === 1) this.onReferencesGone?.();
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

  /** Running, with a carrier. */
  get passesPackets(): boolean {
    return (this.state & (LINK_STATE_START | LINK_STATE_NOCARRIER)) === LINK_STATE_START;
  }

  get dormant(): boolean {
    return (this.state & LINK_STATE_DORMANT) !== 0;
  }

  get testing(): boolean {
    return (this.state & LINK_STATE_TESTING) !== 0;
  }

  /** IFF_UP: somebody wants it to be open. */
  get flagsUp(): boolean {
    return (this.flags & IFF_UP) !== 0;
  }

  /** Whole flags as tools see them (dev_get_flags): RUNNING, LOWER_UP and DORMANT are computed. */
  get displayFlags(): number {
    let flags = this.flags & ~(IFF_PROMISC | IFF_ALLMULTI | IFF_RUNNING | IFF_LOWER_UP | IFF_DORMANT);
    flags |= this.gflags & (IFF_PROMISC | IFF_ALLMULTI);
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
    for (let i = 0; i < this.realNumTxQueues; i++) if (txQueues[i].stopped) return true;
    return false;
  }

  /** Adds one that hears that a stopped queue has room again and has sent what waited. */
  onWake(listener: () => void): void {
    this.wakeListeners.push(listener);
  }

  offWake(listener: () => void): void {
    const at = this.wakeListeners.indexOf(listener);
    if (at >= 0) this.wakeListeners.splice(at, 1);
  }

  /** For the softirq: a queue that was woken is running again. What the first listener throws, all have heard before. */
  queueWoken(): void {
    let thrown: { readonly error: unknown } | null = null;
    for (let i = 0; i < this.wakeListeners.length; i++) {
      try {
        this.wakeListeners[i]();
      } catch (error) {
        thrown ??= { error };
      }
    }
    if (thrown !== null) throw thrown.error;
  }

  /** SET_NETDEV_DEV: says which device of which bus it belongs to, and whose driver it has. */
  setParent(bus: string, name: string, driver: string): void {
    this.parentBus = bus;
    this.parentName = name;
    this.busInfo = name;
    this.driver = driver;
  }

  /** dev_open @throws NetError ENODEV when it is not registered, or what a notifier or the driver throws */
  open(): void {
    openDevice(this);
  }

  /** dev_close; does nothing to a device that is down. */
  close(): void {
    closeDevices([this]);
  }

  carrierOn(): void {
    if (this.carrierOk) return;
    this.state &= ~LINK_STATE_NOCARRIER;
    if (!this.registered) return;
    this.carrierUpCount++;
    this.carrierChanged();
  }

  carrierOff(): void {
    if (!this.carrierOk) return;
    this.state |= LINK_STATE_NOCARRIER;
    if (!this.registered) return;
    this.carrierDownCount++;
    this.carrierChanged();
  }

  /** It works, but waits for something from outside (802.1X, say). */
  setDormant(dormant: boolean): void {
    if (this.dormant === dormant) return;
    this.state ^= LINK_STATE_DORMANT;
    if (this.registered) this.net.linkwatch.fire(this, false);
  }

  private carrierChanged(): void {
    // What begins to work is told at once: its queues pass nothing before.
    const begins = this.running && this.carrierOk && this.txQueues[0].qdisc === NOOP;
    if (this.running) {
      if (this.carrierOk) this.activateQueues();
      else this.deactivateQueues();
    }
    this.net.linkwatch.fire(this, begins || this.ifindex !== this.iflink);
  }

  /** Declares a poll function; it runs after `enable` and `schedule`. */
  napiAdd(poll: (budget: number) => number, weight = NAPI_POLL_WEIGHT): Napi {
    const napi = new Napi(this, poll, weight);
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
    // A device that is down has queues that pass nothing.
    const queue = this.realNumTxQueues === 1 ? this.firstQueue : this.txQueues[this.pickQueue(packet)];
    const sent = queue.enqueue(packet);
    if (!more) this.flush();
    return sent;
  }

  /**
   * Sends frames that need nothing done to them, past the queueing discipline. Those that were sent are taken out of `frames`.
   * When some are left because the ring is full, the device is `congested`, and its wake listeners hear that there is room again.
   * Without a carrier nothing is sent, nor with a grant table that is full.
   * @returns how many were sent
   * @throws NetError EOPNOTSUPP for a driver that has no XDP, EINVAL for a queue that it has not, or another device's frames
   */
  xdpXmit(frames: XdpFrames, queue = 0): number {
    const { ops } = this;
    if (ops.xdpXmit === undefined) throw this.error('EOPNOTSUPP', 'its driver has no XDP');
    if (!(queue >= 0 && queue < this.realNumTxQueues)) {
      throw this.error('EINVAL', `there is no transmit queue ${queue}: it has ${this.realNumTxQueues}`);
    }
    if (frames.device !== (this as NetDevice)) {
      throw this.error('EINVAL', `these frames are in pages of ${frames.device.name}`);
    }
    this.stats.txDropped += frames.follow();
    if (frames.count === 0 || !this.passesPackets) return 0;
    const sent = ops.xdpXmit(this, frames, queue);
    frames.taken(sent);
    return sent;
  }

  /**
   * Has a program see what the device receives, before packets are made of it; null for none.
   * @throws NetError EOPNOTSUPP for a driver that has no XDP
   */
  setXdp(program: XdpProgram | null): void {
    changeXdp(this as NetDevice, program);
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
   * The driver counts what it received in `stats`. What comes while the device is down is dropped.
   */
  receive(packet: Packet): void {
    const { rxHandler } = this;
    if (!this.running) {
      this.stats.rxDropped++;
      packet.release();
      return;
    }
    if (rxHandler === null) {
      this.stats.rxNohandler++;
      packet.release();
      return;
    }
    rxHandler(packet, this);
  }

  /** Remembers that there are packets to publish; called by the queues. */
  markDirty(): void {
    if (this.dirty) return;
    this.dirty = true;
    if (this.inFlushList) return;
    this.inFlushList = true;
    this.net.markDirty(this);
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
    const direct = this.noQueue || this.txQueueLen === 0;
    if (this.rootQdisc === 'noop') {
      this.rootQdisc = direct ? 'noqueue' : this.numTxQueues > 1 ? 'mq' : 'pfifo_fast';
    }
    if (!this.carrierOk) return;
    for (let i = 0; i < this.realNumTxQueues; i++) {
      const queue = this.txQueues[i];
      if (queue.qdisc !== NOOP) continue;
      queue.qdisc = direct ? new NoqueueQdisc() : new PfifoFastQdisc(this.txQueueLen);
    }
  }

  /** The root queueing discipline as tools show it: that of the last activation. */
  get qdiscKind(): string {
    return this.rootQdisc;
  }

  /** Drops what waits, and all that comes (dev_deactivate). */
  deactivateQueues(): void {
    for (const queue of this.txQueues) {
      queue.reset();
      queue.qdisc = NOOP;
    }
  }

  /** The queue length has changed: the qdiscs take it. */
  resizeQueues(): void {
    for (const { qdisc } of this.txQueues) {
      if (qdisc instanceof PfifoFastQdisc) qdisc.limit = this.txQueueLen;
    }
  }

  /** The qdiscs of a device that leaves (dev_shutdown). */
  shutdownQueues(): void {
    this.deactivateQueues();
    this.rootQdisc = 'noop';
    if (this.watchdog !== null) this.net.scheduler.cancel(this.watchdog);
    this.watchdog = null;
  }

  /** A queue was stopped: somebody looks later whether it still is (dev_watchdog). */
  watchQueue(delayMs = this.watchdogMs): void {
    if (this.watchdog !== null || this.ops.txTimeout === undefined) return;
    this.watchdog = this.net.scheduler.after(delayMs, () => {
      this.watchdog = null;
      this.checkQueues();
    });
  }

  private checkQueues(): void {
    if (!this.running || !this.present || !this.carrierOk) return;
    const now = this.net.scheduler.now();
    let next = Number.POSITIVE_INFINITY;
    for (let i = 0; i < this.realNumTxQueues; i++) {
      const queue = this.txQueues[i];
      if (!queue.stopped) continue;
      const waited = now - queue.stoppedAt;
      // A whole millisecond at least: what a sum of fractions has lost must not make the timer fire again at once.
      next = Math.min(next, waited < this.watchdogMs ? Math.ceil(this.watchdogMs - waited) : this.watchdogMs);
      if (waited < this.watchdogMs) continue;
      queue.timeouts++;
      this.net.log(
        `NETDEV WATCHDOG: ${this.name} (${this.driver}): transmit queue ${i} timed out ${Math.round(waited)} ms`,
      );
      queue.stoppedAt = now;
      this.ops.txTimeout?.(this, i);
    }
    if (next < Number.POSITIVE_INFINITY) this.watchQueue(next);
  }

  /** One more, or one less, wants all frames. @throws RangeError below zero */
  setPromiscuity(by: number): void {
    changePromiscuity(this, by);
  }

  /** One more, or one less, wants all groups' frames. */
  setAllmulti(by: number): void {
    changeAllmulti(this, by);
  }

  /** dev_uc_add, dev_uc_del, dev_mc_add, dev_mc_del. @throws NetError ENOENT for what is not in the list */
  addUnicast(address: Uint8Array): void {
    this.uc.add(address);
    this.updateRxMode();
  }

  deleteUnicast(address: Uint8Array): void {
    this.uc.delete(address);
    this.updateRxMode();
  }

  addMulticast(address: Uint8Array): void {
    this.mc.add(address);
    this.updateRxMode();
  }

  deleteMulticast(address: Uint8Array): void {
    this.mc.delete(address);
    this.updateRxMode();
  }

  /** __dev_set_rx_mode: a device that cannot filter by address receives everything while it has a list. */
  updateRxMode(): void {
    if (!this.flagsUp || !this.present) return;
    if (!this.unicastFilter) {
      const wanted = this.uc.size > 0;
      if (wanted !== this.ucPromisc) {
        this.ucPromisc = wanted;
        changePromiscuity(this, wanted ? 1 : -1);
        return;
      }
    }
    this.ops.setRxMode?.(this);
  }

  setMtu(mtu: number): void {
    changeMtu(this, mtu);
  }

  setAddress(address: Uint8Array): void {
    changeAddress(this, address);
  }

  rename(name: string): void {
    changeName(this, name);
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
  device.privFlags |= IFF_TX_SKB_SHARING;
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

/** Makes an address up: one interface's, administered locally (eth_random_addr). @param random gives 0 ≤ x < 1 */
export function makeUpAddress(address: Uint8Array, random: () => number): void {
  for (let i = 0; i < ETH_ALEN; i++) address[i] = Math.floor(random() * 256);
  address[0] = (address[0] & 0xfe) | 0x02;
}

/** An address that one interface can have: not zero and not a group's (is_valid_ether_addr). */
export function isValidEtherAddress(address: Uint8Array): boolean {
  return (address[0] & 1) === 0 && address.some(byte => byte !== 0);
}
