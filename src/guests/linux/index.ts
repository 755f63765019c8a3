export * from './console-shell.js';
export * from './fetch.js';
export * from './files.js';
export * from './guest.js';
export * from './kind.js';
export * from './machine.js';
export * from './snapshot.js';
export * from './v86-module.js';
