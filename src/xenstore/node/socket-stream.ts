import { createConnection } from 'node:net';
import type { ByteStream } from '../../platform/platform.js';
import { XenStoreError } from '../error.js';
import { defaultSocketPath } from './socket-path.js';

/** Connects to a xenstored's socket. What is written before it is connected waits. */
export function connectSocket(path = defaultSocketPath()): ByteStream {
  const socket = createConnection({ path });
  let failure: XenStoreError | undefined;
  socket.on('error', (error: NodeJS.ErrnoException) => {
    failure = connectError(error, path);
  });
  return {
    write(bytes) {
      socket.write(Buffer.from(bytes));
    },
    onData(listener) {
      socket.on('data', listener);
    },
    onClose(listener) {
      socket.on('close', () => listener(failure));
    },
    close() {
      socket.end(() => socket.destroy());
    },
  };
}

function connectError(error: NodeJS.ErrnoException, path: string): XenStoreError {
  switch (error.code) {
    case 'ENOENT':
      return new XenStoreError('ENOENT', `there is no socket ${path}: is xenstored running?`);
    case 'ECONNREFUSED':
      return new XenStoreError('ENOTCONN', `nobody listens on ${path}: is xenstored running?`);
    case 'EACCES':
    case 'EPERM':
      return new XenStoreError('EACCES', `no access to ${path}: it belongs to who started xenstored`);
    default:
      return new XenStoreError('ECONNRESET', `${path}: ${error.message}`);
  }
}
