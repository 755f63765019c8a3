import { NETFRONT_FEATURES } from '../netfront/features.js';
import { MAX_QUEUES, type NetfrontOptions } from '../netfront/netfront.js';
import { type Invocation, type OptionHelp, parseNumber, UsageError } from './command.js';
import { readWithout } from './netback-options.js';

/**
 * The options of a command that has a netfront, as the keys of `netfront = "…"` in a domain's file. multicast_control is not
 * among them: a TAP does not tell which groups it wants.
 */
export const NETFRONT_OPTIONS: Readonly<Record<string, OptionHelp>> = {
  'max-queues': { type: 'string', value: 'N', help: 'queues of a vif, if its backend has as many (1)' },
  without: {
    type: 'string',
    multiple: true,
    value: 'FEATURE[,…]',
    help: `features that are neither offered nor used: ${NETFRONT_FEATURES.join(', ')}`,
  },
  'static-grants': { type: 'boolean', help: 'backends are asked to keep the pages of packets mapped' },
  'gso-prefix': { type: 'boolean', help: 'GSO packets come with a prefix, as to old frontends of Windows' },
  trusted: { type: 'string', value: '0|1', help: '0 trusts no backend, whatever the vifs say (1)' },
};

/** What `NETFRONT_OPTIONS` ask for. @throws UsageError */
export function readNetfrontOptions(invocation: Invocation): NetfrontOptions {
  const { option, flag } = invocation;
  const queues = option('max-queues');
  const trusted = option('trusted') ?? '1';
  if (trusted !== '0' && trusted !== '1') throw new UsageError(`--trusted "${trusted}": it is 0 or 1`);
  return {
    maxQueues: queues === undefined ? undefined : parseNumber(queues, '--max-queues', 1, MAX_QUEUES),
    without: readWithout(invocation, NETFRONT_FEATURES),
    staticGrants: flag('static-grants'),
    gsoPrefix: flag('gso-prefix'),
    trusted: trusted === '1',
  };
}
