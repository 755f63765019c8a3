import { ErrnoError } from '../../src/abi/errno.js';
import { GNTST } from '../../src/abi/grant-table.js';
import type { NetDevice } from '../../src/net/device.js';
import { Net, type NetOptions } from '../../src/net/net.js';
import type { Packet } from '../../src/net/packet.js';
import { FRAGMENT_LOCAL, PACKET_LINEAR_MAX } from '../../src/net/packet.js';
import { NETDEV_TX_BUSY, NETDEV_TX_OK } from '../../src/net/tx-queue.js';
import { COPY_LOCAL, COPY_WORDS, type CopyBatch } from '../../src/platform/copy-batch.js';
import { Memory, PAGE_SHIFT, PAGE_SIZE } from '../../src/platform/memory.js';
import type { DomainMemory, GrantMapping, Grants } from '../../src/platform/platform.js';
import type { Scheduler, Task, Timer } from '../../src/platform/scheduler.js';

/** Virtual time; tasks run when the test says so. */
export class TestScheduler implements Scheduler {
  time = 1000;
  private readonly tasks: Task[] = [];
  private timers: { at: number; run: () => void }[] = [];

  now(): number {
    return this.time;
  }

  post(task: Task): void {
    if (task.queued) return;
    task.queued = true;
    this.tasks.push(task);
  }

  after(delayMs: number, run: () => void): Timer {
    const timer = { at: this.time + delayMs, run };
    this.timers.push(timer);
    return timer;
  }

  cancel(timer: Timer): void {
    this.timers = this.timers.filter(t => t !== timer);
  }

  get timerCount(): number {
    return this.timers.length;
  }

  /** Runs tasks until none is left. */
  run(): void {
    for (let n = 0; this.tasks.length > 0; n++) {
      if (n > 100_000) throw new Error('the tasks never end');
      const task = this.tasks.shift()!;
      task.queued = false;
      task.run();
    }
  }

  /** Lets time pass, with all that is due. */
  advance(ms: number): void {
    const end = this.time + ms;
    this.run();
    for (;;) {
      const due = this.timers.filter(t => t.at <= end).sort((a, b) => a.at - b.at)[0];
      if (due === undefined) break;
      this.timers = this.timers.filter(t => t !== due);
      this.time = Math.max(this.time, due.at);
      due.run();
      this.run();
    }
    this.time = end;
  }
}

export class TestMemory implements DomainMemory {
  readonly memory: Memory;
  private readonly free: number[] = [];
  allocated = 0;

  constructor(pages: number) {
    this.memory = new Memory(new SharedArrayBuffer(pages * PAGE_SIZE));
    for (let page = pages - 1; page > 0; page--) this.free.push(page);
  }

  allocPage(): number {
    const page = this.free.pop();
    if (page === undefined) throw new ErrnoError('ENOMEM', 'no page left');
    this.memory.u8.fill(0, page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT);
    this.allocated++;
    return page;
  }

  freePage(page: number): void {
    this.free.push(page);
    this.allocated--;
  }

  gfn(page: number): number {
    return page;
  }
}

/** Grants of other domains are pages of the same memory, found by (domid, gref). */
export class TestGrants implements Grants {
  readonly wasm = null;
  readonly regrantable = true;
  readonly foreign = new Map<string, number>();
  allocated = 0;
  readonly available = 0;
  mapped = 0;
  copies = 0;
  batches = 0;

  constructor(private readonly memory: TestMemory) {}

  offer(domid: number, gref: number, page: number): void {
    this.foreign.set(`${domid}:${gref}`, page);
  }

  copy(batch: CopyBatch): void {
    const { memory } = this.memory;
    this.batches++;
    for (let i = 0; i < batch.count; i++) {
      this.copies++;
      const [srcDomid, srcRef, srcOffset, , dstRef, dstOffset, length] = batch.words.subarray(i * COPY_WORDS);
      const from = srcDomid === COPY_LOCAL ? srcRef : this.foreign.get(`${srcDomid}:${srcRef}`);
      if (from === undefined || srcOffset + length > PAGE_SIZE) {
        batch.setStatus(i, from === undefined ? GNTST.bad_gntref : GNTST.bad_copy_arg);
        continue;
      }
      memory.copy((dstRef << PAGE_SHIFT) + dstOffset, (from << PAGE_SHIFT) + srcOffset, length);
      batch.setStatus(i, GNTST.okay);
    }
  }

  alloc(): number {
    throw new Error('not for these tests');
  }
  free(): void {}
  grant(): void {}
  end(): boolean {
    return true;
  }
  grantAccess(): number {
    throw new Error('not for these tests');
  }
  endAccess(): boolean {
    return true;
  }
  map(): GrantMapping {
    throw new Error('not for these tests');
  }
  unmap(): void {}
}

/** One domain's kernel to test with. */
export class TestKernel {
  readonly scheduler = new TestScheduler();
  readonly memory: TestMemory;
  readonly grants: TestGrants;
  readonly log: string[] = [];
  readonly net: Net;
  private seed: number;
  private nextGref = 8;

  constructor(options: { pages?: number; seed?: number } & Partial<NetOptions> = {}) {
    const { pages = 2048, seed = 1, ...rest } = options;
    this.seed = seed;
    this.memory = new TestMemory(pages);
    this.grants = new TestGrants(this.memory);
    this.net = new Net({
      scheduler: this.scheduler,
      memory: this.memory,
      grants: this.grants,
      log: line => this.log.push(line),
      random: () => this.random(),
      ...rest,
    });
  }

  random(): number {
    this.seed = (Math.imul(this.seed, 1103515245) + 12345) & 0x7fffffff;
    return this.seed / 0x80000000;
  }

  run(): void {
    this.scheduler.run();
  }

  /**
   * A packet with the given bytes: `linear` of them in the head, the rest in fragments of the given sizes
   * (then pages), which are grants of domain 7 when `foreign`.
   */
  packet(bytes: Uint8Array, options: { linear?: number; sizes?: number[]; foreign?: boolean } = {}): Packet {
    const packet = this.net.packets.get();
    const linear = Math.min(bytes.length, options.linear ?? PACKET_LINEAR_MAX);
    packet.memory.u8.set(bytes.subarray(0, linear), packet.data);
    packet.linear = linear;
    packet.length = linear;
    let at = linear;
    for (let i = 0; at < bytes.length; i++) {
      const size = Math.min(bytes.length - at, options.sizes?.[i] ?? PAGE_SIZE, PAGE_SIZE);
      const offset = Math.floor(this.random() * (PAGE_SIZE - size + 1));
      if (options.foreign === true) {
        const page = this.memory.allocPage();
        const gref = this.nextGref++;
        this.grants.offer(7, gref, page);
        this.memory.memory.u8.set(bytes.subarray(at, at + size), (page << PAGE_SHIFT) + offset);
        packet.addFragment(7, gref, offset, size);
      } else {
        const index = this.net.pages.alloc();
        const page = this.net.pages.pages[index];
        packet.pool = this.net.pages;
        this.memory.memory.u8.set(bytes.subarray(at, at + size), (page << PAGE_SHIFT) + offset);
        packet.addFragment(FRAGMENT_LOCAL, page, offset, size, index);
      }
      at += size;
    }
    return packet;
  }

  /** All bytes of a packet, grants included. */
  bytes(packet: Packet): Uint8Array {
    const bytes = new Uint8Array(packet.length);
    const { u8 } = packet.memory;
    bytes.set(u8.subarray(packet.data, packet.data + packet.linear));
    let at = packet.linear;
    for (let i = 0; i < packet.fragments; i++) {
      const page =
        packet.source[i] === FRAGMENT_LOCAL
          ? packet.ref[i]
          : this.grants.foreign.get(`${packet.source[i]}:${packet.ref[i]}`)!;
      const from = (page << PAGE_SHIFT) + packet.offset[i];
      bytes.set(u8.subarray(from, from + packet.size[i]), at);
      at += packet.size[i];
    }
    if (at !== packet.length) throw new Error(`the packet says ${packet.length} bytes and has ${at}`);
    return bytes;
  }

  /** A registered, open device that records what it sends. */
  device(name: string, options: Partial<Recorder> & { txQueues?: number; txQueueLen?: number } = {}) {
    const recorder = new Recorder(this);
    const device = this.net.allocEtherdev(
      name,
      {
        startXmit: (packet, dev) => recorder.startXmit(packet, dev as NetDevice),
        flush: () => {
          recorder.flushes++;
        },
      },
      { priv: recorder, txQueues: options.txQueues },
    );
    if (options.txQueueLen !== undefined) device.txQueueLen = options.txQueueLen;
    recorder.room = options.room ?? recorder.room;
    device.features = options.features ?? 0;
    device.hwFeatures = device.features;
    device.address.set([2, 0, 0, 0, 0xee, this.net.deviceCount + 1]);
    this.net.register(device);
    device.open();
    return device;
  }
}

/** A driver without hardware: keeps the bytes of what was sent, and stops its queue when it has no room. */
export class Recorder {
  sent: Uint8Array[] = [];
  /** What each sent packet said of itself. */
  meta: { checksum: number; gsoType: number; gsoSize: number; references: number; foreign: boolean }[] = [];
  room = Number.POSITIVE_INFINITY;
  features = 0;
  flushes = 0;

  constructor(private readonly kernel: TestKernel) {}

  startXmit(packet: Packet, device: NetDevice): number {
    if (this.room === 0) {
      device.txQueues[0].stop();
      return NETDEV_TX_BUSY;
    }
    this.room--;
    this.sent.push(this.kernel.bytes(packet));
    this.meta.push({
      checksum: packet.checksum,
      gsoType: packet.gsoType,
      gsoSize: packet.gsoSize,
      references: packet.references,
      foreign: !packet.isLocal,
    });
    device.stats.txPackets++;
    device.stats.txBytes += packet.length;
    packet.release();
    if (this.room === 0) device.txQueues[0].stop();
    return NETDEV_TX_OK;
  }
}
