import { XENSTORE_RING } from '../../src/abi/xs-wire.js';
import { Memory, PAGE_SIZE } from '../../src/platform/memory.js';
import type { ByteStream } from '../../src/platform/platform.js';
import { Task } from '../../src/platform/scheduler.js';
import { SeededScheduler } from '../../src/platform/sim/index.js';
import {
  type DomainState,
  RingStream,
  streamPair,
  XenStoreClient,
  XenStoreError,
  type XenStoreHost,
  XenStoreServer,
  type XenStoreServerOptions,
} from '../../src/xenstore/index.js';

/** A domain's ring page with a guest that can do with it what it wants. */
export class Guest {
  readonly memory = new Memory(new SharedArrayBuffer(PAGE_SIZE));
  /** The server's handler of the event channel. */
  onServerEvent: () => void = () => {};
  /** The guest's handler. */
  onEvent: () => void = () => {};
  mapped = 0;

  constructor(readonly lab: Lab) {}

  notifyServer(): void {
    this.lab.scheduler.post(new Task('to xenstored', () => this.onServerEvent()));
  }

  get(field: keyof typeof XENSTORE_RING): number {
    return this.memory.load(XENSTORE_RING[field]);
  }

  put(field: keyof typeof XENSTORE_RING, value: number): void {
    this.memory.store(XENSTORE_RING[field], value);
  }

  /** The guest kernel's stream over the ring. */
  stream(): RingStream {
    const stream = new RingStream({ memory: this.memory, address: 0, notify: () => this.notifyServer() });
    this.onEvent = () => stream.onEvent();
    return stream;
  }
}

/** A xenstored on virtual time, with a machine of make-believe domains. */
export class Lab {
  readonly scheduler: SeededScheduler;
  readonly server: XenStoreServer;
  readonly guests = new Map<number, Guest>();
  readonly states = new Map<number, DomainState>();
  readonly log: string[] = [];
  readonly host: XenStoreHost;

  constructor(seed = 1, options: Partial<XenStoreServerOptions> = {}) {
    this.scheduler = new SeededScheduler(seed, { yieldToMicrotasks: () => new Promise(setImmediate) });
    this.host = {
      introduce: (domid, _gfn, _port, onEvent) => {
        const guest = this.guests.get(domid);
        if (guest === undefined || this.states.get(domid) === 'absent') {
          throw new XenStoreError('ENOENT', `there is no domain ${domid}`);
        }
        guest.onServerEvent = onEvent;
        guest.mapped++;
        return {
          memory: guest.memory,
          address: 0,
          notify: () => this.scheduler.post(new Task('to guest', () => guest.onEvent())),
          unmap: () => {
            guest.mapped--;
          },
        };
      },
      domainState: domid => this.states.get(domid) ?? 'absent',
    };
    this.server = new XenStoreServer({
      scheduler: this.scheduler,
      host: this.host,
      random: this.scheduler.random,
      log: line => this.log.push(line),
      ...options,
    });
  }

  /** A client like one on the socket: domain 0. */
  client(): XenStoreClient {
    return new XenStoreClient(this.stream(0), { scheduler: this.scheduler, random: this.scheduler.random });
  }

  /** A stream to the server, whose other end acts as `domid`. */
  stream(domid = 0): ByteStream {
    const [ours, theirs] = streamPair(this.scheduler);
    this.server.attach(theirs, domid);
    return ours;
  }

  /** A domain with a ring page; not introduced yet. */
  createDomain(domid: number): Guest {
    const guest = new Guest(this);
    this.guests.set(domid, guest);
    this.states.set(domid, 'alive');
    return guest;
  }

  destroyDomain(domid: number): void {
    this.states.set(domid, 'absent');
    this.server.domainsChanged();
  }

  /** Creates and introduces a domain, and gives a client over its ring. */
  domain(domid: number): { guest: Guest; client: XenStoreClient; stream: RingStream } {
    const guest = this.createDomain(domid);
    this.server.introduce(domid, 1, 1);
    const stream = guest.stream();
    return { guest, stream, client: new XenStoreClient(stream, { scheduler: this.scheduler }) };
  }

  /** Runs the host until the promise settles. */
  run<T>(promise: Promise<T>): Promise<T> {
    return this.scheduler.runToEnd(promise);
  }
}
