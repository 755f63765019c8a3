import {
  gsoExtraWord0,
  gsoExtraWord1,
  multicastExtraWord0,
  multicastExtraWord1,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
} from '../abi/netif.js';
import type { FrontRing } from '../abi/ring.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, GSO_NONE, type Packet } from '../net/packet.js';

/** Slots with data that `writeTxPacket` takes for a packet: one for each fragment, beside that of a GSO extra info. */
export function txDataSlots(packet: Packet): number {
  return (packet.linear > 0 ? 1 : 0) + packet.fragments;
}

/** Flags of a packet's first request that tell what is known of its checksum. */
export function txChecksumFlags(packet: Packet): number {
  const { checksum } = packet;
  if (checksum === CHECKSUM_NONE) return 0;
  return checksum === CHECKSUM_PARTIAL ? NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED : NETTXF_DATA_VALIDATED;
}

/** Writes one tx request; the fields are packed as abi/netif.ts draws them. */
export function writeTxRequest(
  ring: FrontRing,
  index: number,
  gref: number,
  offset: number,
  flags: number,
  id: number,
  size: number,
): void {
  const { i32 } = ring.memory;
  const at = ring.slot(index) >>> 2;
  i32[at] = gref;
  i32[at + 1] = offset | (flags << 16);
  i32[at + 2] = id | (size << 16);
}

/**
 * Writes the requests of a packet whose bytes all lie in pages granted to the backend. Only `reqProdPvt`
 * moves; the caller made sure that there are slots enough.
 *
 * @param grefs of the slots with data, in order: the linear part's first, then each fragment's
 * @param ids of the same slots
 * @param linearOffset offset of the linear part in its page
 */
export function writeTxPacket(
  ring: FrontRing,
  packet: Packet,
  grefs: Int32Array,
  ids: Uint16Array,
  linearOffset: number,
): void {
  const slots = txDataSlots(packet);
  const extra = packet.gsoType !== GSO_NONE;
  let index = ring.reqProdPvt;
  for (let i = 0; i < slots; i++) {
    const fragment = packet.linear > 0 ? i - 1 : i;
    const offset = fragment < 0 ? linearOffset : packet.offset[fragment];
    const more = i + 1 < slots ? NETTXF_MORE_DATA : 0;
    // The first request tells the size of the whole packet, the others their own.
    const size = i === 0 ? packet.length : packet.size[fragment];
    const flags = i === 0 ? txChecksumFlags(packet) | (extra ? NETTXF_EXTRA_INFO : 0) | more : more;
    writeTxRequest(ring, index++, grefs[i], offset, flags, ids[i], size);
    if (i === 0 && extra) {
      const at = ring.slot(index++) >>> 2;
      ring.memory.i32[at] = gsoExtraWord0(packet.gsoSize);
      ring.memory.i32[at + 1] = gsoExtraWord1(packet.gsoType);
    }
  }
  ring.reqProdPvt = index | 0;
}

/** Writes a request that changes the backend's multicast filter: a dummy without data, and the extra info. */
export function writeMulticast(ring: FrontRing, address: Uint8Array, add: boolean, id: number): void {
  writeTxRequest(ring, ring.reqProdPvt, 0, 0, NETTXF_EXTRA_INFO, id, 0);
  const at = ring.slot(ring.reqProdPvt + 1) >>> 2;
  ring.memory.i32[at] = multicastExtraWord0(address, add);
  ring.memory.i32[at + 1] = multicastExtraWord1(address);
  ring.reqProdPvt = (ring.reqProdPvt + 2) | 0;
}
