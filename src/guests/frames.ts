import { completedChecksum, partialChecksumFits } from '../net/checksum.js';
import type { NetDevice } from '../net/device.js';
import { CHECKSUM_PARTIAL, FRAGMENT_LOCAL, PACKET_LINEAR_MAX, type Packet } from '../net/packet.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';

/**
 * Copies a packet's bytes out, with a transport checksum that was left to whoever sends it on completed. For guests that want a
 * frame as an array; the data path never does. A GSO packet is one frame of up to 65535 bytes and its header.
 * @returns null when the data could not be fetched
 */
export function packetBytes(packet: Packet, device: NetDevice): Uint8Array | null {
  if (!packet.isLocal && !device.net.materialiser.materialiseOne(packet)) return null;
  const { u8 } = packet.memory;
  const bytes = new Uint8Array(packet.length);
  bytes.set(u8.subarray(packet.data, packet.data + packet.linear));
  let at = packet.linear;
  for (let i = 0; i < packet.fragments; i++) {
    const from = (packet.ref[i] << PAGE_SHIFT) + packet.offset[i];
    bytes.set(u8.subarray(from, from + packet.size[i]), at);
    at += packet.size[i];
  }
  if (packet.checksum === CHECKSUM_PARTIAL && partialChecksumFits(packet)) {
    const sum = completedChecksum(packet);
    const field = packet.csumStart + packet.csumOffset;
    bytes[field] = sum;
    bytes[field + 1] = sum >>> 8;
  }
  return bytes;
}

/** Sends a frame whose checksums are complete. @returns false when there was no memory, or it was dropped */
export function sendFrame(device: NetDevice, frame: Uint8Array): boolean {
  const packet = framePacket(device, frame);
  return packet !== null && device.xmit(packet);
}

/** A packet of a frame's bytes. @returns null when there is no memory for it */
export function framePacket(device: NetDevice, frame: Uint8Array): Packet | null {
  const { packets, pages } = device.net;
  const needed = frame.length <= PACKET_LINEAR_MAX ? 0 : Math.ceil(frame.length / PAGE_SIZE);
  if (pages.available < needed) return null;
  const packet = packets.tryGet();
  if (packet === null) return null;
  const { u8 } = packet.memory;
  if (needed === 0) {
    u8.set(frame, packet.data);
    packet.linear = frame.length;
    packet.length = frame.length;
    return packet;
  }
  packet.pool = pages;
  for (let i = 0; i < needed; i++) {
    const part = frame.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE);
    const index = pages.alloc();
    if (index < 0) {
      packet.release();
      return null;
    }
    const address = pages.pages[index] << PAGE_SHIFT;
    u8.set(part, address);
    if (i === 0) {
      packet.linearPoolIndex = index;
      packet.data = address;
      packet.linear = part.length;
      packet.length = part.length;
    } else packet.addFragment(FRAGMENT_LOCAL, pages.pages[index], 0, part.length, index);
  }
  return packet;
}
