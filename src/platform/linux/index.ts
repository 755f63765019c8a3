export * from './copy-segments.js';
export * from './devices.js';
export * from './libc.js';
export * from './linux-events.js';
export * from './linux-grants.js';
export * from './linux-memory.js';
export * from './linux-platform.js';
