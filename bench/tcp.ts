/**
 * TCP between two network namespaces, and pings as fast as they are answered: by a veth pair, by bench/c/tapfwd.c, by
 * a switch in user space, or by a simulated host (TAP → netfront → ring → netback → bridge → netback → ring →
 * netfront → TAP). One contender a run.
 *
 * Usage: node dist/bench/tcp.js veth|tapfwd|vde|ovs|socat|pvnet SECONDS [--no-tso] [--no-ping] [--ends=CPU]
 *   [--tapfwd=PROGRAM]
 * Prints one line of JSON. Whatever forwards runs on the CPU that this program is pinned to (taskset), the ends of
 * the connection on another, by default the next one; without a forwarder they have a CPU each.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  ADDRESSES,
  type Link,
  must,
  NETWORK,
  ovsLink,
  pvnetLink,
  socatLink,
  tapfwdLink,
  vdeLink,
  vethLink,
} from './links.js';

const PINGS = 5000;
/** What goes through before anything is measured: a forwarder in JavaScript is compiled while it runs. */
const WARM_UP_BYTES = '100M';
const WARM_UP_PINGS = 20_000;
/**
 * Linux's own choice; with one that paces (BBR) the connection's timers are measured, not the forwarder. It is the
 * route's: iperf3 changes its connection's only once that has begun, and what has begun to pace does not stop.
 */
const CONGESTION_CONTROL = 'cubic';
const LISTENING_TIMEOUT_MS = 3000;

function pinned(cpu: number, argv: readonly string[]): string[] {
  return ['taskset', '-c', String(cpu), ...argv];
}

async function listening(link: Link): Promise<void> {
  const deadline = performance.now() + LISTENING_TIMEOUT_MS;
  while (performance.now() < deadline) {
    const { stdout } = await must(link.command(1, ['cat', '/proc/net/tcp', '/proc/net/tcp6']));
    if (/:1451 [0:]+ 0A /.test(stdout)) return;
    await delay(10);
  }
  throw new Error('iperf3 -s does not listen');
}

/** One TCP stream from end 0 to end 1. @param until how iperf3 is told when to stop */
async function transfer(link: Link, until: readonly string[], forwarded: boolean) {
  const server = spawn(
    'taskset',
    pinned(forwarded ? endsCpu : ownCpu(), link.command(1, ['iperf3', '-s', '-1'])).slice(1),
  );
  const ended = once(server, 'exit');
  await listening(link);
  const before = link.cpuSeconds();
  const argv = ['iperf3', '-J', '-c', ADDRESSES[1], ...until];
  const { stdout } = await must(pinned(endsCpu, link.command(0, argv)));
  const cpuSeconds = link.cpuSeconds() - before;
  await ended;
  const { end } = JSON.parse(stdout);
  if (end.sender_tcp_congestion !== CONGESTION_CONTROL)
    throw new Error(`TCP went by ${end.sender_tcp_congestion}`);
  return { bytes: end.sum_received.bytes, seconds: end.sum_received.seconds, cpuSeconds };
}

/**
 * Pings, each sent when the one before was answered. What ping says of each goes to a file: whoever read it meanwhile
 * would take the processor from what forwards.
 * @returns the median, in microseconds
 */
async function ping(link: Link, count: number): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-bench-'));
  const file = join(folder, 'pings');
  const argv = ['sh', '-c', `exec ping -A -c ${count} ${ADDRESSES[1]} > ${file}`];
  await must(pinned(endsCpu, link.command(0, argv)));
  const times = [...readFileSync(file, 'utf8').matchAll(/ time=([\d.]+) ms/g)].map(
    match => Number(match[1]) * 1000,
  );
  rmSync(folder, { recursive: true });
  return times.sort((a, b) => a - b)[times.length >> 1];
}

/** The first CPU that this process may use. */
function ownCpu(): number {
  return Number(/^Cpus_allowed_list:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
}

const [kind, seconds] = process.argv.slice(2);
const option = (name: string) =>
  process.argv.find(arg => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
const endsCpu = Number(option('ends') ?? (ownCpu() + 1) % cpus().length);
const program = option('tapfwd') ?? '';
const makers: Record<string, () => Promise<Link>> = {
  veth: vethLink,
  tapfwd: () => tapfwdLink(program),
  vde: vdeLink,
  ovs: ovsLink,
  socat: socatLink,
  pvnet: pvnetLink,
};
if (makers[kind] === undefined || !(Number(seconds) > 0)) {
  const kinds = Object.keys(makers).join('|');
  console.error(`usage: tcp.js ${kinds} SECONDS [--no-tso] [--no-ping] [--ends=CPU] [--tapfwd=PROGRAM]`);
  process.exit(1);
}
const link = await makers[kind]();
for (const end of [0, 1] as const) {
  const route = [NETWORK, 'dev', 'eth0', 'congctl', CONGESTION_CONTROL];
  await must(link.command(end, ['ip', 'route', 'change', ...route]));
}
if (process.argv.includes('--no-tso')) {
  for (const end of [0, 1] as const) {
    await must(link.command(end, ['ethtool', '-K', 'eth0', 'tso', 'off', 'gso', 'off']));
  }
}
const forwarded = kind !== 'veth';
await transfer(link, ['-n', WARM_UP_BYTES], forwarded);
let pingUs = 0;
if (!process.argv.includes('--no-ping')) {
  await ping(link, WARM_UP_PINGS);
  pingUs = await ping(link, PINGS);
}
const result = await transfer(link, ['-t', seconds], forwarded);
console.log(JSON.stringify({ ...result, pingUs }));
await link.close();
process.exit(0);
