import { chmodSync, rmSync } from 'node:fs';
import { addressOf, CStruct, EPOLLIN } from '../../platform/linux/libc.js';
import type { Connection } from '../connection.js';
import type { XenStoreServer } from '../server.js';
import type { Transport } from '../transport.js';
import {
  accept,
  BROKEN,
  closeFd,
  EPOLLOUT,
  Epoll,
  listenUnix,
  receive,
  send,
  WOULD_BLOCK,
} from './socket-calls.js';
import { prepareSocket } from './socket-place.js';
import type { ListeningSocket } from './socket-server.js';

/** Taken from one client before the others have their turn. */
const CHUNK_BYTES = 1 << 14;
/** How long to keep the event loop from its other work. */
const SLICE_MS = 1;
/** Without a file descriptor for another client, how long to wait for one. */
const ACCEPT_RETRY_MS = 100;

/**
 * Serves a UNIX socket with system calls of our own: one epoll instance for all clients, of which the
 * event loop sees a single file descriptor. Costs the server less a request than Node's streams, and
 * more so the more clients there are.
 */
export class EpollServer implements ListeningSocket {
  readonly #epoll = new Epoll();
  readonly #clients = new Map<number, EpollTransport>();
  readonly #chunk = new CStruct(CHUNK_BYTES);
  /** Runs while clients wait for file descriptors: the listening socket would be ready all the time. */
  #retry: NodeJS.Timeout | null = null;
  #saidFull = false;
  readonly #visit = (fd: number, events: number): void => this.#ready(fd, events);

  private constructor(
    readonly server: XenStoreServer,
    readonly path: string,
    /** File descriptor of the listening socket. */
    readonly fd: number,
  ) {
    this.#epoll.add(fd, EPOLLIN);
    this.#epoll.watch(() => this.#run());
  }

  /** @throws XenStoreError as `listen` does */
  static async listen(server: XenStoreServer, path: string): Promise<EpollServer> {
    await prepareSocket(path, 'xenstored');
    const fd = listenUnix(path);
    chmodSync(path, 0o600);
    return new EpollServer(server, path, fd);
  }

  /** Goes on with a listening socket from before a live update. */
  static adopt(server: XenStoreServer, path: string, fd: number): EpollServer {
    return new EpollServer(server, path, fd);
  }

  /** Goes on with a client from before a live update, or one that was accepted elsewhere. */
  serve(fd: number): Connection {
    const transport = new EpollTransport(fd, this.#epoll, () => this.#clients.delete(fd));
    this.#clients.set(fd, transport);
    this.#epoll.add(fd, EPOLLIN);
    const connection = this.server.connect(transport);
    transport.connection = connection;
    return connection;
  }

  /** Clients and the file descriptors of their sockets. */
  *clients(): IterableIterator<[fd: number, connection: Connection]> {
    for (const [fd, { connection }] of this.#clients) yield [fd, connection];
  }

  async close(): Promise<void> {
    for (const { connection } of [...this.#clients.values()]) connection.close();
    if (this.#retry !== null) clearTimeout(this.#retry);
    this.#epoll.close();
    closeFd(this.fd);
    // Somebody may have removed it already.
    rmSync(this.path, { force: true });
  }

  #run(): void {
    const end = performance.now() + SLICE_MS;
    while (this.#epoll.poll(this.#visit) > 0 && performance.now() < end);
  }

  #accept(): void {
    let client = accept(this.fd);
    for (; client >= 0; client = accept(this.fd)) this.serve(client);
    if (client !== BROKEN) {
      this.#saidFull = false;
      return;
    }
    if (!this.#saidFull) {
      this.server.log(`no file descriptor is left for another client of ${this.path}: it waits for one`);
    }
    this.#saidFull = true;
    this.#epoll.remove(this.fd);
    this.#retry = setTimeout(() => {
      this.#retry = null;
      this.#epoll.add(this.fd, EPOLLIN);
    }, ACCEPT_RETRY_MS);
  }

  #ready(fd: number, events: number): void {
    if (fd === this.fd) {
      this.#accept();
      return;
    }
    const client = this.#clients.get(fd);
    if (client === undefined) return;
    if (events & EPOLLOUT) client.writable();
    if ((events & ~EPOLLOUT) === 0 || !client.isOpen) return;
    const { connection } = client;
    const length = receive(fd, this.#chunk.address, CHUNK_BYTES);
    if (length > 0) {
      connection.receive(this.#chunk.u8, 0, length);
      if (client.isOpen && !connection.wantsInput) client.pause();
    } else if (length === BROKEN) client.broken();
  }
}

class EpollTransport implements Transport {
  connection!: Connection;
  isOpen = true;
  #events = EPOLLIN;
  #buffer: Uint8Array | null = null;
  #address = 0;

  constructor(
    readonly fd: number,
    readonly epoll: Epoll,
    readonly closed: () => void,
  ) {}

  write(bytes: Uint8Array, start: number, end: number): number {
    if (!this.isOpen) return end - start;
    if (bytes !== this.#buffer) {
      this.#buffer = bytes;
      this.#address = addressOf(bytes);
    }
    const sent = send(this.fd, this.#address + start, end - start);
    if (sent === end - start) return sent;
    // What a broken socket does not take, nobody waits for: its end is seen when it is read.
    if (sent === BROKEN) return end - start;
    this.#wait(this.#events | EPOLLOUT);
    return sent === WOULD_BLOCK ? 0 : sent;
  }

  /** There is room again. */
  writable(): void {
    this.#wait(this.#events & ~EPOLLOUT);
    this.connection.drained();
  }

  pause(): void {
    this.#wait(this.#events & ~EPOLLIN);
  }

  resume(): void {
    if (this.connection.wantsInput) this.#wait(this.#events | EPOLLIN);
  }

  broken(): void {
    this.close();
    this.connection.closed();
  }

  close(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.epoll.remove(this.fd);
    closeFd(this.fd);
    this.closed();
  }

  #wait(events: number): void {
    if (!this.isOpen || events === this.#events) return;
    this.#events = events;
    this.epoll.change(this.fd, events);
  }
}
