import type { Scheduler, Task, Timer } from '../scheduler.js';
import { seededRandom } from './random.js';

export interface SeededSchedulerOptions {
  /**
   * Resolves when all promise reactions that are due have run: `() => new Promise(setImmediate)` in Node.
   * Awaited between tasks, so that code with promises makes progress in virtual time too.
   */
  yieldToMicrotasks: () => Promise<unknown>;
  /** Virtual time that each task takes: busy code does not stop the clock. 1 µs. */
  taskUs?: number;
}

interface SeededTimer extends Timer {
  /** Virtual microseconds. */
  readonly atUs: number;
  readonly run: () => void;
}

/**
 * Runs a host in virtual time, the next task picked at random among those that could run: the same seed
 * gives the same run. Time passes while tasks run, and jumps to the next timer when none is left.
 */
export class SeededScheduler implements Scheduler {
  /** Numbers in [0, 1) for the host (`platform.random`), from the same seed but not of the picks' sequence. */
  readonly random: () => number;
  /** Tasks and timers run so far. */
  steps = 0;
  /** The task that runs, if it is one. */
  current: Task | null = null;
  private readonly pick: () => number;
  private readonly ready: Task[] = [];
  /** Sorted by time, then by the order in which they were started. */
  private readonly timers: SeededTimer[] = [];
  private timeUs = 0;
  private readonly yieldToMicrotasks: () => Promise<unknown>;
  private readonly taskUs: number;

  constructor(
    readonly seed: number,
    options: SeededSchedulerOptions,
  ) {
    this.pick = seededRandom(seed);
    this.random = seededRandom(seed ^ 0x5bd1e995);
    this.yieldToMicrotasks = options.yieldToMicrotasks;
    this.taskUs = options.taskUs ?? 1;
  }

  now(): number {
    return this.timeUs / 1000;
  }

  /** True when no task waits and no timer runs. */
  get idle(): boolean {
    return this.ready.length === 0 && this.timers.length === 0;
  }

  post(task: Task): void {
    if (task.queued) return;
    task.queued = true;
    this.ready.push(task);
  }

  after(delayMs: number, run: () => void): Timer {
    const atUs = this.timeUs + Math.max(0, Math.round(delayMs * 1000));
    const timer: SeededTimer = { at: atUs / 1000, atUs, run };
    let i = this.timers.length;
    while (i > 0 && this.timers[i - 1].atUs > atUs) i--;
    this.timers.splice(i, 0, timer);
    return timer;
  }

  cancel(timer: Timer): void {
    const i = this.timers.indexOf(timer as SeededTimer);
    if (i >= 0) this.timers.splice(i, 1);
  }

  /**
   * Runs the host until `condition` holds.
   * @param timeoutMs virtual time after which to give up; 60 s
   * @throws Error when the time is up, or when nothing is left to run
   */
  async runUntil(condition: () => boolean, timeoutMs = 60_000): Promise<void> {
    const endUs = this.timeUs + timeoutMs * 1000;
    for (;;) {
      await this.yieldToMicrotasks();
      if (condition()) return;
      if (!this.step(endUs)) {
        const why = this.idle ? 'nothing is left to run' : `${timeoutMs} ms have passed`;
        throw new Error(`seed ${this.seed}: ${why} and the condition does not hold: ${condition}`);
      }
    }
  }

  /** Runs the host until `work` has settled. @returns what it gives @throws what it throws; Error as `runUntil` */
  async runToEnd<T>(work: Promise<T>, timeoutMs?: number): Promise<T> {
    let settled = false;
    const settle = (): void => {
      settled = true;
    };
    work.then(settle, settle);
    await this.runUntil(() => settled, timeoutMs);
    return work;
  }

  /** Runs the host for that long in virtual time. */
  async runFor(ms: number): Promise<void> {
    const endUs = this.timeUs + Math.round(ms * 1000);
    do await this.yieldToMicrotasks();
    while (this.step(endUs));
    this.timeUs = Math.max(this.timeUs, endUs);
  }

  /**
   * As `runFor`, but gives promises no turn and nothing up: for hosts that need none, and want to be fast.
   * @returns the steps that it took; `maxSteps` when there was more to do
   */
  runForNow(ms: number, maxSteps: number): number {
    const endUs = this.timeUs + Math.round(ms * 1000);
    for (let steps = 0; steps < maxSteps; steps++) {
      if (!this.step(endUs)) {
        this.timeUs = Math.max(this.timeUs, endUs);
        return steps;
      }
    }
    return maxSteps;
  }

  /** Runs the host until no task waits, not waiting for timers. */
  async runReady(): Promise<void> {
    do await this.yieldToMicrotasks();
    while (this.step(this.timeUs));
  }

  /** One task or timer, none later than `endUs`. @returns false when there was none */
  private step(endUs: number): boolean {
    if (this.timeUs > endUs) return false;
    const due = this.timers.length > 0 && this.timers[0].atUs <= this.timeUs;
    if (due || this.ready.length === 0) {
      const timer = this.timers[0];
      if (timer === undefined || timer.atUs > endUs) return false;
      this.timers.shift();
      this.timeUs = Math.max(this.timeUs, timer.atUs);
      this.steps++;
      timer.run();
      return true;
    }
    const { ready } = this;
    const i = Math.floor(this.pick() * ready.length);
    const task = ready[i];
    const last = ready.pop()!;
    if (i < ready.length) ready[i] = last;
    task.queued = false;
    this.steps++;
    this.timeUs += this.taskUs;
    if (task.owner === null || !task.owner.stopped) this.run(task);
    return true;
  }

  private run(task: Task): void {
    this.current = task;
    try {
      task.run();
    } finally {
      this.current = null;
    }
  }
}
