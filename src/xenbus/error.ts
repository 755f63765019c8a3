import { ErrnoError, type ErrnoName } from '../abi/errno.js';

/** What the bus itself finds wrong: a missing other end, a value that does not parse, a lost store. */
export class XenbusError extends ErrnoError {}

/**
 * Whether an error means that a node of the peer is out of reach for good: ENOENT, or EACCES, which
 * xenstored answers for a missing node when its parent is not readable either.
 */
export function isGone(error: unknown): boolean {
  return error instanceof ErrnoError && (error.code === 'ENOENT' || error.code === 'EACCES');
}

/** The error as one with an errno: anything else that was thrown counts as EIO. */
export function asErrnoError(error: unknown, fallback: ErrnoName = 'EIO'): ErrnoError {
  if (error instanceof ErrnoError) return error;
  return new XenbusError(fallback, error instanceof Error ? error.message : String(error));
}
