import type { Packet } from './packet.js';

/** Priority (TC_PRIO, 0 … 15) to band of pfifo_fast. */
export const PFIFO_FAST_PRIOMAP: readonly number[] = [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
/**
 * Bytes that one queue of packets may hold. Packets wait in pages of our own, so the bound is on memory and
 * not only on their number.
 */
export const QDISC_BYTE_LIMIT = 4 << 20;

/** A queueing discipline: what keeps packets while their transmit queue is stopped. */
export interface Qdisc {
  /** Its name as tc prints it. */
  readonly kind: string;
  /** Packets waiting. */
  readonly length: number;
  /** Bytes waiting. */
  readonly backlog: number;
  /** Packets refused. */
  readonly drops: number;
  /** Takes the reference when it returns true; otherwise the packet is still the caller's. */
  enqueue(packet: Packet): boolean;
  dequeue(): Packet | null;
  /** Drops everything. */
  reset(): void;
}

/** What an inactive device has: drops everything. */
export class NoopQdisc implements Qdisc {
  readonly kind = 'noop';
  readonly length = 0;
  readonly backlog = 0;
  drops = 0;

  enqueue(): boolean {
    this.drops++;
    return false;
  }

  dequeue(): null {
    return null;
  }

  reset(): void {}
}

/** What a device without a queue has (a bridge): the packet goes out at once or not at all. */
export class NoqueueQdisc implements Qdisc {
  readonly kind = 'noqueue';
  readonly length = 0;
  readonly backlog = 0;
  drops = 0;

  enqueue(): boolean {
    this.drops++;
    return false;
  }

  dequeue(): null {
    return null;
  }

  reset(): void {}
}

/** Three first-in-first-out bands; a band is served when those before it are empty. */
export class PfifoFastQdisc implements Qdisc {
  readonly kind = 'pfifo_fast';
  length = 0;
  backlog = 0;
  drops = 0;
  private readonly head: (Packet | null)[] = [null, null, null];
  private readonly tail: (Packet | null)[] = [null, null, null];
  private readonly count = [0, 0, 0];

  /** @param limit packets in each band (the device's txQueueLen) */
  constructor(
    public limit: number,
    public byteLimit = QDISC_BYTE_LIMIT,
  ) {}

  enqueue(packet: Packet): boolean {
    const band = PFIFO_FAST_PRIOMAP[packet.priority & 15];
    if (this.count[band] >= this.limit || this.backlog + packet.length > this.byteLimit) {
      this.drops++;
      return false;
    }
    packet.next = null;
    const tail = this.tail[band];
    if (tail === null) this.head[band] = packet;
    else tail.next = packet;
    this.tail[band] = packet;
    this.count[band]++;
    this.length++;
    this.backlog += packet.length;
    return true;
  }

  dequeue(): Packet | null {
    for (let band = 0; band < 3; band++) {
      const packet = this.head[band];
      if (packet === null) continue;
      this.head[band] = packet.next;
      if (packet.next === null) this.tail[band] = null;
      packet.next = null;
      this.count[band]--;
      this.length--;
      this.backlog -= packet.length;
      return packet;
    }
    return null;
  }

  reset(): void {
    for (let packet = this.dequeue(); packet !== null; packet = this.dequeue()) packet.release();
  }
}
