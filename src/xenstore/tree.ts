import { childrenInOrder, eachChild, findChild, putChild, removeChild } from './children.js';
import { putLatin1 } from './latin1.js';
import { EMPTY, StoreNode } from './node.js';
import type { Path } from './path.js';
import type { PathCache } from './path-cache.js';
import type { Permissions } from './permissions.js';

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
    /** For a tree that lives long. */
    readonly cache: PathCache | null = null,
  ) {
    this.#epoch = generations.nextEpoch();
  }

  /** The tree as it is now, for ever. */
  snapshot(): StoreNode {
    this.#epoch = this.generations.nextEpoch();
    return this.root;
  }

  get(path: Path): StoreNode | undefined {
    const { cache } = this;
    if (cache === null) return findNode(this.root, path, path.count);
    const known = cache.get(path);
    if (known !== undefined) return known;
    const node = findNode(this.root, path, path.count);
    if (node !== undefined) cache.put(path, node);
    return node;
  }

  /** Sets the value of a node that exists. */
  setValue(path: Path, value: Uint8Array): void {
    const node = this.#own(path, path.count);
    node.value = value;
    node.generation = ++this.generations.count;
  }

  /** Sets the permissions of a node that exists. */
  setPermissions(path: Path, permissions: Permissions): void {
    const node = this.#own(path, path.count);
    node.permissions = permissions;
    node.generation = ++this.generations.count;
  }

  /**
   * Creates a node and the parents it lacks, all with the same permissions, the parents empty. What is
   * new is built first and then attached in one step.
   * @param present names of the path that exist already
   */
  create(path: Path, present: number, value: Uint8Array, permissions: Permissions): void {
    const created = ++this.generations.count;
    const parent = this.#own(path, present);
    let node: StoreNode | null = null;
    for (let i = path.count - 1; i >= present; i--) {
      const above: StoreNode = new StoreNode(
        path.name(i),
        path.hashes[i],
        this.#epoch,
        node === null ? value : EMPTY,
        permissions,
        created,
        created,
        created,
      );
      if (node !== null) {
        above.children = putChild(null, node, undefined, this.#epoch);
        above.childBytes = node.name.length + 1;
      }
      node = above;
    }
    if (node === null) return;
    this.#changeChildren(
      parent,
      putChild(parent.children, node, undefined, this.#epoch),
      node.name.length + 1,
    );
  }

  /** Removes a node other than the root, and what is below it. @returns the removed node */
  remove(path: Path): StoreNode {
    const parent = this.#own(path, path.count - 1);
    const node = findChild(parent.children, path, path.count - 1) as StoreNode;
    this.generations.count++;
    this.cache?.clear();
    this.#changeChildren(parent, removeChild(parent.children!, node, this.#epoch), -node.name.length - 1);
    return node;
  }

  #changeChildren(parent: StoreNode, children: StoreNode['children'], bytes: number): void {
    parent.children = children;
    parent.childBytes += bytes;
    parent.childGeneration = this.generations.count;
    parent.listing = null;
  }

  /** The node `depth` names down the path, made ours together with all above it. */
  #own(path: Path, depth: number): StoreNode {
    const epoch = this.#epoch;
    if (depth === path.count) {
      // What is ours has nothing above it that is not.
      const known = this.cache?.get(path);
      if (known?.epoch === epoch) return known;
    }
    if (this.root.epoch !== epoch) {
      this.root = this.root.copy(epoch);
      this.cache?.clear();
    }
    let node = this.root;
    for (let i = 0; i < depth; i++) {
      let child = findChild(node.children, path, i) as StoreNode;
      if (child.epoch !== epoch) {
        this.cache?.clear();
        const old = child;
        child = old.copy(epoch);
        node.children = putChild(node.children, child, old, epoch);
      }
      node = child;
    }
    return node;
  }
}

/** The node `depth` names down the path. */
export function findNode(root: StoreNode, path: Path, depth: number): StoreNode | undefined {
  let node: StoreNode | undefined = root;
  for (let i = 0; i < depth; i++) {
    node = findChild(node.children, path, i);
    if (node === undefined) return undefined;
  }
  return node;
}

/** How many names of the path exist. */
export function presentNames(root: StoreNode, path: Path): number {
  let node = root;
  for (let i = 0; i < path.count; i++) {
    const child = findChild(node.children, path, i);
    if (child === undefined) return i;
    node = child;
  }
  return path.count;
}

/** The names of the children, each with a NUL: what DIRECTORY answers. */
export function listChildren(node: StoreNode): Uint8Array {
  if (node.listing !== null) return node.listing;
  if (node.children === null) return EMPTY;
  const listing = new Uint8Array(node.childBytes);
  let at = 0;
  for (const child of childrenInOrder(node.children)) at = putLatin1(listing, at, child.name) + 1;
  node.listing = listing;
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
    eachChild(next.children, child => {
      nodes.push(child);
      paths.push(below + child.name);
    });
  }
}

/** Nodes in a subtree, its root included. */
export function countNodes(node: StoreNode): number {
  let count = 0;
  const nodes = [node];
  for (let next = nodes.pop(); next !== undefined; next = nodes.pop()) {
    count++;
    eachChild(next.children, child => nodes.push(child));
  }
  return count;
}
