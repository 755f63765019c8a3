import type { StoreNode } from './node.js';
import type { Path } from './path.js';

/**
 * The children of a node: a persistent set keyed by name. Few children are a plain list; some hundreds are
 * one hash table, in which a look-up touches less memory than in a trie; more are a hash trie of 32 ways a
 * level, so that a change copies a few short arrays however many children there are.
 *
 * What carries the editor's own epoch was made by it since the last snapshot, is seen by nobody else, and
 * is changed in place; anything else is copied first.
 */
export type Children = List | Table | Branch;

/** More children than this become a table. */
const LIST_MAX = 12;
/** More children than this become a trie: a copy of a table must stay cheap. */
const TABLE_MAX = 256;
/** Slots of the smallest table. A power of two, and at least twice LIST_MAX. */
const TABLE_SLOTS = 32;
/** Below this many levels hashes have no bits left: a list holds what collides. */
const MAX_SHIFT = 30;

class List {
  constructor(
    readonly epoch: number,
    readonly nodes: StoreNode[],
  ) {}
}

/** Open addressing with linear probing; at most half of the slots, a power of two, are taken. */
class Table {
  constructor(
    readonly epoch: number,
    public count: number,
    public slots: (StoreNode | null)[],
  ) {}
}

class Branch {
  constructor(
    readonly epoch: number,
    /** Bit i is set when slot i is taken; the taken ones stand in `slots` in order. */
    public bitmap: number,
    readonly slots: (StoreNode | Branch | List)[],
  ) {}
}

function bitCount(bits: number): number {
  bits -= (bits >>> 1) & 0x55555555;
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** The child that bears the name at `index` of `path`. */
export function findChild(children: Children | null, path: Path, index: number): StoreNode | undefined {
  const hash = path.hashes[index];
  let at: Children | StoreNode | null = children;
  let shift = 0;
  while (at instanceof Branch) {
    const bit = 1 << ((hash >>> shift) & 31);
    if ((at.bitmap & bit) === 0) return undefined;
    at = at.slots[bitCount(at.bitmap & (bit - 1))];
    shift += 5;
  }
  if (at === null) return undefined;
  if (at instanceof Table) {
    const { slots } = at;
    const mask = slots.length - 1;
    for (let i = hash & mask; ; i = (i + 1) & mask) {
      const node = slots[i];
      if (node === null) return undefined;
      if (node.hash === hash && path.nameIs(index, node.name)) return node;
    }
  }
  if (at instanceof List) {
    const { nodes } = at;
    for (let i = 0; i < nodes.length; i++) {
      if (nodes[i].hash === hash && path.nameIs(index, nodes[i].name)) return nodes[i];
    }
    return undefined;
  }
  return at.hash === hash && path.nameIs(index, at.name) ? at : undefined;
}

/** With `node` added, or in the place of `old`. */
export function putChild(
  children: Children | null,
  node: StoreNode,
  old: StoreNode | undefined,
  epoch: number,
): Children {
  if (children === null) return new List(epoch, [node]);
  if (children instanceof Branch) return putInBranch(children, 0, node, old, epoch);
  if (children instanceof Table) return putInTable(children, node, old, epoch);
  const list = ownList(children, epoch);
  if (old !== undefined) {
    list.nodes[list.nodes.indexOf(old)] = node;
    return list;
  }
  list.nodes.push(node);
  if (list.nodes.length <= LIST_MAX) return list;
  return new Table(epoch, list.nodes.length, tableOf(list.nodes, TABLE_SLOTS));
}

/** Without `node`; null when it was the last. */
export function removeChild(children: Children, node: StoreNode, epoch: number): Children | null {
  if (children instanceof Branch) {
    const left = removeFromBranch(children, 0, node, epoch);
    return left instanceof Branch || left === null ? left : new List(epoch, [left]);
  }
  if (children instanceof Table) {
    const nodes = children.slots.filter(other => other !== null && other !== node) as StoreNode[];
    if (nodes.length === 0) return null;
    return new Table(epoch, nodes.length, tableOf(nodes, children.slots.length));
  }
  if (children.nodes.length === 1) return null;
  const list = ownList(children, epoch);
  list.nodes.splice(list.nodes.indexOf(node), 1);
  return list;
}

/** All children in the order in which they were created. */
export function childrenInOrder(children: Children | null): StoreNode[] {
  if (children === null) return [];
  if (children instanceof List) return children.nodes.slice();
  const nodes: StoreNode[] = [];
  eachChild(children, node => nodes.push(node));
  return nodes.sort((a, b) => a.created - b.created);
}

/** Calls `visit` for every child, in no order. */
export function eachChild(children: Children | StoreNode | null, visit: (node: StoreNode) => void): void {
  if (children === null) return;
  if (children instanceof Branch) for (const slot of children.slots) eachChild(slot, visit);
  else if (children instanceof List) for (const node of children.nodes) visit(node);
  else if (children instanceof Table) {
    for (const node of children.slots) if (node !== null) visit(node);
  } else visit(children);
}

function ownList(list: List, epoch: number): List {
  return list.epoch === epoch ? list : new List(epoch, list.nodes.slice());
}

function tableOf(nodes: readonly StoreNode[], length: number): (StoreNode | null)[] {
  const slots: (StoreNode | null)[] = new Array(length).fill(null);
  for (const node of nodes) slots[slotFor(slots, node.hash, null)] = node;
  return slots;
}

/** The slot that holds `wanted`, which is there: null for the first that is free for this hash. */
function slotFor(slots: readonly (StoreNode | null)[], hash: number, wanted: StoreNode | null): number {
  const mask = slots.length - 1;
  let i = hash & mask;
  while (slots[i] !== wanted) i = (i + 1) & mask;
  return i;
}

function putInTable(from: Table, node: StoreNode, old: StoreNode | undefined, epoch: number): Children {
  if (old === undefined && from.count === TABLE_MAX) {
    let branch = new Branch(epoch, 0, []);
    for (const child of from.slots) {
      if (child !== null) branch = putInBranch(branch, 0, child, undefined, epoch);
    }
    return putInBranch(branch, 0, node, undefined, epoch);
  }
  const table = from.epoch === epoch ? from : new Table(epoch, from.count, from.slots.slice());
  if (old === undefined && ++table.count * 2 > table.slots.length) {
    const nodes = table.slots.filter(child => child !== null) as StoreNode[];
    table.slots = tableOf(nodes, table.slots.length * 2);
  }
  table.slots[slotFor(table.slots, node.hash, old ?? null)] = node;
  return table;
}

function ownBranch(branch: Branch, epoch: number): Branch {
  return branch.epoch === epoch ? branch : new Branch(epoch, branch.bitmap, branch.slots.slice());
}

function putInBranch(
  from: Branch,
  shift: number,
  node: StoreNode,
  old: StoreNode | undefined,
  epoch: number,
): Branch {
  const branch = ownBranch(from, epoch);
  const bit = 1 << ((node.hash >>> shift) & 31);
  const index = bitCount(branch.bitmap & (bit - 1));
  if ((branch.bitmap & bit) === 0) {
    branch.bitmap |= bit;
    branch.slots.splice(index, 0, node);
    return branch;
  }
  const slot = branch.slots[index];
  if (slot === old) branch.slots[index] = node;
  else if (slot instanceof Branch) branch.slots[index] = putInBranch(slot, shift + 5, node, old, epoch);
  else if (slot instanceof List) {
    const list = ownList(slot, epoch);
    if (old === undefined) list.nodes.push(node);
    else list.nodes[list.nodes.indexOf(old)] = node;
    branch.slots[index] = list;
  } else if (shift === MAX_SHIFT) branch.slots[index] = new List(epoch, [slot, node]);
  else {
    const below = putInBranch(new Branch(epoch, 0, []), shift + 5, slot, undefined, epoch);
    branch.slots[index] = putInBranch(below, shift + 5, node, undefined, epoch);
  }
  return branch;
}

/** What is left: null, the only child left when it need not stay a branch, or the branch. */
function removeFromBranch(
  from: Branch,
  shift: number,
  node: StoreNode,
  epoch: number,
): Branch | StoreNode | null {
  const branch = ownBranch(from, epoch);
  const bit = 1 << ((node.hash >>> shift) & 31);
  const index = bitCount(branch.bitmap & (bit - 1));
  const slot = branch.slots[index];
  let left: Branch | List | StoreNode | null = null;
  if (slot instanceof Branch) left = removeFromBranch(slot, shift + 5, node, epoch);
  else if (slot instanceof List) {
    const list = ownList(slot, epoch);
    list.nodes.splice(list.nodes.indexOf(node), 1);
    left = list.nodes.length === 1 ? list.nodes[0] : list;
  }
  if (left !== null) branch.slots[index] = left;
  else {
    branch.bitmap &= ~bit;
    branch.slots.splice(index, 1);
  }
  if (branch.slots.length === 0) return null;
  const only = branch.slots[0];
  return branch.slots.length === 1 && !(only instanceof Branch) && !(only instanceof List) ? only : branch;
}
