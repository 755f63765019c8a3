import { resolve } from 'node:path';
import { importFile } from '../guests/module.js';
import { parseFeatures } from '../kernel/driver-options.js';
import { NETBACK_FEATURES } from '../netback/features.js';
import type { PacketFilter } from '../netback/filter.js';
import { DEFAULT_MAX_QUEUES, type NetbackOptions } from '../netback/netback.js';
import { MAX_QUEUES } from '../netfront/netfront.js';
import { type Invocation, type OptionHelp, parseNumber, UsageError } from './command.js';
import { CliError } from './rpc.js';

/** The options of the commands that have a netback. */
export const NETBACK_OPTIONS: Readonly<Record<string, OptionHelp>> = {
  'max-queues': { type: 'string', value: 'N', help: `queues that a vif may have (${DEFAULT_MAX_QUEUES})` },
  without: {
    type: 'string',
    multiple: true,
    value: 'FEATURE[,…]',
    help: `features that vifs do not have: ${NETBACK_FEATURES.join(', ')}`,
  },
  filter: { type: 'string', value: 'FILE', help: 'a module whose function "filter" sees each packet' },
};

/**
 * What `NETBACK_OPTIONS` ask for.
 * @throws UsageError; CliError EINVAL for a filter that cannot be had
 */
export async function readNetbackOptions(invocation: Invocation): Promise<NetbackOptions> {
  const { option } = invocation;
  const queues = option('max-queues');
  const maxQueues = queues === undefined ? undefined : parseNumber(queues, '--max-queues', 1, MAX_QUEUES);
  const without = readWithout(invocation, NETBACK_FEATURES);
  const file = option('filter');
  const filter = file === undefined ? null : await loadFilter(file);
  return {
    maxQueues,
    without,
    prepare(vif) {
      vif.filter = filter;
    },
  };
}

/** The features that `--without` names. @throws UsageError for what is none of those that can be left out */
export function readWithout<F extends string>({ options }: Invocation, known: readonly F[]): F[] {
  try {
    return parseFeatures(
      options('without').flatMap(list => list.split(',')),
      known,
    );
  } catch (error) {
    throw new UsageError(`--without: ${(error as Error).message}`);
  }
}

async function loadFilter(file: string): Promise<PacketFilter> {
  const path = resolve(file);
  let module: { filter?: unknown };
  try {
    module = await importFile(path);
  } catch (error) {
    throw new CliError('EINVAL', `--filter ${path}: ${(error as Error).message}`);
  }
  if (typeof module.filter !== 'function') {
    throw new CliError('EINVAL', `--filter ${path}: it has to export a function named "filter"`);
  }
  return module.filter as PacketFilter;
}
