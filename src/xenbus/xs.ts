import type { ErrnoName } from '../abi/errno.js';
import { XS } from '../abi/xs-wire.js';
import type { XenStoreClient } from '../xenstore/index.js';
import { asErrnoError, isGone, XenbusError } from './error.js';
import type { XenbusTrace, XenbusTraceEvent } from './trace.js';
import type { Xenwatch, XenwatchTarget } from './xenwatch.js';

/**
 * What can be done with nodes, inside a transaction or not. A path that does not begin with "/" is relative
 * to the domain's home. All reject with XenStoreError (its `code` is the errno xenstored answered) and, when the
 * store is out of reach, with XenbusError ENOTCONN.
 */
export interface XsOperations {
  read(path: string): Promise<string>;
  /** As `read`, but undefined when the node is missing or may not be read. */
  readOptional(path: string): Promise<string | undefined>;
  write(path: string, value: string | number): Promise<void>;
  mkdir(path: string): Promise<void>;
  /** Removes a node and all below; a missing node is no error. */
  rm(path: string): Promise<void>;
  directory(path: string): Promise<string[]>;
  /** Whether the node is there and may be read. */
  exists(path: string): Promise<boolean>;
}

/** A watch: `callback` runs on xenwatch, once at the registration and then whenever something at or below `node` changed. */
export interface XsWatchOptions {
  readonly node: string;
  /** @param path what changed; below `node`, or `node` itself when that or one above it was removed. May be spurious. */
  readonly callback: (path: string) => void | Promise<void>;
  /** Drops an event before it is queued. `nrPending` events of the watch wait already. */
  readonly willHandle?: (path: string, nrPending: number) => boolean;
}

export interface XsWatch extends XenwatchTarget {
  readonly node: string;
  readonly token: string;
  readonly willHandle?: (path: string, nrPending: number) => boolean;
  /** False once it was unregistered: a callback that is still running can tell. */
  active: boolean;
  /** xenstored knows it, on the present connection. */
  registered: boolean;
}

/** The operations that the store's client and its transactions share. */
type RawOperations = Pick<XenStoreClient, 'read' | 'write' | 'mkdir' | 'rm' | 'directory' | 'exists'>;

type Request = 'read' | 'write' | 'mkdir' | 'rm' | 'directory' | 'exists' | 'watch' | 'unwatch';

class Operations implements XsOperations {
  constructor(
    private readonly run: <T>(body: (raw: RawOperations) => Promise<T>) => Promise<T>,
    private readonly emit: (kind: Request, path: string, value?: string, error?: ErrnoName) => void,
  ) {}

  read(path: string): Promise<string> {
    return this.#traced(
      'read',
      path,
      raw => raw.read(path),
      value => value,
    );
  }

  async readOptional(path: string): Promise<string | undefined> {
    try {
      return await this.read(path);
    } catch (error) {
      if (isGone(error)) return undefined;
      throw error;
    }
  }

  write(path: string, value: string | number): Promise<void> {
    const text = String(value);
    return this.#traced(
      'write',
      path,
      raw => raw.write(path, text),
      () => text,
    );
  }

  mkdir(path: string): Promise<void> {
    return this.#traced('mkdir', path, raw => raw.mkdir(path));
  }

  async rm(path: string): Promise<void> {
    try {
      await this.#traced('rm', path, raw => raw.rm(path));
    } catch (error) {
      if (asErrnoError(error).code !== 'ENOENT') throw error;
    }
  }

  directory(path: string): Promise<string[]> {
    return this.#traced(
      'directory',
      path,
      raw => raw.directory(path),
      names => names.join(' '),
    );
  }

  async exists(path: string): Promise<boolean> {
    try {
      return await this.#traced(
        'exists',
        path,
        raw => raw.exists(path),
        there => (there ? 'yes' : 'no'),
      );
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  async #traced<T>(
    kind: Request,
    path: string,
    body: (raw: RawOperations) => Promise<T>,
    show?: (result: T) => string,
  ): Promise<T> {
    try {
      const result = await this.run(body);
      this.emit(kind, path, show?.(result));
      return result;
    } catch (error) {
      this.emit(kind, path, undefined, asErrnoError(error).code);
      throw error;
    }
  }
}

/**
 * The kernel's interface to xenstored (Linux's xenbus_xs): requests, transactions, and watches whose
 * callbacks run on xenwatch. The connection below may be replaced (suspend and resume, a restarted xenstored)
 * while watches keep their tokens.
 */
export class Xs implements XsOperations {
  #client: XenStoreClient | null = null;
  #suspended: Promise<void> | null = null;
  #endSuspend: () => void = () => {};
  /** Requests and transactions under way. */
  #users = 0;
  #onIdle: (() => void) | null = null;
  #nextToken = 1;
  readonly #watches = new Map<string, XsWatch>();
  readonly #operations: Operations;

  constructor(
    private readonly domid: number,
    private readonly xenwatch: Xenwatch,
    private readonly hooks: { log(line: string): void; trace: XenbusTrace | undefined },
  ) {
    this.#operations = new Operations(
      body => this.#use(body),
      (kind, path, value, error) => this.hooks.trace?.({ kind, domid, path, value, error }),
    );
  }

  /** Whether there is a connection. */
  get connected(): boolean {
    return this.#client !== null;
  }

  /** Watches that are registered. */
  get watches(): Iterable<XsWatch> {
    return this.#watches.values();
  }

  read(path: string): Promise<string> {
    return this.#operations.read(path);
  }
  readOptional(path: string): Promise<string | undefined> {
    return this.#operations.readOptional(path);
  }
  write(path: string, value: string | number): Promise<void> {
    return this.#operations.write(path, value);
  }
  mkdir(path: string): Promise<void> {
    return this.#operations.mkdir(path);
  }
  rm(path: string): Promise<void> {
    return this.#operations.rm(path);
  }
  directory(path: string): Promise<string[]> {
    return this.#operations.directory(path);
  }
  exists(path: string): Promise<boolean> {
    return this.#operations.exists(path);
  }

  /**
   * Runs `body` in a transaction and commits it; again from the start when it lost against another (EAGAIN).
   * What `body` throws aborts the transaction.
   */
  async transaction<T>(body: (t: XsOperations) => Promise<T>): Promise<T> {
    let events: XenbusTraceEvent[] = [];
    const result = await this.#use(
      client =>
        client.transaction(transaction => {
          events = [];
          const operations = new Operations(
            run => run(transaction),
            (kind, path, value, error) => events.push({ kind, domid: this.domid, path, value, error }),
          );
          return body(operations);
        }),
      true,
    );
    if (this.hooks.trace) for (const event of events) this.hooks.trace(event);
    return result;
  }

  /** Registers a watch. Its first event comes at once. @throws what xenstored answers (ENOSPC: the quota) */
  async registerWatch(options: XsWatchOptions): Promise<XsWatch> {
    const watch: XsWatch = {
      ...options,
      token: (this.#nextToken++).toString(16).toUpperCase(),
      pending: new Set(),
      active: true,
      registered: false,
    };
    // In the table first: the event may arrive before the reply.
    this.#watches.set(watch.token, watch);
    try {
      await this.#use(client => this.#watch(client, watch));
    } catch (error) {
      this.#forget(watch);
      this.#emit('watch', watch.node, asErrnoError(error).code);
      throw error;
    }
    this.#emit('watch', watch.node);
    return watch;
  }

  /**
   * Ends a watch; its queued events are dropped at once. A callback that is running goes on, and may call
   * this for its own watch.
   */
  async unregisterWatch(watch: XsWatch): Promise<void> {
    if (!watch.active) return;
    this.#forget(watch);
    if (!watch.registered || (this.#client === null && this.#suspended === null)) return;
    watch.registered = false;
    try {
      await this.#use(client => client.unwatchRaw(watch.node, watch.token));
      this.#emit('unwatch', watch.node);
    } catch (error) {
      // ENOENT: the connection was replaced meanwhile; ENOTCONN: it is gone, and the watch with it.
      const { code } = asErrnoError(error);
      this.#emit('unwatch', watch.node, code);
      if (code !== 'ENOENT' && code !== 'ENOTCONN') {
        this.hooks.log(`xenbus: cannot end the watch on ${watch.node}: ${asErrnoError(error).message}`);
      }
    }
  }

  /** Takes up a connection, the first or a new one after `disconnect`; does not touch the watches. */
  connect(client: XenStoreClient): void {
    this.#client = client;
    client.onWatchEvent = (path, token) => {
      const watch = this.#watches.get(token);
      if (watch === undefined || !(watch.willHandle?.(path, watch.pending.size) ?? true)) return;
      this.xenwatch.event(watch, path);
    };
  }

  /** Gives up the connection: what is asked from now on is refused with ENOTCONN. */
  disconnect(): void {
    const client = this.#client;
    this.#client = null;
    for (const watch of this.#watches.values()) watch.registered = false;
    if (client !== null) {
      client.onWatchEvent = null;
      client.close();
    }
  }

  /** The connection `client` has ended by itself. @returns false when it was not the present one */
  lost(client: XenStoreClient): boolean {
    if (this.#client !== client) return false;
    this.disconnect();
    return true;
  }

  /** Drops the watches and transactions that an earlier kernel of this domain left behind (RESET_WATCHES). */
  async resetWatches(): Promise<void> {
    await this.#use(client => client.request(XS.RESET_WATCHES, new Uint8Array(1)));
  }

  /** Tells xenstored about all watches again, with the tokens that they have (after a resume). */
  async reregisterWatches(): Promise<void> {
    const client = this.#client;
    if (client === null) throw this.#notConnected();
    for (const watch of [...this.#watches.values()]) {
      try {
        if (watch.active && !watch.registered) await this.#watch(client, watch);
      } catch (error) {
        if (this.#client !== client) throw this.#notConnected();
        this.hooks.log(`xenbus: cannot watch ${watch.node} again: ${asErrnoError(error).message}`);
      }
    }
  }

  /** Holds new requests back, and waits until those under way and all transactions are done (xs_suspend). */
  async suspend(): Promise<void> {
    if (this.#suspended !== null) throw new XenbusError('EBUSY', 'the store interface is suspended already');
    this.#suspended = new Promise(resolve => {
      this.#endSuspend = resolve;
    });
    if (this.#users === 0) return;
    await new Promise<void>(resolve => {
      this.#onIdle = resolve;
    });
  }

  /** Lets requests go on (the end of xs_resume, and xs_suspend_cancel). */
  unsuspend(): void {
    this.#suspended = null;
    this.#endSuspend();
  }

  async #watch(client: XenStoreClient, watch: XsWatch): Promise<void> {
    try {
      await client.watchRaw(watch.node, watch.token);
    } catch (error) {
      if (asErrnoError(error).code !== 'EEXIST') throw error;
      // Left by an earlier kernel of this domain (kexec): it is ours now, but no first event comes.
      this.xenwatch.event(watch, watch.node);
    }
    watch.registered = true;
  }

  #forget(watch: XsWatch): void {
    watch.active = false;
    this.#watches.delete(watch.token);
    this.xenwatch.purge(watch);
  }

  /** @param starts a transaction; a request may belong to something under way that the suspend waits for */
  async #use<T>(body: (client: XenStoreClient) => Promise<T>, starts = false): Promise<T> {
    while (this.#suspended !== null && (starts || this.#users === 0)) await this.#suspended;
    if (this.#client === null) throw this.#notConnected();
    this.#users++;
    try {
      return await body(this.#client);
    } finally {
      if (--this.#users === 0) {
        this.#onIdle?.();
        this.#onIdle = null;
      }
    }
  }

  #notConnected(): XenbusError {
    return new XenbusError('ENOTCONN', `domain ${this.domid} has no connection to xenstored`);
  }

  #emit(kind: Request, path: string, error?: ErrnoName): void {
    this.hooks.trace?.({ kind, domid: this.domid, path, error });
  }
}
