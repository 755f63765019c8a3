export { defaultSocketPath, findXenStore } from './socket-path.js';
export { type ListeningSocket, listen } from './socket-server.js';
export { connectSocket } from './socket-stream.js';
