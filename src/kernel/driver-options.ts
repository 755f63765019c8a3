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
  for (const name of without) {
    if (features.includes(name)) continue;
    const there = features.join(', ');
    throw new ErrnoError(
      'EINVAL',
      `${driver}: without: "${name}" is no feature that can be left out; there are ${there}`,
    );
  }
}
