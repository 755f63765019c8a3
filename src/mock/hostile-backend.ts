import {
  NETIF_CTRL_SLOT_SIZE,
  NETIF_RX_SLOT_SIZE,
  NETIF_TX_SLOT_SIZE,
  NETRXF_MORE_DATA,
} from '../abi/netif.js';
import { PAGE_SIZE } from '../platform/memory.js';
import type { GrantMapping, Platform } from '../platform/platform.js';
import type { Publication } from './hostile-frontend.js';
import { RawRing } from './raw-ring.js';

/** A tx request as the backend finds it. */
export interface TxRequestSeen {
  readonly gref: number;
  readonly offset: number;
  readonly flags: number;
  readonly id: number;
  readonly size: number;
}

/** Fields of an rx response (netif_rx_response); what is left out is 0. */
export interface RxResponseFields {
  id?: number;
  offset?: number;
  flags?: number;
  /** Bytes, or a negative NETIF_RSP status. */
  status?: number;
}

/**
 * A backend that keeps to no rules, for whatever a frontend published: it maps the rings, binds the ports,
 * and can read and write anything on them. Nothing is published and nobody is notified unless told so.
 */
export class HostileBackend {
  readonly tx: RawRing;
  readonly rx: RawRing;
  /** Null until `attachControl`. */
  ctrl: RawRing | null = null;
  /** Indexes that the next response goes to. */
  txNext = 0;
  rxNext = 0;
  ctrlNext = 0;
  /** Its ends of the event channels: the tx ring's, and the rx ring's where that has one of its own. */
  readonly ports: number[];
  private txSeen = 0;
  private readonly mappings: GrantMapping[] = [];
  private ctrlPort = 0;

  /** @throws GrantError, HypercallError when the publication is not sound */
  constructor(
    readonly platform: Platform,
    readonly frontendId: number,
    readonly publication: Publication,
  ) {
    const { txRef, rxRef, txPort, rxPort } = publication;
    const tx = this.map(txRef);
    const rx = this.map(rxRef);
    this.tx = new RawRing(tx.memory, tx.address, NETIF_TX_SLOT_SIZE);
    this.rx = new RawRing(rx.memory, rx.address, NETIF_RX_SLOT_SIZE);
    const remote = txPort === rxPort ? [txPort] : [txPort, rxPort];
    this.ports = remote.map(port => platform.events.bindInterdomain(frontendId, port));
  }

  /** Maps a page of the frontend; it stays mapped until `unmap` or `destroy`. @throws GrantError */
  map(gref: number, readonly = false): GrantMapping {
    const mapping = this.platform.grants.map(this.frontendId, gref, readonly);
    this.mappings.push(mapping);
    return mapping;
  }

  unmap(mapping: GrantMapping): void {
    this.mappings.splice(this.mappings.indexOf(mapping), 1);
    this.platform.grants.unmap(mapping);
  }

  /** Tx requests that the frontend published since the last call; at most a ring full. */
  txRequests(): TxRequestSeen[] {
    const seen: TxRequestSeen[] = [];
    const until = this.tx.reqProd;
    for (; this.txSeen !== until && seen.length < this.tx.size; this.txSeen = (this.txSeen + 1) >>> 0) {
      const [gref, word1, word2] = [0, 1, 2].map(n => this.tx.word(this.txSeen, n));
      seen.push({
        gref,
        offset: word1 & 0xffff,
        flags: word1 >>> 16,
        id: word2 & 0xffff,
        size: word2 >>> 16,
      });
    }
    return seen;
  }

  /** Writes a tx response at the next index. */
  respondTx(id: number, status = 0): void {
    this.tx.write(this.txNext++, (id & 0xffff) | (status << 16));
  }

  /** The grant reference in the rx request that the next rx response answers. */
  get rxGref(): number {
    return this.rx.word(this.rxNext, 1);
  }

  /** Writes an rx response at the next index. */
  respondRx({ id = this.rxNext, offset = 0, flags = 0, status = 0 }: RxResponseFields): void {
    this.rx.write(this.rxNext++, (id & 0xffff) | (offset << 16), (flags & 0xffff) | (status << 16));
  }

  /** Writes an extra info at the next rx index. */
  rxExtra(word0: number, word1 = 0): void {
    this.rx.write(this.rxNext++, word0, word1);
  }

  /** Fills the pages of the next rx requests with bytes, and answers them as one sound packet. */
  packet(bytes: Uint8Array, flags = 0): void {
    for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
      const part = bytes.subarray(at, at + PAGE_SIZE);
      this.fill(this.rxGref, part);
      const more = at + PAGE_SIZE < bytes.length ? NETRXF_MORE_DATA : 0;
      this.respondRx({ flags: (at === 0 ? flags : 0) | more, status: part.length });
    }
  }

  /**
   * Writes bytes into a page that the frontend granted, and lets go of it.
   * @throws GrantError; RangeError for what no page holds
   */
  fill(gref: number, bytes: Uint8Array, offset = 0): void {
    if (offset + bytes.length > PAGE_SIZE)
      throw new RangeError(`${bytes.length} bytes at ${offset} of a page`);
    const mapping = this.map(gref);
    mapping.memory.u8.set(bytes, mapping.address + offset);
    this.unmap(mapping);
  }

  /**
   * Maps the frontend's control ring and binds its port (ctrl-ring-ref, event-channel-ctrl).
   * @throws GrantError, HypercallError
   */
  attachControl(ringRef: number, port: number): void {
    const { memory, address } = this.map(ringRef);
    this.ctrl = new RawRing(memory, address, NETIF_CTRL_SLOT_SIZE);
    this.ctrlPort = this.platform.events.bindInterdomain(this.frontendId, port);
  }

  /** Writes a response (xen_netif_ctrl_response) at the next index of the control ring. */
  respondCtrl(id: number, type: number, status = 0, data = 0): void {
    this.ctrl?.write(this.ctrlNext++, (id & 0xffff) | (type << 16), status, data);
  }

  /** Publishes what was written on all rings. */
  push(): void {
    this.tx.rspProd = this.txNext;
    this.rx.rspProd = this.rxNext;
    if (this.ctrl !== null) this.ctrl.rspProd = this.ctrlNext;
  }

  /** Sends an event on each port. */
  kick(): void {
    for (const port of this.ports) this.platform.events.notify(port);
  }

  kickTx(): void {
    this.platform.events.notify(this.ports[0]);
  }

  /** The same as `kickTx` without split event channels. */
  kickRx(): void {
    this.platform.events.notify(this.ports[this.ports.length - 1]);
  }

  kickCtrl(): void {
    this.platform.events.notify(this.ctrlPort);
  }

  /** Unmaps every page and closes the ports. */
  destroy(): void {
    if (this.ctrlPort !== 0) this.platform.events.close(this.ctrlPort);
    this.ctrlPort = 0;
    for (const port of this.ports.splice(0)) this.platform.events.close(port);
    for (const mapping of this.mappings.splice(0)) this.platform.grants.unmap(mapping);
  }
}
