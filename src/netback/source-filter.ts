import { ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, type Headers, PARSED_L3 } from '../net/headers.js';
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
const ARP_LENGTH = 28;
const ARP_SENDER_MAC = 8;
const ARP_SENDER_IP = 14;

/**
 * Keeps a guest from sending under other addresses than its own: Ethernet source, IPv4 and IPv6 source, and
 * the sender in its ARP. The unspecified address is always allowed, as DHCP and duplicate address detection
 * send from it. With a list of IPv4 or IPv6 addresses, what cannot be parsed as such does not pass.
 */
export class SourceFilter {
  constructor(readonly addresses: SourceAddresses) {}

  /** @param headers scratch space */
  allows(packet: Packet, headers: Headers): boolean {
    const { macs, ipv4, ipv6 } = this.addresses;
    const { u8 } = packet.memory;
    if (macs !== undefined && !isOneOf(macs, u8, packet.data + ETH_SOURCE)) return false;
    if (ipv4 === undefined && ipv6 === undefined) return true;
    const level = headers.parse(packet);
    const l3 = packet.data + headers.l3;
    switch (headers.etherType) {
      case ETH_P_ARP:
        return this.allowsArp(packet, l3);
      case ETH_P_IP:
        if (ipv4 === undefined) return true;
        return level >= PARSED_L3 && isOneOfOrUnspecified(ipv4, u8, l3 + 12, 4);
      case ETH_P_IPV6:
        if (ipv6 === undefined) return true;
        return level >= PARSED_L3 && isOneOfOrUnspecified(ipv6, u8, l3 + 8, 16);
      default:
        return true;
    }
  }

  private allowsArp(packet: Packet, l3: number): boolean {
    const { macs, ipv4 } = this.addresses;
    const { u8 } = packet.memory;
    if (l3 - packet.data + ARP_LENGTH > packet.linear) return false;
    if (macs !== undefined && !isOneOf(macs, u8, l3 + ARP_SENDER_MAC)) return false;
    return ipv4 === undefined || isOneOfOrUnspecified(ipv4, u8, l3 + ARP_SENDER_IP, 4);
  }
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
  for (let i = 0; i < length; i++) if (u8[at + i] !== 0) return isOneOf(list, u8, at);
  return true;
}
