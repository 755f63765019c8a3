/**
 * What network devices cost. Usage: node dist/bench/netdevice.js PART …, each prints one line of JSON:
 *   register PRESENT    registering and unregistering devices while so many others are registered
 *   stack [gro]         what NAPI, qdisc with its feature checks, and byte queue limit add to a packet on its way
 *                       from guest to guest: the difference to drivers that call each other; with GRO's look at it
 *   latency on|off      an urgent packet beside a stream through a vif of 10 Mbit/s, in simulated time, with the
 *                       byte queue limit or without
 *   checksum BYTES      the Internet checksum
 */
import {
  NETIF_F_GRO,
  NETIF_F_HW_CSUM,
  NETIF_F_SG,
  type NetDevice,
  type Packet,
  sumBytes,
} from '../src/net/index.js';
import { buildFrame } from '../test/net/frames.js';
import { TestKernel } from '../test/net/kernel.js';
import { queueLatency } from '../test/support/queue-latency.js';
import { cpuSeconds } from './host.js';

const BATCH = 64;
const FRAME_BYTES = 64;
const UDP_HEADERS = 42;
const STACK_ROUNDS = 17;
const STACK_WARM_UP = 4;
const STACK_PACKETS = 512_000;
const REGISTRATIONS = 10_000;

/** CPU seconds that `body` takes. */
function time(body: () => void): number {
  const start = cpuSeconds();
  body();
  return cpuSeconds() - start;
}

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[values.length >> 1];
}

function register(present: number): object {
  const { net } = new TestKernel({ pages: 64 });
  const ops = { startXmit: () => 0 };
  for (let i = 0; i < present; i++) net.register(net.allocEtherdev('eth%d', ops));
  const cycle = (count: number): void => {
    for (let n = 0; n < count; n++) {
      const device = net.allocEtherdev('eth%d', ops);
      net.register(device);
      void net.unregister(device);
    }
  };
  cycle(REGISTRATIONS / 2);
  return { devices: REGISTRATIONS, cpuSeconds: time(() => cycle(REGISTRATIONS)) };
}

/**
 * A packet arrives at one device and leaves through another whose driver completes a batch at a time: through NAPI,
 * qdisc and byte queue limit, or from driver to driver.
 */
function stack(gro: boolean): object {
  const kernel = new TestKernel({ pages: 2048 });
  const { packets } = kernel.net;
  const { u8 } = kernel.memory.memory;
  const frame = buildFrame({ payload: new Uint8Array(FRAME_BYTES - UDP_HEADERS), udp: true });
  const ring: Packet[] = [];
  let bytes = 0;
  let left = 0;
  const arrive = (): Packet => {
    const packet = packets.get();
    // A packet's buffer keeps the frame from one turn to the next.
    if (u8[packet.data] !== frame[0]) u8.set(frame, packet.data);
    packet.linear = FRAME_BYTES;
    packet.length = FRAME_BYTES;
    return packet;
  };
  const complete = (): void => {
    for (let packet = ring.pop(); packet !== undefined; packet = ring.pop()) packet.release();
  };
  const device = (startXmit: (packet: Packet) => number): NetDevice => {
    const dev: NetDevice = kernel.net.allocEtherdev('eth%d', { startXmit });
    dev.features = NETIF_F_SG | NETIF_F_HW_CSUM;
    kernel.net.register(dev);
    dev.open();
    return dev;
  };

  const [from, bareFrom] = [device(() => 0), device(() => 0)];
  const to = device(packet => {
    bytes += packet.length;
    ring.push(packet);
    queue.sent(packet.length);
    return 0;
  });
  const [queue] = to.txQueues;
  queue.setMinLimit(BATCH * FRAME_BYTES);
  if (!gro) from.features &= ~NETIF_F_GRO;
  from.rxHandler = packet => to.xmit(packet, true);
  const napi = from.napiAdd(budget => {
    let done = 0;
    for (; done < budget && left > 0; done++, left--) napi.receive(arrive());
    if (done < budget) napi.complete(done);
    return done;
  });
  napi.enable();
  const whole = (): void => {
    for (let n = 0; n < STACK_PACKETS; n += BATCH) {
      left = BATCH;
      napi.schedule();
      kernel.run();
      queue.completed(bytes);
      bytes = 0;
      complete();
    }
  };

  const bareTo = device(packet => {
    bytes += packet.length;
    ring.push(packet);
    return 0;
  });
  bareFrom.rxHandler = packet => {
    bareTo.ops.startXmit(packet, bareTo);
  };
  const poll = (budget: number): number => {
    let done = 0;
    for (; done < budget && left > 0; done++, left--) bareFrom.receive(arrive());
    return done;
  };
  const bare = (): void => {
    for (let n = 0; n < STACK_PACKETS; n += BATCH) {
      left = BATCH;
      poll(BATCH);
      bytes = 0;
      complete();
    }
  };

  const extra: number[] = [];
  for (let round = 0; round < STACK_ROUNDS; round++) {
    const without = time(bare);
    const difference = time(whole) - without;
    // The first rounds are compiled while they run.
    if (round >= STACK_WARM_UP) extra.push(difference);
  }
  if (to.stats.txDropped > 0 || queue.limitStops > 0) throw new Error('packets were held back');
  // A packet from guest to guest arrives twice and leaves twice: at netback and at netfront each.
  return { packets: STACK_PACKETS, cpuSeconds: 2 * median(extra) };
}

function checksum(size: number): object {
  const { memory } = new TestKernel({ pages: 64 }).memory;
  const count = Math.ceil(200_000_000 / (size + 100));
  let sum = 0;
  const turns = (): void => {
    for (let n = 0; n < count; n++) sum += sumBytes(memory, 4096, size);
  };
  turns();
  return { bytes: count * size, count, cpuSeconds: time(turns), sum };
}

const [part, argument] = process.argv.slice(2);
const PARTS: Record<string, () => object | Promise<object>> = {
  register: () => register(Number(argument)),
  stack: () => stack(argument === 'gro'),
  latency: () => queueLatency(argument === 'on'),
  checksum: () => checksum(Number(argument)),
};
if (PARTS[part] === undefined) {
  console.error(`usage: netdevice.js ${Object.keys(PARTS).join('|')} …`);
  process.exit(1);
}
console.log(JSON.stringify(await PARTS[part]()));
