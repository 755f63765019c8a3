import { checksumOffset, completeChecksum, setupPartialChecksum } from './checksum.js';
import {
  NETIF_F_ALL_TSO,
  NETIF_F_CSUM_MASK,
  NETIF_F_HW_CSUM,
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from './features.js';
import { releaseList, segmentPacket } from './gso.js';
import { ETH_P_8021AD, ETH_P_8021Q, Headers, IPPROTO_TCP, IPPROTO_UDP, PARSED_L4 } from './headers.js';
import type { Materialiser } from './materialise.js';
import type { Packet, PacketPool } from './packet.js';
import {
  CHECKSUM_PARTIAL,
  GSO_AS_HEADERS,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  PACKET_LINEAR_MAX,
} from './packet.js';

const headers = new Headers();

/** What `validateXmit` needs to know of the device. */
export interface XmitTarget {
  readonly features: number;
  /** The longest GSO packet that the device takes. */
  readonly gsoMaxSize: number;
}

/** Whether any device with these features takes the packet: most packets, at the cost of three tests. */
export function passesAsItIs(packet: Packet, features: number): boolean {
  return (
    packet.gsoType === GSO_NONE &&
    packet.checksum !== CHECKSUM_PARTIAL &&
    (packet.fragments === 0 || (features & NETIF_F_SG) !== 0)
  );
}

/**
 * Does in software what a device cannot do (validate_xmit_skb): cuts GSO packets, puts all data into the
 * linear part when there is no scatter-gather, completes partial checksums. Not needed for what `passesAsItIs`.
 *
 * Takes the caller's reference.
 * @returns the packets to send, linked by `next`, or null when the packet had to be dropped
 */
export function validateXmit(
  packet: Packet,
  target: XmitTarget,
  packets: PacketPool,
  materialiser: Materialiser,
): Packet | null {
  const features = featuresFor(packet, target.features);
  if (packet.gsoType !== GSO_NONE) {
    const tso = packet.gsoType === GSO_TCPV4 ? NETIF_F_TSO : NETIF_F_TSO6;
    if (
      (features & tso) === 0 ||
      (features & NETIF_F_SG) === 0 ||
      packet.length > target.gsoMaxSize ||
      packet.checksum !== CHECKSUM_PARTIAL
    ) {
      return segmentInSoftware(packet, features, packets, materialiser);
    }
    return packet;
  }
  if (packet.fragments > 0 && (features & NETIF_F_SG) === 0) {
    const own = materialiser.unshare(packet);
    if (own === null) return null;
    if (!materialiser.linearise(own)) {
      own.release();
      return null;
    }
    packet = own;
  }
  if (packet.checksum === CHECKSUM_PARTIAL && (features & NETIF_F_HW_CSUM) === 0) {
    return completeInSoftware(packet, features, materialiser);
  }
  return packet;
}

/**
 * What of the features holds for the packet (netif_skb_features). A device that completes checksums of some protocols, as both
 * ends of a vif, has the other end find them, and Linux's drivers look behind no VLAN tag: they drop what says that it has a
 * blank one there.
 */
function featuresFor(packet: Packet, features: number): number {
  if ((features & NETIF_F_HW_CSUM) !== 0) return features;
  const { u8 } = packet.memory;
  const type = (u8[packet.data + 12] << 8) | u8[packet.data + 13];
  const tagged = type === ETH_P_8021Q || type === ETH_P_8021AD;
  return tagged ? features & ~(NETIF_F_CSUM_MASK | NETIF_F_ALL_TSO) : features;
}

function segmentInSoftware(
  packet: Packet,
  features: number,
  packets: PacketPool,
  materialiser: Materialiser,
): Packet | null {
  const target: Packet | null = wholeHeaders(packet, materialiser);
  if (target === null) return null;
  const ipCsum = target.gsoType === GSO_TCPV4 ? NETIF_F_IP_CSUM : NETIF_F_IPV6_CSUM;
  const needsBytes = (features & NETIF_F_SG) === 0 || (features & (NETIF_F_HW_CSUM | ipCsum)) === 0;
  if (needsBytes && !materialiser.materialiseOne(target)) {
    target.release();
    return null;
  }
  let segment = segmentPacket(target, packets);
  let first: Packet | null = null;
  let last: Packet | null = null;
  while (segment !== null) {
    const { next } = segment;
    segment.next = null;
    let ready = true;
    if (segment.fragments > 0 && (features & NETIF_F_SG) === 0) ready = materialiser.linearise(segment);
    if (ready && (features & (NETIF_F_HW_CSUM | ipCsum)) === 0) ready = completeChecksum(segment);
    if (!ready) {
      segment.release();
      releaseList(next);
      releaseList(first);
      return null;
    }
    if (last === null) first = segment;
    else last.next = segment;
    last = segment;
    segment = next;
  }
  return first;
}

/** Gets all headers into the linear part. Takes the reference. */
function wholeHeaders(packet: Packet, materialiser: Materialiser): Packet | null {
  for (;;) {
    const level = headers.parse(packet);
    if (level === PARSED_L4 || headers.needed === 0 || headers.needed > PACKET_LINEAR_MAX) return packet;
    const own: Packet | null = materialiser.unshare(packet);
    if (own === null) return null;
    if (!materialiser.pull(own, headers.needed)) {
      own.release();
      return null;
    }
    packet = own;
  }
}

function completeInSoftware(packet: Packet, features: number, materialiser: Materialiser): Packet | null {
  if (isFound(packet)) {
    const feature = headers.ipVersion === 4 ? NETIF_F_IP_CSUM : NETIF_F_IPV6_CSUM;
    if ((features & feature) !== 0) return packet;
  }
  const own = materialiser.unshare(packet);
  if (own === null) return null;
  if (!materialiser.materialiseOne(own) || !completeChecksum(own)) {
    own.release();
    return null;
  }
  return own;
}

/** Parses, and says whether who looks for a TCP or UDP checksum finds the partial one: not that of what a tunnel carries. */
function isFound(packet: Packet): boolean {
  if (headers.parse(packet) !== PARSED_L4) return false;
  const { protocol, l4 } = headers;
  if (protocol !== IPPROTO_TCP && protocol !== IPPROTO_UDP) return false;
  return packet.csumStart === l4 && packet.csumOffset === checksumOffset(protocol);
}

/**
 * For drivers that receive a packet whose checksum field is blank (NETTXF_csum_blank): finds where the
 * checksum belongs and makes it partial. Pulls headers into the linear part as needed. The packet must be
 * the caller's to change.
 * @returns false when the packet has no such checksum: drop it (Linux: -EPROTO)
 */
export function setupChecksum(packet: Packet, recalculate: boolean, materialiser: Materialiser): boolean {
  while (headers.parse(packet) !== PARSED_L4) {
    const { needed } = headers;
    if (needed === 0 || !materialiser.pull(packet, needed)) return false;
  }
  return setupPartialChecksum(packet, headers, recalculate);
}

/**
 * For drivers that receive a packet with a GSO extra info: takes it over when the packet is what the extra
 * info says, a TCP segment of that IP version. Everything else is as for `setupChecksum`.
 * @param gsoType as the extra info has it, or GSO_AS_HEADERS for whatever the headers say
 * @returns false when it is not: whoever has to cut it could not
 */
export function setupGso(
  packet: Packet,
  gsoType: number,
  gsoSize: number,
  recalculate: boolean,
  materialiser: Materialiser,
): boolean {
  if (!setupChecksum(packet, recalculate, materialiser)) return false;
  const found = headers.ipVersion === 4 ? GSO_TCPV4 : GSO_TCPV6;
  if (headers.protocol !== IPPROTO_TCP || (gsoType !== found && gsoType !== GSO_AS_HEADERS)) return false;
  packet.gsoType = found;
  packet.gsoSize = gsoSize;
  return true;
}
