export * from './irqs.js';
export * from './two-level.js';
