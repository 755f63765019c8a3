/** What abi/ring.ts and abi/netif.ts draw, for AssemblyScript: rings of one page each. */
export const PAGE_SIZE: u32 = 4096;
export const PAGE_SHIFT = 12;
export const RING_SIZE: u32 = 256;
export const RING_MASK: u32 = 255;

const SLOTS = 64;
const TX_SLOT: u32 = 12;
const RX_SLOT_SHIFT = 3;

/** Bits 0 and 1 are swapped between tx requests and rx responses. */
export const TXF_CSUM_BLANK = 1;
export const TXF_DATA_VALIDATED = 2;
export const RXF_DATA_VALIDATED = 1;
export const RXF_CSUM_BLANK = 2;
export const MORE_DATA = 4;
export const EXTRA_INFO = 8;
export const GSO_PREFIX = 16;

export const EXTRA_TYPE_GSO = 1;
export const GSO_TCPV4 = 1;
export const GSO_TCPV6 = 2;
export const RSP_NULL = 1;

export const ETH_HLEN: u32 = 14;

/** @param ring address of its page @returns that of the slot of a free-running index */
export function txSlot(ring: usize, index: u32): usize {
  return ring + SLOTS + (index & RING_MASK) * TX_SLOT;
}

export function rxSlot(ring: usize, index: u32): usize {
  return ring + SLOTS + ((index & RING_MASK) << RX_SLOT_SHIFT);
}
