import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import type { NetDevice } from '../../src/net/device.js';
import { NETIF_F_HW_CSUM, NETIF_F_SG, NETIF_F_TSO, NETIF_F_TSO6 } from '../../src/net/features.js';
import {
  NETDEV_CHANGE,
  NETDEV_CHANGEADDR,
  NETDEV_CHANGEMTU,
  NETDEV_FEAT_CHANGE,
} from '../../src/net/notifier.js';
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
import { PagePool } from '../../src/net/page-pool.js';
import { F_SETFL, libc } from '../../src/platform/linux/libc.js';
import { POLL_BLOCKED, POLL_STARVED, type Poller, type PollSource } from '../../src/uplink/poller.js';
import { Tap, TapIo } from '../../src/uplink/tap.js';
import { TapFace } from '../../src/uplink/tap-face.js';
import { TapPort } from '../../src/uplink/tap-port.js';
import { buildFrame } from '../net/frames.js';
import { type Recorder, TestKernel } from '../net/kernel.js';
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
  header: { flags?: number; type?: number; headers?: number; size?: number; start?: number; offset?: number },
  frame: Buffer,
): Buffer {
  const bytes = Buffer.alloc(10);
  bytes[0] = header.flags ?? 0;
  bytes[1] = header.type ?? 0;
  bytes.writeUInt16LE(header.headers ?? 0, 2);
  bytes.writeUInt16LE(header.size ?? 0, 4);
  bytes.writeUInt16LE(header.start ?? 0, 6);
  bytes.writeUInt16LE(header.offset ?? 0, 8);
  return Buffer.concat([bytes, frame]);
}

/** From now on what each call writes, up to a page, is read by a call of its own, as of a TAP. */
function keepFrames(fd: number): void {
  assert.equal(libc().fcntl(fd, F_SETFL, constants.O_RDWR | constants.O_NONBLOCK | constants.O_DIRECT), 0);
}

/** Timestamps. */
const OPTIONS = Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2);

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
    ['half of a checksum outside the frame', framed({ flags: 1, start: 183, offset: 16 }, frame)],
    ['a checksum outside its first page', framed({ flags: 1, start: 4079, offset: 16 }, Buffer.alloc(5000))],
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
      assert.ok(io.readPacket() === null);
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

  /** What is written of a packet with these bytes, all in its linear part but for what `linear` leaves. */
  function headerOf(change: Partial<Packet>, bytes: Uint8Array, linear = bytes.length): Buffer {
    const packet = packets.get();
    memory.u8.set(bytes.subarray(0, linear), packet.data);
    Object.assign(packet, { linear, length: linear, pool, ...change });
    if (linear < bytes.length) {
      const index = pool.alloc();
      memory.u8.set(bytes.subarray(linear), pool.pages[index] * 4096);
      packet.addFragment(FRAGMENT_LOCAL, pool.pages[index], 0, bytes.length - linear, index);
    }
    assert.ok(io.writePacket(packet));
    packet.release();
    const written = Buffer.alloc(10 + bytes.length);
    assert.equal(readSync(loop.fd, written), written.length);
    return written.subarray(0, 10);
  }

  test('the header before a frame says how long its headers are, of what size the segments, and whether ECN', () => {
    const gso = {
      checksum: CHECKSUM_PARTIAL,
      csumStart: 34,
      csumOffset: 16,
      gsoType: GSO_TCPV4,
      gsoSize: 1000,
    };
    const tcp = (flags: number) => buildFrame({ payload: new Uint8Array(300), tcpOptions: OPTIONS, flags });
    const written = (type: number, headers: number) =>
      framed({ flags: 1, type, headers, size: 1000, start: 34, offset: 16 }, Buffer.alloc(0));
    assert.deepEqual(headerOf(gso, tcp(0x10)), written(1, 66));
    assert.deepEqual(headerOf(gso, tcp(0x90)), written(0x81, 66));
    // The TCP header is not whole in the linear part: what is behind that is no part of it.
    assert.deepEqual(headerOf(gso, tcp(0x90), 44), written(1, 44));
    // Nothing of the packet before.
    assert.deepEqual(headerOf({ csumStart: 34, csumOffset: 16 }, tcp(0x90)), Buffer.alloc(10));
  });

  test('a packet that the kernel does not take is counted, and lost', () => {
    const broken = new TapIo(new Tap(libc(), -1, 'none'), own, packets, pool);
    const packet = packets.get();
    packet.linear = packet.length = 60;
    assert.equal(broken.writePacket(packet), false);
    packet.release();
    assert.deepEqual([broken.stats.txErrors, broken.stats.txPackets], [1, 0]);
    broken.destroy();
  });

  test('the longest frame that there is comes whole, and a longer one is an error', () => {
    const F_SETPIPE_SZ = 1031;
    assert.ok(libc().fcntl(loop.fd, F_SETPIPE_SZ, 1 << 18) > 0);
    const longest = Buffer.from(Array.from({ length: 65535 + 14 + 8 }, (_, i) => i * 11));
    writeSync(loop.fd, framed({}, longest));
    const packet = io.readPacket()!;
    assert.deepEqual(bytesOf(packet), longest);
    packet.release();
    const { rxErrors } = io.stats;
    writeSync(loop.fd, framed({}, Buffer.concat([longest, Buffer.alloc(1)])));
    assert.ok(io.readPacket() === null);
    assert.equal(io.stats.rxErrors, rxErrors + 1);
  });

  test('once there is another pool, pages are of that one, and all go back to their own', () => {
    const { own, packets, pool } = makePages();
    const moving = new TapIo(new Tap(libc(), loop.fd, 'loop'), own, packets, pool);
    const other = new PagePool(own, 64);
    const read = (): Packet => {
      writeSync(loop.fd, framed({}, frame));
      return moving.readPacket()!;
    };
    const first = read();
    moving.setPool(other);
    assert.equal(pool.used, 1);
    first.release();
    const second = read();
    assert.equal(second.pool, other);
    assert.deepEqual(bytesOf(second), frame);
    moving.destroy();
    assert.equal(other.used, 1);
    second.release();
    for (const each of [pool, other]) each.retire(page => own.freePage(page));
    assert.equal(own.allocated, packets.pages);
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
    assert.equal(tight.readPacket(), null);
    assert.equal(tight.endPoll(0, 5, 0), 0, 'it is empty now');
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

describe('a TAP and the device that it is the user of', { skip }, () => {
  /** What an interface was made, and who polls for it. */
  function setUp(features: number) {
    const loop = openLoop();
    const is = { offload: -1, carrier: true, addresses: [] as string[], mtus: [] as number[] };
    const tap = {
      fd: loop.fd,
      name: 'loop',
      folder: '/nowhere',
      nameNow: 'loop',
      setOffload: (bits: number) => void Object.assign(is, { offload: bits }),
      setCarrier: (carrier: boolean) => void Object.assign(is, { carrier }),
      setAddress: (mac: Uint8Array) => void is.addresses.push(Buffer.from(mac).toString('hex')),
      close: loop.close,
    } as unknown as Tap;
    const polled = { source: null as PollSource | null, wakes: 0 };
    const poller = {
      add: (source: PollSource) => {
        polled.source = source;
        return {
          wake: () => void polled.wakes++,
          remove: () => void Object.assign(polled, { source: null }),
        };
      },
    } as unknown as Poller;
    const kernel = new TestKernel();
    const device = kernel.device('eth%d', { features }) as unknown as NetDevice;
    const face = () => new TapFace(device, tap, poller, mtu => void is.mtus.push(mtu));
    return { loop, is, tap, poller, polled, kernel, device, sender: device.priv as Recorder, face };
  }

  test('its interface is what the device is, until it is let go of', () => {
    const { is, polled, kernel, device, face } = setUp(0);
    // The kernel's own pool keeps what it has made.
    const before = face();
    polled.source!.poll(1, 0);
    before.release();
    const { allocated } = kernel.memory;
    const one = face();
    assert.deepEqual([is.carrier, is.offload], [false, 0]);
    one.start();
    assert.deepEqual([is.carrier, polled.wakes], [true, 1]);
    device.txPool = new PagePool(kernel.memory, 64);
    for (const [change, carrier] of [
      [() => device.close(), false],
      [() => device.open(), true],
      [() => device.carrierOff(), false],
      [() => device.carrierOn(), true],
    ] as const) {
      change();
      kernel.scheduler.advance(2000);
      assert.equal(is.carrier, carrier);
      // Of what it sends from while it is down, nobody knows.
      polled.source!.poll(1, 0);
      assert.equal(device.txPool.used > 0, carrier);
    }
    for (const [features, offload] of [
      [NETIF_F_HW_CSUM, 1],
      [NETIF_F_HW_CSUM | NETIF_F_TSO, 1 | 2 | 8],
      [NETIF_F_HW_CSUM | NETIF_F_TSO6, 1 | 4 | 8],
      [NETIF_F_TSO, 0],
    ]) {
      device.features = features;
      kernel.net.notify(NETDEV_FEAT_CHANGE, device);
      assert.equal(is.offload, offload);
    }
    is.addresses = [];
    device.address[5] = 0x77;
    for (let i = 0; i < 2; i++) kernel.net.notify(NETDEV_CHANGEADDR, device);
    assert.deepEqual(is.addresses, [Buffer.from(device.address).toString('hex')]);
    device.setMtu(1400);
    kernel.net.notify(NETDEV_CHANGEMTU, device);
    assert.deepEqual(is.mtus, [1400]);

    one.release();
    assert.deepEqual([is.carrier, polled.source, device.rxHandler], [false, null, null]);
    const { wakes } = polled;
    kernel.net.notify(NETDEV_CHANGE, device);
    device.txQueues[0].stop();
    device.txQueues[0].wake();
    kernel.run();
    assert.deepEqual([is.carrier, polled.wakes], [false, wakes]);
    device.txPool.retire(page => kernel.memory.freePage(page));
    assert.deepEqual([kernel.net.pages.used, kernel.memory.allocated], [0, allocated]);
  });

  test('segments that it sends are one packet, told of to the driver at the end of the poll', () => {
    const features = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_TSO;
    const { loop, polled, sender, face } = setUp(features);
    const one = face();
    keepFrames(loop.fd);
    for (let n = 0; n < 3; n++) {
      const bytes = buildFrame({ payload: new Uint8Array(1000), sequence: 1000 * n, id: n, flags: 0x10 });
      writeSync(loop.fd, framed({ flags: 1, start: 34, offset: 16 }, Buffer.from(bytes)));
    }
    assert.equal(polled.source!.poll(64, 0), 3);
    assert.deepEqual(
      sender.sent.map(({ length }) => length),
      [3054],
    );
    assert.deepEqual([sender.meta[0].gsoType, sender.flushes], [GSO_TCPV4, 1]);
    one.close();
  });

  test('nothing is read that a full device cannot take, and all of it once it can', () => {
    const { loop, polled, kernel, device, sender, face } = setUp(NETIF_F_SG);
    const one = face();
    keepFrames(loop.fd);
    sender.room = 1;
    const frames = [100, 200, 300].map(length => Buffer.alloc(length, length));
    for (const frame of frames) writeSync(loop.fd, framed({}, frame));
    assert.equal(polled.source!.poll(64, 0), 64, 'there may be more');
    assert.equal(polled.source!.poll(64, 0), POLL_BLOCKED);
    assert.equal(sender.sent.length, 1);
    sender.room = 10;
    const { wakes } = polled;
    device.txQueues[0].wake();
    kernel.run();
    assert.equal(polled.wakes, wakes + 1);
    assert.equal(polled.source!.poll(64, 0), 2);
    assert.deepEqual(
      sender.sent.map(bytes => Buffer.from(bytes)),
      frames,
    );
    one.close();
  });

  test('what it receives is written in its order, and nothing after it was let go of', () => {
    const { loop, tap, kernel, device, face } = setUp(0);
    const one = face();
    const frames = [1000, 60, 61].map(length => new Uint8Array(length).fill(length));
    for (const [i, bytes] of frames.entries())
      device.receive(kernel.packet(bytes, { linear: 40, foreign: i === 0 }));
    kernel.run();
    const written = Buffer.alloc(10_000);
    const count = readSync(loop.fd, written);
    const expected = Buffer.concat(frames.flatMap(bytes => [Buffer.alloc(10), bytes]));
    assert.deepEqual(written.subarray(0, count), expected);
    device.receive(kernel.packet(frames[0], { linear: 40, foreign: true }));
    assert.equal(one.release(), tap);
    kernel.run();
    assert.throws(() => readSync(loop.fd, written), { code: 'EAGAIN' });
    assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
    loop.close();
  });

  test('a TAP that is a device begins and ends with it, and tells of what it could not read', async () => {
    const { loop, tap, kernel, device: other, sender, poller, polled } = setUp(0);
    const port = new TapPort(kernel.net, poller, tap);
    const { device } = port;
    device.rxHandler = packet => void other.xmit(packet, true);
    device.open();
    writeSync(loop.fd, framed({}, Buffer.alloc(13)));
    assert.equal(polled.source!.poll(64, 0), 0);
    writeSync(loop.fd, framed({}, Buffer.alloc(100)));
    assert.equal(polled.source!.poll(64, 0), 1);
    assert.deepEqual([device.stats.rxErrors, device.stats.rxPackets], [1, 1]);
    assert.deepEqual([sender.sent.length, sender.flushes], [1, 1]);
    device.xmit(kernel.packet(new Uint8Array(100)), true);
    device.close();
    assert.equal(polled.source, null);
    device.open();
    for (let i = 0; i < 65; i++) device.xmit(kernel.packet(new Uint8Array(100)), true);
    kernel.net.flush();
    assert.equal(readSync(loop.fd, Buffer.alloc(10_000)), 65 * 110);
    await port.close();
    assert.equal(kernel.net.packets.used + kernel.net.pages.used, 0);
  });
});
