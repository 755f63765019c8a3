import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseDomain } from '../toolstack/domain-config.js';
import type { Host, HostedDomain } from '../toolstack/host.js';
import { NetworkNamespace, runProgram } from '../uplink/namespace.js';
import { table } from './command.js';
import { tellHandshake } from './handshake-story.js';
import { CliError, defaultControlSocket } from './rpc.js';
import { type RunningHost, startHost } from './up.js';

const TRANSFER = fileURLToPath(new URL('./tcp-transfer.js', import.meta.url));
const TRANSFER_BYTES = 100_000_000;
const TRANSFER_PORT = 5000;
const IPERF_SECONDS = 2;
const PINGS = 20;
const NAMES = ['guest1', 'guest2'] as const;
const ADDRESSES = ['10.0.0.1', '10.0.0.2'] as const;
const ADDRESSES_V6 = ['fd00::1', 'fd00::2'] as const;
const GUEST2 = ADDRESSES[1];

const colour = process.stdout.isTTY && !process.env['NO_COLOR'];
const bold = (text: string): string => (colour ? `\x1b[1m${text}\x1b[0m` : text);
const dim = (text: string): string => (colour ? `\x1b[2m${text}\x1b[0m` : text);
const print = (text = ''): void => void process.stdout.write(`${text}\n`);
const heading = (text: string): void => print(`\n${bold(text)}`);

/** What was measured or checked; one that failed makes the exit status 1. */
class Results {
  private readonly rows: [string, string][] = [];
  failed = 0;

  async check(what: string, run: () => Promise<string>): Promise<void> {
    try {
      const result = await run();
      this.rows.push([what, result]);
      print(`  ✓ ${what}: ${result}`);
    } catch (error) {
      this.failed++;
      this.rows.push([what, 'FAILED']);
      print(`  ✗ ${what}: ${(error as Error).message}`);
    }
  }

  note(what: string, result: string): void {
    this.rows.push([what, result]);
  }

  get table(): string {
    return table(['What', 'Result'], this.rows);
  }
}

/** Why there can be no "netns" guests here, or null. */
async function namespaceProblem(): Promise<string | null> {
  try {
    const namespace = await NetworkNamespace.create();
    try {
      (await namespace.openTap('probe0')).close();
      await namespace.ip('link set lo up');
    } finally {
      await namespace.close();
    }
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

/** The default place for the socket, or one of our own when another host has that. */
async function startWhereFree(onTrace: NonNullable<Parameters<typeof startHost>[0]['host']>): Promise<{
  running: RunningHost;
  cleanUp(): void;
}> {
  try {
    return { running: await startHost({ host: onTrace }), cleanUp: () => {} };
  } catch (error) {
    const { code } = error as CliError;
    if (code !== 'EADDRINUSE' && code !== 'EACCES') throw error;
    const folder = mkdtempSync(join(tmpdir(), 'pvnet-'));
    const cleanUp = (): void => rmSync(folder, { recursive: true, force: true });
    try {
      return {
        running: await startHost({ controlSocket: join(folder, 'control.sock'), host: onTrace }),
        cleanUp,
      };
    } catch (again) {
      cleanUp();
      throw again;
    }
  }
}

/** `npm start`: boots a host with two guests, shows what happens, sends traffic across. @returns exit status */
export async function start(args: readonly string[]): Promise<number> {
  const exit = args.includes('--exit');
  const unknown = args.find(arg => arg !== '--exit');
  if (unknown !== undefined) {
    process.stderr.write(`npm start: "${unknown}" is no option; there is --exit\n`);
    return 2;
  }
  const began = performance.now();
  let telling = true;
  print(bold('pvnet: a simulated Xen host in one process'));
  const problem = await namespaceProblem();
  const kind = problem === null ? 'netns' : 'echo';

  heading('The host boots');
  const { running, cleanUp } = await startWhereFree({
    trace: event => {
      const line = telling ? tellHandshake(event) : null;
      if (line === null) return;
      const ms = (performance.now() - began).toFixed(0).padStart(5);
      const who = line.domid === 0 ? 'domain 0' : (NAMES[line.domid - 1] ?? `domain ${line.domid}`);
      print(`  ${dim(ms)}  ${who.padEnd(8)}  ${line.what.padEnd(50)}  ${dim(line.meaning)}`.trimEnd());
    },
  });
  const { host } = running;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, running.end);
  const results = new Results();
  try {
    print('  domain 0 runs: xenstored, the driver netback, and the bridge xenbr0');
    heading('Two guests connect');
    if (kind === 'netns') {
      print('  Each is a network namespace of this Linux whose only network card is a Xen netfront.');
    } else {
      print(
        '  Each is a tiny built-in IP stack (guest = "echo") on a Xen netfront. Real programs could run in them',
      );
      print(`  with network namespaces, but: ${problem}`);
    }
    print(dim(`  ${'ms'.padStart(5)}  who       what`));
    const connecting = performance.now();
    const guests = await createGuests(host, kind);
    const connected = performance.now() - connecting;
    telling = false;

    heading('Traffic: guest1 → netfront → ring → netback → bridge → netback → ring → netfront → guest2');
    results.note('two guests created and connected', `${connected.toFixed(0)} ms`);
    if (kind === 'netns') await netnsTraffic(host, guests, results);
    else await echoTraffic(guests, results);

    heading('Measured');
    print(indent(results.table));
  } catch (error) {
    results.failed++;
    print(`  ✗ ${(error as Error).message}`);
  }
  if (exit) running.end();
  else showWayOn(running, kind);
  await running.ended;
  cleanUp();
  if (!exit) print('\nEverything is shut down.');
  return results.failed === 0 ? 0 : 1;
}

const indent = (text: string): string => text.replace(/^/gm, '  ');

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

async function echoTraffic([guest1]: HostedDomain[], results: Results): Promise<void> {
  for (const address of [GUEST2, ADDRESSES_V6[1]]) {
    await results.check(`${PINGS} pings to ${address}`, async () => {
      let total = 0;
      for (let i = 0; i < PINGS; i++) total += await guest1.booted!.guest.ping!(address);
      return `all answered, ${(total / PINGS).toFixed(3)} ms on average`;
    });
  }
}

async function netnsTraffic(host: Host, [guest1, guest2]: HostedDomain[], results: Results): Promise<void> {
  const inside = (guest: HostedDomain, argv: string[]): string[] => guest.booted!.guest.command!(argv);

  for (const address of [GUEST2, ADDRESSES_V6[1]]) {
    await results.check(`${PINGS} pings to ${address}`, async () => {
      // The first finds the neighbour, for which IPv6 may take a second after a link has come up.
      await runProgram(inside(guest1, ['ping', '-q', '-c', '1', '-w', '5', address]));
      // -w: waits for late answers too, as a busy machine has them.
      const ping = inside(guest1, ['ping', '-q', '-c', String(PINGS), '-w', '10', '-i', '0.02', address]);
      const { stdout, stderr } = await runProgram(ping);
      const average = /= [\d.]+\/([\d.]+)\//.exec(stdout);
      if (average === null || !stdout.includes(` ${PINGS} received`))
        throw new Error((stdout + stderr).trim());
      return `all answered, ${average[1]} ms on average`;
    });
  }

  await results.check(`TCP, ${TRANSFER_BYTES / 1e6} MB with a checksum`, async () => {
    const server = inside(guest2, [process.execPath, TRANSFER, 'serve', String(TRANSFER_PORT)]);
    const { lines, kill } = await startServer(server, 'listening');
    try {
      const client = [
        process.execPath,
        TRANSFER,
        'send',
        GUEST2,
        String(TRANSFER_PORT),
        String(TRANSFER_BYTES),
      ];
      const { status, stdout, stderr } = await runProgram(inside(guest1, client));
      if (status !== 0) throw new Error(stderr.trim());
      const sent = JSON.parse(stdout);
      const got = JSON.parse((await lines.next()).value ?? '{}');
      if (got.bytes !== TRANSFER_BYTES || got.sha256 !== sent.sha256) {
        throw new Error(`${got.bytes} bytes arrived with the SHA-256 ${got.sha256}; ${sent.sha256} was sent`);
      }
      return `arrived in ${got.seconds.toFixed(2)} s, SHA-256 ${got.sha256.slice(0, 12)}… is the same`;
    } finally {
      kill();
    }
  });

  if ((await runProgram(['sh', '-c', 'command -v iperf3'])).status !== 0) {
    print('  (iperf3 is not installed: no throughput is measured)');
    return;
  }
  const { kill } = await startServer(
    inside(guest2, ['iperf3', '--server', '--forceflush']),
    'Server listening',
  );
  try {
    const runs: [string, string[]][] = [
      ['TCP throughput, guest1 → guest2', []],
      ['TCP throughput, guest2 → guest1', ['--reverse']],
      ['TCP throughput, 4 streams', ['--parallel', '4']],
    ];
    const vif = host.dom0.net.byName(`vif${guest1.domain.domid}.0`)!;
    for (const [what, options] of runs) {
      const { rxBytes, rxPackets } = vif.stats;
      await results.check(what, async () => {
        const client = ['iperf3', '--client', GUEST2, '--time', String(IPERF_SECONDS), '--json', ...options];
        const { stdout, stderr } = await runProgram(inside(guest1, client));
        const report = JSON.parse(stdout || '{}');
        const bits = report.end?.sum_received?.bits_per_second;
        if (bits === undefined) throw new Error(report.error ?? stderr);
        return `${(bits / 1e9).toFixed(2)} Gbit/s`;
      });
      if (options.length === 0) {
        const bytes = (vif.stats.rxBytes - rxBytes) / (vif.stats.rxPackets - rxPackets);
        results.note('  bytes in a packet on the ring, on average', bytes.toFixed(0));
      }
    }
  } finally {
    kill();
  }
}

/** Starts a program and waits for a line of its output that begins so. */
async function startServer(
  argv: string[],
  sign: string,
): Promise<{ lines: AsyncIterator<string>; kill(): void }> {
  const child = spawn(argv[0], argv.slice(1), { stdio: ['ignore', 'pipe', 'ignore'] });
  const failed = new Promise<never>((_, reject) => child.on('error', reject));
  failed.catch(() => {});
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  for (;;) {
    const { value, done } = await Promise.race([lines.next(), failed]);
    if (done) throw new Error(`${argv.at(-1)} ended before it was ready`);
    if (value.startsWith(sign)) return { lines, kill: () => void child.kill() };
  }
}

function showWayOn({ controlSocket, xenstoredSocket }: RunningHost, kind: string): void {
  const socket = controlSocket === defaultControlSocket() ? '' : `PVNET_SOCKET=${controlSocket} `;
  const pvnet = `${socket}npx pvnet`;
  const inGuest = kind === 'netns' ? `exec guest1 -- ping ${GUEST2}` : `ping guest1 ${GUEST2}`;
  heading('The host stays up. In another terminal, from this folder');
  const rows: [string, string][] = [
    [`${pvnet} list`, 'its domains'],
    [`${pvnet} vif-list`, 'their network links'],
    [`${pvnet} ${inGuest}`, 'something from inside a guest'],
    [`XENSTORED_PATH=${xenstoredSocket} xenstore-ls -fp`, 'the live store, by Xen’s own tool'],
  ];
  print(indent(table(['Command', 'Shows'], rows)));
  print('\nCtrl-C shuts everything down.');
}
