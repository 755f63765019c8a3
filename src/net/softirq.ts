import type { Scheduler } from '../platform/scheduler.js';
import { Task } from '../platform/scheduler.js';
import type { NetDevice } from './device.js';
import type { Napi } from './napi.js';
import type { TxQueue } from './tx-queue.js';

/** Packets that one round of polls may handle (net.core.netdev_budget). */
export const NETDEV_BUDGET = 300;
/** So many polls in a row may throw without a wait: most lose one packet each, but some may throw for ever. */
const THROWS_MAX = 64;
const THROWN_WAIT_MS = 10;
/** Rounds are numbered 1 … this and one, in 30 bits: numbers that need no memory of their own. */
const ROUND_MAX = 0x3fffffff;

/**
 * The NET_TX and NET_RX softirqs of one domain's kernel: one task that sends from woken queues, polls the
 * scheduled NAPIs in turn within a budget, then publishes what drivers have put on their rings. With work
 * left it posts itself again, so that other domains have their turn.
 */
export class Softirq {
  private readonly task: Task;
  private pollHead: Napi | null = null;
  private pollTail: Napi | null = null;
  private txHead: TxQueue | null = null;
  private readonly dirty: NetDevice[] = [];
  private dirtyCount = 0;
  private running = false;
  private roundTime = 0;
  /** Number of this round, 0 outside of one; numbers come again, but not soon. */
  round = 0;
  private lastRound = 0;
  /** Rounds run, and rounds that ended with work left (time_squeeze of /proc/net/softnet_stat). */
  rounds = 0;
  squeezed = 0;
  /** Packets handled by all polls. */
  processed = 0;

  constructor(
    private readonly scheduler: Scheduler,
    readonly budget: number,
  ) {
    this.task = new Task('net softirq', () => this.run());
  }

  /** Milliseconds; inside a round, those of its start. */
  get now(): number {
    return this.running ? this.roundTime : this.scheduler.now();
  }

  poll(napi: Napi): void {
    if (!napi.listed) {
      napi.listed = true;
      napi.next = null;
      if (this.pollTail === null) this.pollHead = napi;
      else this.pollTail.next = napi;
      this.pollTail = napi;
    }
    this.raise();
  }

  transmit(queue: TxQueue): void {
    if (!queue.scheduled) {
      queue.scheduled = true;
      queue.next = this.txHead;
      this.txHead = queue;
    }
    this.raise();
  }

  /** Remembers that a device has packets it has not published yet. */
  markDirty(device: NetDevice): void {
    if (this.dirtyCount === this.dirty.length) this.dirty.push(device);
    else this.dirty[this.dirtyCount] = device;
    this.dirtyCount++;
    this.raise();
  }

  /** Publishes now what every device has queued. */
  flush(): void {
    for (let i = 0; i < this.dirtyCount; i++) {
      const device = this.dirty[i];
      device.inFlushList = false;
      device.flush();
    }
    this.dirtyCount = 0;
  }

  private raise(): void {
    if (!this.running) this.scheduler.post(this.task);
  }

  private run(): void {
    // Whoever sent has published it all at once.
    if (this.pollHead === null && this.txHead === null && this.dirtyCount === 0) return;
    this.running = true;
    this.roundTime = this.scheduler.now();
    this.lastRound = (this.lastRound & ROUND_MAX) + 1;
    this.round = this.lastRound;
    this.rounds++;
    try {
      this.sendWoken();
      this.pollAll();
      this.flush();
    } finally {
      this.running = false;
      this.round = 0;
      if (this.pollHead !== null || this.txHead !== null || this.dirtyCount > 0) {
        this.squeezed++;
        this.raise();
      }
    }
  }

  private sendWoken(): void {
    let left = this.txHead;
    let sending: TxQueue | null = null;
    this.txHead = null;
    try {
      while (left !== null) {
        const queue = left;
        left = queue.next;
        queue.next = null;
        queue.scheduled = false;
        sending = queue;
        const more = queue.run();
        sending = null;
        if (more) this.transmit(queue);
        else if (!queue.stopped) queue.device.queueWoken();
      }
    } finally {
      // It has lost a packet at least, so that this ends.
      if (sending !== null) this.transmit(sending);
      if (left !== null) this.putBack(left);
    }
  }

  /** Puts what is left of a list of queues before those that came meanwhile. */
  private putBack(list: TxQueue): void {
    let last = list;
    while (last.next !== null) last = last.next;
    last.next = this.txHead;
    this.txHead = list;
  }

  private pollAll(): void {
    let left = this.budget;
    let polled: Napi | null = null;
    try {
      while (left > 0) {
        const napi = this.pollHead;
        if (napi === null) return;
        this.pollHead = napi.next;
        if (this.pollHead === null) this.pollTail = null;
        napi.next = null;
        napi.listed = false;
        polled = napi;
        if (napi.enabled) left -= this.pollOne(napi);
        // What a poll that threw has left there.
        else napi.flushGro();
        polled = null;
      }
    } finally {
      if (polled !== null) this.pollAgain(polled);
    }
  }

  /** @returns what that takes of the round's budget */
  private pollOne(napi: Napi): number {
    const { weight } = napi;
    napi.polls++;
    const work = napi.poll(weight);
    napi.flushGro();
    napi.throws = 0;
    napi.work += work;
    this.processed += work;
    if (work >= weight && napi.scheduled && !napi.listed) this.poll(napi);
    return work > 0 ? work : 1;
  }

  /**
   * A poll has thrown. It may have left packets on its ring, and GRO some that it holds: as after a poll that used up its
   * budget nobody else would tell of them.
   */
  private pollAgain(napi: Napi): void {
    napi.throws++;
    const again = (): void => {
      napi.keepScheduled();
      this.poll(napi);
    };
    if (napi.throws < THROWS_MAX) again();
    else this.scheduler.after(THROWN_WAIT_MS, again);
  }
}
