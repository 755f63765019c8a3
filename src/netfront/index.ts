export * from './control.js';
export * from './features.js';
export * from './granted-pool.js';
export * from './multicast.js';
export * from './netfront.js';
export * from './queue.js';
export * from './rx-slots.js';
export * from './tx-slots.js';
