import type { ErrnoName } from '../abi/errno.js';
import { ErrnoError } from '../abi/errno.js';
import { GNTST, grantStatusName } from '../abi/grant-table.js';

/** A hypercall failed as a whole; `code` is the errno that Xen returns (negated there). */
export class HypercallError extends ErrnoError {}

const errnoOfStatus = new Map<number, ErrnoName>([
  [GNTST.general_error, 'EINVAL'],
  [GNTST.bad_domain, 'ESRCH'],
  [GNTST.bad_gntref, 'EINVAL'],
  [GNTST.bad_handle, 'EINVAL'],
  [GNTST.bad_virt_addr, 'EINVAL'],
  [GNTST.bad_dev_addr, 'EINVAL'],
  [GNTST.no_device_space, 'ENOSPC'],
  [GNTST.permission_denied, 'EPERM'],
  [GNTST.bad_page, 'EFAULT'],
  [GNTST.bad_copy_arg, 'EINVAL'],
  [GNTST.address_too_big, 'EINVAL'],
  [GNTST.eagain, 'EAGAIN'],
  [GNTST.no_space, 'ENOSPC'],
]);

/** One grant operation failed; `status` is its GNTST code, `code` the errno nearest to it. */
export class GrantError extends ErrnoError {
  /** @param status a negative GNTST code */
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(errnoOfStatus.get(status) ?? 'EIO', `${message} (${grantStatusName(status)})`);
  }
}

/** What was thrown, which may be anything, with where if that is known: for logs. */
export function describeError(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
