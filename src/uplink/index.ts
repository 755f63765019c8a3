export * from './error.js';
export * from './namespace.js';
export * from './poller.js';
export * from './tap.js';
export * from './tap-face.js';
export * from './tap-port.js';
