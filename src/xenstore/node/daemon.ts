import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, unlinkSync, writeFileSync, writeSync } from 'node:fs';
import { resolve } from 'node:path';
import { DOMID_FIRST_RESERVED } from '../../abi/xen.js';
import { Memory, PAGE_SIZE } from '../../platform/memory.js';
import { EventLoopScheduler } from '../../platform/sim/index.js';
import type { Connection } from '../connection.js';
import { XenStoreError } from '../error.js';
import type { Quotas } from '../quota.js';
import { restoreState, saveState } from '../saved-state.js';
import { type XenStoreHost, XenStoreServer } from '../server.js';
import { EpollServer } from './epoll-server.js';
import { execute, hasSocketCalls, keepOverExec } from './socket-calls.js';
import { type ListeningSocket, listen } from './socket-server.js';
import { loadState, StateFile } from './state-file.js';

export interface DaemonOptions {
  socket: string;
  /** Keeps the nodes over crashes. */
  stateFile?: string;
  quotas?: Partial<Quotas>;
  /** See `XenStoreServerOptions`. */
  watchEventTimeoutMs?: number;
  log: (line: string) => void;
  /** Gets what is logged instead of `log`. */
  traceFile?: string;
  /** The program and its arguments, to be run again for a live update. */
  program?: { script: string; args: string[] };
  /** The file that the process before this one left: a live update. */
  resume?: string;
}

/** Without a hypervisor every domain that could be is there, and its ring page is never written to. */
const noHypervisor: XenStoreHost = {
  introduce() {
    const memory = new Memory(new SharedArrayBuffer(PAGE_SIZE));
    return { memory, address: 0, notify() {}, unmap() {} };
  },
  domainState: domid => (domid < DOMID_FIRST_RESERVED ? 'alive' : 'absent'),
};

/** A xenstored that runs alone: on a socket, without a hypervisor. */
export class Daemon {
  readonly server: XenStoreServer;
  #socket!: ListeningSocket;
  #stateFile: StateFile | null = null;
  #nextScript: string | undefined;
  #nextArgs: string[] | undefined;
  #traceFile: { readonly path: string; readonly fd: number } | null = null;

  private constructor(readonly options: DaemonOptions) {
    this.server = new XenStoreServer({
      scheduler: new EventLoopScheduler({
        setImmediate,
        setTimeout,
        clearTimeout,
        now: () => performance.now(),
      }),
      host: noHypervisor,
      random: Math.random,
      quotas: options.quotas,
      watchEventTimeoutMs: options.watchEventTimeoutMs,
      log: line => this.#log(line),
      liveUpdate: words => this.#liveUpdate(words),
      openLogFile: path => this.#openTraceFile(path),
      writeFile: (path, text) => writeFileSync(path, text, { mode: 0o600 }),
    });
  }

  /** @throws XenStoreError when the socket or the state file cannot be used */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const daemon = new Daemon(options);
    const { socket, stateFile, resume, traceFile } = options;
    if (traceFile !== undefined) {
      try {
        daemon.#openTraceFile(traceFile);
      } catch (error) {
        throw new XenStoreError('EIO', `${traceFile}: ${(error as Error).message}`);
      }
    }
    if (resume !== undefined) daemon.#resume(resume);
    // Before anybody can connect, so that nobody sees a store without its nodes.
    else if (stateFile !== undefined) loadState(daemon.server, stateFile);
    if (resume === undefined) daemon.#socket = await serveSocket(daemon.server, socket);
    if (stateFile !== undefined) daemon.#stateFile = new StateFile(daemon.server, stateFile);
    return daemon;
  }

  async close(): Promise<void> {
    await this.#socket.close();
    this.#stateFile?.close();
    this.#closeTraceFile();
  }

  #log(line: string): void {
    const file = this.#traceFile;
    if (file === null) {
      this.options.log(line);
      return;
    }
    try {
      writeSync(file.fd, `${new Date().toISOString()} ${line}\n`);
    } catch (error) {
      this.#closeTraceFile();
      this.options.log(`${file.path} is not written any more: ${(error as Error).message}`);
      this.options.log(line);
    }
  }

  #openTraceFile(path: string): void {
    const fd = openSync(path, 'a', 0o600);
    this.#closeTraceFile();
    this.#traceFile = { path: resolve(path), fd };
  }

  #closeTraceFile(): void {
    if (this.#traceFile !== null) closeSync(this.#traceFile.fd);
    this.#traceFile = null;
  }

  /** Takes over what the process before this one, which had the same number, left open. */
  #resume(file: string): void {
    const bytes = readFileSync(file);
    unlinkSync(file);
    let epoll: EpollServer | undefined;
    const fds: number[] = [];
    const serve = (fd: number): Connection => {
      fds.push(fd);
      return epoll!.serve(fd);
    };
    // The listening socket is the first record.
    const listener = new DataView(bytes.buffer, bytes.byteOffset).getInt32(24, true);
    epoll = EpollServer.adopt(this.server, this.options.socket, listener);
    restoreState(this.server, bytes, { serve });
    this.#socket = epoll;
    this.#log(`live update: goes on with ${fds.length} connections`);
  }

  /** CONTROL live-update, in the parts in which xenstore-control sends it. */
  #liveUpdate(words: string[]): string {
    const [option, value] = words;
    if (option === '-a') {
      this.#nextScript = undefined;
      this.#nextArgs = undefined;
      return 'OK';
    }
    if (option === '-f') {
      if (value === undefined || !existsSync(value)) return `there is no file ${value ?? '(none named)'}`;
      this.#nextScript = value;
      return 'OK';
    }
    if (option === '-c') {
      this.#nextArgs = ['xenstored', ...(value ?? '').split(/[ \t]+/).filter(word => word !== '')];
      return 'OK';
    }
    if (option !== undefined && option !== '-s') return `${option} is no option of live-update`;
    if (!(this.#socket instanceof EpollServer) || this.options.program === undefined) {
      return 'this xenstored cannot be updated while it runs';
    }
    // A program that does not start would take the store with it.
    const { status, stderr } = spawnSync(process.execPath, [...this.#nextProgram(), '--help'], {
      encoding: 'utf8',
      timeout: 10_000,
    });
    if (status !== 0) return `the new program does not start: ${stderr.trim().slice(0, 1000)}`;
    setImmediate(() => this.#replace());
    return 'OK';
  }

  /** What Node is to run next: the program and its arguments. */
  #nextProgram(): string[] {
    const { script, args } = this.options.program!;
    const program = [...process.execArgv, this.#nextScript ?? script, ...(this.#nextArgs ?? args)];
    // The socket is handed over, so its path stays. The last of an option counts.
    if (this.#nextArgs !== undefined) program.push('--socket', this.options.socket);
    else if (this.#traceFile !== null && this.#traceFile.path !== this.options.traceFile) {
      program.push('--trace-file', this.#traceFile.path);
    }
    return program;
  }

  /** Runs the new program in the place of this one, with all sockets open. */
  #replace(): void {
    const epoll = this.#socket as EpollServer;
    const fds = new Map([...epoll.clients()].map(([fd, connection]) => [connection, fd]));
    const file = `${this.options.socket}.live-update`;
    let isWritten = false;
    try {
      // It is not closed: should anything fail, this process goes on.
      this.#stateFile?.save();
      writeFileSync(file, saveState(this.server, { listener: epoll.fd, fdOf: c => fds.get(c) }), {
        mode: 0o600,
      });
      isWritten = true;
      for (const fd of [0, 1, 2, epoll.fd, ...fds.values()]) keepOverExec(fd);
      execute(process.execPath, [...this.#nextProgram(), '--resume', file]);
    } catch (error) {
      if (isWritten) unlinkSync(file);
      this.#log(`live update failed: ${(error as Error).message}`);
    }
  }
}

/** Serves the socket in the fastest way that the system offers. */
export async function serveSocket(server: XenStoreServer, path: string): Promise<ListeningSocket> {
  return hasSocketCalls() ? EpollServer.listen(server, path) : listen(server, path);
}
