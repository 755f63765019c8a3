export * from './config-syntax.js';
export * from './domain-config.js';
export * from './error.js';
export * from './vif-config.js';
