/** The part of an AbortSignal that is needed here; an AbortSignal is one. */
export interface AbortSignalLike {
  readonly aborted: boolean;
  readonly reason?: unknown;
  addEventListener(type: 'abort', listener: () => void): void;
  removeEventListener(type: 'abort', listener: () => void): void;
}

/** Throws the signal's reason when it is aborted. */
export function throwIfAborted(signal: AbortSignalLike | undefined): void {
  if (signal?.aborted) throw signal.reason;
}

/**
 * Settles as `promise` does, or rejects with the signal's reason when that comes first: for whoever does not listen that is
 * no unhandled rejection.
 */
export function abortable<T>(promise: Promise<T>, signal: AbortSignalLike | undefined): Promise<T> {
  if (signal === undefined) return promise;
  let onAbort = () => {};
  const first = new Promise<T>((resolve, reject) => {
    onAbort = () => {
      reject(signal.reason);
      first.catch(() => {});
    };
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort);
  return first;
}
