export * from './errno.js';
export * from './event-channel.js';
export * from './grant-table.js';
export * from './netif.js';
export * from './ring.js';
export * from './toeplitz.js';
export * from './xen.js';
export * from './xenbus-state.js';
