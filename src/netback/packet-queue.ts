import type { Packet } from '../net/packet.js';

/** Packets in order, in a circular array that grows by doubling. Holds one reference of each. */
export class PacketQueue {
  length = 0;
  /** Bytes of all packets in the queue. */
  bytes = 0;
  /** Pages that the settled packets hold. */
  pages = 0;
  private slots: (Packet | null)[] = new Array<Packet | null>(64).fill(null);
  /** When each of the settled packets was. */
  private times = new Float64Array(64);
  private first = 0;
  /** How many at the front `replace` has been through. */
  private settled = 0;

  get head(): Packet | null {
    return this.length === 0 ? null : this.slots[this.first];
  }

  /** When the head was settled by `replace`. */
  get headTime(): number {
    return this.times[this.first];
  }

  push(packet: Packet): void {
    if (this.length === this.slots.length) this.grow();
    this.slots[(this.first + this.length) & (this.slots.length - 1)] = packet;
    this.length++;
    this.bytes += packet.length;
  }

  shift(): Packet | null {
    const packet = this.head;
    if (packet === null) return null;
    this.slots[this.first] = null;
    this.first = (this.first + 1) & (this.slots.length - 1);
    this.length--;
    this.bytes -= packet.length;
    if (this.settled > 0) {
      this.settled--;
      this.pages -= pagesOf(packet);
    }
    return packet;
  }

  /**
   * Puts what `replacement` returns in place of each packet that came since the last call; null removes
   * the packet.
   * @param time what `headTime` says of those that stay
   * @returns how many were removed
   */
  replace(replacement: (packet: Packet) => Packet | null, time = 0): number {
    const { slots, times } = this;
    const mask = slots.length - 1;
    let kept = this.settled;
    for (let i = this.settled; i < this.length; i++) {
      const packet = slots[(this.first + i) & mask]!;
      const { length } = packet;
      const next = replacement(packet);
      slots[(this.first + i) & mask] = null;
      if (next === null) this.bytes -= length;
      else {
        const at = (this.first + kept++) & mask;
        slots[at] = next;
        times[at] = time;
        this.pages += pagesOf(next);
      }
    }
    const removed = this.length - kept;
    this.length = kept;
    this.settled = kept;
    return removed;
  }

  private grow(): void {
    const slots = new Array<Packet | null>(this.slots.length * 2).fill(null);
    const times = new Float64Array(slots.length);
    for (let i = 0; i < this.length; i++) {
      const at = (this.first + i) & (this.slots.length - 1);
      slots[i] = this.slots[at];
      times[i] = this.times[at];
    }
    this.slots = slots;
    this.times = times;
    this.first = 0;
  }
}

/** Pages of a packet that is all local, its own and those that it shares with its parent. */
function pagesOf(packet: Packet): number {
  return packet.fragments + (packet.linearPoolIndex < 0 ? 0 : 1);
}
