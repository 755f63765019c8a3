import type { ByteStream } from '../platform/platform.js';
import type { Connection } from './connection.js';

/** The server's way to a client: a ring page, a socket, or any stream of bytes. */
export interface Transport {
  /**
   * Sends bytes [start, end). They may be overwritten after the call.
   * @returns how many it took; when not all, it calls `Connection.drained` once it can take more
   */
  write(bytes: Uint8Array, start: number, end: number): number;
  /** The connection, which had enough, takes input again: deliver what was kept back. */
  resume(): void;
  /** The connection is over. */
  close(): void;
}

/** Serves a client over a `ByteStream`, which takes whatever is written. */
export class StreamTransport implements Transport {
  constructor(readonly stream: ByteStream) {}

  start(connection: Connection): void {
    this.stream.onData(bytes => connection.receive(bytes, 0, bytes.length));
    this.stream.onClose(() => connection.closed());
  }

  write(bytes: Uint8Array, start: number, end: number): number {
    this.stream.write(bytes.subarray(start, end));
    return end - start;
  }

  resume(): void {}

  close(): void {
    this.stream.close();
  }
}
