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
 * Credit for what a guest sends: each interval adds its bytes, up to a burst, and a packet that costs more than
 * there is has to wait (xenvif's credit scheduler). No timer runs while nothing waits.
 */
export class CreditLimiter {
  /** Bytes that may be sent now. */
  remaining: number;
  private windowStart: number;
  private timer: Timer | null = null;

  /** @param onCredit called when a packet that had to wait may be tried again */
  constructor(
    private readonly scheduler: Scheduler,
    readonly rate: Rate,
    private readonly onCredit: () => void,
  ) {
    this.remaining = rate.bytes;
    this.windowStart = scheduler.now();
  }

  /** Takes the credit for a packet. @returns false when it must wait for `onCredit` */
  take(bytes: number): boolean {
    if (this.timer !== null) return false;
    this.replenish();
    if (bytes > this.remaining) {
      const wait = this.windowStart + this.rate.usec / 1000 - this.scheduler.now();
      this.timer = this.scheduler.after(Math.max(wait, 0), () => {
        this.timer = null;
        this.replenish();
        this.onCredit();
      });
      return false;
    }
    this.remaining -= bytes;
    return true;
  }

  stop(): void {
    if (this.timer !== null) this.scheduler.cancel(this.timer);
    this.timer = null;
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
