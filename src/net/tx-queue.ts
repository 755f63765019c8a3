import type { NetDevice } from './device.js';
import { DynamicQueueLimit } from './dql.js';
import { releaseList } from './gso.js';
import type { Packet } from './packet.js';
import type { Qdisc } from './qdisc.js';
import { passesAsItIs, validateXmit } from './xmit.js';

export const NETDEV_TX_OK = 0x00;
export const NETDEV_TX_BUSY = 0x10;

/** Bits of TxQueue.state (enum netdev_queue_state_t): who stopped the queue. */
export const QUEUE_STATE_DRV_XOFF = 1;
export const QUEUE_STATE_STACK_XOFF = 2;
export const QUEUE_STATE_FROZEN = 4;
/** Any of them: nothing is given to the driver. */
const STOPPED = QUEUE_STATE_DRV_XOFF | QUEUE_STATE_STACK_XOFF | QUEUE_STATE_FROZEN;
/** Bits of ours, so that one test finds a packet that can go straight to the driver: packets wait before it, … */
const WAITED_FOR = 8;
/** … the qdisc passes nothing on, … */
const CLOSED = 16;
/** … the driver has the turn: it may call xmit of its own device (a tunnel would). */
const IN_XMIT = 32;

/** Packets that one run sends before others have their turn (dev_tx_weight). */
const TX_WEIGHT = 64;

/** One of a device's transmit queues, with its qdisc. */
export class TxQueue {
  private state = 0;
  private discipline: Qdisc;
  /** The qdisc keeps packets when they must wait. */
  private keeps = false;
  /** Packets in the qdisc. */
  private waiting = 0;
  /** Packets that the device refused or that were left when it stopped: they go first. */
  private requeued: Packet | null = null;
  /** In the softirq's list of queues to run, whose link `next` is. */
  scheduled = false;
  next: TxQueue | null = null;
  /** Times that packets were put back, and packets dropped here. */
  requeues = 0;
  drops = 0;
  /** When it was stopped last, and how often the watchdog found it stopped for too long. */
  stoppedAt = 0;
  timeouts = 0;
  /** Byte queue limit, unused until the driver calls `sent`; and how often it held packets back. */
  limitStops = 0;
  readonly dql = new DynamicQueueLimit();

  constructor(
    readonly device: NetDevice,
    readonly index: number,
    qdisc: Qdisc,
  ) {
    this.discipline = qdisc;
    this.qdisc = qdisc;
  }

  get qdisc(): Qdisc {
    return this.discipline;
  }

  /** What the former one kept must have been dropped with `reset`. */
  set qdisc(qdisc: Qdisc) {
    const passes = qdisc.kind !== 'noop';
    this.discipline = qdisc;
    this.state = passes ? this.state & ~CLOSED : this.state | CLOSED;
    this.keeps = passes && qdisc.kind !== 'noqueue';
    this.waiting = qdisc.length;
    this.noteWaiting();
  }

  /** Nothing waits, and a packet would go straight to the driver. */
  get idle(): boolean {
    return this.state === 0;
  }

  /** The driver or the byte queue limit has stopped it. */
  get stopped(): boolean {
    return (this.state & STOPPED) !== 0;
  }

  /** After `waiting` or `requeued` has changed. */
  private noteWaiting(): void {
    const waited = this.waiting > 0 || this.requeued !== null;
    this.state = waited ? this.state | WAITED_FOR : this.state & ~WAITED_FOR;
  }

  /** Packets that wait in front of the device. */
  get length(): number {
    let count = this.waiting;
    for (let packet = this.requeued; packet !== null; packet = packet.next) count++;
    return count;
  }

  /** The driver has no room: nothing is given to it until `wake`. */
  stop(): void {
    if ((this.state & QUEUE_STATE_DRV_XOFF) !== 0) return;
    this.state |= QUEUE_STATE_DRV_XOFF;
    this.stoppedAt = this.device.net.now;
    this.device.watchQueue();
  }

  /** As `wake`, but leaves it to the next packet to get the queue going. */
  start(): void {
    this.state &= ~QUEUE_STATE_DRV_XOFF;
  }

  /** The driver has room again: what waits is sent by the softirq, then the device's wake listeners hear. */
  wake(): void {
    if ((this.state & QUEUE_STATE_DRV_XOFF) === 0) return;
    this.state &= ~QUEUE_STATE_DRV_XOFF;
    this.device.net.scheduleQueue(this);
  }

  /** The driver has put bytes on its ring (netdev_tx_sent_queue); stops the queue when there are too many. */
  sent(bytes: number): void {
    const { dql } = this;
    dql.sent(bytes);
    if (dql.available < 0) this.holdBack();
  }

  private holdBack(): void {
    if ((this.state & QUEUE_STATE_STACK_XOFF) !== 0) return;
    this.state |= QUEUE_STATE_STACK_XOFF;
    this.limitStops++;
    this.stoppedAt = this.device.net.now;
    this.device.watchQueue();
  }

  /** The peer is done with bytes that were `sent` (netdev_tx_completed_queue): once for all that a look found. */
  completed(bytes: number): void {
    if (bytes === 0) return;
    this.dql.done(bytes, this.device.net);
    if ((this.state & QUEUE_STATE_STACK_XOFF) === 0 || this.dql.available < 0) return;
    this.state &= ~QUEUE_STATE_STACK_XOFF;
    this.device.net.scheduleQueue(this);
  }

  /** The least bytes that may always be in flight (netdev_queue_set_dql_min_limit); before anything is sent. */
  setMinLimit(bytes: number): void {
    this.dql.minLimit = bytes;
    this.resetLimit();
  }

  /** The ring was emptied without completions (netdev_tx_reset_queue). */
  resetLimit(): void {
    this.state &= ~QUEUE_STATE_STACK_XOFF;
    this.dql.reset(this.device.net.now);
  }

  /**
   * Sends a packet, or keeps it while the queue is stopped. Takes the reference.
   * @returns false when it was dropped
   */
  enqueue(packet: Packet): boolean {
    return this.state === 0 ? this.send(packet) : this.putOff(packet);
  }

  private putOff(packet: Packet): boolean {
    const { net } = this.device;
    // A packet that comes while another is given to the driver finds no queue before it.
    if (!this.keeps || this.state === IN_XMIT) return this.drop(packet);
    const own = net.materialiser.own(packet);
    if (own === null) return this.drop(null);
    if (!this.discipline.enqueue(own)) return this.drop(own);
    this.waiting++;
    this.noteWaiting();
    if (!this.stopped) net.scheduleQueue(this);
    return true;
  }

  /** Sends what waits, a bounded number of packets. @returns true when there is more that could be sent */
  run(): boolean {
    for (let sent = 0; sent < TX_WEIGHT; sent++) {
      if (this.stopped) return false;
      const { requeued } = this;
      if (requeued !== null) {
        this.requeued = null;
        this.noteWaiting();
        this.transmit(requeued);
      } else {
        const packet = this.discipline.dequeue();
        if (packet === null) return false;
        this.waiting--;
        this.noteWaiting();
        this.send(packet);
      }
      // The device was busy: it has been scheduled for another time.
      if (this.requeued !== null) return false;
    }
    return !this.stopped && this.waiting > 0;
  }

  /** Drops all that waits. */
  reset(): void {
    releaseList(this.requeued);
    this.requeued = null;
    this.discipline.reset();
    this.waiting = 0;
    this.noteWaiting();
  }

  private send(packet: Packet): boolean {
    const { device } = this;
    if (!passesAsItIs(packet, device.features)) {
      const list = validateXmit(packet, device, device.net.packets, device.net.materialiser);
      return list === null ? this.drop(null) : this.transmit(list);
    }
    const sent = this.give(packet);
    device.markDirty();
    return sent === NETDEV_TX_OK ? true : this.requeue(packet);
  }

  /** Gives a packet to the driver: if that throws, the packet is the driver's, or lost. */
  private give(packet: Packet): number {
    const { device } = this;
    packet.queue = this.index;
    this.state |= IN_XMIT;
    try {
      return device.ops.startXmit(packet, device);
    } finally {
      this.state &= ~IN_XMIT;
    }
  }

  private transmit(list: Packet): boolean {
    let left: Packet | null = list;
    try {
      while (left !== null && !this.stopped) {
        const packet: Packet = left;
        left = packet.next;
        packet.next = null;
        if (this.give(packet) === NETDEV_TX_OK) continue;
        packet.next = left;
        left = packet;
        break;
      }
    } catch (error) {
      if (left !== null) this.requeue(left);
      throw error;
    } finally {
      this.device.markDirty();
    }
    return left === null ? true : this.requeue(left);
  }

  /** Keeps packets that could not be sent, in front of all others. */
  private requeue(list: Packet): boolean {
    const { net } = this.device;
    this.requeues++;
    if (!this.keeps) {
      releaseList(list);
      this.drops++;
      this.device.stats.txDropped++;
      return false;
    }
    let tail: Packet | null = null;
    let packet: Packet | null = list;
    while (packet !== null) {
      const next: Packet | null = packet.next;
      packet.next = null;
      const own = net.materialiser.own(packet);
      if (own === null) this.drop(null);
      else if (tail === null) this.requeued = own;
      else tail.next = own;
      if (own !== null) tail = own;
      packet = next;
    }
    this.noteWaiting();
    // A driver that is busy without having stopped its queue is asked again later.
    if (!this.stopped) net.scheduleQueue(this);
    return true;
  }

  private drop(packet: Packet | null): boolean {
    this.drops++;
    this.device.stats.txDropped++;
    if (packet !== null) packet.release();
    return false;
  }
}
