import { rmdirSync, unlinkSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { nameProblem } from '../net/index.js';
import { vifsOf } from '../netback/index.js';
import { describeError } from '../platform/errors.js';
import { readDomainFile, readText } from '../toolstack/domain-config.js';
import { type AttachedVif, Host, type HostedDomain, type HostOptions } from '../toolstack/host.js';
import { parseHostImage, restoreHost } from '../toolstack/save.js';
import { parseAddresses } from '../toolstack/vif-config.js';
import { runProgram } from '../uplink/namespace.js';
import { formatXenbusTrace } from '../xenbus/index.js';
import { serveSocket } from '../xenstore/node/index.js';
import { makeFolder, prepareSocket } from '../xenstore/node/socket-place.js';
import { type Command, type Invocation, type OptionHelp, UsageError } from './command.js';
import { registerConsoleMethods } from './console.js';
import { DOMAIN_FILE_HELP } from './domain-commands.js';
import { registerHostMethods } from './host-methods.js';
import { registerLifeMethods } from './life-methods.js';
import { registerNetMethods } from './net-methods.js';
import { NETBACK_OPTIONS, readNetbackOptions } from './netback-options.js';
import { CliError, CONTROL_SERVER, defaultControlSocket, RpcRegistry, RpcServer } from './rpc.js';
import { registerVifMethods } from './vif-methods.js';

/** Where xenstored of a host listens: beside its control socket. */
function xenstoredSocketOf(controlSocket: string): string {
  return `${controlSocket.replace(/\.sock$/, '')}-xenstored.sock`;
}

/** What `--uplink BRIDGE=TAP[,ADDRESS]` asks for. */
interface UplinkOption {
  readonly bridge: string;
  readonly tap: string;
  readonly address: string | undefined;
}

function parseUplink(text: string): UplinkOption {
  const match = /^([^=,\s]+)=([^=,\s]+)(?:,(\S+))?$/.exec(text);
  if (match === null) {
    throw new UsageError(
      `--uplink ${text}: it is BRIDGE=TAP or BRIDGE=TAP,ADDRESS/PREFIX, as xenbr0=tap0,10.0.0.254/24`,
    );
  }
  const [, bridge, tap, address] = match;
  for (const name of [bridge, tap]) {
    const problem = nameProblem(name);
    if (problem !== null) {
      throw new UsageError(`--uplink ${text}: "${name}" is no interface name: ${problem}`);
    }
  }
  try {
    parseAddresses(address ?? '');
  } catch (error) {
    throw new UsageError(`--uplink ${text}: ${(error as Error).message}`);
  }
  return { bridge, tap, address };
}

export interface RunningHost {
  readonly host: Host;
  readonly controlSocket: string;
  readonly xenstoredSocket: string;
  /** Resolves when the host has been shut down. */
  readonly ended: Promise<void>;
  /** Whether it has been told to end. */
  readonly ending: boolean;
  /** Shuts down in order; the second time at once. */
  end(): void;
}

/** Prints what a domain's code throws, but not the same of one domain again and again: handlers are called for each packet. */
function errorsOnce(): NonNullable<HostOptions['onError']> {
  const last = new Map<number, string>();
  return ({ domid, name }, error) => {
    const text = `domain ${domid} (${name}): ${String(error)}; pvnet dmesg ${domid} has more\n`;
    if (text !== last.get(domid)) process.stderr.write(text);
    last.set(domid, text);
  };
}

/**
 * What a guest's module throws in a promise or a timer of its own harms no other; what anybody else does ends the process,
 * as it would without us. @returns what ends that
 */
function catchModules(host: Host, fail: () => void): () => void {
  const onThrown = (error: unknown): void => {
    if (host.moduleFailed(error)) return;
    process.stderr.write(`${describeError(error)}\n`);
    fail();
  };
  process.on('uncaughtException', onThrown);
  process.on('unhandledRejection', onThrown);
  return () => {
    process.off('uncaughtException', onThrown);
    process.off('unhandledRejection', onThrown);
  };
}

/** Starts a host that serves its control socket and xenstored's socket. Used by `pvnet up` and `npm start`. */
export async function startHost(options: {
  controlSocket?: string;
  xenstoredSocket?: string;
  host?: HostOptions;
}): Promise<RunningHost> {
  const controlSocket = resolve(options.controlSocket ?? defaultControlSocket());
  const xenstoredSocket = resolve(options.xenstoredSocket ?? xenstoredSocketOf(controlSocket));
  const folders = await prepareSocket(controlSocket, CONTROL_SERVER);
  try {
    folders.unshift(...makeFolder(dirname(xenstoredSocket)));
  } catch (error) {
    tidy([], folders);
    throw error;
  }
  const host = await Host.start({ onError: errorsOnce(), ...options.host });
  const registry = new RpcRegistry();
  let finish: () => void = () => {};
  const ended = new Promise<void>(resolved => {
    finish = resolved;
  });
  let ending = false;
  const end = (): void => {
    if (ending) process.exit(130);
    ending = true;
    void (async () => {
      try {
        rpc.stop();
        await host.close();
        await store.close();
      } finally {
        tidy([], folders);
        release();
        // Last, for whoever asked for the end and waits for it.
        await rpc.close();
        finish();
      }
    })();
  };
  registerHostMethods(registry, host, () => setImmediate(end));
  registerNetMethods(registry, host);
  registerLifeMethods(registry, host, () => setImmediate(end));
  registerConsoleMethods(registry, host);
  registerVifMethods(registry, () => vifsOf(host.dom0.net));
  const giveUp = async (error: unknown): Promise<never> => {
    await host.close();
    tidy([], folders);
    throw error;
  };
  const store = await serveSocket(host.xenstored.server, xenstoredSocket).catch(giveUp);
  const rpc = await RpcServer.listen(registry, controlSocket).catch(async error => {
    await store.close();
    return giveUp(error);
  });
  // However this process ends: by Ctrl-C for the second time, or because nobody reads what it prints.
  const onExit = (): void => tidy([controlSocket, xenstoredSocket], folders);
  process.once('exit', onExit);
  const uncatch = catchModules(host, () => process.exit(1));
  const release = (): void => {
    uncatch();
    process.off('exit', onExit);
  };
  return {
    host,
    controlSocket,
    xenstoredSocket,
    ended,
    get ending() {
      return ending;
    },
    end,
  };
}

/** Removes sockets, and the folders that were made for them. Namespaces and TAPs go with this process. */
function tidy(sockets: readonly string[], folders: readonly string[]): void {
  const removals = [
    ...sockets.map(path => () => unlinkSync(path)),
    ...folders.map(path => () => rmdirSync(path)),
  ];
  for (const remove of removals) {
    try {
      remove();
    } catch {
      // It is gone already, or somebody else has something in the folder.
    }
  }
}

const OPTIONS: Readonly<Record<string, OptionHelp>> = {
  xenstored: { type: 'string', value: 'PATH', help: 'xenstored’s socket (else beside the control socket)' },
  uplink: {
    type: 'string',
    multiple: true,
    value: 'BRIDGE=TAP[,ADDR]',
    help: 'connect a bridge with this machine by a TAP',
  },
  ...NETBACK_OPTIONS,
  trace: { type: 'boolean', help: 'print what the buses do' },
};

/** Creates the domains of a host. */
type Populate = (host: Host) => Promise<readonly HostedDomain[]>;

/**
 * Runs a host until it is told to end, as a command does.
 * @param read reads the files that are given, once the options are known to be right
 * @returns the exit status
 */
async function serve(name: string, invocation: Invocation, read: () => Populate): Promise<number> {
  const { flag, option, options, print } = invocation;
  const uplinks = options('uplink').map(parseUplink);
  const netback = await readNetbackOptions(invocation);
  const populate = read();
  const running = await startHost({
    controlSocket: option('socket'),
    xenstoredSocket: option('xenstored'),
    host: { netback, trace: flag('trace') ? event => print(formatXenbusTrace(event)) : undefined },
  });
  const { host, controlSocket, xenstoredSocket } = running;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, running.end);
  let status = 0;
  try {
    for (const { bridge, tap, address } of uplinks) {
      const port = host.addUplink(bridge, tap);
      const lines = [`link set dev ${port.tap.name} up`];
      if (address !== undefined) lines.unshift(`addr add ${address} dev ${port.tap.name}`);
      const { status: code, stderr } = await runProgram(['ip', '-batch', '-'], `${lines.join('\n')}\n`);
      if (code !== 0) throw new CliError('EINVAL', `--uplink ${bridge}=${tap}: ${stderr.trim()}`);
      print(`uplink ${port.tap.name} on ${bridge}`);
    }
    for (const hosted of await populate(host)) {
      const waiting = await settled(host, hosted);
      print(`domain ${hosted.domain.domid}: ${hosted.config.name}`);
      for (const vif of waiting) print(`  vif ${vif.devid}: ${host.waitingFor(hosted, vif)}`);
    }
    print(`PVNET_SOCKET=${controlSocket}`);
    print(`XENSTORED_PATH=${xenstoredSocket}`);
    print('ready; Ctrl-C shuts down');
  } catch (error) {
    // What is told to end fails in whatever it was about, which says nothing.
    const { ending } = running;
    const what = ending ? 'EINTR: told to end before all domains were up' : (error as Error).message;
    process.stderr.write(`pvnet ${name}: ${what}\n`);
    status = 1;
    if (!ending) running.end();
  }
  await running.ended;
  return status;
}

/** Those vifs of a domain that do not connect. One that somebody has destroyed has none, and the others go on. */
async function settled(host: Host, hosted: HostedDomain): Promise<AttachedVif[]> {
  try {
    return await host.settled(hosted);
  } catch (error) {
    if (host.hasEnded(hosted)) return [];
    throw error;
  }
}

function readDomains(files: readonly string[]): Populate {
  const configs = files.map(readDomainFile);
  for (const config of configs) for (const note of config.ignored) process.stderr.write(`${note}\n`);
  return async host => {
    const created: HostedDomain[] = [];
    for (const config of configs) {
      const hosted = await host.create(config);
      await settled(host, hosted);
      created.push(hosted);
    }
    return created;
  };
}

function readImage(file: string): Populate {
  const image = parseHostImage(readText(file), file);
  return host => restoreHost(host, image);
}

export const UP_COMMAND: Command = {
  usage: '[FILE…]',
  summary: 'Starts a simulated Xen host with the domains that the files describe; Ctrl-C shuts it down.',
  details: `${DOMAIN_FILE_HELP}\nBridges that a vif names are made when they are first needed.`,
  options: OPTIONS,
  arguments: [0, Number.POSITIVE_INFINITY],
  run(invocation) {
    return serve('up', invocation, () => readDomains(invocation.positionals));
  },
};

export const RESTORE_COMMAND: Command = {
  usage: 'FILE',
  summary: 'Starts a simulated Xen host with the domains that "pvnet save" wrote to a file.',
  details: 'Uplinks are not in the file: they belong to the machine. All else is as with "pvnet up".',
  options: OPTIONS,
  arguments: [1, 1],
  run(invocation) {
    return serve('restore', invocation, () => readImage(invocation.positionals[0]));
  },
};
