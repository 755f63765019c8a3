import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { NetDevice } from './device.js';
import { ETH_HLEN } from './flags.js';
import { PACKET_BUFFER_SIZE, type Packet } from './packet.js';
import type { PagePool } from './page-pool.js';

/** What a program says of a frame (enum xdp_action, linux/bpf.h). */
export const XDP_ABORTED = 0;
export const XDP_DROP = 1;
export const XDP_PASS = 2;
export const XDP_TX = 3;
export const XDP_REDIRECT = 4;

/** Frames that a program sees at once, and that are sent at once: a poll's weight. */
export const XDP_BATCH = 64;

/**
 * Sees what a device has received before any packet is made of it, and says in `buffs.verdict` what becomes of each frame.
 * It runs in the device's poll: it must not wait, and must not keep the frames. What it throws drops the frames that it saw.
 */
export type XdpProgram = (buffs: XdpBuffs) => void;

/** A program that is attached, as `ip link` names it. */
export interface AttachedXdp {
  readonly id: number;
  readonly name: string;
  readonly program: XdpProgram;
}

/**
 * Frames that a driver has received, each in one piece of memory (struct xdp_buff, up to XDP_BATCH of them). A packet that
 * is longer than what came in its first slot comes alone: the program sees its head.
 */
export class XdpBuffs {
  readonly memory: Memory;
  count = 0;
  /** Of each frame XDP_*: XDP_PASS unless the program says otherwise. What is none of them aborts. */
  readonly verdict = new Uint8Array(XDP_BATCH);
  private readonly targets: (NetDevice | null)[] = [];
  /** Bytes behind the head of a packet that came alone, and the packet's buffer when its head is there; 0 for frames in pages. */
  private rest = 0;
  private buffer = 0;

  /**
   * @param device that received them
   * @param data byte address in `memory` of each frame's first byte
   * @param bytes that can be read there
   * Both are the program's to read only: `adjustHead` and `adjustTail` change them.
   */
  constructor(
    readonly device: NetDevice,
    readonly data: Int32Array,
    readonly bytes: Int32Array,
  ) {
    this.memory = device.net.memory.memory;
  }

  /** Bytes of a frame, those behind its head too. */
  length(i: number): number {
    return this.bytes[i] + this.rest;
  }

  /** Sends a frame out of another device of the same namespace. @throws RangeError for one of another */
  redirect(i: number, device: NetDevice): void {
    if (device.net !== this.device.net) {
      throw new RangeError(`${device.name} is in another namespace than ${this.device.name}`);
    }
    this.targets[i] = device;
    this.verdict[i] = XDP_REDIRECT;
  }

  /** Where `redirect` sends a frame. */
  target(i: number): NetDevice | null {
    return this.targets[i] ?? null;
  }

  /**
   * Moves a frame's beginning (bpf_xdp_adjust_head): a negative `by` makes room for a header.
   * @returns false, having done nothing, when its page has no room there, or less than an Ethernet header would be left
   */
  adjustHead(i: number, by: number): boolean {
    const data = this.data[i] + by;
    const bytes = this.bytes[i] - by;
    if (!Number.isInteger(by) || data < this.floorOf(i) || bytes < ETH_HLEN) return false;
    this.data[i] = data;
    this.bytes[i] = bytes;
    return true;
  }

  /**
   * Moves a frame's end (bpf_xdp_adjust_tail); what a positive `by` adds are whatever bytes lie there.
   * @returns false, having done nothing, when its page has no room there, when less than an Ethernet header would be left, or
   *   for a packet that is more than its head
   */
  adjustTail(i: number, by: number): boolean {
    const bytes = this.bytes[i] + by;
    if (!Number.isInteger(by) || this.rest > 0 || bytes < ETH_HLEN) return false;
    if (this.data[i] + bytes > this.ceilingOf(i)) return false;
    this.bytes[i] = bytes;
    return true;
  }

  private floorOf(i: number): number {
    return this.buffer > 0 ? this.buffer : this.data[i] & ~(PAGE_SIZE - 1);
  }

  private ceilingOf(i: number): number {
    return this.floorOf(i) + (this.buffer > 0 ? PACKET_BUFFER_SIZE : PAGE_SIZE);
  }

  /** For the driver: `count` frames, each in a page of its own, are in the arrays. */
  begin(count: number): void {
    this.count = count;
    this.rest = 0;
    this.buffer = 0;
    this.verdict.fill(XDP_PASS, 0, count);
    if (this.targets.length > 0) this.targets.length = 0;
  }

  /** For the driver: a packet that comes alone. */
  beginPacket(packet: Packet): void {
    const { data, linear, length, buffer } = packet;
    this.begin(1);
    this.data[0] = data;
    this.bytes[0] = linear;
    this.rest = length - linear;
    if (packet.linearPoolIndex < 0) this.buffer = buffer;
  }

  /** For the driver, after `beginPacket`: gives the packet the head that the program left. */
  endPacket(packet: Packet): void {
    packet.data = this.data[0];
    packet.linear = this.bytes[0];
    packet.length = this.length(0);
  }

  /** For the driver: gives a frame another index, at which there is none any more. */
  move(from: number, to: number): void {
    if (from === to) return;
    this.data[to] = this.data[from];
    this.bytes[to] = this.bytes[from];
    this.verdict[to] = this.verdict[from];
    if (this.targets.length > 0) this.targets[to] = this.target(from);
  }
}

/**
 * Frames to send, each in a page of their device's (struct xdp_frame, up to XDP_BATCH of them). They go to the driver without
 * a packet, a queueing discipline or a byte queue limit, and need nothing done to them: no checksum, no segmentation.
 */
export class XdpFrames {
  count = 0;
  /** Index of each frame's page in `pool`, offset in it, and bytes: to read only. */
  readonly page = new Int32Array(XDP_BATCH);
  readonly offset = new Int32Array(XDP_BATCH);
  readonly bytes = new Int32Array(XDP_BATCH);
  /** Whose pages these are: those of the device's connection when the first was taken. */
  pool: PagePool | null = null;

  constructor(readonly device: NetDevice) {}

  /**
   * Adds a frame in a page of its own, whose content is whatever its last user left: the caller writes the frame there.
   * @returns the byte address of the frame; -1 when there are XDP_BATCH, when the device has no page left, or when it has no
   *   pages that it sends as they are (without a connection, or where its backend is not trusted)
   * @throws RangeError for a frame that does not fit into a page from `offset` on, or is no Ethernet frame
   */
  add(bytes: number, offset = 0): number {
    if (!(bytes >= ETH_HLEN && offset >= 0 && offset + bytes <= PAGE_SIZE)) {
      throw new RangeError(
        `a frame has ${ETH_HLEN} to ${PAGE_SIZE} bytes within a page, not ${bytes} at ${offset}`,
      );
    }
    this.follow();
    const { pool } = this;
    if (pool === null || this.count === XDP_BATCH) return -1;
    const index = pool.alloc();
    if (index < 0) return -1;
    const at = this.count++;
    this.page[at] = index;
    this.offset[at] = offset;
    this.bytes[at] = bytes;
    return (pool.pages[index] << PAGE_SHIFT) + offset;
  }

  /** Gives all pages back; there are no frames then. */
  release(): void {
    for (let i = 0; i < this.count; i++) this.pool!.free(this.page[i]);
    this.count = 0;
  }

  /** For the device: it has taken the first `sent` frames. */
  taken(sent: number): void {
    const { page, offset, bytes, count } = this;
    this.count = count - sent;
    if (this.count === 0) return;
    for (const array of [page, offset, bytes]) array.copyWithin(0, sent, count);
  }

  /**
   * When the device has another connection, frames in pages of the one before are lost, as those on its ring are.
   * @returns how many were
   */
  follow(): number {
    const { txPool } = this.device;
    if (txPool === this.pool) return 0;
    const lost = this.count;
    this.release();
    this.pool = txPool;
    return lost;
  }
}
