import { chmodSync, lstatSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ERRNO, ErrnoError, type ErrnoName } from '../abi/errno.js';
import { prepareSocket } from '../xenstore/node/socket-place.js';

/**
 * The control socket's protocol: a line of JSON for each message.
 *   request  {"id":1,"method":"list","params":{}}
 *   event    {"id":1,"event":…}            any number of them, before the answer
 *   answer   {"id":1,"result":…}  or  {"id":1,"error":{"code":"ESRCH","message":"…"}}
 */
export class CliError extends ErrnoError {}

/** A request longer than this is not one of ours. */
const REQUEST_MAX = 1 << 20;
/** Bytes that may wait for a client that does not read; one that leaves more is hung up on. */
const UNREAD_MAX = 64 << 20;
/** What listens on a control socket. */
export const CONTROL_SERVER = 'pvnet host';

/** The host went away before it answered: what it did of what it was asked is not known. */
export class ConnectionLost extends CliError {}

export interface CallContext {
  /** Sends something before the answer. */
  emit(event: unknown): void;
  /** Aborted when the caller hangs up, or only asks no more and waits for its answers. */
  readonly signal: AbortSignal;
}

// biome-ignore lint/suspicious/noExplicitAny: what comes over the wire; each method checks its own
export type Method = (params: any, context: CallContext) => unknown;

/** What can be called; each subsystem registers its methods under names of its own. */
export class RpcRegistry {
  private readonly methods = new Map<string, Method>();

  register(name: string, method: Method): void {
    if (this.methods.has(name)) throw new Error(`the method "${name}" is registered already`);
    this.methods.set(name, method);
  }

  /** @throws CliError ENOSYS for a method that there is none of; what the method throws */
  async call(name: unknown, params: unknown, context: CallContext): Promise<unknown> {
    const method = this.methods.get(name as string);
    if (method === undefined)
      throw new CliError('ENOSYS', `this host has no method ${JSON.stringify(name)}: is it an older pvnet?`);
    return await method(params ?? {}, context);
  }
}

/** Where a host listens unless told otherwise: PVNET_SOCKET, or in the user's own run directory. */
export function defaultControlSocket(env: NodeJS.ProcessEnv = process.env): string {
  if (env['PVNET_SOCKET']) return env['PVNET_SOCKET'];
  const uid = process.getuid?.() ?? 0;
  if (env['XDG_RUNTIME_DIR']) return join(env['XDG_RUNTIME_DIR'], 'pvnet/control.sock');
  if (uid === 0) return '/run/pvnet/control.sock';
  const folder = join(tmpdir(), `pvnet-${uid}`);
  requireOwn(folder);
  return join(folder, 'control.sock');
}

/**
 * Everybody may make a folder in /tmp. In one of another's, that one could put a socket of its own in the place of the
 * host's, and commands do what the host answers: `exec` runs it.
 * @throws CliError EACCES unless the folder is this user's alone, or not there yet
 */
export function requireOwn(folder: string): void {
  const found = lstatSync(folder, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (found.isDirectory() && found.uid === process.getuid?.() && (found.mode & 0o022) === 0) return;
  throw new CliError(
    'EACCES',
    `${folder} is not a folder that only this user writes to; remove it, or name a socket elsewhere (--socket)`,
  );
}

/** Calls `onLine` for each line that arrives; one that is longer than `longest` and has no end ends the connection. */
function readLines(socket: Socket, longest: number, onLine: (line: string) => void): void {
  // What came of the line that has not ended. To put it together with each piece would take ever longer.
  let pieces: string[] = [];
  let length = 0;
  socket.setEncoding('utf8');
  socket.on('data', (chunk: unknown) => {
    const text = String(chunk);
    let start = 0;
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', start)) {
      pieces.push(text.slice(start, end));
      start = end + 1;
      const line = pieces.join('');
      pieces = [];
      length = 0;
      onLine(line);
    }
    pieces.push(text.slice(start));
    length += text.length - start;
    if (length > longest) socket.destroy();
  });
}

/** Serves a registry on a UNIX socket that only this user may open. */
export class RpcServer {
  private readonly sockets = new Set<Socket>();
  private readonly closed: Promise<void>;
  private stopped = false;

  private constructor(
    private readonly server: Server,
    readonly path: string,
  ) {
    this.closed = new Promise(resolve => server.once('close', resolve));
  }

  /** @throws XenStoreError as `prepareSocket` */
  static async listen(registry: RpcRegistry, path: string): Promise<RpcServer> {
    await prepareSocket(path, CONTROL_SERVER);
    const server = createServer({ allowHalfOpen: true });
    const rpc = new RpcServer(server, path);
    server.on('connection', socket => rpc.serve(registry, socket));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
    chmodSync(path, 0o600);
    return rpc;
  }

  /** Takes no more callers, and no more requests: the socket is gone. Who is there is hung up on by `close`. */
  stop(): void {
    this.stopped = true;
    this.server.close();
  }

  /** Hangs up on everybody; the socket is gone. */
  async close(): Promise<void> {
    this.stop();
    for (const socket of this.sockets) socket.end();
    setTimeout(() => {
      for (const socket of this.sockets) socket.destroy();
    }, 100).unref();
    await this.closed;
  }

  private serve(registry: RpcRegistry, socket: Socket): void {
    const hangUp = new AbortController();
    /** Calls without an answer yet: one who has ended its side still waits for them. */
    let pending = 0;
    const endWhenAnswered = (): void => {
      if (hangUp.signal.aborted && pending === 0) socket.end();
    };
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => {
      this.sockets.delete(socket);
      hangUp.abort();
    });
    socket.on('end', () => {
      hangUp.abort();
      endWhenAnswered();
    });
    const send = (message: object): void => {
      if (socket.writableLength > UNREAD_MAX) socket.destroy();
      if (!socket.destroyed) socket.write(`${JSON.stringify(message)}\n`);
    };
    readLines(socket, REQUEST_MAX, line => {
      let request: { id?: unknown; method?: unknown; params?: unknown };
      try {
        request = JSON.parse(line);
      } catch {
        send({ id: null, error: { code: 'EBADMSG', message: 'EBADMSG: a request is a line of JSON' } });
        return;
      }
      const { id, method, params } = request ?? {};
      if (this.stopped) {
        send({ id, error: { code: 'EBUSY', message: 'EBUSY: the host is being shut down' } });
        return;
      }
      const context = { emit: (event: unknown) => send({ id, event }), signal: hangUp.signal };
      pending++;
      registry
        .call(method, params, context)
        .then(
          result => send({ id, result: result ?? null }),
          error =>
            send({ id, error: { code: error?.code ?? 'EIO', message: String(error?.message ?? error) } }),
        )
        .finally(() => {
          pending--;
          endWhenAnswered();
        });
    });
  }
}

/** A connection to a host that runs. */
export class RpcClient {
  private nextId = 1;
  private readonly calls = new Map<
    number,
    { resolve(result: unknown): void; reject(error: Error): void; onEvent?(event: unknown): void }
  >();

  /** Resolves when the host has hung up, as one does that has ended; or we have. */
  readonly closed: Promise<void>;

  private constructor(private readonly socket: Socket) {
    this.closed = new Promise(resolve => socket.once('close', () => resolve()));
  }

  /** @throws CliError ENOENT or ECONNRESET when no host listens there */
  static connect(path: string): Promise<RpcClient> {
    return new Promise((resolve, reject) => {
      const socket = createConnection({ path });
      socket.once('error', error => {
        const { code } = error as NodeJS.ErrnoException;
        const why =
          code === 'ENOENT' || code === 'ECONNREFUSED' ? 'no pvnet host runs there' : `it failed (${code})`;
        const help = 'start one with "pvnet up FILE", or name its socket with --socket or PVNET_SOCKET';
        reject(new CliError(code === 'EACCES' ? 'EACCES' : 'ENOENT', `${path}: ${why}; ${help}`));
      });
      socket.once('connect', () => {
        const client = new RpcClient(socket);
        client.start();
        resolve(client);
      });
    });
  }

  /** @throws CliError as the host says; ConnectionLost ECONNRESET when it went away meanwhile */
  call<T = unknown>(method: string, params: object = {}, onEvent?: (event: unknown) => void): Promise<T> {
    const id = this.nextId++;
    return new Promise<T>((resolve, reject) => {
      this.calls.set(id, { resolve: resolve as (result: unknown) => void, reject, onEvent });
      this.socket.write(`${JSON.stringify({ id, method, params })}\n`);
    });
  }

  close(): void {
    this.socket.end();
  }

  private start(): void {
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      for (const { reject } of this.calls.values())
        reject(new ConnectionLost('ECONNRESET', 'the host went away'));
      this.calls.clear();
    });
    // An answer is as long as what was asked for: a host has thousands of interfaces.
    readLines(this.socket, Number.POSITIVE_INFINITY, line => {
      const { id, event, result, error } = JSON.parse(line);
      const call = this.calls.get(id);
      if (call === undefined) return;
      if (event !== undefined) {
        try {
          call.onEvent?.(event);
        } catch (error) {
          this.calls.delete(id);
          call.reject(error as Error);
        }
        return;
      }
      this.calls.delete(id);
      if (error === undefined) call.resolve(result);
      else {
        const code: ErrnoName = Object.hasOwn(ERRNO, error.code) ? error.code : 'EIO';
        call.reject(new CliError(code, String(error.message).replace(new RegExp(`^${code}: `), '')));
      }
    });
  }
}
