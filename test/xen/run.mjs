// npm run test:xen [-- [--json] SCENARIO…]: boots a real Xen host in QEMU's emulation, runs the scenarios of
// test/xen/dom0 in its dom0, and writes what they found to docs/real-xen-results.md; with --json to stdout as well.
// Needs root on Debian 12; the lab fetches the rest.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { commandLine } from '../../scripts/arguments.mjs';
import { root, run, setUp } from '../../scripts/setup.mjs';

/**
 * Scenario: title, emulated processors, seconds until it is given up; with 0 processors it is one whose time goes by
 * the instructions that it executes, so that what else runs on this machine does not change what is measured.
 */
const SCENARIOS = {
  life: ['A PV guest on TAPs and a Linux bridge', 0, 1800],
  crash: ['Sudden ends and restarts', 0, 3600],
  options: ['Options of the backend', 0, 1800],
  guests: ['PVH and PV guests on pvnet’s own bridge', 2, 1800],
  frontend: ['pvnet’s frontend in dom0', 0, 1800],
  hostile: ['A hostile frontend beside a guest at work', 0, 1800],
  numbers: ['pvnet and the kernel’s xen-netback in one boot', 0, 3600],
};
const REPORT = join(root, 'docs/real-xen-results.md');

const USAGE = `usage: npm run test:xen [-- SCENARIO… --json]
Boots Xen in QEMU and tries pvnet there; results go to docs/real-xen-results.md. Scenarios, without one all of them:
${Object.entries(SCENARIOS)
  .map(([name, [title]]) => `  ${name.padEnd(9)} ${title}`)
  .join('\n')}
  --json    print for a program to read
`;
const all = Object.keys(SCENARIOS);
const { values, names: named } = commandLine(USAGE, { json: { type: 'boolean' } }, all);
const names = named.length > 0 ? named : all;
const say = values.json ? console.error : console.log;
setUp();
const share = mkdtempSync(join(tmpdir(), 'pvnet-xen-'));
process.on('exit', () => rmSync(share, { recursive: true, force: true }));
// One file: the share is slow to load modules from.
const notNeeded = ['*.ts', '*.map', '*.md', 'koffi/vendor', 'koffi/doc'].map(name => `--exclude=${name}`);
const files = [
  'package.json',
  'test/xen/dom0',
  'node_modules/koffi',
  'node_modules/@koromix',
  '-C',
  'dist',
  'src',
  'examples',
];
run('tar', ['-chf', join(share, 'pvnet.tar'), ...notNeeded, '-C', root, ...files]);
// The examples import the package by its name, whose exports are in dist.
const UNPACK = 'mkdir /tmp/pvnet && tar -xf pvnet.tar -C /tmp/pvnet && cd /tmp/pvnet && ln -s . dist';

const started = performance.now();

/** Minutes and seconds since the start. */
function time() {
  const seconds = Math.round((performance.now() - started) / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

/** Runs one scenario, showing its results as they come. @returns rows of [status, what, detail] */
function runScenario(name) {
  const [title, processors, timeout] = SCENARIOS[name];
  say(`\n${name}: ${title} (${time()})`);
  const speed = processors === 0 ? ['--icount', 1] : ['--smp', processors];
  const args = [...speed, '--share', share, '--timeout', timeout];
  const lab = spawn(
    join(root, 'test/xen/lab/run'),
    [...args, '--', `${UNPACK} && bash test/xen/dom0/${name}.sh`],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  const rows = [];
  let log = '';
  let rest = '';
  lab.stdout.setEncoding('utf8').on('data', text => {
    rest += text;
    for (let end = rest.indexOf('\n'); end >= 0; end = rest.indexOf('\n')) {
      const line = rest.slice(0, end);
      rest = rest.slice(end + 1);
      const [mark, ...row] = line.split('\t');
      if (mark !== 'RESULT') continue;
      rows.push(row);
      say(`  ${time()}  ${row.join('  ')}`);
    }
  });
  lab.stderr.setEncoding('utf8').on('data', text => {
    log += text;
  });
  return new Promise((resolve, reject) => {
    lab.on('error', reject);
    lab.on('close', status => {
      const failing = () => rows.some(([state]) => state === 'FAIL');
      // A check that failed may have ended it.
      if (status !== 0 && !failing()) rows.push(['FAIL', 'the scenario runs to its end', `status ${status}`]);
      if (failing()) say(log);
      resolve(rows);
    });
  });
}

/** The part of the report that an earlier run wrote for a scenario that is not run now. */
function earlier(name) {
  if (!existsSync(REPORT)) return '';
  const [, part = ''] = readFileSync(REPORT, 'utf8').split(`<!-- ${name} -->\n`);
  return part.split('<!-- end -->')[0];
}

const parts = new Map(Object.keys(SCENARIOS).map(name => [name, earlier(name)]));
let failed = 0;
const found = {};
for (const name of names) {
  const rows = await runScenario(name);
  found[name] = rows.map(([state, what, result = '']) => ({ state, what, result }));
  failed += rows.filter(([state]) => state === 'FAIL').length;
  const lines = rows.map(row => `| ${row.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`);
  const [title, processors] = SCENARIOS[name];
  const clock =
    processors === 0 ? 'one processor, time by instructions' : `${processors} processors, real time`;
  const heading = `## ${title}\n\nRun on ${new Date().toISOString().slice(0, 10)}: ${clock}.\n\n`;
  parts.set(name, `${heading}| | what | result |\n|---|---|---|\n${lines.join('\n')}\n\n`);
  const intro =
    '# On a real Xen host: results\n\nWritten by `npm run test:xen` (Xen 4.17 and Linux 6.1 in QEMU’s emulation; speeds ' +
    "are those of an emulated machine, and only rows of the same table can be compared). 'Time by instructions' means that time goes " +
    'by the instructions that the machine executes, each 2 ns, however busy the machine that emulates it is.\n\n';
  const body = [...parts].filter(([, text]) => text !== '');
  writeFileSync(
    REPORT,
    `${intro}${body.map(([key, text]) => `<!-- ${key} -->\n${text}<!-- end -->\n`).join('\n')}`,
  );
}
if (values.json) console.log(JSON.stringify(found, null, 2));
say(failed === 0 ? '\nall as it should be' : `\n${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
