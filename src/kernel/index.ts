export * from './kernel.js';
export * from './peer-offloads.js';
