import { describeError, HypercallError } from '../platform/errors.js';
import type { EventChannels, Platform } from '../platform/platform.js';
import { Task } from '../platform/scheduler.js';
import { TwoLevelBitmap } from './two-level.js';

/** Handles an interrupt. What it throws goes to the kernel's log. */
export type IrqHandler = (irq: number) => void;

export interface IrqsOptions {
  /** Dynamic IRQs that there are (NR_DYNIRQS); as many as event channels */
  nrDynirqs?: number;
}

export interface BindOptions {
  /** Several handlers may share the IRQ, if each of them says so (IRQF_SHARED). */
  shared?: boolean;
  /** Unbinding leaves the port open: it belongs to somebody else. */
  keepPort?: boolean;
}

/** The first dynamic IRQ (DYNIRQ_BASE: behind the physical ones). */
export const DYNIRQ_BASE = 256;

/** Spurious events that are forgiven before the next is delayed (Linux's spurious_threshold). */
export const SPURIOUS_THRESHOLD = 1;
/** The longest delay of an event of a port that had only spurious ones. */
export const MAX_EOI_DELAY_MS = 1000;

/** Why a port is masked; it is unmasked when no reason is left. */
const MASK_EXPLICIT = 1;
const MASK_EOI_PENDING = 2;

type Kind = 'event' | 'virq';

interface IrqInfo {
  readonly irq: number;
  readonly port: number;
  readonly kind: Kind;
  readonly virq: number;
  readonly name: string;
  /** Its users; with the last one it is unbound. */
  readonly handlers: IrqHandler[];
  readonly lateEoi: boolean;
  readonly shared: boolean;
  readonly keepPort: boolean;
  /** Depth of `disableIrq`. */
  disabled: number;
  maskReasons: number;
  /** A process's event that came while the IRQ was disabled. */
  deferred: boolean;
  count: number;
  /** Spurious events in a row. */
  spurious: number;
  /** The end of the last one is being delayed. */
  delayed: boolean;
}

/** One line of /proc/interrupts, as data. */
export interface IrqCount {
  readonly irq: number;
  readonly port: number;
  readonly count: number;
  readonly name: string;
  readonly kind: Kind;
}

/**
 * The guest kernel's interrupt layer: event channels as dynamic IRQs, with the names that Linux gives the
 * operations (drivers/xen/events). One per domain.
 *
 * Handlers run from the upcall, one after the other, and must not wait; events are edges, cleared before
 * the handler runs. A port without an IRQ is masked and its event dropped: it is being unbound (XSA-331).
 */
export class Irqs {
  private readonly events: EventChannels;
  private readonly bitmap: TwoLevelBitmap | null;
  private readonly nrDynirqs: number;
  /** IRQ by event channel, -1 for none. */
  private readonly evtchnToIrq: Int32Array;
  private readonly infos: (IrqInfo | null)[] = [];
  /** No dynamic IRQ below is free. */
  private lowestFree = 0;

  constructor(
    private readonly platform: Platform,
    options: IrqsOptions = {},
  ) {
    this.events = platform.events;
    const { maxPorts, delivery } = this.events;
    this.nrDynirqs = options.nrDynirqs ?? maxPorts;
    this.evtchnToIrq = new Int32Array(maxPorts).fill(-1);
    if (delivery.kind === 'shared-info') {
      const { memory, sharedInfo, wordBits, vcpu } = delivery;
      const bitmap = new TwoLevelBitmap(memory, sharedInfo, wordBits, vcpu);
      bitmap.maskAll();
      this.bitmap = bitmap;
      const handle = this.handlePort;
      delivery.onUpcall(() => bitmap.scan(handle));
    } else {
      this.bitmap = null;
      delivery.onPort(this.handlePort);
    }
  }

  /**
   * Opens a port that `remoteDomid` may bind to (bind_listening_port_to_irqhandler).
   * @throws ENOSPC without a port or an IRQ left
   */
  bindListeningPortToIrqhandler(
    remoteDomid: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): { irq: number; port: number } {
    return this.bindNewPort(() => this.events.allocUnbound(remoteDomid), handler, name, false, options);
  }

  /** As `bindListeningPortToIrqhandler`, for a handler that calls `lateEoi`. */
  bindListeningPortToIrqhandlerLateeoi(
    remoteDomid: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): { irq: number; port: number } {
    return this.bindNewPort(() => this.events.allocUnbound(remoteDomid), handler, name, true, options);
  }

  /**
   * Binds to a port that another domain opened for us (bind_interdomain_evtchn_to_irqhandler). The first event
   * comes at once and means nothing.
   * @throws ESRCH, EINVAL as Xen says; ENOSPC
   */
  bindInterdomainEvtchnToIrqhandler(
    remoteDomid: number,
    remotePort: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): { irq: number; port: number } {
    const open = () => this.events.bindInterdomain(remoteDomid, remotePort);
    return this.bindNewPort(open, handler, name, false, options);
  }

  /**
   * As `bindInterdomainEvtchnToIrqhandler`, for a handler that calls `lateEoi`: what a backend uses, whose
   * frontend may send events as fast as it likes (XSA-332).
   */
  bindInterdomainEvtchnToIrqhandlerLateeoi(
    remoteDomid: number,
    remotePort: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): { irq: number; port: number } {
    const open = () => this.events.bindInterdomain(remoteDomid, remotePort);
    return this.bindNewPort(open, handler, name, true, options);
  }

  /**
   * Gives a port that is open already an IRQ (bind_caller_port_to_irqhandler; bind_evtchn_to_irqhandler).
   * @throws EBUSY when the port has a handler and not both share it; ENOSPC; the port stays open
   */
  bindCallerPortToIrqhandler(
    port: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): number {
    return this.bindPort(port, 'event', -1, handler, name, false, options);
  }

  /** As `bindCallerPortToIrqhandler`, for a handler that calls `lateEoi`. */
  bindCallerPortToIrqhandlerLateeoi(
    port: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): number {
    return this.bindPort(port, 'event', -1, handler, name, true, options);
  }

  /**
   * Binds a virtual IRQ (bind_virq_to_irqhandler).
   * @throws EINVAL, ENOENT, EEXIST as Xen says; EBUSY when it has a handler here and not both share it; ENOSPC
   */
  bindVirqToIrqhandler(
    virq: number,
    cpu: number,
    handler: IrqHandler,
    name: string,
    options: BindOptions = {},
  ): number {
    const bound = this.infos.find(info => info?.kind === 'virq' && info.virq === virq);
    if (bound) return this.share(bound, handler, options);
    this.findUnboundIrq();
    const port = this.events.bindVirq(virq, cpu);
    return this.bindPort(port, 'virq', virq, handler, name, false, options);
  }

  /**
   * Removes a handler (unbind_from_irqhandler); with the last one, the IRQ is free again and the port closed.
   * May be called from the handler itself.
   * @param handler which one, of a shared IRQ; the last that was bound
   * @throws EINVAL for an IRQ that is not bound
   */
  unbindFromIrqhandler(irq: number, handler?: IrqHandler): void {
    const info = this.info(irq);
    const at = handler === undefined ? info.handlers.length - 1 : info.handlers.indexOf(handler);
    if (at < 0) throw new HypercallError('EINVAL', `IRQ ${irq} (${info.name}) has no such handler`);
    info.handlers.splice(at, 1);
    if (info.handlers.length > 0) return;
    this.evtchnToIrq[info.port] = -1;
    this.infos[irq - DYNIRQ_BASE] = null;
    if (irq - DYNIRQ_BASE < this.lowestFree) this.lowestFree = irq - DYNIRQ_BASE;
    this.events.mask(info.port);
    if (!info.keepPort) this.events.close(info.port);
  }

  /** Sends an event to the other end (notify_remote_via_irq). @throws EINVAL for an IRQ that is not bound */
  notifyRemoteViaIrq(irq: number): void {
    this.events.notify(this.info(irq).port);
  }

  /** No handler runs until as many `enableIrq` as `disableIrq`. An event meanwhile stays pending. */
  disableIrq(irq: number): void {
    const info = this.info(irq);
    if (info.disabled++ === 0) this.maskFor(info, MASK_EXPLICIT);
  }

  enableIrq(irq: number): void {
    const info = this.info(irq);
    if (info.disabled === 0) throw new HypercallError('EINVAL', `IRQ ${irq} (${info.name}) is not disabled`);
    if (--info.disabled === 0) this.unmaskFor(info, MASK_EXPLICIT);
  }

  /**
   * The handler of a Lateeoi variant is done with the event, and the next may come (xen_irq_lateeoi). May be
   * called later, from whatever does the work; nothing happens for an IRQ that was unbound or is not waited for, nor the second
   * time for the same event, which must not end the delay of the first.
   * @param spurious there was nothing to do: each of these in a row doubles the delay until the next event
   */
  lateEoi(irq: number, spurious = false): void {
    const info = this.infos[irq - DYNIRQ_BASE];
    if (!info || info.delayed || (info.maskReasons & MASK_EOI_PENDING) === 0) return;
    if (!spurious) {
      info.spurious = 0;
      this.unmaskFor(info, MASK_EOI_PENDING);
      return;
    }
    const over = ++info.spurious - SPURIOUS_THRESHOLD;
    if (over <= 0) {
      this.unmaskFor(info, MASK_EOI_PENDING);
      return;
    }
    const delayMs = over > 10 ? MAX_EOI_DELAY_MS : Math.min(MAX_EOI_DELAY_MS, 1 << (over - 1));
    info.delayed = true;
    this.platform.scheduler.after(delayMs, () => {
      info.delayed = false;
      if (this.infos[irq - DYNIRQ_BASE] === info) this.unmaskFor(info, MASK_EOI_PENDING);
    });
  }

  /** The port behind an IRQ. @throws EINVAL for an IRQ that is not bound */
  evtchnFromIrq(irq: number): number {
    return this.info(irq).port;
  }

  /** The IRQ of a port, or -1. */
  irqFromEvtchn(port: number): number {
    return this.evtchnToIrq[port] ?? -1;
  }

  /** IRQs in use, lowest first, with how often each has fired. */
  get counts(): IrqCount[] {
    const counts: IrqCount[] = [];
    for (const info of this.infos) {
      if (!info) continue;
      const { irq, port, count, name, kind } = info;
      counts.push({ irq, port, count, name, kind });
    }
    return counts;
  }

  /** What /proc/interrupts of the domain would say. */
  interrupts(): string {
    let text = `${' '.repeat(16)}CPU0\n`;
    for (const info of this.infos) {
      if (!info) continue;
      const chip = info.kind === 'virq' ? 'xen-percpu' : info.lateEoi ? 'xen-dyn-lateeoi' : 'xen-dyn';
      text += `${`${info.irq}:`.padStart(6)} ${`${info.count}`.padStart(13)}  ${chip.padEnd(15)} -${info.kind.padEnd(6)} ${info.name}\n`;
    }
    return text;
  }

  private bindNewPort(
    open: () => number,
    handler: IrqHandler,
    name: string,
    lateEoi: boolean,
    options: BindOptions,
  ): { irq: number; port: number } {
    // Without an IRQ the port is not opened at all, so that there is nothing to undo.
    this.findUnboundIrq();
    const port = open();
    return { irq: this.bindPort(port, 'event', -1, handler, name, lateEoi, options), port };
  }

  private bindPort(
    port: number,
    kind: Kind,
    virq: number,
    handler: IrqHandler,
    name: string,
    lateEoi: boolean,
    options: BindOptions,
  ): number {
    if (!(port > 0 && port < this.evtchnToIrq.length)) {
      throw new HypercallError('EINVAL', `port ${port}: they are 1 … ${this.evtchnToIrq.length - 1}`);
    }
    const bound = this.evtchnToIrq[port];
    if (bound >= 0) return this.share(this.info(bound), handler, options);
    const index = this.findUnboundIrq();
    const irq = DYNIRQ_BASE + index;
    const info: IrqInfo = {
      irq,
      port,
      kind,
      virq,
      name,
      handlers: [handler],
      lateEoi,
      shared: options.shared ?? false,
      keepPort: options.keepPort ?? false,
      disabled: 0,
      maskReasons: 0,
      deferred: false,
      count: 0,
      spurious: 0,
      delayed: false,
    };
    this.infos[index] = info;
    this.evtchnToIrq[port] = irq;
    this.lowestFree = index + 1;
    try {
      this.events.unmask(port);
    } catch (error) {
      this.evtchnToIrq[port] = -1;
      this.infos[index] = null;
      this.lowestFree = index;
      throw error;
    }
    return irq;
  }

  private share(info: IrqInfo, handler: IrqHandler, options: BindOptions): number {
    if (!info.shared || !(options.shared ?? false)) {
      throw new HypercallError('EBUSY', `IRQ ${info.irq} (port ${info.port}) is ${info.name}'s alone`);
    }
    info.handlers.push(handler);
    return info.irq;
  }

  private findUnboundIrq(): number {
    let index = this.lowestFree;
    while (index < this.nrDynirqs && this.infos[index]) index++;
    this.lowestFree = index;
    if (index >= this.nrDynirqs) {
      throw new HypercallError('ENOSPC', `all ${this.nrDynirqs} dynamic IRQs are bound`);
    }
    return index;
  }

  private info(irq: number): IrqInfo {
    const info = this.infos[irq - DYNIRQ_BASE];
    if (!info) throw new HypercallError('EINVAL', `IRQ ${irq} is not bound`);
    return info;
  }

  private readonly handlePort = (port: number): void => {
    const irq = this.evtchnToIrq[port];
    const info = irq >= 0 ? this.infos[irq - DYNIRQ_BASE] : null;
    if (!info) {
      this.events.mask(port);
      this.bitmap?.clearPending(port);
      return;
    }
    if (this.bitmap === null && info.maskReasons !== 0) {
      // A process's event was taken out of the bitmap by the kernel: remember it.
      info.deferred = true;
      return;
    }
    if (info.lateEoi) this.maskFor(info, MASK_EOI_PENDING);
    this.bitmap?.clearPending(port);
    info.count++;
    // A handler may unbind itself or another.
    const handlers = info.handlers.length === 1 ? info.handlers : info.handlers.slice();
    for (let i = 0; i < handlers.length; i++) {
      try {
        handlers[i](irq);
      } catch (error) {
        this.platform.log(`irq ${irq} (${info.name}): handler failed: ${describeError(error)}`);
      }
    }
    if (this.bitmap === null && info.maskReasons === 0 && this.infos[irq - DYNIRQ_BASE] === info) {
      this.events.unmask(port);
    }
  };

  private maskFor(info: IrqInfo, reason: number): void {
    if (info.maskReasons === 0 && this.bitmap !== null) this.events.mask(info.port);
    info.maskReasons |= reason;
  }

  private unmaskFor(info: IrqInfo, reason: number): void {
    if (info.maskReasons === 0) return;
    info.maskReasons &= ~reason;
    if (info.maskReasons !== 0) return;
    if (info.deferred) {
      info.deferred = false;
      this.platform.scheduler.post(
        new Task(`irq ${info.irq}`, () => {
          if (this.infos[info.irq - DYNIRQ_BASE] === info) this.handlePort(info.port);
        }),
      );
    } else {
      this.events.unmask(info.port);
    }
  }
}
