export { connectXenStore } from './connect.js';
export { Daemon, type DaemonOptions, serveSocket } from './daemon.js';
export { connectDevice } from './device-stream.js';
export { defaultSocketPath, findXenStore } from './socket-path.js';
export { type ListeningSocket, listen } from './socket-server.js';
export { connectSocket } from './socket-stream.js';
