import { ErrnoError } from '../abi/errno.js';

/**
 * Looks at what the options of either end of a vif have in common, before anything is done with them.
 * @param features those that can be left out
 * @throws ErrnoError EINVAL that says what cannot be meant
 */
export function checkDriverOptions(
  driver: string,
  { maxQueues = 1, without = [] }: { maxQueues?: number; without?: readonly string[] },
  features: readonly string[],
): void {
  if (!Number.isInteger(maxQueues) || maxQueues < 1) {
    throw new ErrnoError('EINVAL', `${driver}: maxQueues: ${maxQueues} is no whole number from 1 on`);
  }
  try {
    parseFeatures(without, features);
  } catch (error) {
    throw new ErrnoError('EINVAL', `${driver}: without: ${(error as Error).message}`);
  }
}

/** Names of features that are to be left out. @throws Error that says which is none, and which there are */
export function parseFeatures<F extends string>(names: readonly string[], known: readonly F[]): F[] {
  for (const name of names) {
    if (!known.includes(name as F)) {
      throw new Error(`"${name}" is no feature that can be left out; there are ${known.join(', ')}`);
    }
  }
  return names as F[];
}
