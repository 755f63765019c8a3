import type { Scheduler, Timer } from '../platform/scheduler.js';
import { Task } from '../platform/scheduler.js';
import type { NetDevice } from './device.js';
import { LINK_STATE_LINKWATCH_PENDING } from './flags.js';
import { operstateOf } from './operstate.js';

/** Link events of one kind of news are told at most this often. */
export const LINKWATCH_INTERVAL_MS = 1000;

/**
 * Tells of carriers that came and went (net/core/link_watch.c): a device that starts to work at once,
 * everything else gathered, so that a flapping link costs one event a second.
 */
export class Linkwatch {
  private readonly pending = new Set<NetDevice>();
  private readonly task: Task;
  private timer: Timer | null = null;
  private nextEvent: number;

  constructor(
    private readonly scheduler: Scheduler,
    /** netdev_state_change. */
    private readonly changed: (device: NetDevice) => void,
  ) {
    this.task = new Task('linkwatch', () => this.run(true));
    this.nextEvent = scheduler.now();
  }

  /** Devices whose news nobody has been told yet. */
  get size(): number {
    return this.pending.size;
  }

  /** linkwatch_fire_event @param urgent true for a device that begins to work */
  fire(device: NetDevice, urgent: boolean): void {
    if ((device.state & LINK_STATE_LINKWATCH_PENDING) === 0) {
      device.state |= LINK_STATE_LINKWATCH_PENDING;
      this.pending.add(device);
      device.hold('linkwatch');
    }
    if (urgent) {
      device.linkwatchUrgent = true;
      this.scheduler.post(this.task);
    } else if (this.timer === null) this.startTimer();
  }

  /** Deals at once with a device that goes (linkwatch_sync_dev). */
  sync(device: NetDevice): void {
    if (this.pending.has(device)) this.handle(device);
  }

  private startTimer(): void {
    const delay = Math.min(Math.max(0, this.nextEvent - this.scheduler.now()), LINKWATCH_INTERVAL_MS);
    this.timer = this.scheduler.after(delay, () => {
      this.timer = null;
      this.run(false);
    });
  }

  private run(urgentOnly: boolean): void {
    if (!urgentOnly) this.nextEvent = this.scheduler.now() + LINKWATCH_INTERVAL_MS;
    for (const device of [...this.pending]) {
      if (!urgentOnly || device.linkwatchUrgent) this.handle(device);
    }
    if (this.pending.size > 0 && this.timer === null) this.startTimer();
  }

  private handle(device: NetDevice): void {
    this.pending.delete(device);
    device.state &= ~LINK_STATE_LINKWATCH_PENDING;
    device.linkwatchUrgent = false;
    device.operstate = operstateOf(device);
    try {
      if (device.flagsUp) this.changed(device);
    } finally {
      device.put('linkwatch');
    }
  }
}
