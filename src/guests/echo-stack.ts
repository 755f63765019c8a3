import { isIPv4, isIPv6 } from 'node:net';
import {
  ETH_P_ARP,
  ETH_P_IP,
  ETH_P_IPV6,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPPROTO_UDP,
} from '../net/headers.js';

const ICMP_ECHOREPLY = 0;
const ICMP_ECHO = 8;
const ICMPV6_ECHO_REQUEST = 128;
const ICMPV6_ECHO_REPLY = 129;
const NDISC_NEIGHBOUR_SOLICITATION = 135;
const NDISC_NEIGHBOUR_ADVERTISEMENT = 136;
/** The echo service (RFC 862). */
export const ECHO_PORT = 7;
const ETH = 14;
const BROADCAST = Uint8Array.of(255, 255, 255, 255, 255, 255);

const ALL_NODES_ETHER = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);

/** @param low the last three octets of the address that is asked for */
function solicitedNodeEther(low: Uint8Array): Uint8Array {
  return Uint8Array.of(0x33, 0x33, 0xff, ...low);
}

/** Bytes of an IPv4 or IPv6 address in its text form. @throws RangeError for anything else */
export function addressBytes(text: string): Uint8Array {
  if (isIPv4(text)) return Uint8Array.from(text.split('.').map(Number));
  if (!isIPv6(text)) throw new RangeError(`"${text}" is no IP address`);
  // The URL parser writes the address in its canonical form, an embedded IPv4 address in hex.
  const [head, tail] = new URL(`http://[${text}]`).hostname.slice(1, -1).split('::');
  const groups = (part: string | undefined): string[] => (part ? part.split(':') : []);
  const left = groups(head);
  const right = groups(tail);
  const zeros = new Array(8 - left.length - right.length).fill('0');
  return Uint8Array.from(
    [...left, ...zeros, ...right].flatMap(group => {
      const value = Number.parseInt(group, 16);
      return [value >> 8, value & 255];
    }),
  );
}

/** The address that an interface gives itself (fe80::/64, EUI-64). */
export function linkLocalAddress(mac: Uint8Array): Uint8Array {
  return Uint8Array.of(
    ...[0xfe, 0x80, 0, 0, 0, 0, 0, 0],
    ...[mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]],
  );
}

/** The ones-complement sum of 16-bit words, folded. */
function sum(bytes: Uint8Array, from: number, to: number, start = 0): number {
  let total = start;
  for (let at = from; at < to; at += 2) total += (bytes[at] << 8) | (at + 1 < to ? bytes[at + 1] : 0);
  while (total > 0xffff) total = (total & 0xffff) + (total >>> 16);
  return total;
}

const key = (address: Uint8Array): string => address.join('.');
const put16 = (bytes: Uint8Array, at: number, value: number): void => {
  bytes[at] = value >> 8;
  bytes[at + 1] = value & 255;
};
const get16 = (bytes: Uint8Array, at: number): number => (bytes[at] << 8) | bytes[at + 1];

/**
 * The smallest IP stack that people can talk to: it answers ARP and neighbour solicitations for its
 * addresses, ICMP and ICMPv6 echo requests, and datagrams to UDP port 7; and it can ping. It works on whole
 * frames and knows no device; every length in a frame is checked before it is used.
 */
export class EchoStack {
  private readonly own = new Map<string, Uint8Array>();
  private readonly v4: Uint8Array | null;
  private readonly v6: Uint8Array | null;
  private readonly linkLocal: Uint8Array;
  /** MAC addresses learned, by IP address; bounded. */
  private readonly neighbours = new Map<string, Uint8Array>();
  private readonly resolving = new Map<string, Set<() => void>>();
  private readonly pings = new Map<number, () => void>();
  private nextPing = 1;
  /** Requests answered. */
  answered = 0;

  /**
   * @param mac the device's address
   * @param addresses its IP addresses
   * @param send gets each frame to send
   */
  constructor(
    readonly mac: Uint8Array,
    addresses: readonly string[],
    private readonly send: (frame: Uint8Array) => void,
  ) {
    this.linkLocal = linkLocalAddress(mac);
    const all = [...addresses.map(addressBytes), this.linkLocal];
    for (const address of all) this.own.set(key(address), address);
    this.v4 = all.find(address => address.length === 4) ?? null;
    this.v6 = all.find(address => address.length === 16 && address !== this.linkLocal) ?? null;
  }

  /** The groups that are listened to, as Ethernet addresses. */
  get groups(): Uint8Array[] {
    const v6 = [...this.own.values()].filter(({ length }) => length === 16);
    return [ALL_NODES_ETHER, ...v6.map(address => solicitedNodeEther(address.subarray(13)))];
  }

  /** Takes a frame that has arrived. Transport checksums are not looked at: the device vouches for them. */
  receive(frame: Uint8Array): void {
    if (frame.length < ETH || (frame[6] & 1) !== 0) return;
    const type = get16(frame, 12);
    if (type === ETH_P_ARP) this.arp(frame);
    else if (type === ETH_P_IP) this.ipv4(frame);
    else if (type === ETH_P_IPV6) this.ipv6(frame);
  }

  /** Tells the neighbours where we are, as after the link came up. */
  announce(): void {
    if (this.v4 !== null) this.sendArp(1, BROADCAST, this.v4, new Uint8Array(6), this.v4);
    for (const address of this.own.values()) {
      if (address.length === 16) this.advertise(ALL_NODES_ETHER, ALL_NODES, address, 0x20);
    }
  }

  /** We have an address to ask this one from. */
  canReach(target: Uint8Array): boolean {
    return this.sourceFor(target) !== null;
  }

  /**
   * Sends one echo request to an address that `canReach`.
   * @param answered is called when the answer arrives
   * @returns what gives up waiting for it
   */
  ping(to: Uint8Array, answered: () => void, payloadBytes = 56): () => void {
    const from = this.sourceFor(to)!;
    const sequence = this.nextPing;
    this.nextPing = (this.nextPing % 0xffff) + 1;
    const message = new Uint8Array(8 + payloadBytes);
    const protocol = to.length === 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
    message[0] = to.length === 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
    put16(message, 6, sequence);
    for (let i = 8; i < message.length; i++) message[i] = i;
    this.pings.set(sequence, answered);
    const name = key(to);
    const ask = (): void => this.sendIp(this.neighbours.get(name)!, from, to, protocol, message);
    const waiting = this.resolve(to, from, ask);
    return () => {
      this.pings.delete(sequence);
      waiting?.delete(ask);
      if (waiting?.size === 0) this.resolving.delete(name);
    };
  }

  private sourceFor(target: Uint8Array): Uint8Array | null {
    if (target.length === 4) return this.v4;
    return target[0] === 0xfe && target[1] === 0x80 ? this.linkLocal : this.v6;
  }

  private arp(frame: Uint8Array): void {
    if (frame.length < ETH + 28 || get16(frame, ETH) !== 1 || get16(frame, ETH + 2) !== ETH_P_IP) return;
    if (frame[ETH + 4] !== 6 || frame[ETH + 5] !== 4) return;
    const senderMac = frame.slice(ETH + 8, ETH + 14);
    const sender = frame.slice(ETH + 14, ETH + 18);
    const target = frame.slice(ETH + 24, ETH + 28);
    if (!this.own.has(key(target))) return;
    this.learn(sender, senderMac);
    if (get16(frame, ETH + 6) !== 1) return;
    this.answered++;
    this.sendArp(2, senderMac, target, senderMac, sender);
  }

  private sendArp(
    operation: number,
    destination: Uint8Array,
    sender: Uint8Array,
    targetMac: Uint8Array,
    target: Uint8Array,
  ): void {
    const frame = this.frame(destination, ETH_P_ARP, 28);
    frame.set([0, 1, 8, 0, 6, 4, 0, operation], ETH);
    frame.set(this.mac, ETH + 8);
    frame.set(sender, ETH + 14);
    frame.set(targetMac, ETH + 18);
    frame.set(target, ETH + 24);
    this.send(frame);
  }

  private ipv4(frame: Uint8Array): void {
    if (frame.length < ETH + 20 || frame[ETH] >> 4 !== 4) return;
    const header = (frame[ETH] & 15) * 4;
    const total = get16(frame, ETH + 2);
    if (header < 20 || total < header || ETH + total > frame.length) return;
    if (sum(frame, ETH, ETH + header) !== 0xffff || (get16(frame, ETH + 6) & 0x3fff) !== 0) return;
    const from = frame.slice(ETH + 12, ETH + 16);
    const to = frame.slice(ETH + 16, ETH + 20);
    if (!this.own.has(key(to))) return;
    const sender = frame.slice(6, 12);
    const message = frame.slice(ETH + header, ETH + total);
    if (frame[ETH + 9] === IPPROTO_ICMP) this.icmp(message, sender, from, to, IPPROTO_ICMP);
    else if (frame[ETH + 9] === IPPROTO_UDP) this.udp(message, sender, from, to);
  }

  private ipv6(frame: Uint8Array): void {
    if (frame.length < ETH + 40 || frame[ETH] >> 4 !== 6) return;
    const end = ETH + 40 + get16(frame, ETH + 4);
    if (end > frame.length) return;
    const from = frame.slice(ETH + 8, ETH + 24);
    const to = frame.slice(ETH + 24, ETH + 40);
    const sender = frame.slice(6, 12);
    const message = frame.slice(ETH + 40, end);
    const next = frame[ETH + 6];
    if (next === IPPROTO_ICMPV6 && message.length >= 24 && message[0] === NDISC_NEIGHBOUR_SOLICITATION) {
      const target = message.slice(8, 24);
      if (frame[ETH + 7] !== 255 || !this.own.has(key(target))) return;
      this.answered++;
      // The unspecified address asks whether ours is taken: everybody hears the answer.
      if (from.every(octet => octet === 0)) {
        this.advertise(ALL_NODES_ETHER, ALL_NODES, target, 0x20);
      } else this.advertise(sender, from, target, 0x60);
      return;
    }
    if (!this.own.has(key(to))) return;
    if (next === IPPROTO_ICMPV6) {
      if (message.length >= 24 && message[0] === NDISC_NEIGHBOUR_ADVERTISEMENT && frame[ETH + 7] === 255) {
        this.learn(message.slice(8, 24), sender);
      } else this.icmp(message, sender, from, to, IPPROTO_ICMPV6);
    } else if (next === IPPROTO_UDP) this.udp(message, sender, from, to);
  }

  private icmp(
    message: Uint8Array,
    sender: Uint8Array,
    from: Uint8Array,
    to: Uint8Array,
    protocol: number,
  ): void {
    if (message.length < 8 || message[1] !== 0) return;
    const v4 = protocol === IPPROTO_ICMP;
    if (message[0] === (v4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST)) {
      this.answered++;
      message[0] = v4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;
      this.sendIp(sender, to, from, protocol, message);
    } else if (message[0] === (v4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY)) {
      const sequence = get16(message, 6);
      const answered = this.pings.get(sequence);
      this.pings.delete(sequence);
      answered?.();
    }
  }

  private udp(message: Uint8Array, sender: Uint8Array, from: Uint8Array, to: Uint8Array): void {
    if (message.length < 8) return;
    const length = get16(message, 4);
    const port = get16(message, 0);
    // An echo to an echo service would never end.
    if (length < 8 || length > message.length || get16(message, 2) !== ECHO_PORT || port === ECHO_PORT)
      return;
    this.answered++;
    const reply = message.slice(0, length);
    put16(reply, 0, ECHO_PORT);
    put16(reply, 2, port);
    this.sendIp(sender, to, from, IPPROTO_UDP, reply);
  }

  /** A neighbour advertisement (RFC 4861 4.4). @param flags 0x20 override, 0x40 solicited */
  private advertise(destination: Uint8Array, to: Uint8Array, address: Uint8Array, flags: number): void {
    const message = new Uint8Array(32);
    message[0] = NDISC_NEIGHBOUR_ADVERTISEMENT;
    message[4] = flags;
    message.set(address, 8);
    message.set([2, 1], 24);
    message.set(this.mac, 26);
    this.sendIp(destination, address, to, IPPROTO_ICMPV6, message);
  }

  /** Finds out the MAC address of an address, then goes on. @returns those who wait for it, null for nobody */
  private resolve(to: Uint8Array, from: Uint8Array, then: () => void): Set<() => void> | null {
    const name = key(to);
    if (this.neighbours.has(name)) {
      then();
      return null;
    }
    const waiting = this.resolving.get(name) ?? new Set();
    waiting.add(then);
    this.resolving.set(name, waiting);
    if (to.length === 4) {
      this.sendArp(1, BROADCAST, from, new Uint8Array(6), to);
      return waiting;
    }
    const message = new Uint8Array(32);
    message[0] = NDISC_NEIGHBOUR_SOLICITATION;
    message.set(to, 8);
    message.set([1, 1], 24);
    message.set(this.mac, 26);
    const low = to.subarray(13);
    const group = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ...low);
    this.sendIp(solicitedNodeEther(low), from, group, IPPROTO_ICMPV6, message);
    return waiting;
  }

  private learn(address: Uint8Array, mac: Uint8Array): void {
    const name = key(address);
    if (this.neighbours.size >= MAX_NEIGHBOURS) this.neighbours.clear();
    this.neighbours.set(name, mac);
    const waiting = this.resolving.get(name);
    this.resolving.delete(name);
    for (const then of waiting ?? []) then();
  }

  /** Sends a transport message; its checksum is made here. */
  private sendIp(
    mac: Uint8Array,
    from: Uint8Array,
    to: Uint8Array,
    protocol: number,
    message: Uint8Array,
  ): void {
    const v4 = to.length === 4;
    const header = v4 ? 20 : 40;
    const frame = this.frame(mac, v4 ? ETH_P_IP : ETH_P_IPV6, header + message.length);
    const start = ETH + header;
    if (v4) {
      frame[ETH] = 0x45;
      put16(frame, ETH + 2, header + message.length);
      frame.set([0x40, 0, 64, protocol], ETH + 6);
    } else {
      frame[ETH] = 0x60;
      put16(frame, ETH + 4, message.length);
      frame.set([protocol, 255], ETH + 6);
    }
    frame.set(from, start - 2 * to.length);
    frame.set(to, start - to.length);
    if (v4) put16(frame, ETH + 10, ~sum(frame, ETH, start) & 0xffff);
    frame.set(message, start);
    const at = start + (protocol === IPPROTO_UDP ? 6 : 2);
    put16(frame, at, 0);
    const pseudo =
      protocol === IPPROTO_ICMP ? 0 : sum(frame, start - 2 * to.length, start, protocol + message.length);
    const checksum = ~sum(frame, start, start + message.length, pseudo) & 0xffff;
    put16(frame, at, checksum === 0 && protocol === IPPROTO_UDP ? 0xffff : checksum);
    this.send(frame);
  }

  private frame(destination: Uint8Array, type: number, bytes: number): Uint8Array {
    const frame = new Uint8Array(ETH + bytes);
    frame.set(destination, 0);
    frame.set(this.mac, 6);
    put16(frame, 12, type);
    return frame;
  }
}

/** Neighbours that are remembered at a time. */
const MAX_NEIGHBOURS = 1024;
/** ff02::1 */
const ALL_NODES = Uint8Array.of(0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1);
