import { NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE, RING_SIZES } from '../abi/netif.js';
import { FrontRing, initSharedRing } from '../abi/ring.js';
import type { Irqs } from '../events/index.js';
import type { PeerOffloads } from '../kernel/peer-offloads.js';
import type { NetDevice } from '../net/device.js';
import type { Napi } from '../net/napi.js';
import type { Net } from '../net/net.js';
import type { Packet } from '../net/packet.js';
import type { XdpFrames } from '../net/xdp.js';
import type { GrantReclaimer } from '../platform/grant-reclaimer.js';
import { PAGE_SHIFT } from '../platform/memory.js';
import type { Platform } from '../platform/platform.js';
import { type Rings, SecondLook } from '../platform/second-look.js';
import type { GrantedPool } from './granted-pool.js';
import { RingCode, SlotBooks } from './ring-code.js';
import { RxRing } from './rx-ring.js';
import { TxRing } from './tx-ring.js';

/** What the device tells a queue and hears from it. */
export interface QueueDevice {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly dev: NetDevice;
  readonly reclaimer: GrantReclaimer;
  readonly backendId: number;
  /** Whether the backend may see more of a granted page than the packet in it. */
  readonly trusted: boolean;
  /** Whether GSO packets come with a prefix. */
  readonly gsoPrefix?: boolean;
  /** The offloads that are taken from the backend; all when absent or null. */
  readonly taken?: PeerOffloads | null;
  /** Called once, when the backend broke the protocol: the device is unusable until it reconnects. */
  broken(reason: string): void;
}

/** What goes into xenstore for the backend. */
export interface QueuePublication {
  readonly txRef: number;
  readonly rxRef: number;
  readonly txPort: number;
  /** The same as `txPort` without split event channels. */
  readonly rxPort: number;
}

/** Grants that a queue needs: of the pages of its two rings, and of one for each request on them. */
export const GRANTS_PER_QUEUE = 2 + RING_SIZES.rx + RING_SIZES.tx;

/** Counters under the names that ethtool shows. */
export class QueueStats {
  rxGsoChecksumFixup = 0;
  /** Packets copied because their data was not in pages that the backend may read. */
  txBounced = 0;
  /** Frames that an XDP program dropped, sent back, and sent elsewhere; and those that it threw or said nothing sound about. */
  xdpDrops = 0;
  xdpTx = 0;
  xdpRedirects = 0;
  xdpAborted = 0;
  /** Frames sent by `xdpXmit`. */
  xdpXmit = 0;
}

/**
 * One queue of a frontend: its two rings, their pages, grants and event channels. Lives from the backend's
 * InitWait to the next disconnect.
 */
export class Queue implements Rings {
  readonly stats = new QueueStats();
  readonly publication: QueuePublication;
  private readonly tx: TxRing;
  private readonly rx: RxRing;
  private readonly txIrq: number;
  private readonly rxIrq: number;
  private readonly txPage: number;
  private readonly rxPage: number;
  private readonly napi: Napi;
  /** The loops over slots in WebAssembly; null where the rings lie elsewhere. */
  private readonly code: RingCode | null;
  /** For a backend whose barriers are none to us. */
  private readonly second: SecondLook | null;
  /** The polls since the last end of interrupt found something to do. */
  private worked = false;
  private stopped = false;
  /** Packets are being handed on or released, which may end in `destroy`. */
  private polling = false;
  private destroyed = false;

  /** @throws HypercallError, GrantError ENOSPC or ENOMEM; nothing stays behind then */
  constructor(
    private readonly device: QueueDevice,
    readonly index: number,
    split: boolean,
    granted: GrantedPool,
  ) {
    const { platform, dev, irqs, backendId } = device;
    this.second = SecondLook.make(platform, backendId, this);
    const undo: (() => void)[] = [];
    try {
      const ringPage = (): [page: number, gref: number] => {
        const page = platform.memory.allocPage();
        undo.push(() => platform.memory.freePage(page));
        initSharedRing(platform.memory.memory, page << PAGE_SHIFT);
        const gref = platform.grants.grantAccess(backendId, page, false);
        undo.push(() => platform.grants.endAccess(gref));
        return [page, gref];
      };
      const [txPage, txRef] = ringPage();
      const [rxPage, rxRef] = ringPage();
      this.txPage = txPage;
      this.rxPage = rxPage;
      const { memory } = platform.memory;
      const txRing = new FrontRing(memory, txPage << PAGE_SHIFT, NETIF_TX_SLOT_SIZE);
      const rxRing = new FrontRing(memory, rxPage << PAGE_SHIFT, NETIF_RX_SLOT_SIZE);
      const code = RingCode.make(platform, backendId, txRing, rxRing);
      undo.push(() => code?.destroy());
      this.code = code;
      const books = code?.books ?? new SlotBooks();
      for (let i = 0; i < rxRing.size && platform.grants.regrantable; i++) {
        const gref = platform.grants.alloc();
        undo.push(() => platform.grants.free(gref));
        books.grefs[i] = gref;
      }
      this.napi = dev.napiAdd(budget => this.poll(budget));
      undo.push(() => dev.napiDel(this.napi));
      const bind = (suffix: string) => {
        const name = `${dev.name}${suffix}`;
        const bound = irqs.bindListeningPortToIrqhandlerLateeoi(backendId, () => this.napi.schedule(), name);
        undo.push(() => irqs.unbindFromIrqhandler(bound.irq));
        return bound;
      };
      const txChannel = bind(split ? `-q${index}-tx` : `-q${index}`);
      const rxChannel = split ? bind(`-q${index}-rx`) : txChannel;
      this.txIrq = txChannel.irq;
      this.rxIrq = rxChannel.irq;
      this.publication = { txRef, rxRef, txPort: txChannel.port, rxPort: rxChannel.port };
      const { stats, napi, txIrq, rxIrq } = this;
      const notify = (irq: number) => (wanted: boolean) => this.notify(irq, wanted);
      const onBroken = (reason: string) => this.broken(reason);
      const queue = dev.txQueues[index];
      this.tx = new TxRing(device, txRing, queue, granted, books, code, stats, notify(txIrq), onBroken);
      this.rx = new RxRing(device, rxRing, napi, books, code, stats, notify(rxIrq), onBroken);
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
  }

  /** Posts the first rx requests and lets packets through: the backend is to be told of this state next. */
  start(): void {
    this.tx.start();
    this.napi.enable();
    this.rx.refill();
    this.napi.schedule();
  }

  /**
   * Stops for good and gives everything back: pages that the backend still has mapped as soon as it does
   * not, pages in packets on their way up as soon as those are released.
   */
  destroy(): void {
    this.stop();
    const { dev, irqs, reclaimer } = this.device;
    this.napi.disable();
    dev.napiDel(this.napi);
    irqs.unbindFromIrqhandler(this.txIrq);
    if (this.rxIrq !== this.txIrq) irqs.unbindFromIrqhandler(this.rxIrq);
    this.tx.destroy();
    this.rx.destroy();
    if (!this.polling) this.code?.destroy();
    this.destroyed = true;
    reclaimer.end(this.publication.txRef, this.txPage);
    reclaimer.end(this.publication.rxRef, this.rxPage);
  }

  /** The backend broke the protocol, on this queue or another: nothing more is read or written. */
  stop(): void {
    this.stopped = true;
    this.second?.stop();
    this.tx.stop();
    this.rx.stop();
  }

  private broken(reason: string): void {
    if (this.stopped) return;
    this.stop();
    this.device.broken(reason);
  }

  private poll(budget: number): number {
    if (this.stopped) {
      this.napi.complete(0);
      return 0;
    }
    this.polling = true;
    try {
      return this.pollRings(budget);
    } finally {
      this.polling = false;
      if (this.destroyed) this.code?.destroy();
    }
  }

  private pollRings(budget: number): number {
    const { tx, rx } = this;
    const answered = tx.reclaim();
    const work = this.stopped ? 0 : rx.receive(budget);
    if (answered + work > 0) this.worked = true;
    rx.refill();
    if (this.stopped || (work >= budget && rx.ring.hasResponses)) return work;
    // A whole budget that emptied the ring is no reason to poll again.
    const done = Math.min(work, budget - 1);
    if (!this.napi.complete(done)) return done;
    if (rx.ring.finalCheckForResponses() || tx.askForEvent()) this.napi.schedule();
    else {
      if (this.worked) this.second?.arm();
      this.endOfInterrupt();
    }
    return done;
  }

  /** Looks at both rings, and has the backend look, as if each side had sent an event. */
  poke(): void {
    if (this.stopped) return;
    this.napi.schedule();
    const { irqs } = this.device;
    irqs.notifyRemoteViaIrq(this.txIrq);
    if (this.rxIrq !== this.txIrq) irqs.notifyRemoteViaIrq(this.rxIrq);
  }

  /** Requests of both rings, modulo 2^32. */
  get published(): number {
    return (this.tx.ring.reqProdPvt + this.rx.ring.reqProdPvt) | 0;
  }

  look(): void {
    this.napi.schedule();
  }

  tell(): void {
    const { irqs } = this.device;
    if (this.tx.ring.eventIsDue) irqs.notifyRemoteViaIrq(this.txIrq);
    if (this.rx.ring.eventIsDue) irqs.notifyRemoteViaIrq(this.rxIrq);
  }

  /** @param wanted what was published is what the backend asked to be told of */
  private notify(irq: number, wanted: boolean): void {
    if (wanted) this.device.irqs.notifyRemoteViaIrq(irq);
    else this.second?.arm();
  }

  private endOfInterrupt(): void {
    const { irqs } = this.device;
    const spurious = !this.worked;
    this.worked = false;
    irqs.lateEoi(this.txIrq, spurious);
    if (this.rxIrq !== this.txIrq) irqs.lateEoi(this.rxIrq, spurious);
  }

  /** ndo_start_xmit: writes the requests; `flush` publishes them. */
  startXmit(packet: Packet): number {
    return this.tx.startXmit(packet);
  }

  /** ndo_xdp_xmit @returns how many frames were sent, from the first on */
  xdpXmit(frames: XdpFrames): number {
    return this.tx.xdpXmit(frames);
  }

  /** Publishes what `startXmit` wrote. */
  flush(): void {
    this.tx.flush();
  }

  /** Pages to receive into, for the backend to map: `RxRing.offerPages`. */
  offerRxPages(): readonly number[] {
    return this.rx.offerPages();
  }

  /** Whether the backend has mapped what was offered. */
  rxPagesMapped(mapped: boolean): void {
    this.rx.pagesMapped(mapped);
  }

  /** Pages that are posted at most. */
  get rxPages(): number {
    return this.rx.ring.size;
  }

  /**
   * Asks the backend to pass on what is sent to a group, or no longer to.
   * @returns false when there is no room on the ring, or no memory
   */
  requestMulticast(address: Uint8Array, add: boolean): boolean {
    return this.tx.requestMulticast(address, add);
  }
}
