export { type ListeningSocket, listen } from './socket-server.js';
export { defaultSocketPath, findXenStore } from './socket-path.js';
export { connectSocket } from './socket-stream.js';
