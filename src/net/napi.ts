import type { NetDevice } from './device.js';
import { NETIF_F_GRO } from './features.js';
import { Gro } from './gro.js';
import type { Packet } from './packet.js';

/** Work that one poll may do (NAPI_POLL_WEIGHT). */
export const NAPI_POLL_WEIGHT = 64;

const SCHED = 1;
const MISSED = 2;
const DISABLED = 4;

/**
 * Polling instead of an interrupt per packet, with the kernel's rules. `poll(budget)` handles at most
 * `budget` packets and returns how many. When it returns its whole budget it stays scheduled and must not
 * have called `complete`; otherwise it must have called `complete`, and then looked at its ring once more.
 */
export class Napi {
  private state = DISABLED;
  /** In the softirq's poll list, whose link this is. */
  listed = false;
  next: Napi | null = null;
  private gro: Gro | null = null;
  /** Polls run, and packets they handled; what one that threw handled is not known. */
  polls = 0;
  work = 0;
  /** Polls in a row that threw; for the softirq. */
  throws = 0;

  constructor(
    readonly device: NetDevice,
    readonly poll: (budget: number) => number,
    readonly weight: number,
  ) {}

  /** True while somebody is to poll. */
  get scheduled(): boolean {
    return (this.state & SCHED) !== 0;
  }

  get enabled(): boolean {
    return (this.state & DISABLED) === 0;
  }

  /**
   * Asks for a poll, soon. While one is asked for already it is noted that there was another reason
   * (MISSED). @returns false when disabled or already scheduled
   */
  schedule(): boolean {
    if (!this.prepare()) return false;
    this.device.net.addToPollList(this);
    return true;
  }

  private prepare(): boolean {
    if ((this.state & DISABLED) !== 0) return false;
    if ((this.state & SCHED) !== 0) {
      this.state |= MISSED;
      return false;
    }
    this.state |= SCHED;
    return true;
  }

  /**
   * The poll has found no more work.
   * @returns false when there was a reason to poll again meanwhile: it is scheduled again, and the caller
   *   must not ask its peer for a notification yet
   */
  complete(work = 0): boolean {
    if (work > this.weight) throw new RangeError(`a poll of weight ${this.weight} handled ${work} packets`);
    if ((this.state & MISSED) !== 0) {
      this.state &= ~MISSED;
      this.device.net.addToPollList(this);
      return false;
    }
    this.state &= ~SCHED;
    return true;
  }

  /**
   * What a poll calls for a packet that arrived (napi_gro_receive): with NETIF_F_GRO those of one TCP flow
   * are put together before the device receives them. Takes the reference.
   */
  receive(packet: Packet): void {
    const { device } = this;
    if ((device.features & NETIF_F_GRO) === 0) {
      device.receive(packet);
      return;
    }
    this.gro ??= new Gro();
    this.gro.receive(packet, device);
  }

  /** For the softirq: a poll threw, and somebody is to poll again, whatever the poll had said. */
  keepScheduled(): void {
    if (this.enabled) this.state |= SCHED;
  }

  /** For the softirq, after each poll. */
  flushGro(): void {
    this.gro?.flush();
  }

  /** From now on `schedule` works. */
  enable(): void {
    this.state = this.listed ? SCHED : 0;
  }

  /** From now on `poll` is not called, until `enable`. */
  disable(): void {
    this.state = DISABLED;
  }
}
