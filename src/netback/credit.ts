import type { Scheduler, Timer } from '../platform/scheduler.js';

/** A packet of the largest size always gets through at some time, however little credit comes at once. */
const MAX_BURST_MIN = 131072;

/** Bytes that a guest may send in an interval of so many microseconds: the `rate` key of a vif. */
export interface Rate {
  readonly bytes: number;
  readonly usec: number;
}

/**
 * Reads a `rate` value, "<bytes>,<microseconds>".
 * @returns null for no limit: both absent, either 0, or no such text
 */
export function parseRate(text: string | undefined): Rate | null {
  const match = /^(\d{1,15}),(\d{1,15})$/.exec(text ?? '');
  if (match === null) return null;
  const bytes = Number(match[1]);
  const usec = Number(match[2]);
  return bytes === 0 || usec === 0 ? null : { bytes, usec };
}

/**
 * Credit for what a guest sends on all queues of a vif: each interval adds its bytes, up to a burst, and a packet that
 * costs more than there is has to wait (xenvif's credit scheduler). No timer runs while nothing waits.
 */
export class CreditLimiter {
  /** Bytes that may be sent now. */
  remaining: number;
  private windowStart: number;
  private timer: Timer | null = null;
  /** Who got credit in this interval, and who waits for the next: those that got none come first then. */
  private readonly served = new Set<() => void>();
  private readonly hungry = new Set<() => void>();
  private readonly waiting = new Set<() => void>();

  constructor(
    private readonly scheduler: Scheduler,
    readonly rate: Rate,
  ) {
    this.remaining = rate.bytes;
    this.windowStart = scheduler.now();
  }

  /**
   * Takes the credit for a packet.
   * @param onCredit who asks: called once when a packet that had to wait may be tried again
   * @returns false when it must wait
   */
  take(bytes: number, onCredit: () => void): boolean {
    if (this.timer === null) this.replenish();
    if (this.timer !== null || bytes > this.remaining) {
      (this.served.has(onCredit) ? this.waiting : this.hungry).add(onCredit);
      this.wait();
      return false;
    }
    this.remaining -= bytes;
    this.served.add(onCredit);
    return true;
  }

  private wait(): void {
    const wait = this.windowStart + this.rate.usec / 1000 - this.scheduler.now();
    this.timer ??= this.scheduler.after(Math.max(wait, 0), () => {
      this.timer = null;
      this.replenish();
      this.resume();
    });
  }

  /** There is no limit any more, or another one: who waits may try again. */
  stop(): void {
    if (this.timer !== null) this.scheduler.cancel(this.timer);
    this.timer = null;
    this.resume();
  }

  private resume(): void {
    const all = [...this.hungry, ...this.waiting];
    for (const set of [this.served, this.hungry, this.waiting]) set.clear();
    for (const onCredit of all) onCredit();
  }

  private replenish(): void {
    const intervalMs = this.rate.usec / 1000;
    const now = this.scheduler.now();
    const passed = Math.floor((now - this.windowStart) / intervalMs);
    if (passed <= 0) return;
    this.windowStart += passed * intervalMs;
    const burst = Math.max(MAX_BURST_MIN, this.rate.bytes);
    this.remaining = Math.min(this.remaining + passed * this.rate.bytes, burst);
  }
}
