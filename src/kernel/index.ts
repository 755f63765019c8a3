export * from './driver-options.js';
export * from './kernel.js';
export * from './peer-offloads.js';
