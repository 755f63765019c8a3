import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import type { NetDevice } from '../../src/net/device.js';
import {
  CHECKSUM_NONE,
  CHECKSUM_PARTIAL,
  CHECKSUM_UNNECESSARY,
  FRAGMENT_LOCAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  type Packet,
} from '../../src/net/packet.js';
import { libc } from '../../src/platform/linux/libc.js';
import { POLL_STARVED, type Poller } from '../../src/uplink/poller.js';
import { Tap, TapIo } from '../../src/uplink/tap.js';
import { TapFace } from '../../src/uplink/tap-face.js';
import { TapPort } from '../../src/uplink/tap-port.js';
import { TestKernel } from '../net/kernel.js';
import { makePages } from './pages.js';

const skip = process.platform === 'linux' ? false : 'needs Linux';

/** A pipe in the place of a TAP: what is written can be read back. */
function openLoop(): { fd: number; close(): void } {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-test-'));
  const path = join(folder, 'loop');
  assert.equal(spawnSync('mkfifo', [path]).status, 0);
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  rmSync(folder, { recursive: true });
  return { fd, close: () => closeSync(fd) };
}

function bytesOf(packet: Packet): Buffer {
  const { u8 } = packet.memory;
  const parts = [u8.slice(packet.data, packet.data + packet.linear)];
  for (let i = 0; i < packet.fragments; i++) {
    const at = packet.ref[i] * 4096 + packet.offset[i];
    parts.push(u8.slice(at, at + packet.size[i]));
  }
  return Buffer.concat(parts);
}

/** A struct virtio_net_hdr and a frame behind it. */
function framed(
  header: { flags?: number; type?: number; size?: number; start?: number; offset?: number },
  frame: Buffer,
): Buffer {
  const bytes = Buffer.alloc(10);
  bytes[0] = header.flags ?? 0;
  bytes[1] = header.type ?? 0;
  bytes.writeUInt16LE(header.size ?? 0, 4);
  bytes.writeUInt16LE(header.start ?? 0, 6);
  bytes.writeUInt16LE(header.offset ?? 0, 8);
  return Buffer.concat([bytes, frame]);
}

describe('frames through a TAP', { skip }, () => {
  const loop = openLoop();
  const { own, packets, pool, memory } = makePages();
  const io = new TapIo(new Tap(libc(), loop.fd, 'loop'), own, packets, pool);
  const frame = Buffer.from(Array.from({ length: 200 }, (_, i) => i));

  after(() => {
    io.destroy();
    assert.equal(pool.used, 0);
    assert.equal(packets.used, 0);
    loop.close();
  });

  test('an empty TAP gives nothing, and that is not for want of pages', () => {
    assert.equal(io.readPacket(), null);
    assert.equal(io.endPoll(0, 5, 0), 0);
    assert.equal(io.endPoll(3, 5, 0), 3);
  });

  test('a frame lands in pages of the pool, its first page as the linear part', () => {
    const long = Buffer.from(Array.from({ length: 9000 }, (_, i) => i * 7));
    writeSync(loop.fd, framed({}, long));
    const packet = io.readPacket()!;
    assert.deepEqual(
      [packet.length, packet.linear, packet.fragments, packet.size[0], packet.size[1]],
      [9000, 4096, 2, 4096, 808],
    );
    assert.ok(packet.linearPoolIndex >= 0 && packet.poolIndex[1] >= 0);
    assert.deepEqual(bytesOf(packet), long);
    const before = pool.used;
    packet.release();
    assert.equal(pool.used, before - 3);
  });

  test('an unfinished checksum and a GSO size become state of the packet', () => {
    writeSync(loop.fd, framed({ flags: 1, type: 1, size: 1448, start: 34, offset: 16 }, frame));
    const packet = io.readPacket()!;
    assert.equal(packet.checksum, CHECKSUM_PARTIAL);
    assert.deepEqual([packet.csumStart, packet.csumOffset], [34, 16]);
    assert.deepEqual([packet.gsoType, packet.gsoSize], [GSO_TCPV4, 1448]);
    packet.release();
  });

  test('the ECN bit is no different GSO type', () => {
    writeSync(loop.fd, framed({ flags: 1, type: 0x84, size: 1428, start: 54, offset: 16 }, frame));
    const packet = io.readPacket()!;
    assert.equal(packet.gsoType, GSO_TCPV6);
    packet.release();
  });

  const wrong: [string, Buffer][] = [
    ['a checksum outside the frame', framed({ flags: 1, start: 190, offset: 16 }, frame)],
    ['a checksum in the Ethernet header', framed({ flags: 1, start: 4, offset: 2 }, frame)],
    ['segments of no size', framed({ flags: 1, type: 1, size: 0, start: 34, offset: 16 }, frame)],
    ['segments without a checksum to finish', framed({ type: 1, size: 1448 }, frame)],
    ['an unknown GSO type', framed({ flags: 1, type: 3, size: 1448, start: 34, offset: 16 }, frame)],
    ['less than an Ethernet header', framed({}, frame.subarray(0, 13))],
  ];
  for (const [what, bytes] of wrong) {
    test(`a frame with ${what} is counted and dropped`, () => {
      const { rxErrors } = io.stats;
      writeSync(loop.fd, bytes);
      assert.equal(io.readPacket(), null);
      assert.equal(io.stats.rxErrors, rxErrors + 1);
      assert.equal(packets.used, 0);
    });
  }

  test('what is written can be read back with the same bytes and the same state', () => {
    fc.assert(
      fc.property(
        fc.record({
          linear: fc.integer({ min: 54, max: 480 }),
          sizes: fc.array(fc.integer({ min: 1, max: 4096 }), { maxLength: 12 }),
          checksum: fc.constantFrom(CHECKSUM_NONE, CHECKSUM_UNNECESSARY, CHECKSUM_PARTIAL),
          gsoType: fc.constantFrom(GSO_NONE, GSO_TCPV4, GSO_TCPV6),
          gsoSize: fc.integer({ min: 1, max: 65535 }),
        }),
        ({ linear, sizes, checksum, gsoType, gsoSize }) => {
          const sent = packets.get();
          sent.linear = linear;
          sent.length = linear;
          sent.pool = pool;
          for (let i = 0; i < linear; i++) memory.u8[sent.data + i] = i * 31;
          for (const size of sizes) {
            const index = pool.alloc();
            memory.u8.fill(size, pool.pages[index] * 4096, pool.pages[index] * 4096 + 4096);
            sent.addFragment(FRAGMENT_LOCAL, pool.pages[index], 4096 - size, size, index);
          }
          sent.checksum = checksum;
          if (checksum === CHECKSUM_PARTIAL) {
            sent.csumStart = 34;
            sent.csumOffset = 16;
            sent.gsoType = gsoType;
            sent.gsoSize = gsoType === GSO_NONE ? 0 : gsoSize;
          }
          assert.ok(io.writePacket(sent));
          const got = io.readPacket()!;
          assert.deepEqual(bytesOf(got), bytesOf(sent));
          // The others mean something only with a partial checksum, and with GSO.
          const keys: ('checksum' | 'gsoType' | 'length' | 'csumStart' | 'csumOffset' | 'gsoSize')[] = [
            'checksum',
            'gsoType',
            'length',
          ];
          if (sent.checksum === CHECKSUM_PARTIAL) keys.push('csumStart', 'csumOffset');
          if (sent.gsoType !== GSO_NONE) keys.push('gsoSize');
          for (const key of keys) assert.equal(got[key], sent[key], key);
          got.release();
          sent.release();
        },
      ),
      { numRuns: 200 },
    );
  });

  test('a packet with fragments in another domain cannot be written', () => {
    const packet = packets.get();
    packet.addFragment(5, 8, 0, 100);
    assert.throws(() => io.writePacket(packet), /materialised/);
    packet.release();
  });

  test('without pages nothing is read, and nothing is lost', () => {
    const small = makePages(17);
    const tight = new TapIo(new Tap(libc(), loop.fd, 'loop'), small.own, small.packets, small.pool);
    writeSync(loop.fd, framed({}, frame));
    const first = tight.readPacket()!;
    writeSync(loop.fd, framed({}, frame));
    assert.equal(tight.readPacket(), null);
    assert.equal(tight.endPoll(0, 5, 0), POLL_STARVED);
    assert.equal(tight.endPoll(3, 5, 0), 5);
    first.release();
    const second = tight.readPacket()!;
    assert.equal(second.length, frame.length);
    assert.equal(tight.endPoll(1, 1, 0), 1);
    second.release();
    tight.destroy();
    assert.equal(small.pool.used, 0);
  });
});

describe('of packets whose data cannot be fetched none is written, and those behind them are', {
  skip,
}, () => {
  /** A TAP that nothing can be set of, and nobody polls. */
  function setUp() {
    const loop = openLoop();
    const ignore = () => {};
    const tap = { fd: loop.fd, name: 'loop', folder: '/nowhere', nameNow: 'loop' };
    Object.assign(tap, { setOffload: ignore, setCarrier: ignore, setAddress: ignore, close: loop.close });
    const poller = { add: () => ({ wake: ignore, remove: ignore }) } as unknown as Poller;
    const kernel = new TestKernel();
    const frames = [300, 1300, 2300].map(length => new Uint8Array(length).fill(length));
    const packets = frames.map(bytes => kernel.packet(bytes, { linear: 100, foreign: true }));
    packets[1].ref[0] = 99_999;
    /** The frames that were written, without the headers before them. */
    const written = (...lengths: number[]): Buffer[] => {
      const bytes = Buffer.alloc(10_000);
      const count = readSync(loop.fd, bytes);
      assert.equal(
        count,
        lengths.reduce((sum, length) => sum + 10 + length, 0),
      );
      let at = 0;
      return lengths.map(length => {
        at += 10 + length;
        return bytes.subarray(at - length, at);
      });
    };
    const end = () => {
      assert.equal(kernel.net.packets.used, 0);
      assert.equal(kernel.net.pages.used, 0);
    };
    return { tap: tap as unknown as Tap, poller, kernel, packets, frames, written, end };
  }

  test('to a TAP that is a device', async () => {
    const { tap, poller, kernel, packets, frames, written, end } = setUp();
    const port = new TapPort(kernel.net, poller, tap);
    const { device } = port;
    device.open();
    for (const packet of packets) device.xmit(packet, true);
    kernel.net.flush();
    assert.deepEqual(
      written(300, 2300),
      [frames[0], frames[2]].map(bytes => Buffer.from(bytes)),
    );
    assert.deepEqual([device.stats.txPackets, device.stats.txDropped], [2, 1]);
    // What was not written yet is let go of when it goes down.
    device.xmit(kernel.packet(frames[0]), true);
    device.close();
    await port.close();
    end();
  });

  test('to a TAP that is the user of a device', () => {
    const { tap, poller, kernel, packets, frames, written, end } = setUp();
    const face = new TapFace(kernel.device('eth%d') as unknown as NetDevice, tap, poller, () => {});
    for (const packet of packets) face.device.receive(packet);
    kernel.run();
    assert.deepEqual(
      written(300, 2300),
      [frames[0], frames[2]].map(bytes => Buffer.from(bytes)),
    );
    face.device.receive(kernel.packet(frames[2], { linear: 100, foreign: true }));
    face.close();
    end();
  });
});
