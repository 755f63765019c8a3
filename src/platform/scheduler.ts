/**
 * A piece of work that the scheduler runs. Posting a task that is already queued does nothing, so a task
 * made once costs nothing to post.
 */
export class Task {
  queued = false;
  /** Set by a domain's own scheduler: the task is dropped once its owner has stopped. */
  owner: TaskOwner | null = null;

  /** @param name what a trace prints */
  constructor(
    readonly name: string,
    readonly run: () => void,
  ) {}
}

/** Whose tasks a scheduler must no longer run once it has stopped: a domain that was destroyed. */
export interface TaskOwner {
  readonly stopped: boolean;
}

/** A timer that was started; opaque. */
export interface Timer {
  readonly at: number;
}

/** What runs work, and what knows the time: the event loop, or virtual time from a seed. */
export interface Scheduler {
  /** Milliseconds since some fixed moment; never goes back. */
  now(): number;
  /** Runs `task` soon, never inside the caller. */
  post(task: Task): void;
  /** Runs `run` once, `delayMs` from now. */
  after(delayMs: number, run: () => void): Timer;
  /** Does nothing for a timer that has fired or was cancelled. */
  cancel(timer: Timer): void;
}

export function sleep(scheduler: Scheduler, delayMs: number): Promise<void> {
  return new Promise(resolve => {
    scheduler.after(delayMs, resolve);
  });
}
