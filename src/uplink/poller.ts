import {
  CStruct,
  checked,
  EPOLL_CTL_ADD,
  EPOLL_CTL_DEL,
  EPOLLET,
  EPOLLIN,
  libc,
  O_CLOEXEC,
  watchReadable,
} from '../platform/linux/libc.js';

/** Frames that one device may bring before the next one has its turn. */
const BURST = 64;
/** How long to look for more before going to sleep, at most. */
const SPIN_MAX_MS = 0.05;
/** A wake so soon after going to sleep would have been worth spinning for. */
const SPIN_WORTH_MS = 0.2;
/** How long to keep the event loop from its other work. */
const SLICE_MS = 1;
/** How soon to look again for what a source is short of. */
const RETRY_MS = 1;
const EVENTS = 64;
/** struct epoll_event is packed on x86-64 only. */
const EVENT_SIZE = process.arch === 'x64' ? 12 : 16;
const EVENT_DATA = process.arch === 'x64' ? 4 : 8;

/** What `PollSource.poll` returns when it has no room to read into: it is tried again a little later. */
export const POLL_STARVED = -1;

/** Something that brings frames. */
export interface PollSource {
  readonly fd: number;
  /**
   * It is looked at for as long as it is readable, not only when it becomes so: for a device that may not tell of what
   * comes while it is being read.
   */
  readonly levelTriggered?: boolean;
  /**
   * Takes up to `budget` frames.
   * @returns how many; less than the budget means that there are no more, or that whom it reads for takes
   *   no more and `PollHandle.wake` will be called when that changes; or POLL_STARVED
   */
  poll(budget: number): number;
}

/** A source in a poller. */
export interface PollHandle {
  /** Polls the source soon, whether or not it has become readable. */
  wake(): void;
  remove(): void;
}

/** What a poller needs of the scheduler: to run what frames have set going. */
export interface Drainable {
  /** Runs queued tasks. @returns whatever; tasks that are left are run by the scheduler itself */
  drain(): unknown;
}

class Entry implements PollHandle {
  ready = false;
  removed = false;

  constructor(
    private readonly poller: Poller,
    readonly source: PollSource,
  ) {}

  wake(): void {
    if (!this.removed) this.poller.markReady(this, true);
  }

  remove(): void {
    if (this.removed) return;
    this.removed = true;
    this.poller.forget(this);
  }
}

/**
 * Reads from many devices in one thread, each burst run to completion before the next: what a frame sets
 * going (rings, bridge, the other side's device) is done when the next one is read. Lives in the event
 * loop, gives it its turn every millisecond while there is traffic, and sleeps in its epoll when not: an
 * idle device costs nothing. After a burst it looks for more for up to 50 µs, less when that was in vain.
 */
export class Poller {
  private readonly epoll: number;
  private readonly events = new CStruct(EVENTS * EVENT_SIZE);
  private readonly unwatch: () => void;
  private readonly entries = new Map<number, Entry>();
  private ready: Entry[] = [];
  private round: Entry[] = [];
  /** A slice is running, or will without the epoll's help. */
  private awake = false;
  private running = false;
  private spinMs = 0;
  private sleptAt = 0;
  private retry: NodeJS.Timeout | null = null;
  private closed = false;
  private readonly slice = (): void => this.runSlice();

  constructor(private readonly scheduler: Drainable) {
    this.epoll = checked(libc().epollCreate1(O_CLOEXEC), 'making an epoll instance');
    this.unwatch = watchReadable(this.epoll, () => {
      if (!this.awake) this.wakeUp();
    });
  }

  /** Devices that are polled. */
  get size(): number {
    return this.entries.size;
  }

  add(source: PollSource): PollHandle {
    const entry = new Entry(this, source);
    const event = new CStruct(EVENT_SIZE);
    event.view.setUint32(0, source.levelTriggered ? EPOLLIN : (EPOLLIN | EPOLLET) >>> 0, true);
    event.view.setUint32(EVENT_DATA, source.fd, true);
    checked(
      libc().epollCtl(this.epoll, EPOLL_CTL_ADD, source.fd, event.address),
      `watching file descriptor ${source.fd}`,
    );
    this.entries.set(source.fd, entry);
    return entry;
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const entry of this.entries.values()) entry.remove();
    if (this.retry !== null) clearTimeout(this.retry);
    this.unwatch();
    libc().close(this.epoll);
  }

  /** For Entry: polls it in the next round. */
  markReady(entry: Entry, wake: boolean): void {
    if (entry.ready) return;
    entry.ready = true;
    this.ready.push(entry);
    if (wake && !this.awake) {
      this.awake = true;
      setImmediate(this.slice);
    }
  }

  /** For Entry: stops watching it. */
  forget(entry: Entry): void {
    this.entries.delete(entry.source.fd);
    libc().epollCtl(this.epoll, EPOLL_CTL_DEL, entry.source.fd, this.events.address);
  }

  private wakeUp(): void {
    this.awake = true;
    this.spinMs = performance.now() - this.sleptAt < SPIN_WORTH_MS ? SPIN_MAX_MS : this.spinMs;
    this.runSlice();
  }

  private runSlice(): void {
    if (this.running || this.closed) return;
    this.running = true;
    try {
      const start = performance.now();
      let worked = start;
      for (;;) {
        if (this.ready.length < BURST) this.gather();
        const frames = this.runRound();
        const now = performance.now();
        if (frames > 0) worked = now;
        else if (this.ready.length === 0 && now - worked >= this.spinMs) {
          this.spinMs /= 2;
          this.sleptAt = now;
          this.awake = false;
          return;
        }
        if (now - start >= SLICE_MS) {
          if (frames > 0) this.spinMs = SPIN_MAX_MS;
          setImmediate(this.slice);
          return;
        }
      }
    } finally {
      this.running = false;
    }
  }

  /** Asks which devices have become readable. */
  private gather(): void {
    const count = libc().epollWait(this.epoll, this.events.address, EVENTS, 0);
    for (let i = 0; i < count; i++) {
      const entry = this.entries.get(this.events.view.getUint32(i * EVENT_SIZE + EVENT_DATA, true));
      if (entry !== undefined) this.markReady(entry, false);
    }
  }

  /** One burst of each device that is ready. @returns frames taken */
  private runRound(): number {
    const { round } = this;
    this.round = this.ready;
    this.ready = round;
    let frames = 0;
    for (const entry of this.round) {
      entry.ready = false;
      if (entry.removed) continue;
      const count = entry.source.poll(BURST);
      if (count === POLL_STARVED) this.retryLater(entry);
      else if (count > 0) {
        frames += count;
        if (count >= BURST) this.markReady(entry, false);
      }
      this.scheduler.drain();
    }
    this.round.length = 0;
    return frames;
  }

  /** Tries again, in case pages came back meanwhile. */
  private retryLater(entry: Entry): void {
    const again = (): void => {
      this.retry = null;
      for (const starved of this.starving.splice(0)) starved.wake();
    };
    this.starving.push(entry);
    this.retry ??= setTimeout(again, RETRY_MS);
  }

  private readonly starving: Entry[] = [];
}
