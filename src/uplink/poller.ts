import { cpus } from 'node:os';
import { performance } from 'node:perf_hooks';
import {
  CStruct,
  checked,
  EPOLL_CTL_ADD,
  EPOLL_CTL_DEL,
  EPOLL_CTL_MOD,
  EPOLL_EVENT_DATA,
  EPOLL_EVENT_SIZE,
  EPOLLIN,
  EPOLLONESHOT,
  libc,
  O_CLOEXEC,
  watchReadable,
} from '../platform/linux/libc.js';

/** Frames that one device may bring before the next one has its turn: half of what a ring takes. */
const BURST = 128;
/** How long to look for more before going to sleep, at most. With one processor nobody can bring any meanwhile. */
const SPIN_MAX_MS = cpus().length > 1 ? 0.05 : 0;
/** A wake so soon after going to sleep would have been worth spinning for. */
const SPIN_WORTH_MS = 0.2;
/** How long a device that brings nothing is looked at, one by one, while others bring frames. */
const COOLING_MS = 1;
/** Rounds of bursts after which the devices that are not looked at one by one have their turn. */
const ROUNDS_PER_GATHER = 4;
/** How long to keep the event loop from its other work. */
const SLICE_MS = 1;
/** How soon to look again for what a source is short of. */
const RETRY_MS = 1;
/** Events that the epoll tells at a time. */
const EVENTS = 64;

/** What `PollSource.poll` returns when it has no room to read into: it is tried again a little later. */
export const POLL_STARVED = -1;
/** What it returns when whom it reads for takes no more: it waits for `PollHandle.wake`. */
export const POLL_BLOCKED = -2;

/** Something that brings frames. */
export interface PollSource {
  readonly fd: number;
  /**
   * Takes up to `budget` frames; without any to take it is a look, which may be in vain.
   * @param now performance.now(), of a moment ago
   * @returns how many; less than the budget means that there are no more for now; or, having taken none, POLL_STARVED
   *   or POLL_BLOCKED
   */
  poll(budget: number, now: number): number;
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
  removed = false;
  /** It is looked at in every round, and not watched by the epoll. */
  hot = false;
  /** Its device is broken: the epoll would tell so again and again. */
  broken = false;
  /** When it brought a frame last, or was woken. */
  worked = 0;
  /** Frames to take next. */
  budget = 1;
  /** Frames since it was last found empty. */
  burst = 0;

  constructor(
    private readonly poller: Poller,
    readonly source: PollSource,
  ) {}

  wake(): void {
    if (!this.removed) this.poller.wake(this);
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
 * idle device costs nothing.
 *
 * A device that has brought something is hot: it is read from in every round without asking first, and the epoll does
 * not watch it (EPOLLONESHOT), so that the kernel has nobody to wake for a frame. It cools down when it has brought
 * nothing for a while, one by one while others bring frames, and all together after up to 50 µs, less when looking
 * for so long was in vain. One that brought a single frame the last time is read once, because to find it empty takes
 * time while the frame waits.
 */
export class Poller {
  private readonly epoll: number;
  private readonly events = new CStruct(EVENTS * EPOLL_EVENT_SIZE);
  private readonly change = new CStruct(EPOLL_EVENT_SIZE);
  private readonly unwatch: () => void;
  private readonly entries = new Map<number, Entry>();
  private readonly hot: Entry[] = [];
  private readonly starving: Entry[] = [];
  /** Rounds until the epoll is asked again. */
  private untilGather = 0;
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
    this.watch(entry, EPOLL_CTL_ADD);
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

  /** For Entry: looks at it in the next round. */
  wake(entry: Entry): void {
    entry.broken = false;
    this.heat(entry, performance.now());
    if (this.awake) return;
    this.awake = true;
    setImmediate(this.slice);
  }

  /** For Entry: stops watching it. */
  forget(entry: Entry): void {
    this.entries.delete(entry.source.fd);
    libc().epollCtl(this.epoll, EPOLL_CTL_DEL, entry.source.fd, this.change.address);
  }

  private watch(entry: Entry, operation: number): void {
    const { view, address } = this.change;
    const { fd } = entry.source;
    view.setUint32(0, EPOLLIN | EPOLLONESHOT, true);
    view.setUint32(EPOLL_EVENT_DATA, fd, true);
    checked(libc().epollCtl(this.epoll, operation, fd, address), `watching file descriptor ${fd}`);
  }

  private heat(entry: Entry, now: number): void {
    entry.worked = now;
    if (entry.hot) return;
    entry.hot = true;
    this.hot.push(entry);
  }

  private wakeUp(): void {
    this.awake = true;
    this.spinMs = performance.now() - this.sleptAt < SPIN_WORTH_MS ? SPIN_MAX_MS : this.spinMs;
    this.untilGather = 0;
    this.runSlice();
  }

  private runSlice(): void {
    if (this.running || this.closed) return;
    this.running = true;
    try {
      const start = performance.now();
      let now = start;
      let worked = start;
      for (;;) {
        if (this.hot.length < this.entries.size && --this.untilGather < 0) this.gather(now);
        const frames = this.runRound(now);
        now = performance.now();
        if (frames > 0) worked = now;
        else if (now - worked >= this.spinMs) {
          this.sleep(now);
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

  /** Has the epoll watch all that is hot: what came meanwhile is told at once. */
  private sleep(now: number): void {
    for (let i = this.hot.length; --i >= 0; ) this.cool(i);
    this.spinMs /= 2;
    this.sleptAt = now;
    this.awake = false;
  }

  /** Leaves a hot device to the epoll. */
  private cool(index: number): void {
    const entry = this.hot[index];
    if (!entry.removed && !entry.broken) this.watch(entry, EPOLL_CTL_MOD);
    this.drop(index);
  }

  private drop(index: number): void {
    const { hot } = this;
    hot[index].hot = false;
    const last = hot.pop()!;
    if (index < hot.length) hot[index] = last;
  }

  /** Asks which of the devices that are not hot have become readable. */
  private gather(now: number): void {
    this.untilGather = ROUNDS_PER_GATHER;
    const { view, address } = this.events;
    const count = libc().epollWait(this.epoll, address, EVENTS, 0);
    for (let i = 0; i < count; i++) {
      const entry = this.entries.get(view.getUint32(i * EPOLL_EVENT_SIZE + EPOLL_EVENT_DATA, true));
      if (entry === undefined) continue;
      entry.broken = (view.getUint32(i * EPOLL_EVENT_SIZE, true) & EPOLLIN) === 0;
      this.heat(entry, now);
    }
  }

  /** One burst of each device that is hot. @returns frames taken */
  private runRound(now: number): number {
    const { hot } = this;
    let frames = 0;
    // From the last to the first, because one that is dropped gives its place to the last.
    for (let i = hot.length; --i >= 0; ) {
      const entry = hot[i];
      const count = entry.removed ? POLL_BLOCKED : entry.source.poll(entry.budget, now);
      if (count > 0) {
        frames += count;
        entry.worked = now;
        entry.burst += count;
        if (count >= entry.budget) entry.budget = BURST;
        else this.endBurst(entry);
      } else if (count === 0) {
        this.endBurst(entry);
        if (now - entry.worked >= COOLING_MS) this.cool(i);
      } else {
        // Whoever gives it room again, or the timer, wakes it.
        this.drop(i);
        if (count === POLL_STARVED) this.retryLater(entry);
      }
      this.scheduler.drain();
    }
    return frames;
  }

  private endBurst(entry: Entry): void {
    if (entry.burst === 0) return;
    entry.budget = entry.burst > 1 ? BURST : 1;
    entry.burst = 0;
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
}
