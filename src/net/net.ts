import type { DomainMemory, Grants } from '../platform/platform.js';
import type { Scheduler } from '../platform/scheduler.js';
import type { NetDeviceOps } from './device.js';
import {
  checkAllocName,
  DEFAULT_TX_QUEUE_LEN,
  etherSetup,
  IFF_XMIT_DST_RELEASE,
  IFF_XMIT_DST_RELEASE_PERM,
  MAX_QUEUES,
  NETREG_REGISTERED,
  NetDevice,
} from './device.js';
import { DeviceTable } from './device-table.js';
import { NetError } from './error.js';
import { Headers, PARSED_L3, PARSED_L4 } from './headers.js';
import { closeDevices, updateFeatures } from './link.js';
import { Linkwatch } from './linkwatch.js';
import { Materialiser } from './materialise.js';
import type { Napi } from './napi.js';
import type { NotifierBlock } from './notifier.js';
import {
  errnoName,
  eventName,
  NETDEV_CHANGE,
  NETDEV_CHANGE_TX_QUEUE_LEN,
  NETDEV_CHANGEADDR,
  NETDEV_CHANGEMTU,
  NETDEV_CHANGENAME,
  NETDEV_CHANGEUPPER,
  NETDEV_DOWN,
  NETDEV_FEAT_CHANGE,
  NETDEV_GOING_DOWN,
  NETDEV_NOTIFY_PEERS,
  NETDEV_REGISTER,
  NETDEV_RESEND_IGMP,
  NETDEV_UNREGISTER,
  NETDEV_UP,
  NotifierChain,
  notifierToErrno,
} from './notifier.js';
import { type Packet, PacketPool } from './packet.js';
import { PagePool } from './page-pool.js';
import { freeNetdev, registerNetdevice, unregisterMany, waitForReferences } from './registration.js';
import {
  encodeLink,
  IFLA_EVENT_FEATURES,
  IFLA_EVENT_IGMP_RESEND,
  IFLA_EVENT_NONE,
  IFLA_EVENT_NOTIFY_PEERS,
  RTM_DELLINK,
  RTM_NEWLINK,
} from './rtnetlink.js';
import { Rtnl } from './rtnl.js';
import { NETDEV_BUDGET, Softirq } from './softirq.js';
import type { TxQueue } from './tx-queue.js';

/** Pages that packets of one kernel may take together for data that had to be fetched. */
export const DEFAULT_PAGE_LIMIT = 8192;

export interface NetOptions {
  scheduler: Scheduler;
  memory: DomainMemory;
  grants: Grants;
  /** One line for the kernel log. */
  log?(line: string): void;
  /** A number in [0, 1). */
  random?(): number;
  /** Pages for materialised data. */
  pageLimit?: number;
  /** Packets that a softirq round may handle. */
  budget?: number;
}

export interface AllocOptions<Priv> {
  priv?: Priv;
  txQueues?: number;
  rxQueues?: number;
}

/** What a monitor hears: an event of the notifier chain, and how the chain answered. */
export interface NetEvent {
  readonly event: string;
  readonly device: NetDevice;
  /** 0, or the errno with which somebody stopped the chain. */
  readonly errno: number;
  readonly time: number;
}

/** Link messages that follow from notifier events (rtnetlink_event), with the reason they give. */
const LINK_MESSAGE_EVENTS: ReadonlyMap<number, number> = new Map([
  [NETDEV_CHANGEMTU, IFLA_EVENT_NONE],
  [NETDEV_CHANGEADDR, IFLA_EVENT_NONE],
  [NETDEV_CHANGENAME, IFLA_EVENT_NONE],
  [NETDEV_FEAT_CHANGE, IFLA_EVENT_FEATURES],
  [NETDEV_NOTIFY_PEERS, IFLA_EVENT_NOTIFY_PEERS],
  [NETDEV_CHANGEUPPER, IFLA_EVENT_NONE],
  [NETDEV_RESEND_IGMP, IFLA_EVENT_IGMP_RESEND],
  [NETDEV_CHANGE_TX_QUEUE_LEN, IFLA_EVENT_NONE],
]);

/** The network devices in one domain's kernel: a namespace (struct net), its softirqs and its packets. */
export class Net {
  readonly scheduler: Scheduler;
  readonly memory: DomainMemory;
  readonly grants: Grants;
  readonly packets: PacketPool;
  /** Pages for data that was fetched from other domains. */
  readonly pages: PagePool;
  readonly materialiser: Materialiser;
  readonly softirq: Softirq;
  readonly rtnl: Rtnl;
  readonly table = new DeviceTable();
  readonly notifiers = new NotifierChain();
  readonly linkwatch: Linkwatch;
  readonly log: (line: string) => void;
  readonly random: () => number;
  /** XDP programs that have been attached to its devices. */
  xdpPrograms = 0;
  private readonly todo: { device: NetDevice; gone: () => void }[] = [];
  private readonly linkListeners = new Set<(message: Uint8Array) => void>();
  private readonly monitors = new Set<(event: NetEvent) => void>();
  private readonly hashSeed: number;
  private readonly headers = new Headers();

  constructor(options: NetOptions) {
    this.scheduler = options.scheduler;
    this.memory = options.memory;
    this.grants = options.grants;
    this.log = options.log ?? (() => {});
    this.random = options.random ?? (() => 0.5);
    this.packets = new PacketPool(options.memory);
    this.pages = new PagePool(options.memory, options.pageLimit ?? DEFAULT_PAGE_LIMIT);
    this.materialiser = new Materialiser(options.grants, this.packets, this.pages);
    this.softirq = new Softirq(options.scheduler, options.budget ?? NETDEV_BUDGET);
    this.rtnl = new Rtnl(() => this.runTodo());
    this.linkwatch = new Linkwatch(options.scheduler, device => {
      this.notify(NETDEV_CHANGE, device);
      this.linkChanged(device, 0);
    });
    this.hashSeed = Math.floor(this.random() * 0x7fffffff) | 0;
  }

  /** The registered devices, in the order in which they came. */
  get devices(): IterableIterator<NetDevice> {
    return this.table.all;
  }

  get deviceCount(): number {
    return this.table.count;
  }

  byName(name: string): NetDevice | undefined {
    return this.table.byName(name);
  }

  byIndex(ifindex: number): NetDevice | undefined {
    return this.table.byIndex(ifindex);
  }

  /** Milliseconds; inside a softirq round, those of its start. */
  get now(): number {
    return this.softirq.now;
  }

  /** Number of the softirq round, in which `now` stays the same; 0 outside. */
  get round(): number {
    return this.softirq.round;
  }

  /**
   * alloc_netdev_mqs: a device that its driver fills in and then registers.
   * @param name may hold one %d, which registration fills in
   * @throws RangeError for a name of more than 15 characters, NetError EINVAL for a number of queues that is
   *   not 1 to 65535
   */
  allocNetdevMqs<Priv>(
    name: string,
    setup: (device: NetDevice) => void,
    ops: NetDeviceOps<Priv>,
    options: AllocOptions<Priv> = {},
  ): NetDevice<Priv> {
    checkAllocName(name);
    const txQueues = options.txQueues ?? 1;
    const rxQueues = options.rxQueues ?? 1;
    for (const count of [txQueues, rxQueues]) {
      if (!(Number.isInteger(count) && count >= 1 && count <= MAX_QUEUES)) {
        throw new NetError('EINVAL', `${name}: ${count} queues: a device has 1 to ${MAX_QUEUES}`);
      }
    }
    const device = new NetDevice<Priv>(this, name, ops, options.priv as Priv, txQueues, rxQueues);
    device.privFlags = IFF_XMIT_DST_RELEASE | IFF_XMIT_DST_RELEASE_PERM;
    setup(device);
    if (device.txQueueLen === 0) {
      device.noQueue = true;
      device.txQueueLen = DEFAULT_TX_QUEUE_LEN;
    }
    return device;
  }

  /** alloc_etherdev_mqs. @param name may hold one %d */
  allocEtherdev<Priv>(
    name: string,
    ops: NetDeviceOps<Priv>,
    options: AllocOptions<Priv> = {},
  ): NetDevice<Priv> {
    return this.allocNetdevMqs(name, etherSetup, ops, options);
  }

  /** register_netdev. @throws ErrnoError with the kernel's errno; nothing is left behind then */
  register(device: NetDevice): void {
    this.rtnl.with(() => registerNetdevice(this, device));
  }

  /** unregister_netdev. Resolves when nobody uses the device any more. */
  unregister(device: NetDevice): Promise<void> {
    return this.unregisterAll([device]);
  }

  /** unregister_netdevice_many: cheaper for many, since all are closed before the first one goes. */
  async unregisterAll(devices: readonly NetDevice[]): Promise<void> {
    await Promise.all(this.rtnl.with(() => unregisterMany(this, devices)));
  }

  /** free_netdev. @throws Error for a registered device */
  free(device: NetDevice): void {
    freeNetdev(device);
  }

  /** For registration: the device's last steps are done when the rtnl lock is free. */
  whenGone(device: NetDevice): Promise<void> {
    return new Promise(resolve => {
      this.todo.push({ device, gone: resolve });
    });
  }

  private runTodo(): void {
    for (const { device, gone } of this.todo.splice(0)) {
      waitForReferences(this, device, () => {
        if (device.needsFree) freeNetdev(device);
        gone();
      });
    }
  }

  /**
   * Moves a device to another namespace of the same kernel (dev_change_net_namespace).
   * @param pattern its name there when its own is taken, with a %d
   * @throws NetError EINVAL for a device that is bound to its namespace, is not registered, or when the
   *   namespace is another kernel's; EEXIST when the name is taken there
   */
  move(device: NetDevice, to: Net, pattern?: string): void {
    this.rtnl.with(() => {
      if (device.netnsLocal) throw device.error('EINVAL', 'it cannot leave its namespace');
      if (device.regState !== NETREG_REGISTERED) throw device.error('EINVAL', 'it is not registered');
      if (to === this) return;
      if (to.memory !== this.memory) {
        throw device.error('EINVAL', "a device cannot move to another domain's kernel");
      }
      const name = to.table.names.has(device.name) ? to.table.validName(pattern ?? device.name) : device.name;
      closeDevices([device]);
      this.table.unlist(device);
      device.shutdownQueues();
      this.notify(NETDEV_UNREGISTER, device);
      if (this.wantsLinkMessages) {
        this.sendLinkMessage(encodeLink(device, { type: RTM_DELLINK, change: 0xffffffff }));
      }
      device.uc.flush();
      device.mc.flush();
      this.linkwatch.sync(device);
      this.table.names.delete(device.name);
      const linkedToItself = device.iflink === device.ifindex;
      device.net = to;
      device.name = name;
      to.table.names.add(name);
      device.ifindex = to.table.reserveIndex(to.table.taken(device.ifindex) ? 0 : device.ifindex);
      if (linkedToItself) device.iflink = device.ifindex;
      to.table.list(device);
      to.notify(NETDEV_REGISTER, device);
      to.linkChanged(device, 0xffffffff);
    });
  }

  /**
   * Another namespace of this kernel: it shares memory, packets' pages and time, but has its own devices,
   * names and notifiers.
   */
  createNamespace(): Net {
    return new Net({
      scheduler: this.scheduler,
      memory: this.memory,
      grants: this.grants,
      log: this.log,
      random: this.random,
      pageLimit: this.pages.limit,
      budget: this.softirq.budget,
    });
  }

  // Notifiers

  /**
   * Adds a notifier; it hears REGISTER, and UP, of each device that is there already.
   * @throws NetError when it refuses one: it has heard that the others go, and is not registered
   */
  registerNotifier(block: NotifierBlock): void {
    this.rtnl.with(() => {
      this.notifiers.add(block);
      const told: NetDevice[] = [];
      for (const device of [...this.devices]) {
        const errno = notifierToErrno(block.notifierCall(NETDEV_REGISTER, device) ?? 0);
        if (errno !== 0) {
          for (const done of told) tellGone(block, done);
          this.notifiers.remove(block);
          throw device.error(errnoName(errno), `the notifier ${block.name ?? ''} refused it`);
        }
        told.push(device);
        if (device.flagsUp) block.notifierCall(NETDEV_UP, device);
      }
    });
  }

  /** Removes a notifier; it hears that each device goes. @throws NetError ENOENT when it is not there */
  unregisterNotifier(block: NotifierBlock): void {
    this.rtnl.with(() => {
      if (!this.notifiers.remove(block)) throw new NetError('ENOENT', 'this notifier is not registered');
      for (const device of [...this.devices]) tellGone(block, device);
    });
  }

  /** call_netdevice_notifiers @returns 0, or the errno with which the chain was stopped */
  notify(event: number, device: NetDevice, detail?: unknown): number {
    const errno = notifierToErrno(this.notifiers.call(event, device, detail));
    const reason = LINK_MESSAGE_EVENTS.get(event);
    if (reason !== undefined && errno === 0) this.linkChanged(device, 0, reason);
    if (this.monitors.size > 0) {
      const heard = { event: eventName(event), device, errno, time: this.scheduler.now() };
      for (const monitor of this.monitors) monitor(heard);
    }
    return errno;
  }

  /** `notify` for an event that may be vetoed. @throws NetError */
  notifyOrThrow(event: number, device: NetDevice, detail?: unknown): void {
    const errno = this.notify(event, device, detail);
    if (errno !== 0) throw device.error(errnoName(errno), `a notifier refused ${eventName(event)}`);
  }

  /** Hears of every event, before nobody and without a voice. @returns a function that ends it */
  monitor(listener: (event: NetEvent) => void): () => void {
    this.monitors.add(listener);
    return () => this.monitors.delete(listener);
  }

  // rtnetlink

  /** Hears each RTM_NEWLINK and RTM_DELLINK that the kernel multicasts. @returns a function that ends it */
  onLinkMessage(listener: (message: Uint8Array) => void): () => void {
    this.linkListeners.add(listener);
    return () => this.linkListeners.delete(listener);
  }

  get wantsLinkMessages(): boolean {
    return this.linkListeners.size > 0;
  }

  /** rtmsg_ifinfo: tells listeners what a device is like now. @param change the flags that changed */
  linkChanged(device: NetDevice, change: number, event = IFLA_EVENT_NONE): void {
    if (this.linkListeners.size === 0) return;
    this.sendLinkMessage(encodeLink(device, { type: RTM_NEWLINK, change, event }));
  }

  sendLinkMessage(message: Uint8Array): void {
    for (const listener of this.linkListeners) listener(message);
  }

  /**
   * netdev_update_features: for a driver whose abilities have changed; everybody hears of a change.
   * @returns true when something changed
   */
  updateFeatures(device: NetDevice): boolean {
    return updateFeatures(device);
  }

  // Packets and softirqs

  /** A hash of the packet's flow, the peer's when it sent one; not negative. */
  flowHash(packet: Packet): number {
    if (packet.hashType >= 0) return packet.hash & 0x7fffffff;
    const { headers } = this;
    const level = headers.parse(packet);
    const { u8 } = packet.memory;
    let hash = this.hashSeed;
    if (level >= PARSED_L3) {
      const ip = packet.data + headers.l3;
      hash = headers.ipVersion === 4 ? mix(hash, u8, ip + 12, 8) : mix(hash, u8, ip + 8, 32);
      if (level === PARSED_L4) hash = mix(hash, u8, packet.data + headers.l4, 4);
    } else if (packet.linear >= 12) hash = mix(hash, u8, packet.data, 12);
    hash ^= hash >>> 15;
    return hash & 0x7fffffff;
  }

  /** Calls ops.flush of every device that has unpublished packets. A softirq round ends with it. */
  flush(): void {
    this.softirq.flush();
  }

  /** For NetDevice. */
  markDirty(device: NetDevice): void {
    this.softirq.markDirty(device);
  }

  /** For Napi. */
  addToPollList(napi: Napi): void {
    this.softirq.poll(napi);
  }

  /** For TxQueue: has it send what waits. */
  scheduleQueue(queue: TxQueue): void {
    this.softirq.transmit(queue);
  }
}

function tellGone(block: NotifierBlock, device: NetDevice): void {
  if (device.flagsUp) {
    block.notifierCall(NETDEV_GOING_DOWN, device);
    block.notifierCall(NETDEV_DOWN, device);
  }
  block.notifierCall(NETDEV_UNREGISTER, device);
}

function mix(hash: number, u8: Uint8Array, from: number, length: number): number {
  for (let at = from; at < from + length; at++) hash = Math.imul(hash ^ u8[at], 0x01000193);
  return hash;
}
