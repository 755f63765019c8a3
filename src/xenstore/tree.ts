import { childrenInOrder, Directory, eachChild, findChild, putChild, removeChild } from './children.js';
import { putLatin1 } from './latin1.js';
import { StoreNode } from './node.js';
import type { Path } from './path.js';
import { PathTable } from './path-table.js';
import type { Permissions } from './permissions.js';
import type { Value } from './value.js';

const EMPTY = new Uint8Array(0);

/** Hands out epochs and counts changes; one for all trees of a store. */
export class Generations {
  /** Changes so far. */
  count = 0;
  #epoch = 0;

  nextEpoch(): number {
    return ++this.#epoch;
  }
}

/**
 * A persistent tree. A snapshot costs nothing but a new epoch: nodes made before it are from then on
 * copied when they change, along the path from the root, and everything else stays shared.
 */
export class Tree {
  #epoch: number;

  constructor(
    readonly generations: Generations,
    public root: StoreNode,
  ) {
    this.#epoch = generations.nextEpoch();
  }

  /** The epoch of the nodes that it may change in place. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The tree as it is now, for ever. */
  snapshot(): StoreNode {
    this.#epoch = this.generations.nextEpoch();
    return this.root;
  }

  get(path: Path): StoreNode | undefined {
    return this.find(path, path.count);
  }

  /** The node `depth` names down the path. */
  find(path: Path, depth: number): StoreNode | undefined {
    return findFrom(this.root, path, depth);
  }

  /** How many names of the path exist. */
  presentNames(path: Path): number {
    let node = this.root;
    for (let i = 0; i < path.count; i++) {
      const child = findChild(node, path, i);
      if (child === undefined) return i;
      node = child;
    }
    return path.count;
  }

  /** Sets the value of a node that exists: `node`, which is at `path`. */
  setValue(path: Path, node: StoreNode, value: Value): void {
    const ours = this.#own(path, path.count, node);
    ours.value = value;
    ours.generation = ++this.generations.count;
  }

  /** Sets the permissions of a node that exists. @returns the node as it is then */
  setPermissions(path: Path, node: StoreNode, permissions: Permissions): StoreNode {
    const ours = this.#own(path, path.count, node);
    ours.permissions = permissions;
    ours.generation = ++this.generations.count;
    return ours;
  }

  /**
   * Creates a node and the parents it lacks, all with the same permissions, the parents empty. What is
   * new is built first and then attached in one step.
   * @param present names of the path that exist already
   */
  create(path: Path, present: number, value: Value, permissions: Permissions): void {
    const created = ++this.generations.count;
    const parent = this.#own(path, present, undefined);
    parent.directory ??= new Directory(path.prefix(present), created);
    const { directory } = parent;
    let parentPath = directory.path;
    const nodes: StoreNode[] = [];
    for (let i = present; i < path.count; i++) {
      nodes.push(
        new StoreNode(
          path.name(i),
          parentPath,
          path.prefixHashes[i + 1],
          this.#epoch,
          i === path.count - 1 ? value : '',
          permissions,
          created,
          created,
        ),
      );
      if (i < path.count - 1) parentPath = path.prefix(i + 1);
    }
    for (let i = nodes.length - 1; i > 0; i--) {
      nodes[i - 1].directory = new Directory(nodes[i].parentPath, created);
      this.#attach(nodes[i - 1].directory!, nodes[i]);
    }
    this.#attach(directory, nodes[0]);
    for (const node of nodes) this.added(node);
  }

  /** Removes a node other than the root, and what is below it. @returns the removed node */
  remove(path: Path): StoreNode {
    const parent = this.#own(path, path.count - 1, undefined);
    const node = this.below(parent, path, path.count);
    const directory = parent.directory!;
    this.generations.count++;
    directory.children = removeChild(directory.children!, node, this.#epoch);
    this.#childrenChanged(directory, -node.name.length - 1);
    this.removed(node);
    return node;
  }

  /** The node `depth` names down the path, of which the parent is `node`. */
  protected below(node: StoreNode, path: Path, depth: number): StoreNode {
    return findChild(node, path, depth - 1)!;
  }

  /** A node came into the tree. */
  protected added(_node: StoreNode): void {}

  /** A node was replaced by its copy. */
  protected replaced(_old: StoreNode, _node: StoreNode): void {}

  /** A node is gone from the tree, and what is below it. */
  protected removed(_node: StoreNode): void {}

  #attach(directory: Directory, node: StoreNode): void {
    directory.children = putChild(directory.children, node, undefined, this.#epoch);
    this.#childrenChanged(directory, node.name.length + 1);
  }

  #childrenChanged(directory: Directory, bytes: number): void {
    directory.bytes += bytes;
    directory.generation = this.generations.count;
    directory.listing = null;
  }

  /**
   * The node `depth` names down the path, made ours together with all above it.
   * @param known what is there, when it is known
   */
  #own(path: Path, depth: number, known: StoreNode | undefined): StoreNode {
    const epoch = this.#epoch;
    // What is ours has nothing above it that is not.
    const there = known ?? this.find(path, depth)!;
    if (there.epoch === epoch) return there;
    if (this.root.epoch !== epoch) this.root = this.root.copy(epoch);
    let node = this.root;
    for (let i = 1; i <= depth; i++) {
      let child = i === depth ? there : this.below(node, path, i);
      if (child.epoch !== epoch) {
        const old = child;
        child = old.copy(epoch);
        node.directory!.children = putChild(node.directory!.children, child, old, epoch);
        this.replaced(old, child);
      }
      node = child;
    }
    return node;
  }
}

/** The tree of the store itself, in which every node is found by its path at once. */
export class LiveTree extends Tree {
  readonly #nodes = new PathTable<StoreNode>();

  override find(path: Path, depth: number): StoreNode | undefined {
    return depth === 0 ? this.root : this.#nodes.find(path, depth);
  }

  override presentNames(path: Path): number {
    let present = path.count;
    while (present > 0 && this.#nodes.find(path, present) === undefined) present--;
    return present;
  }

  /** Fetches the nodes of paths that are asked for next: see `PathTable.fetch`. */
  fetch(hashes: Int32Array, count: number): void {
    this.#nodes.fetch(hashes, count);
  }

  /** A tree of its own that begins as this one is now. */
  branch(): BranchTree {
    const before = this.epoch;
    return new BranchTree(this, this.snapshot(), before);
  }

  protected override below(_node: StoreNode, path: Path, depth: number): StoreNode {
    return this.#nodes.find(path, depth)!;
  }

  protected override added(node: StoreNode): void {
    this.#nodes.add(node);
  }

  protected override replaced(old: StoreNode, node: StoreNode): void {
    this.#nodes.replace(old, node);
  }

  protected override removed(node: StoreNode): void {
    walk(node, '', below => this.#nodes.remove(below));
  }
}

/** A tree that begins as the live one was at some time. */
export class BranchTree extends Tree {
  constructor(
    readonly live: LiveTree,
    /** What it began as. */
    public base: StoreNode,
    /** Nodes of the live tree that are younger came into being after this tree did. */
    public since: number,
  ) {
    super(live.generations, base);
  }

  /**
   * Has it begun with this node at `path`, or with none (null), whatever is there now. Its parent must exist,
   * and nothing have been changed yet.
   */
  beginWith(path: Path, node: { value: Value; permissions: Permissions } | null): void {
    const now = this.get(path);
    if (node === null) {
      if (now !== undefined) this.remove(path);
    } else if (now === undefined) this.create(path, this.presentNames(path), node.value, node.permissions);
    else {
      this.setValue(path, now, node.value);
      this.setPermissions(path, this.get(path)!, node.permissions);
    }
    this.base = this.snapshot();
    // What is as old in the live tree need not be what this one has.
    this.since = -1;
  }

  override find(path: Path, depth: number): StoreNode | undefined {
    if (this.root !== this.base) return super.find(path, depth);
    const now = this.live.find(path, depth);
    return now !== undefined && now.epoch <= this.since ? now : super.find(path, depth);
  }

  /** The node as it was at the beginning. */
  original(path: Path): StoreNode | undefined {
    return findFrom(this.base, path, path.count);
  }
}

/** The node `depth` names down the path from the root. */
function findFrom(root: StoreNode, path: Path, depth: number): StoreNode | undefined {
  let node: StoreNode | undefined = root;
  for (let i = 0; i < depth && node !== undefined; i++) node = findChild(node, path, i);
  return node;
}

/** The names of the children, each with a NUL: what DIRECTORY answers. */
export function listChildren(node: StoreNode): Uint8Array {
  const { directory } = node;
  if (directory === null || directory.children === null) return EMPTY;
  if (directory.listing !== null) return directory.listing;
  const listing = new Uint8Array(directory.bytes);
  let at = 0;
  for (const child of childrenInOrder(node)) at = putLatin1(listing, at, child.name) + 1;
  directory.listing = listing;
  return listing;
}

/** Calls `visit` for the node and all below it, parents first, without recursion over depth. */
export function walk(node: StoreNode, path: string, visit: (node: StoreNode, path: string) => void): void {
  const nodes = [node];
  const paths = [path];
  while (nodes.length > 0) {
    const next = nodes.pop() as StoreNode;
    const at = paths.pop() as string;
    visit(next, at);
    const below = at === '/' ? at : `${at}/`;
    eachChild(next, child => {
      nodes.push(child);
      paths.push(below + child.name);
    });
  }
}

/**
 * What differs between two states of one tree, by path: the node before, or null where there was none. What
 * both share is not looked at. A node that was made anew meanwhile is first null, then what it was.
 */
export function* differences(
  before: StoreNode,
  now: StoreNode,
  path: string,
): IterableIterator<[path: string, before: StoreNode | null]> {
  if (before === now) return;
  if (before.created !== now.created) {
    yield [path, null];
    yield* everything(before, path);
    return;
  }
  if (before.generation !== now.generation) yield [path, before];
  if (before.directory?.children === now.directory?.children) return;
  const others = new Map(childrenInOrder(now).map(child => [child.name, child]));
  const at = path === '/' ? path : `${path}/`;
  for (const child of childrenInOrder(before)) {
    const other = others.get(child.name);
    others.delete(child.name);
    if (other === undefined) yield* everything(child, at + child.name);
    else yield* differences(child, other, at + child.name);
  }
  for (const name of others.keys()) yield [at + name, null];
}

function everything(node: StoreNode, path: string): [string, StoreNode][] {
  const found: [string, StoreNode][] = [];
  walk(node, path, (below, at) => found.push([at, below]));
  return found;
}
