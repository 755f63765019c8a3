import { HypercallError } from '../errors.js';
import type { EventChannels, EventDelivery } from '../platform.js';
import { type Scheduler, Task } from '../scheduler.js';
import { openXenDevice } from './devices.js';
import { CStruct, errno, errnoName, libc } from './libc.js';

/** include/uapi/xen/evtchn.h */
const IOCTL_EVTCHN_BIND_VIRQ = 0x44500;
const IOCTL_EVTCHN_BIND_INTERDOMAIN = 0x84501;
const IOCTL_EVTCHN_BIND_UNBOUND_PORT = 0x44502;
const IOCTL_EVTCHN_UNBIND = 0x44503;
const IOCTL_EVTCHN_NOTIFY = 0x44504;

/** Ports of the FIFO event channels, the most that a domain can have. */
const MAX_PORTS = 131072;
/** Ports that are read, or written, at a time. */
const BURST = 256;

/**
 * Something that waits for a file descriptor to become readable, and then polls it. It has to look at whether it is
 * readable before it waits: evtchn wakes its reader when the first port comes into an empty queue, and a read that takes
 * ports out while another comes hides that, so that nobody would be told of it.
 */
export interface ReadinessPoller {
  add(source: { readonly fd: number; poll(budget: number): number }): { remove(): void };
}

/** Calls into the kernel, by what they were for. */
export class EventCounts {
  reads = 0;
  events = 0;
  unmaskWrites = 0;
  notifies = 0;
}

/**
 * Event channels of a process: /dev/xen/evtchn. The kernel masks a port when it hands it out; it is unmasked
 * by `unmask`, all of a burst by one write.
 */
export class LinuxEvents implements EventChannels {
  readonly maxPorts = MAX_PORTS;
  readonly delivery: EventDelivery;
  readonly counts = new EventCounts();
  private readonly fd: number;
  private readonly argument = new CStruct(8);
  private readonly incoming = new CStruct(BURST * 4);
  private readonly outgoing = new CStruct(BURST * 4);
  private outgoingCount = 0;
  /** 1 for a port that was handed out and not unmasked since. */
  private readonly masked = new Uint8Array(MAX_PORTS);
  private readonly unmaskTask: Task;
  private deliver: (port: number) => void = () => {};
  private readonly handle: { remove(): void };
  private bound = 0;

  /** @throws SystemError that says what to do */
  constructor(
    private readonly scheduler: Scheduler,
    poller: ReadinessPoller,
  ) {
    this.fd = openXenDevice('/dev/xen/evtchn');
    this.unmaskTask = new Task('unmask event channels', () => this.writeUnmasked());
    this.delivery = {
      kind: 'ports',
      onPort: deliver => {
        this.deliver = deliver;
      },
    };
    this.handle = poller.add({ fd: this.fd, poll: budget => this.poll(budget) });
  }

  get allocated(): number {
    return this.bound;
  }

  allocUnbound(remoteDomid: number): number {
    this.argument.view.setUint32(0, remoteDomid, true);
    return this.bind(IOCTL_EVTCHN_BIND_UNBOUND_PORT, `opening an event channel for domain ${remoteDomid}`);
  }

  bindInterdomain(remoteDomid: number, remotePort: number): number {
    this.argument.view.setUint32(0, remoteDomid, true);
    this.argument.view.setUint32(4, remotePort, true);
    return this.bind(
      IOCTL_EVTCHN_BIND_INTERDOMAIN,
      `binding to event channel ${remotePort} of domain ${remoteDomid}`,
    );
  }

  bindVirq(virq: number): number {
    this.argument.view.setUint32(0, virq, true);
    return this.bind(IOCTL_EVTCHN_BIND_VIRQ, `binding virtual interrupt ${virq}`);
  }

  close(port: number): void {
    this.argument.view.setUint32(0, port, true);
    this.call(IOCTL_EVTCHN_UNBIND, `closing event channel ${port}`);
    this.masked[port] = 0;
    this.bound--;
  }

  notify(port: number): void {
    this.counts.notifies++;
    this.argument.view.setUint32(0, port, true);
    this.call(IOCTL_EVTCHN_NOTIFY, `sending an event to port ${port}`);
  }

  /** The kernel has masked the port already. */
  mask(): void {}

  unmask(port: number): void {
    if (this.masked[port] === 0) return;
    this.masked[port] = 0;
    this.outgoing.view.setUint32(4 * this.outgoingCount++, port, true);
    if (this.outgoingCount === BURST) this.writeUnmasked();
    else this.scheduler.post(this.unmaskTask);
  }

  /** Closes all channels. */
  destroy(): void {
    this.handle.remove();
    libc().close(this.fd);
  }

  private poll(budget: number): number {
    const { incoming, masked } = this;
    const room = Math.min(budget, BURST);
    this.counts.reads++;
    const got = libc().read(this.fd, incoming.address, room * 4);
    if (got <= 0) return 0;
    const ports = got >>> 2;
    this.counts.events += ports;
    for (let i = 0; i < ports; i++) {
      const port = incoming.view.getUint32(4 * i, true);
      masked[port] = 1;
      this.deliver(port);
    }
    return ports;
  }

  private writeUnmasked(): void {
    const bytes = this.outgoingCount * 4;
    if (bytes === 0) return;
    this.outgoingCount = 0;
    this.counts.unmaskWrites++;
    libc().write(this.fd, this.outgoing.address, bytes);
  }

  private bind(request: number, what: string): number {
    const port = this.call(request, what);
    this.masked[port] = 0;
    this.bound++;
    return port;
  }

  private call(request: number, what: string): number {
    const result = libc().ioctl(this.fd, request, this.argument.address);
    if (result >= 0) return result;
    throw new HypercallError(errnoName(errno()), `${what} failed`);
  }
}
