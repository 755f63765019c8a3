import { RING_BYTES, ringSize } from './ring.js';

/**
 * The network interface's shared structures (xen/include/public/io/netif.h). Slots are read and written
 * as 32-bit words, each once; the drawings give byte offset and width of each field.
 */

/** Slots that every backend must take per packet. */
export const XEN_NETIF_NR_SLOTS_MIN = 18;
export const XEN_NETIF_MAX_TX_SIZE = 0xffff;

/**
 * Transmit request (12 bytes)     Transmit response (4 bytes of the same slot)
 *
 *     0 gref    4                 0 id      2
 *     4 offset  2                 2 status  2 (signed)
 *     6 flags   2
 *     8 id      2
 *    10 size    2
 */
export const NETIF_TX_SLOT_SIZE = 12;

/**
 * Receive request (8 bytes)       Receive response (8 bytes)
 *
 *     0 id      2                 0 id      2
 *     2 pad     2                 2 offset  2
 *     4 gref    4                 4 flags   2
 *                                 6 status  2 (signed; >= 0 is the bytes in this slot)
 */
export const NETIF_RX_SLOT_SIZE = 8;

/**
 * Control request (16 bytes)      Control response (12 bytes of the same slot)
 *
 *     0 id      2                 0 id      2
 *     2 type    2                 2 type    2
 *     4 data[3] 4 each            4 status  4
 *                                 8 data    4
 */
export const NETIF_CTRL_SLOT_SIZE = 16;

/** Slots of a vif's rings, which are always one page each. */
export const RING_SIZES = {
  tx: ringSize(RING_BYTES, NETIF_TX_SLOT_SIZE),
  rx: ringSize(RING_BYTES, NETIF_RX_SLOT_SIZE),
} as const;

/** tx request flags. Bits 0 and 1 are swapped between tx and rx. */
export const NETTXF_CSUM_BLANK = 1;
export const NETTXF_DATA_VALIDATED = 2;
export const NETTXF_MORE_DATA = 4;
export const NETTXF_EXTRA_INFO = 8;

/** rx response flags. Bits 0 and 1 are swapped between tx and rx. */
export const NETRXF_DATA_VALIDATED = 1;
export const NETRXF_CSUM_BLANK = 2;
export const NETRXF_MORE_DATA = 4;
export const NETRXF_EXTRA_INFO = 8;
/** No data: `offset` is the GSO size of the packet that follows, `status` how many responses it has with this one. */
export const NETRXF_GSO_PREFIX = 16;

export const NETIF_RSP_DROPPED = -2;
export const NETIF_RSP_ERROR = -1;
export const NETIF_RSP_OKAY = 0;
/** Answers a slot that holds an extra info. */
export const NETIF_RSP_NULL = 1;

/**
 * Extra info (8 bytes; in a tx slot 4 unused bytes follow)
 *
 *     0 type 1   1 flags 1   2 union 6:
 *       GSO          2 size 2, 4 gso type 1, 5 pad 1, 6 features 2
 *       MCAST_ADD/DEL  2 address 6
 *       HASH         2 hash type 1, 3 algorithm 1, 4 value 4
 *       XDP          2 headroom 2, 4 pad 4 (Linux's header only)
 */
export const XEN_NETIF_EXTRA_TYPE_NONE = 0;
export const XEN_NETIF_EXTRA_TYPE_GSO = 1;
export const XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2;
export const XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3;
export const XEN_NETIF_EXTRA_TYPE_HASH = 4;
export const XEN_NETIF_EXTRA_TYPE_XDP = 5;
export const XEN_NETIF_EXTRA_TYPE_MAX = 6;
export const XEN_NETIF_EXTRA_FLAG_MORE = 1;

/** The most that a frontend may ask for with `xdp-headroom`. */
export const XEN_NETIF_MAX_XDP_HEADROOM = 0x7fff;

export const XEN_NETIF_GSO_TYPE_NONE = 0;
export const XEN_NETIF_GSO_TYPE_TCPV4 = 1;
export const XEN_NETIF_GSO_TYPE_TCPV6 = 2;

export const XEN_NETIF_CTRL_TYPE = {
  INVALID: 0,
  GET_HASH_FLAGS: 1,
  SET_HASH_FLAGS: 2,
  SET_HASH_KEY: 3,
  GET_HASH_MAPPING_SIZE: 4,
  SET_HASH_MAPPING_SIZE: 5,
  SET_HASH_MAPPING: 6,
  SET_HASH_ALGORITHM: 7,
  GET_GREF_MAPPING_SIZE: 8,
  ADD_GREF_MAPPING: 9,
  DEL_GREF_MAPPING: 10,
} as const;

export const XEN_NETIF_CTRL_STATUS = {
  SUCCESS: 0,
  NOT_SUPPORTED: 1,
  INVALID_PARAMETER: 2,
  BUFFER_OVERFLOW: 3,
} as const;

export const XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0;
export const XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1;

/** Bit indexes of the hash types. */
export const XEN_NETIF_CTRL_HASH_TYPE = { IPV4: 0, IPV4_TCP: 1, IPV6: 2, IPV6_TCP: 3 } as const;

/** Entry of a gref mapping list (8 bytes): 0 ref 4, 4 flags 2, 6 status 2. */
export const NETIF_GREF_ENTRY_SIZE = 8;
export const XEN_NETIF_CTRLF_GREF_READONLY = 1;

/** The extra infos of one packet, decoded; reused from packet to packet. */
export class ExtraInfos {
  gsoType = XEN_NETIF_GSO_TYPE_NONE;
  gsoSize = 0;
  hashType = -1;
  hashAlgorithm = XEN_NETIF_CTRL_HASH_ALGORITHM_NONE;
  hash = 0;
  xdpHeadroom = 0;
  /** MCAST_ADD or MCAST_DEL when one was there, else 0. */
  multicast = 0;
  readonly multicastAddress = new Uint8Array(6);
  /** Extra infos seen. */
  count = 0;

  clear(): void {
    this.gsoType = XEN_NETIF_GSO_TYPE_NONE;
    this.gsoSize = 0;
    this.hashType = -1;
    this.hash = 0;
    this.xdpHeadroom = 0;
    this.multicast = 0;
    this.count = 0;
  }

  /**
   * Takes the two words of an extra info, read once. Of two of the same type the last one counts.
   * @returns false when the type is none that a peer may use, or a GSO's size or type is
   */
  take(word0: number, word1: number): boolean {
    this.count++;
    switch (word0 & 0xff) {
      case XEN_NETIF_EXTRA_TYPE_GSO:
        this.gsoSize = word0 >>> 16;
        this.gsoType = word1 & 0xff;
        return (
          this.gsoSize !== 0 &&
          (this.gsoType === XEN_NETIF_GSO_TYPE_TCPV4 || this.gsoType === XEN_NETIF_GSO_TYPE_TCPV6)
        );
      case XEN_NETIF_EXTRA_TYPE_MCAST_ADD:
      case XEN_NETIF_EXTRA_TYPE_MCAST_DEL:
        this.multicast = word0 & 0xff;
        for (let i = 0; i < 2; i++) this.multicastAddress[i] = word0 >>> (16 + 8 * i);
        for (let i = 0; i < 4; i++) this.multicastAddress[2 + i] = word1 >>> (8 * i);
        return true;
      case XEN_NETIF_EXTRA_TYPE_HASH:
        this.hashType = (word0 >>> 16) & 0xff;
        this.hashAlgorithm = word0 >>> 24;
        this.hash = word1 >>> 0;
        return true;
      case XEN_NETIF_EXTRA_TYPE_XDP:
        this.xdpHeadroom = word0 >>> 16;
        return true;
      default:
        return false;
    }
  }
}

/** First word of a GSO extra info. @param gsoSize bytes of data in a segment @param more another extra info follows */
export function gsoExtraWord0(gsoSize: number, more = false): number {
  return XEN_NETIF_EXTRA_TYPE_GSO | ((more ? XEN_NETIF_EXTRA_FLAG_MORE : 0) << 8) | (gsoSize << 16);
}

/** Second word of a GSO extra info. @param gsoType XEN_NETIF_GSO_TYPE */
export function gsoExtraWord1(gsoType: number): number {
  return gsoType;
}

/** First word of a hash extra info; the second is the hash. @param hashType bit index of the hash type */
export function hashExtraWord0(hashType: number, algorithm: number, more = false): number {
  const flags = more ? XEN_NETIF_EXTRA_FLAG_MORE : 0;
  return XEN_NETIF_EXTRA_TYPE_HASH | (flags << 8) | (hashType << 16) | (algorithm << 24);
}

/** First word of a MCAST_ADD or MCAST_DEL extra info. @param address of the group, 6 bytes */
export function multicastExtraWord0(address: Uint8Array, add: boolean): number {
  const type = add ? XEN_NETIF_EXTRA_TYPE_MCAST_ADD : XEN_NETIF_EXTRA_TYPE_MCAST_DEL;
  return type | (address[0] << 16) | (address[1] << 24);
}

/** Its second word. */
export function multicastExtraWord1(address: Uint8Array): number {
  return address[2] | (address[3] << 8) | (address[4] << 16) | (address[5] << 24);
}

/** First word of an XDP extra info; the second is 0. */
export function xdpExtraWord0(headroom: number, more = false): number {
  return XEN_NETIF_EXTRA_TYPE_XDP | ((more ? XEN_NETIF_EXTRA_FLAG_MORE : 0) << 8) | (headroom << 16);
}
