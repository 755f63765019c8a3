import type { Scheduler, Timer } from '../platform/scheduler.js';
import type { Connection } from './connection.js';
import { isWithin, parentPath } from './path.js';

/** Commits in a row that must fail before others are held back. */
const LOSSES = 3;
/** For how long others are held back at most. */
const HOLD_MS = 50;

/**
 * Progress for the control domain (XSA-206): a privileged client that lost several commits in a row gets the right
 * of way for the next transaction. Until that one ends, others' changes to the paths it lost on wait; nothing else
 * does. Guests have the write-rate limit instead: one of them could lose on purpose on any path, then hold up
 * whoever changes it by one transaction after the other.
 */
export class RightOfWay {
  #holder: Connection | null = null;
  #timer: Timer | null = null;
  readonly #waiting = new Set<Connection>();

  constructor(
    readonly scheduler: Scheduler,
    readonly resume: (connection: Connection) => void,
  ) {}

  get isHeld(): boolean {
    return this.#holder !== null;
  }

  /** A transaction begins. */
  begin(connection: Connection): void {
    if (!connection.privileged || connection.conflicts < LOSSES || this.#holder !== null) return;
    this.#holder = connection;
    this.#timer = this.scheduler.after(HOLD_MS, () => this.#release());
  }

  /** A commit failed because `path` had changed. */
  lost(connection: Connection, path: string): void {
    connection.conflicts++;
    if (connection.conflictPaths.size < 64) connection.conflictPaths.add(path);
    this.#end(connection);
  }

  /** A commit was done. */
  won(connection: Connection): void {
    connection.conflicts = 0;
    connection.conflictPaths.clear();
    this.#end(connection);
  }

  /** The client is gone, or gave its transactions up. */
  forget(connection: Connection): void {
    this.#waiting.delete(connection);
    this.#end(connection);
  }

  isWaiting(connection: Connection): boolean {
    return this.#waiting.has(connection);
  }

  /** Whether a change to `path` has to wait; if so, `resume` is called when it need not any more. */
  blocks(connection: Connection, path: string): boolean {
    const holder = this.#holder;
    if (holder === null || holder === connection) return false;
    const parent = parentPath(path);
    for (const contested of holder.conflictPaths) {
      if (contested === parent || isWithin(contested, path)) {
        this.#waiting.add(connection);
        return true;
      }
    }
    return false;
  }

  #end(connection: Connection): void {
    if (this.#holder === connection) this.#release();
  }

  #release(): void {
    if (this.#timer !== null) this.scheduler.cancel(this.#timer);
    this.#timer = null;
    this.#holder = null;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const connection of waiting) this.resume(connection);
  }
}
