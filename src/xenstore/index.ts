export type { AbortSignalLike } from '../platform/abort.js';
export {
  type TransactionOptions,
  type WatchOptions,
  XenStoreClient,
  type XenStoreClientOptions,
} from './client.js';
export { ClientTransaction } from './client-transaction.js';
export type { Connection } from './connection.js';
export type { DomainState } from './domains.js';
export { XenStoreError } from './error.js';
export { NodeOperations, type RequestOptions } from './operations.js';
export { Path } from './path.js';
export { QUOTA_NAMES, QUOTAS, type QuotaName, type Quotas } from './quota.js';
export { RingStream, type RingStreamOptions } from './ring-stream.js';
export {
  type RestoreOptions,
  restoreState,
  type SaveOptions,
  saveNodesInParts,
  saveState,
} from './saved-state.js';
export { type MappedRing, type XenStoreHost, XenStoreServer, type XenStoreServerOptions } from './server.js';
export { Store } from './store.js';
export { streamPair } from './stream-pair.js';
export type { Transport } from './transport.js';
export { WatchEvents } from './watch-events.js';
