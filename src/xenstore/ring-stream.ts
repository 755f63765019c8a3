import { XENSTORE_RING as R, XENSTORE_CONNECTION } from '../abi/xs-wire.js';
import type { Memory } from '../platform/memory.js';
import type { ByteStream } from '../platform/platform.js';
import { XenStoreError } from './error.js';

const MASK = R.SIZE - 1;

export interface RingStreamOptions {
  readonly memory: Memory;
  /** Byte address of the ring page. */
  readonly address: number;
  /** Sends the event of the ring's event channel. */
  readonly notify: () => void;
}

/**
 * The guest's end of its XenStore ring page. The guest's kernel calls `onEvent` from the handler of the
 * event channel. Replies that an earlier user of the page left are dropped, as Linux does.
 */
export class RingStream implements ByteStream {
  readonly #memory: Memory;
  readonly #address: number;
  readonly #notify: () => void;
  #onData: ((bytes: Uint8Array) => void) | null = null;
  #onClose: ((error?: Error) => void) | null = null;
  #closed = false;
  /** Bytes that the ring had no room for. */
  #queue: Uint8Array[] = [];
  readonly #chunk = new Uint8Array(R.SIZE);

  constructor(options: RingStreamOptions) {
    this.#memory = options.memory;
    this.#address = options.address;
    this.#notify = options.notify;
    this.#put(R.RSP_CONS, this.#get(R.RSP_PROD));
  }

  /** XENSTORE_SERVER_FEATURE bits that the server announces. */
  get serverFeatures(): number {
    return this.#get(R.SERVER_FEATURES);
  }

  /** XENSTORE_ERROR number that the server left. */
  get error(): number {
    return this.#get(R.ERROR);
  }

  /** Whether the server is not (or not yet, or not again) there: `connection` is not CONNECTED. */
  get isReconnecting(): boolean {
    return this.#get(R.CONNECTION) !== XENSTORE_CONNECTION.CONNECTED;
  }

  /**
   * Asks for a new beginning: the server drops all watches, transactions and requests. What is written
   * before `isReconnecting` turns false waits.
   */
  reconnect(): void {
    this.#queue = [];
    this.#put(R.CONNECTION, XENSTORE_CONNECTION.RECONNECT);
    this.#notify();
  }

  write(bytes: Uint8Array): void {
    if (this.#closed) return;
    this.#queue.push(bytes.slice());
    this.#send();
  }

  onData(listener: (bytes: Uint8Array) => void): void {
    this.#onData = listener;
    this.#receive();
  }

  onClose(listener: (error?: Error) => void): void {
    this.#onClose = listener;
  }

  close(): void {
    this.#closed = true;
    this.#queue = [];
  }

  /** The server notified. */
  onEvent(): void {
    if (this.#closed || this.isReconnecting) return;
    this.#receive();
    this.#send();
  }

  #receive(): void {
    while (!this.#closed && this.#onData !== null) {
      const prod = this.#get(R.RSP_PROD);
      const cons = this.#get(R.RSP_CONS);
      const length = (prod - cons) >>> 0;
      if (length > R.SIZE) {
        this.#break('response', length);
        return;
      }
      if (length === 0) return;
      const at = cons & MASK;
      const first = Math.min(length, R.SIZE - at);
      const from = this.#address + R.RSP;
      this.#chunk.set(this.#memory.u8.subarray(from + at, from + at + first));
      if (first < length) this.#chunk.set(this.#memory.u8.subarray(from, from + length - first), first);
      this.#put(R.RSP_CONS, (cons + length) >>> 0);
      // The server waits for room only when it found the ring full.
      if ((this.#get(R.RSP_PROD) - cons) >>> 0 >= R.SIZE) this.#notify();
      this.#onData(this.#chunk.subarray(0, length));
    }
  }

  #send(): void {
    let sent = false;
    while (this.#queue.length > 0 && !this.isReconnecting) {
      const prod = this.#get(R.REQ_PROD);
      const used = (prod - this.#get(R.REQ_CONS)) >>> 0;
      if (used > R.SIZE) {
        this.#break('request', used);
        return;
      }
      const [bytes] = this.#queue;
      const length = Math.min(bytes.length, R.SIZE - used);
      if (length === 0) break;
      const at = prod & MASK;
      const first = Math.min(length, R.SIZE - at);
      const to = this.#address + R.REQ;
      this.#memory.u8.set(bytes.subarray(0, first), to + at);
      if (first < length) this.#memory.u8.set(bytes.subarray(first, length), to);
      this.#put(R.REQ_PROD, (prod + length) >>> 0);
      sent = true;
      if (length === bytes.length) this.#queue.shift();
      else this.#queue[0] = bytes.subarray(length);
    }
    if (sent) this.#notify();
  }

  #break(ring: string, used: number): void {
    this.#closed = true;
    this.#onClose?.(
      new XenStoreError('EIO', `the ${ring} ring holds ${used} bytes of ${R.SIZE}: it is broken`),
    );
  }

  #get(field: number): number {
    return this.#memory.load(this.#address + field);
  }

  #put(field: number, value: number): void {
    this.#memory.store(this.#address + field, value);
  }
}
