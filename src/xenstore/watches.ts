import type { Path } from './path.js';
import { type Located, PathTable } from './path-table.js';
import type { Requester } from './permissions.js';

/** Any depth below the watched path. */
export const ANY_DEPTH = 0xffff;

/** Who holds watches and is told of events. */
export interface WatchOwner extends Requester {
  /**
   * Queues an event.
   * @param epath bytes [start, end): the absolute path that changed, or a special name
   */
  watchEvent(watch: Watch, epath: Uint8Array, start: number, end: number): void;
}

export class Watch implements Located {
  /** Absolute path, or a special name that starts with @. */
  readonly path: string;
  /** Hash of its path. */
  readonly hash: number;
  /** The next one on the same path. */
  next: Watch | null = null;
  /** Of the first one on a path: the last one. */
  last: Watch = this;

  /** @param path the watch's path, parsed */
  constructor(
    readonly owner: WatchOwner,
    path: Path,
    /** Each character is a byte. */
    readonly token: string,
    /** Levels below the path that are watched too. */
    readonly depth: number,
    /** Bytes of the path's front that events leave out, when the watch was set with a relative path. */
    readonly strip: number,
  ) {
    this.path = path.toString();
    this.hash = path.prefixHashes[path.count];
  }

  get isSpecial(): boolean {
    return this.path[0] === '@';
  }

  isAt(path: Path, count: number): boolean {
    return path.prefixIs(count, this.path);
  }

  fetch(): number {
    return this.token.length + this.path.length;
  }
}

/** Of a path hash: its upper half. */
const MARKS = 1 << 16;
const MARK_MAX = 255;

function markOf(hash: number): number {
  return hash >>> 16;
}

/** All watches, found by the path they watch: an event costs a look-up for each of its ancestors. */
export class Watches {
  /** The first watch on each path in the tree. */
  readonly #table = new PathTable<Watch>();
  readonly #special = new Map<string, Watch[]>();
  /**
   * How many watched paths have each mark; what has reached MARK_MAX stays. Most ancestors of most changes
   * are not watched, and this is nearer to the processor than the table.
   */
  readonly #marks = new Uint8Array(MARKS);

  /** @param path the watch's path, parsed */
  add(watch: Watch, path: Path): void {
    if (watch.isSpecial) {
      const others = this.#special.get(watch.path);
      if (others === undefined) this.#special.set(watch.path, [watch]);
      else others.push(watch);
      return;
    }
    const first = this.#table.find(path, path.count);
    if (first === undefined) {
      this.#table.add(watch);
      if (this.#marks[markOf(watch.hash)] < MARK_MAX) this.#marks[markOf(watch.hash)]++;
    } else {
      first.last.next = watch;
      first.last = watch;
    }
  }

  /** @param path the watch's path, parsed */
  remove(watch: Watch, path: Path): void {
    if (watch.isSpecial) {
      const left = (this.#special.get(watch.path) ?? []).filter(other => other !== watch);
      if (left.length > 0) this.#special.set(watch.path, left);
      else this.#special.delete(watch.path);
      return;
    }
    const first = this.#table.find(path, path.count);
    if (first === undefined) return;
    if (first === watch) {
      if (watch.next === null) {
        this.#table.remove(watch);
        if (this.#marks[markOf(watch.hash)] < MARK_MAX) this.#marks[markOf(watch.hash)]--;
      } else {
        watch.next.last = watch.last;
        this.#table.replace(watch, watch.next);
      }
      return;
    }
    let before = first;
    while (before.next !== null && before.next !== watch) before = before.next;
    before.next = watch.next;
    if (first.last === watch) first.last = before;
  }

  get isEmpty(): boolean {
    return this.#table.size === 0;
  }

  /** Calls `visit` for every watch that a change at `path` concerns. */
  match(path: Path, visit: (watch: Watch) => void): void {
    const { count, prefixHashes } = path;
    for (let i = 0; i <= count; i++) {
      if (!this.mayHave(prefixHashes[i])) continue;
      let watch = this.#table.find(path, i) ?? null;
      for (; watch !== null; watch = watch.next) if (count - i <= watch.depth) visit(watch);
    }
  }

  /** Whether there may be a watch on the path of this hash. */
  mayHave(hash: number): boolean {
    return this.#marks[markOf(hash)] !== 0;
  }

  /** Calls `visit` for the watches on exactly this path. */
  at(path: Path, visit: (watch: Watch) => void): void {
    let watch = this.#table.find(path, path.count) ?? null;
    for (; watch !== null; watch = watch.next) visit(watch);
  }

  /** Calls `visit` for the watches on a special name, and on it with a domid when that one is meant. */
  special(name: string, domid: number, visit: (watch: Watch) => void): void {
    for (const watch of this.#special.get(name) ?? []) visit(watch);
    for (const watch of this.#special.get(`${name}/${domid}`) ?? []) visit(watch);
  }
}

/** What a watch costs its domain's memory quota. */
export function watchBytes(path: string, token: string): number {
  return 64 + path.length + token.length;
}
