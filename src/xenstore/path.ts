import { XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX } from '../abi/xs-wire.js';
import { latin1, putLatin1 } from './latin1.js';
import { isText, sharedText } from './value.js';

const INVALID = 0;
const SLASH = 1;
const NAME = 2;

/** What each byte may be in a path: A-Z a-z 0-9 - _ @ in names, / between them. */
const kinds = new Uint8Array(256);
for (const c of 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@')
  kinds[c.charCodeAt(0)] = NAME;
const SLASH_BYTE = 0x2f;
kinds[SLASH_BYTE] = SLASH;

const AT = 0x40;
const MAX_SEGMENTS = XENSTORE_ABS_PATH_MAX / 2 + 1;

function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  return h ^ (h >>> 13);
}

/** The hash of a path from its parent's and its name's. The root's is 0. */
function hashChild(parent: number, name: number): number {
  return (Math.imul(parent, 31) + name) | 0;
}

/** The hash of the absolute path that begins at `start` and ends at a NUL or at `end`; it need not be valid. */
export function hashPath(bytes: Uint8Array, start: number, end: number, salt: number): number {
  let prefix = 0;
  let h = salt;
  for (let i = start + 1; i < end && bytes[i] !== 0; i++) {
    if (bytes[i] === SLASH_BYTE) {
      prefix = hashChild(prefix, mix(h));
      h = salt;
    } else h = Math.imul(h ^ bytes[i], 0x01000193);
  }
  return hashChild(prefix, mix(h));
}

/**
 * A path that was checked and taken apart, without making a string of it. One object serves one request
 * after another: what `parse` read is valid until the next `parse`, and as long as the bytes stay.
 */
export class Path {
  /** The bytes that hold the path; the request's own, or `#joined` for one that was relative. */
  bytes: Uint8Array;
  start = 0;
  end = 0;
  /** Names in the path: 0 for the root. */
  count = 0;
  readonly starts = new Uint16Array(MAX_SEGMENTS);
  readonly ends = new Uint16Array(MAX_SEGMENTS);
  /** Hash of each ancestor: [0] of the root, [i] of the path of the first i names. */
  readonly prefixHashes = new Int32Array(MAX_SEGMENTS + 1);
  /** Whether the request gave it relative to the domain's home. */
  relative = false;
  /** Whether it is a special name such as @releaseDomain, which is no path in the tree. */
  special = false;
  readonly #joined = new Uint8Array(XENSTORE_ABS_PATH_MAX + 32);

  /** @param salt keeps a guest from choosing paths with the same hash */
  constructor(readonly salt: number) {
    this.bytes = this.#joined;
  }

  /**
   * Takes the path at [start, end) of `bytes`, without its NUL.
   * @param home `/local/domain/<domid>`, for a relative path
   * @param allowSpecial whether a name that starts with @ is allowed
   * @param max most bytes allowed, not counting a leading /local/domain/<domid>/; 0 for the protocol's limit
   * @returns false when it is no valid path
   */
  parse(bytes: Uint8Array, start: number, end: number, home: string, allowSpecial = false, max = 0): boolean {
    const first = bytes[start];
    if (end <= start) return false;
    this.special = false;
    this.relative = first !== SLASH_BYTE;
    if (this.relative) {
      if (first === AT) {
        this.relative = false;
        this.special = true;
        return allowSpecial && this.#parseSpecial(bytes, start, end);
      }
      if (end - start > XENSTORE_REL_PATH_MAX) return false;
      const at = putLatin1(this.#joined, 0, home);
      this.#joined[at] = SLASH_BYTE;
      this.#joined.set(bytes.subarray(start, end), at + 1);
      end = at + 1 + end - start;
      start = 0;
      bytes = this.#joined;
    }
    if (end - start > XENSTORE_ABS_PATH_MAX) return false;
    if (max !== 0 && end - start - homeLength(bytes, start, end) > max) return false;
    this.bytes = bytes;
    this.start = start;
    this.end = end;
    if (end - start === 1) {
      this.count = 0;
      return true;
    }
    const { starts, ends, prefixHashes, salt } = this;
    let count = 0;
    let prefix = 0;
    let nameStart = start + 1;
    let h = salt;
    for (let i = nameStart; i < end; i++) {
      const c = bytes[i];
      const kind = kinds[c];
      if (kind === NAME) {
        h = Math.imul(h ^ c, 0x01000193);
        continue;
      }
      if (kind === INVALID || i === nameStart) return false;
      starts[count] = nameStart - start;
      ends[count] = i - start;
      prefix = hashChild(prefix, mix(h));
      prefixHashes[++count] = prefix;
      nameStart = i + 1;
      h = salt;
    }
    if (nameStart === end) return false;
    starts[count] = nameStart - start;
    ends[count] = end - start;
    prefixHashes[++count] = hashChild(prefix, mix(h));
    this.count = count;
    return true;
  }

  /** As `parse`, for an absolute path in a string. */
  set(text: string): boolean {
    if (text.length > XENSTORE_ABS_PATH_MAX) return false;
    return this.parse(this.#joined, 0, putLatin1(this.#joined, 0, text), '', true);
  }

  /** Whether the name at `index` is `name`. */
  nameIs(index: number, name: string): boolean {
    return isText(name, this.bytes, this.start + this.starts[index], this.start + this.ends[index]);
  }

  name(index: number): string {
    return sharedText(this.bytes, this.start + this.starts[index], this.start + this.ends[index]);
  }

  /** Whether the path of the first `count` names is the string `text`. */
  prefixIs(count: number, text: string): boolean {
    const length = count === 0 ? 1 : this.ends[count - 1];
    if (text.length !== length) return false;
    const { bytes, start } = this;
    for (let i = length - 1; i >= 0; i--) if (bytes[start + i] !== text.charCodeAt(i)) return false;
    return true;
  }

  /** The path of the first `count` names. */
  prefix(count: number): string {
    return count === 0 ? '/' : latin1(this.bytes, this.start, this.start + this.ends[count - 1]);
  }

  toString(): string {
    return latin1(this.bytes, this.start, this.end);
  }

  #parseSpecial(bytes: Uint8Array, start: number, end: number): boolean {
    if (end - start > XENSTORE_REL_PATH_MAX) return false;
    for (let i = start; i < end; i++) if (kinds[bytes[i]] === INVALID) return false;
    this.bytes = bytes;
    this.start = start;
    this.end = end;
    this.count = 0;
    return true;
  }
}

const LOCAL_DOMAIN = '/local/domain/';

/** Bytes of a leading /local/domain/<digits>/, which the path-max quota does not count. */
function homeLength(bytes: Uint8Array, start: number, end: number): number {
  for (let i = 0; i < LOCAL_DOMAIN.length; i++) {
    if (start + i >= end || bytes[start + i] !== LOCAL_DOMAIN.charCodeAt(i)) return 0;
  }
  let i = start + LOCAL_DOMAIN.length;
  while (i < end && bytes[i] >= 0x30 && bytes[i] <= 0x39) i++;
  return i < end && bytes[i] === SLASH_BYTE && i > start + LOCAL_DOMAIN.length ? i + 1 - start : 0;
}

/** `/local/domain/<domid>`: what a domain's relative paths are relative to. */
export function domainPath(domid: number): string {
  return `${LOCAL_DOMAIN}${domid}`;
}

/** The path of the parent; '/' for a child of the root, and for the root itself. */
export function parentPath(path: string): string {
  const slash = path.lastIndexOf('/');
  return slash <= 0 ? '/' : path.slice(0, slash);
}

/** Whether `path` is `ancestor` or lies below it. */
export function isWithin(path: string, ancestor: string): boolean {
  if (ancestor === '/') return path.startsWith('/');
  return path.startsWith(ancestor) && (path.length === ancestor.length || path[ancestor.length] === '/');
}
