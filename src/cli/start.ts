import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseDomain } from '../toolstack/domain-config.js';
import type { Host, HostedDomain } from '../toolstack/host.js';
import { namespaceObstacle } from '../uplink/namespace.js';
import { endWithOutput, table } from './command.js';
import { tellHandshake } from './handshake-story.js';
import { CliError, defaultControlSocket } from './rpc.js';
import { joinLinux, LINUX_NAME, linuxIsReady, linuxTraffic, prepareLinux } from './start-linux.js';
import { bold, dim, heading, indent, print, Results } from './start-report.js';
import { ADDRESSES, ADDRESSES_V6, echoTraffic, NAMES, netnsTraffic } from './start-traffic.js';
import { type RunningHost, startHost } from './up.js';

export interface StartOptions {
  /** End after the traffic; otherwise on Ctrl-C. */
  exit: boolean;
  /** With a Linux guest, where that can be had. */
  linux: boolean;
}

/** The default place for the socket, or one of our own when another host has that. */
async function startWhereFree(
  host: NonNullable<Parameters<typeof startHost>[0]['host']>,
): Promise<RunningHost> {
  try {
    return await startHost({ host });
  } catch (error) {
    const { code } = error as CliError;
    if (code !== 'EADDRINUSE' && code !== 'EACCES') throw error;
    const folder = mkdtempSync(join(tmpdir(), 'pvnet-'));
    process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
    return await startHost({ controlSocket: join(folder, 'control.sock'), host });
  }
}

/**
 * `npm start`: boots a host with two guests and, where it can be had, a real Linux kernel; shows what happens, and
 * sends traffic across.
 * @returns exit status
 */
export async function start({ exit, linux: wantLinux }: StartOptions): Promise<number> {
  const began = performance.now();
  endWithOutput();
  print(bold('pvnet: a simulated Xen host in one process'));
  const problem = await namespaceObstacle();

  heading('The host boots');
  const story = { told: true };
  const running = await startWhereFree({
    trace: event => {
      const line = story.told ? tellHandshake(event) : null;
      if (line === null) return;
      const ms = (performance.now() - began).toFixed(0).padStart(5);
      const who = line.domid === 0 ? 'domain 0' : NAMES[line.domid - 1];
      print(`  ${dim(ms)}  ${who.padEnd(8)}  ${line.what.padEnd(50)}  ${dim(line.meaning)}`.trimEnd());
    },
  });
  const interruption = new AbortController();
  const { signal } = interruption;
  const interrupt = (): void => {
    interruption.abort();
    running.end();
  };
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, interrupt);
  const interrupted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  });
  const results = new Results(signal);
  try {
    await Promise.race([
      demonstrate(running.host, problem, { began, story, wantLinux, results }),
      interrupted,
    ]);
  } catch (error) {
    if (!signal.aborted) {
      results.failed++;
      print(`  ✗ ${(error as Error).message}`);
    }
  }
  if (exit) running.end();
  else if (!signal.aborted) showWayOn(running, problem === null);
  await running.ended;
  if (!exit) print('\nEverything is shut down.');
  return results.failed === 0 ? 0 : 1;
}

interface Demonstration {
  /** When it all began, by performance.now(). */
  began: number;
  /** Whether the steps of handshakes are printed. */
  story: { told: boolean };
  wantLinux: boolean;
  results: Results;
}

/** @param problem why there can be no "netns" guests, or null */
async function demonstrate(
  host: Host,
  problem: string | null,
  { began, story, wantLinux, results }: Demonstration,
): Promise<void> {
  print('  domain 0 runs: xenstored, the driver netback, and the bridge xenbr0');
  heading('Two guests connect');
  if (problem === null) {
    print('  Each is a network namespace of this Linux whose only network card is a Xen netfront.');
  } else {
    print(
      '  Each is a tiny built-in IP stack (guest = "echo") on a Xen netfront. Real programs could run in them',
    );
    print(`  with network namespaces, but: ${problem}`);
  }
  print(dim(`  ${'ms'.padStart(5)}  who       what`));
  const guests = await createGuests(host, problem === null ? 'netns' : 'echo');
  results.note('two guests connected', `${since(began)} after the start`);
  const join = async (): Promise<HostedDomain> => {
    const joining = performance.now();
    const joined = await joinLinux(host);
    results.note('the Linux guest connected', `in ${since(joining)}, ${since(began)} after the start`);
    return joined;
  };
  let linux = wantLinux && linuxIsReady() ? await join() : null;
  story.told = false;

  heading('Traffic: guest1 → netfront → ring → netback → bridge → netback → ring → netfront → guest2');
  if (problem === null) await netnsTraffic(host, guests, results);
  else await echoTraffic(guests, results);

  if (wantLinux && linux === null && (await prepareLinux(results.signal))) linux = await join();
  if (linux !== null) await linuxTraffic(linux, guests[0], results);

  heading('Measured');
  print(indent(results.table));
}

const since = (start: number): string => `${((performance.now() - start) / 1000).toFixed(2)} s`;

async function createGuests(host: Host, kind: string): Promise<HostedDomain[]> {
  const guests: HostedDomain[] = [];
  for (const [i, name] of NAMES.entries()) {
    const text = `name = "${name}"\nguest = "${kind}"\nvif = [ 'bridge=xenbr0,ip=${ADDRESSES[i]}/24 ${ADDRESSES_V6[i]}/64' ]\n`;
    guests.push(await host.create(parseDomain(text, `${name}.cfg`)));
  }
  for (const guest of guests) {
    const [left] = await host.settled(guest);
    if (left !== undefined) {
      throw new CliError(
        'ETIMEDOUT',
        `${guest.config.name} did not connect: ${host.waitingFor(guest, left)}`,
      );
    }
  }
  return guests;
}

function showWayOn({ host, controlSocket, xenstoredSocket }: RunningHost, hasNamespaces: boolean): void {
  const socket = controlSocket === defaultControlSocket() ? '' : `PVNET_SOCKET=${controlSocket} `;
  const pvnet = `${socket}npx pvnet`;
  const hasLinux = [...host.domains].some(({ config }) => config.name === LINUX_NAME);
  const inGuest = hasNamespaces ? `exec guest1 -- ping ${ADDRESSES[1]}` : `ping guest1 ${ADDRESSES[1]}`;
  heading('The host stays up. In another terminal, from this folder');
  const rows: [string, string][] = [
    [`${pvnet} list`, 'its domains'],
    [`${pvnet} vif-list`, 'their network links'],
    [`${pvnet} ${inGuest}`, 'something from inside a guest'],
    ...(hasLinux
      ? [[`${pvnet} console ${LINUX_NAME}`, 'Linux’s own shell; Ctrl-] leaves'] as [string, string]]
      : []),
    [`XENSTORED_PATH=${xenstoredSocket} xenstore-ls -fp`, 'the live store, by Xen’s own tool'],
  ];
  print(indent(table(['Command', 'Shows'], rows)));
  print('\nCtrl-C shuts everything down.');
}
