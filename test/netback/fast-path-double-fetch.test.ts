import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import {
  GTF_readonly,
  gsoExtraWord0,
  gsoExtraWord1,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
} from '../../src/abi/index.js';
import type { HostileFrontend } from '../../src/mock/index.js';
import { FastPathModule } from '../../src/netback/fast-path.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../../src/platform/index.js';
import type { Domain } from '../../src/platform/sim/index.js';
import { Draw } from '../fuzz/random.js';
import type { DataPath } from '../support/data-path.js';
import type { Attacker } from '../support/hostile.js';
import { RawPair } from '../support/raw-pair.js';
import { ChangingSlots, compileWatched, unchangedBut } from '../support/watched-module.js';

const BLANK = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;

let bytes: Uint8Array;

before(async () => {
  bytes = await compileWatched('src/netback/wasm/fast-path.ts');
});

/** The fast path with a peer that changes each byte of a slot right after it was read. */
class Watched {
  module!: FastPathModule;
  slots!: ChangingSlots;
  calls = 0;
  passed = 0;
  /** Sees memory before each call, and after it. */
  look: (() => () => void) | null = null;

  load(path: DataPath): FastPathModule {
    const { memory } = path.hypervisor;
    const { instantiate } = memory;
    this.slots = new ChangingSlots(memory);
    const shared = this.slots.imports;
    const watched: typeof instantiate = (_, imports) => instantiate(bytes, { ...imports, shared });
    Object.defineProperty(memory, 'instantiate', { value: watched, configurable: true });
    const module = FastPathModule.load(path.dom0.platform)!;
    Object.defineProperty(memory, 'instantiate', { value: instantiate });
    this.module = module;
    const forward = (block: number, limit: number) => this.forward(block, limit);
    return Object.create(module, { forward: { value: forward } });
  }

  private forward(block: number, limit: number): number {
    this.slots.clear();
    const compare = this.slots.on ? this.look?.() : undefined;
    const packets = this.module.forward(block, limit);
    compare?.();
    this.slots.checkOnce();
    this.calls++;
    this.passed += packets;
    return packets;
  }
}

/** A usual packet: what sends it and what gets it know each other in this poll. */
async function introduce(pair: RawPair): Promise<void> {
  pair.receiver.front.postRx(1);
  await pair.send(pair.frame(10));
  pair.receiver.front.rxPackets();
  pair.sender.front.txResponses();
}

test('XSA-155: of packets that take the fast path no byte of a slot is read twice, and a second read would not matter', async () => {
  const watched = new Watched();
  const pair = new RawPair(path => watched.load(path));
  await introduce(pair);
  assert.equal(watched.passed, 1);
  for (let round = 0; round < 10; round++) {
    const sent: Uint8Array[] = [];
    const send = (frame: Uint8Array, options: Parameters<HostileFrontend['packet']>[1] = {}) => {
      pair.sender.front.packet(frame, { id: 1000 + sent.length, ...options });
      sent.push(frame);
    };
    send(pair.frame(20 + round));
    send(pair.frame(3000), { flags: NETTXF_DATA_VALIDATED });
    send(pair.frame(700, { version: 6 }), { flags: BLANK });
    const extras = [[gsoExtraWord0(1448), gsoExtraWord1(1)]] as const;
    send(pair.frame(9000, { udp: false }), { flags: BLANK, extras, slots: [1000, 4000, 4054] });
    send(pair.frame(192 + 18 * 50 - 42), { slots: [192, ...Array(18).fill(50)] });
    send(pair.frame(30_000 - 42, { udp: false }), { flags: BLANK, extras });
    pair.receiver.front.postRx(30);
    pair.receiver.front.push();
    const { passed } = watched;
    watched.slots.on = true;
    await pair.sender.strike();
    watched.slots.on = false;
    assert.equal(watched.passed - passed, sent.length);
    const responses = pair.sender.front.txResponses();
    const got = pair.receiver.front.rxPackets();
    assert.deepEqual(
      got.map(({ bytes }) => bytes),
      sent,
    );
    assert.equal(responses.length, 3 + 4 + 19 + 9);
    assert.ok(responses.every(({ status }) => status >= 0));
    assert.deepEqual([responses[0].id, responses[1].id, responses[2].id], [1000, 1001, 1002]);
    assert.deepEqual([pair.sender.fatal, pair.receiver.fatal], [[], []]);
  }
});

/** Writes packets on a guest's ring, most of them a little wrong. */
class Mutant {
  constructor(
    private readonly guest: Attacker,
    private readonly peer: Attacker,
    private readonly pair: RawPair,
    private readonly draw: Draw,
  ) {}

  send(): void {
    const { front } = this.guest;
    if (((front.txNext - front.tx.rspProd) | 0) + 30 > 256) return;
    const { draw } = this;
    const length = draw.of([10, 100, 438, 439, 1400, 4000, 9000]);
    const frame = this.pair.frame(length, {
      source: this.guest.mac,
      destination: draw.oneIn(10) ? [2, 0, 0, 0, 0, draw.below(20)] : this.peer.mac,
      udp: draw.oneIn(2),
      version: draw.of([4, 6] as const),
    });
    const slots = [Math.min(frame.length, 192 + draw.below(3000))];
    for (let rest = frame.length - slots[0]; rest > 0; rest -= slots.at(-1)!) {
      slots.push(Math.min(rest, slots.length < 17 ? 200 + draw.below(3800) : rest));
    }
    const extras = draw.oneIn(3) ? [[gsoExtraWord0(draw.u16()), gsoExtraWord1(draw.below(4))] as const] : [];
    const start = front.packet(frame, { slots, extras, flags: draw.of([0, NETTXF_DATA_VALIDATED, BLANK]) });
    if (draw.oneIn(3)) this.mutate(front, start);
    front.txNext >>>= 0;
  }

  private mutate({ tx }: HostileFrontend, start: number): void {
    const { draw } = this;
    const at = (tx.slot(start + draw.below(3)) >>> 2) + draw.below(3);
    const old = tx.memory.u32[at];
    tx.memory.u32[at] = draw.of([
      draw.u32(),
      old ^ (1 << draw.below(32)),
      (old & 0xffff) | (draw.u16() << 16),
      (old & 0xffff0000) | draw.u16(),
    ]);
  }

  post(): void {
    const { front } = this.guest;
    const { draw } = this;
    const room = 256 - ((front.rxNext - front.rx.rspProd) | 0);
    front.postRx(Math.min(room, draw.below(30)));
    if (draw.oneIn(10)) front.rx.write(front.rxNext - 1, draw.u32(), draw.u32());
    if (draw.oneIn(40)) front.rx.reqProd = draw.u32();
    front.rxNext >>>= 0;
  }

  /** Begins anew when the vif was disabled, and from time to time: pages are granted all the time. */
  renew(): void {
    if (this.guest.fatal.length === 0 && !this.draw.oneIn(20)) return;
    assert.ok(this.guest.fatal.length <= 1);
    this.guest.fatal.length = 0;
    assert.ok(this.guest.disconnect(), 'the backend holds a page of the guest');
    this.guest.connect();
  }
}

/** Fails when a page changes that is neither of the fast path's or the hypervisor's own, nor a ring, nor granted to be written. */
function guard(pair: RawPair, { module }: Watched): () => () => void {
  const { memory, grants } = pair.path.hypervisor;
  const work = (module as unknown as { pages: number[] }).pages;
  return () => {
    const own = [pair.sender, pair.receiver].flatMap(({ vif, front, domain }) => [
      ...vif.queues.map(({ fastPath }) => fastPath!.block.address >>> PAGE_SHIFT),
      ...front.pages.filter(({ gref }) => isWritable(domain, gref)).map(({ page }) => page),
    ]);
    const allowed = new Set([...work, ...own, grants.found >>> PAGE_SHIFT]);
    const bytes = [...allowed].map(page => [page * PAGE_SIZE, (page + 1) * PAGE_SIZE] as const);
    return unchangedBut(memory, memory.pages, bytes);
  };
}

function isWritable({ grantTable, hypervisor }: Domain, gref: number): boolean {
  return (hypervisor.memory.i32[grantTable.entryWord(gref)] & GTF_readonly) === 0;
}

test('slots that change while they are read break nothing, and no page changes that is none of the guests’', async () => {
  const watched = new Watched();
  const pair = new RawPair(path => watched.load(path));
  const draw = new Draw(155);
  const { sender, receiver } = pair;
  const guests = [new Mutant(sender, receiver, pair, draw), new Mutant(receiver, sender, pair, draw)];
  const look = guard(pair, watched);
  let disabled = 0;
  for (let round = 0; round < 400; round++) {
    watched.slots.on = false;
    for (const guest of guests) guest.renew();
    if (draw.oneIn(2)) {
      // They know each other, so that packets are not left at once.
      receiver.front.postRx(1);
      await pair.send(pair.frame(10));
    }
    for (const guest of guests) {
      for (let n = draw.below(6); n > 0; n--) guest.send();
      guest.post();
    }
    watched.slots.on = true;
    watched.look = round % 12 === 0 ? look : null;
    for (const { front } of [sender, receiver]) {
      front.push();
      front.kick();
    }
    const steps = pair.path.scheduler.runForNow(1100, 5000);
    assert.ok(steps < 5000);
    disabled += sender.fatal.length + receiver.fatal.length;
    for (const line of pair.path.dom0.domain.dmesg) assert.ok(!line.includes('failed'), line);
  }
  assert.ok(watched.passed > 200, `${watched.passed} packets took the fast path`);
  assert.ok(disabled > 20, `${disabled} times a vif was disabled`);
});
