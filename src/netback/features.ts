import { OFFLOADS } from '../kernel/peer-offloads.js';

/**
 * What a backend may offer to frontends, under the names that it has in xenstore: feature-sg, …, feature-no-csum-offload
 * for the lack of csum-offload, and multi-queue-max-queues.
 */
export const NETBACK_FEATURES = [
  ...OFFLOADS,
  'multi-queue',
  'split-event-channels',
  'multicast-control',
  'dynamic-multicast-control',
  'ctrl-ring',
  'xdp-headroom',
] as const;
export type NetbackFeature = (typeof NETBACK_FEATURES)[number];
