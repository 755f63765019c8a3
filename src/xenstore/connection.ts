import { XENSTORE_ERROR, XENSTORE_PAYLOAD_MAX, XS, XS_HEADER_SIZE } from '../abi/xs-wire.js';
import type { Scheduler, Timer } from '../platform/scheduler.js';
import type { Domain } from './domains.js';
import { latin1, latin1Bytes, putLatin1 } from './latin1.js';
import { get32, Output } from './output.js';
import { domainPath } from './path.js';
import type { Transaction } from './transaction.js';
import type { Transport } from './transport.js';
import type { Value } from './value.js';
import type { Watch, WatchOwner } from './watches.js';

const OK = latin1Bytes('OK\0');
/** Messages of one client that are handled before the others have their turn. */
const MESSAGES_A_TURN = 128;
/** Output that ends a client's turn, and that it must read before it is heard again. */
const OUTPUT_HIGH = 1 << 14;
/** Waiting events that are taken at once to the output of an unprivileged client: its ring's size. */
const EVENTS_AT_ONCE = 1024;
/** A client with more than this in unread events is given up. */
const EVENTS_MAX_BYTES = 2_621_440;
/** A client whose transport cannot hold it back, and that sends this much ahead, is given up. */
const HELD_MAX_BYTES = 1 << 20;

/** What the connection needs of its server. */
export interface ConnectionHost {
  readonly scheduler: Scheduler;
  /** How long an event may wait for an unprivileged client to make room; 0 for ever. */
  readonly watchEventTimeoutMs: number;
  /**
   * Handles one request; its payload is [start, end) of `bytes`.
   * @returns false when it has to wait: it is to be given again after `resume`
   */
  handle(connection: Connection, bytes: Uint8Array, start: number, end: number): boolean;
  /**
   * The messages in [start, end) are the next to be handled.
   * @returns how many of them were looked at
   */
  foresee(bytes: Uint8Array, start: number, end: number): number;
  /** Whether something other than its output keeps the connection from being heard now. */
  mustWait(connection: Connection): boolean;
  /** Whether the client must take some of its replies before it may ask more. */
  tooManyReplies(connection: Connection, replies: number): boolean;
  /** There is output: flush the connection at the end of this turn. */
  dirty(connection: Connection): void;
  /** Writes what all connections have to say. */
  flush(): void;
  /** There is input left: come back to it after the others. */
  resumeLater(connection: Connection): void;
  /**
   * The client broke the protocol, or does not read: it is ignored from now on. May be called from
   * anywhere: what it holds is cleaned up later.
   * @param error XENSTORE_ERROR number
   */
  abandon(connection: Connection, error: number, why: string): void;
  /** The client is gone. */
  disconnected(connection: Connection): void;
}

/** One client: what it sent and is not handled, what it is to be sent, its watches and transactions. */
export class Connection implements WatchOwner {
  /** `/local/domain/<domid>`, for relative paths. */
  readonly home: string;
  target: { readonly domid: number } | null = null;
  readonly transactions = new Map<number, Transaction>();
  /** By path and token; see `watchKey`. */
  readonly watches = new Map<string, Watch>();
  readonly output = new Output();
  nextTransactionId = 1;
  /** The server does not listen to it any more. */
  ignored = false;
  isClosed = false;
  /** Of the request that is being handled. */
  type = 0;
  reqId = 0;
  txId = 0;
  /** Commits in a row that failed, and the paths they failed on. */
  conflicts = 0;
  readonly conflictPaths = new Set<string>();
  /** Is waiting for its turn to flush. */
  isDirty = false;
  /** Is waiting for its turn to go on. */
  isResuming = false;
  /** Input that is not handled yet: bytes [0, #heldLength). */
  #held: Uint8Array | null = null;
  #heldLength = 0;
  /** Replies that were not taken yet. */
  #replies = 0;
  /** The transport did not take all. */
  #stuck = false;
  /** Events that wait while the transport is stuck: one of each kind. */
  readonly #events = new Map<string, WaitingEvent>();
  #eventBytes = 0;
  /** Runs while events wait that will be dropped. */
  #eventTimer: Timer | null = null;

  /**
   * @param id tells connections apart, in logs and in a saved state
   * @param domain the record of the client's domain; null for a socket client, which is domain 0
   */
  constructor(
    readonly host: ConnectionHost,
    readonly id: number,
    readonly transport: Transport,
    readonly domain: Domain | null,
    readonly domid: number,
    readonly privileged: boolean,
  ) {
    this.home = domainPath(domid);
  }

  /** Whether input is welcome; when not, `Transport.resume` is called later. */
  get wantsInput(): boolean {
    return !this.isClosed && (this.ignored || (!this.isResuming && !this.#stuckForInput()));
  }

  /** What the transport received: bytes [start, end), which may be overwritten after the call. */
  receive(bytes: Uint8Array, start: number, end: number): void {
    if (this.isClosed || this.ignored) return;
    if (this.#heldLength > 0) {
      this.#hold(bytes, start, end);
      this.#continue();
    } else {
      const at = this.#process(bytes, start, end);
      if (at < end && !this.isClosed && !this.ignored) this.#hold(bytes, at, end);
    }
    this.host.flush();
  }

  /** Goes on with input that was left. */
  resume(): void {
    this.isResuming = false;
    if (this.isClosed || this.ignored) return;
    this.#continue();
    this.host.flush();
    if (this.wantsInput) this.transport.resume();
  }

  /** The transport can take output again. */
  drained(): void {
    if (this.isClosed) return;
    this.flush();
    if (!this.#stuck && !this.isResuming) this.host.resumeLater(this);
  }

  /** The transport is gone. */
  closed(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.host.disconnected(this);
  }

  /** Ends the connection from the server's side. */
  close(): void {
    if (this.isClosed) return;
    this.closed();
    this.transport.close();
  }

  /** Drops all input and output: the client starts anew, or is not heard any more. */
  reset(): void {
    this.#held = null;
    this.#heldLength = 0;
    this.output.clear();
    this.#replies = 0;
    this.#stuck = false;
    this.#events.clear();
    this.#eventBytes = 0;
    this.#stopEventTimer();
  }

  flush(): void {
    this.isDirty = false;
    if (this.isClosed || this.ignored) return;
    const { output } = this;
    while (output.length > 0) {
      const length = output.length;
      const taken = this.transport.write(output.bytes, output.start, output.end);
      output.take(taken);
      this.#stuck = taken < length;
      if (this.#stuck) return;
      this.#replies = 0;
      if (this.#events.size === 0) return;
      this.#releaseEvents(this.privileged ? OUTPUT_HIGH : EVENTS_AT_ONCE);
    }
  }

  /** Answers the request that is being handled, with bytes [start, end) of `payload`. */
  reply(payload: Uint8Array, start: number, end: number): void {
    if (end - start > XENSTORE_PAYLOAD_MAX) {
      this.replyError('E2BIG');
      return;
    }
    const { output } = this;
    const at = output.begin(this.type, this.reqId, this.txId, end - start);
    const { bytes } = output;
    // Short values are the rule, and a loop is faster than a call for them.
    if (end - start < 64) for (let i = start, to = at; i < end; i++) bytes[to++] = payload[i];
    else bytes.set(payload.subarray(start, end), at);
    this.#replied();
  }

  replyValue(value: Value): void {
    if (typeof value === 'string') this.replyText(value);
    else this.reply(value, 0, value.length);
  }

  /** Answers that it was done. @returns what a request that met no error does */
  replyOk(): '' {
    this.reply(OK, 0, OK.length);
    return '';
  }

  replyText(text: string): void {
    if (text.length > XENSTORE_PAYLOAD_MAX) {
      this.replyError('E2BIG');
      return;
    }
    const { output } = this;
    const at = output.begin(this.type, this.reqId, this.txId, text.length);
    for (let i = 0; i < text.length; i++) output.bytes[at + i] = text.charCodeAt(i);
    this.#replied();
  }

  replyError(name: string): void {
    this.type = XS.ERROR;
    this.replyText(`${name}\0`);
  }

  watchEvent(watch: Watch, epath: Uint8Array, start: number, end: number): void {
    if (this.isClosed || this.ignored) return;
    const from = start + watch.strip;
    const length = end - from + watch.token.length + 2;
    // Too long to be sent at all (XSA-324).
    if (length > XENSTORE_PAYLOAD_MAX) return;
    // What is in the output cannot be dropped any more.
    if (this.#stuck || (!this.privileged && this.output.length >= OUTPUT_HIGH)) {
      this.#queueEvent(watch, epath.slice(from, end));
      return;
    }
    this.#putEvent(watch, epath, from, end);
    this.host.dirty(this);
  }

  /** Events of a watch that is no more are not sent any more. */
  forgetEvents(watch: Watch): void {
    for (const [key, event] of this.#events) {
      if (event.watch === watch) this.#forgetEvent(key);
    }
    if (this.#events.size === 0) this.#stopEventTimer();
  }

  /** What a saved state needs: input not handled, output not sent. */
  pending(): { input: Uint8Array; output: Uint8Array } {
    this.#releaseEvents(Number.POSITIVE_INFINITY);
    const { output } = this;
    return {
      input: this.#held?.slice(0, this.#heldLength) ?? new Uint8Array(0),
      output: output.bytes.slice(output.start, output.end),
    };
  }

  /** Takes up what `pending` gave. */
  restorePending(input: Uint8Array, output: Uint8Array): void {
    if (input.length > 0) this.#hold(input, 0, input.length);
    this.output.append(output);
    this.host.dirty(this);
    if (input.length > 0) this.host.resumeLater(this);
  }

  #replied(): void {
    this.#replies++;
    if (this.domain !== null) this.domain.usage.outstanding = this.#replies;
    this.host.dirty(this);
  }

  #stuckForInput(): boolean {
    return (
      (this.#stuck && (this.output.length >= OUTPUT_HIGH || (!this.privileged && this.#replies > 0))) ||
      this.host.mustWait(this)
    );
  }

  #continue(): void {
    const bytes = this.#held;
    if (bytes === null || this.#heldLength === 0) return;
    const at = this.#process(bytes, 0, this.#heldLength);
    if (this.#held !== bytes) return;
    bytes.copyWithin(0, at, this.#heldLength);
    this.#heldLength -= at;
    if (this.#heldLength === 0) this.#held = null;
  }

  /** Handles the messages in [start, end). @returns where what is left begins */
  #process(bytes: Uint8Array, start: number, end: number): number {
    let budget = MESSAGES_A_TURN;
    let foreseen = 0;
    const { host } = this;
    while (end - start >= XS_HEADER_SIZE) {
      const length = get32(bytes, start + 12);
      if (length > XENSTORE_PAYLOAD_MAX) {
        host.abandon(this, XENSTORE_ERROR.PROTO, `a payload of ${length} bytes`);
        return end;
      }
      const next = start + XS_HEADER_SIZE + length;
      if (next > end) break;
      if (this.#mustStop()) return start;
      if (budget-- === 0) {
        host.resumeLater(this);
        return start;
      }
      if (foreseen-- === 0) foreseen = host.foresee(bytes, start, end) - 1;
      this.type = get32(bytes, start);
      this.reqId = get32(bytes, start + 4);
      this.txId = get32(bytes, start + 8);
      if (!host.handle(this, bytes, start + XS_HEADER_SIZE, next)) return start;
      if (this.isClosed || this.ignored) return end;
      start = next;
    }
    return start;
  }

  /** Whether the next message has to wait. Who makes it wait sees to `resume`. */
  #mustStop(): boolean {
    if (this.host.mustWait(this)) return true;
    if (this.#stuck) return this.output.length >= OUTPUT_HIGH || !this.privileged;
    if (this.host.tooManyReplies(this, this.#replies) || this.output.length >= OUTPUT_HIGH) {
      const isMuch = this.output.length >= OUTPUT_HIGH;
      this.flush();
      if (isMuch && !this.#stuck) this.host.resumeLater(this);
      return isMuch || this.#stuck;
    }
    return false;
  }

  #hold(bytes: Uint8Array, start: number, end: number): void {
    const length = this.#heldLength + end - start;
    if (length > HELD_MAX_BYTES) {
      this.host.abandon(this, XENSTORE_ERROR.COMM, 'it sends more than it lets be answered');
      return;
    }
    if (this.#held === null || this.#held.length < length) {
      const held = new Uint8Array(Math.max(length, XS_HEADER_SIZE + XENSTORE_PAYLOAD_MAX));
      if (this.#held !== null) held.set(this.#held.subarray(0, this.#heldLength));
      this.#held = held;
    }
    this.#held.set(bytes.subarray(start, end), this.#heldLength);
    this.#heldLength = length;
  }

  #putEvent(watch: Watch, epath: Uint8Array, start: number, end: number): void {
    const { token } = watch;
    const { output } = this;
    let at = output.begin(XS.WATCH_EVENT, 0, 0, end - start + token.length + 2);
    const { bytes } = output;
    for (let i = start; i < end; i++) bytes[at++] = epath[i];
    bytes[at++] = 0;
    bytes[putLatin1(bytes, at, token)] = 0;
  }

  #queueEvent(watch: Watch, epath: Uint8Array): void {
    const key = `${latin1(epath)}\0${watch.token}`;
    if (this.#events.has(key)) return;
    const { scheduler, watchEventTimeoutMs } = this.host;
    const isLimited = !this.privileged && watchEventTimeoutMs > 0;
    const until = isLimited ? scheduler.now() + watchEventTimeoutMs : Number.POSITIVE_INFINITY;
    this.#events.set(key, { watch, bytes: epath, until });
    this.#eventBytes += eventBytes(key);
    if (this.#eventBytes > EVENTS_MAX_BYTES) {
      this.host.abandon(this, XENSTORE_ERROR.COMM, 'it does not read its events');
    } else if (isLimited && this.#eventTimer === null) {
      this.#eventTimer = scheduler.after(watchEventTimeoutMs, () => this.#dropOldEvents());
    }
  }

  /** Drops the events that waited too long. The others stand behind them, in the order of their time. */
  #dropOldEvents(): void {
    const { scheduler } = this.host;
    const now = scheduler.now();
    this.#eventTimer = null;
    for (const [key, { until }] of this.#events) {
      if (until > now) {
        this.#eventTimer = scheduler.after(until - now, () => this.#dropOldEvents());
        return;
      }
      this.#forgetEvent(key);
    }
  }

  #forgetEvent(key: string): void {
    this.#events.delete(key);
    this.#eventBytes -= eventBytes(key);
  }

  #stopEventTimer(): void {
    if (this.#eventTimer === null) return;
    this.host.scheduler.cancel(this.#eventTimer);
    this.#eventTimer = null;
  }

  /** Takes waiting events to the output until it holds as much as `limit`. */
  #releaseEvents(limit: number): void {
    for (const [key, { watch, bytes }] of this.#events) {
      if (this.output.length >= limit) return;
      this.#putEvent(watch, bytes, 0, bytes.length);
      this.#forgetEvent(key);
    }
    this.#stopEventTimer();
  }
}

/** An event that its client has no room for yet. */
interface WaitingEvent {
  readonly watch: Watch;
  /** Its path. */
  readonly bytes: Uint8Array;
  /** When it is dropped, in the scheduler's time. */
  readonly until: number;
}

/** What an event that waits counts, from its key. */
function eventBytes(key: string): number {
  return key.length + XS_HEADER_SIZE;
}

/** Under which a connection keeps a watch. */
export function watchKey(path: string, token: string): string {
  return `${path}\0${token}`;
}
