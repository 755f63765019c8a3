import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { framePacket, packetBytes } from '../../src/guests/frames.js';
import {
  CHECKSUM_PARTIAL,
  checksumIsRight,
  Headers,
  setupPartialChecksum,
  writeIpv4Checksum,
} from '../../src/net/index.js';
import { PAGE_SIZE } from '../../src/platform/memory.js';
import { TestKernel } from '../net/kernel.js';

describe('a packet of a frame', () => {
  test('has its bytes, short or long', () => {
    const kernel = new TestKernel();
    const device = kernel.device('eth0');
    for (const length of [14, 60, 2 * PAGE_SIZE + 7]) {
      const frame = Uint8Array.from({ length }, (_, i) => i * 7);
      const packet = framePacket(device, frame)!;
      assert.deepEqual(kernel.bytes(packet), frame);
      packet.release();
    }
  });

  test('comes out again with the checksum that its sender left to be completed, and is left as it was', () => {
    const kernel = new TestKernel();
    const device = kernel.device('eth0');
    const data = Array.from({ length: 2 * PAGE_SIZE + 7 }, (_, i) => i * 5);
    const length = 28 + data.length;
    const ip = [0x45, 0, length >>> 8, length, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    const udp = [0, 7, 0, 7, (length - 20) >>> 8, length - 20, 0, 0];
    const frame = Uint8Array.from([...new Uint8Array(12), 8, 0, ...ip, ...udp, ...data]);
    const packet = framePacket(device, frame)!;
    const headers = new Headers();
    headers.parse(packet);
    writeIpv4Checksum(packet, headers);
    assert.ok(setupPartialChecksum(packet, headers, true));
    const before = kernel.bytes(packet);
    const copy = framePacket(device, packetBytes(packet, device)!)!;
    headers.parse(copy);
    assert.ok(checksumIsRight(copy, headers));
    assert.notDeepEqual(kernel.bytes(copy), before);
    assert.deepEqual([packet.checksum, kernel.bytes(packet)], [CHECKSUM_PARTIAL, before]);
    packet.release();
    copy.release();
  });

  test('is none where the domain has no memory for it, and nothing is written or kept then', () => {
    const kernel = new TestKernel({ pages: 16 });
    const device = kernel.device('eth0');
    const { packets, pages } = kernel.net;
    const taken: number[] = [];
    while (kernel.memory.allocated < 15) taken.push(kernel.memory.allocPage());
    const short = new Uint8Array(60).fill(1);
    const long = new Uint8Array(3 * PAGE_SIZE).fill(1);
    assert.equal(framePacket(device, short), null);
    // For packets' heads, and two of the frame's three pages.
    for (const page of taken.splice(0, 3)) kernel.memory.freePage(page);
    assert.equal(framePacket(device, long), null);
    assert.deepEqual([packets.used, pages.used], [0, 0]);
    assert.ok(kernel.memory.memory.u8.subarray(0, PAGE_SIZE).every(byte => byte === 0));
    const packet = framePacket(device, long.subarray(0, 2 * PAGE_SIZE))!;
    assert.equal(packet.length, 2 * PAGE_SIZE);
    packet.release();
  });
});
