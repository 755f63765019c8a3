import type { Scheduler, Task, TaskOwner, Timer } from '../scheduler.js';

/** A scheduler that can tell which task it runs. */
export interface HostScheduler extends Scheduler {
  /** Null between tasks, and in timers. */
  readonly current?: Task | null;
}

/** The host's scheduler as one domain sees it: a domain that has stopped runs nothing more. */
export class DomainScheduler implements Scheduler, TaskOwner {
  stopped = false;
  private readonly timers = new Set<Timer>();
  private inTimer = false;

  constructor(private readonly host: HostScheduler) {}

  /** A task or a timer of the domain runs: whoever asks was called by it. */
  get running(): boolean {
    return this.inTimer || this.host.current?.owner === this;
  }

  now(): number {
    return this.host.now();
  }

  post(task: Task): void {
    if (this.stopped) return;
    task.owner = this;
    this.host.post(task);
  }

  after(delayMs: number, run: () => void): Timer {
    const timer = this.host.after(delayMs, () => {
      this.timers.delete(timer);
      this.inTimer = true;
      try {
        run();
      } finally {
        this.inTimer = false;
      }
    });
    if (this.stopped) this.host.cancel(timer);
    else this.timers.add(timer);
    return timer;
  }

  cancel(timer: Timer): void {
    this.timers.delete(timer);
    this.host.cancel(timer);
  }

  /** Drops the domain's tasks and timers, those to come too, but for one that runs. */
  stop(): void {
    this.stopped = true;
    for (const timer of this.timers) this.host.cancel(timer);
    this.timers.clear();
  }
}
