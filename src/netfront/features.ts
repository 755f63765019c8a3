import { OFFLOADS } from '../kernel/peer-offloads.js';

/**
 * What a frontend takes and uses unless it is told otherwise, under the names that it has in xenstore: feature-sg, …, and
 * feature-no-csum-offload for the lack of csum-offload; the last two are offered by the backend.
 */
export const NETFRONT_FEATURES = [...OFFLOADS, 'rx-notify', 'split-event-channels', 'ctrl-ring'] as const;
export type NetfrontFeature = (typeof NETFRONT_FEATURES)[number];
