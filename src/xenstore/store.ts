import type { XsdErrorName } from '../abi/xs-wire.js';
import { eachChild } from './children.js';
import { type Domain, type DomainState, Domains } from './domains.js';
import { latin1Bytes } from './latin1.js';
import { StoreNode } from './node.js';
import { Path } from './path.js';
import {
  accessOf,
  PERM_NONE,
  PERM_OWNER,
  PERM_READ,
  PERM_WRITE,
  type Permission,
  type Permissions,
  type Requester,
} from './permissions.js';
import { defaultQuotas, isExhausted, type QuotaName, type Quotas } from './quota.js';
import { ACCESS, type Change, Transaction } from './transaction.js';
import { Generations, LiveTree, type Tree, walk } from './tree.js';
import type { Value } from './value.js';
import { type Watch, Watches } from './watches.js';

/** The result of an operation: '' when it was done, or the error to answer with. */
export type Outcome = XsdErrorName | '';

/** Names that are no paths, but can be watched and have permissions. */
export const SPECIAL_NAMES = ['@introduceDomain', '@releaseDomain'] as const;
export type SpecialName = (typeof SPECIAL_NAMES)[number];

/** What a node costs its owner's memory quota besides name, value and permissions. */
const NODE_BYTES = 64;
const PERMISSION_BYTES = 8;

/** The control domain itself: what xenstored does on its own account. */
export const SELF: Requester = { domid: 0, privileged: true, target: null };

interface Event {
  /** The subtree that was removed, when the change was a removal. */
  removed: StoreNode | null;
  /** The permissions before, when they changed. */
  before: Permissions | null;
}

/**
 * The store: the tree, permissions, transactions, watches and accounts. It knows nothing of connections
 * or messages, and no operation leaves it half changed. Operations take a parsed path, who asks, and the
 * transaction or null.
 */
export class Store {
  readonly salt: number;
  readonly domains: Domains;
  readonly watches = new Watches();
  readonly quotas: Quotas = defaultQuotas();
  /** The live tree. */
  readonly tree: LiveTree;
  /** Why the last `get` found nothing. */
  error: Outcome = '';
  /** Transactions that are open. */
  openTransactions = 0;
  /** Nodes in the live tree. */
  nodeCount = 1;
  readonly #special = new Map<string, StoreNode>();
  readonly #scratch: Path;
  readonly #below: Path;

  constructor(options: { random: () => number; domainState: (domid: number) => DomainState }) {
    this.salt = Math.floor(options.random() * 0x7fffffff) | 1;
    this.#scratch = new Path(this.salt);
    this.#below = new Path(this.salt);
    this.domains = new Domains(options.domainState);
    const dom0 = this.domains.add(0);
    dom0.introduced = true;
    dom0.usage.nodes = 1;
    const permissions: Permissions = [this.permission(0, PERM_NONE)];
    const generations = new Generations();
    this.tree = new LiveTree(generations, specialNode('', permissions));
    for (const name of SPECIAL_NAMES) this.#special.set(name, specialNode(name, permissions));
  }

  /** A permission entry for the domain that has this number now. */
  permission(domid: number, access: number): Permission {
    return { domid, access, incarnation: this.domains.find(domid)?.incarnation ?? 0 };
  }

  /** The node, when `who` may access it so; else null, and `error` says why. */
  get(path: Path, who: Requester, tx: Transaction | null, access: number, note: number): StoreNode | null {
    if (path.special) return this.#getSpecial(path, who, access);
    if (tx !== null) {
      if (!this.#note(tx, path, path.count, note, who)) {
        this.error = 'ENOSPC';
        return null;
      }
    }
    const tree = tx === null ? this.tree : tx.tree;
    const node = tree.get(path);
    if (node === undefined) {
      this.error = this.#whyAbsent(tree, path, who, access);
      return null;
    }
    if (!who.privileged && (accessOf(node.permissions, who, this.domains) & access) !== access) {
      this.error = 'EACCES';
      return null;
    }
    return node;
  }

  write(path: Path, who: Requester, tx: Transaction | null, value: Value): Outcome {
    const node = this.get(path, who, tx, PERM_WRITE, ACCESS.NODE);
    if (node === null) {
      return this.error === 'ENOENT' ? this.#create(path, who, tx, value, 'write') : this.error;
    }
    const owner = node.permissions[0].domid;
    if (!who.privileged) {
      const size = nodeSize(value.length, node.childBytes, node.permissions.length);
      if (this.#exceeds(who, 'node-size', size)) return 'ENOSPC';
      if (this.#lacksMemory(who, owner, value.length - node.value.length)) return 'ENOMEM';
    }
    if (tx !== null) {
      if (!this.#addChange(tx, who, { kind: 'write', path: path.toString(), value })) return 'ENOMEM';
      tx.tree.setValue(path, node, value);
      return '';
    }
    if (owner !== 0) this.#addMemory(owner, value.length - node.value.length);
    this.tree.setValue(path, node, value);
    this.#fire(path, null, null);
    return '';
  }

  mkdir(path: Path, who: Requester, tx: Transaction | null): Outcome {
    const node = this.get(path, who, tx, PERM_WRITE, ACCESS.NODE);
    if (node !== null) return '';
    return this.error === 'ENOENT' ? this.#create(path, who, tx, '', 'mkdir') : this.error;
  }

  rm(path: Path, who: Requester, tx: Transaction | null): Outcome {
    const node = this.get(path, who, tx, PERM_WRITE, ACCESS.NODE);
    if (node === null) {
      if (this.error !== 'ENOENT') return this.error;
      const tree = tx === null ? this.tree : tx.tree;
      // Whether it is an error depends on the parent.
      if (tx !== null && !this.#note(tx, path, path.count - 1, ACCESS.PARENT, who)) return 'ENOSPC';
      return tree.find(path, path.count - 1) === undefined ? 'ENOENT' : '';
    }
    if (path.count === 0 || path.special) return 'EINVAL';
    if (tx === null) {
      this.#uncount(path.toString(), node);
      this.#fire(path, this.tree.remove(path), null);
      return '';
    }
    if (!this.#note(tx, path, path.count, ACCESS.SUBTREE, who)) return 'ENOSPC';
    if (!this.#addChange(tx, who, { kind: 'rm', path: path.toString() })) return 'ENOMEM';
    walk(node, '', below => tx.addNodes(below.permissions[0].domid, -1));
    tx.tree.remove(path);
    return '';
  }

  /** @param permissions at least the owner's entry */
  setPermissions(path: Path, who: Requester, tx: Transaction | null, permissions: Permissions): Outcome {
    if (this.#exceeds(who, 'node-permissions', permissions.length)) return 'ENOSPC';
    const node = this.get(path, who, tx, PERM_WRITE | PERM_OWNER, ACCESS.NODE);
    if (node === null) return this.error;
    const owner = node.permissions[0].domid;
    const newOwner = permissions[0].domid;
    if (!who.privileged && owner !== newOwner) return 'EPERM';
    if (this.domains.find(newOwner) === undefined) return 'ENOMEM';
    const size = nodeSize(node.value.length, node.childBytes, permissions.length);
    if (this.#exceeds(who, 'node-size', size)) return 'ENOSPC';
    if (path.special) {
      node.permissions = permissions;
      return '';
    }
    if (tx !== null) {
      const change = { kind: 'permissions', path: path.toString(), permissions } as const;
      if (!this.#addChange(tx, who, change)) return 'ENOMEM';
      tx.addNodes(owner, -1);
      tx.addNodes(newOwner, 1);
      tx.tree.setPermissions(path, node, permissions);
      return '';
    }
    const text = path.toString();
    this.#discount(text, node);
    const before = node.permissions;
    this.#count(text, this.tree.setPermissions(path, node, permissions));
    this.#fire(path, null, before);
    return '';
  }

  /** Opens a transaction of a domain: a snapshot, whatever the size of the store. */
  begin(id: number, domid: number): Transaction {
    this.openTransactions++;
    return new Transaction(id, domid, this.tree);
  }

  /** Forgets a transaction. */
  abort(tx: Transaction): void {
    this.#ended(tx);
  }

  /**
   * Makes the transaction's changes on the live tree, all or none of them.
   * @returns EAGAIN when something that it depends on has changed; `conflict` then names the path
   */
  commit(tx: Transaction, who: Requester): { outcome: Outcome; conflict?: string } {
    this.#ended(tx);
    const conflict = tx.conflict(this.tree, this.#scratch);
    if (conflict !== undefined) return { outcome: 'EAGAIN', conflict };
    for (const [domid, delta] of tx.nodeDeltas) {
      const domain = this.domains.get(domid);
      if (domain === undefined) return { outcome: 'EAGAIN' };
      if (delta > 0 && domid !== 0 && !who.privileged) {
        const limit = this.quota(domain, 'nodes');
        if (limit !== 0 && domain.usage.nodes + delta > limit) return { outcome: 'ENOSPC' };
      }
    }
    const events = new Map<string, Event>();
    const path = this.#scratch;
    for (const change of tx.changes) {
      path.set(change.path);
      this.#redo(change, path, who, events);
    }
    for (const [text, event] of events) {
      path.set(text);
      this.#fire(path, event.removed, event.before);
    }
    return { outcome: '' };
  }

  /** Tells the watches on a special name, and on that name and domid. */
  fireSpecial(name: SpecialName, domid: number): void {
    const { permissions } = this.#special.get(name)!;
    const plain = latin1Bytes(name);
    const exact = latin1Bytes(`${name}/${domid}`);
    this.watches.special(name, domid, watch => {
      if ((accessOf(permissions, watch.owner, this.domains) & PERM_READ) === 0) return;
      // Who gave a depth gets the domid, down to which the watch reaches.
      const epath = watch.path !== name || (watch.depth > 0 && watch.depth !== 0xffff) ? exact : plain;
      watch.owner.watchEvent(watch, epath, 0, epath.length);
    });
  }

  /** The limit that holds for a domain. */
  quota(domain: Domain, name: QuotaName): number {
    return domain.quotas[name] ?? this.quotas[name];
  }

  /** Removes every node that a domain owns: it is gone. Its watches must be gone before. */
  removeOwned(domain: Domain): void {
    const path = this.#scratch;
    for (const text of [...domain.owned].sort()) {
      if (!domain.owned.has(text)) continue;
      path.set(text);
      this.rm(path, SELF, null);
      path.set(text);
    }
    const nobody: Permissions = [this.permission(0, PERM_NONE)];
    for (const node of this.#special.values()) {
      if (node.permissions[0].domid === domain.domid) node.permissions = nobody;
    }
  }

  /** The node of a special name. */
  special(name: string): StoreNode | undefined {
    return this.#special.get(name);
  }

  /** A node and the names it lacks above, for the store's own use. */
  ensure(text: string): void {
    this.#scratch.set(text);
    this.mkdir(this.#scratch, SELF, null);
  }

  /**
   * Puts a node where nobody asked for it: restoring a saved state. Parents must exist.
   * @throws RangeError for a path that is none
   */
  restore(text: string, value: Value, permissions: Permissions): void {
    if (text.startsWith('@')) {
      const special = this.#special.get(text);
      if (special !== undefined) special.permissions = permissions;
      return;
    }
    const path = this.#scratch;
    if (!path.set(text)) throw new RangeError(`${JSON.stringify(text)} is no path`);
    const node = this.tree.get(path);
    if (node !== undefined) {
      this.#discount(text, node);
      this.tree.setValue(path, node, value);
      this.tree.setPermissions(path, this.tree.get(path)!, permissions);
    } else {
      this.tree.create(path, this.tree.presentNames(path), value, permissions);
      this.nodeCount++;
    }
    this.#count(text, this.tree.get(path)!);
  }

  /** Recounts everything. @returns what was wrong with the accounts, in words */
  check(): string[] {
    const counts = new Map<number, number>();
    const wrong: string[] = [];
    let nodes = 0;
    walk(this.tree.root, '/', (node, path) => {
      nodes++;
      const { domid } = node.permissions[0];
      counts.set(domid, (counts.get(domid) ?? 0) + 1);
      if (domid !== 0 && !this.domains.get(domid)?.owned.has(path)) {
        wrong.push(`${path} belongs to domain ${domid}, which does not count it`);
      }
    });
    if (nodes !== this.nodeCount) wrong.push(`${nodes} nodes, but ${this.nodeCount} counted`);
    for (const domain of this.domains) {
      const count = counts.get(domain.domid) ?? 0;
      if (count !== domain.usage.nodes) {
        wrong.push(`domain ${domain.domid} owns ${count} nodes, but ${domain.usage.nodes} are counted`);
      }
    }
    return wrong;
  }

  #getSpecial(path: Path, who: Requester, access: number): StoreNode | null {
    const node = this.#special.get(path.toString());
    if (node === undefined) this.error = who.privileged ? 'ENOENT' : 'EACCES';
    else if ((accessOf(node.permissions, who, this.domains) & access) === access) return node;
    else this.error = 'EACCES';
    return null;
  }

  /** ENOENT, or EACCES for who may not know: the nearest ancestor that exists decides. */
  #whyAbsent(tree: Tree, path: Path, who: Requester, access: number): Outcome {
    if (who.privileged) return 'ENOENT';
    const ancestor = tree.find(path, tree.presentNames(path))!;
    return (accessOf(ancestor.permissions, who, this.domains) & access) === access ? 'ENOENT' : 'EACCES';
  }

  /** @returns false when the transaction depends on too many paths */
  #note(
    tx: Transaction,
    path: Path,
    depth: number,
    flags: number,
    who: Requester,
    permissions: Permissions | null = null,
  ): boolean {
    tx.note(path, depth, flags, permissions);
    return !this.#exceeds(who, 'transaction-nodes', tx.size);
  }

  #create(
    path: Path,
    who: Requester,
    tx: Transaction | null,
    value: Value,
    kind: 'write' | 'mkdir',
  ): Outcome {
    if (path.special) return 'EINVAL';
    const tree = tx === null ? this.tree : tx.tree;
    const present = tree.presentNames(path);
    const parent = tree.find(path, present)!;
    const permissions = this.#inherit(parent.permissions, who);
    const owner = permissions[0].domid;
    const added = path.count - present;
    if (!who.privileged) {
      const domain = this.domains.find(owner);
      if (domain === undefined) return 'ENOMEM';
      const used = domain.usage.nodes + (tx?.nodeDeltas.get(owner) ?? 0);
      if (isExhausted(this.quota(domain, 'nodes'), used + added - 1)) return 'ENOSPC';
      const nameBytes = path.ends[present] - path.starts[present] + 1;
      if (this.#exceeds(who, 'node-size', nodeSize(value.length, 0, permissions.length))) return 'ENOSPC';
      const parentSize = nodeSize(
        parent.value.length,
        parent.childBytes + nameBytes,
        parent.permissions.length,
      );
      if (this.#exceeds(who, 'node-size', parentSize)) return 'ENOSPC';
      const memory = added * (NODE_BYTES + permissions.length * PERMISSION_BYTES) + value.length + path.end;
      if (this.#lacksMemory(who, owner, memory)) return 'ENOMEM';
    }
    if (tx !== null) {
      for (let depth = present + 1; depth < path.count; depth++) {
        if (!this.#note(tx, path, depth, ACCESS.IMPLIED, who, permissions)) return 'ENOSPC';
      }
      if (!this.#note(tx, path, present, ACCESS.PARENT, who)) return 'ENOSPC';
      const text = path.toString();
      const change: Change = kind === 'write' ? { kind, path: text, value } : { kind, path: text };
      if (!this.#addChange(tx, who, change)) return 'ENOMEM';
      tx.addNodes(owner, added);
    }
    tree.create(path, present, value, permissions);
    if (tx === null) {
      this.#countCreated(path, present);
      this.#fire(path, null, null);
    }
    return '';
  }

  /**
   * Notes a change for the commit. It takes memory until the transaction ends, however often it was made before.
   * @returns false when the domain may not have that much
   */
  #addChange(tx: Transaction, who: Requester, change: Change): boolean {
    const bytes = changeBytes(change);
    if (this.#lacksMemory(who, tx.domid, bytes)) return false;
    tx.changes.push(change);
    tx.changeBytes += bytes;
    this.#addMemory(tx.domid, bytes);
    return true;
  }

  #ended(tx: Transaction): void {
    this.openTransactions--;
    this.#addMemory(tx.domid, -tx.changeBytes);
  }

  /** A child's permissions: its parent's, but what a guest creates is its own. */
  #inherit(from: Permissions, who: Requester): Permissions {
    if (who.privileged || from[0].domid === who.domid) return from;
    const [owner, ...others] = from;
    return [this.permission(who.domid, owner.access), ...others];
  }

  /** Makes a change of a committed transaction, and notes what there is to tell. */
  #redo(change: Change, path: Path, who: Requester, events: Map<string, Event>): void {
    const { tree } = this;
    const node = tree.get(path);
    if (change.kind === 'rm') {
      if (node === undefined) return;
      this.#uncount(change.path, node);
      const removed = tree.remove(path);
      // Set anew, so that it comes after whatever happened below it.
      events.delete(change.path);
      events.set(change.path, { removed, before: null });
      return;
    }
    const event = events.get(change.path);
    if (event === undefined) events.set(change.path, { removed: null, before: null });
    if (change.kind === 'permissions') {
      if (node === undefined) return;
      if (event === undefined || event.before === null) {
        events.set(change.path, { removed: event?.removed ?? null, before: node.permissions });
      }
      this.#discount(change.path, node);
      this.#count(change.path, tree.setPermissions(path, node, change.permissions));
      return;
    }
    const value = change.kind === 'write' ? change.value : '';
    if (node === undefined) {
      const present = tree.presentNames(path);
      const parent = tree.find(path, present)!;
      tree.create(path, present, value, this.#inherit(parent.permissions, who));
      this.#countCreated(path, present);
    } else if (change.kind === 'write') {
      this.#addMemory(node.permissions[0].domid, value.length - node.value.length);
      tree.setValue(path, node, value);
    }
  }

  #countCreated(path: Path, present: number): void {
    this.nodeCount += path.count - present;
    const owner = this.tree.get(path)!.permissions[0].domid;
    if (owner === 0) {
      this.domains.get(0)!.usage.nodes += path.count - present;
      return;
    }
    for (let depth = present + 1; depth <= path.count; depth++) {
      this.#count(path.prefix(depth), this.tree.find(path, depth)!);
    }
  }

  /** Puts a node on its owner's account. */
  #count(text: string, node: StoreNode): void {
    const { domid } = node.permissions[0];
    const domain = this.domains.get(domid);
    if (domain === undefined) return;
    this.domains.use(domain, 'nodes', 1);
    if (domid === 0) return;
    domain.owned.add(text);
    this.domains.use(domain, 'memory', memoryOf(node));
  }

  #discount(text: string, node: StoreNode): void {
    const { domid } = node.permissions[0];
    const domain = this.domains.get(domid);
    if (domain === undefined) return;
    this.domains.use(domain, 'nodes', -1);
    if (domid === 0) return;
    domain.owned.delete(text);
    this.domains.use(domain, 'memory', -memoryOf(node));
  }

  /** Takes a subtree that is about to be removed off all accounts. */
  #uncount(text: string, subtree: StoreNode): void {
    walk(subtree, text, (node, at) => {
      this.nodeCount--;
      this.#discount(at, node);
    });
  }

  #addMemory(domid: number, bytes: number): void {
    if (domid === 0) return;
    const domain = this.domains.get(domid);
    if (domain !== undefined) this.domains.use(domain, 'memory', bytes);
  }

  #lacksMemory(who: Requester, owner: number, growth: number): boolean {
    if (who.privileged || growth <= 0 || owner === 0) return false;
    const domain = this.domains.get(owner);
    if (domain === undefined) return false;
    const limit = this.quota(domain, 'memory');
    return limit !== 0 && domain.usage.memory + growth > limit;
  }

  #exceeds(who: Requester, name: QuotaName, value: number): boolean {
    if (who.privileged) return false;
    const domain = this.domains.get(who.domid);
    const limit = domain === undefined ? this.quotas[name] : this.quota(domain, name);
    return limit !== 0 && value > limit;
  }

  /**
   * Tells the watches of a change at `path`.
   * @param removed the subtree that was there, when it was removed
   * @param before the permissions before, when they changed
   */
  #fire(path: Path, removed: StoreNode | null, before: Permissions | null): void {
    const { watches } = this;
    if (watches.isEmpty) return;
    let node: StoreNode | undefined;
    let parent: StoreNode | undefined;
    watches.match(path, watch => {
      if (!watch.owner.privileged) {
        node ??= removed ?? this.tree.get(path);
        parent ??= this.tree.find(path, Math.max(path.count - 1, 0));
        if (!this.#maySee(watch, node, parent, before)) return;
      }
      watch.owner.watchEvent(watch, path.bytes, path.start, path.end);
    });
    if (removed !== null && removed.directory !== null) this.#fireBelow(path, removed);
  }

  /** Watches on nodes that went with their ancestor are told of their own path. */
  #fireBelow(path: Path, removed: StoreNode): void {
    const nodes = [removed];
    const paths = [path.toString()];
    while (nodes.length > 0) {
      const node = nodes.pop() as StoreNode;
      const text = paths.pop() as string;
      if (node !== removed && this.watches.mayHave(node.hash)) {
        this.#below.set(text);
        this.watches.at(this.#below, watch => {
          if (!watch.owner.privileged && !this.#maySee(watch, node, undefined, null)) return;
          const epath = latin1Bytes(text);
          watch.owner.watchEvent(watch, epath, 0, epath.length);
        });
      }
      eachChild(node, child => {
        nodes.push(child);
        paths.push(`${text}/${child.name}`);
      });
    }
  }

  /** An event is for who may read the node, or could, or may list its parent (XSA-115). */
  #maySee(
    watch: Watch,
    node: StoreNode | undefined,
    parent: StoreNode | undefined,
    before: Permissions | null,
  ): boolean {
    const { owner } = watch;
    const reads = (permissions: Permissions) =>
      (accessOf(permissions, owner, this.domains) & PERM_READ) !== 0;
    return (
      (node !== undefined && reads(node.permissions)) ||
      (before !== null && reads(before)) ||
      (parent !== undefined && reads(parent.permissions))
    );
  }
}

/** A node that is nobody's child. */
function specialNode(name: string, permissions: Permissions): StoreNode {
  return new StoreNode(name, '', 0, 0, '', permissions, 0, 0);
}

/** What the node-size quota measures. */
function nodeSize(valueBytes: number, childBytes: number, permissions: number): number {
  return valueBytes + childBytes + permissions * PERMISSION_BYTES;
}

function changeBytes(change: Change): number {
  let bytes = NODE_BYTES + change.path.length;
  if (change.kind === 'write') bytes += change.value.length;
  else if (change.kind === 'permissions') bytes += change.permissions.length * PERMISSION_BYTES;
  return bytes;
}

function memoryOf(node: StoreNode): number {
  return NODE_BYTES + node.name.length + node.value.length + node.permissions.length * PERMISSION_BYTES;
}
