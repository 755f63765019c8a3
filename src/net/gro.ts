import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import {
  ipv4ChecksumIsRight,
  setupPartialChecksum,
  validateChecksum,
  writeIpv4Checksum,
} from './checksum.js';
import { ETH_P_IP, Headers, IPPROTO_TCP, PARSED_L4, TCP_ACK, TCP_PSH } from './headers.js';
import type { Packet } from './packet.js';
import { CHECKSUM_NONE, FRAGMENT_LOCAL, GSO_NONE, GSO_TCPV4, GSO_TCPV6, MAX_FRAGMENTS } from './packet.js';

/** Flows that are held at a time (MAX_GRO_SKBS of Linux, for each of its buckets). */
export const MAX_GRO_FLOWS = 8;
/** A GSO packet that is longer is not held: there is hardly room for another behind it. */
const GSO_HELD_MAX = 32768;
/** The IP length field ends here. */
const IP_MAX = 65535;
const IP_DF = 0x40;
/** Where an untagged frame has its IPv4 header's protocol. */
const IP_PROTOCOL = 23;

/** Of the packet that arrived. */
const headers = new Headers();
/** Of a packet that is given on: whoever gives it on still needs what arrived. */
const finished = new Headers();

/** Whom packets are given on to, a device that receives them for one. */
export interface GroTarget {
  /** Takes the reference. */
  receive(packet: Packet): void;
}

/** A packet that waits for the next of its flow, and what is known of it. */
class Held {
  packet: Packet | null = null;
  device: GroTarget | null = null;
  l3 = 0;
  l4 = 0;
  headerLength = 0;
  ipVersion = 0;
  ipLength = 0;
  nextSequence = 0;
  segmentSize = 0;
  segments = 0;
  /** It is made of several packets. */
  merged = false;
  id = 0;
}

/**
 * Generic receive offload: TCP packets of one flow that follow each other become one GSO packet, so that a
 * receiver that takes those gets fewer; GSO packets, too, become longer ones. The data stays where it is: the first packet
 * takes the pages of later ones that are from the same pool, and keeps the others alive. Only what can be taken apart again
 * into the same packets is put together.
 *
 * Packets are held until the poll that brought them ends. What whoever gets one throws goes on to the caller, and costs no
 * other packet.
 */
export class Gro {
  private readonly held: Held[] = Array.from({ length: MAX_GRO_FLOWS }, () => new Held());
  private used = 0;

  /** @param fragmentsMax that a packet may be put together of */
  constructor(private readonly fragmentsMax = MAX_FRAGMENTS) {}

  /** Takes a packet that arrived. Takes the reference. */
  receive(packet: Packet, device: GroTarget): void {
    // With nothing held there is no order to keep, and what is not to be held can mostly be told early.
    if (this.used === 0 && (isPlainDatagram(packet) || isLongGso(packet))) {
      device.receive(packet);
      return;
    }
    const level = headers.parse(packet);
    if (!this.isCandidate(packet, level)) {
      const before = this.flowOf(packet);
      if (before < 0) device.receive(packet);
      else this.giveBoth(before, packet, device);
      return;
    }
    for (let i = 0; i < this.used; i++) {
      const held = this.held[i];
      if (held.device !== device || !sameConnection(held, packet)) continue;
      const ends = tcpFlags(packet) & TCP_PSH;
      const short = (packet.length - headers.length) % held.segmentSize !== 0;
      // What is held of the connection goes first, even if this packet cannot be its end (another timestamp, say).
      if (!sameHeaders(held, packet) || !this.merge(held, packet)) this.replace(i, packet, device);
      else if (ends !== 0 || short) this.flushAt(i);
      return;
    }
    this.begin(packet, device);
  }

  /** What may be the first of a run is held. */
  private begin(packet: Packet, device: GroTarget): void {
    if ((tcpFlags(packet) & TCP_PSH) !== 0 || !endsWhole(packet) || isLongGso(packet)) device.receive(packet);
    else this.hold(packet, device);
  }

  private replace(index: number, packet: Packet, device: GroTarget): void {
    try {
      this.flushAt(index);
    } finally {
      this.begin(packet, device);
    }
  }

  private giveBoth(index: number, packet: Packet, device: GroTarget): void {
    try {
      this.flushAt(index);
    } finally {
      device.receive(packet);
    }
  }

  /** Gives on all that is held. */
  flush(): void {
    while (this.used > 0) this.flushAt(0);
  }

  /** Only plain data of an established connection, whole, with a checksum that is known to be right. */
  private isCandidate(packet: Packet, level: number): boolean {
    if (packet.references !== 1 || packet.failed) return false;
    if (level !== PARSED_L4 || headers.protocol !== IPPROTO_TCP) return false;
    if (headers.l3Length !== (headers.ipVersion === 4 ? 20 : 40)) return false;
    // Padding behind the IP packet would become data.
    if (headers.l3 + headers.ipLength !== packet.length || packet.length === headers.length) return false;
    const flags = tcpFlags(packet);
    if ((flags & ~TCP_PSH) !== TCP_ACK) return false;
    // What is put together gets a header of its own, which must not make up for a broken one.
    if (packet.checksum !== CHECKSUM_NONE)
      return headers.ipVersion !== 4 || ipv4ChecksumIsRight(packet, headers);
    return packet.isLocal && validateChecksum(packet, headers);
  }

  private hold(packet: Packet, device: GroTarget): void {
    if (this.used === MAX_GRO_FLOWS) {
      this.replace(0, packet, device);
      return;
    }
    const held = this.held[this.used++];
    const { u8 } = packet.memory;
    held.packet = packet;
    held.device = device;
    held.l3 = headers.l3;
    held.l4 = headers.l4;
    held.headerLength = headers.length;
    held.ipVersion = headers.ipVersion;
    held.ipLength = headers.ipLength;
    held.segmentSize = segmentSizeOf(packet);
    held.nextSequence = (sequence(packet, headers.l4) + packet.length - headers.length) | 0;
    held.segments = segmentsOf(packet);
    held.merged = false;
    const ip = packet.data + headers.l3;
    held.id = (u8[ip + 4] << 8) | u8[ip + 5];
  }

  /** Makes `packet` the end of what is held, and takes its reference. @returns false, having done nothing, when it does not fit */
  private merge(held: Held, packet: Packet): boolean {
    const whole = held.packet!;
    const payload = packet.length - headers.length;
    const { u8 } = packet.memory;
    if (packet.gsoType === GSO_NONE ? payload > held.segmentSize : packet.gsoSize !== held.segmentSize)
      return false;
    if (held.ipLength + payload > IP_MAX) return false;
    if (sequence(packet, headers.l4) !== held.nextSequence || packet.parent !== null) return false;
    if (held.ipVersion === 4) {
      const ip = packet.data + headers.l3;
      const id = (u8[ip + 4] << 8) | u8[ip + 5];
      // Taken apart, ids count up; with DF nobody looks at them.
      if ((u8[ip + 6] & IP_DF) === 0 && id !== ((held.id + held.segments) & 0xffff)) return false;
    }
    const inHead = packet.linear - headers.length;
    const start = packet.data + headers.length;
    const pieces = packet.fragments + (inHead === 0 ? 0 : 1);
    if (whole.fragments + pieces > this.fragmentsMax) return false;
    const mine = packet.pool !== null && packet.pool === whole.pool && ownsPages(packet, inHead > 0);
    // The head is in one page: packets' buffers and pool pages do not cross one.
    if (inHead > 0) {
      const page = mine ? packet.linearPoolIndex : -1;
      whole.addFragment(FRAGMENT_LOCAL, start >>> PAGE_SHIFT, start & (PAGE_SIZE - 1), inHead, page);
    }
    for (let i = 0; i < packet.fragments; i++) {
      const page = mine ? packet.poolIndex[i] : -1;
      whole.addFragment(packet.source[i], packet.ref[i], packet.offset[i], packet.size[i], page);
    }
    const from = packet.data + headers.l4 + 13;
    u8[whole.data + held.l4 + 13] |= u8[from] & TCP_PSH;
    held.ipLength += payload;
    held.nextSequence = (held.nextSequence + payload) | 0;
    held.segments += segmentsOf(packet);
    held.merged = true;
    if (mine) {
      packet.fragments = 0;
      if (inHead > 0) packet.linearPoolIndex = -1;
      packet.release();
    } else {
      packet.parent = whole.parent;
      whole.parent = packet;
    }
    return true;
  }

  /** Where packets are held that one of their flow which is not to be held must not overtake; -1 for nowhere. */
  private flowOf(packet: Packet): number {
    if (this.used === 0 || headers.level !== PARSED_L4 || headers.protocol !== IPPROTO_TCP) return -1;
    for (let i = 0; i < this.used; i++) if (sameConnection(this.held[i], packet)) return i;
    return -1;
  }

  private flushAt(index: number): void {
    const held = this.held[index];
    const packet = held.packet!;
    const device = held.device!;
    held.packet = null;
    held.device = null;
    this.used--;
    // The order in which flows came is kept, so that the oldest goes first. Array.splice would allocate.
    for (let i = index; i < this.used; i++) this.held[i] = this.held[i + 1];
    this.held[this.used] = held;
    if (held.merged) finish(held, packet);
    device.receive(packet);
  }
}

/** Nobody else has to be told when the packet's data is done with: all of it is in pages of its pool. */
function ownsPages(packet: Packet, head: boolean): boolean {
  if (packet.owner !== null || (head && packet.linearPoolIndex < 0)) return false;
  for (let i = 0; i < packet.fragments; i++) {
    if (packet.source[i] !== FRAGMENT_LOCAL || packet.poolIndex[i] < 0) return false;
  }
  return true;
}

/** IPv4 of another protocol than TCP: the first look at a packet, far cheaper than parsing it. */
function isPlainDatagram(packet: Packet): boolean {
  const { u8 } = packet.memory;
  const { data } = packet;
  return (
    packet.linear > IP_PROTOCOL &&
    u8[data + 12] === ETH_P_IP >> 8 &&
    u8[data + 13] === (ETH_P_IP & 0xff) &&
    u8[data + IP_PROTOCOL] !== IPPROTO_TCP
  );
}

function isLongGso(packet: Packet): boolean {
  return packet.gsoType !== GSO_NONE && packet.length > GSO_HELD_MAX;
}

/** Bytes of payload in each segment that the packet is, or can be cut into. */
function segmentSizeOf(packet: Packet): number {
  return packet.gsoType === GSO_NONE ? packet.length - headers.length : packet.gsoSize;
}

function segmentsOf(packet: Packet): number {
  return packet.gsoType === GSO_NONE ? 1 : Math.ceil((packet.length - headers.length) / packet.gsoSize);
}

/** Its last segment is as long as the others: more can follow. */
function endsWhole(packet: Packet): boolean {
  return packet.gsoType === GSO_NONE || (packet.length - headers.length) % packet.gsoSize === 0;
}

/** Makes the head say what the packet has become. */
function finish(held: Held, packet: Packet): void {
  const { u8 } = packet.memory;
  const ip = packet.data + held.l3;
  if (held.ipVersion === 4) {
    u8[ip + 2] = held.ipLength >>> 8;
    u8[ip + 3] = held.ipLength & 0xff;
  } else {
    u8[ip + 4] = (held.ipLength - 40) >>> 8;
    u8[ip + 5] = (held.ipLength - 40) & 0xff;
  }
  finished.parse(packet);
  if (held.ipVersion === 4) writeIpv4Checksum(packet, finished);
  setupPartialChecksum(packet, finished, true);
  packet.gsoType = held.ipVersion === 4 ? GSO_TCPV4 : GSO_TCPV6;
  packet.gsoSize = held.segmentSize;
}

function tcpFlags(packet: Packet): number {
  return packet.memory.u8[packet.data + headers.l4 + 13];
}

function sequence(packet: Packet, l4: number): number {
  const { u8 } = packet.memory;
  const at = packet.data + l4 + 4;
  return (u8[at] << 24) | (u8[at + 1] << 16) | (u8[at + 2] << 8) | u8[at + 3];
}

function same({ u8, u16 }: Memory, a: number, b: number, length: number): boolean {
  if (((a | b | length) & 1) === 0) {
    for (let i = 0; i < length; i += 2) if (u16[(a + i) >>> 1] !== u16[(b + i) >>> 1]) return false;
    return true;
  }
  for (let i = 0; i < length; i++) if (u8[a + i] !== u8[b + i]) return false;
  return true;
}

/** Addresses and ports. */
function sameConnection(held: Held, packet: Packet): boolean {
  if (held.ipVersion !== headers.ipVersion || held.l3 !== headers.l3) return false;
  const { memory } = packet;
  const a = held.packet!.data;
  const b = packet.data;
  const { l3 } = held;
  const addresses =
    held.ipVersion === 4
      ? same(memory, a + l3 + 12, b + l3 + 12, 8)
      : same(memory, a + l3 + 8, b + l3 + 8, 32);
  return addresses && same(memory, a + held.l4, b + headers.l4, 4);
}

/**
 * For packets of one connection: everything that has to be the same in one run, all headers but lengths, ids, sequence and
 * checksums.
 */
function sameHeaders(held: Held, packet: Packet): boolean {
  if (held.headerLength !== headers.length) return false;
  const { memory } = packet;
  const a = held.packet!.data;
  const b = packet.data;
  const { l3, l4 } = held;
  if (!same(memory, a, b, l3)) return false;
  const network =
    held.ipVersion === 4
      ? same(memory, a + l3, b + l3, 2) && same(memory, a + l3 + 6, b + l3 + 6, 4)
      : same(memory, a + l3, b + l3, 4) && same(memory, a + l3 + 6, b + l3 + 6, 2);
  if (!network) return false;
  if (memory.u8[a + l4 + 12] !== memory.u8[b + l4 + 12]) return false;
  const flags = (memory.u8[a + l4 + 13] ^ memory.u8[b + l4 + 13]) & ~TCP_PSH;
  if (flags !== 0 || !same(memory, a + l4 + 8, b + l4 + 8, 4)) return false;
  return (
    same(memory, a + l4 + 14, b + l4 + 14, 2) &&
    same(memory, a + l4 + 20, b + l4 + 20, held.headerLength - l4 - 20)
  );
}
