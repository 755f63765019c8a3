import type { StoreNode } from './node.js';
import type { Path } from './path.js';

/**
 * The children of a node: a persistent set keyed by name. Few are a plain list, more a hash trie of 16 ways
 * a level with such lists at its ends, so that a change copies a few short arrays however many there are.
 * A list is never changed, but replaced.
 *
 * A branch that carries the editor's own epoch was made by it since the last snapshot, is seen by nobody
 * else, and is changed in place; any other is copied first.
 */
export type Children = readonly StoreNode[] | Branch;

/** More children than this at one place become a branch. */
const LIST_MAX = 16;
const BITS = 4;
const WAYS = 1 << BITS;
/** From here on hashes have no bits left: a list holds what collides. */
const MAX_SHIFT = 32;

class Branch {
  constructor(
    readonly epoch: number,
    readonly slots: (Children | null)[],
  ) {}
}

/** What a node with children has besides. Belongs to one node only; the children are shared. */
export class Directory {
  children: Children | null = null;
  /** Bytes of the children's names, each with its NUL. */
  bytes = 0;
  /** The reply to DIRECTORY, kept until the children change. */
  listing: Uint8Array | null = null;

  constructor(
    /** The node's own path, which its children share. */
    readonly path: string,
    /** Count of the store's changes when a child last came or went. */
    public generation: number,
  ) {}

  copy(): Directory {
    const copy = new Directory(this.path, this.generation);
    copy.children = this.children;
    copy.bytes = this.bytes;
    copy.listing = this.listing;
    return copy;
  }
}

/** The child that bears the name at `index` of `path`. */
export function findChild(node: StoreNode, path: Path, index: number): StoreNode | undefined {
  if (node.directory === null) return undefined;
  const hash = path.prefixHashes[index + 1];
  let at = node.directory.children;
  for (let shift = 0; at instanceof Branch; shift += BITS) at = at.slots[(hash >>> shift) & (WAYS - 1)];
  if (at === null) return undefined;
  for (let i = 0; i < at.length; i++) {
    if (at[i].hash === hash && path.nameIs(index, at[i].name)) return at[i];
  }
  return undefined;
}

/** With `node` added, or in the place of `old`. */
export function putChild(
  children: Children | null,
  node: StoreNode,
  old: StoreNode | undefined,
  epoch: number,
  shift = 0,
): Children {
  if (children === null) return [node];
  if (children instanceof Branch) {
    const branch = ownBranch(children, epoch);
    const slot = slotOf(node, shift);
    branch.slots[slot] = putChild(branch.slots[slot], node, old, epoch, shift + BITS);
    return branch;
  }
  if (old !== undefined) return children.map(child => (child === old ? node : child));
  if (children.length < LIST_MAX || shift >= MAX_SHIFT) return children.concat(node);
  const branch = new Branch(epoch, new Array(WAYS).fill(null));
  for (const child of children.concat(node)) {
    const slot = slotOf(child, shift);
    branch.slots[slot] = putChild(branch.slots[slot], child, undefined, epoch, shift + BITS);
  }
  return branch;
}

/** Without `node`; null when it was the last. */
export function removeChild(children: Children, node: StoreNode, epoch: number, shift = 0): Children | null {
  if (!(children instanceof Branch)) {
    return children.length === 1 ? null : children.filter(child => child !== node);
  }
  const branch = ownBranch(children, epoch);
  const slot = slotOf(node, shift);
  branch.slots[slot] = removeChild(branch.slots[slot]!, node, epoch, shift + BITS);
  return branch.slots.every(left => left === null) ? null : branch;
}

/** All children in the order in which they were created. */
export function childrenInOrder(node: StoreNode): StoreNode[] {
  const nodes: StoreNode[] = [];
  eachChild(node, child => nodes.push(child));
  return nodes.sort((a, b) => a.created - b.created);
}

/** Calls `visit` for every child, in no order. */
export function eachChild(node: StoreNode, visit: (child: StoreNode) => void): void {
  if (node.directory !== null) each(node.directory.children, visit);
}

function each(children: Children | null, visit: (child: StoreNode) => void): void {
  if (children instanceof Branch) for (const slot of children.slots) each(slot, visit);
  else if (children !== null) for (const child of children) visit(child);
}

function ownBranch(branch: Branch, epoch: number): Branch {
  return branch.epoch === epoch ? branch : new Branch(epoch, branch.slots.slice());
}

function slotOf(node: StoreNode, shift: number): number {
  return (node.hash >>> shift) & (WAYS - 1);
}
