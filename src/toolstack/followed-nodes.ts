import type { XenStoreClient } from '../xenstore/index.js';
import { object, optional, string } from './checks.js';
import type { VifPaths } from './vif-store.js';

/**
 * What xenstore says of a vif that may change while it is there, as the drivers follow it. Whoever looks after the vif
 * changes it, so it is more than the configuration knows.
 */
export interface FollowedNodes {
  /** Of the frontend: payload MTU in bytes, "1" without a cable, Mb/s. */
  readonly mtu?: string;
  readonly disconnect?: string;
  readonly speed?: string;
  /** Of the backend: "0" without carrier; bytes and microseconds. */
  readonly carrier?: string;
  readonly rate?: string;
}

const FRONTEND = ['mtu', 'disconnect', 'speed'] as const;
const BACKEND = ['carrier', 'rate'] as const;
/** What the drivers understand; to them anything else is as if it were not there. */
const VALUES: Readonly<Record<keyof FollowedNodes, RegExp>> = {
  mtu: /^[0-9]{1,9}$/,
  disconnect: /^[01]$/,
  speed: /^[0-9]{1,9}[kKmMgG]?$/,
  carrier: /^[01]$/,
  rate: /^[0-9]{1,15},[0-9]{1,15}$/,
};

function isValue(key: string, value: unknown): boolean {
  return (
    Object.hasOwn(VALUES, key) && typeof value === 'string' && VALUES[key as keyof FollowedNodes].test(value)
  );
}

/** Reads them, but for what the drivers do not understand. */
export async function readFollowed(xs: XenStoreClient, paths: VifPaths): Promise<FollowedNodes> {
  const found: [string, string][] = [];
  const read = async (directory: string, keys: readonly string[]): Promise<void> => {
    for (const key of keys) {
      const value = await xs.readIfExists(`${directory}/${key}`);
      if (value !== undefined && isValue(key, value)) found.push([key, value]);
    }
  };
  await read(paths.frontend, FRONTEND);
  await read(paths.backend, BACKEND);
  return Object.fromEntries(found);
}

/** Checks those of an image: no more than `readFollowed` gives. */
export const checkFollowed = object(
  Object.fromEntries(
    Object.entries(VALUES).map(([key, values]) => {
      return [key, optional(string(text => values.test(text), 'a value that drivers understand'))];
    }),
  ),
);
