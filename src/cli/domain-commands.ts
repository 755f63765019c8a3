import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { resolve } from 'node:path';
import { NETFRONT_FEATURES } from '../netfront/features.js';
import { readText } from '../toolstack/domain-config.js';
import { DEVID_MAX, VIF_KEYS } from '../toolstack/vif-config.js';
import type { Command } from './command.js';
import { parseNumber, table } from './command.js';
import type { HostMethods } from './host-methods.js';
import { CliError } from './rpc.js';

type Result<N extends keyof HostMethods> = HostMethods[N]['result'];

const PING_INTERVAL_MS = 1000;

/** For the --help of the commands that read domain files. */
export const DOMAIN_FILE_HELP =
  'Files are in xl’s syntax: name, memory, vif = [ … ], guest = "echo", "netns", "linux" or "module:./file.js", and\n' +
  'netfront = "max_queues=N,without=FEATURE…,static_grants,multicast_control,gso_prefix,trusted=0" for the guest’s\n' +
  `end of its vifs; the features are ${NETFRONT_FEATURES.join(', ')}.`;

/** The commands that talk to a host which runs. */
export const DOMAIN_COMMANDS: Readonly<Record<string, Command>> = {
  create: {
    usage: 'FILE…',
    summary: 'Creates the domains that the files describe.',
    details: DOMAIN_FILE_HELP,
    arguments: [1, Number.POSITIVE_INFINITY],
    async run({ positionals, host, show }) {
      const client = await host();
      for (const file of positionals) {
        const created = await client.call<Result<'create'>>('create', {
          file: resolve(file),
          text: readText(file),
        });
        show(created, ({ name, domid, notes }) =>
          [`created ${name} as domain ${domid}`, ...notes].join('\n'),
        );
      }
      return 0;
    },
  },
  destroy: {
    usage: 'DOMAIN…',
    summary: 'Ends domains at once.',
    arguments: [1, Number.POSITIVE_INFINITY],
    async run({ positionals, host }) {
      const client = await host();
      for (const domain of positionals) await client.call('destroy', { domain });
      return 0;
    },
  },
  shutdown: {
    usage: 'DOMAIN…',
    summary: 'Asks domains to power off, and waits until they have.',
    options: { reboot: { type: 'boolean', help: 'start them again' } },
    arguments: [1, Number.POSITIVE_INFINITY],
    async run({ positionals, host, flag }) {
      const client = await host();
      for (const domain of positionals) await client.call('shutdown', { domain, reboot: flag('reboot') });
      return 0;
    },
  },
  down: {
    usage: '',
    summary: 'Shuts the whole host down, as Ctrl-C in "pvnet up" does.',
    arguments: [0, 0],
    async run({ host }) {
      const client = await host();
      await client.call('down');
      await client.closed;
      return 0;
    },
  },
  list: {
    usage: '',
    summary: 'Lists the domains.',
    arguments: [0, 0],
    async run({ host, show }) {
      show(await (await host()).call<Result<'list'>>('list'), domains =>
        table(
          ['Name', '>ID', '>Mem', '>VCPUs', 'State', 'Guest', '>Vifs'],
          domains.map(({ name, domid, memoryMib, vcpus, state, guest, vifs }) => {
            return [name, domid, memoryMib, vcpus, state, guest, vifs];
          }),
        ),
      );
      return 0;
    },
  },
  'vif-list': {
    usage: '[DOMAIN]',
    summary: 'Lists virtual interfaces, their states, rings and event channels, and what each waits for.',
    arguments: [0, 1],
    async run({ positionals, host, show }) {
      const [domain] = positionals;
      show(await (await host()).call<Result<'vif-list'>>('vif-list', { domain }), vifs =>
        table(
          [
            'Domain',
            '>Idx',
            'Vif',
            'MAC',
            'Bridge',
            'Frontend',
            'Backend',
            'Evtchn tx/rx',
            'Ring tx/rx',
            'Waiting for',
          ],
          vifs.map(vif => [
            vif.domain,
            vif.devid,
            vif.vif,
            vif.mac,
            vif.bridge,
            vif.frontendState,
            vif.backendState,
            vif.eventChannels ?? '-',
            vif.ringRefs ?? '-',
            vif.waitingFor ?? '-',
          ]),
        ),
      );
      return 0;
    },
  },
  'vif-attach': {
    usage: 'DOMAIN [KEY=VALUE…]',
    summary: 'Attaches a virtual interface to a domain that runs.',
    details:
      'Keys are those of vif = [ … ] in a domain file (docs/guide.md says what each does):\n' +
      `${VIF_KEYS.join(', ')}.`,
    arguments: [1, Number.POSITIVE_INFINITY],
    async run({ positionals: [domain, ...keys], host, show }) {
      const params = { domain, vif: keys.join(',') };
      show(await (await host()).call<Result<'vif-attach'>>('vif-attach', params), ({ devid, waitingFor }) => {
        return `attached vif ${devid} to ${domain}${waitingFor === null ? '' : `: ${waitingFor}`}`;
      });
      return 0;
    },
  },
  'vif-detach': {
    usage: 'DOMAIN DEVID',
    summary: 'Detaches a virtual interface from a domain that runs.',
    options: { force: { type: 'boolean', help: 'do not wait for the guest to let go' } },
    arguments: [2, 2],
    async run({ positionals: [domain, index], host, flag }) {
      const devid = parseNumber(index, 'the interface', 0, DEVID_MAX);
      await (await host()).call('vif-detach', { domain, devid, force: flag('force') });
      return 0;
    },
  },
  exec: {
    usage: 'DOMAIN -- COMMAND [ARGUMENT…]',
    summary: 'Runs a program inside a guest of kind "netns"; its status is that of pvnet.',
    arguments: [2, Number.POSITIVE_INFINITY],
    async run({ positionals: [domain, ...argv], host }) {
      const client = await host();
      const command = await client.call<Result<'exec'>>('exec', { domain, argv, directory: process.cwd() });
      client.close();
      return runHere(command.argv);
    },
  },
  ping: {
    usage: 'DOMAIN ADDRESS',
    summary: 'Has a guest of kind "echo" ping an address. Needs no privilege.',
    options: { count: { type: 'string', short: 'c', value: 'N', help: 'how many times (3)' } },
    arguments: [2, 2],
    async run({ positionals: [domain, address], host, option, show }) {
      const count = parseNumber(option('count') ?? '3', 'the count', 1, 1_000_000);
      const client = await host();
      let answered = 0;
      for (let i = 1; i <= count; i++) {
        if (i > 1) await new Promise(done => setTimeout(done, PING_INTERVAL_MS));
        try {
          const { ms } = await client.call<Result<'ping'>>('ping', { domain, address });
          answered++;
          show({ address, seq: i, ms }, () => `answer from ${address}: seq=${i} time=${ms.toFixed(3)} ms`);
        } catch (error) {
          if ((error as CliError).code !== 'ETIMEDOUT') throw error;
          show({ address, seq: i, ms: null }, () => `no answer from ${address}: seq=${i}`);
        }
      }
      return answered > 0 ? 0 : 1;
    },
  },
  dmesg: {
    usage: 'DOMAIN',
    summary: 'Prints the log of a domain’s kernel.',
    arguments: [1, 1],
    async run({ positionals: [domain], host, show }) {
      show(await (await host()).call<Result<'dmesg'>>('dmesg', { domain }), ({ lines }) => lines.join('\n'));
      return 0;
    },
  },
  interrupts: {
    usage: 'DOMAIN',
    summary: 'Prints a domain’s /proc/interrupts.',
    arguments: [1, 1],
    async run({ positionals: [domain], host, show }) {
      show(await (await host()).call<Result<'interrupts'>>('interrupts', { domain }), ({ text }) =>
        text.trimEnd(),
      );
      return 0;
    },
  },
};

const PASSED_ON = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Runs a program with this terminal. @returns its status, as a shell has it */
function runHere(argv: readonly string[]): Promise<number> {
  return new Promise((done, reject) => {
    const child = spawn(argv[0], argv.slice(1), { stdio: 'inherit' });
    // A terminal's Ctrl-C reaches the program by itself, which is in the same process group; all else does not.
    const pass = (signal: NodeJS.Signals): void => {
      if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal);
    };
    for (const signal of PASSED_ON) process.on(signal, pass);
    child.on('error', error => reject(new CliError('ENOENT', `${argv[0]}: ${error.message}`)));
    child.on('exit', (code, signal) => {
      for (const signal of PASSED_ON) process.off(signal, pass);
      done(code ?? 128 + (signal === null ? 0 : constants.signals[signal]));
    });
  });
}
