import {
  NETIF_CTRL_SLOT_SIZE,
  NETIF_RX_SLOT_SIZE,
  NETIF_TX_SLOT_SIZE,
  NETRXF_EXTRA_INFO,
  NETRXF_GSO_PREFIX,
  NETRXF_MORE_DATA,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
} from '../abi/netif.js';
import { initSharedRing } from '../abi/ring.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { Platform } from '../platform/platform.js';
import { RawRing } from './raw-ring.js';

/** A page that was granted to the peer. */
export interface GrantedPage {
  readonly page: number;
  readonly gref: number;
  /** Byte address in the domain's memory. */
  readonly address: number;
}

/** Fields of a tx request (netif_tx_request); what is left out is 0. */
export interface TxRequestFields {
  gref?: number;
  offset?: number;
  flags?: number;
  id?: number;
  size?: number;
}

export interface TxPacketOptions {
  /** Bytes in each data slot; they may add up to less or more than the packet has. By default a page each. */
  slots?: readonly number[];
  /** NETTXF flags of the first request, besides more_data and extra_info. */
  flags?: number;
  /** The two words of each extra info; MORE flags are set on all but the last. */
  extras?: readonly (readonly [number, number])[];
  /** What the first request claims as the packet's size. */
  size?: number;
  /** Id of the first data slot; the others count up. */
  id?: number;
}

/** A packet that the backend put on the rx ring. */
export interface RxPacketSeen {
  readonly bytes: Uint8Array;
  /** NETRXF flags of the first response that has data. */
  readonly flags: number;
  /** The first two words of the prefix before it (NETRXF_gso_prefix); null without one. */
  readonly prefix: readonly [number, number] | null;
  /** The two words of each extra info. */
  readonly extras: readonly (readonly [number, number])[];
}

/** What goes into xenstore, or straight to a backend's `connect`. */
export interface Publication {
  readonly txRef: number;
  readonly rxRef: number;
  readonly txPort: number;
  readonly rxPort: number;
}

/**
 * A frontend that keeps to no rules: a domain's own ring pages, grants and ports, with builders for sound
 * requests and raw access to everything. Nothing is published and nobody is notified unless told so.
 *
 * It drives no device and handles no event: a test writes, pushes, lets the host run, and looks.
 *
 * ```ts
 * const front = new HostileFrontend(platform, 0);
 * const disconnect = connect(front.publication); // the backend maps the rings and binds the ports
 * front.packet(frame, { slots: [14, 0, frame.length - 14] }); // a sound packet in three slots,
 * front.tx.write(1, 0xffffffff); // of which the empty one names a grant that there is not
 * front.push();
 * front.kick();
 * await run(); // the host does its work
 * front.txResponses(); // → [{ id: 0, status: 0 }, { id: 1, status: 0 }, { id: 2, status: 0 }]
 * disconnect(); // nothing of ours is left mapped:
 * front.destroy(); // → true
 * ```
 */
export class HostileFrontend {
  readonly tx: RawRing;
  readonly rx: RawRing;
  /** The control ring, which a backend need not connect to. */
  readonly ctrl: RawRing;
  readonly publication: Publication;
  readonly ctrlRef: number;
  readonly ctrlPort: number;
  /** Indexes that the next request goes to. */
  txNext = 0;
  rxNext = 0;
  /** Every page granted, the ring pages first. */
  readonly pages: GrantedPage[] = [];
  private txSeen = 0;
  private rxSeen = 0;
  /** By slot of the rx ring: the page posted there by `postRx`. */
  private readonly posted: (GrantedPage | undefined)[] = [];

  /** @param options.split two event channels (the default) or one for both rings */
  constructor(
    readonly platform: Platform,
    readonly backendId: number,
    options: { split?: boolean } = {},
  ) {
    const { memory } = platform.memory;
    const ring = (slotSize: number) => {
      const { address } = this.grantPage(false);
      initSharedRing(memory, address);
      return new RawRing(memory, address, slotSize);
    };
    this.tx = ring(NETIF_TX_SLOT_SIZE);
    this.rx = ring(NETIF_RX_SLOT_SIZE);
    this.ctrl = ring(NETIF_CTRL_SLOT_SIZE);
    this.ctrlRef = this.pages[2].gref;
    this.ctrlPort = platform.events.allocUnbound(backendId);
    const txPort = platform.events.allocUnbound(backendId);
    const rxPort = (options.split ?? true) ? platform.events.allocUnbound(backendId) : txPort;
    this.publication = { txRef: this.pages[0].gref, rxRef: this.pages[1].gref, txPort, rxPort };
  }

  /** Grants a zeroed page to the backend. */
  grantPage(readonly = true): GrantedPage {
    const page = this.platform.memory.allocPage();
    const gref = this.platform.grants.grantAccess(this.backendId, page, readonly);
    const granted = { page, gref, address: page << PAGE_SHIFT };
    this.pages.push(granted);
    return granted;
  }

  /** Writes a tx request at the next index. @returns the index */
  request({ gref = 0, offset = 0, flags = 0, id = 0, size = 0 }: TxRequestFields): number {
    this.tx.write(this.txNext, gref, offset | (flags << 16), id | (size << 16));
    return this.txNext++;
  }

  /** Writes an extra info at the next tx index. @returns the index */
  extra(word0: number, word1 = 0): number {
    this.tx.write(this.txNext, word0, word1);
    return this.txNext++;
  }

  /** Puts bytes into granted pages, and the requests for them on the tx ring. @returns the first index */
  packet(bytes: Uint8Array, options: TxPacketOptions = {}): number {
    const slots = options.slots ?? pageSizes(bytes.length);
    const extras = options.extras ?? [];
    const id = options.id ?? 0;
    const start = this.txNext;
    let at = 0;
    for (let i = 0; i < slots.length; i++) {
      const { gref, address } = this.grantPage();
      this.platform.memory.memory.u8.set(bytes.subarray(at, at + slots[i]), address);
      at += slots[i];
      let flags = i + 1 < slots.length ? NETTXF_MORE_DATA : 0;
      if (i === 0) flags |= (options.flags ?? 0) | (extras.length > 0 ? NETTXF_EXTRA_INFO : 0);
      const size = i === 0 ? (options.size ?? bytes.length) : slots[i];
      this.request({ gref, flags, id: (id + i) & 0xffff, size: size & 0xffff });
      if (i > 0) continue;
      for (let k = 0; k < extras.length; k++) {
        const more = k + 1 < extras.length ? XEN_NETIF_EXTRA_FLAG_MORE << 8 : 0;
        this.extra(extras[k][0] | more, extras[k][1]);
      }
    }
    return start;
  }

  /** Writes an rx request at the next index. @returns the index */
  rxRequest(id: number, gref: number): number {
    this.rx.write(this.rxNext, id, gref);
    return this.rxNext++;
  }

  /** Posts sound rx requests for `count` packets' pages; a slot's page is granted anew each time. */
  postRx(count: number): void {
    for (let i = 0; i < count; i++) {
      const slot = this.rxNext & (this.rx.size - 1);
      const granted = this.posted[slot] ?? this.grantPage(false);
      this.posted[slot] = granted;
      this.rxRequest(slot, granted.gref);
    }
  }

  /** Publishes what was written on both rings. */
  push(): void {
    this.tx.reqProd = this.txNext;
    this.rx.reqProd = this.rxNext;
  }

  /** Sends an event on each port. */
  kick(): void {
    this.kickTx();
    if (this.publication.rxPort !== this.publication.txPort) this.kickRx();
  }

  kickTx(): void {
    this.platform.events.notify(this.publication.txPort);
  }

  kickRx(): void {
    this.platform.events.notify(this.publication.rxPort);
  }

  kickCtrl(): void {
    this.platform.events.notify(this.ctrlPort);
  }

  /** Makes the rings as new, for another connection of the backend; what was granted stays so. */
  reset(): void {
    for (const ring of [this.tx, this.rx, this.ctrl]) initSharedRing(ring.memory, ring.address);
    this.txNext = 0;
    this.rxNext = 0;
    this.txSeen = 0;
    this.rxSeen = 0;
  }

  /** Tx responses that the backend published since the last call; at most a ring full. */
  txResponses(): { id: number; status: number }[] {
    const seen: { id: number; status: number }[] = [];
    const until = this.tx.rspProd;
    for (; this.txSeen !== until && seen.length < this.tx.size; this.txSeen = (this.txSeen + 1) >>> 0) {
      const word = this.tx.word(this.txSeen, 0);
      seen.push({ id: word & 0xffff, status: word >> 16 });
    }
    return seen;
  }

  /** Rx responses since the last call as packets, with the bytes of the pages that `postRx` posted. */
  rxPackets(): RxPacketSeen[] {
    const seen: RxPacketSeen[] = [];
    const until = this.rx.rspProd;
    while (this.rxSeen !== until && seen.length < this.rx.size) {
      let bytes: number[] = [];
      const extras: (readonly [number, number])[] = [];
      let prefix: RxPacketSeen['prefix'] = null;
      let first = -1;
      let more = true;
      while (more && this.rxSeen !== until) {
        const index = this.rxSeen;
        const word1 = this.rx.word(index, 1);
        const flags = word1 & 0xffff;
        this.rxSeen = (this.rxSeen + 1) >>> 0;
        more = (flags & NETRXF_MORE_DATA) !== 0;
        if (first < 0 && prefix === null && (flags & NETRXF_GSO_PREFIX) !== 0) {
          prefix = [this.rx.word(index, 0), word1];
          continue;
        }
        bytes = bytes.concat(this.rxBytes(index, this.rx.word(index, 0) >>> 16, word1 >> 16));
        if (first >= 0) continue;
        first = flags;
        let extra = (flags & NETRXF_EXTRA_INFO) !== 0;
        while (extra && this.rxSeen !== until) {
          const word0 = this.rx.word(this.rxSeen, 0);
          extras.push([word0, this.rx.word(this.rxSeen, 1)]);
          extra = ((word0 >>> 8) & XEN_NETIF_EXTRA_FLAG_MORE) !== 0;
          this.rxSeen = (this.rxSeen + 1) >>> 0;
        }
      }
      seen.push({ bytes: Uint8Array.from(bytes), flags: first, prefix, extras });
    }
    return seen;
  }

  private rxBytes(index: number, offset: number, status: number): number[] {
    const page = this.posted[index & (this.rx.size - 1)];
    if (page === undefined || status <= 0) return [];
    const from = page.address + offset;
    return [...this.platform.memory.memory.u8.subarray(from, from + status)];
  }

  /**
   * Ends every grant and closes the ports.
   * @returns false when the backend still has a page mapped: that page stays granted
   */
  destroy(): boolean {
    const { platform, publication } = this;
    for (const port of new Set([publication.txPort, publication.rxPort, this.ctrlPort])) {
      platform.events.close(port);
    }
    let all = true;
    for (const { gref, page } of this.pages.splice(0)) {
      if (platform.grants.endAccess(gref)) platform.memory.freePage(page);
      else all = false;
    }
    return all;
  }
}

function pageSizes(length: number): number[] {
  const sizes: number[] = [];
  for (let left = length; left > 0 || sizes.length === 0; left -= PAGE_SIZE) {
    sizes.push(Math.min(left, PAGE_SIZE));
  }
  return sizes;
}
