import { ErrnoError } from '../abi/errno.js';

/** What went wrong with a device of the machine that pvnet runs on: the message says what would help. */
export class UplinkError extends ErrnoError {}
