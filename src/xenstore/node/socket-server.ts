import { chmodSync, lstatSync, mkdirSync, unlinkSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import type { Connection } from '../connection.js';
import { XenStoreError } from '../error.js';
import type { XenStoreServer } from '../server.js';
import type { Transport } from '../transport.js';

/** A socket that a `XenStoreServer` is served on. */
export interface ListeningSocket {
  readonly path: string;
  /** Stops to listen, ends all its connections and removes the socket. */
  close(): Promise<void>;
}

/** A client on a UNIX socket. Who may open the socket counts as domain 0. */
class SocketTransport implements Transport {
  #full = false;
  #connection!: Connection;

  constructor(readonly socket: Socket) {}

  serve(connection: Connection): void {
    this.#connection = connection;
    const { socket } = this;
    socket.on('data', (bytes: Buffer) => {
      connection.receive(bytes, 0, bytes.length);
      if (!connection.wantsInput) socket.pause();
    });
    socket.on('drain', () => {
      this.#full = false;
      connection.drained();
    });
    socket.on('error', () => {});
    socket.on('close', () => connection.closed());
  }

  write(bytes: Uint8Array, start: number, end: number): number {
    if (this.#full) return 0;
    this.#full = !this.socket.write(Buffer.from(bytes.subarray(start, end)));
    return end - start;
  }

  resume(): void {
    if (this.#connection.wantsInput) this.socket.resume();
  }

  close(): void {
    this.socket.destroy();
  }
}

/**
 * Serves `server` on a UNIX socket, which only the user may open.
 * @throws XenStoreError EADDRINUSE when another server listens there, EACCES when the folder is closed to us
 */
export async function listen(server: XenStoreServer, path: string): Promise<ListeningSocket> {
  await prepareSocket(path);
  const sockets = new Set<Socket>();
  const listener: Server = createServer(socket => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    const transport = new SocketTransport(socket);
    transport.serve(server.connect(transport));
  });
  await new Promise<void>((resolve, reject) => {
    listener.once('error', (error: NodeJS.ErrnoException) => reject(listenError(error, path)));
    listener.listen({ path, backlog: 512 }, resolve);
  });
  chmodSync(path, 0o600);
  return {
    path,
    close() {
      return new Promise(resolve => {
        listener.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      });
    },
  };
}

/** Makes the folder, and removes a socket that its server left behind. */
export async function prepareSocket(path: string): Promise<void> {
  if (Buffer.byteLength(path) > 107) {
    throw new XenStoreError('EINVAL', `${path}: the path of a UNIX socket has at most 107 bytes`);
  }
  try {
    mkdirSync(dirname(path), { recursive: true });
  } catch (error) {
    throw listenError(error as NodeJS.ErrnoException, path);
  }
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new XenStoreError('EEXIST', `${path} is there and is no socket`);
  if (await isListenedOn(path)) throw new XenStoreError('EADDRINUSE', `another xenstored listens on ${path}`);
  unlinkSync(path);
}

/** Whether somebody answers at a UNIX socket. */
export function isListenedOn(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const probe = createConnection({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}

function listenError(error: NodeJS.ErrnoException, path: string): XenStoreError {
  if (error.code === 'EACCES' || error.code === 'EPERM') {
    return new XenStoreError('EACCES', `no permission to make ${path}; --socket names another place`);
  }
  if (error.code === 'EADDRINUSE') {
    return new XenStoreError('EADDRINUSE', `another xenstored listens on ${path}`);
  }
  return new XenStoreError('EIO', `${path}: ${error.message}`);
}
