import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_MORE_DATA,
} from '../../src/abi/index.js';
import { RING_HEADER_SIZE } from '../../src/abi/ring.js';
import { DOMID_INVALID } from '../../src/abi/xen.js';
import { GSO_TCPV4 } from '../../src/net/index.js';
import { FRAGMENT_BYTES, RING_RX_RSP_CONS } from '../../src/netfront/ring-block.js';
import { MODULE } from '../../src/netfront/wasm/rings.bytes.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../../src/platform/index.js';
import { Draw } from '../fuzz/random.js';
import { buildFrame, type TcpFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Victim } from '../support/hostile.js';
import { packetFrom } from '../support/packets.js';
import { ChangingSlots, compileWatched, unchangedBut } from '../support/watched-module.js';

const BLANK = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;
const FUNCTIONS = ['reclaim', 'send', 'receive', 'receiveLong', 'post'];

let bytes: Uint8Array;

before(async () => {
  bytes = await compileWatched('src/netfront/wasm/rings.ts');
});

type Range = readonly [from: number, to: number];
type Exports = Record<string, (...args: number[]) => number>;

interface Innards {
  readonly txPage: number;
  readonly rxPage: number;
  readonly code: { readonly pages: readonly number[] };
}

/** A frontend whose backend changes each byte of a slot right after the code in WebAssembly has read it. */
class Watched {
  readonly path = new DataPath(1);
  readonly slots: ChangingSlots;
  readonly victim: Victim;
  /** Packets that a function took, or for which it took all answers. */
  readonly taken = { reclaim: 0, receive: 0, receiveLong: 0 };
  /** Compares memory before each so many calls, and after. */
  lookEvery = 0;
  private calls = 0;
  /** How often memory was compared, by function. */
  readonly looks: Record<string, number> = {};

  constructor(options: ConstructorParameters<typeof Victim>[1] = {}) {
    const { memory } = this.path.hypervisor;
    const { instantiate } = memory;
    this.slots = new ChangingSlots(memory);
    const watched: typeof instantiate = (module, imports) =>
      module === MODULE
        ? this.watch(instantiate(bytes, { ...imports, shared: this.slots.imports }) as Exports)
        : instantiate(module, imports);
    Object.defineProperty(memory, 'instantiate', { value: watched });
    this.victim = new Victim(this.path, options);
    this.victim.dev.mtu = 65535;
    this.victim.dev.txQueues[0].setMinLimit(1 << 29);
  }

  private watch(exports: Exports): Exports {
    return Object.fromEntries(FUNCTIONS.map(name => [name, (...args) => this.call(exports, name, args)]));
  }

  private call(exports: Exports, name: string, args: number[]): number {
    this.slots.clear();
    const look = this.slots.on && this.lookEvery > 0 && this.calls++ % this.lookEvery === 0;
    const compare = look ? this.guard(name, args) : undefined;
    const result = exports[name](...args);
    compare?.();
    this.slots.checkOnce();
    if (name === 'reclaim' || name === 'receive') this.taken[name] += result;
    else if (name === 'receiveLong' && result > 0) this.taken.receiveLong++;
    if (name === 'receive') this.putBack(args[0]);
    return result;
  }

  /** Only packets that were taken must not be read again: `receive` looks at one more. */
  private putBack(block: number): void {
    const { rxPage } = this.innards;
    const rspCons = this.path.hypervisor.memory.i32[(block + RING_RX_RSP_CONS) >>> 2];
    const at = (rxPage << PAGE_SHIFT) + RING_HEADER_SIZE + (rspCons & 255) * 8;
    this.slots.restore(at, at + 8);
  }

  private get innards(): Innards {
    return this.victim.queue as unknown as Innards;
  }

  /** What a function may write to; the backend changes slots that it reads. */
  private guard(name: string, args: number[]): () => void {
    this.looks[name] = (this.looks[name] ?? 0) + 1;
    const { txPage, rxPage, code } = this.innards;
    const { hypervisor } = this.path;
    const slotsOf = (page: number): Range => [page * PAGE_SIZE + RING_HEADER_SIZE, (page + 1) * PAGE_SIZE];
    const pageOf = (page: number): Range => [page * PAGE_SIZE, (page + 1) * PAGE_SIZE];
    const allowed: Range[] = code.pages.map(pageOf);
    allowed.push(slotsOf(name === 'reclaim' || name === 'send' ? txPage : rxPage));
    if (name === 'receiveLong') allowed.push([args[2], args[2] + 5 * FRAGMENT_BYTES]);
    if (name !== 'reclaim' && name !== 'send') {
      allowed.push(...this.victim.domain.grantTable.frames.map(pageOf));
    }
    const pages = hypervisor.frames.owner.findLastIndex(owner => owner !== DOMID_INVALID) + 64;
    return unchangedBut(hypervisor.memory, pages, allowed);
  }
}

function frame({ mac }: Victim, length: number, changes: Partial<TcpFrame> = {}): Uint8Array {
  const payload = Uint8Array.from({ length }, (_, i) => (i * 13 + length) & 0xff);
  return buildFrame({ destination: mac, payload, ...changes });
}

test('of packets and answers that it takes no byte of a slot is read twice, and a second read would not matter', async () => {
  const watched = new Watched();
  const { victim, path, slots, taken } = watched;
  victim.connect();
  await path.scheduler.runReady();
  for (let round = 0; round < 20; round++) {
    const { back } = victim;
    const expected: Uint8Array[] = [];
    const deliver = (each: Uint8Array, flags = 0) => {
      back.packet(each, flags);
      expected.push(each);
    };
    slots.on = true;
    for (const length of [10, 3000, 9000]) {
      victim.dev.xmit(packetFrom(victim.dev, frame(victim, length)));
    }
    await path.scheduler.runReady();
    const ids = back.txRequests().map(({ id }) => id);
    for (const id of round % 2 === 0 ? ids : ids.reverse()) back.respondTx(id);
    deliver(frame(victim, 10 + round));
    deliver(frame(victim, 700), BLANK);
    deliver(frame(victim, 9000), NETRXF_DATA_VALIDATED);
    deliver(frame(victim, 60));
    // GSO in one slot and an extra info.
    const gso = frame(victim, 3000);
    back.fill(back.rxGref, gso);
    back.respondRx({ status: gso.length, flags: NETRXF_EXTRA_INFO | BLANK });
    back.rxExtra(gsoExtraWord0(1448), gsoExtraWord1(GSO_TCPV4));
    expected.push(gso);
    deliver(frame(victim, 60_000), NETRXF_DATA_VALIDATED);
    await victim.strike();
    assert.deepEqual(victim.broken, []);
    slots.on = false;
    const got = victim.got.splice(0).map(each => Buffer.from(each));
    assert.equal(got.length, expected.length);
    for (const [i, each] of expected.entries()) assert.ok(got[i].equals(each), `packet ${i}`);
  }
  assert.equal(victim.dev.stats.rxErrors, 0);
  assert.deepEqual(taken, { reclaim: 20 * 3, receive: 20 * 3, receiveLong: 20 * 3 });
  assert.equal(victim.dom.net.packets.used, 0);
  victim.disconnect();
  assert.equal(victim.dom.platform.grants.allocated, 0);
});

/** Does to a connection what no backend should, most of the time a little. */
class Mutant {
  constructor(
    private readonly victim: Victim,
    private readonly draw: Draw,
  ) {}

  deliver(): void {
    const { back } = this.victim;
    const { draw } = this;
    const start = back.rxNext;
    const extra = draw.oneIn(4);
    const slots = draw.of([1, 1, 1, 2, 3, 17, 18, 19, 20, 30]);
    if (back.rx.reqProd - start < slots + 1) return;
    for (let i = 0; i < slots; i++) {
      const more = i + 1 < slots ? NETRXF_MORE_DATA : 0;
      const first = i === 0 ? draw.below(4) | (extra ? NETRXF_EXTRA_INFO : 0) : 0;
      back.respondRx({
        offset: draw.oneIn(8) ? draw.u16() : draw.below(90),
        flags: more | first,
        status: draw.oneIn(8) ? draw.u16() : 1 + draw.below(4000),
      });
      if (i === 0 && extra) back.rxExtra(gsoExtraWord0(draw.u16()), gsoExtraWord1(draw.below(4)));
    }
    if (draw.oneIn(4)) this.change(back.rx.slot(start + draw.below(back.rxNext - start)));
  }

  private change(slot: number): void {
    const { i32 } = this.victim.domain.platform.memory.memory;
    const at = (slot >>> 2) + this.draw.below(2);
    i32[at] = this.draw.of([this.draw.u32(), i32[at] ^ (1 << this.draw.below(32))]);
  }

  send(): void {
    const { victim, draw } = this;
    if (victim.granted.pages.available < 40) return;
    const length = draw.of([10, 100, 3000, 9000, 40_000]);
    const pool = draw.oneIn(2) ? victim.granted.pages : undefined;
    victim.dev.xmit(packetFrom(victim.dev, frame(victim, length), draw.of([0, 128]), pool));
  }

  /** @param ids that wait for an answer */
  answer(ids: number[]): void {
    const { victim, draw } = this;
    while (ids.length > 0) {
      const [id] = ids.splice(draw.below(ids.length), 1);
      victim.back.respondTx(draw.oneIn(300) ? draw.u16() : id, draw.oneIn(50) ? draw.u16() : 0);
    }
  }

  publish(): void {
    const { victim, draw } = this;
    const { back } = victim;
    back.push();
    if (draw.oneIn(40)) back.rx.rspProd = draw.index(back.rxNext);
    if (draw.oneIn(40)) back.tx.rspProd = draw.index(back.txNext);
    if (draw.oneIn(40) && back.rx.reqProd !== back.rxNext) back.map(back.rxGref);
    back.kick();
  }
}

test('slots that change while they are read break nothing, and nothing changes that is none of the queue’s', () => {
  const watched = new Watched();
  const { victim, path, slots, taken } = watched;
  const mutant = new Mutant(victim, new Draw(155));
  victim.connect();
  let broken = 0;
  let packets = 0;
  victim.dev.rxHandler = packet => {
    packets++;
    for (let i = -1; i < packet.fragments; i++) {
      const from = i < 0 ? packet.data : packet.ref[i] * PAGE_SIZE + packet.offset[i];
      const size = i < 0 ? packet.linear : packet.size[i];
      assert.ok(size > 0 && (from % PAGE_SIZE) + size <= PAGE_SIZE);
      victim.dom.platform.memory.gfn(Math.floor(from / PAGE_SIZE));
    }
    packet.release();
  };
  watched.lookEvery = 7;
  for (let round = 0; round < 600; round++) {
    slots.on = true;
    for (let n = round % 4; n > 0; n--) mutant.send();
    path.scheduler.runForNow(1, 5000);
    mutant.answer(victim.back.txRequests().map(({ id }) => id));
    for (let n = round % 9; n > 0; n--) mutant.deliver();
    mutant.publish();
    assert.ok(path.scheduler.runForNow(10, 5000) < 5000);
    slots.on = false;
    if (victim.broken.length === 0 && round % 50 !== 49) continue;
    broken += victim.broken.length;
    victim.broken.length = 0;
    victim.disconnect();
    victim.dev.txQueues[0].reset();
    path.scheduler.runForNow(2000, 5000);
    const { net, platform, reclaimer } = victim.dom;
    assert.deepEqual([net.packets.used, net.pages.used, reclaimer.pending], [0, 0, 0]);
    assert.equal(platform.grants.allocated, 0);
    victim.connect();
    victim.dev.wakeAllQueues();
  }
  assert.ok(packets > 300, `${packets} packets`);
  assert.ok(broken > 20, `${broken} times the device was broken`);
  assert.ok(taken.receiveLong > 50 && taken.receive > 50 && taken.reclaim > 50);
  for (const name of FUNCTIONS)
    assert.ok(watched.looks[name] > 10, `${watched.looks[name]} looks at ${name}`);
});
