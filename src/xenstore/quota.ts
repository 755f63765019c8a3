/** The limits of C xenstored, with its names, defaults and words (`xenstore-control quota`). */
export const QUOTAS = {
  nodes: { value: 1000, what: 'Nodes per domain' },
  watches: { value: 128, what: 'Watches per domain' },
  outstanding: { value: 20, what: 'Outstanding requests per domain' },
  memory: { value: 2_621_440, what: 'Total Xenstore memory per domain (error level)' },
  transactions: { value: 10, what: 'Active transactions per domain' },
  'transaction-nodes': { value: 1024, what: 'Max. number of accessed nodes per transaction' },
  'node-permissions': { value: 5, what: 'Max. number of permissions per node' },
  'path-max': { value: 2048, what: 'Max. length of a node path' },
  'node-size': { value: 2048, what: 'Max. size of a node' },
} as const;

export type QuotaName = keyof typeof QUOTAS;

export const QUOTA_NAMES = Object.keys(QUOTAS) as QuotaName[];

/** A limit each; 0 stands for none. They bind unprivileged domains only. */
export type Quotas = Record<QuotaName, number>;

/** The level of `memory` at which a domain is warned of in the log. */
export const SOFT_MEMORY_DEFAULT = 2_097_152;

export function defaultQuotas(): Quotas {
  return Object.fromEntries(QUOTA_NAMES.map(name => [name, QUOTAS[name].value])) as Quotas;
}

export function isQuotaName(name: string): name is QuotaName {
  return Object.hasOwn(QUOTAS, name);
}

/** Whether `used` is at the limit already, so that one more is refused. */
export function isExhausted(limit: number, used: number): boolean {
  return limit !== 0 && used >= limit;
}
