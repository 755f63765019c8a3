import type { ExtraInfos } from '../abi/netif.js';
import type { BackRing } from '../abi/ring.js';
import type { Irqs } from '../events/index.js';
import type { PeerOffloads } from '../kernel/peer-offloads.js';
import type { NetDevice } from '../net/device.js';
import { NetError } from '../net/error.js';
import type { Napi } from '../net/napi.js';
import type { Net } from '../net/net.js';
import type { Packet } from '../net/packet.js';
import type { GrantMapping, Platform } from '../platform/platform.js';
import { Task } from '../platform/scheduler.js';
import { type Rings, SecondLook } from '../platform/second-look.js';
import type { CreditLimiter } from './credit.js';
import { dumpRing } from './dump-ring.js';
import { type Block, FastPath, type FastPathModule, type FastPathQueue } from './fast-path.js';
import { RxRing } from './rx-ring.js';
import { StaticGrants } from './static-grants.js';
import { TxRing } from './tx-ring.js';

/** Where a queue's rings and event channels are. */
export interface QueueConnection {
  readonly domid: number;
  readonly txRing: GrantMapping;
  readonly rxRing: GrantMapping;
  readonly txPort: number;
  readonly rxPort: number;
}

/** What the vif tells a queue and hears from it. */
export interface QueueVif {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly dev: NetDevice;
  /** The frontend tells when it has posted the rx requests that it was asked for. */
  readonly rxNotify: boolean;
  /** GSO types, a bit each, whose packets go to the guest with a prefix instead of an extra info. */
  readonly gsoPrefix: number;
  /** What the guest may send, on all queues; null without a bound. */
  readonly credit: CreditLimiter | null;
  /** The offloads that are taken from the guest; null for all. */
  readonly taken: PeerOffloads | null;
  /** Bytes to leave before the data of each rx page. */
  readonly xdpHeadroom: number;
  /** Pages held by packets that wait for the guest, on all its queues. */
  readonly waitingPages: number;
  /** The code of the fast path, where there can be one. */
  readonly fastPathModule: FastPathModule | null;
  /** What the guest sends goes on as it is; what goes to it does. */
  readonly sendsPlainly: boolean;
  readonly receivesPlainly: boolean;
  /** See `FastPathQueue`. */
  targetOf(device: NetDevice): FastPath | null;
  /** The guest has not posted the rx requests that it needs for too long, or does so again. */
  rxStalled(stalled: boolean): void;
  /** Takes a packet that the guest sent, in a poll of `napi`; the reference too. */
  receive(packet: Packet, napi: Napi): void;
  /** Handles a request to change the multicast filter. @returns false when it cannot be met */
  changeMulticast(infos: ExtraInfos): boolean;
  /** Called once, when the frontend broke the protocol. */
  fatal(reason: string): void;
}

/** Counters under the names that ethtool shows. */
export class QueueStats {
  rxGsoChecksumFixup = 0;
  /** Packets with more fragments than Linux's have. */
  txFragOverflow = 0;
  /** Packets whose data stayed in the guest's pages at first; until it was where it went to, or had to be copied home. */
  txZerocopySent = 0;
  txZerocopySuccess = 0;
  txZerocopyFail = 0;
  txErrors = 0;
  rxQueueDrops = 0;
  /** Packets that waited for rx requests for too long. */
  rxExpired = 0;
  /** How often the guest stalled. */
  rxStalls = 0;
  rxCopyErrors = 0;
}

/**
 * One queue of a vif: a tx ring that the guest sends on and an rx ring that it receives on (tx and rx are
 * seen from the frontend). Lives from connect to disconnect.
 */
export class Queue implements FastPathQueue, Rings {
  readonly stats = new QueueStats();
  /** Grants that the frontend asked to keep mapped. */
  readonly staticGrants: StaticGrants;
  private readonly tx: TxRing;
  private readonly rx: RxRing;
  private readonly txIrq: number;
  /** The same as `txIrq` without split event channels. */
  private readonly rxIrq: number;
  private readonly napi: Napi;
  private readonly pushTask: Task;
  private readonly block: Block | null;
  readonly fastPath: FastPath | null;
  /** The polls since the last end of interrupt found something to do. */
  private worked = false;
  private rxEventOwed = false;
  /** For a guest whose barriers are none to us; and what was published, or asked for, when it was last told. */
  private readonly second: SecondLook | null;
  private told = 0;
  private stopped = false;

  /** @throws EIO for a ring whose indexes cannot be; HypercallError; nothing stays behind then */
  constructor(
    private readonly vif: QueueVif,
    index: number,
    connection: QueueConnection,
    name: string,
  ) {
    const { txRing, rxRing, domid, txPort, rxPort } = connection;
    this.staticGrants = new StaticGrants(vif.platform, domid);
    const { staticGrants, stats } = this;
    this.pushTask = new Task(`${name} tx responses`, () => this.push());
    const push = () => vif.platform.scheduler.post(this.pushTask);
    const served = (notify: boolean) => this.rxServed(notify);
    const fatal = (reason: string) => this.fatal(reason);
    this.block = vif.fastPathModule?.block(domid, txRing, rxRing) ?? null;
    const onCredit = () => this.napi.schedule();
    this.tx = new TxRing(vif, txRing, domid, staticGrants, stats, onCredit, push, fatal, this.block);
    this.rx = new RxRing(
      vif,
      vif.dev.txQueues[index],
      rxRing,
      domid,
      name,
      staticGrants,
      stats,
      served,
      fatal,
    );
    this.fastPath = this.block === null ? null : new FastPath(this.block, this);
    this.second = SecondLook.make(vif.platform, domid, this);
    this.napi = vif.dev.napiAdd(budget => this.poll(budget));
    try {
      checkRing(this.tx.ring, name);
      checkRing(this.rx.ring, name);
      [this.txIrq, this.rxIrq] = this.bindChannels(domid, txPort, rxPort, name);
    } catch (error) {
      vif.dev.napiDel(this.napi);
      this.block?.destroy();
      throw error;
    }
  }

  get dev(): NetDevice {
    return this.vif.dev;
  }

  get txRing(): BackRing {
    return this.tx.ring;
  }

  get rxRing(): BackRing {
    return this.rx.ring;
  }

  get sendsPlainly(): boolean {
    return this.vif.sendsPlainly && this.tx.usual;
  }

  get gsoPrefix(): number {
    return this.vif.gsoPrefix;
  }

  get receivesPlainly(): boolean {
    return this.vif.receivesPlainly && this.rx.plain;
  }

  targetOf(device: NetDevice): FastPath | null {
    return this.vif.targetOf(device);
  }

  delivered(): void {
    this.notify(this.rxIrq, this.rx.ring.pushResponses());
  }

  private bindChannels(
    domid: number,
    txPort: number,
    rxPort: number,
    name: string,
  ): [tx: number, rx: number] {
    const { irqs } = this.vif;
    const bind = (port: number, handler: () => void, suffix: string): number =>
      irqs.bindInterdomainEvtchnToIrqhandlerLateeoi(domid, port, handler, `${name}${suffix}`).irq;
    if (txPort === rxPort) {
      const irq = bind(
        txPort,
        () => {
          this.napi.schedule();
          this.rx.schedule();
        },
        '',
      );
      return [irq, irq];
    }
    const txIrq = bind(txPort, () => this.napi.schedule(), '-tx');
    try {
      const onRx = () => {
        this.rxEventOwed = true;
        this.rx.schedule();
      };
      return [txIrq, bind(rxPort, onRx, '-rx')];
    } catch (error) {
      irqs.unbindFromIrqhandler(txIrq);
      throw error;
    }
  }

  /** Starts to serve the rings, which may hold requests already. */
  start(): void {
    this.napi.enable();
    // A backend before this one may have answered and died before it said so.
    this.poke();
  }

  /** Looks at both rings, and has the guest look, as if each side had sent an event. */
  poke(): void {
    this.napi.schedule();
    this.rx.schedule();
    this.vif.irqs.notifyRemoteViaIrq(this.txIrq);
    if (this.rxIrq !== this.txIrq) this.vif.irqs.notifyRemoteViaIrq(this.rxIrq);
  }

  /** Packets from the guest whose responses are owed. */
  get inFlight(): number {
    return this.tx.inFlight;
  }

  /** Pages held by packets that wait for the guest. */
  get waitingPages(): number {
    return this.rx.waiting.pages;
  }

  /** The rings' indexes in the page and ours, a line a ring, and what waits. */
  dump(): string[] {
    return [
      `${dumpRing('tx', this.tx.ring)}; ${this.inFlight} packets on their way`,
      `${dumpRing('rx', this.rx.ring)}; ${this.rx.waiting.length} packets, ${this.rx.waiting.bytes} bytes wait`,
    ];
  }

  /** Reads no more requests; what was read goes its way. */
  pause(): void {
    this.napi.disable();
  }

  /** Takes a packet for the guest; drops it when too many bytes wait already. Takes the reference. */
  enqueue(packet: Packet): void {
    this.rx.enqueue(packet);
  }

  /** The frontend broke the protocol, on this queue or another: nothing more is read, written or kept. */
  stop(): void {
    this.stopped = true;
    this.second?.stop();
    this.tx.stop();
    this.rx.stop();
  }

  /** Stops for good and lets go of the ports; the rings may be unmapped afterwards. */
  destroy(): void {
    this.stop();
    if (this.napi.enabled) this.napi.disable();
    this.vif.dev.napiDel(this.napi);
    const { irqs } = this.vif;
    irqs.unbindFromIrqhandler(this.txIrq);
    if (this.rxIrq !== this.txIrq) irqs.unbindFromIrqhandler(this.rxIrq);
    this.rx.forgetStall();
    this.staticGrants.destroy();
    this.tx.detach();
    this.block?.destroy();
  }

  private fatal(reason: string): void {
    if (this.stopped) return;
    this.stop();
    this.vif.fatal(reason);
  }

  private poll(budget: number): number {
    if (this.stopped) {
      this.napi.complete(0);
      return 0;
    }
    const passed = this.fastPath?.forward(budget) ?? 0;
    // Their receivers have been told; the sender gets its pages back before it sends more.
    if (passed > 0) this.push();
    const work = passed + this.receive(budget - passed);
    if (work > 0) this.worked = true;
    // After what the packets set going: their receivers wait for them, while their sender is done.
    if (work > passed) this.vif.platform.scheduler.post(this.pushTask);
    const { ring, throttled } = this.tx;
    if (this.stopped || (work >= budget && ring.hasRequests)) return work;
    // A whole budget that emptied the ring is no reason to poll again.
    const done = Math.min(work, budget - 1);
    if (!this.napi.complete(done)) return done;
    // What the guest sends has to wait; what it posts to receive in may come by the same channel.
    if (throttled) this.endOfInterrupt();
    else if (ring.finalCheckForRequests()) this.napi.schedule();
    else {
      if (this.worked) this.second?.arm();
      this.endOfInterrupt();
    }
    return done;
  }

  /** Takes what the fast path has left. What GRO puts together goes on when the poll ends, so the rest all goes this way. */
  private receive(budget: number): number {
    if (budget === 0 || this.fastPath?.drained) return 0;
    try {
      return this.tx.receive(budget, this.napi);
    } catch (error) {
      // The next poll may find nothing, and so have no reason to push what is answered.
      this.vif.platform.scheduler.post(this.pushTask);
      throw error;
    }
  }

  /** Responses of both rings, and rx events that were asked for; modulo 2^32. */
  get published(): number {
    const { tx, rx } = this;
    return (tx.ring.rspProdPvt + rx.ring.rspProdPvt + rx.asked) | 0;
  }

  look(): void {
    this.napi.schedule();
    this.rx.schedule();
  }

  tell(): void {
    const { irqs } = this.vif;
    if (this.tx.ring.eventIsDue) irqs.notifyRemoteViaIrq(this.txIrq);
    if (this.rx.ring.eventIsDue) irqs.notifyRemoteViaIrq(this.rxIrq);
  }

  /** @param wanted what was published is what the guest asked to be told of */
  private notify(irq: number, wanted: boolean): void {
    if (wanted) this.vif.irqs.notifyRemoteViaIrq(irq);
    if (this.second === null) return;
    const { published } = this;
    if (published !== this.told) this.second.arm();
    this.told = published;
  }

  private endOfInterrupt(): void {
    const both = this.rxIrq === this.txIrq;
    const spurious = !this.worked && !(both && this.rx.requestsCame());
    this.worked = false;
    this.vif.irqs.lateEoi(this.txIrq, spurious);
  }

  private push(): void {
    if (!this.stopped) this.notify(this.txIrq, this.tx.push());
  }

  private rxServed(notify: boolean): void {
    const { irqs } = this.vif;
    this.notify(this.rxIrq, notify);
    if (!this.rxEventOwed) return;
    this.rxEventOwed = false;
    irqs.lateEoi(this.rxIrq, !this.rx.requestsCame());
  }
}

/** @throws EIO when more requests are on the ring than it has slots: a frontend before this one left it so */
function checkRing(ring: BackRing, name: string): void {
  const reqProd = ring.reqProd();
  if (!ring.requestOverflow(reqProd)) return;
  const claimed = (reqProd - ring.rspProdPvt) >>> 0;
  throw new NetError('EIO', `${name}: a ring claims ${claimed} requests at once, it has ${ring.size} slots`);
}
