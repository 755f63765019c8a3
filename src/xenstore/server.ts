import { XS, XS_HEADER_SIZE, XS_TYPE_COUNT, xsTypeName } from '../abi/xs-wire.js';
import type { Memory } from '../platform/memory.js';
import type { ByteStream } from '../platform/platform.js';
import { type Scheduler, Task } from '../platform/scheduler.js';
import { Connection, type ConnectionHost, watchKey } from './connection.js';
import type { Domain, DomainState } from './domains.js';
import { latin1, printable } from './latin1.js';
import { get32 } from './output.js';
import { hashPath, Path } from './path.js';
import { stringEnd } from './payload.js';
import { isExhausted, type Quotas, SOFT_MEMORY_DEFAULT } from './quota.js';
import { Requests } from './requests.js';
import { RightOfWay } from './right-of-way.js';
import { RingTransport } from './ring-transport.js';
import { type Outcome, Store } from './store.js';
import type { Transaction } from './transaction.js';
import { StreamTransport, type Transport } from './transport.js';
import { Watch, watchBytes } from './watches.js';
import { WriteRate } from './write-rate.js';

/** A domain's ring page, mapped, and its event channel, bound. */
export interface MappedRing {
  readonly memory: Memory;
  /** Byte address of struct xenstore_domain_interface in `memory`. */
  readonly address: number;
  notify(): void;
  /** Unmaps the page and closes the port. */
  unmap(): void;
}

/** What xenstored needs of the machine it runs on; injected. */
export interface XenStoreHost {
  /**
   * Maps the ring page of a domain (its reserved grant reference 1) and binds its port.
   * @param gfn as INTRODUCE gave it; not needed where the grant is used
   * @param onEvent is to be called when the domain notifies, from a task of its own
   * @throws ErrnoError when the domain, its grant or its port is not there
   */
  introduce(domid: number, gfn: number, port: number, onEvent: () => void): MappedRing;
  domainState(domid: number): DomainState;
}

export interface XenStoreServerOptions {
  scheduler: Scheduler;
  host: XenStoreHost;
  /** A number in [0, 1). */
  random: () => number;
  /** Limits other than the defaults. */
  quotas?: Partial<Quotas>;
  /**
   * How long an event may wait for an unprivileged client to make room before it is dropped (C
   * xenstored's --timeout watch-event); 0 for ever. 20 seconds unless said otherwise.
   */
  watchEventTimeoutMs?: number;
  /** Gets a line for what an operator should know. */
  log?: (line: string) => void;
  /** Runs `live-update` of CONTROL; what it answers goes to the client. Without it the command fails. */
  liveUpdate?: (options: string[]) => string;
  /**
   * Sends what is logged to a file from now on, for `logfile` of CONTROL. Without it the command fails.
   * @throws an Error with `code` when it cannot be written
   */
  openLogFile?: (path: string) => void;
  /**
   * Writes a text to a file, for `memreport` of CONTROL. Without it the command fails when it names a file.
   * @throws an Error with `code` when it cannot be written
   */
  writeFile?: (path: string, text: string) => void;
}

/** Nodes from which on the processor's caches do not hold them all. */
const FAR = 20_000;
/** Requests whose nodes are fetched together. */
const AHEAD = 64;
/** C xenstored's default. */
const WATCH_EVENT_TIMEOUT_MS = 20_000;

/**
 * xenstored: serves one `Store` to socket clients, to domains over their ring pages, and to whoever is
 * attached over a stream. Portable: everything it needs of a host is injected.
 */
export class XenStoreServer implements ConnectionHost {
  readonly store: Store;
  readonly connections = new Set<Connection>();
  readonly softQuotas = { memory: SOFT_MEMORY_DEFAULT };
  readonly scheduler: Scheduler;
  readonly watchEventTimeoutMs: number;
  readonly log: (line: string) => void;
  readonly liveUpdate: XenStoreServerOptions['liveUpdate'];
  readonly openLogFile: XenStoreServerOptions['openLogFile'];
  readonly writeFile: XenStoreServerOptions['writeFile'];
  /** Requests handled. */
  requests = 0;
  /** Whether every request is logged (`control log on`). */
  isLogging = false;
  readonly #host: XenStoreHost;
  readonly #path: Path;
  readonly #rate: WriteRate;
  readonly #rightOfWay: RightOfWay;
  readonly #requests: Requests;
  readonly #rings = new Map<number, { connection: Connection; transport: RingTransport; port: number }>();
  #dirty: Connection[] = [];
  #resuming: Connection[] = [];
  #abandoned: Connection[] = [];
  readonly #ahead = new Int32Array(AHEAD);
  #nextConnectionId = 1;
  readonly #resumeTask: Task;
  readonly #abandonTask: Task;
  readonly #waiting = new Set<Connection>();

  constructor(options: XenStoreServerOptions) {
    this.scheduler = options.scheduler;
    this.watchEventTimeoutMs = options.watchEventTimeoutMs ?? WATCH_EVENT_TIMEOUT_MS;
    this.log = options.log ?? (() => {});
    this.liveUpdate = options.liveUpdate;
    this.openLogFile = options.openLogFile;
    this.writeFile = options.writeFile;
    this.#host = options.host;
    this.store = new Store({ random: options.random, domainState: domid => this.#host.domainState(domid) });
    Object.assign(this.store.quotas, options.quotas);
    this.#path = new Path(this.store.salt);
    this.#rate = new WriteRate(() => this.scheduler.now());
    this.#rightOfWay = new RightOfWay(this.scheduler, connection => this.resumeLater(connection));
    this.#requests = new Requests(this, this.#rate, this.#rightOfWay);
    this.#resumeTask = new Task('xenstored resume', () => this.#resume());
    this.#abandonTask = new Task('xenstored abandon', () => this.#cleanUp());
    this.store.ensure('/tool/xenstored');
  }

  // ---------------------------------------------------------------- connections

  /**
   * Serves a client over a stream.
   * @param domid the domain the client is; domain 0, as every socket client, unless said otherwise
   */
  attach(stream: ByteStream, domid = 0): Connection {
    const transport = new StreamTransport(stream);
    const connection = this.connect(transport, domid);
    transport.start(connection);
    return connection;
  }

  /** Serves a client over a transport of the caller's own. */
  connect(transport: Transport, domid = 0): Connection {
    const domain = domid === 0 ? null : (this.store.domains.get(domid) ?? this.store.domains.add(domid));
    return this.#connect(transport, domain, domid);
  }

  #connect(transport: Transport, domain: Domain | null, domid: number): Connection {
    const id = this.#nextConnectionId++;
    const connection = new Connection(this, id, transport, domain, domid, domid === 0);
    this.connections.add(connection);
    return connection;
  }

  /** The host calls it when a domain was shut down or destroyed (VIRQ_DOM_EXC). */
  domainsChanged(): void {
    for (const domain of [...this.store.domains]) {
      if (domain.domid === 0) continue;
      const state = this.#host.domainState(domain.domid);
      if (state === 'absent' || state === 'dying') this.removeDomain(domain);
      else if (state === 'shutdown' && domain.introduced && !domain.shutdown) {
        domain.shutdown = true;
        this.store.fireSpecial('@releaseDomain', domain.domid);
      }
    }
    this.flush();
  }

  /** Starts to serve a domain over its ring page, as INTRODUCE does. @throws what the host throws */
  introduce(domid: number, gfn: number, port: number): void {
    this.#serveDomain(domid, gfn, port, true);
  }

  #serveDomain(domid: number, gfn: number, port: number, tell: boolean): void {
    const { domains } = this.store;
    const known = this.#rings.get(domid);
    if (known !== undefined) {
      // Again for a domain that is served: its event channel was made anew.
      this.#dropState(known.connection);
      const ring = this.#host.introduce(domid, gfn, port, () => known.transport.onEvent());
      known.transport.replace(ring);
      known.port = port;
      known.connection.ignored = false;
      return;
    }
    const transport = new RingTransport(this.scheduler);
    const ring = this.#host.introduce(domid, gfn, port, () => transport.onEvent());
    const domain = domains.get(domid) ?? domains.add(domid);
    const connection = this.#connect(transport, domain, domid);
    domain.introduced = true;
    domain.shutdown = false;
    this.#rings.set(domid, { connection, transport, port });
    this.#rate.add(domain);
    transport.start(ring, connection, {
      features: domain.features,
      onBroken: error => this.abandon(connection, error, 'its ring is broken'),
      onReconnect: () => this.#dropState(connection),
    });
    if (domid !== 0 && tell) this.store.fireSpecial('@introduceDomain', domid);
  }

  /** The event channel of a connection that is a ring page. */
  ringOf(connection: Connection): { readonly port: number } | undefined {
    const ring = this.#rings.get(connection.domid);
    return ring?.connection === connection ? ring : undefined;
  }

  /** The connection that is a domain's ring page. */
  connectionOf(domid: number): Connection | undefined {
    return this.#rings.get(domid)?.connection;
  }

  /** Serves a domain that the saved state says was served; undefined when it is gone. */
  takeUpRing(domid: number, port: number): Connection | undefined {
    try {
      this.#serveDomain(domid, 0, port, false);
      return this.#rings.get(domid)!.connection;
    } catch (error) {
      this.log(`domain ${domid} is not served any more: ${(error as Error).message}`);
      return undefined;
    }
  }

  isIntroduced(domid: number): boolean {
    return domid === 0 || this.store.domains.get(domid)?.introduced === true;
  }

  // ------------------------------------------------------------ ConnectionHost

  handle(connection: Connection, bytes: Uint8Array, start: number, end: number): boolean {
    let tx: Transaction | null = null;
    const { type } = connection;
    let error: Outcome = '';
    if (connection.txId !== 0 && type !== XS.WATCH && type !== XS.UNWATCH) {
      tx = connection.transactions.get(connection.txId) ?? null;
      if (tx === null) error = type < XS_TYPE_COUNT ? 'ENOENT' : 'ENOSYS';
    }
    if (error === '') {
      if (this.#rightOfWay.isHeld && this.#requests.mustYield(connection, tx, bytes, start, end))
        return false;
      error = this.#requests.dispatch(connection, tx, bytes, start, end);
    }
    this.requests++;
    if (this.isLogging) {
      const about = latin1(bytes, start, Math.max(start, stringEnd(bytes, start, end)));
      // A guest's bytes must not look like lines of their own, or reach a terminal.
      this.log(
        `${connection.id} (domain ${connection.domid}) ${xsTypeName(type)} ${printable(about)} ${error}`.trimEnd(),
      );
    }
    if (error !== '') connection.replyError(error);
    return true;
  }

  foresee(bytes: Uint8Array, start: number, end: number): number {
    const { store } = this;
    if (store.nodeCount < FAR) return AHEAD;
    const hashes = this.#ahead;
    let count = 0;
    let at = start;
    while (count < AHEAD && end - at >= XS_HEADER_SIZE) {
      const next = at + XS_HEADER_SIZE + get32(bytes, at + 12);
      if (next > end) break;
      hashes[count++] = hashPath(bytes, at + XS_HEADER_SIZE, next, store.salt);
      at = next;
    }
    if (count > 1) store.tree.fetch(hashes, count);
    return count;
  }

  mustWait(connection: Connection): boolean {
    if (this.#rightOfWay.isWaiting(connection)) return true;
    const { domain } = connection;
    if (domain === null || connection.privileged || domain.credit >= 0) return false;
    const delay = this.#rate.delay(domain);
    if (delay === 0) return false;
    if (!this.#waiting.has(connection)) {
      this.#waiting.add(connection);
      this.scheduler.after(delay, () => {
        this.#waiting.delete(connection);
        this.resumeLater(connection);
      });
    }
    return true;
  }

  tooManyReplies(connection: Connection, replies: number): boolean {
    if (connection.privileged || connection.domain === null) return false;
    return isExhausted(this.store.quota(connection.domain, 'outstanding'), replies);
  }

  dirty(connection: Connection): void {
    if (connection.isDirty) return;
    connection.isDirty = true;
    this.#dirty.push(connection);
  }

  flush(): void {
    const dirty = this.#dirty;
    if (dirty.length === 0) return;
    for (let i = 0; i < dirty.length; i++) dirty[i].flush();
    dirty.length = 0;
  }

  resumeLater(connection: Connection): void {
    if (connection.isResuming || connection.isClosed) return;
    connection.isResuming = true;
    this.#resuming.push(connection);
    this.scheduler.post(this.#resumeTask);
  }

  abandon(connection: Connection, error: number, why: string): void {
    if (connection.ignored || connection.isClosed) return;
    this.log(`connection ${connection.id} (domain ${connection.domid}) is not served any more: ${why}`);
    connection.ignored = true;
    const ring = this.#rings.get(connection.domid);
    if (ring?.connection === connection) ring.transport.setError(error);
    this.#abandoned.push(connection);
    this.scheduler.post(this.#abandonTask);
  }

  disconnected(connection: Connection): void {
    this.connections.delete(connection);
    this.#dropState(connection);
    this.#rightOfWay.forget(connection);
  }

  #cleanUp(): void {
    for (const connection of this.#abandoned.splice(0)) {
      // It has connected anew since.
      if (!connection.ignored) continue;
      this.#dropState(connection);
      // A domain's connection stays until the domain goes: then @releaseDomain is due (XSA-325).
      if (this.#rings.get(connection.domid)?.connection !== connection) connection.close();
    }
    this.flush();
  }

  #resume(): void {
    const resuming = this.#resuming;
    this.#resuming = [];
    for (const connection of resuming) connection.resume();
    this.flush();
  }

  // ---------------------------------------------------- what connections and domains hold

  /** Watches, transactions and buffers: all that a connection holds. */
  #dropState(connection: Connection): void {
    this.resetWatches(connection);
    connection.reset();
  }

  /** Ends its watches and transactions. */
  resetWatches(connection: Connection): void {
    for (const watch of connection.watches.values()) this.removeWatch(connection, watch);
    connection.watches.clear();
    for (const tx of connection.transactions.values()) this.#endTransaction(connection, tx);
    connection.transactions.clear();
  }

  /** Registers a watch on an absolute path or special name, without a first event. */
  addWatch(connection: Connection, path: string, token: string, depth: number, relative: boolean): void {
    this.#path.set(path);
    const strip = relative ? connection.home.length + 1 : 0;
    const watch = new Watch(connection, this.#path, token, depth, strip);
    connection.watches.set(watchKey(path, token), watch);
    this.store.watches.add(watch, this.#path);
    const { domain } = connection;
    if (domain === null) return;
    this.store.domains.use(domain, 'watches', 1);
    this.store.domains.use(domain, 'memory', watchBytes(path, token));
  }

  removeWatch(connection: Connection, watch: Watch): void {
    this.#path.set(watch.path);
    this.store.watches.remove(watch, this.#path);
    connection.forgetEvents(watch);
    const { domain } = connection;
    if (domain === null) return;
    this.store.domains.use(domain, 'watches', -1);
    this.store.domains.use(domain, 'memory', -watchBytes(watch.path, watch.token));
  }

  /** @param id the number it had before, when a saved state is taken up */
  beginTransaction(connection: Connection, id?: number): Transaction {
    if (id === undefined) {
      do {
        id = connection.nextTransactionId;
        connection.nextTransactionId = (id + 1) >>> 0 || 1;
      } while (connection.transactions.has(id));
    }
    const tx = this.store.begin(id, connection.domid);
    connection.transactions.set(id, tx);
    if (connection.domain !== null) this.store.domains.use(connection.domain, 'transactions', 1);
    return tx;
  }

  #endTransaction(connection: Connection, tx: Transaction): void {
    this.store.abort(tx);
    this.#rightOfWay.forget(connection);
    if (connection.domain !== null) this.store.domains.use(connection.domain, 'transactions', -1);
  }

  /** Serves a domain no longer, and removes what it owns. */
  removeDomain(domain: Domain): void {
    const ring = this.#rings.get(domain.domid);
    for (const connection of [...this.connections]) {
      if (connection.domain === domain) connection.close();
      else if (connection.target?.domid === domain.domid) connection.target = null;
    }
    this.store.removeOwned(domain);
    this.store.domains.remove(domain);
    if (ring !== undefined) {
      this.#rings.delete(domain.domid);
      this.#rate.remove(domain);
    }
    if (domain.introduced) this.store.fireSpecial('@releaseDomain', domain.domid);
  }
}
