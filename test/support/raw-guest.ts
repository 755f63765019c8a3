import assert from 'node:assert/strict';
import fc from 'fast-check';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETRXF_EXTRA_INFO,
  NETRXF_MORE_DATA,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
} from '../../src/abi/index.js';
import type { GrantedPage } from '../../src/mock/index.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { extra, frameOptions, type Of, rarely, slotSizes, wordChange } from './arbitraries.js';
import type { DataPath } from './data-path.js';
import type { Attacker } from './hostile.js';

const PAGES = 160;
/** Free requests that are left on a tx ring at least: for the most that a packet has. */
const TX_ROOM = 30;
export const RING_SIZE = 256;
export const BLANK = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;

/** Changes a word of a packet's requests. */
const mutation = fc.record({
  request: fc.nat(20),
  word: fc.nat(2),
  how: wordChange,
});

/** Whatever may be on a tx ring. */
export const packet = fc.record({
  frame: frameOptions,
  to: fc.oneof(
    { weight: 12, arbitrary: fc.constant('peer' as const) },
    { weight: 1, arbitrary: fc.constantFrom('unknown', 'all', 'group', 'itself', 'bridge') },
  ),
  /** A byte of its address; 0 for its own, -1 for the peer's address. */
  from: fc.oneof(
    { weight: 12, arbitrary: fc.constant(0) },
    { weight: 2, arbitrary: fc.nat(20) },
    { weight: 1, arbitrary: fc.constant(-1) },
  ),
  sizes: slotSizes,
  offset: fc.oneof(fc.constant(0), fc.nat(200)),
  flags: fc.constantFrom(0, NETTXF_DATA_VALIDATED, BLANK),
  extras: fc.oneof(
    { weight: 6, arbitrary: fc.constant([]) },
    { weight: 3, arbitrary: fc.tuple(extra) },
    { weight: 1, arbitrary: fc.array(extra, { maxLength: 3 }) },
  ),
  mutation: rarely(40, mutation),
});
export type TxPacket = Of<typeof packet>;

/** What a sound frontend sends: its head is in the first slot, offloads are what the headers say, no slot is empty. */
export const soundPacket = packet.map((one): TxPacket => {
  const { udp, version, vlan } = one.frame;
  const sizes = one.sizes.slice(0, 17).map(size => Math.max(size, 1));
  if (sizes.length > 1) sizes[0] = Math.max(sizes[0], 192);
  const gso = one.extras.length > 0 && !udp && vlan === undefined;
  return {
    ...one,
    to: 'peer',
    from: Math.max(one.from, 0),
    sizes,
    extras: gso ? [[gsoExtraWord0(1448), gsoExtraWord1(version === 4 ? 1 : 2)]] : [],
    flags: gso ? BLANK : vlan === undefined ? one.flags : 0,
    mutation: undefined,
  };
});

/** A guest whose rings a test writes, with pages to send from and others to receive in. */
export class RawGuest {
  private sent!: GrantedPage[];
  private received!: GrantedPage[];
  private nextPage = 0;
  private nextReceived = 0;
  /** Addresses of the pages that were posted, by the slot. */
  private readonly posted = new Array<number>(RING_SIZE).fill(0);
  /** Responses that `arrived` has seen. */
  private rxSeen = 0;

  constructor(
    private readonly path: DataPath,
    readonly own: Attacker,
    readonly peer: Attacker,
  ) {
    this.grantPages();
  }

  private grantPages(): void {
    const { front } = this.own;
    this.sent = Array.from({ length: PAGES }, () => front.grantPage(true));
    this.received = Array.from({ length: RING_SIZE }, () => front.grantPage(false));
    this.rxSeen = front.rx.rspProd;
  }

  /** Both ends as new. */
  reconnect(): void {
    assert.ok(this.own.disconnect(), 'the backend holds a page of the guest');
    this.own.connect();
    this.grantPages();
  }

  private address(to: TxPacket['to']): number[] {
    switch (to) {
      case 'all':
        return Array(6).fill(0xff);
      case 'group':
        return [1, 0, 0x5e, 0, 0, 9];
      case 'unknown':
        return [2, 0, 0, 0, 0, 0x77];
      case 'itself':
        return this.own.mac;
      case 'bridge':
        return [...this.path.bridge.address];
      default:
        return this.peer.mac;
    }
  }

  private source(from: number): number[] {
    const { mac } = from < 0 ? this.peer : this.own;
    return from > 0 ? [...mac.slice(0, 4), from, mac[5]] : mac;
  }

  /** Puts the packet's bytes into pages, and its requests on the ring, as far as there is room. */
  send({ frame, to, from, sizes, offset, flags, extras, mutation }: TxPacket): void {
    const { front } = this.own;
    const unanswered = (front.txNext - front.tx.rspProd) | 0;
    if (unanswered + TX_ROOM > RING_SIZE || this.nextPage + sizes.length > PAGES) return;
    const rest = sizes.slice(1).reduce((a, b) => a + b, 0);
    const bytes = buildFrame({
      ...frame,
      tcpOptions: new Uint8Array(frame.tcpOptions),
      source: this.source(from),
      destination: this.address(to),
      payload: Uint8Array.from({ length: sizes[0] + rest }, (_, i) => (i * 7 + front.txNext) & 0xff),
    });
    const slots = [bytes.length - rest, ...sizes.slice(1)];
    const start = front.txNext;
    let at = 0;
    for (const [i, size] of slots.entries()) {
      const { gref, address } = this.sent[this.nextPage++];
      const begin = Math.max(0, Math.min(offset, PAGE_SIZE - size));
      const chunk = bytes.subarray(at, at + Math.min(size, PAGE_SIZE - begin));
      front.platform.memory.memory.u8.set(chunk, address + begin);
      at += size;
      const more = i + 1 < slots.length ? NETTXF_MORE_DATA : 0;
      const first = i === 0 ? flags | (extras.length > 0 ? NETTXF_EXTRA_INFO : 0) : 0;
      const id = (start + i) & 0xffff;
      const bytesThere = (i === 0 ? bytes.length : size) & 0xffff;
      front.request({ gref, offset: begin, flags: more | first, id, size: bytesThere });
      if (i > 0) continue;
      for (const [k, [word0, word1]] of extras.entries()) {
        front.extra(word0 | (k + 1 < extras.length ? XEN_NETIF_EXTRA_FLAG_MORE << 8 : 0), word1);
      }
    }
    if (mutation !== undefined) this.mutate(start, front.txNext - start, mutation);
    front.txNext >>>= 0;
  }

  private mutate(
    start: number,
    requests: number,
    { request, word, how }: NonNullable<TxPacket['mutation']>,
  ): void {
    const { tx } = this.own.front;
    const at = (tx.slot(start + (request % requests)) >>> 2) + word;
    tx.memory.i32[at] = how(tx.memory.i32[at]);
  }

  post(count: number): void {
    const { front } = this.own;
    for (let i = 0; i < count && ((front.rxNext - front.rx.rspProd) | 0) < RING_SIZE; i++) {
      const { gref, address } = this.received[this.nextReceived++ % RING_SIZE];
      this.posted[front.rxNext % RING_SIZE] = address;
      front.rxRequest(front.rxNext & 0xffff, gref);
      front.rxNext >>>= 0;
    }
  }

  nameOther(back: number, gref: number): void {
    const { rx, rxNext } = this.own.front;
    rx.memory.u32[(rx.slot(rxNext - 1 - back) >>> 2) + 1] = gref;
  }

  regrant(n: number, again: boolean): void {
    const { grants } = this.own.front.platform;
    for (const { gref, page } of [this.sent[n], this.received[n]]) {
      grants.end(gref);
      if (again) grants.grant(gref, 0, page, true);
    }
  }

  moveIndex(tx: boolean, by: number): void {
    const { front } = this.own;
    const ring = tx ? front.tx : front.rx;
    ring.reqProd = (ring.reqProd + by) >>> 0;
  }

  publish(): void {
    this.own.front.push();
    this.nextPage = 0;
  }

  kick(): void {
    this.own.front.kick();
  }

  /** Frames that came since the last call, which is to be before anything else is posted. */
  arrived(): Buffer[] {
    const { rx } = this.own.front;
    const { u8 } = rx.memory;
    const frames: Buffer[] = [];
    let parts: Uint8Array[] = [];
    for (; ((rx.rspProd - this.rxSeen) | 0) > 0; this.rxSeen = (this.rxSeen + 1) >>> 0) {
      const begin = this.posted[this.rxSeen % RING_SIZE] + (rx.word(this.rxSeen, 0) >>> 16);
      const word1 = rx.word(this.rxSeen, 1);
      parts.push(u8.subarray(begin, begin + (word1 >>> 16)));
      if (parts.length === 1 && (word1 & NETRXF_EXTRA_INFO) !== 0) this.rxSeen = (this.rxSeen + 1) >>> 0;
      if ((word1 & NETRXF_MORE_DATA) !== 0) continue;
      frames.push(Buffer.concat(parts));
      parts = [];
    }
    return frames;
  }

  /** The rings, and all that it received. */
  memory(): Buffer {
    const { front } = this.own;
    const { u8 } = front.platform.memory.memory;
    const pages = this.received.map(({ address }) => u8.subarray(address, address + PAGE_SIZE));
    return Buffer.concat([front.tx.bytes(), front.rx.bytes(), ...pages]);
  }
}

/** What is known of guests' vifs, and of the bridge that they are on. */
export function books(path: DataPath, guests: readonly Attacker[]): unknown {
  return {
    guests: guests.map(({ vif }) => ({
      stats: [vif.dev.stats, vif.stats, ...vif.queues.map(({ stats }) => stats)].map(stats => ({ ...stats })),
      held: vif.queues.map(({ inFlight, waitingPages }) => [inFlight, waitingPages]),
      up: vif.dev.carrierOk,
    })),
    addresses: path.bridge
      .forwardingTable()
      .map(({ address, device }) => `${device.name} ${address}`)
      .sort(),
    dmesg: [...path.dom0.domain.dmesg],
  };
}

/** It goes into one page, and is as sound as its grants are. */
export function isSmall({ frame, sizes, extras, mutation }: TxPacket): boolean {
  const bytes = sizes.reduce((a, b) => a + b, 0);
  return extras.length === 0 && mutation === undefined && bytes + frame.tcpOptions + 80 <= PAGE_SIZE;
}
