import type { Scheduler, Task, TaskOwner, Timer } from '../scheduler.js';

/** The host's scheduler as one domain sees it: a domain that has stopped runs nothing more. */
export class DomainScheduler implements Scheduler, TaskOwner {
  stopped = false;

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
    return this.host.after(delayMs, () => {
      if (!this.stopped) run();
    });
  }

  cancel(timer: Timer): void {
    this.host.cancel(timer);
  }
}
