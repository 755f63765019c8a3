import type { Materialiser } from '../net/materialise.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, CHECKSUM_UNNECESSARY, type Packet } from '../net/packet.js';

/** What a filter does with a packet. */
export const FILTER_PASS = 0;
export const FILTER_DROP = 1;
/** Sends it out of the device that `redirectTo` named instead. */
export const FILTER_REDIRECT = 2;

/**
 * A user's function that sees each packet and decides. It runs on the data path: it must not keep the packet,
 * nor wait.
 * @returns one of FILTER_*; anything else, and an error, drops the packet
 */
export type PacketFilter = (packet: FilteredPacket) => number;

/**
 * A packet as a filter sees it: its head as bytes, to read and to rewrite in place. Offsets are from the start
 * of the Ethernet header, numbers big-endian as on the wire. One instance is used for all packets.
 *
 * Who rewrites what a checksum covers keeps the checksum right. A packet that was written to no longer counts as one
 * whose transport checksum has been verified: the receiver does that. Nor is the guest told of a hash, which may be of
 * what was there before.
 */
export class FilteredPacket {
  /** True for packets that the guest sent, false for those on their way to it. */
  fromGuest = true;
  /** Name of the device, as "vif3.0". */
  device = '';
  /** The name that a FILTER_REDIRECT sends to. */
  target = '';
  private packet!: Packet;

  constructor(private readonly materialiser: Materialiser) {}

  /** Bytes of the packet, of which `available` can be read. */
  get length(): number {
    return this.packet.length;
  }

  /** Bytes of the head: the headers, or all of a small packet. */
  get available(): number {
    return this.packet.linear;
  }

  /**
   * The sender left its TCP or UDP checksum to be completed: its field holds the sum of the pseudo header alone, not
   * complemented, and has to follow when addresses are rewritten, but not with ports or data.
   */
  get checksumIsPartial(): boolean {
    return this.packet.checksum === CHECKSUM_PARTIAL;
  }

  /**
   * Brings more of the packet into the head.
   * @returns false when the packet is shorter, or the head cannot hold that much: then nothing changed
   */
  pull(bytes: number): boolean {
    return this.materialiser.pull(this.packet, bytes);
  }

  /** @throws RangeError, as every access, beyond the head */
  u8(offset: number): number {
    return this.packet.memory.u8[this.at(offset, 1)];
  }

  u16(offset: number): number {
    const at = this.at(offset, 2);
    const { u8 } = this.packet.memory;
    return (u8[at] << 8) | u8[at + 1];
  }

  u32(offset: number): number {
    return this.u16(offset) * 0x10000 + this.u16(offset + 2);
  }

  setU8(offset: number, value: number): void {
    this.packet.memory.u8[this.written(offset, 1)] = value;
  }

  setU16(offset: number, value: number): void {
    const at = this.written(offset, 2);
    this.packet.memory.u8[at] = value >>> 8;
    this.packet.memory.u8[at + 1] = value;
  }

  setU32(offset: number, value: number): void {
    this.setU16(offset, value >>> 16);
    this.setU16(offset + 2, value & 0xffff);
  }

  /** For `return packet.redirectTo('vif4.0')`. */
  redirectTo(device: string): number {
    this.target = device;
    return FILTER_REDIRECT;
  }

  /** @internal */
  run(filter: PacketFilter, packet: Packet, device: string, fromGuest: boolean): number {
    this.packet = packet;
    this.device = device;
    this.fromGuest = fromGuest;
    this.target = '';
    return filter(this);
  }

  /** `at` of bytes that change, with which what was known of the checksum ends, and of the flow. */
  private written(offset: number, bytes: number): number {
    const { packet } = this;
    if (packet.checksum === CHECKSUM_UNNECESSARY) packet.checksum = CHECKSUM_NONE;
    packet.hashType = -1;
    return this.at(offset, bytes);
  }

  private at(offset: number, bytes: number): number {
    if (!(offset >= 0 && offset + bytes <= this.packet.linear)) {
      throw new RangeError(
        `offset ${offset}+${bytes} is beyond the ${this.packet.linear} bytes of the head: pull() more`,
      );
    }
    return this.packet.data + offset;
  }
}
