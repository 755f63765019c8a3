import type { ByteStream } from '../platform/platform.js';
import { type Scheduler, Task } from '../platform/scheduler.js';

/** Two ends of a stream of bytes inside this process. What one end writes reaches the other by a task. */
export function streamPair(scheduler: Scheduler): [ByteStream, ByteStream] {
  const a = new StreamEnd(scheduler);
  const b = new StreamEnd(scheduler);
  a.peer = b;
  b.peer = a;
  return [a, b];
}

class StreamEnd implements ByteStream {
  peer!: StreamEnd;
  #received: Uint8Array[] = [];
  #onData: ((bytes: Uint8Array) => void) | null = null;
  #onClose: ((error?: Error) => void) | null = null;
  /** This end was closed. */
  #closed = false;
  /** The other end was closed. */
  #ending = false;
  readonly #task: Task;

  constructor(readonly scheduler: Scheduler) {
    this.#task = new Task('stream', () => this.#deliver());
  }

  write(bytes: Uint8Array): void {
    if (this.#closed || this.peer.#closed) return;
    this.peer.#received.push(bytes.slice());
    this.peer.#wake();
  }

  onData(listener: (bytes: Uint8Array) => void): void {
    this.#onData = listener;
    this.#wake();
  }

  onClose(listener: (error?: Error) => void): void {
    this.#onClose = listener;
    this.#wake();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#received = [];
    this.peer.#ending = true;
    this.peer.#wake();
  }

  #wake(): void {
    this.scheduler.post(this.#task);
  }

  #deliver(): void {
    if (this.#onData !== null) {
      for (const bytes of this.#received.splice(0)) if (!this.#closed) this.#onData(bytes);
    }
    if (!this.#ending || this.#closed || this.#received.length > 0 || this.#onClose === null) return;
    this.#closed = true;
    this.#onClose();
  }
}
