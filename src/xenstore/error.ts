import { ErrnoError, type ErrnoName } from '../abi/errno.js';
import type { XsdErrorName } from '../abi/xs-wire.js';

/** What XenStore's client, server and tools throw: `code` is the errno, the message names the path. */
export class XenStoreError extends ErrnoError {}

/** A refused request inside the server, which answers with the errno's name. */
export function fail(code: XsdErrorName, message: string): never {
  throw new XenStoreError(code satisfies ErrnoName, message);
}
