/**
 * Packets from guest A to guest B through both drivers and the bridge on a simulated host in this process:
 * netfront → ring → netback → bridge → netback → ring → netfront. bench/c/ring.c does the same work in C.
 *
 * Usage: node dist/bench/ring.js SIZE MILLISECONDS [--xdp] [--fresh] [--packets N]
 *   --xdp    frames instead of packets: sent by xdpXmit and counted by an XDP program, up to one page
 *   --fresh  a new grant for each packet, revoked when its buffers are used again, and grants that are pinned by
 *            compare-and-exchange, as for a guest that runs in another thread
 *   --packets  goes on until so many packets have arrived
 * Prints one line of JSON.
 */
import { PerformanceObserver } from 'node:perf_hooks';
import { CHECKSUM_PARTIAL, FRAGMENT_LOCAL, GSO_TCPV4, type Packet } from '../src/net/packet.js';
import { XDP_DROP, type XdpBuffs, XdpFrames } from '../src/net/xdp.js';
import { PAGE_SHIFT, PAGE_SIZE, Task } from '../src/platform/index.js';
import { type BenchGuest, BenchHost, cpuSeconds } from './host.js';

/** CPU time for the compiler to settle. */
const WARM_UP_MS = 1500;
/** Longest frame that is sent in one page, and so the longest that is not TCP with GSO. */
const GSO_ABOVE = PAGE_SIZE;
const ETH_HLEN = 14;
const TCP_CSUM_START = 34;
const TCP_CSUM_OFFSET = 16;
const MSS = 1448;
const VIF_MTU = 65500;

const size = Number(process.argv[2]);
const measureMs = Number(process.argv[3]);
const fresh = process.argv.includes('--fresh');
const xdp = process.argv.includes('--xdp');
const packetsAt = process.argv.indexOf('--packets');
const packets = packetsAt < 0 ? 0 : Number(process.argv[packetsAt + 1]);
const longest = xdp ? PAGE_SIZE : 65535;
if (!(size >= 60 && size <= longest && measureMs > 0)) {
  console.error(`usage: ring.js SIZE (60 to ${longest}) MILLISECONDS [--xdp] [--fresh]`);
  process.exit(1);
}
/** Packets under way: a poll's weight, and of large ones what the receiver's queue holds. */
const window = size > GSO_ABOVE ? 8 : 64;

const host = await BenchHost.boot();
const sender = await host.guest('a');
const receiver = await host.guest('b');
for (const { device } of host.bridge.portList) device.setMtu(VIF_MTU);

const pool = sender.dev.txPool!;
const grefs = fresh ? noteGrants(sender) : null;
const counts = { sent: 0, received: 0, bytes: 0 };

/** Every page of the pool begins as the frame does, so that each can be sent as it is, again and again. */
function fillPool(to: BenchGuest): void {
  const { u8 } = sender.kernel.platform.memory.memory;
  const ipLength = size - ETH_HLEN;
  const protocol = size > GSO_ABOVE ? 6 : 17;
  const head = [
    [...to.dev.address, ...sender.dev.address, 0x08, 0x00],
    [0x45, 0, ipLength >> 8, ipLength & 0xff, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
    [0x12, 0x34, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0],
  ].flat();
  const indexes = Array.from({ length: pool.available }, () => pool.alloc());
  for (const index of indexes) {
    const at = pool.pages[index] << PAGE_SHIFT;
    for (let i = 0; i < PAGE_SIZE; i++) u8[at + i] = i * 7;
    u8.set(head, at);
  }
  for (const index of indexes) pool.free(index);
}

/** Remembers the reference that each page of the pool is granted by. */
function noteGrants({ kernel }: BenchGuest): Int32Array {
  const { grants } = kernel.platform;
  const noted = new Int32Array(kernel.platform.memory.memory.u8.length >>> PAGE_SHIFT);
  const grantAccess = grants.grantAccess.bind(grants);
  grants.grantAccess = (domid, page, readonly) => {
    const gref = grantAccess(domid, page, readonly);
    noted[page] = gref;
    return gref;
  };
  return noted;
}

function takePage(): number {
  const index = pool.alloc();
  if (grefs !== null) grantAnew(grefs, pool.pages[index]);
  return index;
}

function grantAnew(noted: Int32Array, page: number): void {
  const gref = noted[page];
  if (gref === 0) return;
  const { grants } = sender.kernel.platform;
  if (!grants.end(gref)) throw new Error(`grant ${gref} is still in use`);
  grants.grant(gref, 0, page, true);
}

function makePacket(): Packet {
  const packet = sender.kernel.net.packets.get();
  const first = takePage();
  packet.pool = pool;
  packet.linearPoolIndex = first;
  packet.data = pool.pages[first] << PAGE_SHIFT;
  packet.linear = Math.min(size, PAGE_SIZE);
  packet.length = packet.linear;
  for (let left = size - PAGE_SIZE; left > 0; left -= PAGE_SIZE) {
    const index = takePage();
    packet.addFragment(FRAGMENT_LOCAL, pool.pages[index], 0, Math.min(left, PAGE_SIZE), index);
  }
  if (size > GSO_ABOVE) {
    packet.checksum = CHECKSUM_PARTIAL;
    packet.csumStart = TCP_CSUM_START;
    packet.csumOffset = TCP_CSUM_OFFSET;
    packet.gsoType = GSO_TCPV4;
    packet.gsoSize = MSS;
  }
  return packet;
}

const sendPackets = new Task('source', () => {
  while (counts.sent - counts.received < window) {
    counts.sent++;
    sender.dev.xmit(makePacket(), true);
  }
  sender.kernel.net.flush();
});

const frames = new XdpFrames(sender.dev);
const sendFrames = new Task('source', () => {
  while (counts.sent - counts.received < window) {
    counts.sent++;
    const address = frames.add(size);
    if (grefs !== null) grantAnew(grefs, address >>> PAGE_SHIFT);
  }
  sender.dev.xdpXmit(frames);
});

const send = xdp ? sendFrames : sendPackets;
const goOn = (): void => {
  if (counts.received === counts.sent) host.scheduler.post(send);
};

receiver.dev.rxHandler = packet => {
  counts.bytes += packet.length;
  packet.release();
  counts.received++;
  goOn();
};

function countFrames({ count, bytes, verdict }: XdpBuffs): void {
  for (let i = 0; i < count; i++) {
    counts.bytes += bytes[i];
    verdict[i] = XDP_DROP;
  }
  counts.received += count;
  goOn();
}

if (xdp) receiver.dev.setXdp(countFrames);
fillPool(receiver);
const receiverPort = host.bridge.portList[1];
const { address } = receiver.dev;
host.bridge.fdb.learn(
  (address[0] << 8) | address[1],
  (address[2] << 24) | (address[3] << 16) | (address[4] << 8) | address[5],
  receiverPort.number,
  host.scheduler.now(),
);
host.scheduler.post(send);
if (fresh) {
  await host.runFor(10);
  // Their tables have grown to what they need: from now on no copy takes the way for guests of our own thread.
  for (const { domain } of [sender, receiver]) domain.grantTable.plainEntries = 0;
}
await host.runFor(WARM_UP_MS);
const before = { ...counts };
let collections = 0;
new PerformanceObserver(list => {
  collections += list.getEntries().length;
}).observe({ entryTypes: ['gc'] });
const cpuBefore = cpuSeconds();
const start = performance.now();
let allocated = 0;
do {
  const heap = process.memoryUsage().heapUsed;
  await host.runFor(measureMs);
  // What a collection hides in a step is lost; there are few.
  allocated += Math.max(0, process.memoryUsage().heapUsed - heap);
} while (counts.received - before.received < packets);
console.log(
  JSON.stringify({
    packets: counts.received - before.received,
    bytes: counts.bytes - before.bytes,
    seconds: (performance.now() - start) / 1000,
    cpuSeconds: cpuSeconds() - cpuBefore,
    collections,
    allocated,
  }),
);
process.exit(0);
