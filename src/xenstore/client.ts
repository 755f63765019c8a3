import {
  parseXsdError,
  XENSTORE_PAYLOAD_MAX,
  XS,
  XS_HEADER_SIZE,
  type XsdErrorName,
  xsTypeName,
} from '../abi/xs-wire.js';
import { type AbortSignalLike, abortable, throwIfAborted } from '../platform/abort.js';
import type { ByteStream } from '../platform/platform.js';
import { type Scheduler, sleep } from '../platform/scheduler.js';
import { ClientTransaction } from './client-transaction.js';
import { XenStoreError } from './error.js';
import { latin1 } from './latin1.js';
import { isErrno, NodeOperations, payload, type RequestOptions, splitStrings } from './operations.js';
import { get32, put32 } from './output.js';
import { decodeText } from './text.js';
import { WatchEvents } from './watch-events.js';

export interface XenStoreClientOptions {
  /** For pauses between a transaction's attempts; without it the next attempt follows at once. */
  scheduler?: Scheduler;
  /** A number in [0, 1); how long those pauses are. */
  random?: () => number;
  /** Transactions open at a time; more wait. Below the server's quota, which is 10 by default. */
  maxTransactions?: number;
}

export interface TransactionOptions extends RequestOptions {
  /** Attempts before the last EAGAIN is thrown. */
  attempts?: number;
}

export interface WatchOptions extends RequestOptions {
  /** Levels below the path that are watched too: 0 for the node alone. All, when not given. */
  depth?: number;
}

const MAX_TRANSACTIONS = 8;
const ATTEMPTS = 100;
const LONGEST_PAUSE_MS = 64;

interface Pending {
  readonly type: number;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: Error) => void;
  /** What the request was about, for messages. */
  readonly subject: () => string;
}

/**
 * A XenStore client over any stream of bytes: a socket, a ring page, /dev/xen/xenbus. Many requests may
 * be under way; replies find their request by its id. When the stream ends, all of them fail.
 */
export class XenStoreClient extends NodeOperations {
  /** Gets the events of `watchRaw` watches. */
  onWatchEvent: ((path: string, token: string) => void) | null = null;
  /** Gets to know, once, that the connection has ended. */
  onClose: ((error: XenStoreError) => void) | null = null;
  /** Replies that belonged to no request. */
  strayReplies = 0;
  readonly #stream: ByteStream;
  readonly #scheduler: Scheduler | undefined;
  readonly #random: () => number;
  readonly #pending = new Map<number, Pending>();
  readonly #watches = new Map<string, WatchEvents>();
  #nextId = 1;
  #nextToken = 1;
  #input = new Uint8Array(XS_HEADER_SIZE + XENSTORE_PAYLOAD_MAX);
  #inputLength = 0;
  #failure: XenStoreError | null = null;
  #freeTransactions: number;
  readonly #transactionQueue: (() => void)[] = [];

  constructor(stream: ByteStream, options: XenStoreClientOptions = {}) {
    super();
    this.#stream = stream;
    this.#scheduler = options.scheduler;
    this.#random = options.random ?? Math.random;
    this.#freeTransactions = options.maxTransactions ?? MAX_TRANSACTIONS;
    stream.onData(bytes => this.#receive(bytes));
    stream.onClose(error => {
      if (error instanceof XenStoreError) this.#fail(error);
      else this.#fail(new XenStoreError('ECONNRESET', error?.message ?? 'xenstored ended the connection'));
    });
  }

  /** @param txId the transaction that the request belongs to; 0 for none */
  override request(
    type: number,
    body: Uint8Array,
    options?: RequestOptions | number,
    signalOptions?: RequestOptions,
  ): Promise<Uint8Array> {
    const txId = typeof options === 'number' ? options : 0;
    const { signal } = (typeof options === 'number' ? signalOptions : options) ?? {};
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (signal?.aborted) return Promise.reject(signal.reason);
    if (body.length > XENSTORE_PAYLOAD_MAX) {
      const what = `${subjectOf(body)}: ${body.length} bytes; a request has at most ${XENSTORE_PAYLOAD_MAX}`;
      return Promise.reject(new XenStoreError('E2BIG', what));
    }
    const id = this.#takeId();
    const message = new Uint8Array(XS_HEADER_SIZE + body.length);
    put32(message, 0, type);
    put32(message, 4, id);
    put32(message, 8, txId);
    put32(message, 12, body.length);
    message.set(body, XS_HEADER_SIZE);
    const reply = new Promise<Uint8Array>((resolve, reject) => {
      this.#pending.set(id, { type, resolve, reject, subject: () => subjectOf(body) });
    });
    this.#stream.write(message);
    return abortable(reply, signal);
  }

  /** Tells xenstored to serve a domain. @param gfn of its ring page @param port of its event channel */
  async introduce(domid: number, gfn: number, port: number): Promise<void> {
    await this.request(XS.INTRODUCE, payload(String(domid), String(gfn), String(port)));
  }

  /** Tells xenstored to forget a domain. */
  async release(domid: number): Promise<void> {
    await this.request(XS.RELEASE, payload(String(domid)));
  }

  /** Lets the shutdown of a domain be reported once more. */
  async resume(domid: number): Promise<void> {
    await this.request(XS.RESUME, payload(String(domid)));
  }

  /** Gives a domain all rights of the one that it serves. */
  async setTarget(domid: number, target: number): Promise<void> {
    await this.request(XS.SET_TARGET, payload(String(domid), String(target)));
  }

  /** Whether xenstored serves a domain. */
  async isDomainIntroduced(domid: number): Promise<boolean> {
    return splitStrings(await this.request(XS.IS_DOMAIN_INTRODUCED, payload(String(domid))))[0] === 'T';
  }

  /** `/local/domain/<domid>`. */
  async getDomainPath(domid: number): Promise<string> {
    return splitStrings(await this.request(XS.GET_DOMAIN_PATH, payload(String(domid))))[0];
  }

  /** Drops all watches and transactions of this client, on the server. */
  async resetWatches(): Promise<void> {
    await this.request(XS.RESET_WATCHES, payload(''));
  }

  /** Runs a CONTROL command and returns what it printed. */
  async control(command: string, ...parameters: string[]): Promise<string> {
    return decodeText(await this.request(XS.CONTROL, payload(command, ...parameters))).replace(/\0$/, '');
  }

  /** XENSTORE_SERVER_FEATURE bits: of the server, or of what a domain gets to see. */
  async getFeature(domid?: number): Promise<number> {
    const body = domid === undefined ? new Uint8Array(0) : payload(String(domid));
    return Number(splitStrings(await this.request(XS.GET_FEATURE, body))[0]);
  }

  /** Has a domain see other features. @throws XenStoreError EBUSY once it is introduced, EINVAL for unknown bits */
  async setFeature(domid: number, features: number): Promise<void> {
    await this.request(XS.SET_FEATURE, payload(String(domid), String(features)));
  }

  /** The names of all quotas. */
  async quotaNames(): Promise<string[]> {
    return splitStrings(await this.request(XS.GET_QUOTA, new Uint8Array(0)))[0].split(' ');
  }

  /** A quota's value for a domain, or by default; 0 stands for no limit. */
  async getQuota(name: string, domid?: number): Promise<number> {
    const body = domid === undefined ? payload(name) : payload(String(domid), name);
    return Number(splitStrings(await this.request(XS.GET_QUOTA, body))[0]);
  }

  /** Sets a quota of a domain, or that of all which have none of their own; 0 for no limit. */
  async setQuota(name: string, value: number, domid?: number): Promise<void> {
    const words = [name, String(value)];
    await this.request(XS.SET_QUOTA, payload(...(domid === undefined ? words : [String(domid), ...words])));
  }

  /** Sets a watch whose events go to `onWatchEvent`, the first of them at once. */
  async watchRaw(path: string, token: string, depth?: number): Promise<void> {
    await this.request(
      XS.WATCH,
      depth === undefined ? payload(path, token) : payload(path, token, String(depth)),
    );
  }

  /** @throws XenStoreError ENOENT without such a watch */
  async unwatchRaw(path: string, token: string): Promise<void> {
    await this.request(XS.UNWATCH, payload(path, token));
  }

  /**
   * Watches a path: an endless series of the paths that changed, the first of them the watched path
   * itself. A path that changes again before it was taken is not reported twice, so a slow reader loses
   * nothing but repetitions. Ends with the loop that reads it (break, return) or `close()`; when the signal is aborted or the
   * connection ends, the loop throws the signal's reason, or the XenStoreError.
   *
   * @example for await (const path of client.watch('/local/domain/5/state')) console.log(path);
   */
  async watch(path: string, options: WatchOptions = {}): Promise<WatchEvents> {
    const { signal, depth } = options;
    const token = `w${this.#nextToken++}`;
    const events: WatchEvents = new WatchEvents(async () => {
      signal?.removeEventListener('abort', onAbort);
      this.#watches.delete(token);
      if (this.#failure === null) await this.unwatchRaw(path, token);
    });
    const onAbort = () => events.fail(signal?.reason);
    throwIfAborted(signal);
    this.#watches.set(token, events);
    const registered = this.watchRaw(path, token, depth);
    try {
      await abortable(registered, signal);
    } catch (error) {
      // Who gave it up before the answer leaves a watch behind.
      registered.then(
        () => events.close(),
        () => this.#watches.delete(token),
      );
      throw error;
    }
    signal?.addEventListener('abort', onAbort);
    return events;
  }

  /** Waits until the value at `path` satisfies `accept`; undefined stands for a node that is not there. */
  async waitFor(
    path: string,
    accept: (value: string | undefined) => boolean,
    options?: RequestOptions,
  ): Promise<string | undefined> {
    const events = await this.watch(path, options);
    try {
      for await (const _ of events) {
        const value = await this.readIfExists(path, options);
        if (accept(value)) return value;
      }
    } finally {
      await events.close();
    }
    throw this.#failure ?? new XenStoreError('EINTR', `the watch on ${path} was ended`);
  }

  /** Opens a transaction, which the caller has to `commit` or `abort`. */
  async begin(options?: RequestOptions): Promise<ClientTransaction> {
    await this.#takeTransaction(options?.signal);
    const started = this.request(XS.TRANSACTION_START, payload('')).then(reply => {
      return new ClientTransaction(this, Number(splitStrings(reply)[0]), () => this.#giveTransaction());
    });
    try {
      return await abortable(started, options?.signal);
    } catch (error) {
      // Who gave it up before the answer leaves an open transaction behind.
      started.then(
        transaction => transaction.abort().catch(() => {}),
        () => this.#giveTransaction(),
      );
      throw error;
    }
  }

  /**
   * Runs `body` in a transaction and commits. When others changed what it read or wrote, it is run again,
   * after a pause of random length, so `body` must do nothing but use the transaction. An error that it
   * throws gives the transaction up and is thrown on.
   * @throws XenStoreError EAGAIN when all attempts failed
   */
  async transaction<T>(
    body: (t: ClientTransaction) => Promise<T>,
    options: TransactionOptions = {},
  ): Promise<T> {
    const { signal, attempts = ATTEMPTS } = options;
    for (let attempt = 1; ; attempt++) {
      const t = await this.begin({ signal });
      let result: T;
      try {
        result = await body(t);
      } catch (error) {
        await t.abort().catch(() => {});
        throw error;
      }
      // What the body left undone itself.
      if (!t.isOpen) return result;
      try {
        await t.commit();
        return result;
      } catch (error) {
        if (!isErrno(error, 'EAGAIN') || attempt >= attempts) throw error;
      }
      throwIfAborted(signal);
      if (this.#scheduler !== undefined && attempt > 1) {
        await sleep(this.#scheduler, this.#random() * Math.min(2 ** (attempt - 2), LONGEST_PAUSE_MS));
      }
    }
  }

  /** Ends the connection; what is under way fails. */
  close(): void {
    this.#fail(new XenStoreError('ENOTCONN', 'the client was closed'));
    this.#stream.close();
  }

  #takeId(): number {
    do this.#nextId = (this.#nextId + 1) >>> 0 || 1;
    while (this.#pending.has(this.#nextId));
    return this.#nextId;
  }

  async #takeTransaction(signal: AbortSignalLike | undefined): Promise<void> {
    throwIfAborted(signal);
    if (this.#freeTransactions > 0) {
      this.#freeTransactions--;
      return;
    }
    let turn: () => void = () => {};
    const waiting = new Promise<void>(resolve => {
      turn = resolve;
      this.#transactionQueue.push(turn);
    });
    try {
      await abortable(waiting, signal);
    } catch (error) {
      const at = this.#transactionQueue.indexOf(turn);
      if (at >= 0) this.#transactionQueue.splice(at, 1);
      else this.#giveTransaction();
      throw error;
    }
    if (this.#failure !== null) throw this.#failure;
  }

  #giveTransaction(): void {
    const next = this.#transactionQueue.shift();
    if (next === undefined) this.#freeTransactions++;
    else next();
  }

  #receive(bytes: Uint8Array): void {
    let start = 0;
    let source = bytes;
    let end = bytes.length;
    if (this.#inputLength > 0) {
      const length = this.#inputLength + bytes.length;
      if (this.#input.length < length) {
        const larger = new Uint8Array(length);
        larger.set(this.#input.subarray(0, this.#inputLength));
        this.#input = larger;
      }
      this.#input.set(bytes, this.#inputLength);
      source = this.#input;
      end = length;
      this.#inputLength = 0;
    }
    while (end - start >= XS_HEADER_SIZE) {
      const length = get32(source, start + 12);
      if (length > XENSTORE_PAYLOAD_MAX) {
        this.#fail(new XenStoreError('EIO', `xenstored sent a message of ${length} bytes`));
        this.#stream.close();
        return;
      }
      const next = start + XS_HEADER_SIZE + length;
      if (next > end) break;
      this.#handle(
        get32(source, start),
        get32(source, start + 4),
        source.slice(start + XS_HEADER_SIZE, next),
      );
      start = next;
    }
    if (start === end) return;
    const rest = source.slice(start, end);
    if (this.#input.length < rest.length) this.#input = new Uint8Array(rest.length);
    this.#input.set(rest);
    this.#inputLength = rest.length;
  }

  #handle(type: number, id: number, body: Uint8Array): void {
    if (type === XS.WATCH_EVENT) {
      this.#event(body);
      return;
    }
    const pending = this.#pending.get(id);
    if (pending === undefined) {
      this.strayReplies++;
      return;
    }
    this.#pending.delete(id);
    if (type === XS.ERROR) {
      const code = parseXsdError(latin1(body).split('\0')[0]);
      const subject = pending.subject();
      const why = code === 'EINVAL' && isBadPath(pending.type, subject) ? BAD_PATH : reasons[code];
      pending.reject(new XenStoreError(code, `${xsTypeName(pending.type)} ${subject}: ${why}`));
    } else if (type !== pending.type) {
      const what = `${xsTypeName(type)} came in answer to ${xsTypeName(pending.type)}`;
      pending.reject(new XenStoreError('EIO', what));
    } else pending.resolve(body);
  }

  #event(body: Uint8Array): void {
    const [path, token] = splitStrings(body);
    if (path === undefined || token === undefined) return;
    const events = this.#watches.get(token);
    if (events !== undefined) events.add(path);
    else this.onWatchEvent?.(path, token);
  }

  #fail(failure: XenStoreError): void {
    if (this.#failure !== null) return;
    this.#failure = failure;
    for (const pending of this.#pending.values()) pending.reject(failure);
    this.#pending.clear();
    for (const events of [...this.#watches.values()]) events.fail(failure);
    for (const turn of this.#transactionQueue.splice(0)) turn();
    this.onClose?.(failure);
  }
}

/** What xenstored's refusals mean. */
const reasons: Readonly<Record<XsdErrorName, string>> = {
  EINVAL: 'malformed, or not possible like this',
  EACCES: 'not permitted',
  EEXIST: 'it is there already',
  EISDIR: 'not possible for a directory',
  ENOENT: 'there is no such thing',
  ENOMEM: 'no memory left, or the quota of memory is used up',
  ENOSPC: 'a quota is used up',
  EIO: 'xenstored failed; its log says why',
  ENOTEMPTY: 'it is not empty',
  ENOSYS: 'this xenstored does not know the request',
  EROFS: 'nothing can be changed here',
  EBUSY: 'not possible at this time',
  EAGAIN: 'somebody else has changed what it depends on',
  EISCONN: 'it is connected already',
  E2BIG: 'it does not fit one message',
  EPERM: 'only the owner may do this',
};

/** Requests that begin with a path. */
const OF_PATHS: ReadonlySet<number> = new Set([
  XS.DIRECTORY,
  XS.DIRECTORY_PART,
  XS.READ,
  XS.WRITE,
  XS.MKDIR,
  XS.RM,
  XS.GET_PERMS,
  XS.SET_PERMS,
  XS.WATCH,
  XS.UNWATCH,
]);
const BAD_PATH = 'it is no path: names of A-Z, a-z, 0-9, "-", "_" and "@" with one "/" between them';

/** Of a refused request: whether its path is why (docs/misc/xenstore.txt). */
function isBadPath(type: number, path: string): boolean {
  return OF_PATHS.has(type) && !/^(\/|\/?[\w@-]+(\/[\w@-]+)*)$/.test(path);
}

/** The first string of a request, which is nearly always the path. */
function subjectOf(body: Uint8Array): string {
  const stop = body.indexOf(0);
  return decodeText(body.subarray(0, Math.min(stop < 0 ? body.length : stop, 256)));
}
