export * from './errno.js';
export * from './grant-table.js';
export * from './xen.js';
export * from './xenbus-state.js';
