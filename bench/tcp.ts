/**
 * TCP between two network namespaces, and flood ping: by a veth pair, by bench/c/tapfwd.c, or by a simulated host
 * (TAP → netfront → ring → netback → bridge → netback → ring → netfront → TAP). One contender a run.
 *
 * Usage: node dist/bench/tcp.js veth|tapfwd|pvnet SECONDS [--no-tso] [--tapfwd=PROGRAM]
 * Prints one line of JSON. Whatever forwards runs on the CPU that this program is pinned to (taskset), the ends of
 * the connection on the next one; without a forwarder they have a CPU each.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { Host, type HostedDomain, parseDomain } from '../src/toolstack/index.js';
import { NetworkNamespace, type Outcome, runProgram } from '../src/uplink/index.js';

const ADDRESSES = ['10.77.0.1', '10.77.0.2'] as const;
const PINGS = 5000;
/** What goes through before anything is measured: a forwarder in JavaScript is compiled while it runs. */
const WARM_UP_BYTES = '100M';
/** Fields 14 and 15 of /proc/PID/stat are in ticks. */
const TICKS_PER_SECOND = 100;
const LISTENING_TIMEOUT_MS = 3000;

/** Two ends that reach each other. */
interface Link {
  /** What runs `argv` at an end. */
  command(end: 0 | 1, argv: readonly string[]): string[];
  /** CPU time that whatever forwards has taken. */
  cpuSeconds(): number;
  close(): Promise<void>;
}

async function namespaces(): Promise<[NetworkNamespace, NetworkNamespace]> {
  return [await NetworkNamespace.create(), await NetworkNamespace.create()];
}

async function configure(ends: readonly NetworkNamespace[]): Promise<void> {
  for (const [i, end] of ends.entries()) {
    await end.ip(`addr add ${ADDRESSES[i]}/24 dev eth0`, 'link set eth0 up');
  }
}

async function vethLink(): Promise<Link> {
  const ends = await namespaces();
  const [a, b] = ends;
  await a.ip(`link add eth0 type veth peer name eth0 netns ${b.pid}`);
  await configure(ends);
  return {
    command: (end, argv) => ends[end].command(argv),
    cpuSeconds: () => 0,
    close: async () => {
      for (const end of ends) await end.close();
    },
  };
}

function processCpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

async function tapfwdLink(program: string): Promise<Link> {
  const ends = await namespaces();
  const forwarder: ChildProcessWithoutNullStreams = spawn(
    program,
    ends.map(end => String(end.pid)),
  );
  forwarder.stderr.pipe(process.stderr);
  await Promise.race([
    once(forwarder.stdout, 'data'),
    once(forwarder, 'exit').then(() => {
      throw new Error(`${program} ended`);
    }),
  ]);
  await configure(ends);
  return {
    command: (end, argv) => ends[end].command(argv),
    cpuSeconds: () => processCpuSeconds(forwarder.pid!),
    async close() {
      const exited = once(forwarder, 'exit');
      forwarder.kill();
      await exited;
      for (const end of ends) await end.close();
    },
  };
}

async function pvnetLink(): Promise<Link> {
  const host = await Host.start();
  const guests: HostedDomain[] = [];
  for (const [i, name] of ['a', 'b'].entries()) {
    const file = `${name}.cfg`;
    const text = `name = "${name}"\nguest = "netns"\nvif = [ 'ip=${ADDRESSES[i]}/24' ]\n`;
    const hosted = await host.create(parseDomain(text, file));
    await host.settled(hosted);
    guests.push(hosted);
  }
  return {
    command: (end, argv) => guests[end].booted!.guest.command!(argv),
    cpuSeconds() {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1e6;
    },
    close: () => host.close(),
  };
}

function pinned(cpu: number, argv: readonly string[]): string[] {
  return ['taskset', '-c', String(cpu), ...argv];
}

async function must(argv: readonly string[]): Promise<Outcome> {
  const outcome = await runProgram(argv);
  if (outcome.status !== 0) throw new Error(`${argv.join(' ')}: ${outcome.stderr || outcome.stdout}`);
  return outcome;
}

async function listening(link: Link): Promise<void> {
  const deadline = performance.now() + LISTENING_TIMEOUT_MS;
  while (performance.now() < deadline) {
    const { stdout } = await must(link.command(1, ['cat', '/proc/net/tcp', '/proc/net/tcp6']));
    if (/:1451 [0:]+ 0A /.test(stdout)) return;
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
  return { bytes: end.sum_received.bytes, seconds: end.sum_received.seconds, cpuSeconds };
}

async function floodPing(link: Link): Promise<number> {
  const argv = ['ping', '-f', '-q', '-c', String(PINGS), ADDRESSES[1]];
  const { stdout } = await must(pinned(endsCpu, link.command(0, argv)));
  return Number(/= [\d.]+\/([\d.]+)\//.exec(stdout)?.[1]) * 1000;
}

/** The first CPU that this process may use. */
function ownCpu(): number {
  return Number(/^Cpus_allowed_list:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
}

const [kind, seconds] = process.argv.slice(2);
const endsCpu = (ownCpu() + 1) % cpus().length;
const program = process.argv.find(arg => arg.startsWith('--tapfwd='))?.slice('--tapfwd='.length) ?? '';
const makers: Record<string, () => Promise<Link>> = {
  veth: vethLink,
  tapfwd: () => tapfwdLink(program),
  pvnet: pvnetLink,
};
if (makers[kind] === undefined || !(Number(seconds) > 0)) {
  console.error('usage: tcp.js veth|tapfwd|pvnet SECONDS [--no-tso] [--tapfwd=PROGRAM]');
  process.exit(1);
}
const link = await makers[kind]();
if (process.argv.includes('--no-tso')) {
  for (const end of [0, 1] as const) {
    await must(link.command(end, ['ethtool', '-K', 'eth0', 'tso', 'off', 'gso', 'off']));
  }
}
const forwarded = kind !== 'veth';
await transfer(link, ['-n', WARM_UP_BYTES], forwarded);
await floodPing(link);
const pingUs = await floodPing(link);
const result = await transfer(link, ['-t', seconds], forwarded);
console.log(JSON.stringify({ ...result, pingUs }));
await link.close();
process.exit(0);
