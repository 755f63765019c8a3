export * from './abort.js';
export * from './copy-batch.js';
export * from './errors.js';
export * from './grant-reclaimer.js';
export * from './memory.js';
export * from './platform.js';
export * from './scheduler.js';
export * from './second-look.js';
