import type { NetDevice } from '../net/device.js';
import type { Scheduler, Timer } from '../platform/scheduler.js';
import type { Queue } from './queue.js';

/** Addresses that every backend's filter has room for (XEN_NETBK_MCAST_MAX). */
const FILTER_MAX = 64;
/** When requests that found no room on the ring are tried again. */
const RETRY_MS = 10;

/** Whether a device's list of groups is all that it wants, and small enough for a filter. */
export function isFilterable(dev: NetDevice): boolean {
  return dev.promiscuity === 0 && dev.allmulti === 0 && dev.mc.size <= FILTER_MAX;
}

/** Keeps a backend's multicast filter as the device's list of groups is, for one connection. */
export class MulticastFilterRequests {
  /** What the backend has been told, by the address in words. */
  private readonly told = new Map<string, Uint8Array>();
  private timer: Timer | null = null;

  constructor(
    private readonly dev: NetDevice,
    private readonly queue: Queue,
    private readonly scheduler: Scheduler,
  ) {}

  /** Tells the backend what has changed, now or when there is room on the ring. */
  sync(): void {
    if (!isFilterable(this.dev) || this.tell()) return;
    this.timer ??= this.scheduler.after(RETRY_MS, () => {
      this.timer = null;
      this.sync();
    });
  }

  stop(): void {
    if (this.timer !== null) this.scheduler.cancel(this.timer);
  }

  /** First what goes, so that the backend's filter never needs more room than ours. @returns whether all is told */
  private tell(): boolean {
    const { told, queue } = this;
    const wanted = new Map(Array.from(this.dev.mc, ({ address }) => [address.join(), address]));
    for (const [key, address] of told) {
      if (wanted.has(key)) continue;
      if (!queue.requestMulticast(address, false)) return false;
      told.delete(key);
    }
    for (const [key, address] of wanted) {
      if (told.has(key)) continue;
      if (!queue.requestMulticast(address, true)) return false;
      told.set(key, address);
    }
    return true;
  }
}
