/** The longest that spare room is watched before the limit shrinks. */
const SLACK_HOLD_MS = 1000;
/** The largest limit (DQL_MAX_LIMIT). */
export const DQL_MAX_LIMIT = 0x70000000;
/** More than any slack. */
const NO_SLACK_SEEN = 0x7fffffff;

/** How far a running count is ahead of another; 0 when it is behind. Counts wrap around at 32 bits. */
function ahead(a: number, b: number): number {
  const difference = (a - b) | 0;
  return difference > 0 ? difference : 0;
}

/** Where the time comes from, in milliseconds: asked only when it matters. */
export interface DqlClock {
  readonly now: number;
}

/**
 * A limit on the bytes in flight that finds its own size (lib/dynamic_queue_limits of Linux): it grows when
 * the device ran dry while bytes were held back, and shrinks by the least room that was to spare for a
 * second.
 */
export class DynamicQueueLimit {
  limit = 0;
  minLimit = 0;
  maxLimit = DQL_MAX_LIMIT;
  holdMs = SLACK_HOLD_MS;
  /** Bytes given to the device, and those that it has completed: running counts. */
  private queued = 0;
  private completed = 0;
  private adjustedLimit = 0;
  private previousQueued = 0;
  private previousOver = 0;
  private previousLast = 0;
  private last = 0;
  private lowestSlack = NO_SLACK_SEEN;
  private slackStart = 0;

  /** Bytes given to the device and not yet completed. */
  get inflight(): number {
    return (this.queued - this.completed) | 0;
  }

  /** Bytes that may still be given; negative when there are too many. */
  get available(): number {
    return (this.adjustedLimit - this.queued) | 0;
  }

  /** The device got bytes. */
  sent(bytes: number): void {
    this.last = bytes;
    this.queued = (this.queued + bytes) | 0;
  }

  /** The device is done with bytes. @throws RangeError when it never got that many */
  done(bytes: number, clock: DqlClock): void {
    if (bytes > this.inflight) {
      throw new RangeError(`${bytes} bytes completed of ${this.inflight} that were sent`);
    }
    const completed = (this.completed + bytes) | 0;
    let { limit } = this;
    let over = ahead(this.inflight, limit);
    const inProgress = this.queued !== completed;
    const previousInProgress = this.previousQueued !== this.completed;
    const allPreviousDone = ((completed - this.previousQueued) | 0) >= 0;
    if ((over > 0 && !inProgress) || (this.previousOver > 0 && allPreviousDone)) {
      limit += ahead(completed, this.previousQueued) + this.previousOver;
      this.watchSlack(clock.now);
    } else if (inProgress && previousInProgress && !allPreviousDone) {
      const slack = ahead(limit + this.previousOver, 2 * bytes);
      const slackOfLast = this.previousOver > 0 ? ahead(this.previousLast, this.previousOver) : 0;
      this.lowestSlack = Math.min(this.lowestSlack, Math.max(slack, slackOfLast));
      const { now } = clock;
      if (now > this.slackStart + this.holdMs) {
        limit = ahead(limit, this.lowestSlack);
        this.watchSlack(now);
      }
    }
    limit = Math.min(Math.max(limit, this.minLimit), this.maxLimit);
    if (limit !== this.limit) {
      this.limit = limit;
      over = 0;
    }
    this.adjustedLimit = (limit + completed) | 0;
    this.previousOver = over;
    this.previousLast = this.last;
    this.completed = completed;
    this.previousQueued = this.queued;
  }

  /** The device was reset: nothing is in flight, nothing is known. */
  reset(now: number): void {
    this.queued = 0;
    this.completed = 0;
    this.limit = this.minLimit;
    this.adjustedLimit = this.minLimit;
    this.previousQueued = 0;
    this.previousOver = 0;
    this.previousLast = 0;
    this.last = 0;
    this.watchSlack(now);
  }

  private watchSlack(now: number): void {
    this.slackStart = now;
    this.lowestSlack = NO_SLACK_SEEN;
  }
}
