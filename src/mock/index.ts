/**
 * Hostile peers for tests: of drivers that are written against pvnet, and of pvnet's own.
 */
export * from './double-fetch-memory.js';
export * from './hostile-backend.js';
export * from './hostile-frontend.js';
export * from './raw-ring.js';
