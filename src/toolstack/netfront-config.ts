import { parseFeatures } from '../kernel/driver-options.js';
import { NETFRONT_FEATURES } from '../netfront/features.js';
import { MAX_QUEUES, type NetfrontOptions } from '../netfront/netfront.js';
import { ToolstackError } from './error.js';

/** Keys that are 0 or 1, or stand without a value for 1. */
const FLAGS = {
  static_grants: 'staticGrants',
  multicast_control: 'multicastControl',
  gso_prefix: 'gsoPrefix',
  trusted: 'trusted',
} as const;
const KEYS = ['max_queues', 'without', ...Object.keys(FLAGS)];

/**
 * Parses the options of a domain's netfront: `netfront = "max_queues=4,static_grants,without=sg gso-tcpv4"`. Names are those of
 * Linux's module parameters, where there are such.
 * @param where what a message starts with: file, line and key
 * @throws ToolstackError EINVAL
 */
export function parseNetfront(text: string, where = 'netfront'): NetfrontOptions {
  const fail = (what: string): never => {
    throw new ToolstackError('EINVAL', `${where}: ${what}`);
  };
  const options: NetfrontOptions = {};
  const seen = new Set<string>();
  for (const part of text.split(',').filter(each => each.trim() !== '')) {
    const [key, value] = part.split(/=(.*)/).map(each => each.trim());
    if (!KEYS.includes(key)) fail(`"${key}": no netfront has that; there are ${KEYS.join(', ')}`);
    if (seen.has(key)) fail(`${key}: it is given twice`);
    seen.add(key);
    if (key === 'max_queues') {
      if (value === undefined || !/^[0-9]+$/.test(value) || Number(value) < 1 || Number(value) > MAX_QUEUES) {
        fail(`max_queues: "${value ?? ''}" is no number from 1 to ${MAX_QUEUES}`);
      }
      options.maxQueues = Number(value);
    } else if (key === 'without') {
      try {
        options.without = parseFeatures((value ?? '').split(/\s+/), NETFRONT_FEATURES);
      } catch (error) {
        fail(`without: ${(error as Error).message}`);
      }
    } else {
      if (value !== undefined && value !== '0' && value !== '1')
        fail(`${key}: "${value}" is neither 0 nor 1`);
      options[FLAGS[key as keyof typeof FLAGS]] = value !== '0';
    }
  }
  return options;
}
