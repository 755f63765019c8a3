import {
  FRAGMENT_LOCAL,
  type NetDevice,
  type Packet,
  type PagePool,
  setupChecksum,
} from '../../src/net/index.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../../src/platform/index.js';

/** The bytes of a packet that is all local. */
export function bytesOf(packet: Packet): Uint8Array {
  const out = new Uint8Array(packet.length);
  const { u8 } = packet.memory;
  out.set(u8.subarray(packet.data, packet.data + packet.linear));
  let at = packet.linear;
  for (let i = 0; i < packet.fragments; i++) {
    if (packet.source[i] !== FRAGMENT_LOCAL) throw new Error(`fragment ${i} is not local`);
    const from = (packet.ref[i] << PAGE_SHIFT) + packet.offset[i];
    out.set(u8.subarray(from, from + packet.size[i]), at);
    at += packet.size[i];
  }
  return out;
}

/** Has a device take what it receives. @returns the bytes of each packet, all local, as they come */
export function collect(dev: NetDevice): Uint8Array[] {
  const got: Uint8Array[] = [];
  dev.rxHandler = packet => {
    got.push(bytesOf(packet));
    packet.release();
  };
  return got;
}

/** A packet of `dev`'s kernel with these bytes: `linear` of them in its own buffer, the rest in pages. */
export function packetFrom(dev: NetDevice, bytes: Uint8Array, linear = 128, pool?: PagePool): Packet {
  const packet = dev.net.packets.get();
  const pages = pool ?? dev.net.pages;
  const { u8 } = packet.memory;
  const head = Math.min(linear, bytes.length);
  u8.set(bytes.subarray(0, head), packet.data);
  packet.linear = head;
  packet.length = head;
  for (let at = head; at < bytes.length; at += PAGE_SIZE) {
    const chunk = bytes.subarray(at, at + PAGE_SIZE);
    const index = pages.alloc();
    if (index < 0) throw new Error('no page left');
    u8.set(chunk, pages.pages[index] << PAGE_SHIFT);
    packet.pool = pages;
    packet.addFragment(FRAGMENT_LOCAL, pages.pages[index], 0, chunk.length, index);
  }
  return packet;
}

/** Makes the checksum of a frame partial, as a sender with offload leaves it. */
export function partial(packet: Packet, dev: NetDevice): Packet {
  if (!setupChecksum(packet, true, dev.net.materialiser)) throw new Error('no checksum to set up');
  return packet;
}
