import {
  ExtraInfos,
  NETRXF_EXTRA_INFO,
  NETRXF_GSO_PREFIX,
  NETRXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
  XEN_NETIF_NR_SLOTS_MIN,
} from '../abi/netif.js';
import type { FrontRing } from '../abi/ring.js';
import { GSO_AS_HEADERS, GSO_NONE } from '../net/packet.js';
import { PAGE_SIZE } from '../platform/memory.js';

/**
 * Data slots of a packet that are kept. A 64 KiB packet needs 17; a backend that puts the headers into a
 * slot of their own may use one more.
 */
export const RX_SLOTS_MAX = XEN_NETIF_NR_SLOTS_MIN + 1;

/** The responses of one packet, each field read once; reused from packet to packet. */
export class RxPacket {
  /** Ring slots that the packet takes, extra infos included: at least 1 after a read. */
  consumed = 0;
  /** Data slots, of which the first RX_SLOTS_MAX are described. */
  slots = 0;
  /** Flags of the first response that has data. */
  flags = 0;
  /** Bytes of the packet. */
  size = 0;
  /** Why the packet must be dropped, or '' when it is sound. */
  reason = '';
  /** Ring index of each data slot: the request that it answers had the same. */
  readonly index = new Int32Array(RX_SLOTS_MAX);
  readonly offset = new Uint16Array(RX_SLOTS_MAX);
  readonly bytes = new Int32Array(RX_SLOTS_MAX);
  readonly infos = new ExtraInfos();
}

/**
 * Reads the responses of one packet. A packet that the published responses do not complete is one to
 * drop: a backend publishes whole packets.
 *
 * @param available responses from `start` on, at least 1
 * @param prefixes whether a GSO packet may begin with a response that tells its GSO size
 */
export function readRxPacket(
  ring: FrontRing,
  start: number,
  available: number,
  rx: RxPacket,
  prefixes = false,
): void {
  const { i32 } = ring.memory;
  let at = ring.slot(start) >>> 2;
  let word0 = i32[at];
  let word1 = i32[at + 1];
  rx.slots = 0;
  rx.size = 0;
  rx.reason = '';
  if (rx.infos.count !== 0) rx.infos.clear();
  const prefix = prefixes && (word1 & NETRXF_GSO_PREFIX) !== 0 ? word0 >>> 16 : -1;
  let next = 1;
  if (prefix >= 0) {
    if (prefix === 0) rx.reason = 'a gso_prefix of size 0';
    if ((word1 & NETRXF_MORE_DATA) === 0 || available === 1) {
      rx.reason = 'a gso_prefix without data behind it';
      rx.consumed = 1;
      return;
    }
    at = ring.slot(start + 1) >>> 2;
    word0 = i32[at];
    word1 = i32[at + 1];
    next = 2;
  }
  const first = (start + next - 1) | 0;
  rx.flags = word1 & 0xffff;
  if ((word1 & NETRXF_EXTRA_INFO) !== 0) next = readRxExtras(ring, start, next, available, rx);
  if (prefix >= 0) takePrefix(rx, prefix);
  takeSlot(rx, first, word0 >>> 16, word1 >> 16);
  let more = (word1 & NETRXF_MORE_DATA) !== 0;
  while (more) {
    if (next >= available) {
      rx.reason = 'more_data past the last response';
      break;
    }
    const index = (start + next) | 0;
    const at = ring.slot(index) >>> 2;
    const offset = i32[at] >>> 16;
    const word = i32[at + 1];
    next++;
    takeSlot(rx, index, offset, word >> 16);
    more = (word & NETRXF_MORE_DATA) !== 0;
  }
  rx.consumed = next;
}

function takeSlot(rx: RxPacket, index: number, offset: number, status: number): void {
  // `offset` may lead to the data behind the headroom, or to the headroom, which `status` then counts too
  // (Linux's netback): data cannot lie inside the headroom.
  const inside = rx.infos.xdpHeadroom - offset;
  if (inside > 0 && status >= 0) {
    offset += inside;
    status -= inside;
  }
  if (status < 0) rx.reason = `the backend failed to fill a page (status ${status})`;
  else if (offset + status > PAGE_SIZE) rx.reason = `${status} bytes at ${offset} cross the page`;
  if (rx.slots === RX_SLOTS_MAX) {
    rx.reason = `a packet of more than ${RX_SLOTS_MAX} slots`;
    return;
  }
  rx.index[rx.slots] = index;
  rx.offset[rx.slots] = offset;
  rx.bytes[rx.slots] = status;
  rx.size += status;
  rx.slots++;
}

/** The type is what the headers say. */
function takePrefix(rx: RxPacket, size: number): void {
  if (rx.infos.gsoType !== GSO_NONE) rx.reason = 'a gso_prefix and an extra info of GSO';
  rx.infos.count++;
  rx.infos.gsoType = GSO_AS_HEADERS;
  rx.infos.gsoSize = size;
}

/** @returns the index behind the extra infos, from `start` on as `next` is */
function readRxExtras(ring: FrontRing, start: number, next: number, available: number, rx: RxPacket): number {
  const { i32 } = ring.memory;
  let more = true;
  while (more) {
    if (next >= available) {
      rx.reason = 'extra_info without an extra info behind it';
      break;
    }
    const at = ring.slot(start + next) >>> 2;
    const word0 = i32[at];
    if (!rx.infos.take(word0, i32[at + 1])) {
      rx.reason = `an extra info of type ${word0 & 0xff} that is unknown or unsound`;
    }
    more = ((word0 >>> 8) & XEN_NETIF_EXTRA_FLAG_MORE) !== 0;
    next++;
  }
  return next;
}
