import { DOMID_SELF } from '../abi/xen.js';
import { XENSTORE_PAYLOAD_MAX, XS } from '../abi/xs-wire.js';
import { type Connection, watchKey } from './connection.js';
import { type Domain, SUPPORTED_FEATURES } from './domains.js';
import { latin1Bytes } from './latin1.js';
import { domainPath, Path } from './path.js';
import { parseDomid, stringEnd, strings } from './payload.js';
import { formatPermission, PERM_READ, type Permissions, parsePermission } from './permissions.js';
import { existingDomain, privileged } from './privileged-requests.js';
import { isExhausted } from './quota.js';
import type { RightOfWay } from './right-of-way.js';
import type { XenStoreServer } from './server.js';
import type { Outcome, Store } from './store.js';
import { ACCESS, type Transaction } from './transaction.js';
import { listChildren } from './tree.js';
import { takeValue } from './value.js';
import { ANY_DEPTH, watchBytes } from './watches.js';
import type { WriteRate } from './write-rate.js';

/** Answers requests; those that only the control domain may send are in privileged-requests.ts. */
export class Requests {
  readonly #server: XenStoreServer;
  readonly #store: Store;
  readonly #rate: WriteRate;
  readonly #rightOfWay: RightOfWay;
  readonly #path: Path;

  constructor(server: XenStoreServer, rate: WriteRate, rightOfWay: RightOfWay) {
    this.#server = server;
    this.#store = server.store;
    this.#rate = rate;
    this.#rightOfWay = rightOfWay;
    this.#path = new Path(server.store.salt);
  }

  /** @returns the error to answer; '' when it was answered */
  dispatch(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    switch (connection.type) {
      case XS.READ: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        const node = this.#store.get(this.#path, connection, tx, PERM_READ, ACCESS.NODE);
        if (node === null) return this.#store.error;
        connection.replyValue(node.value);
        return '';
      }
      case XS.WRITE:
        return this.#write(connection, tx, bytes, start, end);
      case XS.DIRECTORY: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        const node = this.#store.get(this.#path, connection, tx, PERM_READ, ACCESS.CHILDREN);
        if (node === null) return this.#store.error;
        if (node.childBytes > XENSTORE_PAYLOAD_MAX) return 'E2BIG';
        connection.reply(listChildren(node), 0, node.childBytes);
        return '';
      }
      case XS.DIRECTORY_PART:
        return this.#directoryPart(connection, tx, bytes, start, end);
      case XS.GET_PERMS: {
        if (!this.#onePath(connection, bytes, start, end, true)) return 'EINVAL';
        const node = this.#store.get(this.#path, connection, tx, PERM_READ, ACCESS.NODE);
        if (node === null) return this.#store.error;
        connection.replyText(node.permissions.map(entry => `${formatPermission(entry)}\0`).join(''));
        return '';
      }
      case XS.SET_PERMS:
        return this.#setPermissions(connection, tx, bytes, start, end);
      case XS.MKDIR: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        return this.#written(connection, tx, this.#store.mkdir(this.#path, connection, tx));
      }
      case XS.RM: {
        if (!this.#onePath(connection, bytes, start, end)) return 'EINVAL';
        return this.#written(connection, tx, this.#store.rm(this.#path, connection, tx));
      }
      case XS.WATCH:
        return this.#watch(connection, bytes, start, end);
      case XS.UNWATCH:
        return this.#unwatch(connection, bytes, start, end);
      case XS.RESET_WATCHES:
        this.#server.resetWatches(connection);
        return connection.replyOk();
      case XS.TRANSACTION_START:
        return this.#startTransaction(connection, tx);
      case XS.TRANSACTION_END:
        return this.#transactionEnd(connection, tx, bytes, start, end);
      case XS.GET_DOMAIN_PATH: {
        const domid = this.#oneDomid(bytes, start, end);
        if (domid < 0) return 'EINVAL';
        connection.replyText(`${domainPath(domid)}\0`);
        return '';
      }
      case XS.IS_DOMAIN_INTRODUCED: {
        const domid = this.#oneDomid(bytes, start, end);
        if (domid < 0) return 'EINVAL';
        connection.replyText(domid === DOMID_SELF || this.#server.isIntroduced(domid) ? 'T\0' : 'F\0');
        return '';
      }
      case XS.GET_FEATURE:
        return this.#getFeature(connection, bytes, start, end);
      case XS.CONTROL:
      case XS.INTRODUCE:
      case XS.RELEASE:
      case XS.RESUME:
      case XS.SET_TARGET:
      case XS.SET_FEATURE:
      case XS.GET_QUOTA:
      case XS.SET_QUOTA: {
        if (!connection.privileged) return 'EACCES';
        const words = strings(bytes, start, end);
        return words === null ? 'EINVAL' : privileged(this.#server, connection, words);
      }
      default:
        return 'ENOSYS';
    }
  }

  /** Whether a request changes what the holder of the right of way needs to stay. */
  mustYield(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): boolean {
    const { type } = connection;
    if (type === XS.TRANSACTION_END && tx !== null) {
      return tx.changes.some(change => this.#rightOfWay.blocks(connection, change.path));
    }
    if (tx !== null || (type !== XS.WRITE && type !== XS.MKDIR && type !== XS.RM && type !== XS.SET_PERMS)) {
      return false;
    }
    const stop = stringEnd(bytes, start, end);
    if (stop < 0 || !this.#parse(connection, bytes, start, stop, false)) return false;
    return this.#rightOfWay.blocks(connection, this.#path.toString());
  }

  /** Acknowledges a change, and charges its domain when others' transactions may suffer from it. */
  #written(connection: Connection, tx: Transaction | null, outcome: Outcome): Outcome {
    if (outcome !== '') return outcome;
    const { domain } = connection;
    if (tx === null && domain !== null && !connection.privileged && this.#store.openTransactions > 0) {
      this.#rate.charge(domain);
    }
    if (domain !== null && !connection.privileged) this.#warnOfMemory(domain);
    return connection.replyOk();
  }

  /** Says once that a domain is above the soft limit, and again when it was below in between. */
  #warnOfMemory(domain: Domain): void {
    const isAbove = domain.usage.memory > this.#server.softQuotas.memory;
    if (isAbove && !domain.memoryWarned) {
      this.#server.log(`domain ${domain.domid} uses ${domain.usage.memory} bytes, more than the soft quota`);
    }
    domain.memoryWarned = isAbove;
  }

  /** The payload is one path and its NUL. */
  #onePath(connection: Connection, bytes: Uint8Array, start: number, end: number, special = false): boolean {
    return (
      stringEnd(bytes, start, end) === end - 1 && this.#parse(connection, bytes, start, end - 1, special)
    );
  }

  #parse(connection: Connection, bytes: Uint8Array, start: number, end: number, special: boolean): boolean {
    let max = 0;
    if (!connection.privileged && connection.domain !== null) {
      max = this.#store.quota(connection.domain, 'path-max');
    }
    return this.#path.parse(bytes, start, end, connection.home, special, max);
  }

  /** The payload is one domid and its NUL. @returns -1 when it is not */
  #oneDomid(bytes: Uint8Array, start: number, end: number): number {
    const words = strings(bytes, start, end);
    return words?.length === 1 ? parseDomid(words[0]) : -1;
  }

  #write(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    const stop = stringEnd(bytes, start, end);
    if (stop < 0 || !this.#parse(connection, bytes, start, stop, false)) return 'EINVAL';
    const value = takeValue(bytes, stop + 1, end);
    return this.#written(connection, tx, this.#store.write(this.#path, connection, tx, value));
  }

  /** A part of a listing that need not fit one message, and the generation that it belongs to. */
  #directoryPart(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    const words = strings(bytes, start, end);
    if (words?.length !== 2 || !/^[0-9]{1,10}$/.test(words[1])) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, false)) return 'EINVAL';
    const node = this.#store.get(this.#path, connection, tx, PERM_READ, ACCESS.CHILDREN);
    if (node === null) return this.#store.error;
    const offset = Number(words[1]);
    const generation = latin1Bytes(`${node.childGeneration}\0`);
    const listing = listChildren(node);
    if (offset >= listing.length) {
      // The empty name that ends a listing.
      const last = new Uint8Array(generation.length + 1);
      last.set(generation);
      connection.reply(last, 0, last.length);
      return '';
    }
    // Whole names only, as many as fit together with the empty one that ends the listing.
    let stop = Math.min(listing.length, offset + XENSTORE_PAYLOAD_MAX - generation.length - 1);
    const isLast = stop === listing.length;
    if (!isLast) stop = listing.lastIndexOf(0, stop - 1) + 1;
    if (stop <= offset) return 'EINVAL';
    const part = new Uint8Array(generation.length + stop - offset + (isLast ? 1 : 0));
    part.set(generation);
    part.set(listing.subarray(offset, stop), generation.length);
    connection.reply(part, 0, part.length);
    return '';
  }

  #setPermissions(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length < 2) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, true)) return 'EINVAL';
    const permissions = [];
    for (const word of words.slice(1)) {
      const parsed = parsePermission(word);
      if (parsed === null) return 'EINVAL';
      permissions.push(this.#store.permission(parsed.domid, parsed.access));
    }
    const outcome = this.#store.setPermissions(
      this.#path,
      connection,
      tx,
      permissions as never as Permissions,
    );
    return this.#written(connection, tx, outcome);
  }

  #watch(connection: Connection, bytes: Uint8Array, start: number, end: number): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length < 2 || words.length > 3) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, true)) return 'EINVAL';
    let depth = ANY_DEPTH;
    if (words.length === 3 && words[2] !== '') {
      if (!/^[0-9]{1,5}$/.test(words[2])) return 'EINVAL';
      depth = Math.min(Number(words[2]), ANY_DEPTH);
    }
    const { domain } = connection;
    if (!connection.privileged && domain !== null) {
      if (isExhausted(this.#store.quota(domain, 'watches'), domain.usage.watches)) return 'ENOSPC';
      const limit = this.#store.quota(domain, 'memory');
      if (limit !== 0 && domain.usage.memory + watchBytes(words[0], words[1]) > limit) return 'ENOMEM';
    }
    const path = this.#path.toString();
    const key = watchKey(path, words[1]);
    if (connection.watches.has(key)) return 'EEXIST';
    this.#server.addWatch(connection, path, words[1], depth, this.#path.relative);
    connection.replyOk();
    const watch = connection.watches.get(key)!;
    const epath = latin1Bytes(path);
    connection.watchEvent(watch, epath, 0, epath.length);
    return '';
  }

  #unwatch(connection: Connection, bytes: Uint8Array, start: number, end: number): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length < 2) return 'EINVAL';
    if (!this.#parse(connection, bytes, start, start + words[0].length, true)) return 'EINVAL';
    const key = watchKey(this.#path.toString(), words[1]);
    const watch = connection.watches.get(key);
    if (watch === undefined) return 'ENOENT';
    connection.watches.delete(key);
    this.#server.removeWatch(connection, watch);
    return connection.replyOk();
  }

  #startTransaction(connection: Connection, tx: Transaction | null): Outcome {
    if (tx !== null) return 'EBUSY';
    const { domain } = connection;
    if (!connection.privileged && domain !== null) {
      if (isExhausted(this.#store.quota(domain, 'transactions'), domain.usage.transactions)) return 'ENOSPC';
    }
    const id = this.#server.beginTransaction(connection).id;
    this.#rightOfWay.begin(connection);
    connection.replyText(`${id}\0`);
    return '';
  }

  #transactionEnd(
    connection: Connection,
    tx: Transaction | null,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Outcome {
    if (end - start !== 2 || bytes[start + 1] !== 0) return 'EINVAL';
    const commit = bytes[start] === 0x54;
    if (!commit && bytes[start] !== 0x46) return 'EINVAL';
    if (tx === null) return 'ENOENT';
    connection.transactions.delete(tx.id);
    const { domain } = connection;
    if (domain !== null) this.#store.domains.use(domain, 'transactions', -1);
    if (!commit) {
      this.#store.abort(tx);
      this.#rightOfWay.forget(connection);
      return connection.replyOk();
    }
    const others = this.#store.openTransactions > 1;
    const { outcome, conflict } = this.#store.commit(tx, connection);
    if (conflict !== undefined) this.#rightOfWay.lost(connection, conflict);
    else this.#rightOfWay.won(connection);
    if (outcome !== '') return outcome;
    if (domain !== null && !connection.privileged && others && tx.changes.length > 0)
      this.#rate.charge(domain);
    return connection.replyOk();
  }

  #getFeature(connection: Connection, bytes: Uint8Array, start: number, end: number): Outcome {
    const words = strings(bytes, start, end);
    if (words === null || words.length > 1) return 'EINVAL';
    let features = SUPPORTED_FEATURES;
    if (words.length === 1 && words[0] !== '') {
      if (!connection.privileged) return 'EACCES';
      const domain = existingDomain(this.#server, words[0]);
      if (typeof domain === 'string') return domain;
      features = domain.features;
    }
    connection.replyText(`${features}\0`);
    return '';
  }
}
