import type { StoreNode } from './node.js';
import type { Path } from './path.js';
import type { Permissions } from './permissions.js';
import type { BranchTree, LiveTree } from './tree.js';
import type { Value } from './value.js';

/** What a transaction depends on, of one path. */
export const ACCESS = {
  /** Its value, permissions, and whether it exists. */
  NODE: 1,
  /** Which children it has. */
  CHILDREN: 2,
  /** All of it and below: it is removed. */
  SUBTREE: 4,
  /** That it is the same node with the same permissions: a child is created in it. */
  PARENT: 8,
  /** That, if it exists by now, it has the permissions that it would be created with. */
  IMPLIED: 16,
} as const;

/** A change, to be made again on the live tree at commit. */
export type Change =
  | { readonly kind: 'write'; readonly path: string; readonly value: Value }
  | { readonly kind: 'mkdir' | 'rm'; readonly path: string }
  | { readonly kind: 'permissions'; readonly path: string; readonly permissions: Permissions };

interface Access {
  flags: number;
  /** For IMPLIED: the permissions that creating it gives. */
  permissions: Permissions | null;
}

/**
 * A snapshot, a tree of its own on top of it, and what was read and changed. Conflicts are found path by
 * path: that another path with the same ancestors changed is no conflict.
 */
export class Transaction {
  /** The tree as the transaction sees it. */
  readonly tree: BranchTree;
  readonly changes: Change[] = [];
  /** What they count against the domain's memory quota. */
  changeBytes = 0;
  readonly #accesses = new Map<string, Access>();
  /** A path that had changed before a live update, if there was one. */
  #stale: string | undefined;
  /** Nodes that the transaction adds to what each domain owns. */
  readonly nodeDeltas = new Map<number, number>();

  constructor(
    readonly id: number,
    readonly domid: number,
    live: LiveTree,
  ) {
    this.tree = live.branch();
  }

  /** Paths it depends on. */
  get size(): number {
    return this.#accesses.size;
  }

  /** Notes that the transaction depends on the path of the first `depth` names of `path`. */
  note(path: Path, depth: number, flags: number, permissions: Permissions | null = null): void {
    const text = path.prefix(depth);
    const access = this.#accesses.get(text);
    if (access === undefined) this.#accesses.set(text, { flags, permissions });
    else {
      access.flags |= flags;
      access.permissions ??= permissions;
    }
  }

  /** What each path was accessed for, as ACCESS flags. */
  *accesses(): IterableIterator<[path: string, flags: number]> {
    for (const [path, { flags }] of this.#accesses) yield [path, flags];
  }

  /** Makes the transaction look as if every node on `path` had been changed since (live update). */
  noteStale(path: string): void {
    this.#stale = path;
  }

  addNodes(domid: number, count: number): void {
    this.nodeDeltas.set(domid, (this.nodeDeltas.get(domid) ?? 0) + count);
  }

  /**
   * The first path that changed in the live tree in a way that this transaction depends on.
   * @param scratch to parse paths with
   */
  conflict(live: LiveTree, scratch: Path): string | undefined {
    // Whatever it was that changed may be as it was again.
    if (this.#stale !== undefined) return this.#stale;
    const { base, since } = this.tree;
    if (live.root === base) return undefined;
    for (const [text, access] of this.#accesses) {
      scratch.set(text);
      const now = live.get(scratch);
      if (now !== undefined && now.epoch <= since) continue;
      const before = this.tree.original(scratch);
      if (before !== now && differs(before, now, access)) return text;
    }
    return undefined;
  }
}

function differs(before: StoreNode | undefined, now: StoreNode | undefined, access: Access): boolean {
  const { flags } = access;
  if (flags & ACCESS.SUBTREE) return true;
  if (before === undefined || now === undefined || before.created !== now.created) {
    // Somebody else created it, removed it, or both.
    if (flags & ~ACCESS.IMPLIED || now === undefined || before !== undefined) return flags !== 0;
    return access.permissions !== null && !samePermissions(access.permissions, now.permissions);
  }
  if (flags & ACCESS.NODE && before.generation !== now.generation) return true;
  if (flags & ACCESS.CHILDREN && before.childGeneration !== now.childGeneration) return true;
  return (flags & ACCESS.PARENT) !== 0 && !samePermissions(before.permissions, now.permissions);
}

function samePermissions(a: Permissions, b: Permissions): boolean {
  return (
    a === b ||
    (a.length === b.length &&
      a.every(
        (entry, i) =>
          entry.domid === b[i].domid &&
          entry.access === b[i].access &&
          entry.incarnation === b[i].incarnation,
      ))
  );
}
