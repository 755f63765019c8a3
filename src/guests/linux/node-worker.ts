import { parentPort } from 'node:worker_threads';
import { GuestWorker, type ToGuest } from './guest-worker.js';

// The program of a worker thread that `spawnNodeWorker` starts.
const port = parentPort!;
new GuestWorker({
  post: (message, transfer) => port.postMessage(message, transfer),
  onMessage: listener => port.on('message', (message: ToGuest) => listener(message)),
  turn: run => void setImmediate(run),
  now: () => performance.now(),
});
