import { Worker } from 'node:worker_threads';
import type { GuestThreadPort } from './guest-thread.js';
import type { FromGuest } from './guest-worker.js';

/** Starts a worker thread of Node for one guest. */
export function spawnNodeWorker(): GuestThreadPort {
  const worker = new Worker(new URL('./node-worker.js', import.meta.url), { name: 'linux guest' });
  return {
    post: (message, transfer) => worker.postMessage(message, transfer),
    onMessage: listener => worker.on('message', (message: FromGuest) => listener(message)),
    onError: listener => worker.on('error', listener),
    terminate: async () => {
      await worker.terminate();
    },
  };
}
