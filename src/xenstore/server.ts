import { DOMID_SELF } from '../abi/xen.js';
import {
  parseXsdError,
  XENSTORE_PAYLOAD_MAX,
  XS,
  XS_HEADER_SIZE,
  XS_TYPE_COUNT,
  xsTypeName,
} from '../abi/xs-wire.js';
import type { Memory } from '../platform/memory.js';
import type { ByteStream } from '../platform/platform.js';
import { type Scheduler, Task } from '../platform/scheduler.js';
import { Connection, type ConnectionHost, watchKey } from './connection.js';
import { control } from './control.js';
import { type Domain, type DomainState, SUPPORTED_FEATURES } from './domains.js';
import { latin1, latin1Bytes, printable } from './latin1.js';
import { get32 } from './output.js';
import { domainPath, hashPath, Path } from './path.js';
import { parseDomid, stringEnd, strings } from './payload.js';
import { formatPermission, PERM_READ, type Permissions, parsePermission } from './permissions.js';
import { isExhausted, isQuotaName, QUOTA_NAMES, type Quotas, SOFT_MEMORY_DEFAULT } from './quota.js';
import { RightOfWay } from './right-of-way.js';
import { RingTransport } from './ring-transport.js';
import { type Outcome, Store } from './store.js';
import { ACCESS, type Transaction } from './transaction.js';
import { StreamTransport, type Transport } from './transport.js';
import { listChildren } from './tree.js';
import { takeValue } from './value.js';
import { ANY_DEPTH, Watch } from './watches.js';
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

const OK = latin1Bytes('OK\0');
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
      if (state === 'absent' || state === 'dying') this.#removeDomain(domain, true);
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
      if (this.#rightOfWay.isHeld && this.#mustYield(connection, tx, bytes, start, end)) return false;
      error = this.#dispatch(connection, tx, bytes, start, end);
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

  /** Watches, transactions and buffers: all that a connection holds. */
  #dropState(connection: Connection): void {
    this.#resetWatches(connection);
    connection.reset();
  }

  #resetWatches(connection: Connection): void {
    for (const watch of connection.watches.values()) this.#removeWatch(connection, watch);
    connection.watches.clear();
    for (const tx of connection.transactions.values()) this.#endTransaction(connection, tx);
    connection.transactions.clear();
  }

  #removeDomain(domain: Domain, tell: boolean): void {
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
    if (domain.introduced && tell) this.store.fireSpecial('@releaseDomain', domain.domid);
  }

  // ------------------------------------------------------------------- requests

  #dispatch(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    switch (connection.type) {
      case XS.READ: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        const node = this.store.get(this.#path, connection, tx, PERM_READ, ACCESS.NODE);
        if (node === null) return this.store.error;
        connection.replyValue(node.value);
        return '';
      }
      case XS.WRITE:
        return this.#write(connection, tx, bytes, start, end);
      case XS.DIRECTORY: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        const node = this.store.get(this.#path, connection, tx, PERM_READ, ACCESS.CHILDREN);
        if (node === null) return this.store.error;
        if (node.childBytes > XENSTORE_PAYLOAD_MAX) return 'E2BIG';
        connection.reply(listChildren(node), 0, node.childBytes);
        return '';
      }
      case XS.DIRECTORY_PART:
        return this.#directoryPart(connection, tx, bytes, start, end);
      case XS.GET_PERMS: {
        if (!this.#onePath(connection, bytes, start, end, true)) return 'EINVAL';
        const node = this.store.get(this.#path, connection, tx, PERM_READ, ACCESS.NODE);
        if (node === null) return this.store.error;
        connection.replyText(node.permissions.map(entry => `${formatPermission(entry)}\0`).join(''));
        return '';
      }
      case XS.SET_PERMS:
        return this.#setPermissions(connection, tx, bytes, start, end);
      case XS.MKDIR: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        return this.#written(connection, tx, this.store.mkdir(this.#path, connection, tx));
      }
      case XS.RM: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        return this.#written(connection, tx, this.store.rm(this.#path, connection, tx));
      }
      case XS.WATCH:
        return this.#watch(connection, bytes, start, end);
      case XS.UNWATCH:
        return this.#unwatch(connection, bytes, start, end);
      case XS.RESET_WATCHES:
        this.#resetWatches(connection);
        return this.#ok(connection);
      case XS.TRANSACTION_START:
        return this.#startTransaction(connection, tx);
      case XS.TRANSACTION_END:
        return this.#transactionEnd(connection, tx, bytes, start, end);
      case XS.GET_DOMAIN_PATH: {
        const domid = this.#oneDomid(bytes, start, end);
        if (domid < 0) return 'EINVAL';
        connection.replyText(`${domainPath(domid)}\0`);
        return '';
      }
      case XS.IS_DOMAIN_INTRODUCED: {
        const domid = this.#oneDomid(bytes, start, end);
        if (domid < 0) return 'EINVAL';
        connection.replyText(domid === DOMID_SELF || this.isIntroduced(domid) ? 'T\0' : 'F\0');
        return '';
      }
      case XS.GET_FEATURE:
        return this.#getFeature(connection, bytes, start, end);
      case XS.CONTROL:
      case XS.INTRODUCE:
      case XS.RELEASE:
      case XS.RESUME:
      case XS.SET_TARGET:
      case XS.SET_FEATURE:
      case XS.GET_QUOTA:
      case XS.SET_QUOTA: {
        if (!connection.privileged) return 'EACCES';
        const words = strings(bytes, start, end);
        return words === null ? 'EINVAL' : this.#privileged(connection, words);
      }
      default:
        return 'ENOSYS';
    }
  }

  #ok(connection: Connection): Outcome {
    connection.reply(OK, 0, 3);
    return '';
  }

  /** Acknowledges a change, and charges its domain when others' transactions may suffer from it. */
  #written(connection: Connection, tx: Transaction | null, outcome: Outcome): Outcome {
    if (outcome !== '') return outcome;
    const { domain } = connection;
    if (tx === null && domain !== null && !connection.privileged && this.store.openTransactions > 0) {
      this.#rate.charge(domain);
    }
    if (domain !== null && !connection.privileged) this.#warnOfMemory(domain);
    return this.#ok(connection);
  }

  /** Says once that a domain is above the soft limit, and again when it was below in between. */
  #warnOfMemory(domain: Domain): void {
    const isAbove = domain.usage.memory > this.softQuotas.memory;
    if (isAbove && !domain.memoryWarned) {
      this.log(`domain ${domain.domid} uses ${domain.usage.memory} bytes, more than the soft quota`);
    }
    domain.memoryWarned = isAbove;
  }

  /** The payload is one path and its NUL. */
  #onePath(connection: Connection, bytes: Uint8Array, start: number, end: number, special = false): boolean {
    return (
      stringEnd(bytes, start, end) === end - 1 && this.#parse(connection, bytes, start, end - 1, special)
    );
  }

  #parse(connection: Connection, bytes: Uint8Array, start: number, end: number, special: boolean): boolean {
    let max = 0;
    if (!connection.privileged && connection.domain !== null) {
      max = this.store.quota(connection.domain, 'path-max');
    }
    return this.#path.parse(bytes, start, end, connection.home, special, max);
  }

  /** The payload is one domid and its NUL. @returns -1 when it is not */
  #oneDomid(bytes: Uint8Array, start: number, end: number): number {
    const words = strings(bytes, start, end);
    return words?.length === 1 ? parseDomid(words[0]) : -1;
  }

  #write(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    const stop = stringEnd(bytes, start, end);
    if (stop < 0 || !this.#parse(connection, bytes, start, stop, false)) return 'EINVAL';
    const value = takeValue(bytes, stop + 1, end);
    return this.#written(connection, tx, this.store.write(this.#path, connection, tx, value));
  }

  /** A part of a listing that need not fit one message, and the generation that it belongs to. */
  #directoryPart(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    const words = strings(bytes, start, end);
    if (words?.length !== 2 || !/^[0-9]{1,10}$/.test(words[1])) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, false)) return 'EINVAL';
    const node = this.store.get(this.#path, connection, tx, PERM_READ, ACCESS.CHILDREN);
    if (node === null) return this.store.error;
    const offset = Number(words[1]);
    const generation = latin1Bytes(`${node.childGeneration}\0`);
    const listing = listChildren(node);
    if (offset >= listing.length) {
      // The empty name that ends a listing.
      const last = new Uint8Array(generation.length + 1);
      last.set(generation);
      connection.reply(last, 0, last.length);
      return '';
    }
    // Whole names only, as many as fit together with the empty one that ends the listing.
    let stop = Math.min(listing.length, offset + XENSTORE_PAYLOAD_MAX - generation.length - 1);
    const isLast = stop === listing.length;
    if (!isLast) stop = listing.lastIndexOf(0, stop - 1) + 1;
    if (stop <= offset) return 'EINVAL';
    const part = new Uint8Array(generation.length + stop - offset + (isLast ? 1 : 0));
    part.set(generation);
    part.set(listing.subarray(offset, stop), generation.length);
    connection.reply(part, 0, part.length);
    return '';
  }

  #setPermissions(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length < 2) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, true)) return 'EINVAL';
    const permissions = [];
    for (const word of words.slice(1)) {
      const parsed = parsePermission(word);
      if (parsed === null) return 'EINVAL';
      permissions.push(this.store.permission(parsed.domid, parsed.access));
    }
    const outcome = this.store.setPermissions(
      this.#path,
      connection,
      tx,
      permissions as never as Permissions,
    );
    return this.#written(connection, tx, outcome);
  }

  #watch(connection: Connection, bytes: Uint8Array, start: number, end: number): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length < 2 || words.length > 3) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, true)) return 'EINVAL';
    let depth = ANY_DEPTH;
    if (words.length === 3 && words[2] !== '') {
      if (!/^[0-9]{1,5}$/.test(words[2])) return 'EINVAL';
      depth = Math.min(Number(words[2]), ANY_DEPTH);
    }
    const { domain } = connection;
    if (!connection.privileged && domain !== null) {
      if (isExhausted(this.store.quota(domain, 'watches'), domain.usage.watches)) return 'ENOSPC';
      const limit = this.store.quota(domain, 'memory');
      if (limit !== 0 && domain.usage.memory + watchBytes(words[0], words[1]) > limit) return 'ENOMEM';
    }
    const path = this.#path.toString();
    const key = watchKey(path, words[1]);
    if (connection.watches.has(key)) return 'EEXIST';
    this.addWatch(connection, path, words[1], depth, this.#path.relative);
    this.#ok(connection);
    const watch = connection.watches.get(key)!;
    const epath = latin1Bytes(path);
    connection.watchEvent(watch, epath, 0, epath.length);
    return '';
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

  #unwatch(connection: Connection, bytes: Uint8Array, start: number, end: number): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length < 2) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, true)) return 'EINVAL';
    const key = watchKey(this.#path.toString(), words[1]);
    const watch = connection.watches.get(key);
    if (watch === undefined) return 'ENOENT';
    connection.watches.delete(key);
    this.#removeWatch(connection, watch);
    return this.#ok(connection);
  }

  #removeWatch(connection: Connection, watch: Watch): void {
    this.#path.set(watch.path);
    this.store.watches.remove(watch, this.#path);
    connection.forgetEvents(watch);
    const { domain } = connection;
    if (domain === null) return;
    this.store.domains.use(domain, 'watches', -1);
    this.store.domains.use(domain, 'memory', -watchBytes(watch.path, watch.token));
  }

  #startTransaction(connection: Connection, tx: Transaction | null): Outcome {
    if (tx !== null) return 'EBUSY';
    const { domain } = connection;
    if (!connection.privileged && domain !== null) {
      if (isExhausted(this.store.quota(domain, 'transactions'), domain.usage.transactions)) return 'ENOSPC';
    }
    const id = this.beginTransaction(connection).id;
    this.#rightOfWay.begin(connection);
    connection.replyText(`${id}\0`);
    return '';
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

  #transactionEnd(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    if (end - start !== 2 || bytes[start + 1] !== 0) return 'EINVAL';
    const commit = bytes[start] === 0x54;
    if (!commit && bytes[start] !== 0x46) return 'EINVAL';
    if (tx === null) return 'ENOENT';
    connection.transactions.delete(tx.id);
    const { domain } = connection;
    if (domain !== null) this.store.domains.use(domain, 'transactions', -1);
    if (!commit) {
      this.store.abort(tx);
      this.#rightOfWay.forget(connection);
      return this.#ok(connection);
    }
    const others = this.store.openTransactions > 1;
    const { outcome, conflict } = this.store.commit(tx, connection);
    if (conflict !== undefined) this.#rightOfWay.lost(connection, conflict);
    else this.#rightOfWay.won(connection);
    if (outcome !== '') return outcome;
    if (domain !== null && !connection.privileged && others && tx.changes.length > 0)
      this.#rate.charge(domain);
    return this.#ok(connection);
  }

  #endTransaction(connection: Connection, tx: Transaction): void {
    this.store.abort(tx);
    this.#rightOfWay.forget(connection);
    if (connection.domain !== null) this.store.domains.use(connection.domain, 'transactions', -1);
  }

  /** Whether a request changes what the holder of the right of way needs to stay. */
  #mustYield(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): boolean {
    const { type } = connection;
    if (type === XS.TRANSACTION_END && tx !== null) {
      return tx.changes.some(change => this.#rightOfWay.blocks(connection, change.path));
    }
    if (tx !== null || (type !== XS.WRITE && type !== XS.MKDIR && type !== XS.RM && type !== XS.SET_PERMS)) {
      return false;
    }
    const stop = stringEnd(bytes, start, end);
    if (stop < 0 || !this.#parse(connection, bytes, start, stop, false)) return false;
    return this.#rightOfWay.blocks(connection, this.#path.toString());
  }

  #getFeature(connection: Connection, bytes: Uint8Array, start: number, end: number): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length > 1) return 'EINVAL';
    let features = SUPPORTED_FEATURES;
    if (words.length === 1 && words[0] !== '') {
      if (!connection.privileged) return 'EACCES';
      const domain = this.#existing(words[0]);
      if (typeof domain === 'string') return domain;
      features = domain.features;
    }
    connection.replyText(`${features}\0`);
    return '';
  }

  /** Requests of the control domain only. */
  #privileged(connection: Connection, words: string[]): Outcome {
    switch (connection.type) {
      case XS.CONTROL: {
        const answer = control(this, words);
        if (answer.error !== undefined) return answer.error;
        connection.replyText(answer.text);
        return '';
      }
      case XS.INTRODUCE:
        return this.#introduce(connection, words);
      case XS.RELEASE: {
        const domain = this.#introduced(words[0]);
        if (typeof domain === 'string') return domain;
        this.#removeDomain(domain, true);
        return this.#ok(connection);
      }
      case XS.RESUME: {
        const domain = this.#introduced(words[0]);
        if (typeof domain === 'string') return domain;
        domain.shutdown = false;
        return this.#ok(connection);
      }
      case XS.SET_TARGET: {
        if (words.length < 2) return 'EINVAL';
        const from = this.#rings.get(parseDomid(words[0]));
        const to = this.#rings.get(parseDomid(words[1]));
        if (from === undefined || to === undefined) return 'ENOENT';
        from.connection.target = { domid: to.connection.domid };
        return this.#ok(connection);
      }
      case XS.SET_FEATURE:
        return this.#setFeature(connection, words);
      case XS.GET_QUOTA:
        return this.#getQuota(connection, words);
      default:
        return this.#setQuota(connection, words);
    }
  }

  #setFeature(connection: Connection, words: string[]): Outcome {
    if (words.length !== 2 || !/^[0-9]{1,10}$/.test(words[1])) return 'EINVAL';
    const features = Number(words[1]);
    if (features & ~SUPPORTED_FEATURES || features > 0xffffffff) return 'EINVAL';
    const domain = this.#existing(words[0]);
    if (typeof domain === 'string') return domain;
    if (domain.introduced) return 'EBUSY';
    domain.features = features;
    return this.#ok(connection);
  }

  /** The value of a quota, for one domain or by default; without words the names of all. */
  #getQuota(connection: Connection, words: string[]): Outcome {
    if (words.length === 0 || (words.length === 1 && words[0] === '')) {
      connection.replyText(`${QUOTA_NAMES.join(' ')}\0`);
      return '';
    }
    const name = words[words.length - 1];
    if (words.length > 2 || !isQuotaName(name)) return 'EINVAL';
    let value = this.store.quotas[name];
    if (words.length === 2) {
      const domain = this.#existing(words[0]);
      if (typeof domain === 'string') return domain;
      value = this.store.quota(domain, name);
    }
    connection.replyText(`${value}\0`);
    return '';
  }

  #setQuota(connection: Connection, words: string[]): Outcome {
    const [name, value] = words.slice(-2);
    if (words.length < 2 || words.length > 3 || !isQuotaName(name) || !/^[0-9]{1,9}$/.test(value)) {
      return 'EINVAL';
    }
    if (words.length === 2) this.store.quotas[name] = Number(value);
    else {
      const domain = this.#existing(words[0]);
      if (typeof domain === 'string') return domain;
      domain.quotas[name] = Number(value);
    }
    return this.#ok(connection);
  }

  #introduce(connection: Connection, words: string[]): Outcome {
    if (words.length < 3) return 'EINVAL';
    const domid = parseDomid(words[0]);
    const port = Number(words[2]);
    if (domid < 0 || !/^-?[0-9]{1,20}$/.test(words[1]) || !/^[0-9]{1,10}$/.test(words[2]) || port === 0) {
      return 'EINVAL';
    }
    try {
      this.introduce(domid, Number(words[1]), port);
    } catch (error) {
      this.log(`domain ${domid} cannot be introduced: ${(error as Error).message}`);
      return parseXsdError((error as { code?: string }).code ?? '');
    }
    return this.#ok(connection);
  }

  /** The domain of this number, introduced or not, or the error to answer. */
  #existing(word: string): Domain | 'EINVAL' | 'ENOENT' {
    const domid = parseDomid(word);
    return domid < 0 ? 'EINVAL' : (this.store.domains.find(domid) ?? 'ENOENT');
  }

  /** The domain of this number that is introduced, or the error to answer. */
  #introduced(word: string | undefined): Domain | 'EINVAL' | 'ENOENT' {
    const domid = parseDomid(word ?? '');
    if (domid <= 0) return 'EINVAL';
    const domain = this.store.domains.get(domid);
    return domain?.introduced ? domain : 'ENOENT';
  }
}

/** What a watch costs its domain's memory quota. */
function watchBytes(path: string, token: string): number {
  return 64 + path.length + token.length;
}
