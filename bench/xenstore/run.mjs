// npm run bench:xenstore [-- --rounds N --cpu N --json --only compare|flat|abuse --scale F]
// compare: pvnet's xenstored, C xenstored, oxenstored and the floor of Node's sockets, side by side.
// flat:    what an operation costs in a large store against a small one, and the same for a bare Map of Node's.
// abuse:   what a client pays for another one that never pauses.
// Client and server share one CPU, the contenders take turns, and medians are printed.
import { spawnSync } from 'node:child_process';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { commandLine, wholeNumber, wrong } from '../../scripts/arguments.mjs';
import { root, setUp } from '../../scripts/setup.mjs';
import { CPU_OPTION, cpuOf } from '../cpu.mjs';
import { abuse, flat } from './scale.mjs';
import { build, buildPeers, median, start, stop } from './servers.mjs';

const PARTS = ['compare', 'flat', 'abuse'];
const USAGE = `usage: npm run bench:xenstore [-- --only ${PARTS.join('|')} --rounds N --cpu N --scale X --json]
  --only PART  one part instead of all (docs/xenstore.md says what they measure)
  --rounds N   how often each server has its turn (5); what is printed are medians
  --cpu N      the processor that the servers are pinned to (the last)
  --scale X    how many operations a run has, of the usual number (1)
  --json       print for a program to read
`;
const { values } = commandLine(USAGE, {
  rounds: { type: 'string', default: '5' },
  cpu: CPU_OPTION,
  json: { type: 'boolean' },
  only: { type: 'string' },
  scale: { type: 'string', default: '1' },
});
const rounds = wholeNumber(values, 'rounds', 1, USAGE);
cpuOf(values, USAGE);
const scale = Number(values.scale);
if (!(scale > 0)) wrong(`--scale ${values.scale}: want a number above 0`, USAGE);
if (values.only !== undefined && !PARTS.includes(values.only))
  wrong(`--only ${values.only}: no such part`, USAGE);
const WORKLOADS = {
  read: 20000,
  pread: 100000,
  write: 20000,
  dir: 15000,
  txn: 2500,
  watch: 10000,
  watchrate: 30000,
  conc: 60000,
  handshake: 400,
};
/** What the floor can answer. */
const FLOOR = ['read', 'pread', 'conc'];

function bench(server, workload) {
  const n = Math.max(50, Math.round(WORKLOADS[workload] * scale));
  const argv = ['-c', values.cpu, join(build, 'xsbench'), server.socket, workload, String(n)];
  const { status, stdout } = spawnSync('taskset', argv, { encoding: 'utf8', timeout: 60_000 });
  return status === 0 ? JSON.parse(stdout).workloads[workload] : undefined;
}

async function compare() {
  const why = buildPeers();
  if (why !== undefined) return { error: why };
  const servers = [];
  for (const name of ['pvnet', 'c', 'ocaml', 'floor']) {
    const server = await start(name, values.cpu);
    if (server === undefined)
      console.error(`bench: ${name} does not start; as root: bench/xenstore/peer/install`);
    else servers.push(server);
  }
  const results = {};
  for (let round = 0; round < rounds; round++) {
    for (const workload of Object.keys(WORKLOADS)) {
      // The order changes from round to round.
      const at = round % servers.length;
      for (const server of [...servers.slice(at), ...servers.slice(0, at)]) {
        if (server.name === 'floor' && !FLOOR.includes(workload)) continue;
        const result = bench(server, workload);
        if (result === undefined) continue;
        results[workload] ??= {};
        results[workload][server.name] ??= [];
        results[workload][server.name].push(result);
      }
    }
  }
  for (const server of servers) stop(server);
  return Object.fromEntries(Object.entries(results).map(([workload, by]) => [workload, summary(by)]));
}

function summary(by) {
  const of = (name, key) => (by[name] === undefined ? null : median(by[name].map(result => result[key])));
  const ratio = name =>
    by[name] === undefined
      ? null
      : median(by.pvnet.map(({ ops_per_s }, i) => ops_per_s / (by[name][i] ?? by[name][0]).ops_per_s));
  const servers = {};
  for (const name of Object.keys(by)) {
    servers[name] = {
      opsPerSecond: of(name, 'ops_per_s'),
      p50Us: of(name, 'p50_us'),
      p99Us: of(name, 'p99_us'),
      cpuUsPerOp: of(name, 'server_cpu_us_per_op'),
    };
  }
  return { servers, ratios: { c: ratio('c'), ocaml: ratio('ocaml'), floor: ratio('floor') } };
}

function printCompare(results) {
  if (results.error !== undefined) {
    console.log(results.error);
    return;
  }
  const head = [
    'workload',
    'pvnet /s',
    'p50 µs',
    'C /s',
    'OCaml /s',
    'floor /s',
    '× C',
    '× OCaml',
    '× floor',
  ];
  const rows = Object.entries(results).map(([workload, { servers, ratios }]) => {
    const rate = name => (servers[name] === undefined ? '' : servers[name].opsPerSecond.toFixed(0));
    const times = value => (value === null ? '' : value.toFixed(2));
    return [
      workload,
      rate('pvnet'),
      servers.pvnet.p50Us.toFixed(1),
      rate('c'),
      rate('ocaml'),
      rate('floor'),
      times(ratios.c),
      times(ratios.ocaml),
      times(ratios.floor),
    ];
  });
  printTable(head, rows);
}

function printTable(head, rows) {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map(row => row[i].length)));
  for (const row of [head, ...rows]) {
    console.log(
      row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  '),
    );
  }
}

setUp();
const out = { machine: `${cpus()[0].model}, Linux ${release()}, Node ${process.version}`, rounds };
if (values.only === undefined || values.only === 'compare') out.compare = await compare();
if (values.only === undefined || values.only === 'flat') out.flat = await flat(values.cpu, rounds, scale);
if (values.only === undefined || values.only === 'abuse') out.abuse = await abuse(values.cpu, rounds, scale);
if (values.json) console.log(JSON.stringify(out, null, 1));
else {
  console.log(
    `${out.machine}; medians of ${rounds} rounds, client and server on CPU ${values.cpu} of ${root}\n`,
  );
  if (out.compare !== undefined) printCompare(out.compare);
  if (out.flat !== undefined) {
    console.log('\nµs of the server’s processor per operation');
    const cells = cost =>
      cost === null ? ['', '', ''] : [cost.small, cost.large, cost.ratio].map(value => value.toFixed(2));
    const rows = out.flat.map(cost => [cost.what, ...cells(cost), ...cells(cost.floor)]);
    const head = ['small', 'large', 'ratio'];
    printTable(['operation', ...head, ...head.map(title => `Map ${title}`)], rows);
  }
  if (out.abuse !== undefined) {
    console.log('\nlatency of a READ beside a client that never pauses, µs');
    const rows = out.abuse.map(({ what, alone, beside, ratio }) => [
      what,
      alone.toFixed(1),
      beside.toFixed(1),
      ratio.toFixed(2),
    ]);
    printTable(['abuser sends', 'alone', 'beside it', 'ratio'], rows);
  }
}
process.exit(0);
