import { type Scheduler, Task } from '../platform/scheduler.js';

/** What the queue knows of a watch. */
export interface XenwatchTarget {
  readonly callback: (path: string) => void | Promise<void>;
  /** Paths with an event in the queue. */
  readonly pending: Set<string>;
}

interface Event {
  readonly kind: 'event';
  readonly target: XenwatchTarget;
  readonly path: string;
}

interface Job {
  readonly kind: 'job';
  readonly run: () => Promise<void>;
}

/**
 * The xenwatch task: runs watch callbacks strictly one at a time, in the order of their events. A callback
 * that returns a promise holds the next one back until it settles, so drivers need no lock among their
 * callbacks, and for the same reason a callback must never wait for its peer.
 *
 * Callbacks read current values, so a second event for a path that is still queued says nothing new and is
 * dropped: a peer that rewrites a node forever occupies one place (XSA-349).
 */
export class Xenwatch {
  #queue: (Event | Job)[] = [];
  #running = false;
  #paused = false;
  readonly #task: Task;

  constructor(
    private readonly scheduler: Scheduler,
    private readonly hooks: {
      onEvent(path: string): void;
      /** A callback threw; the queue goes on. */
      onError(path: string, error: unknown): void;
    },
  ) {
    this.#task = new Task('xenwatch', () => this.#next());
  }

  /** Events and jobs that wait. */
  get pending(): number {
    return this.#queue.length;
  }

  /** Queues an event. */
  event(target: XenwatchTarget, path: string): void {
    if (target.pending.has(path)) return;
    target.pending.add(path);
    this.#queue.push({ kind: 'event', target, path });
    this.#kick();
  }

  /**
   * Runs a job in turn with the callbacks (what holding Linux's xenwatch_mutex does).
   * To wait for it inside a callback would wait forever.
   * @param first before all that waits
   */
  run<T>(job: () => T | Promise<T>, first = false): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const run = async () => {
        try {
          resolve(await job());
        } catch (error) {
          reject(error);
        }
      };
      if (first) this.#queue.unshift({ kind: 'job', run });
      else this.#queue.push({ kind: 'job', run });
      this.#kick();
    });
  }

  /** Drops the queued events of a watch. */
  purge(target: XenwatchTarget): void {
    if (target.pending.size === 0) return;
    target.pending.clear();
    this.#queue = this.#queue.filter(entry => entry.kind === 'job' || entry.target !== target);
  }

  /** Starts nothing more until `unpause`; called from a job, so that nothing is running afterwards. */
  pause(): void {
    this.#paused = true;
  }

  unpause(): void {
    this.#paused = false;
    this.#kick();
  }

  #kick(): void {
    if (!this.#running && !this.#paused && this.#queue.length > 0) this.scheduler.post(this.#task);
  }

  #next(): void {
    if (this.#running || this.#paused) return;
    const entry = this.#queue.shift();
    if (entry === undefined) return;
    this.#running = true;
    void this.#runEntry(entry).then(() => {
      this.#running = false;
      this.#kick();
    });
  }

  async #runEntry(entry: Event | Job): Promise<void> {
    if (entry.kind === 'job') return entry.run();
    // Before the callback: what happens while it runs may be newer than what it has read.
    entry.target.pending.delete(entry.path);
    try {
      this.hooks.onEvent(entry.path);
      await entry.target.callback(entry.path);
    } catch (error) {
      this.hooks.onError(entry.path, error);
    }
  }
}
