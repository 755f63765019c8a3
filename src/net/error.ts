import { ErrnoError } from '../abi/errno.js';

/** What the network device layer throws: the errno is the one that Linux's net/core returns. */
export class NetError extends ErrnoError {}
