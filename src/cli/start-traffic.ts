import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Host, HostedDomain } from '../toolstack/host.js';
import { runProgram } from '../uplink/namespace.js';
import { print, type Results } from './start-report.js';
import type { TransferReport } from './tcp-transfer.js';

const TRANSFER = fileURLToPath(new URL('./tcp-transfer.js', import.meta.url));
const TRANSFER_BYTES = 100_000_000;
const TRANSFER_PORT = 5000;
const IPERF_SECONDS = 2;
const PINGS = 20;
/** The two guests that are always there. */
export const NAMES = ['guest1', 'guest2'] as const;
export const ADDRESSES = ['10.0.0.1', '10.0.0.2'] as const;
export const ADDRESSES_V6 = ['fd00::1', 'fd00::2'] as const;
const GUEST2 = ADDRESSES[1];
const GUEST2_V6 = ADDRESSES_V6[1];

export async function echoTraffic([guest1]: HostedDomain[], results: Results): Promise<void> {
  for (const address of [GUEST2, GUEST2_V6]) {
    await results.check(`${PINGS} pings to ${address}`, async () => {
      let total = 0;
      for (let i = 0; i < PINGS; i++) total += await guest1.booted!.guest.ping!(address);
      return `all answered, ${(total / PINGS).toFixed(3)} ms on average`;
    });
  }
}

export async function netnsTraffic(
  host: Host,
  [guest1, guest2]: HostedDomain[],
  results: Results,
): Promise<void> {
  const { signal } = results;
  if (await isInstalled('ping')) await netnsPings(guest1, results);
  else print('  (ping is not installed: none are sent)');

  await results.check(`TCP, ${TRANSFER_BYTES / 1e6} MB with a checksum`, async () => {
    const { lines, kill } = await startReceiver(guest2, TRANSFER_PORT, signal);
    try {
      const sent = await sendTo(guest1, GUEST2, TRANSFER_PORT, TRANSFER_BYTES, signal);
      const got = JSON.parse((await lines.next()).value ?? '{}') as TransferReport;
      return tellTransfer(got, got.seconds, sent);
    } finally {
      kill();
    }
  });

  if (await isInstalled('iperf3')) await netnsThroughput(host, [guest1, guest2], results);
  else print('  (iperf3 is not installed: no throughput is measured)');
}

async function isInstalled(program: string): Promise<boolean> {
  return (await runProgram(['sh', '-c', `command -v ${program}`])).status === 0;
}

async function netnsPings(guest1: HostedDomain, results: Results): Promise<void> {
  const { signal } = results;
  for (const address of [GUEST2, GUEST2_V6]) {
    await results.check(`${PINGS} pings to ${address}`, async () => {
      // The first finds the neighbour, for which IPv6 may take a second after a link has come up.
      await runProgram(inside(guest1, ['ping', '-q', '-c', '1', '-w', '5', address]), '', signal);
      // -w: waits for late answers too, as a busy machine has them.
      const ping = inside(guest1, ['ping', '-q', '-c', String(PINGS), '-w', '10', '-i', '0.02', address]);
      const { stdout, stderr } = await runProgram(ping, '', signal);
      const average = /= [\d.]+\/([\d.]+)\//.exec(stdout);
      if (average === null || !stdout.includes(` ${PINGS} received`))
        throw new Error((stdout + stderr).trim());
      return `all answered, ${average[1]} ms on average`;
    });
  }
}

async function netnsThroughput(
  host: Host,
  [guest1, guest2]: HostedDomain[],
  results: Results,
): Promise<void> {
  const { signal } = results;
  const { kill } = await startServer(
    inside(guest2, ['iperf3', '--server', '--forceflush']),
    'Server listening',
    signal,
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
        const { stdout, stderr } = await runProgram(inside(guest1, client), '', signal);
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
  signal: AbortSignal,
): Promise<{ lines: AsyncIterator<string>; kill(): void }> {
  const child = spawn(argv[0], argv.slice(1), { stdio: ['ignore', 'pipe', 'ignore'], signal });
  const failed = new Promise<never>((_, reject) => child.on('error', reject));
  failed.catch(() => {});
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  for (;;) {
    const { value, done } = await Promise.race([lines.next(), failed]);
    if (done) throw new Error(`${argv.at(-1)} ended before it was ready`);
    if (value.startsWith(sign)) return { lines, kill: () => void child.kill() };
  }
}

/** What runs a program inside a guest of kind "netns". */
function inside(guest: HostedDomain, argv: string[]): string[] {
  return guest.booted!.guest.command!(argv);
}

/** Waits for one TCP connection in a guest of kind "netns"; then `lines` has a `TransferReport`. */
export function startReceiver(
  guest: HostedDomain,
  port: number,
  signal: AbortSignal,
): Promise<{ lines: AsyncIterator<string>; kill(): void }> {
  return startServer(inside(guest, [process.execPath, TRANSFER, 'serve', String(port)]), 'listening', signal);
}

/** Sends from a guest of kind "netns". */
export async function sendTo(
  guest: HostedDomain,
  address: string,
  port: number,
  bytes: number,
  signal: AbortSignal,
): Promise<TransferReport> {
  const client = [process.execPath, TRANSFER, 'send', address, String(port), String(bytes)];
  const { status, stdout, stderr } = await runProgram(inside(guest, client), '', signal);
  if (status !== 0) throw new Error(stderr.trim());
  return JSON.parse(stdout) as TransferReport;
}

/** @throws Error when not all arrived as it was sent */
export function tellTransfer(
  got: Pick<TransferReport, 'bytes' | 'sha256'>,
  seconds: number,
  sent: Pick<TransferReport, 'bytes' | 'sha256'>,
): string {
  if (got.bytes !== sent.bytes || got.sha256 !== sent.sha256) {
    throw new Error(
      `${got.bytes} bytes arrived with the SHA-256 ${got.sha256}; ${sent.bytes} with ${sent.sha256} were sent`,
    );
  }
  return `arrived in ${seconds.toFixed(2)} s, SHA-256 ${got.sha256.slice(0, 12)}… is the same`;
}
