// npm run test:xen [-- SCENARIO…]: boots a real Xen host in QEMU's emulation, runs the scenarios of test/xen/dom0 in
// its dom0, and writes what they found to docs/real-xen-results.md. Needs root on Debian 12; the lab fetches the rest.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, run, setUp } from '../../scripts/setup.mjs';

/** Scenario: title, emulated processors, seconds until it is given up. */
const SCENARIOS = {
  life: ['A PV guest on TAPs and a Linux bridge', 2, 1500],
  guests: ['PVH and PV guests on pvnet’s own bridge', 2, 1200],
  frontend: ['pvnet’s frontend in dom0', 2, 900],
  hostile: ['A hostile frontend beside a guest at work', 2, 900],
  numbers: ['pvnet and the kernel’s xen-netback in one boot', 1, 1500],
};
const REPORT = join(root, 'docs/real-xen-results.md');

const names = process.argv.slice(2).length > 0 ? process.argv.slice(2) : Object.keys(SCENARIOS);
for (const name of names) {
  if (SCENARIOS[name] === undefined)
    throw new Error(`there is no scenario ${name}: ${Object.keys(SCENARIOS)}`);
}
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
];
run('tar', ['-chf', join(share, 'pvnet.tar'), ...notNeeded, '-C', root, ...files]);
const UNPACK = 'mkdir /tmp/pvnet && tar -xf pvnet.tar -C /tmp/pvnet && cd /tmp/pvnet';

/** Runs one scenario, showing its results as they come. @returns rows of [status, what, detail] */
function runScenario(name) {
  const [title, processors, timeout] = SCENARIOS[name];
  console.log(`\n${name}: ${title}`);
  const args = ['--smp', processors, '--share', share, '--timeout', timeout];
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
      console.log(`  ${row.join('  ')}`);
    }
  });
  lab.stderr.setEncoding('utf8').on('data', text => {
    log += text;
  });
  return new Promise((resolve, reject) => {
    lab.on('error', reject);
    lab.on('close', status => {
      if (status !== 0) rows.push(['FAIL', 'the scenario runs to its end', `status ${status}`]);
      if (rows.some(([state]) => state === 'FAIL')) console.log(log);
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
for (const name of names) {
  const rows = await runScenario(name);
  failed += rows.filter(([state]) => state === 'FAIL').length;
  const lines = rows.map(row => `| ${row.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |`);
  const heading = `## ${SCENARIOS[name][0]}\n\nRun on ${new Date().toISOString().slice(0, 10)}.\n\n`;
  parts.set(name, `${heading}| | what | result |\n|---|---|---|\n${lines.join('\n')}\n\n`);
  const intro =
    '# On a real Xen host: results\n\nWritten by `npm run test:xen` (Xen 4.17 and Linux 6.1 in QEMU’s emulation; speeds ' +
    'are those of an emulated machine, and only rows of the same table can be compared).\n\n';
  const body = [...parts].filter(([, text]) => text !== '');
  writeFileSync(
    REPORT,
    `${intro}${body.map(([key, text]) => `<!-- ${key} -->\n${text}<!-- end -->\n`).join('\n')}`,
  );
}
console.log(failed === 0 ? '\nall as it should be' : `\n${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
