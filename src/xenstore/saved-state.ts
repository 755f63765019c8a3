import { DOMID_INVALID } from '../abi/xen.js';
import { childrenInOrder } from './children.js';
import type { Connection } from './connection.js';
import {
  CONNECTION_TYPE,
  NODE_ACCESS,
  PERMISSION_IGNORE,
  RECORD,
  readRecords,
  type StreamRecord,
  StreamWriter,
} from './migration-stream.js';
import type { StoreNode } from './node.js';
import { Path } from './path.js';
import { formatPermission, type Permission, type Permissions, parsePermission } from './permissions.js';
import { isQuotaName, QUOTA_NAMES } from './quota.js';
import type { XenStoreServer } from './server.js';
import { SELF, SPECIAL_NAMES } from './store.js';
import { ACCESS, type Transaction } from './transaction.js';
import { differences } from './tree.js';
import { takeValue, valueBytes } from './value.js';
import { ANY_DEPTH } from './watches.js';

const NO_FD = 0xffffffff;
/** Nodes that are written between two pauses. */
const NODES_A_PART = 2000;

export interface SaveOptions {
  /** File descriptor of the listening socket. */
  listener?: number;
  /** File descriptor of a socket client; undefined for a connection that cannot be handed on. */
  fdOf?: (connection: Connection) => number | undefined;
}

/**
 * The server's whole state, for the process that takes over: connections with what they sent and are to
 * be sent, watches, transactions, quotas, nodes.
 */
export function saveState(server: XenStoreServer, options: SaveOptions = {}): Uint8Array {
  const writer = new StreamWriter();
  writer
    .begin(RECORD.GLOBAL_DATA)
    .u32(options.listener ?? NO_FD)
    .u32(NO_FD)
    .end();
  saveQuotas(writer, server);
  const saved: [id: number, connection: Connection][] = [];
  for (const connection of server.connections) {
    const fd = options.fdOf?.(connection);
    const ring = server.ringOf(connection);
    if (fd === undefined && ring === undefined) continue;
    saveConnection(writer, connection, fd, ring);
    saved.push([connection.id, connection]);
  }
  for (const [id, connection] of saved) {
    for (const tx of connection.transactions.values()) {
      writer.begin(RECORD.TRANSACTION_DATA).u32(id).u32(tx.id).end();
    }
  }
  for (const _ of saveNodes(writer, server, server.store.tree.root));
  for (const [id, connection] of saved) {
    for (const tx of connection.transactions.values()) saveTransaction(writer, server, id, tx);
  }
  writer.begin(RECORD.END).end();
  return writer.take();
}

/**
 * The nodes and quotas alone, part by part: what survives a crash. The tree is a snapshot, so requests may
 * be served between two parts.
 */
export function* saveNodesInParts(server: XenStoreServer): IterableIterator<Uint8Array> {
  const writer = new StreamWriter();
  saveQuotas(writer, server);
  for (const _ of saveNodes(writer, server, server.store.tree.snapshot())) yield writer.take();
  writer.begin(RECORD.END).end();
  yield writer.take();
}

function saveQuotas(writer: StreamWriter, server: XenStoreServer): void {
  const { quotas, domains } = server.store;
  writer.begin(RECORD.GLOBAL_QUOTA_DATA).u16(QUOTA_NAMES.length).u16(0);
  for (const name of QUOTA_NAMES) writer.u32(quotas[name]);
  writer.text(QUOTA_NAMES.map(name => `${name}\0`).join('')).end();
  for (const domain of domains) {
    const names = QUOTA_NAMES.filter(name => domain.quotas[name] !== undefined);
    writer.begin(RECORD.DOMAIN_DATA).u16(domain.domid).u16(names.length).u32(domain.features);
    for (const name of names) writer.u32(domain.quotas[name]!);
    writer.text(names.map(name => `${name}\0`).join('')).end();
  }
}

function saveConnection(
  writer: StreamWriter,
  connection: Connection,
  fd: number | undefined,
  ring: { port: number } | undefined,
): void {
  const { input, output } = connection.pending();
  writer.begin(RECORD.CONNECTION_DATA).u32(connection.id);
  writer.u16(ring === undefined ? CONNECTION_TYPE.SOCKET : CONNECTION_TYPE.RING).u16(0);
  if (ring === undefined) writer.u32(fd!).u32(0);
  else
    writer
      .u16(connection.domid)
      .u16(connection.target?.domid ?? DOMID_INVALID)
      .u32(ring.port);
  // Of the output, nothing is told apart as the rest of a reply.
  writer.u16(input.length).u16(0).u32(output.length).raw(input).raw(output).end();
  for (const watch of connection.watches.values()) {
    const wpath = watch.path.slice(watch.strip);
    writer.begin(RECORD.WATCH_DATA_EXTENDED).u32(connection.id);
    writer
      .u16(wpath.length + 1)
      .u16(watch.token.length + 1)
      .u16(watch.depth)
      .u16(0);
    writer.text(`${wpath}\0${watch.token}\0`).end();
  }
}

/** Writes all nodes, parents first, with a pause (a yield) every now and then. */
function* saveNodes(writer: StreamWriter, server: XenStoreServer, root: StoreNode): IterableIterator<void> {
  for (const name of SPECIAL_NAMES) saveNode(writer, server, name, server.store.special(name)!, 0, 0, 0);
  const nodes = [root];
  const paths = ['/'];
  let count = 0;
  for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
    const path = paths.pop()!;
    saveNode(writer, server, path, node, 0, 0, 0);
    // In reverse, so that they are written in the order in which they were created.
    for (const child of childrenInOrder(node).reverse()) {
      nodes.push(child);
      paths.push(path === '/' ? `/${child.name}` : `${path}/${child.name}`);
    }
    if (++count % NODES_A_PART === 0) yield;
  }
}

function saveNode(
  writer: StreamWriter,
  server: XenStoreServer,
  path: string,
  node: StoreNode | undefined,
  connectionId: number,
  txId: number,
  access: number,
): void {
  const value = valueBytes(node?.value ?? '');
  const permissions = node?.permissions ?? [];
  writer.begin(RECORD.NODE_DATA).u32(connectionId).u32(txId);
  writer
    .u16(path.length + 1)
    .u16(value.length)
    .u16(access)
    .u16(permissions.length);
  for (const entry of permissions) {
    const isCurrent = server.store.domains.isSame(entry.domid, entry.incarnation);
    writer
      .u8(formatPermission(entry).charCodeAt(0))
      .u8(isCurrent ? 0 : PERMISSION_IGNORE)
      .u16(entry.domid);
  }
  writer.text(`${path}\0`).raw(value).end();
}

/** What a transaction began with, where that is not as it is now, and what it read and changed. */
function saveTransaction(writer: StreamWriter, server: XenStoreServer, id: number, tx: Transaction): void {
  const { tree } = server.store;
  const path = new Path(server.store.salt);
  const save = (text: string, node: StoreNode | null | undefined, access: number) =>
    saveNode(writer, server, text, node ?? undefined, id, tx.id, access);
  for (const [text, node] of differences(tx.tree.base, tree.root, '/')) save(text, node, NODE_ACCESS.BEGAN);
  const conflict = tx.conflict(tree, path);
  if (conflict !== undefined) save(conflict, undefined, NODE_ACCESS.STALE);
  const changed = new Set(tx.changes.map(change => change.path));
  // Parents that come into being again with a node below them; and by parent, a node below that is not there any more.
  const above = new Set<string>();
  const gone = new Map<string, string>();
  for (const text of changed) {
    path.set(text);
    const isThere = tx.tree.get(path) !== undefined;
    for (let depth = path.count - 1; depth > 0; depth--) {
      if (isThere) above.add(path.prefix(depth));
      else gone.set(path.prefix(depth), text);
    }
  }
  const removed: string[] = [];
  // Nodes that were removed again, with the parent that came into being with them.
  const passed = new Map<string, StoreNode>();
  for (const [text, flags] of tx.accesses()) {
    path.set(text);
    if (flags & ACCESS.SUBTREE) removed.push(text);
    if (flags & ACCESS.IMPLIED && !changed.has(text)) {
      const node = tx.tree.get(path);
      // Who takes it up would give it its parent's permissions.
      if (node === undefined || hasOwnPermissions(tx, path)) changed.add(text);
      else if (!above.has(text)) passed.set(gone.get(text)!, node);
    }
    if (changed.has(text) || flags === ACCESS.IMPLIED || flags === ACCESS.PARENT) continue;
    save(text, tx.tree.get(path), NODE_ACCESS.READ | whatWasRead(flags));
  }
  for (const [text, parent] of passed) save(text, parent, NODE_ACCESS.WRITE);
  // What was removed and made anew has lost what was below it.
  for (const text of removed) save(text, undefined, 0);
  for (const text of [...changed].sort()) {
    path.set(text);
    const node = tx.tree.get(path);
    if (node !== undefined) save(text, node, NODE_ACCESS.WRITE);
  }
}

/** What READ goes with, for these ACCESS flags. */
function whatWasRead(flags: number): number {
  if ((flags & ACCESS.CHILDREN) === 0) return NODE_ACCESS.VALUE;
  return (flags & ACCESS.NODE) === 0 ? NODE_ACCESS.NAMES : 0;
}

function hasOwnPermissions(tx: Transaction, path: Path): boolean {
  const parent = tx.tree.find(path, path.count - 1);
  return tx.tree.get(path)?.permissions !== parent?.permissions;
}

export interface RestoreOptions {
  /** Takes up a socket client. */
  serve?: (fd: number) => Connection;
}

/**
 * Takes up a saved state, in a server that has none yet.
 * @returns the file descriptor of the listening socket, when there was one
 * @throws XenStoreError when it is no saved state
 */
export function restoreState(
  server: XenStoreServer,
  bytes: Uint8Array,
  options: RestoreOptions = {},
): number | undefined {
  const connections = new Map<number, Connection>();
  const pending: [Connection, input: Uint8Array, output: Uint8Array][] = [];
  /** Begun when the nodes are there, or with the first node of their own. */
  const open: [Connection, txId: number][] = [];
  let listener: number | undefined;
  for (const record of readRecords(bytes)) {
    switch (record.type) {
      case RECORD.GLOBAL_DATA: {
        const fd = record.u32();
        if (fd !== NO_FD) listener = fd;
        break;
      }
      case RECORD.GLOBAL_QUOTA_DATA: {
        const count = record.u16() + record.u16();
        Object.assign(server.store.quotas, readQuotas(record, count));
        break;
      }
      case RECORD.DOMAIN_DATA: {
        const domid = record.u16();
        const count = record.u16();
        const domain = server.store.domains.get(domid) ?? server.store.domains.add(domid);
        domain.features = record.u32();
        domain.quotas = readQuotas(record, count);
        break;
      }
      case RECORD.CONNECTION_DATA: {
        const restored = restoreConnection(server, record, options);
        if (restored === undefined) break;
        connections.set(restored.id, restored.connection);
        pending.push([restored.connection, restored.input, restored.output]);
        break;
      }
      case RECORD.WATCH_DATA:
      case RECORD.WATCH_DATA_EXTENDED:
        restoreWatch(server, record, connections);
        break;
      case RECORD.TRANSACTION_DATA: {
        const connection = connections.get(record.u32());
        const id = record.u32();
        if (connection === undefined) break;
        connection.nextTransactionId = Math.max(connection.nextTransactionId, id + 1);
        open.push([connection, id]);
        break;
      }
      case RECORD.NODE_DATA:
        restoreNode(server, record, connections);
    }
  }
  for (const [connection, id] of open) {
    if (!connection.transactions.has(id)) server.beginTransaction(connection, id);
  }
  for (const [connection, input, output] of pending) connection.restorePending(input, output);
  server.flush();
  return listener;
}

function readQuotas(record: StreamRecord, count: number): Record<string, number> {
  const values = Array.from({ length: count }, () => record.u32());
  const names = record.strings();
  // Names that we do not know have no effect, as the format demands.
  return Object.fromEntries(
    values.map((value, i) => [names[i], value] as const).filter(([name]) => isQuotaName(name)),
  );
}

function restoreConnection(
  server: XenStoreServer,
  record: StreamRecord,
  options: RestoreOptions,
): { id: number; connection: Connection; input: Uint8Array; output: Uint8Array } | undefined {
  const id = record.u32();
  const type = record.u16();
  record.u16();
  let connection: Connection | undefined;
  if (type === CONNECTION_TYPE.SOCKET) {
    const fd = record.u32();
    record.u32();
    connection = options.serve?.(fd);
  } else {
    const domid = record.u16();
    const target = record.u16();
    connection = server.takeUpRing(domid, record.u32());
    if (connection !== undefined && target !== DOMID_INVALID) connection.target = { domid: target };
  }
  const inputLength = record.u16();
  record.u16();
  const outputLength = record.u32();
  const input = record.raw(inputLength);
  const output = record.raw(outputLength);
  return connection === undefined ? undefined : { id, connection, input, output };
}

function restoreWatch(
  server: XenStoreServer,
  record: StreamRecord,
  connections: Map<number, Connection>,
): void {
  const connection = connections.get(record.u32());
  const pathLength = record.u16();
  const tokenLength = record.u16();
  let depth = ANY_DEPTH;
  if (record.type === RECORD.WATCH_DATA_EXTENDED) {
    depth = record.u16();
    record.u16();
  }
  const wpath = record.text(pathLength);
  const token = record.text(tokenLength);
  if (connection === undefined) return;
  const relative = wpath[0] !== '/' && wpath[0] !== '@';
  server.addWatch(connection, relative ? `${connection.home}/${wpath}` : wpath, token, depth, relative);
}

function restoreNode(
  server: XenStoreServer,
  record: StreamRecord,
  connections: Map<number, Connection>,
): void {
  const { store } = server;
  const connectionId = record.u32();
  const txId = record.u32();
  const pathLength = record.u16();
  const valueLength = record.u16();
  const access = record.u16();
  const count = record.u16();
  const permissions: Permission[] = [];
  for (let i = 0; i < count; i++) {
    const letter = String.fromCharCode(record.u8());
    const ignored = (record.u8() & PERMISSION_IGNORE) !== 0;
    const parsed = parsePermission(letter + record.u16());
    if (parsed === null) continue;
    permissions.push(ignored ? { ...parsed, incarnation: 0 } : store.permission(parsed.domid, parsed.access));
  }
  const text = record.text(pathLength);
  const bytes = record.raw(valueLength);
  const value = takeValue(bytes, 0, bytes.length);
  if (connectionId === 0) {
    if (permissions.length > 0) store.restore(text, value, permissions as never as Permissions);
    return;
  }
  const connection = connections.get(connectionId);
  if (connection === undefined) return;
  const tx = connection.transactions.get(txId) ?? server.beginTransaction(connection, txId);
  const path = new Path(store.salt);
  if (access & NODE_ACCESS.STALE) {
    tx.noteStale(text);
    return;
  }
  if (!path.set(text)) return;
  const node = permissions.length === 0 ? null : { value, permissions: permissions as never as Permissions };
  if (access & NODE_ACCESS.BEGAN) tx.tree.beginWith(path, node);
  else if (access & NODE_ACCESS.READ) {
    if ((access & NODE_ACCESS.NAMES) === 0) tx.note(path, path.count, ACCESS.NODE);
    if ((access & NODE_ACCESS.VALUE) === 0) tx.note(path, path.count, ACCESS.CHILDREN);
  } else if (permissions.length === 0) store.rm(path, SELF, tx);
  else {
    store.write(path, SELF, tx, value);
    path.set(text);
    store.setPermissions(path, SELF, tx, permissions as never as Permissions);
  }
}
