import { ErrnoError } from '../abi/errno.js';

/** What XenStore's client, server and tools throw: `code` is the errno, the message names the path. */
export class XenStoreError extends ErrnoError {}
