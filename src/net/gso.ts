import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import { resizePartialChecksum, setupPartialChecksum, writeIpv4Checksum } from './checksum.js';
import { Headers, IPPROTO_TCP, PARSED_L4, TCP_CWR, TCP_FIN, TCP_PSH } from './headers.js';
import { copyMetadata } from './materialise.js';
import type { Packet, PacketPool } from './packet.js';
import {
  CHECKSUM_PARTIAL,
  FRAGMENT_LOCAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  MAX_FRAGMENTS,
  PACKET_HEADROOM,
  PACKET_LINEAR_MAX,
} from './packet.js';

/**
 * Payload bytes of a segment, on average, in a packet that is cut into more than a few: no link has a smaller MTU than such
 * segments need. Whoever asks for shorter ones wants to make us work: a page would be thousands of packets for each port of a
 * bridge, and leave no room in their queues.
 */
const SEGMENT_MIN = 240;
const FEW_SEGMENTS = 16;

/** The most packets that one with so many bytes of payload is cut into. */
export function maxGsoSegments(payload: number): number {
  return FEW_SEGMENTS + Math.floor(payload / SEGMENT_MIN);
}

const headers = new Headers();

/**
 * Cuts a GSO packet into segments in software: the same header before each gsoSize bytes of payload, IPv4
 * id and TCP sequence number counted up, FIN and PSH only on the last segment, CWR only on the first, and
 * a partial checksum on each. No payload is copied: the segments' fragments point into the packet, which
 * they keep alive.
 *
 * Takes the caller's reference.
 * @returns the segments, linked by `next`, or null when the packet is not what its GSO type says (another
 *   protocol, headers that are not whole in the linear part, a size of 0, too many segments), or when there
 *   is no memory for the segments
 */
export function segmentPacket(packet: Packet, packets: PacketPool): Packet | null {
  const first = buildSegments(packet, packets);
  packet.release();
  return first;
}

function buildSegments(packet: Packet, packets: PacketPool): Packet | null {
  const { gsoSize } = packet;
  if (headers.parse(packet) !== PARSED_L4 || headers.protocol !== IPPROTO_TCP) return null;
  if (packet.gsoType !== (headers.ipVersion === 4 ? GSO_TCPV4 : GSO_TCPV6)) return null;
  const headerLength = headers.length;
  const payloadEnd = headers.l3 + headers.ipLength;
  const payload = payloadEnd - headerLength;
  if (gsoSize === 0 || headerLength > PACKET_LINEAR_MAX) return null;
  const count = payload === 0 ? 1 : Math.ceil(payload / gsoSize);
  if (count > maxGsoSegments(payload)) return null;

  const { u8 } = packet.memory;
  const { l3, l4, ipVersion } = headers;
  const tcp = packet.data + l4;
  const tcpBefore = headers.ipLength - headers.l3Length;
  // What is behind the fixed header may be a source route, whose end is the destination that the sender's sum has.
  const mayBeRouted = headers.l3Length > (ipVersion === 4 ? 20 : 40) && packet.checksum === CHECKSUM_PARTIAL;
  let sequence = (u8[tcp + 4] << 24) | (u8[tcp + 5] << 16) | (u8[tcp + 6] << 8) | u8[tcp + 7];
  let id = (u8[packet.data + l3 + 4] << 8) | u8[packet.data + l3 + 5];
  const flags = u8[tcp + 13];

  let first: Packet | null = null;
  let last: Packet | null = null;
  /** Where the next payload byte is: in the linear part while `fragment` is -1. */
  let fragment = -1;
  let offset = headerLength;
  let left = payload;
  for (let n = 0; n < count; n++) {
    const segment = packets.tryGet();
    if (segment === null) {
      releaseList(first);
      return null;
    }
    copyMetadata(packet, segment);
    segment.gsoType = GSO_NONE;
    segment.gsoSize = 0;
    segment.parent = packet;
    packet.hold();
    if (last === null) first = segment;
    else last.next = segment;
    last = segment;

    const at = segment.data;
    packet.memory.copy(at, packet.data, headerLength);
    segment.linear = headerLength;
    segment.length = headerLength;
    const size = Math.min(left, gsoSize);
    left -= size;
    for (let missing = size; missing > 0; ) {
      const available = fragment < 0 ? packet.linear - offset : packet.size[fragment] - offset;
      if (available === 0) {
        fragment++;
        offset = 0;
        continue;
      }
      let take = Math.min(missing, available);
      if (fragment < 0) {
        const room = segment.buffer + PACKET_HEADROOM + PACKET_LINEAR_MAX - at - segment.linear;
        if (segment.fragments === 0 && room >= take) {
          packet.memory.copy(at + segment.linear, packet.data + offset, take);
          segment.linear += take;
          segment.length += take;
        } else {
          const from = packet.data + offset;
          const inPage = PAGE_SIZE - (from & (PAGE_SIZE - 1));
          if (take > inPage) take = inPage;
          segment.addFragment(FRAGMENT_LOCAL, from >>> PAGE_SHIFT, from & (PAGE_SIZE - 1), take);
        }
      } else {
        if (segment.fragments === MAX_FRAGMENTS) {
          releaseList(first);
          return null;
        }
        segment.addFragment(
          packet.source[fragment],
          packet.ref[fragment],
          packet.offset[fragment] + offset,
          take,
        );
      }
      offset += take;
      missing -= take;
    }

    const ipLength = headerLength - l3 + size;
    const ip = at + l3;
    if (ipVersion === 4) {
      u8[ip + 2] = ipLength >>> 8;
      u8[ip + 3] = ipLength & 0xff;
      u8[ip + 4] = (id >>> 8) & 0xff;
      u8[ip + 5] = id & 0xff;
      id++;
    } else {
      u8[ip + 4] = (ipLength - 40) >>> 8;
      u8[ip + 5] = (ipLength - 40) & 0xff;
    }
    u8[at + l4 + 4] = sequence >>> 24;
    u8[at + l4 + 5] = (sequence >>> 16) & 0xff;
    u8[at + l4 + 6] = (sequence >>> 8) & 0xff;
    u8[at + l4 + 7] = sequence & 0xff;
    sequence = (sequence + size) | 0;
    let segmentFlags = flags;
    if (n < count - 1) segmentFlags &= ~(TCP_FIN | TCP_PSH);
    if (n > 0) segmentFlags &= ~TCP_CWR;
    u8[at + l4 + 13] = segmentFlags;
    headers.ipLength = ipLength;
    if (ipVersion === 4) writeIpv4Checksum(segment, headers);
    if (mayBeRouted) resizePartialChecksum(segment, tcpBefore, headerLength - l4 + size);
    else setupPartialChecksum(segment, headers, true);
  }
  return first;
}

/** Releases every packet of a list that is linked by `next`. */
export function releaseList(packet: Packet | null): void {
  while (packet !== null) {
    const { next } = packet;
    packet.next = null;
    packet.release();
    packet = next;
  }
}
