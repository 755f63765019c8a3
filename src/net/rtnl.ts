/**
 * The rtnetlink lock. There is one thread, so that nobody ever waits for it; what it keeps is its rule: the
 * work left by unregistering devices is done when the outermost holder lets go.
 */
export class Rtnl {
  private depth = 0;

  constructor(private readonly runTodo: () => void) {}

  get locked(): boolean {
    return this.depth > 0;
  }

  lock(): void {
    this.depth++;
  }

  unlock(): void {
    if (this.depth === 0) throw new Error('the rtnl lock is not held');
    if (--this.depth === 0) this.runTodo();
  }

  /** Holds the lock while `body` runs. */
  with<T>(body: () => T): T {
    this.lock();
    try {
      return body();
    } finally {
      this.unlock();
    }
  }
}
