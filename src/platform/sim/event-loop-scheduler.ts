import type { Scheduler, Task, Timer } from '../scheduler.js';
import { TaskQueue } from './task-queue.js';

/** What the host program's event loop offers; the functions of the same names in Node and in a browser. */
export interface EventLoop {
  /** Runs `run` in the next turn of the loop, after I/O had its chance. */
  setImmediate(run: () => void): void;
  setTimeout(run: () => void, delayMs: number): unknown;
  clearTimeout(handle: unknown): void;
  /** Milliseconds, monotonic (performance.now). */
  now(): number;
}

export interface EventLoopSchedulerOptions extends EventLoop {
  /** How long tasks may run in one turn of the loop before I/O gets its chance again; 2 ms. */
  sliceMs?: number;
  /** Gets what a task or timer throws. Without it the error ends the turn as an uncaught one. */
  onError?: (error: unknown, task: string) => void;
}

/** Reading the clock costs about as much as a small task does: it is read once in this many tasks. */
const TASKS_PER_CLOCK_READ = 16;

interface LoopTimer extends Timer {
  handle: unknown;
}

/** Runs a host in real time on an event loop: tasks in the order they were posted, in bursts. */
export class EventLoopScheduler implements Scheduler {
  /** The task that runs, if it is one. */
  current: Task | null = null;
  private readonly queue = new TaskQueue();
  private readonly loop: EventLoop;
  private readonly sliceMs: number;
  private readonly onError: ((error: unknown, task: string) => void) | null;
  private armed = false;
  /** The clock as it was read last in `drain`; -1 outside. */
  private drainNow = -1;

  constructor(options: EventLoopSchedulerOptions) {
    this.loop = options;
    this.sliceMs = options.sliceMs ?? 2;
    this.onError = options.onError ?? null;
  }

  /** Inside a task this may be the time some tasks ago. */
  now(): number {
    return this.drainNow < 0 ? this.loop.now() : this.drainNow;
  }

  /** Tasks that wait to be run. */
  get pending(): number {
    return this.queue.length;
  }

  post(task: Task): void {
    if (task.queued) return;
    task.queued = true;
    this.queue.push(task);
    if (!this.armed) this.arm();
  }

  after(delayMs: number, run: () => void): Timer {
    const timer: LoopTimer = { at: this.loop.now() + delayMs, handle: null };
    timer.handle = this.loop.setTimeout(() => this.guard(run, 'timer'), delayMs);
    return timer;
  }

  cancel(timer: Timer): void {
    this.loop.clearTimeout((timer as LoopTimer).handle);
  }

  /**
   * Runs queued tasks, those posted meanwhile included, until none is left or the time is up. A poller that
   * spins calls it between two looks at its file descriptors.
   * @returns how many tasks it ran
   */
  drain(budgetMs = this.sliceMs): number {
    const { queue } = this;
    if (queue.length === 0) return 0;
    const outer = this.drainNow;
    const outerTask = this.current;
    this.drainNow = this.loop.now();
    const end = this.drainNow + budgetMs;
    let ran = 0;
    try {
      while (queue.length > 0) {
        const task = queue.shift();
        task.queued = false;
        this.current = task;
        if (task.owner === null || !task.owner.stopped) this.guard(task.run, task.name);
        if (++ran % TASKS_PER_CLOCK_READ !== 0) continue;
        this.drainNow = this.loop.now();
        if (this.drainNow >= end) break;
      }
    } finally {
      this.drainNow = outer;
      this.current = outerTask;
    }
    return ran;
  }

  private arm(): void {
    this.armed = true;
    this.loop.setImmediate(this.turn);
  }

  private readonly turn = (): void => {
    this.armed = false;
    try {
      this.drain();
    } finally {
      if (this.queue.length > 0 && !this.armed) this.arm();
    }
  };

  private guard(run: () => void, name: string): void {
    if (this.onError === null) {
      run();
      return;
    }
    try {
      run();
    } catch (error) {
      this.onError(error, name);
    }
  }
}
