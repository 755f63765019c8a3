import type { Path } from './path.js';
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

export interface Watch {
  readonly owner: WatchOwner;
  /** Absolute path, or a special name that starts with @. */
  readonly path: string;
  /** Bytes of the path's front that events leave out, when the watch was set with a relative path. */
  readonly strip: number;
  readonly token: Uint8Array;
  /** Levels below the path that are watched too. */
  readonly depth: number;
}

/** The watches on one path. */
interface Bucket {
  readonly path: string;
  watches: Watch[];
  /** Another path with the same hash. */
  next: Bucket | undefined;
}

/** All watches, found by the path they watch: an event costs a look-up for each of its ancestors. */
export class Watches {
  readonly #byHash = new Map<number, Bucket>();
  readonly #special = new Map<string, Watch[]>();
  /** Watches on paths in the tree. */
  #count = 0;

  /** @param path the watch's path, parsed */
  add(watch: Watch, path: Path): void {
    if (path.special) {
      const others = this.#special.get(watch.path);
      if (others === undefined) this.#special.set(watch.path, [watch]);
      else others.push(watch);
      return;
    }
    this.#count++;
    const hash = path.prefixHashes[path.count];
    const first = this.#byHash.get(hash);
    for (let at = first; at !== undefined; at = at.next) {
      if (at.path === watch.path) {
        at.watches.push(watch);
        return;
      }
    }
    this.#byHash.set(hash, { path: watch.path, watches: [watch], next: first });
  }

  /** @param path the watch's path, parsed */
  remove(watch: Watch, path: Path): void {
    if (path.special) {
      const left = (this.#special.get(watch.path) ?? []).filter(other => other !== watch);
      if (left.length > 0) this.#special.set(watch.path, left);
      else this.#special.delete(watch.path);
      return;
    }
    const hash = path.prefixHashes[path.count];
    let before: Bucket | undefined;
    for (let at = this.#byHash.get(hash); at !== undefined; before = at, at = at.next) {
      const index = at.path === watch.path ? at.watches.indexOf(watch) : -1;
      if (index < 0) continue;
      this.#count--;
      at.watches.splice(index, 1);
      if (at.watches.length > 0) return;
      if (before !== undefined) before.next = at.next;
      else if (at.next !== undefined) this.#byHash.set(hash, at.next);
      else this.#byHash.delete(hash);
      return;
    }
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  /** Calls `visit` for every watch that a change at `path` concerns. */
  match(path: Path, visit: (watch: Watch) => void): void {
    if (this.#count === 0) return;
    const { count, prefixHashes } = path;
    for (let i = 0; i <= count; i++) {
      const watches = this.#find(path, i, prefixHashes[i]);
      if (watches === undefined) continue;
      for (const watch of watches) if (count - i <= watch.depth) visit(watch);
    }
  }

  /** Calls `visit` for the watches on exactly the path of this hash and text. */
  at(hash: number, path: string, visit: (watch: Watch) => void): void {
    for (let at = this.#byHash.get(hash); at !== undefined; at = at.next) {
      if (at.path === path) for (const watch of at.watches) visit(watch);
    }
  }

  has(hash: number): boolean {
    return this.#byHash.has(hash);
  }

  /** Calls `visit` for the watches on a special name, and on it with a domid when that one is meant. */
  special(name: string, domid: number, visit: (watch: Watch) => void): void {
    for (const watch of this.#special.get(name) ?? []) visit(watch);
    for (const watch of this.#special.get(`${name}/${domid}`) ?? []) visit(watch);
  }

  #find(path: Path, count: number, hash: number): Watch[] | undefined {
    for (let at = this.#byHash.get(hash); at !== undefined; at = at.next) {
      if (path.prefixIs(count, at.path)) return at.watches;
    }
    return undefined;
  }
}
