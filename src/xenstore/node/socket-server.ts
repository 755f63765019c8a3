import { chmodSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import type { Connection } from '../connection.js';
import type { XenStoreServer } from '../server.js';
import type { Transport } from '../transport.js';
import { placeError, prepareSocket } from './socket-place.js';

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
 * @throws XenStoreError as `prepareSocket`
 */
export async function listen(server: XenStoreServer, path: string): Promise<ListeningSocket> {
  await prepareSocket(path, 'xenstored');
  const sockets = new Set<Socket>();
  const listener: Server = createServer(socket => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    const transport = new SocketTransport(socket);
    transport.serve(server.connect(transport));
  });
  await new Promise<void>((resolve, reject) => {
    listener.once('error', (error: NodeJS.ErrnoException) => reject(placeError(error, path)));
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
