import { ErrnoError } from '../abi/errno.js';

/** What the toolstack cannot do: the message names the file and line, the domain, or the device. */
export class ToolstackError extends ErrnoError {}
