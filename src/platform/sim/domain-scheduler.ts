import type { Scheduler, Task, TaskOwner, Timer } from '../scheduler.js';

/** The host's scheduler as one domain sees it: a domain that has stopped runs nothing more. */
export class DomainScheduler implements Scheduler, TaskOwner {
  stopped = false;
  private readonly timers = new Set<Timer>();

  constructor(private readonly host: Scheduler) {}

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
      run();
    });
    if (this.stopped) this.host.cancel(timer);
    else this.timers.add(timer);
    return timer;
  }

  cancel(timer: Timer): void {
    this.timers.delete(timer);
    this.host.cancel(timer);
  }

  /** Drops the domain's tasks and timers, those to come too. */
  stop(): void {
    this.stopped = true;
    for (const timer of this.timers) this.host.cancel(timer);
    this.timers.clear();
  }
}
