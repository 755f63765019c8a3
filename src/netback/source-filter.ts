import {
  ETH_P_8021AD,
  ETH_P_8021Q,
  ETH_P_ARP,
  ETH_P_IP,
  ETH_P_IPV6,
  type Headers,
  IPPROTO_AH,
  IPPROTO_DSTOPTS,
  IPPROTO_FRAGMENT,
  IPPROTO_HOPOPTS,
  IPPROTO_ICMPV6,
  IPPROTO_ROUTING,
  PARSED_L2,
  PARSED_L3,
  PARSED_L4,
} from '../net/headers.js';
import type { Packet } from '../net/packet.js';

/** The addresses that a guest may send from; a list that is absent allows all of its kind. */
export interface SourceAddresses {
  /** 6 octets each. */
  readonly macs?: readonly Uint8Array[];
  /** 4 octets each. */
  readonly ipv4?: readonly Uint8Array[];
  /** 16 octets each. */
  readonly ipv6?: readonly Uint8Array[];
}

const ETH_SOURCE = 6;
/** Tags that some switches look through, and the parser does not. */
const ETH_P_QINQ1 = 0x9100;
const ETH_P_QINQ2 = 0x9200;
/** An EtherType below this is the length of an 802.3 frame. */
const ETH_P_802_3_MIN = 0x0600;
const LLC_SNAP = 0xaa;
const ARP_LENGTH = 28;
const ARP_SENDER_MAC = 8;
const ARP_SENDER_IP = 14;
const ARP_TARGET_IP = 24;
const EXTENSION_HEADERS: ReadonlySet<number> = new Set([
  IPPROTO_HOPOPTS,
  IPPROTO_ROUTING,
  IPPROTO_FRAGMENT,
  IPPROTO_DSTOPTS,
  IPPROTO_AH,
]);
const IPV6_HEADER = 40;
const IPV6_SOURCE = 8;
const ND_ROUTER_SOLICITATION = 133;
const ND_ROUTER_ADVERTISEMENT = 134;
const ND_NEIGHBOUR_SOLICITATION = 135;
const ND_NEIGHBOUR_ADVERTISEMENT = 136;
const ND_REDIRECT = 137;
/** Bytes of each message of neighbour discovery before its options (RFC 4861, section 4). */
const ND_FIXED_BYTES: Readonly<Record<number, number>> = {
  [ND_ROUTER_SOLICITATION]: 8,
  [ND_ROUTER_ADVERTISEMENT]: 16,
  [ND_NEIGHBOUR_SOLICITATION]: 24,
  [ND_NEIGHBOUR_ADVERTISEMENT]: 24,
  [ND_REDIRECT]: 40,
};
const ND_TARGET = 8;
const ND_OPT_SOURCE_LL_ADDR = 1;
const ND_OPT_TARGET_LL_ADDR = 2;

/**
 * Keeps a guest from sending under other addresses than its own: Ethernet source, IPv4 and IPv6 source, the
 * sender in its ARP, and what its neighbour discovery says of itself. The unspecified address is always allowed, as
 * DHCP and duplicate address detection send from it. What cannot be parsed as what a list is about does not pass, nor what
 * may hide it: more VLAN tags than are looked through, and SNAP.
 *
 * With `ipv4`, a guest probes (ARP from the unspecified address) only for its own addresses: a probe is a conflict to whoever
 * probes the same address (RFC 5227, section 2.1.1), and so would keep others from theirs.
 *
 * In neighbour discovery every link-layer address must be one of `macs`. With `ipv6`, a guest advertises only its
 * addresses and asks only for these whether they are taken; it is no router, and so neither advertises itself as one nor
 * redirects. Neighbour discovery behind extension headers, in fragments (RFC 6980), cut short, or longer than the head of a packet does not
 * pass.
 */
export class SourceFilter {
  constructor(readonly addresses: SourceAddresses) {}

  /** @param headers scratch space */
  allows(packet: Packet, headers: Headers): boolean {
    const { macs, ipv4 } = this.addresses;
    const { u8 } = packet.memory;
    if (macs !== undefined && !isOneOf(macs, u8, packet.data + ETH_SOURCE)) return false;
    const level = headers.parse(packet);
    const l3 = packet.data + headers.l3;
    switch (headers.etherType) {
      case ETH_P_ARP:
        return this.allowsArp(packet, l3);
      case ETH_P_IP:
        if (ipv4 === undefined) return true;
        return level >= PARSED_L3 && isOneOfOrUnspecified(ipv4, u8, l3 + 12, 4);
      case ETH_P_IPV6:
        return this.allowsIpv6(packet, headers);
      case ETH_P_8021Q:
      case ETH_P_8021AD:
      case ETH_P_QINQ1:
      case ETH_P_QINQ2:
        return false;
      default:
        return level >= PARSED_L2 && (headers.etherType >= ETH_P_802_3_MIN || !isSnap(packet, headers));
    }
  }

  private allowsArp(packet: Packet, l3: number): boolean {
    const { macs, ipv4 } = this.addresses;
    const { u8 } = packet.memory;
    if (l3 - packet.data + ARP_LENGTH > packet.linear) return false;
    if (macs !== undefined && !isOneOf(macs, u8, l3 + ARP_SENDER_MAC)) return false;
    if (ipv4 === undefined) return true;
    const sender = l3 + ARP_SENDER_IP;
    return isOneOf(ipv4, u8, isUnspecified(u8, sender, 4) ? l3 + ARP_TARGET_IP : sender);
  }

  private allowsIpv6(packet: Packet, headers: Headers): boolean {
    const { macs, ipv6 } = this.addresses;
    const { u8 } = packet.memory;
    if (macs === undefined && ipv6 === undefined) return true;
    if (headers.level < PARSED_L3) return false;
    const source = packet.data + headers.l3 + IPV6_SOURCE;
    if (ipv6 !== undefined && !isOneOfOrUnspecified(ipv6, u8, source, 16)) return false;
    if (headers.fragment) return !mayBeDiscovery(packet, headers);
    if (headers.protocol !== IPPROTO_ICMPV6) return true;
    if (headers.level < PARSED_L4) return false;
    const fixed = ND_FIXED_BYTES[u8[packet.data + headers.l4]];
    if (fixed === undefined) return true;
    const options = headers.l4 + fixed;
    const end = headers.l3 + headers.ipLength;
    if (headers.l3Length !== IPV6_HEADER || options > end || end > packet.linear) return false;
    return this.allowsSubject(packet, headers) && this.allowsOptions(packet, options, end);
  }

  /** Whom a message of neighbour discovery is about, whose bytes before the options are in the head. */
  private allowsSubject(packet: Packet, { l3, l4 }: Headers): boolean {
    const { ipv6 } = this.addresses;
    const { u8 } = packet.memory;
    if (ipv6 === undefined) return true;
    const target = packet.data + l4 + ND_TARGET;
    switch (u8[packet.data + l4]) {
      case ND_ROUTER_ADVERTISEMENT:
      case ND_REDIRECT:
        return false;
      case ND_NEIGHBOUR_SOLICITATION:
        // From the unspecified address it says that the target is about to be used.
        return !isUnspecified(u8, packet.data + l3 + IPV6_SOURCE, 16) || isOneOf(ipv6, u8, target);
      case ND_NEIGHBOUR_ADVERTISEMENT:
        return isOneOf(ipv6, u8, target);
      default:
        return true;
    }
  }

  /** The options from offset `at` to `end`, which are in the head. */
  private allowsOptions(packet: Packet, at: number, end: number): boolean {
    const { macs } = this.addresses;
    const { u8 } = packet.memory;
    while (at < end) {
      if (at + 8 > end) return false;
      const option = packet.data + at;
      const bytes = u8[option + 1] * 8;
      if (bytes === 0 || at + bytes > end) return false;
      const isAddress = u8[option] === ND_OPT_SOURCE_LL_ADDR || u8[option] === ND_OPT_TARGET_LL_ADDR;
      if (isAddress && macs !== undefined && !isOneOf(macs, u8, option + 2)) return false;
      at += bytes;
    }
    return true;
  }
}

/** The first fragment of neighbour discovery, or of what cannot be told from it. */
function mayBeDiscovery(packet: Packet, { l3, l4, ipLength, protocol }: Headers): boolean {
  const { u8 } = packet.memory;
  const at = packet.data + l4;
  const fragmentOffset = ((u8[at - 6] << 8) | u8[at - 5]) & 0xfff8;
  if (fragmentOffset !== 0) return false;
  if (EXTENSION_HEADERS.has(protocol)) return true;
  if (protocol !== IPPROTO_ICMPV6) return false;
  return l4 >= Math.min(l3 + ipLength, packet.linear) || ND_FIXED_BYTES[u8[at]] !== undefined;
}

/** An 802.3 frame that may carry IP or ARP, which some receivers take. */
function isSnap(packet: Packet, { l3 }: Headers): boolean {
  return l3 < packet.linear && packet.memory.u8[packet.data + l3] === LLC_SNAP;
}

function isOneOf(list: readonly Uint8Array[], u8: Uint8Array, at: number): boolean {
  return list.some(address => address.every((octet, i) => u8[at + i] === octet));
}

function isOneOfOrUnspecified(
  list: readonly Uint8Array[],
  u8: Uint8Array,
  at: number,
  length: number,
): boolean {
  return isUnspecified(u8, at, length) || isOneOf(list, u8, at);
}

function isUnspecified(u8: Uint8Array, at: number, length: number): boolean {
  for (let i = 0; i < length; i++) if (u8[at + i] !== 0) return false;
  return true;
}
