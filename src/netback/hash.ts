import {
  XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
  XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
  XEN_NETIF_CTRL_HASH_TYPE,
} from '../abi/netif.js';
import { toeplitzHash } from '../abi/toeplitz.js';
import { type Headers, IPPROTO_TCP, PARSED_L3, PARSED_L4 } from '../net/headers.js';
import type { Packet } from '../net/packet.js';

/** Octets of a Toeplitz key, and entries of a queue mapping, at most (Linux's netback). */
export const HASH_KEY_SIZE = 40;
export const HASH_MAPPING_SIZE = 128;

const { IPV4, IPV4_TCP, IPV6, IPV6_TCP } = XEN_NETIF_CTRL_HASH_TYPE;
/** Every hash type, as a mask of the bits that SET_HASH_FLAGS takes. */
export const ALL_HASH_TYPES = (1 << IPV4) | (1 << IPV4_TCP) | (1 << IPV6) | (1 << IPV6_TCP);

/** How a frontend wants its packets hashed and spread over its queues; set through the control ring. */
export class HashConfig {
  algorithm = XEN_NETIF_CTRL_HASH_ALGORITHM_NONE;
  /** Mask of 1 << hash type. */
  flags = 0;
  /** Zero beyond what the frontend gave. */
  readonly key = new Uint8Array(HASH_KEY_SIZE);
  readonly mapping = new Uint32Array(HASH_MAPPING_SIZE);
  /** Entries of `mapping` in use; 0: the hash modulo the number of queues. */
  mappingSize = 0;
  private readonly input = new Uint8Array(36);

  get enabled(): boolean {
    return this.algorithm === XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ && this.flags !== 0;
  }

  /** The configuration in a line, for people. */
  dump(): string {
    if (this.algorithm === XEN_NETIF_CTRL_HASH_ALGORITHM_NONE) return 'hash: none';
    const types = Object.entries(XEN_NETIF_CTRL_HASH_TYPE).filter(
      ([, bit]) => (this.flags & (1 << bit)) !== 0,
    );
    const names = types.map(([name]) => name).join(' ') || 'none';
    const key = Array.from(this.key, octet => octet.toString(16).padStart(2, '0')).join('');
    const mapping = this.mapping.subarray(0, this.mappingSize).join(' ') || 'none';
    return `hash: toeplitz, flags ${names}, key ${key}, mapping ${mapping}`;
  }

  /** Puts the frontend's kind of hash on a packet, or none. @param headers scratch space */
  apply(packet: Packet, headers: Headers): void {
    packet.hashType = -1;
    if (!this.enabled) return;
    const level = headers.parse(packet);
    if (level < PARSED_L3) return;
    const v4 = headers.ipVersion === 4;
    const tcp = level === PARSED_L4 && headers.protocol === IPPROTO_TCP && !headers.fragment;
    const withPorts = v4 ? IPV4_TCP : IPV6_TCP;
    const addressesOnly = v4 ? IPV4 : IPV6;
    // The maximal type that applies wins.
    const type = tcp && (this.flags & (1 << withPorts)) !== 0 ? withPorts : addressesOnly;
    if ((this.flags & (1 << type)) === 0) return;
    const { u8 } = packet.memory;
    const addresses = packet.data + headers.l3 + (v4 ? 12 : 8);
    const length = v4 ? 8 : 32;
    for (let i = 0; i < length; i++) this.input[i] = u8[addresses + i];
    const ports = type === withPorts ? 4 : 0;
    for (let i = 0; i < ports; i++) this.input[length + i] = u8[packet.data + headers.l4 + i];
    packet.hashType = type;
    packet.hash = toeplitzHash(this.key, this.input, length + ports);
  }

  /** The queue for a packet that `apply` has been to. */
  queueOf(packet: Packet, queues: number): number {
    if (packet.hashType < 0) return 0;
    if (this.mappingSize === 0) return packet.hash % queues;
    return this.mapping[packet.hash % this.mappingSize];
  }
}
