import { createConnection } from 'node:net';
import type { ByteStream } from '../../platform/platform.js';
import { XenStoreError } from '../error.js';
import { defaultSocketPath, missing } from './socket-path.js';

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
  const remedy = `start one with "pvnet xenstored --socket ${path}", or name another socket (XENSTORED_PATH, --socket)`;
  switch (error.code) {
    case 'ENOENT':
      return new XenStoreError('ENOENT', `no xenstored runs here: ${missing(path)}; ${remedy}`);
    case 'ECONNREFUSED':
      return new XenStoreError(
        'ECONNREFUSED',
        `no xenstored runs here: nobody listens on ${path}; ${remedy}`,
      );
    case 'EACCES':
    case 'EPERM':
      return new XenStoreError(
        'EACCES',
        `this user may not open ${path}: it belongs to who started xenstored`,
      );
    default:
      return new XenStoreError('ECONNRESET', `${path}: ${error.message}`);
  }
}
