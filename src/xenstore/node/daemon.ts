import { existsSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { DOMID_FIRST_RESERVED } from '../../abi/xen.js';
import { Memory, PAGE_SIZE } from '../../platform/memory.js';
import { EventLoopScheduler } from '../../platform/sim/index.js';
import type { Connection } from '../connection.js';
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

  private constructor(readonly options: DaemonOptions) {
    this.server = new XenStoreServer({
      scheduler: new EventLoopScheduler({
        setImmediate: run => setImmediate(run),
        setTimeout: (run, delayMs) => setTimeout(run, delayMs),
        clearTimeout: handle => clearTimeout(handle as NodeJS.Timeout),
        now: () => performance.now(),
      }),
      host: noHypervisor,
      random: Math.random,
      quotas: options.quotas,
      watchEventTimeoutMs: options.watchEventTimeoutMs,
      log: options.log,
      liveUpdate: words => this.#liveUpdate(words),
    });
  }

  /** @throws XenStoreError when the socket or the state file cannot be used */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const daemon = new Daemon(options);
    const { socket, stateFile, resume } = options;
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
    this.options.log(`live update: goes on with ${fds.length} connections`);
  }

  /** CONTROL live-update, in the parts in which xenstore-control sends it. */
  #liveUpdate(words: string[]): string {
    const [option, value] = words;
    if (option === '-a') {
      this.#nextScript = undefined;
      return 'OK';
    }
    if (option === '-f') {
      if (value === undefined || !existsSync(value)) return `there is no file ${value ?? '(none named)'}`;
      this.#nextScript = value;
      return 'OK';
    }
    if (option === '-c') return 'a command line cannot be given: the new process gets that of the old one';
    if (option !== undefined && option !== '-s') return `${option} is no option of live-update`;
    if (!(this.#socket instanceof EpollServer) || this.options.program === undefined) {
      return 'this xenstored cannot be updated while it runs';
    }
    setImmediate(() => this.#replace());
    return 'OK';
  }

  /** Runs the new program in the place of this one, with all sockets open. */
  #replace(): void {
    const epoll = this.#socket as EpollServer;
    const { script, args } = this.options.program!;
    const fds = new Map([...epoll.clients()].map(([fd, connection]) => [connection, fd]));
    const file = `${this.options.socket}.live-update`;
    try {
      this.#stateFile?.close();
      writeFileSync(file, saveState(this.server, { listener: epoll.fd, fdOf: c => fds.get(c) }), {
        mode: 0o600,
      });
      for (const fd of [0, 1, 2, epoll.fd, ...fds.values()]) keepOverExec(fd);
      const program = [...process.execArgv, this.#nextScript ?? script, ...args, '--resume', file];
      execute(process.execPath, program);
    } catch (error) {
      this.options.log(`live update failed: ${(error as Error).message}`);
    }
  }
}

/** Serves the socket in the fastest way that the system offers. */
export async function serveSocket(server: XenStoreServer, path: string): Promise<ListeningSocket> {
  return hasSocketCalls() ? EpollServer.listen(server, path) : listen(server, path);
}
