export * from './credit.js';
export * from './netback.js';
export * from './packet-queue.js';
export * from './queue.js';
export * from './rx-slots.js';
export * from './tx-slots.js';
export * from './vif.js';
