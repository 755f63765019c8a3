// Starts and stops the servers that are compared, each pinned to the CPU of the measurement.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from '../../scripts/setup.mjs';

const peer = join(root, 'bench/xenstore/peer');
const here = join(root, 'bench/xenstore');
export const build = join(root, 'dist/bench/xenstore-peer');
const folder = mkdtempSync(join(tmpdir(), 'pvnet-bench-'));

const running = new Set();
let started = 0;
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130));

const commands = {
  pvnet: (socket, args) => [
    process.execPath,
    [join(root, 'dist/src/cli/main.js'), 'xenstored', '--socket', socket, ...args],
  ],
  c: socket => [join(peer, 'run-peer'), ['-f', 'c', socket]],
  ocaml: socket => [join(peer, 'run-peer'), ['-f', 'oxenstored', socket]],
  floor: (socket, args) => [process.execPath, [join(here, 'floor.mjs'), socket, ...args]],
};

/** Compiles the bench client and the peers' stub. @returns why it cannot be done, or undefined */
export function buildPeers() {
  const { status, stderr } = spawnSync('make', ['-s', '-C', peer, `BUILD=${build}`], { encoding: 'utf8' });
  if (status === 0) return undefined;
  return `the peers cannot be built (${(stderr ?? 'no make').trim().split('\n').at(-1)}); as root: bench/xenstore/peer/install`;
}

function answers(path) {
  return new Promise(resolve => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** @returns the running server, or undefined when it does not start */
export async function start(name, cpu, args = []) {
  const socket = join(folder, `${name}-${started++}`);
  const [command, argv] = commands[name](socket, args);
  const child = spawn('taskset', ['-c', String(cpu), command, ...argv], {
    stdio: 'ignore',
    env: { ...process.env, BUILD: build },
  });
  running.add(child);
  for (let i = 0; i < 200; i++) {
    if (existsSync(socket) && (await answers(socket))) return { name, socket, child, pid: child.pid };
    if (child.exitCode !== null) break;
    await new Promise(resolve => setTimeout(resolve, 50));
  }
  stop({ child });
  return undefined;
}

export function stop({ child }) {
  child.kill('SIGKILL');
  running.delete(child);
}

/** Processor seconds that a process has used, by the scheduler's clock (the one in /proc/<pid>/stat ticks). */
export function cpuSeconds(pid) {
  let nanoseconds = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    nanoseconds += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  }
  return nanoseconds / 1e9;
}

/** MB of memory that a process holds. */
export function residentMb(pid) {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;
}

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.ceil((sorted.length - 1) / 2)]) / 2;
}
