import type { Platform } from './platform.js';
import type { Scheduler, Timer } from './scheduler.js';

/** When to look once more at a ring whose other end may have missed that an event was asked for. */
export const LOOK_AGAIN_MS = 2;

/** What a driver does about its rings. */
export interface Rings {
  /** Something that changes with everything that the driver publishes on them. */
  readonly published: number;
  /** Has the driver look for what the other end has published. */
  look(): void;
  /** Sends the events that the other end has asked for by now. */
  tell(): void;
}

/**
 * For rings whose other end runs on a processor whose barriers are none to us (`Platform.looselyOrdered`): an event that the
 * driver asked for may not come, and the other end may have asked for one when the driver had just looked whether it did.
 */
export class SecondLook {
  private timer: Timer | null = null;

  /** @param domid of the other end @returns null where it needs none */
  static make(platform: Platform, domid: number, rings: Rings): SecondLook | null {
    return platform.looselyOrdered?.(domid) ? new SecondLook(platform.scheduler, rings) : null;
  }

  private constructor(
    private readonly scheduler: Scheduler,
    private readonly rings: Rings,
  ) {}

  /** After a look that found something, and after publishing or asking for an event. */
  arm(): void {
    if (this.timer !== null) return;
    const { rings } = this;
    const before = rings.published;
    this.timer = this.scheduler.after(LOOK_AGAIN_MS, () => {
      this.timer = null;
      rings.look();
      // Meanwhile it is at work, and an event would find nothing to do.
      if (rings.published !== before) this.arm();
      else rings.tell();
    });
  }

  stop(): void {
    if (this.timer !== null) this.scheduler.cancel(this.timer);
    this.timer = null;
  }
}
