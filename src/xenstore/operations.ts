import { XENSTORE_PAYLOAD_MAX, XS } from '../abi/xs-wire.js';
import type { AbortSignalLike } from '../platform/abort.js';
import { XenStoreError } from './error.js';
import { decodeText, encodeText } from './text.js';

export interface RequestOptions {
  /** Gives the request up: the promise rejects with the signal's reason, whatever the server does. */
  signal?: AbortSignalLike;
}

/** What can be done with nodes, in a transaction or outside one. Strings are UTF-8 on the wire. */
export abstract class NodeOperations {
  /**
   * Sends a request.
   * @returns the reply's payload, which is the caller's
   * @throws XenStoreError with the errno that the server answers
   */
  abstract request(type: number, payload: Uint8Array, options?: RequestOptions): Promise<Uint8Array>;

  /** The value, as UTF-8. @throws XenStoreError ENOENT, EACCES, as xenstored answers */
  async read(path: string, options?: RequestOptions): Promise<string> {
    return decodeText(await this.readBytes(path, options));
  }

  /** As `read`, the bytes as they are. */
  readBytes(path: string, options?: RequestOptions): Promise<Uint8Array> {
    return this.request(XS.READ, payload(path), options);
  }

  /** The value, or undefined when there is no such node. */
  async readIfExists(path: string, options?: RequestOptions): Promise<string | undefined> {
    try {
      return await this.read(path, options);
    } catch (error) {
      if (isErrno(error, 'ENOENT')) return undefined;
      throw error;
    }
  }

  /** Sets a value; creates the node, and the parents it lacks. */
  async write(path: string, value: string | Uint8Array, options?: RequestOptions): Promise<void> {
    const name = payload(path);
    const bytes = typeof value === 'string' ? encodeText(value) : value;
    const message = new Uint8Array(name.length + bytes.length);
    message.set(name);
    message.set(bytes, name.length);
    await this.request(XS.WRITE, message, options);
  }

  /** Creates an empty node, and the parents it lacks; does nothing when it is there. */
  async mkdir(path: string, options?: RequestOptions): Promise<void> {
    await this.request(XS.MKDIR, payload(path), options);
  }

  /** Removes a node and all below it; one that is not there is no error when its parent is. */
  async rm(path: string, options?: RequestOptions): Promise<void> {
    await this.request(XS.RM, payload(path), options);
  }

  /** The names of the children, however many: a long list is fetched in parts. */
  async directory(path: string, options?: RequestOptions): Promise<string[]> {
    try {
      return splitStrings(await this.request(XS.DIRECTORY, payload(path), options));
    } catch (error) {
      if (!isErrno(error, 'E2BIG')) throw error;
      return this.#directoryInParts(path, options);
    }
  }

  async exists(path: string, options?: RequestOptions): Promise<boolean> {
    return (await this.readIfExists(path, options)) !== undefined;
  }

  /** Permissions such as ["n0", "r5"]: the owner, with what everybody may, then domains that differ. */
  async getPerms(path: string, options?: RequestOptions): Promise<string[]> {
    return splitStrings(await this.request(XS.GET_PERMS, payload(path), options));
  }

  /** Replaces all of a node's permissions. @param perms as of `getPerms` */
  async setPerms(path: string, perms: readonly string[], options?: RequestOptions): Promise<void> {
    await this.request(XS.SET_PERMS, payload(path, ...perms), options);
  }

  async #directoryInParts(path: string, options?: RequestOptions): Promise<string[]> {
    for (;;) {
      let generation: string | undefined;
      const parts: Uint8Array[] = [];
      let offset = 0;
      for (;;) {
        const part = await this.request(XS.DIRECTORY_PART, payload(path, String(offset)), options);
        const stop = part.indexOf(0);
        const names = part.subarray(stop + 1);
        const current = decodeText(part.subarray(0, stop));
        generation ??= current;
        if (generation !== current) break;
        const isLast = names.length === 0 || names[names.length - 1] !== 0 || endsList(names);
        parts.push(isLast ? names.subarray(0, Math.max(names.length - 1, 0)) : names);
        offset += names.length;
        if (isLast) return parts.flatMap(splitStrings);
      }
      // The children changed in between: from the beginning.
    }
  }
}

/** Whether a part of a listing holds the empty name that is its end. */
function endsList(names: Uint8Array): boolean {
  return names.length === 1 || names[names.length - 2] === 0;
}

/** Strings, each with its NUL. @throws XenStoreError E2BIG when they are too long for a message */
export function payload(...strings: string[]): Uint8Array {
  const bytes = encodeText(`${strings.join('\0')}\0`);
  if (bytes.length > XENSTORE_PAYLOAD_MAX) {
    throw new XenStoreError(
      'E2BIG',
      `${strings[0].slice(0, 64)}: ${bytes.length} bytes; a request has at most ${XENSTORE_PAYLOAD_MAX}`,
    );
  }
  return bytes;
}

/** The strings of a payload; each ends with a NUL. */
export function splitStrings(bytes: Uint8Array): string[] {
  if (bytes.length === 0) return [];
  const strings = decodeText(bytes).split('\0');
  if (strings[strings.length - 1] === '') strings.pop();
  return strings;
}

export function isErrno(error: unknown, code: string): boolean {
  return error instanceof XenStoreError && error.code === code;
}
