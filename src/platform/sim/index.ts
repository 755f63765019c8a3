export * from './event-loop-scheduler.js';
export * from './random.js';
export * from './seeded-scheduler.js';
