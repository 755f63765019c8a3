// npm run bench [-- NAME…] [--json] [--rounds N] [--cpu N]: compiles, then runs the contenders of each benchmark in
// turn, round after round, pinned to one CPU, and prints medians of the ratios within a round.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, constants, cpus, loadavg, release } from 'node:os';
import { join } from 'node:path';
import { commandLine, wholeNumber } from '../scripts/arguments.mjs';
import { installTools, root, setUp } from '../scripts/setup.mjs';
import { CPU_OPTION, cpuOf, nextCpu } from './cpu.mjs';

const SIZES = [64, 1500, 4096, 65535];
/** The longest frame that has no packet: a page. */
const XDP_MAX = 4096;
const RING_MS = 250;
const TCP_SECONDS = 3;
const VIFS = [1, 10, 100, 1000];
const SCALE_MS = 500;
const built = join(root, 'dist/bench/c');

function fail(message) {
  console.error(`bench: ${message}`);
  process.exit(1);
}

/** Compiles a C program of bench/c when it is newer than what is there. @returns its path */
function compile(name) {
  const source = join(root, `bench/c/${name}.c`);
  const program = join(built, name);
  if (!existsSync(program) || statSync(program).mtimeMs < statSync(source).mtimeMs) {
    mkdirSync(built, { recursive: true });
    const { status, error } = spawnSync('cc', ['-O2', '-Wall', '-o', program, source], { stdio: 'inherit' });
    if (error) fail(`no C compiler: ${error.message} (Debian's package gcc)`);
    if (status !== 0) rmSync(program, { force: true });
    if (status !== 0) fail(`${source} does not compile`);
  }
  return program;
}

/** Runs a contender, pinned, to its end. @returns what it printed as JSON */
function measure(argv) {
  const command = ['taskset', '-c', String(cpu), ...argv];
  const { status, stdout, error } = spawnSync(command[0], command.slice(1), {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (error) fail(`${command[0]}: ${error.message}`);
  if (status !== 0) fail(`"${command.join(' ')}" ended with status ${status}`);
  return JSON.parse(stdout);
}

/**
 * Other processes get what is left: as root, where the kernel groups the processes of a session, and undone when this
 * process ends.
 */
function takePrecedence() {
  const group = '/proc/self/autogroup';
  try {
    const [before] = /-?\d+$/.exec(readFileSync(group, 'utf8').trim());
    writeFileSync(group, String(constants.priority.PRIORITY_HIGHEST));
    process.on('exit', () => writeFileSync(group, before));
  } catch {
    // Another user, or no such groups: the machine had better be idle.
  }
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

const fixed =
  (digits, unit = '') =>
  value =>
    `${value.toFixed(digits)}${unit}`;
const node = process.execPath;
const coreMicroseconds = ({ cpuSeconds, packets }) => (cpuSeconds / packets) * 1e6;

/**
 * The ring benchmarks: work done per second of CPU time, so that a busy machine disturbs them less. `pvnet` sends packets
 * through the guests' network stacks, `pvnet-xdp` frames of up to a page between their XDP programs; the rest of the way is
 * the same.
 */
function ring(title, flags) {
  return SIZES.map(size => ({
    title: `${title} ${size} B`,
    contenders: {
      c: () => measure([compile('ring'), String(size), String(RING_MS), ...flags]),
      pvnet: () => ringRun(size, RING_MS, flags),
      ...(size <= XDP_MAX ? { 'pvnet-xdp': () => ringRun(size, RING_MS, [...flags, '--xdp']) } : {}),
    },
    values: {
      'Mpackets/s': { of: run => run.packets / run.cpuSeconds / 1e6, show: fixed(2) },
      'GB/s': { of: run => run.bytes / run.cpuSeconds / 1e9, show: fixed(2) },
      'GC/Mpacket': { of: run => ((run.collections ?? 0) / run.packets) * 1e6, show: fixed(1) },
      'core-µs/packet': { of: coreMicroseconds, show: fixed(3) },
    },
    comparisons: (size <= XDP_MAX ? ['pvnet', 'pvnet-xdp'] : ['pvnet']).map(who => ({
      name: 'packets per core-second',
      who,
      against: 'c',
      of: run => run.packets / run.cpuSeconds,
    })),
  }));
}

function ringRun(size, ms, flags = []) {
  return measure([node, join(root, 'dist/bench/ring.js'), String(size), String(ms), ...flags]);
}

/** One run of bench/tcp.ts. */
function tcpRun(kind, flags) {
  return measure([
    node,
    join(root, 'dist/bench/tcp.js'),
    kind,
    String(TCP_SECONDS),
    `--ends=${nextCpu(cpu)}`,
    ...flags,
  ]);
}

const TCP_VALUES = {
  'Gbit/s': { of: run => (run.bytes * 8) / run.seconds / 1e9, show: fixed(2) },
  'core-s/GB': { of: run => run.cpuSeconds / (run.bytes / 1e9), show: fixed(3) },
};
const throughput = run => run.bytes / run.seconds;

/** What 10⁷ packets leave to collect. */
function alloc() {
  const flags = ['--packets', '10000000'];
  return [
    {
      title: 'ring, allocation',
      contenders: {
        pvnet: () => ringRun(64, 100, flags),
        'pvnet-xdp': () => ringRun(64, 100, [...flags, '--xdp']),
      },
      values: {
        Mpackets: { of: run => run.packets / 1e6, show: fixed(2) },
        collections: { of: run => run.collections, show: fixed(0) },
        'bytes/packet': { of: run => run.allocated / run.packets, show: fixed(2) },
      },
      comparisons: [],
    },
  ];
}

function tcp(title, flags) {
  return [
    {
      title,
      contenders: {
        veth: () => tcpRun('veth', flags),
        tapfwd: () => tcpRun('tapfwd', [...flags, `--tapfwd=${compile('tapfwd')}`]),
        pvnet: () => tcpRun('pvnet', flags),
      },
      values: { ...TCP_VALUES, 'ping µs': { of: run => run.pingUs, show: fixed(1) } },
      comparisons: [
        { name: 'throughput', against: 'tapfwd', of: throughput },
        { name: 'throughput', against: 'veth', of: throughput },
        { name: 'CPU time per byte', against: 'tapfwd', of: run => run.cpuSeconds / run.bytes },
        { name: 'ping', against: 'tapfwd', of: run => run.pingUs },
      ],
    },
  ];
}

/** What is left of one vif's throughput, and what each of many takes. */
function scale() {
  const name = vifs => `${vifs} vif${vifs === 1 ? '' : 's'}`;
  const run = vifs =>
    measure([node, '--expose-gc', join(root, 'dist/bench/scale.js'), String(vifs), String(SCALE_MS)]);
  const kib = ({ heap, buffers, pages }) => heap + buffers + pages;
  return [
    {
      title: 'vifs on one bridge',
      contenders: Object.fromEntries(VIFS.map(vifs => [name(vifs), () => run(vifs)])),
      values: {
        'core-µs/packet': { of: ({ one }) => coreMicroseconds(one), show: fixed(3) },
        'all send': { of: ({ all }) => coreMicroseconds(all), show: fixed(3) },
        'core-ms/connect': {
          of: ({ connect, vifs }) => (connect.cpuSeconds / vifs) * 1e3,
          show: fixed(2),
        },
        's for all': { of: ({ connect }) => connect.seconds, show: fixed(2) },
        'KiB/vif': { of: ({ vifKib }) => kib(vifKib), show: fixed(0) },
        'KiB/kernel': { of: ({ domainKib }) => kib(domainKib), show: fixed(0) },
        'tasks/idle s': { of: ({ idle }) => idle.tasks + idle.timers, show: fixed(0) },
        'core-ms/idle s': { of: ({ idle }) => idle.cpuSeconds * 1e3, show: fixed(2) },
      },
      comparisons: ['one', 'all'].flatMap(senders =>
        VIFS.slice(1).map(vifs => ({
          name: `throughput, ${senders === 'one' ? 'one sends' : 'all send'}`,
          who: name(vifs),
          against: name(1),
          of: run => 1 / coreMicroseconds(run[senders]),
        })),
      ),
    },
    cachesInC(),
  ];
}

/** What caches alone make of many vifs: the ring benchmark's C with so many pairs of guests that send in turn. */
function cachesInC() {
  const name = pairs => `${pairs} pair${pairs === 1 ? '' : 's'}`;
  const run = pairs => measure([compile('ring'), '1500', String(SCALE_MS), '--pairs', String(pairs)]);
  return {
    title: 'pairs of guests in C',
    contenders: Object.fromEntries(VIFS.map(pairs => [name(pairs), () => run(pairs)])),
    values: { 'core-µs/packet': { of: coreMicroseconds, show: fixed(3) } },
    comparisons: VIFS.slice(1).map(pairs => ({
      name: 'throughput, all send',
      who: name(pairs),
      against: name(1),
      of: each => 1 / coreMicroseconds(each),
    })),
  };
}

/** What network devices cost, and what byte queue limits are good for. */
function netdevice() {
  const part = (...argv) => measure([node, join(root, 'dist/bench/netdevice.js'), ...argv]);
  const nanoseconds = {
    'core-ns/packet': { of: run => (run.cpuSeconds / run.packets) * 1e9, show: fixed(1) },
  };
  const each = run => run.cpuSeconds / run.packets;
  return [
    {
      title: 'register + unregister',
      contenders: { alone: () => part('register', '0'), 'of 10000': () => part('register', '10000') },
      values: { 'devices/s': { of: run => run.devices / run.cpuSeconds, show: fixed(0) } },
      comparisons: [
        {
          name: 'cost of a device',
          who: 'of 10000',
          against: 'alone',
          of: run => run.cpuSeconds / run.devices,
        },
      ],
    },
    {
      title: 'qdisc, BQL, NAPI 64 B',
      contenders: {
        stack: () => part('stack'),
        '+ GRO': () => part('stack', 'gro'),
        ring: () => ringRun(64, RING_MS),
      },
      values: nanoseconds,
      comparisons: [
        { name: 'part of the data path', who: 'stack', against: 'ring', of: each },
        { name: 'part of the data path', who: '+ GRO', against: 'ring', of: each },
      ],
    },
    {
      title: 'urgent beside a stream',
      contenders: { BQL: () => part('latency', 'on'), none: () => part('latency', 'off') },
      values: {
        'ms there and back': { of: run => run.medianMs, show: fixed(1) },
        'bytes on the ring': { of: run => run.ringBytes, show: fixed(0) },
        'Mbit/s of the stream': { of: run => (run.bytesPerSecond * 8) / 1e6, show: fixed(2) },
      },
      comparisons: [{ name: 'time there and back', who: 'BQL', against: 'none', of: run => run.medianMs }],
    },
    {
      title: 'checksum',
      contenders: Object.fromEntries(SIZES.map(size => [`${size} B`, () => part('checksum', String(size))])),
      values: {
        'GB/s': { of: run => run.bytes / run.cpuSeconds / 1e9, show: fixed(2) },
        'ns each': { of: run => (run.cpuSeconds / run.count) * 1e9, show: fixed(0) },
      },
      comparisons: [],
    },
  ];
}

/** Where Debian's packages put what only root runs. */
const PATH = [...process.env.PATH.split(':'), '/usr/sbin', '/sbin'];

/** Switches that a user would pick instead. Those that are not installed are left out. */
function switches() {
  const wanted = { vde: 'vde_switch', ovs: 'ovs-vswitchd', socat: 'socat' };
  const contenders = {};
  for (const [kind, program] of Object.entries(wanted)) {
    if (PATH.some(folder => existsSync(join(folder, program)))) {
      contenders[kind] = () => tcpRun(kind, ['--no-tso', '--no-ping']);
    } else {
      console.error(
        `${kind} is left out: there is no ${program} (scripts/install-tools.sh ${program} installs it)`,
      );
    }
  }
  const comparisons = Object.keys(contenders).map(against => ({
    name: 'throughput',
    against,
    of: throughput,
  }));
  contenders.pvnet = () => tcpRun('pvnet', ['--no-tso', '--no-ping']);
  return [{ title: 'switches, no TSO', contenders, values: TCP_VALUES, comparisons }];
}

const BENCHMARKS = {
  ring: () => ring('ring', []),
  fresh: () => ring('ring, fresh grants', ['--fresh']),
  alloc,
  tcp: () => tcp('TCP, TSO', []),
  'tcp-no-tso': () => tcp('TCP, no TSO', ['--no-tso']),
  scale,
  netdevice,
  switches,
};

/** Those that need programs of the machine's network. */
const ON_TAPS = ['tcp', 'tcp-no-tso', 'switches'];

const USAGE = `usage: npm run bench [-- NAME… --rounds N --cpu N --json]
Names: ${Object.keys(BENCHMARKS).join(', ')}; without one, all of them (docs/performance.md says what they measure).
  --rounds N  how often each contender runs (3); what is printed are medians
  --cpu N     the processor that it is pinned to (the last)
  --json      print for a program to read
`;

function parseArguments() {
  const options = {
    rounds: { type: 'string', default: '3' },
    cpu: CPU_OPTION,
    json: { type: 'boolean', default: false },
  };
  const all = Object.keys(BENCHMARKS);
  const { values, names } = commandLine(USAGE, options, all);
  return {
    names: names.length > 0 ? names : all,
    json: values.json,
    rounds: wholeNumber(values, 'rounds', 1, USAGE),
    cpu: cpuOf(values, USAGE),
  };
}

/** Runs every contender once a round. @returns medians by contender, and of the ratios within rounds */
function compete({ title, contenders, values, comparisons }, rounds) {
  const runs = Object.fromEntries(Object.keys(contenders).map(name => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, contender] of Object.entries(contenders)) runs[name].push(contender());
  }
  const medians = {};
  for (const [name, of] of Object.entries(runs)) {
    medians[name] = Object.fromEntries(
      Object.entries(values).map(([value, { of: get }]) => [value, median(of.map(get))]),
    );
  }
  const ratios = comparisons.map(({ name, who = 'pvnet', against, of }) => ({
    name,
    who,
    against,
    ratio: median(runs[who].map((run, i) => of(run) / of(runs[against][i]))),
  }));
  return { title, medians, ratios };
}

function print({ title, medians, ratios }, values) {
  for (const [name, of] of Object.entries(medians)) {
    const cells = Object.entries(values).map(
      ([value, { show }]) => `${show(of[value]).padStart(9)} ${value}`,
    );
    console.log(`${title.padEnd(26)} ${name.padEnd(9)}${cells.join('  ')}`);
  }
  for (const { name, who, against, ratio } of ratios) {
    console.log(
      `${''.padEnd(26)} ${who} : ${against.padEnd(9)} ${ratio.toFixed(ratio < 0.1 ? 3 : 2)}  ${name}`,
    );
  }
}

const { names, json, rounds, cpu } = parseArguments();
installTools(
  'cc',
  ...(names.some(name => ON_TAPS.includes(name)) ? ['ip', 'ping', 'iperf3', 'ethtool'] : []),
);
setUp();
takePrecedence();
const machine = `${cpus()[0].model.trim()}, ${availableParallelism()} CPUs, Linux ${release()}, Node ${process.versions.node}, load ${loadavg()[0].toFixed(1)}`;
const command = ['npm run bench --', ...names, `--rounds ${rounds}`, `--cpu ${cpu}`].join(' ');
if (!json) console.log(`${command}\n${machine}\n`);
const results = [];
for (const name of names) {
  for (const benchmark of BENCHMARKS[name]()) {
    const result = compete(benchmark, rounds);
    results.push({ name, ...result });
    if (!json) print(result, benchmark.values);
  }
}
if (json) {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  console.log(
    JSON.stringify(
      { version, commandLine: command, machine, date: new Date().toISOString(), results },
      null,
      2,
    ),
  );
}
