import { XENSTORE_RING as R, XENSTORE_CONNECTION, XENSTORE_ERROR } from '../abi/xs-wire.js';
import { type Scheduler, Task } from '../platform/scheduler.js';
import type { Connection } from './connection.js';
import type { MappedRing } from './server.js';
import type { Transport } from './transport.js';

const MASK = R.SIZE - 1;
/** How often a ring is read before the others have their turn: its guest may fill it as fast, from another thread. */
const READS_A_TURN = 2;

export interface RingEvents {
  /** server_features for the domain to see. */
  features: number;
  /** The indexes make no sense, or the connection field does not: XENSTORE_ERROR number. */
  onBroken: (error: number) => void;
  /** The guest asked for a new beginning: drop all it holds. */
  onReconnect: () => void;
}

/**
 * xenstored's end of a domain's ring page. The guest may write anything to the page at any time: each
 * index is read once, and checked before it is used.
 */
export class RingTransport implements Transport {
  #ring: MappedRing | null = null;
  #connection: Connection | null = null;
  #events: RingEvents | null = null;
  readonly #task: Task;
  readonly #chunk = new Uint8Array(R.SIZE);
  #outputWaits = false;
  #broken = false;

  constructor(readonly scheduler: Scheduler) {
    this.#task = new Task('xenstored ring', () => this.#run());
  }

  start(ring: MappedRing, connection: Connection, events: RingEvents): void {
    this.#ring = ring;
    this.#connection = connection;
    this.#events = events;
    this.#announce();
    this.scheduler.post(this.#task);
  }

  /** The page was mapped and the port bound anew (INTRODUCE of a domain that was introduced before). */
  replace(ring: MappedRing): void {
    this.#ring?.unmap();
    this.#ring = ring;
    this.#empty();
    this.#announce();
    this.scheduler.post(this.#task);
  }

  /** The domain notified. */
  onEvent(): void {
    this.scheduler.post(this.#task);
  }

  /** Shows the guest why it is not served any more. */
  setError(error: number): void {
    this.#broken = true;
    if (this.#ring === null) return;
    this.#put(R.ERROR, error);
    this.#ring.notify();
  }

  write(bytes: Uint8Array, start: number, end: number): number {
    if (this.#ring === null || this.#broken || this.#isReconnecting()) return this.#wait();
    const cons = this.#get(R.RSP_CONS);
    const prod = this.#get(R.RSP_PROD);
    const used = (prod - cons) >>> 0;
    if (used > R.SIZE) {
      this.#events?.onBroken(XENSTORE_ERROR.RINGIDX);
      return this.#wait();
    }
    const length = Math.min(end - start, R.SIZE - used);
    const { memory, address } = this.#ring;
    const at = prod & MASK;
    const first = Math.min(length, R.SIZE - at);
    memory.u8.set(bytes.subarray(start, start + first), address + R.RSP + at);
    if (first < length) memory.u8.set(bytes.subarray(start + first, start + length), address + R.RSP);
    this.#put(R.RSP_PROD, (prod + length) >>> 0);
    if (length > 0) this.#ring.notify();
    this.#outputWaits = length < end - start;
    return length;
  }

  resume(): void {
    this.scheduler.post(this.#task);
  }

  close(): void {
    this.#ring?.unmap();
    this.#ring = null;
  }

  #wait(): number {
    this.#outputWaits = true;
    return 0;
  }

  #run(): void {
    const connection = this.#connection;
    if (this.#ring === null || connection === null) return;
    if (this.#isReconnecting()) {
      this.#reconnect();
      return;
    }
    if (this.#broken || connection.ignored) return;
    if (this.#outputWaits && this.#hasRoom()) {
      this.#outputWaits = false;
      connection.drained();
    }
    for (let reads = 0; this.#ring !== null && !connection.ignored && connection.wantsInput; reads++) {
      if (reads === READS_A_TURN) {
        this.scheduler.post(this.#task);
        return;
      }
      const length = this.#read();
      if (length === 0) return;
      connection.receive(this.#chunk, 0, length);
    }
  }

  /** Takes what the guest has put on the request ring. @returns how many bytes are in the chunk */
  #read(): number {
    const { memory, address } = this.#ring!;
    const prod = this.#get(R.REQ_PROD);
    const cons = this.#get(R.REQ_CONS);
    const length = (prod - cons) >>> 0;
    if (length > R.SIZE) {
      this.#events?.onBroken(XENSTORE_ERROR.RINGIDX);
      return 0;
    }
    if (length === 0) return 0;
    const at = cons & MASK;
    const first = Math.min(length, R.SIZE - at);
    const from = address + R.REQ;
    this.#chunk.set(memory.u8.subarray(from + at, from + at + first));
    if (first < length) this.#chunk.set(memory.u8.subarray(from, from + length - first), first);
    this.#put(R.REQ_CONS, (cons + length) >>> 0);
    // The guest waits for room only when it found the ring full.
    if ((this.#get(R.REQ_PROD) - cons) >>> 0 >= R.SIZE) this.#ring!.notify();
    return length;
  }

  #hasRoom(): boolean {
    return (this.#get(R.RSP_PROD) - this.#get(R.RSP_CONS)) >>> 0 !== R.SIZE;
  }

  #isReconnecting(): boolean {
    return this.#get(R.CONNECTION) === XENSTORE_CONNECTION.RECONNECT;
  }

  /** The reconnect handshake: all is dropped, the rings are emptied, then `connection` says so. */
  #reconnect(): void {
    this.#events?.onReconnect();
    const connection = this.#connection!;
    connection.ignored = false;
    this.#broken = false;
    this.#outputWaits = false;
    this.#empty();
    this.#put(R.ERROR, XENSTORE_ERROR.NONE);
    this.#put(R.CONNECTION, XENSTORE_CONNECTION.CONNECTED);
    this.#ring!.notify();
  }

  #empty(): void {
    for (const field of [R.REQ_CONS, R.REQ_PROD, R.RSP_CONS, R.RSP_PROD]) this.#put(field, 0);
  }

  #announce(): void {
    this.#broken = false;
    this.#outputWaits = false;
    this.#put(R.SERVER_FEATURES, this.#events!.features);
    this.#put(R.ERROR, XENSTORE_ERROR.NONE);
    if (this.#isReconnecting()) {
      this.#empty();
      this.#put(R.CONNECTION, XENSTORE_CONNECTION.CONNECTED);
      this.#ring!.notify();
    }
  }

  #get(field: number): number {
    return this.#ring!.memory.load(this.#ring!.address + field);
  }

  #put(field: number, value: number): void {
    this.#ring!.memory.store(this.#ring!.address + field, value);
  }
}
