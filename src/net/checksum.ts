import type { Memory } from '../platform/memory.js';
import { PAGE_SHIFT } from '../platform/memory.js';
import type { Headers } from './headers.js';
import {
  ETH_P_IP,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  IPPROTO_TCP,
  IPPROTO_UDP,
  PARSED_L3,
  PARSED_L4,
} from './headers.js';
import type { Packet } from './packet.js';
import { CHECKSUM_NONE, CHECKSUM_PARTIAL, CHECKSUM_UNNECESSARY } from './packet.js';

/*
 * Sums here are ones' complement sums of 16-bit words taken in the order of the machine (little-endian),
 * as Linux's csum_partial: the ones' complement sum does not care for byte order as long as the result is
 * stored the way the words were loaded (RFC 1071, section 2(B)). A sum of bytes that start at an odd
 * position of the whole is swapped before it is added.
 */

/** Bytes that can be summed before an accumulator of 16-bit halves could pass 2^31. */
const CHUNK = 1 << 16;

/** Folds carries until 16 bits are left. */
export function fold(sum: number): number {
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
}

export function swap16(value: number): number {
  return ((value & 0xff) << 8) | (value >>> 8);
}

/**
 * The folded sum of `length` bytes at a byte address, as if the first one were at an even position. A last
 * odd byte counts as if a zero followed.
 */
export function sumBytes(memory: Memory, address: number, length: number): number {
  let sum = 0;
  while (length > CHUNK) {
    sum += sumChunk(memory, address, CHUNK);
    address += CHUNK;
    length -= CHUNK;
  }
  return fold(sum + sumChunk(memory, address, length));
}

function sumChunk(memory: Memory, address: number, length: number): number {
  const { u8, u16, i32 } = memory;
  const odd = (address & 1) !== 0 && length > 0;
  let at = address;
  let left = length;
  let low = 0;
  let high = 0;
  if (odd) {
    low = u8[at] << 8;
    at++;
    left--;
  }
  if ((at & 2) !== 0 && left >= 2) {
    low += u16[at >>> 1];
    at += 2;
    left -= 2;
  }
  let i = at >>> 2;
  const end = i + (left >>> 2);
  at += (left >>> 2) << 2;
  for (const stop = end - 7; i < stop; i += 8) {
    const a = i32[i];
    const b = i32[i + 1];
    const c = i32[i + 2];
    const d = i32[i + 3];
    const e = i32[i + 4];
    const f = i32[i + 5];
    const g = i32[i + 6];
    const h = i32[i + 7];
    low += (a & 0xffff) + (b & 0xffff) + (c & 0xffff) + (d & 0xffff);
    high += (a >>> 16) + (b >>> 16) + (c >>> 16) + (d >>> 16);
    low += (e & 0xffff) + (f & 0xffff) + (g & 0xffff) + (h & 0xffff);
    high += (e >>> 16) + (f >>> 16) + (g >>> 16) + (h >>> 16);
  }
  for (; i < end; i++) {
    const a = i32[i];
    low += a & 0xffff;
    high += a >>> 16;
  }
  left &= 3;
  if (left >= 2) {
    low += u16[at >>> 1];
    at += 2;
    left -= 2;
  }
  if (left === 1) low += u8[at];
  const sum = fold(fold(low) + fold(high));
  return odd ? swap16(sum) : sum;
}

/**
 * The folded sum of a packet's bytes from offset `start` to `end`, over the linear part and the fragments,
 * which must all be local.
 */
export function sumPacket(packet: Packet, start: number, end: number): number {
  const { memory, linear } = packet;
  let sum = 0;
  let odd = false;
  let position = start;
  if (position < linear) {
    const size = Math.min(end, linear) - position;
    sum = sumBytes(memory, packet.data + position, size);
    odd = (size & 1) !== 0;
    position += size;
  }
  let fragmentStart = linear;
  for (let i = 0; i < packet.fragments && position < end; i++) {
    const size = packet.size[i];
    const fragmentEnd = fragmentStart + size;
    if (position < fragmentEnd) {
      const skip = position - fragmentStart;
      const take = Math.min(end, fragmentEnd) - position;
      const part = sumBytes(memory, (packet.ref[i] << PAGE_SHIFT) + packet.offset[i] + skip, take);
      sum += odd ? swap16(part) : part;
      if ((take & 1) !== 0) odd = !odd;
      position += take;
    }
    fragmentStart = fragmentEnd;
  }
  return fold(sum);
}

/** The folded sum of the TCP/UDP/ICMPv6 pseudo header: addresses, protocol, and a segment of `length` bytes. */
export function pseudoHeaderSum(packet: Packet, headers: Headers, protocol: number, length: number): number {
  const { memory } = packet;
  const ip = packet.data + headers.l3;
  const addresses = headers.ipVersion === 4 ? sumBytes(memory, ip + 12, 8) : sumBytes(memory, ip + 8, 32);
  return fold(addresses + (protocol << 8) + swap16(length & 0xffff) + swap16(length >>> 16));
}

function loadSum(packet: Packet, at: number): number {
  const { u8 } = packet.memory;
  return u8[packet.data + at] | (u8[packet.data + at + 1] << 8);
}

function storeSum(packet: Packet, at: number, sum: number): void {
  const { u8 } = packet.memory;
  u8[packet.data + at] = sum & 0xff;
  u8[packet.data + at + 1] = sum >>> 8;
}

/** Offset of the checksum inside a transport header, or -1 for a protocol without one that we know. */
export function checksumOffset(protocol: number): number {
  switch (protocol) {
    case IPPROTO_TCP:
      return 16;
    case IPPROTO_UDP:
      return 6;
    case IPPROTO_ICMP:
    case IPPROTO_ICMPV6:
      return 2;
    default:
      return -1;
  }
}

/**
 * Writes the IPv4 header checksum. The head must be the caller's to change (references === 1).
 * `headers` must have parsed an IPv4 header.
 */
export function writeIpv4Checksum(packet: Packet, headers: Headers): void {
  const at = headers.l3 + 10;
  storeSum(packet, at, 0);
  storeSum(packet, at, ~sumBytes(packet.memory, packet.data + headers.l3, headers.l3Length) & 0xffff);
}

/** True when the IPv4 header's own checksum is right. */
export function ipv4ChecksumIsRight(packet: Packet, headers: Headers): boolean {
  const at = packet.data + headers.l3;
  if (headers.l3Length !== 20 || (at & 1) !== 0) {
    return sumBytes(packet.memory, at, headers.l3Length) === 0xffff;
  }
  // GRO asks it of every packet of a stream, and this takes half the time.
  const { u16 } = packet.memory;
  let sum = 0;
  for (let i = at >>> 1, end = i + 10; i < end; i++) sum += u16[i];
  return (sum & 0xffff) + (sum >>> 16) === 0xffff;
}

/**
 * Makes a packet's TCP or UDP checksum partial: where it starts and where it is stored, and with
 * `recalculate` the pseudo header's sum in its place (skb_checksum_setup).
 * @returns false when there is nothing that such a checksum could belong to: another protocol, a fragment,
 *   or a header that is not whole in the linear part
 */
export function setupPartialChecksum(packet: Packet, headers: Headers, recalculate: boolean): boolean {
  if (headers.level !== PARSED_L4) return false;
  const { protocol } = headers;
  if (protocol !== IPPROTO_TCP && protocol !== IPPROTO_UDP) return false;
  packet.checksum = CHECKSUM_PARTIAL;
  packet.csumStart = headers.l4;
  packet.csumOffset = checksumOffset(protocol);
  if (recalculate) {
    const length = headers.ipLength - headers.l3Length;
    storeSum(packet, headers.l4 + packet.csumOffset, pseudoHeaderSum(packet, headers, protocol, length));
  }
  return true;
}

/** Makes the length in a partial checksum's sum of the pseudo header another one, and leaves the rest as its sender had it. */
export function resizePartialChecksum(packet: Packet, before: number, after: number): void {
  const at = packet.csumStart + packet.csumOffset;
  storeSum(packet, at, fold(loadSum(packet, at) + (~swap16(before) & 0xffff) + swap16(after)));
}

/** True when the place that a partial checksum claims is inside the linear part. */
export function partialChecksumFits(packet: Packet): boolean {
  const { csumStart, csumOffset } = packet;
  return csumStart >= 0 && csumOffset >= 0 && csumStart + csumOffset + 2 <= packet.linear;
}

/**
 * What completes a partial checksum, its first byte lowest; all data must be local. A sum of zero is 0xffff, since zero means
 * "none" for UDP and both mean the same in TCP.
 */
export function completedChecksum(packet: Packet): number {
  return ~sumPacket(packet, packet.csumStart, packet.length) & 0xffff || 0xffff;
}

/**
 * Completes a partial checksum (skb_checksum_help). All data must be local, and the head the caller's to change. Padding behind
 * the IP packet counts too, as for Linux: its sender must have zeroed it or left it out.
 * @returns false, and changes nothing, when the checksum's place is not in the linear part
 */
export function completeChecksum(packet: Packet): boolean {
  if (packet.checksum !== CHECKSUM_PARTIAL) return true;
  if (!partialChecksumFits(packet)) return false;
  storeSum(packet, packet.csumStart + packet.csumOffset, completedChecksum(packet));
  packet.checksum = CHECKSUM_NONE;
  return true;
}

/**
 * Verifies the transport checksum in software; all data must be local.
 * @returns false only when a checksum is there and wrong; what has none (IPv4 UDP with 0, fragments, other
 *   protocols) is not wrong
 */
export function checksumIsRight(packet: Packet, headers: Headers): boolean {
  if (headers.level < PARSED_L3) return true;
  if (headers.ipVersion === 4 && !ipv4ChecksumIsRight(packet, headers)) return false;
  if (headers.level !== PARSED_L4) return true;
  const { protocol, l4 } = headers;
  const length = headers.ipLength - headers.l3Length;
  if (protocol === IPPROTO_UDP && loadSum(packet, l4 + 6) === 0) return headers.ipVersion === 4;
  const data = sumPacket(packet, l4, l4 + length);
  if (protocol === IPPROTO_ICMP) return data === 0xffff;
  return fold(data + pseudoHeaderSum(packet, headers, protocol, length)) === 0xffff;
}

/**
 * Verifies what is not known yet: a CHECKSUM_NONE packet becomes CHECKSUM_UNNECESSARY when it is right.
 * @returns false when the checksum is wrong
 */
export function validateChecksum(packet: Packet, headers: Headers): boolean {
  if (packet.checksum !== CHECKSUM_NONE) return true;
  if (!checksumIsRight(packet, headers)) return false;
  if (headers.level === PARSED_L4) packet.checksum = CHECKSUM_UNNECESSARY;
  return true;
}

/**
 * Writes every checksum of an IPv4 packet that a receiver without offload would check: the header's, and
 * TCP's or UDP's; anything else stays as it is. All data must be local, the head the caller's to change.
 */
export function fillChecksums(packet: Packet, headers: Headers): void {
  if (headers.etherType !== ETH_P_IP || headers.level < PARSED_L3) return;
  writeIpv4Checksum(packet, headers);
  if (setupPartialChecksum(packet, headers, true)) completeToIpEnd(packet, headers);
}

/** Completes the checksum over what the IP header says is the packet, without the padding behind it. */
function completeToIpEnd(packet: Packet, headers: Headers): void {
  const sum = ~sumPacket(packet, headers.l4, headers.l3 + headers.ipLength) & 0xffff;
  storeSum(packet, packet.csumStart + packet.csumOffset, sum === 0 ? 0xffff : sum);
  packet.checksum = CHECKSUM_NONE;
}
