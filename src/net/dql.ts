/** The longest that spare room is watched before the limit shrinks. */
const SLACK_HOLD_MS = 1000;
/** The largest limit (DQL_MAX_LIMIT). */
const MAX_LIMIT = 0x3fffffff;

function positive(a: number, b: number): number {
  return a > b ? a - b : 0;
}

/**
 * A limit on the bytes in flight that finds its own size (lib/dynamic_queue_limits of Linux): it grows when
 * the device ran dry while bytes were held back, and shrinks by the least room that was to spare for a
 * second.
 */
export class DynamicQueueLimit {
  queued = 0;
  completed = 0;
  limit = 0;
  minLimit = 0;
  maxLimit = MAX_LIMIT;
  holdMs = SLACK_HOLD_MS;
  private adjustedLimit = 0;
  private previousQueued = 0;
  private previousOver = 0;
  private previousLast = 0;
  private last = 0;
  private lowestSlack = Number.POSITIVE_INFINITY;
  private slackStart = 0;

  /** Bytes given to the device and not yet completed. */
  get inflight(): number {
    return this.queued - this.completed;
  }

  /** Bytes that may still be given; negative when there are too many. */
  get available(): number {
    return this.adjustedLimit - this.queued;
  }

  /** The device got bytes. */
  sent(bytes: number): void {
    this.last = bytes;
    this.queued += bytes;
  }

  /** The device is done with bytes. @throws RangeError when it never got that many */
  done(bytes: number, now: number): void {
    if (bytes > this.inflight) {
      throw new RangeError(`${bytes} bytes completed of ${this.inflight} that were sent`);
    }
    const completed = this.completed + bytes;
    let { limit } = this;
    let over = positive(this.queued - this.completed, limit);
    const inProgress = this.queued - completed;
    const previousInProgress = this.previousQueued - this.completed;
    const allPreviousDone = completed >= this.previousQueued;
    if ((over > 0 && inProgress === 0) || (this.previousOver > 0 && allPreviousDone)) {
      limit += positive(completed, this.previousQueued) + this.previousOver;
      this.slackStart = now;
      this.lowestSlack = Number.POSITIVE_INFINITY;
    } else if (inProgress > 0 && previousInProgress > 0 && !allPreviousDone) {
      const slack = positive(limit + this.previousOver, 2 * bytes);
      const slackOfLast = positive(this.previousLast, this.previousOver);
      this.lowestSlack = Math.min(this.lowestSlack, Math.max(slack, slackOfLast));
      if (now > this.slackStart + this.holdMs) {
        limit = positive(limit, this.lowestSlack);
        this.slackStart = now;
        this.lowestSlack = Number.POSITIVE_INFINITY;
      }
    }
    limit = Math.min(Math.max(limit, this.minLimit), this.maxLimit);
    if (limit !== this.limit) {
      this.limit = limit;
      over = 0;
    }
    this.adjustedLimit = limit + completed;
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
    this.lowestSlack = Number.POSITIVE_INFINITY;
    this.slackStart = now;
  }
}
