import { EVTCHNSTAT } from '../../abi/event-channel.js';
import { DOMID_SELF, NR_VIRQS, VIRQ } from '../../abi/xen.js';
import { HypercallError } from '../errors.js';
import type { Domain } from './domain.js';
import type { Hypervisor } from './hypervisor.js';

/** VIRQs that go to one domain of the whole machine, and are bound to its first virtual CPU. */
const GLOBAL_VIRQS: ReadonlySet<number> = new Set([
  VIRQ.CONSOLE,
  VIRQ.DOM_EXC,
  VIRQ.TBUF,
  VIRQ.DEBUGGER,
  VIRQ.CON_RING,
  VIRQ.PCPU_STATE,
  VIRQ.MEM_EVENT,
  VIRQ.ENOMEM,
]);

/** What EVTCHNOP_status tells. `remoteDomid`, `remotePort` and `virq` are -1 where there is none. */
export interface PortStatus {
  /** One of EVTCHNSTAT. */
  readonly status: number;
  readonly vcpu: number;
  readonly remoteDomid: number;
  readonly remotePort: number;
  readonly virq: number;
}

/** The ports of one domain, by number; port 0 is never valid. */
export class PortTable {
  state = new Uint8Array(0);
  remoteDomid = new Int32Array(0);
  remotePort = new Int32Array(0);
  virq = new Int32Array(0);
  vcpu = new Uint8Array(0);
  /** Ports that are not closed. */
  used = 0;
  /** No port below is closed. */
  private lowestFree = 1;

  /** @param limit ports are 1 … limit - 1 */
  constructor(readonly limit: number) {}

  /** The lowest closed port, now in that state. @returns 0 when there is none */
  take(state: number): number {
    let port = this.lowestFree;
    while (port < this.state.length && this.state[port] !== EVTCHNSTAT.closed) port++;
    if (port >= this.limit) return 0;
    if (port >= this.state.length) this.grow();
    this.lowestFree = port + 1;
    this.state[port] = state;
    this.remoteDomid[port] = -1;
    this.remotePort[port] = -1;
    this.virq[port] = -1;
    this.vcpu[port] = 0;
    this.used++;
    return port;
  }

  free(port: number): void {
    this.state[port] = EVTCHNSTAT.closed;
    this.used--;
    if (port < this.lowestFree) this.lowestFree = port;
  }

  isOpen(port: number): boolean {
    // undefined for what is no port at all
    return this.state[port] > EVTCHNSTAT.closed;
  }

  /** Of a port that is not closed. */
  status(port: number): PortStatus {
    return {
      status: this.state[port],
      vcpu: this.vcpu[port],
      remoteDomid: this.remoteDomid[port],
      remotePort: this.remotePort[port],
      virq: this.virq[port],
    };
  }

  /** Ports that are not closed. */
  *open(): Generator<number> {
    for (let port = 1; port < this.state.length; port++) {
      if (this.state[port] !== EVTCHNSTAT.closed) yield port;
    }
  }

  private grow(): void {
    const size = Math.min(this.limit, Math.max(32, this.state.length * 2));
    const { state, remoteDomid, remotePort, virq, vcpu } = this;
    this.state = new Uint8Array(size);
    this.remoteDomid = new Int32Array(size);
    this.remotePort = new Int32Array(size);
    this.virq = new Int32Array(size);
    this.vcpu = new Uint8Array(size);
    this.state.set(state);
    this.remoteDomid.set(remoteDomid);
    this.remotePort.set(remotePort);
    this.virq.set(virq);
    this.vcpu.set(vcpu);
  }
}

/**
 * The event-channel hypercalls, EVTCHNOP by EVTCHNOP, and delivery through the two-level bitmaps. All throw
 * HypercallError with the errno that Xen returns.
 */
export class EventChannelOperations {
  /** Who gets each global VIRQ; domain 0 unless set. */
  private readonly virqHandler = new Map<number, number>();

  constructor(private readonly hypervisor: Hypervisor) {}

  /**
   * EVTCHNOP_alloc_unbound: a port of `dom` that `remoteDom` may bind to.
   * @throws EPERM for another domain's port when not privileged; ESRCH; ENOSPC
   */
  allocUnbound(caller: Domain, dom: number, remoteDom: number): number {
    const domain = this.subject(caller, dom);
    const port = this.take(domain, EVTCHNSTAT.unbound);
    domain.ports.remoteDomid[port] = remoteDom === DOMID_SELF ? caller.domid : remoteDom;
    return port;
  }

  /**
   * EVTCHNOP_bind_interdomain. The new local port starts out pending, as the other side may have sent already.
   * @throws ESRCH without such a domain; EINVAL when its port does not wait for us; ENOSPC
   */
  bindInterdomain(caller: Domain, remoteDom: number, remotePort: number): number {
    const remote = remoteDom === DOMID_SELF ? caller : this.hypervisor.domain(remoteDom);
    if (remote === null) throw new HypercallError('ESRCH', `there is no domain ${remoteDom}`);
    const { ports } = remote;
    if (
      !ports.isOpen(remotePort) ||
      ports.state[remotePort] !== EVTCHNSTAT.unbound ||
      ports.remoteDomid[remotePort] !== caller.domid
    ) {
      throw new HypercallError(
        'EINVAL',
        `port ${remotePort} of domain ${remote.domid} is not unbound and waiting for domain ${caller.domid}`,
      );
    }
    const port = this.take(caller, EVTCHNSTAT.interdomain);
    caller.ports.remoteDomid[port] = remote.domid;
    caller.ports.remotePort[port] = remotePort;
    ports.state[remotePort] = EVTCHNSTAT.interdomain;
    ports.remoteDomid[remotePort] = caller.domid;
    ports.remotePort[remotePort] = port;
    caller.setPending(port);
    return port;
  }

  /**
   * EVTCHNOP_bind_virq.
   * @throws EINVAL for a number that is no VIRQ, or a global one on another vcpu than 0; ENOENT without such
   *   a vcpu; EEXIST when it is bound already; ENOSPC
   */
  bindVirq(caller: Domain, virq: number, vcpu: number): number {
    if (!(virq >= 0 && virq < NR_VIRQS)) {
      throw new HypercallError('EINVAL', `VIRQ ${virq}: they are 0 … ${NR_VIRQS - 1}`);
    }
    const global = GLOBAL_VIRQS.has(virq);
    if (global && vcpu !== 0) throw new HypercallError('EINVAL', `VIRQ ${virq} can only be bound to vcpu 0`);
    const target = caller.vcpus[vcpu];
    if (target === undefined) {
      throw new HypercallError('ENOENT', `domain ${caller.domid} has no vcpu ${vcpu}`);
    }
    if (target.virqPort[virq] !== 0) {
      throw new HypercallError('EEXIST', `VIRQ ${virq} is bound to port ${target.virqPort[virq]} already`);
    }
    const port = this.take(caller, EVTCHNSTAT.virq);
    caller.ports.virq[port] = virq;
    caller.ports.vcpu[port] = vcpu;
    target.virqPort[virq] = port;
    return port;
  }

  /** EVTCHNOP_bind_ipi. @throws ENOENT, ENOSPC */
  bindIpi(caller: Domain, vcpu: number): number {
    if (caller.vcpus[vcpu] === undefined) {
      throw new HypercallError('ENOENT', `domain ${caller.domid} has no vcpu ${vcpu}`);
    }
    const port = this.take(caller, EVTCHNSTAT.ipi);
    caller.ports.vcpu[port] = vcpu;
    return port;
  }

  /** EVTCHNOP_bind_vcpu: events of the port go to that virtual CPU. @throws EINVAL, ENOENT */
  bindVcpu(caller: Domain, port: number, vcpu: number): void {
    this.check(caller, port);
    if (caller.vcpus[vcpu] === undefined) {
      throw new HypercallError('ENOENT', `domain ${caller.domid} has no vcpu ${vcpu}`);
    }
    const state = caller.ports.state[port];
    const fixed =
      state === EVTCHNSTAT.ipi || (state === EVTCHNSTAT.virq && !GLOBAL_VIRQS.has(caller.ports.virq[port]));
    if (fixed) throw new HypercallError('EINVAL', `port ${port} belongs to one vcpu`);
    caller.ports.vcpu[port] = vcpu;
  }

  /** EVTCHNOP_close: the other end of an interdomain channel becomes unbound. @throws EINVAL */
  close(caller: Domain, port: number): void {
    this.check(caller, port);
    const { ports } = caller;
    switch (ports.state[port]) {
      case EVTCHNSTAT.virq:
        caller.vcpus[ports.vcpu[port]].virqPort[ports.virq[port]] = 0;
        // A global VIRQ's port may have been moved to another vcpu since.
        if (GLOBAL_VIRQS.has(ports.virq[port])) caller.vcpus[0].virqPort[ports.virq[port]] = 0;
        break;
      case EVTCHNSTAT.interdomain: {
        const remote = this.hypervisor.domainOrZombie(ports.remoteDomid[port]);
        const remotePort = ports.remotePort[port];
        remote.ports.state[remotePort] = EVTCHNSTAT.unbound;
        remote.ports.remoteDomid[remotePort] = caller.domid;
        remote.ports.remotePort[remotePort] = -1;
        break;
      }
    }
    caller.clearPending(port);
    ports.free(port);
  }

  /**
   * EVTCHNOP_send. An event on a port that nobody has bound to yet is lost.
   * @throws EINVAL for a port that cannot send
   */
  send(caller: Domain, port: number): void {
    const { ports } = caller;
    // state[port] is undefined beyond the table, and 0 (closed) for a port that is not open.
    const state = ports.state[port];
    if (state === EVTCHNSTAT.interdomain) {
      this.hypervisor.byDomid[ports.remoteDomid[port]]!.setPending(ports.remotePort[port]);
    } else if (state === EVTCHNSTAT.ipi) {
      caller.setPending(port);
    } else if (state !== EVTCHNSTAT.unbound) {
      throw new HypercallError('EINVAL', `port ${port} of domain ${caller.domid} cannot send`);
    }
  }

  /** EVTCHNOP_status. @throws ESRCH, EPERM, EINVAL */
  status(caller: Domain, dom: number, port: number): PortStatus {
    const domain = this.subject(caller, dom);
    if (!(port > 0 && port < domain.ports.limit)) {
      throw new HypercallError('EINVAL', `port ${port}: they are 1 … ${domain.ports.limit - 1}`);
    }
    const { ports } = domain;
    if (!ports.isOpen(port)) {
      return { status: EVTCHNSTAT.closed, vcpu: 0, remoteDomid: -1, remotePort: -1, virq: -1 };
    }
    return ports.status(port);
  }

  /** EVTCHNOP_unmask: an event that came meanwhile is delivered now. @throws EINVAL */
  unmask(caller: Domain, port: number): void {
    this.check(caller, port);
    caller.unmask(port);
  }

  /** EVTCHNOP_reset: closes every port. @throws ESRCH, EPERM */
  reset(caller: Domain, dom: number): void {
    this.closeAll(this.subject(caller, dom));
  }

  /** The FIFO ABI is not emulated: guests then stay with the two-level one. @throws ENOSYS always */
  initControl(): never {
    throw new HypercallError('ENOSYS', 'event channels are two-level here, without the FIFO ABI');
  }

  /** As `initControl`. @throws ENOSYS always */
  expandArray(): never {
    return this.initControl();
  }

  /** As `initControl`. @throws ENOSYS always */
  setPriority(): never {
    return this.initControl();
  }

  /** Closes every port of a domain that goes or was reset. */
  closeAll(domain: Domain): void {
    for (const port of domain.ports.open()) this.close(domain, port);
  }

  /** Which domain gets a global VIRQ (XEN_DOMCTL_set_virq_handler). */
  setVirqHandler(virq: number, domid: number): void {
    this.virqHandler.set(virq, domid);
  }

  /** Raises a global VIRQ; lost when its domain has not bound it. */
  sendGlobalVirq(virq: number): void {
    const handler = this.hypervisor.domain(this.virqHandler.get(virq) ?? 0);
    if (handler !== null) this.sendVirq(handler, virq, 0);
  }

  /** Raises a VIRQ of a domain's virtual CPU; lost when it is not bound. */
  sendVirq(domain: Domain, virq: number, vcpu: number): void {
    const port = domain.vcpus[vcpu].virqPort[virq];
    if (port !== 0) domain.setPending(port);
  }

  private subject(caller: Domain, dom: number): Domain {
    if (dom === DOMID_SELF || dom === caller.domid) return caller;
    const domain = this.hypervisor.domain(dom);
    if (domain === null) throw new HypercallError('ESRCH', `there is no domain ${dom}`);
    if (!caller.privileged) {
      throw new HypercallError('EPERM', `domain ${caller.domid} has no say over domain ${dom}`);
    }
    return domain;
  }

  private take(domain: Domain, state: number): number {
    const port = domain.dying ? 0 : domain.ports.take(state);
    if (port === 0) {
      throw new HypercallError(
        'ENOSPC',
        `domain ${domain.domid} has no event channel left of ${domain.ports.limit - 1}`,
      );
    }
    return port;
  }

  private check(domain: Domain, port: number): void {
    if (!domain.ports.isOpen(port)) {
      throw new HypercallError('EINVAL', `port ${port} of domain ${domain.domid} is not open`);
    }
  }
}
