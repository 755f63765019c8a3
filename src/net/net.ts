import type { ErrnoName } from '../abi/errno.js';
import { ErrnoError } from '../abi/errno.js';
import type { DomainMemory, Grants } from '../platform/platform.js';
import type { Scheduler } from '../platform/scheduler.js';
import type { NetDeviceOps } from './device.js';
import {
  checkAllocName,
  DEFAULT_TX_QUEUE_LEN,
  etherSetup,
  MAX_QUEUES,
  NET_ADDR_PERM,
  NETREG_REGISTERED,
  NETREG_UNINITIALIZED,
  NETREG_UNREGISTERED,
  NETREG_UNREGISTERING,
  NetDevice,
} from './device.js';
import { NetError } from './error.js';
import { fixFeatures, NETIF_F_HIGHDMA, NETIF_F_SOFT_FEATURES } from './features.js';
import { IFF_UP, LINK_STATE_PRESENT, LINK_STATE_START } from './flags.js';
import { Headers, PARSED_L3, PARSED_L4 } from './headers.js';
import { Materialiser } from './materialise.js';
import { Names, nameForUnit, nameProblem, templateProblem } from './names.js';
import type { Napi } from './napi.js';
import type { NotifierBlock } from './notifier.js';
import {
  errnoName,
  NETDEV_CHANGE,
  NETDEV_CHANGEADDR,
  NETDEV_DOWN,
  NETDEV_GOING_DOWN,
  NETDEV_POST_INIT,
  NETDEV_PRE_UNINIT,
  NETDEV_PRE_UP,
  NETDEV_REGISTER,
  NETDEV_UNREGISTER,
  NETDEV_UP,
  NotifierChain,
  notifierToErrno,
} from './notifier.js';
import { type Packet, PacketPool } from './packet.js';
import { PagePool } from './page-pool.js';
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

/** The network stack's devices in one domain's kernel: a namespace, its softirqs and its packets. */
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
  readonly notifiers = new NotifierChain();
  private readonly byIndexMap = new Map<number, NetDevice>();
  private readonly byNameMap = new Map<string, NetDevice>();
  private readonly names = new Names();
  private readonly todo: NetDevice[] = [];
  private lastIndex = 0;
  private readonly hashSeed: number;
  private readonly headers = new Headers();
  readonly log: (line: string) => void;
  readonly random: () => number;

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
    this.hashSeed = Math.floor(this.random() * 0x7fffffff) | 0;
  }

  /** The registered devices, in the order in which they came. */
  get devices(): IterableIterator<NetDevice> {
    return this.byIndexMap.values();
  }

  get deviceCount(): number {
    return this.byIndexMap.size;
  }

  byName(name: string): NetDevice | undefined {
    return this.byNameMap.get(name);
  }

  byIndex(ifindex: number): NetDevice | undefined {
    return this.byIndexMap.get(ifindex);
  }

  /** Milliseconds; inside a softirq round, those of its start. */
  get now(): number {
    return this.softirq.now;
  }

  // Allocation

  /** alloc_netdev_mqs: a device that its driver fills in and then registers. */
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
    setup(device as NetDevice);
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

  // Registration

  /** register_netdev. @throws NetError with the kernel's errno; nothing is left behind then */
  register(device: NetDevice): void {
    this.rtnl.with(() => this.registerNetdevice(device));
  }

  private registerNetdevice(device: NetDevice): void {
    if (device.regState !== NETREG_UNINITIALIZED) {
      throw new Error(`${device.name}: registered twice`);
    }
    const template = device.name;
    device.name = this.validName(device.name);
    this.names.add(device.name);
    const undo: (() => void)[] = [() => this.names.delete(device.name)];
    try {
      initDevice(device);
      undo.push(() => device.ops.uninit?.(device));
      device.ifindex = this.newIndex(device);
      if (device.iflink === -1) device.iflink = device.ifindex;
      device.hwFeatures |= NETIF_F_SOFT_FEATURES;
      device.features |= NETIF_F_SOFT_FEATURES;
      device.wantedFeatures = device.features & device.hwFeatures;
      device.vlanFeatures |= NETIF_F_HIGHDMA;
      this.check(NETDEV_POST_INIT, device);
    } catch (error) {
      for (const step of undo.reverse()) step();
      device.ifindex = 0;
      device.iflink = -1;
      device.name = template;
      throw error;
    }
    device.regState = NETREG_REGISTERED;
    this.updateFeatures(device);
    device.state |= LINK_STATE_PRESENT;
    this.byNameMap.set(device.name, device);
    this.byIndexMap.set(device.ifindex, device);
    if (device.addrAssignType === NET_ADDR_PERM) device.permAddress = device.address.slice();
    const answer = notifierToErrno(this.notifiers.call(NETDEV_REGISTER, device));
    if (answer !== 0) {
      this.rollback([device]);
      throw device.error(errnoName(answer), 'a notifier refused to let it register');
    }
  }

  /** unregister_netdev. Resolves when nobody uses the device any more. */
  unregister(device: NetDevice): Promise<void> {
    this.rtnl.with(() => this.rollback([device]));
    return Promise.resolve();
  }

  private rollback(devices: readonly NetDevice[]): void {
    const registered = devices.filter(device => device.regState === NETREG_REGISTERED);
    for (const device of registered) this.closeDevice(device);
    for (const device of registered) {
      this.byNameMap.delete(device.name);
      this.byIndexMap.delete(device.ifindex);
      device.regState = NETREG_UNREGISTERING;
    }
    for (const device of registered) {
      device.deactivateQueues();
      this.notifiers.call(NETDEV_UNREGISTER, device);
      this.names.delete(device.name);
      this.notifiers.call(NETDEV_PRE_UNINIT, device);
      device.ops.uninit?.(device);
      device.state &= ~LINK_STATE_PRESENT;
      this.todo.push(device);
    }
  }

  private runTodo(): void {
    for (const device of this.todo.splice(0)) device.regState = NETREG_UNREGISTERED;
  }

  /** dev_get_valid_name: the name, with its %d filled in. @throws NetError EINVAL, EEXIST, ENFILE */
  validName(name: string): string {
    const problem = nameProblem(name);
    if (problem !== null) throw new NetError('EINVAL', `"${name}" is no device name: ${problem}`);
    if (!name.includes('%')) {
      if (this.names.has(name)) throw new NetError('EEXIST', `there is a device "${name}" already`);
      return name;
    }
    const wrong = templateProblem(name);
    if (wrong !== null) throw new NetError('EINVAL', `"${name}" is no device name: ${wrong}`);
    const unit = this.names.lowestUnit(name);
    if (unit < 0) throw new NetError('ENFILE', `every number of "${name}" is taken`);
    const chosen = nameForUnit(name, unit);
    if (this.names.has(chosen)) throw new NetError('ENFILE', `"${name}" has no room for another number`);
    return chosen;
  }

  private newIndex(device: NetDevice): number {
    const asked = device.ifindex;
    if (asked > 0) {
      if (asked > 0x7fffffff) throw device.error('EINVAL', `interface number ${asked} is too large`);
      if (this.byIndexMap.has(asked)) throw device.error('EBUSY', `interface number ${asked} is taken`);
      return asked;
    }
    do {
      this.lastIndex = this.lastIndex >= 0x7fffffff ? 1 : this.lastIndex + 1;
    } while (this.byIndexMap.has(this.lastIndex));
    return this.lastIndex;
  }

  // Notifiers

  /** Adds a notifier; it hears REGISTER, and UP, of each device that is there already. */
  registerNotifier(block: NotifierBlock): void {
    this.rtnl.with(() => {
      this.notifiers.add(block);
      const told: NetDevice[] = [];
      for (const device of this.devices) {
        const errno = notifierToErrno(block.notifierCall(NETDEV_REGISTER, device) ?? 0);
        if (errno !== 0) {
          for (const done of told) this.tellGone(block, done);
          this.notifiers.remove(block);
          throw device.error(errnoName(errno), `the notifier ${block.name ?? ''} refused it`);
        }
        told.push(device);
        if ((device.flags & IFF_UP) !== 0) block.notifierCall(NETDEV_UP, device);
      }
    });
  }

  /** Removes a notifier; it hears that each device goes. @throws NetError ENOENT when it is not there */
  unregisterNotifier(block: NotifierBlock): void {
    this.rtnl.with(() => {
      if (!this.notifiers.remove(block)) throw new NetError('ENOENT', 'this notifier is not registered');
      for (const device of this.devices) this.tellGone(block, device);
    });
  }

  private tellGone(block: NotifierBlock, device: NetDevice): void {
    if ((device.flags & IFF_UP) !== 0) {
      block.notifierCall(NETDEV_GOING_DOWN, device);
      block.notifierCall(NETDEV_DOWN, device);
    }
    block.notifierCall(NETDEV_UNREGISTER, device);
  }

  /** Tells everybody of an event that may be vetoed. */
  private check(event: number, device: NetDevice, detail?: unknown): void {
    const errno = notifierToErrno(this.notifiers.call(event, device, detail));
    if (errno !== 0) throw device.error(errnoName(errno), 'a notifier refused');
  }

  // Up and down

  /** dev_open; use `NetDevice.open`. */
  openDevice(device: NetDevice): void {
    this.rtnl.with(() => {
      if ((device.flags & IFF_UP) !== 0) return;
      if (!device.present) throw device.error('ENODEV', 'it is not registered');
      this.check(NETDEV_PRE_UP, device);
      device.state |= LINK_STATE_START;
      try {
        device.ops.validateAddress?.(device);
        device.ops.open?.(device);
      } catch (error) {
        device.state &= ~LINK_STATE_START;
        throw error;
      }
      device.flags |= IFF_UP;
      device.ops.setRxMode?.(device);
      device.activateQueues();
      this.notifiers.call(NETDEV_UP, device);
    });
  }

  /** dev_close; use `NetDevice.close`. */
  closeDevice(device: NetDevice): void {
    this.rtnl.with(() => {
      if ((device.flags & IFF_UP) === 0) return;
      this.notifiers.call(NETDEV_GOING_DOWN, device);
      device.state &= ~LINK_STATE_START;
      device.deactivateQueues();
      device.ops.stop?.(device);
      device.flags &= ~IFF_UP;
      this.notifiers.call(NETDEV_DOWN, device);
    });
  }

  /** For NetDevice: the carrier came or went. */
  carrierChanged(device: NetDevice): void {
    if (device.regState !== NETREG_REGISTERED) return;
    if (device.running) {
      if (device.carrierOk) {
        device.activateQueues();
        for (const queue of device.txQueues) if (!queue.stopped) this.scheduleQueue(queue);
      } else device.deactivateQueues();
      this.notifiers.call(NETDEV_CHANGE, device);
    }
  }

  /** netdev_update_features: what is wanted and possible. @returns true when something changed */
  updateFeatures(device: NetDevice): boolean {
    let features = (device.features & ~device.hwFeatures) | device.wantedFeatures;
    features = device.ops.fixFeatures?.(device, features) ?? features;
    features = fixFeatures(features, device.gsoPartialFeatures);
    if (features === device.features) return false;
    device.ops.setFeatures?.(device, features);
    device.features = features;
    return true;
  }

  /** A device has another hardware address than before. */
  addressChanged(device: NetDevice): void {
    this.notifiers.call(NETDEV_CHANGEADDR, device);
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

function mix(hash: number, u8: Uint8Array, from: number, length: number): number {
  for (let at = from; at < from + length; at++) hash = Math.imul(hash ^ u8[at], 0x01000193);
  return hash;
}

function initDevice(device: NetDevice): void {
  const result = device.ops.init?.(device) ?? 0;
  if (result > 0) throw device.error('EIO', `its init returned ${result}, which is no errno`);
  if (result < 0) throw device.error(errnoName(-result) as ErrnoName, 'its init failed');
}

/** True for an error of the kernel's kind. */
export function isErrno(error: unknown, code: ErrnoName): boolean {
  return error instanceof ErrnoError && error.code === code;
}
