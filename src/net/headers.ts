import type { Packet } from './packet.js';

export const ETH_P_IP = 0x0800;
export const ETH_P_ARP = 0x0806;
export const ETH_P_8021Q = 0x8100;
export const ETH_P_8021AD = 0x88a8;
export const ETH_P_IPV6 = 0x86dd;

export const IPPROTO_HOPOPTS = 0;
export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_UDP = 17;
export const IPPROTO_ROUTING = 43;
export const IPPROTO_FRAGMENT = 44;
export const IPPROTO_AH = 51;
export const IPPROTO_ICMPV6 = 58;
export const IPPROTO_NONE = 59;
export const IPPROTO_DSTOPTS = 60;

export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_PSH = 0x08;
export const TCP_ACK = 0x10;
export const TCP_URG = 0x20;
export const TCP_ECE = 0x40;
export const TCP_CWR = 0x80;

/** VLAN tags that are looked through; a deeper stack is not parsed further. */
const MAX_VLAN_TAGS = 2;
/** IPv6 extension headers that are looked through; the linear part bounds their bytes anyway. */
const MAX_EXTENSION_HEADERS = 8;

/** How far `Headers.parse` came. */
export const PARSED_NOTHING = 0;
/** The Ethernet header and any VLAN tags. */
export const PARSED_L2 = 1;
/** Also an IPv4 or IPv6 header and its extension headers. */
export const PARSED_L3 = 2;
/** Also a whole TCP, UDP or ICMP(v6) header. */
export const PARSED_L4 = 3;

/**
 * Where the headers of a packet are. One instance is filled again and again; nothing is allocated. Every
 * length that the packet claims is checked against what the packet has before a field is set from it.
 */
export class Headers {
  /** One of PARSED_*. */
  level = PARSED_NOTHING;
  /** EtherType behind the VLAN tags (host order); below 1536 it is an 802.3 length. */
  etherType = 0;
  /** Tags found, and the outermost tag's control information. */
  vlanTags = 0;
  vlanTci = 0;
  /** Offset of the IP header from `data`. */
  l3 = 0;
  /** 4, 6, or 0 for anything else. */
  ipVersion = 0;
  /** Bytes of the IPv4 header with options, or of the IPv6 header with extension headers. */
  l3Length = 0;
  /** Bytes that the IP header claims from `l3` on; never more than the packet has. */
  ipLength = 0;
  /** The packet is an IP fragment: what is behind `l4` is no whole transport segment. */
  fragment = false;
  /** IPPROTO_* of the transport header; -1 without one. */
  protocol = -1;
  /** Offset of the transport header from `data`. */
  l4 = 0;
  /** Bytes of the transport header (TCP with options). */
  l4Length = 0;
  /** Bytes of linear data that would have let the parser go on; 0 when that was not the obstacle. */
  needed = 0;

  /** Bytes of all headers together. */
  get length(): number {
    return this.l4 + this.l4Length;
  }

  /**
   * Parses the headers in the linear part.
   * @returns how far it came, one of PARSED_*; `needed` says whether more linear bytes would help
   */
  parse(packet: Packet): number {
    this.level = PARSED_NOTHING;
    this.etherType = 0;
    this.vlanTags = 0;
    this.vlanTci = 0;
    this.ipVersion = 0;
    this.l3 = 0;
    this.l3Length = 0;
    this.ipLength = 0;
    this.fragment = false;
    this.protocol = -1;
    this.l4 = 0;
    this.l4Length = 0;
    this.needed = 0;
    const { u8 } = packet.memory;
    const at = packet.data;
    const { linear } = packet;
    let offset = 14;
    if (linear < offset) return this.short(packet, offset);
    let type = (u8[at + 12] << 8) | u8[at + 13];
    while ((type === ETH_P_8021Q || type === ETH_P_8021AD) && this.vlanTags < MAX_VLAN_TAGS) {
      if (linear < offset + 4) return this.short(packet, offset + 4);
      if (this.vlanTags === 0) this.vlanTci = (u8[at + offset] << 8) | u8[at + offset + 1];
      type = (u8[at + offset + 2] << 8) | u8[at + offset + 3];
      offset += 4;
      this.vlanTags++;
    }
    this.etherType = type;
    this.l3 = offset;
    this.level = PARSED_L2;
    if (type === ETH_P_IP) return this.parseIpv4(packet, offset);
    if (type === ETH_P_IPV6) return this.parseIpv6(packet, offset);
    return PARSED_L2;
  }

  private short(packet: Packet, needed: number): number {
    if (needed <= packet.length) this.needed = needed;
    return this.level;
  }

  private parseIpv4(packet: Packet, l3: number): number {
    const { u8 } = packet.memory;
    const at = packet.data + l3;
    if (packet.linear < l3 + 20) return this.short(packet, l3 + 20);
    if (u8[at] >> 4 !== 4) return this.level;
    const headerLength = (u8[at] & 15) << 2;
    const total = (u8[at + 2] << 8) | u8[at + 3];
    if (headerLength < 20 || total < headerLength || total > packet.length - l3) return this.level;
    if (packet.linear < l3 + headerLength) return this.short(packet, l3 + headerLength);
    this.ipVersion = 4;
    this.l3Length = headerLength;
    this.ipLength = total;
    this.fragment = (((u8[at + 6] << 8) | u8[at + 7]) & 0x3fff) !== 0;
    this.protocol = u8[at + 9];
    this.l4 = l3 + headerLength;
    this.level = PARSED_L3;
    return this.fragment ? PARSED_L3 : this.parseTransport(packet);
  }

  private parseIpv6(packet: Packet, l3: number): number {
    const { u8 } = packet.memory;
    const at = packet.data + l3;
    if (packet.linear < l3 + 40) return this.short(packet, l3 + 40);
    if (u8[at] >> 4 !== 6) return this.level;
    const total = 40 + ((u8[at + 4] << 8) | u8[at + 5]);
    if (total > packet.length - l3) return this.level;
    let next = u8[at + 6];
    let length = 40;
    for (let headers = 0; ; headers++) {
      const fixed = next === IPPROTO_FRAGMENT;
      const extension =
        next === IPPROTO_HOPOPTS ||
        next === IPPROTO_ROUTING ||
        next === IPPROTO_DSTOPTS ||
        next === IPPROTO_AH ||
        fixed;
      if (!extension) break;
      if (headers === MAX_EXTENSION_HEADERS || length + 8 > total) return this.level;
      if (packet.linear < l3 + length + 8) return this.short(packet, l3 + length + 8);
      const units = u8[at + length + 1];
      const size = fixed ? 8 : next === IPPROTO_AH ? (units + 2) << 2 : (units + 1) << 3;
      if (length + size > total) return this.level;
      if (packet.linear < l3 + length + size) return this.short(packet, l3 + length + size);
      if (fixed) {
        const offsetAndFlag = ((u8[at + length + 2] << 8) | u8[at + length + 3]) & 0xfff9;
        if (offsetAndFlag !== 0) this.fragment = true;
      }
      next = u8[at + length];
      length += size;
      if (this.fragment) break;
    }
    this.ipVersion = 6;
    this.l3Length = length;
    this.ipLength = total;
    this.protocol = next;
    this.l4 = l3 + length;
    this.level = PARSED_L3;
    return this.fragment ? PARSED_L3 : this.parseTransport(packet);
  }

  private parseTransport(packet: Packet): number {
    const { u8 } = packet.memory;
    const { l4 } = this;
    const end = this.l3 + this.ipLength;
    let size: number;
    if (this.protocol === IPPROTO_TCP) size = 20;
    else if (this.protocol === IPPROTO_UDP) size = 8;
    else if (this.protocol === IPPROTO_ICMP || this.protocol === IPPROTO_ICMPV6) size = 8;
    else return this.level;
    if (l4 + size > end) return this.level;
    if (packet.linear < l4 + size) return this.short(packet, l4 + size);
    if (this.protocol === IPPROTO_TCP) {
      size = (u8[packet.data + l4 + 12] >> 4) << 2;
      if (size < 20 || l4 + size > end) return this.level;
      if (packet.linear < l4 + size) return this.short(packet, l4 + size);
    }
    this.l4Length = size;
    this.level = PARSED_L4;
    return PARSED_L4;
  }
}
