import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Host, type HostedDomain, parseDomain } from '../src/toolstack/index.js';
import { NetworkNamespace, type Outcome, runProgram } from '../src/uplink/index.js';
import { cpuSeconds } from './host.js';

export const ADDRESSES = ['10.77.0.1', '10.77.0.2'] as const;
export const NETWORK = '10.77.0.0/24';
/** Fields 14 and 15 of /proc/PID/stat are in ticks. */
const TICKS_PER_SECOND = 100;
const START_TIMEOUT_MS = 10_000;
const OVS_SCHEMA = '/usr/share/openvswitch/vswitch.ovsschema';

/** Two ends that reach each other, each with an eth0. */
export interface Link {
  /** What runs `argv` at an end. */
  command(end: 0 | 1, argv: readonly string[]): string[];
  /** CPU time that whatever forwards has taken. */
  cpuSeconds(): number;
  close(): Promise<void>;
}

type Ends = readonly [NetworkNamespace, NetworkNamespace];

/** Runs a program to its end. @throws Error with what it said, when it failed */
export async function must(argv: readonly string[]): Promise<Outcome> {
  const outcome = await runProgram(argv);
  if (outcome.status !== 0) throw new Error(`${argv.join(' ')}: ${outcome.stderr || outcome.stdout}`);
  return outcome;
}

async function namespaces(): Promise<Ends> {
  return [await NetworkNamespace.create(), await NetworkNamespace.create()];
}

async function configure(ends: Ends): Promise<void> {
  // What IPv6 sends when only one end is up ends some forwarders.
  const withoutIpv6 = 'echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6';
  for (const end of ends) await must(end.command(['sh', '-c', withoutIpv6]));
  for (const [i, end] of ends.entries()) {
    await end.ip(`addr add ${ADDRESSES[i]}/24 dev eth0`, 'link set eth0 up');
  }
}

/** A pair of the kernel's own: nothing forwards. */
export async function vethLink(): Promise<Link> {
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

/** Starts a program that ends with us, however we end. */
function start(argv: readonly string[]): ChildProcessWithoutNullStreams {
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', ...argv]);
  child.stderr.pipe(process.stderr);
  return child;
}

async function stop(child: ChildProcessWithoutNullStreams): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}

/** Waits until `condition` holds. @throws Error when that takes too long or a program ended */
async function until(
  what: string,
  condition: () => Promise<boolean> | boolean,
  programs: readonly ChildProcessWithoutNullStreams[],
): Promise<void> {
  const deadline = performance.now() + START_TIMEOUT_MS;
  while (!(await condition())) {
    for (const { exitCode, spawnargs } of programs) {
      if (exitCode !== null) throw new Error(`${spawnargs.join(' ')} ended with status ${exitCode}`);
    }
    if (performance.now() > deadline) throw new Error(`${what}: nothing for ${START_TIMEOUT_MS} ms`);
    await delay(10);
  }
}

/** bench/c/tapfwd.c, compiled to `program`. */
export async function tapfwdLink(program: string): Promise<Link> {
  const ends = await namespaces();
  const forwarder = start([program, ...ends.map(end => String(end.pid))]);
  let ready = false;
  forwarder.stdout.once('data', () => {
    ready = true;
  });
  await until(program, () => ready, [forwarder]);
  await configure(ends);
  return linkOf(ends, [forwarder], []);
}

function linkOf(
  ends: Ends,
  programs: readonly ChildProcessWithoutNullStreams[],
  cleanUps: readonly (() => Promise<void> | void)[],
): Link {
  return {
    command: (end, argv) => ends[end].command(argv),
    cpuSeconds: () => programs.reduce((sum, { pid }) => sum + processCpuSeconds(pid!), 0),
    async close() {
      for (const program of programs) await stop(program);
      for (const cleanUp of cleanUps) await cleanUp();
      for (const end of ends) await end.close();
    },
  };
}

/**
 * A program that makes two TAPs itself and forwards between them. It runs in a network namespace of its own, and
 * its TAPs go to the ends.
 * @param run starts the programs, given what starts one inside, the names of the TAPs, and a folder of their own
 */
async function switchLink(
  run: (
    inside: (argv: readonly string[]) => ChildProcessWithoutNullStreams,
    taps: readonly [string, string],
    folder: string,
    programs: ChildProcessWithoutNullStreams[],
  ) => Promise<void> | void,
): Promise<Link> {
  const ends = await namespaces();
  const middle = await NetworkNamespace.create();
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-bench-'));
  const programs: ChildProcessWithoutNullStreams[] = [];
  const inside = (argv: readonly string[]): ChildProcessWithoutNullStreams => {
    const program = start(middle.command(argv, folder));
    programs.push(program);
    return program;
  };
  const taps = ['tap0', 'tap1'] as const;
  await run(inside, taps, folder, programs);
  const made = async (): Promise<boolean> => {
    const { stdout } = await middle.run(['ip', '-o', 'link']);
    return taps.every(tap => stdout.includes(`: ${tap}: `));
  };
  await until('TAPs of a switch', made, programs);
  for (const [i, end] of ends.entries()) await middle.ip(`link set ${taps[i]} netns ${end.pid} name eth0`);
  await configure(ends);
  return linkOf(ends, programs, [
    () => middle.close(),
    () => rmSync(folder, { recursive: true, force: true }),
  ]);
}

export function vdeLink(): Promise<Link> {
  return switchLink((inside, taps, folder) => {
    inside(['vde_switch', '--sock', join(folder, 'switch'), '--tap', taps[0], '--tap', taps[1]]);
  });
}

export function socatLink(): Promise<Link> {
  return switchLink((inside, taps) => {
    inside(['socat', ...taps.map(tap => `TUN,tun-type=tap,iff-no-pi,tun-name=${tap}`)]);
  });
}

/** Open vSwitch's datapath in user space, with a database of its own. */
export function ovsLink(): Promise<Link> {
  return switchLink(async (inside, taps, folder, programs) => {
    for (const name of ['RUNDIR', 'LOGDIR', 'DBDIR', 'SYSCONFDIR']) process.env[`OVS_${name}`] = folder;
    const database = join(folder, 'conf.db');
    const socket = join(folder, 'db.sock');
    const quiet = '-vconsole:off';
    await must(['ovsdb-tool', 'create', database, OVS_SCHEMA]);
    inside([
      'ovsdb-server',
      database,
      `--remote=punix:${socket}`,
      `--unixctl=${join(folder, 'db.ctl')}`,
      quiet,
    ]);
    await until('ovsdb-server', () => existsSync(socket), programs);
    inside(['ovs-vswitchd', `unix:${socket}`, `--unixctl=${join(folder, 'switch.ctl')}`, quiet]);
    const ports = taps.flatMap(tap => [
      '--',
      'add-port',
      'br0',
      tap,
      '--',
      'set',
      'interface',
      tap,
      'type=internal',
    ]);
    const bridge = ['add-br', 'br0', '--', 'set', 'bridge', 'br0', 'datapath_type=netdev'];
    await must(['ovs-vsctl', `--db=unix:${socket}`, '--timeout=10', ...bridge, ...ports]);
  });
}

/** A simulated host with two guests. */
export async function pvnetLink(): Promise<Link> {
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
    cpuSeconds,
    close: () => host.close(),
  };
}
