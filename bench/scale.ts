/**
 * Many vifs on one bridge in this process: what it takes to connect them all over XenBus, what each keeps, and what it
 * does, while it is idle, and what a packet costs when one of them sends and when all do. Each vif is a domain of its own, with a kernel.
 * A guest sends a burst of frames to a port of the bridge that sends every one back, as an uplink with a server behind
 * it would; when the burst is back it is the next guest's turn.
 *
 * Usage: node --expose-gc dist/bench/scale.js VIFS MILLISECONDS
 * Prints one line of JSON.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { NetDevice, Packet } from '../src/net/index.js';
import { NETDEV_TX_OK, NETIF_F_SG } from '../src/net/index.js';
import { PAGE_SHIFT, PAGE_SIZE, type Task, type Timer } from '../src/platform/index.js';
import { type BenchDomain, type BenchGuest, BenchHost, cpuSeconds } from './host.js';

/** CPU time for the compiler to settle. */
const WARM_UP_MS = 1500;
/** Each guest's pages are touched for the first time in these. */
const WARM_UP_BURSTS = 8;
const SETTLE_MS = 200;
/** The host counts as settled when nothing has run for so long, as links that change are told of after up to 1 s (linkwatch). */
const QUIET_MS = 1200;
const SETTLE_MAX_MS = 20_000;
const IDLE_MS = 1000;
/** Vifs that come and go before anything is measured. */
const FIRST_VIFS = 100;
/** Frames that a guest sends in one go. */
const BURST = 64;
/** Pages that a guest sends from at most, all bursts together. */
const TX_PAGES = 512;
const FRAME_BYTES = 1500;
/** The address behind the port that sends everything back; also as the two numbers that the bridge knows it by. */
const REFLECTOR = [2, 0, 0, 0, 0, 1];
const REFLECTED = [0x0200, 1] as const;
const MEMORY_BYTES = 2 ** 31 - 2 ** 16;

const vifs = Number(process.argv[2]);
const measureMs = Number(process.argv[3]);
const collect = globalThis.gc;
if (!(vifs >= 1 && measureMs > 0) || collect === undefined) {
  console.error('usage: node --expose-gc scale.js VIFS MILLISECONDS');
  process.exit(1);
}

const host = await BenchHost.boot(MEMORY_BYTES);

async function createDomains(count: number): Promise<BenchDomain[]> {
  const domains: BenchDomain[] = [];
  for (let i = 0; i < count; i++) domains.push(await host.createDomain(`guest${i}`));
  return domains;
}

/** The first vifs bring code along that all use. */
async function bringCode(): Promise<void> {
  const guests = await host.connect(await createDomains(FIRST_VIFS));
  for (const guest of guests.splice(0)) await host.remove(guest);
  await sleep(SETTLE_MS);
  // What the compiler has kept of them goes when another comes after a collection.
  memoryKib();
  await host.guest('first');
}

/** KiB after a collection: what is resident of this process, and what of that is JavaScript's, buffers, guests' pages. */
function memoryKib(): Record<'resident' | 'heap' | 'buffers' | 'pages', number> {
  collect!();
  collect!();
  const { rss, heapUsed, arrayBuffers } = process.memoryUsage();
  const { memory, freePages } = host.hypervisor;
  const pages = memory.pages - freePages;
  return {
    resident: rss / 1024,
    heap: heapUsed / 1024,
    buffers: arrayBuffers / 1024,
    pages: (pages * PAGE_SIZE) / 1024,
  };
}

function perVif(from: Record<string, number>, to: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(to).map(([key, value]) => [key, (value - from[key]) / vifs]));
}

/** What a second costs in which nothing happens, and how long it took until nothing did. */
async function idle(): Promise<Record<'settleSeconds' | 'tasks' | 'timers' | 'cpuSeconds', number>> {
  const { scheduler } = host;
  const { post, after } = scheduler;
  const seen = { tasks: 0, timers: 0 };
  scheduler.post = (task: Task) => {
    seen.tasks++;
    post.call(scheduler, task);
  };
  scheduler.after = (delayMs: number, run: () => void): Timer => {
    seen.timers++;
    return after.call(scheduler, delayMs, run);
  };
  const start = performance.now();
  do {
    Object.assign(seen, { tasks: 0, timers: 0 });
    await sleep(QUIET_MS);
  } while (seen.tasks > 0 && performance.now() < start + SETTLE_MAX_MS);
  const settleSeconds = (performance.now() - start) / 1000;
  const before = cpuSeconds();
  await sleep(IDLE_MS);
  Object.assign(scheduler, { post, after });
  return { ...seen, settleSeconds, cpuSeconds: cpuSeconds() - before };
}

/** A port of the bridge that sends every frame back to where it came from. */
function addReflector(): void {
  const waiting: Packet[] = [];
  let taken = 0;
  const dev = host.dom0.net.allocEtherdev('reflector', {
    startXmit(packet) {
      waiting.push(packet);
      napi.schedule();
      return NETDEV_TX_OK;
    },
  }) as NetDevice;
  const napi = dev.napiAdd(budget => {
    const { u8 } = host.hypervisor.memory;
    let work = 0;
    for (; work < budget && taken < waiting.length; work++) {
      const packet = waiting[taken++];
      u8.copyWithin(packet.data, packet.data + 6, packet.data + 12);
      u8.set(REFLECTOR, packet.data + 6);
      dev.receive(packet);
    }
    if (taken === waiting.length) {
      waiting.length = 0;
      taken = 0;
      napi.complete(work);
    }
    return work;
  });
  dev.features = NETIF_F_SG;
  host.dom0.net.register(dev);
  const port = host.bridge.addPort(dev);
  dev.open();
  napi.enable();
  dev.carrierOn();
  host.bridge.fdb.learn(REFLECTED[0], REFLECTED[1], port.number, host.scheduler.now());
}

/** What sends bursts from one guest, in pages that hold the frame from the first time on. */
class Source {
  private readonly filled = new Uint8Array(TX_PAGES);
  private back = 0;

  constructor(
    private readonly guest: BenchGuest,
    private readonly head: Uint8Array,
    private readonly onBack: () => void,
  ) {
    guest.dev.rxHandler = packet => {
      packet.release();
      if (++this.back === BURST) this.onBack();
    };
  }

  send(): void {
    const { dev, kernel } = this.guest;
    this.back = 0;
    for (let i = 0; i < BURST; i++) dev.xmit(this.makePacket(), true);
    kernel.net.flush();
  }

  private makePacket(): Packet {
    const { dev, kernel } = this.guest;
    const pool = dev.txPool!;
    const index = pool.alloc();
    const packet = kernel.net.packets.get();
    packet.pool = pool;
    packet.linearPoolIndex = index;
    packet.data = pool.pages[index] << PAGE_SHIFT;
    packet.linear = FRAME_BYTES;
    packet.length = FRAME_BYTES;
    if (this.filled[index] === 0) {
      this.filled[index] = 1;
      host.hypervisor.memory.u8.set(this.head, packet.data);
    }
    return packet;
  }
}

/** Lets these guests send in turn, for so long. */
async function send(guests: readonly BenchGuest[]): Promise<{ packets: number; cpuSeconds: number }> {
  let bursts = 0;
  let stopped = false;
  const sources = guests.map((guest, i) => {
    const head = Uint8Array.from([...REFLECTOR, ...guest.dev.address, 0x88, 0xb5]);
    return new Source(guest, head, () => {
      bursts++;
      if (!stopped) sources[(i + 1) % sources.length].send();
    });
  });
  sources[0].send();
  await host.runFor(WARM_UP_MS);
  while (bursts < WARM_UP_BURSTS * guests.length) await host.runFor(WARM_UP_MS);
  const before = bursts;
  const start = cpuSeconds();
  await host.runFor(measureMs);
  const result = { packets: (bursts - before) * BURST, cpuSeconds: cpuSeconds() - start };
  stopped = true;
  await sleep(SETTLE_MS);
  return result;
}

await bringCode();
const empty = memoryKib();
const domains = await createDomains(vifs);
const booted = memoryKib();
const start = { cpu: cpuSeconds(), wall: performance.now() };
const guests = await host.connect(domains);
const connect = { cpuSeconds: cpuSeconds() - start.cpu, seconds: (performance.now() - start.wall) / 1000 };
const connected = memoryKib();
const idleSecond = await idle();
addReflector();
const one = await send(guests.slice(0, 1));
const all = vifs === 1 ? one : await send(guests);
console.log(
  JSON.stringify({
    vifs,
    connect,
    domainKib: perVif(empty, booted),
    vifKib: perVif(booted, connected),
    usedVifKib: perVif(booted, memoryKib()),
    idle: idleSecond,
    one,
    all,
  }),
);
process.exit(0);
