import { resolve } from 'node:path';
import { DEVID_MAX } from '../toolstack/vif-config.js';
import { type Command, parseNumber, UsageError } from './command.js';
import type { LifeMethods } from './life-methods.js';

type Result<N extends keyof LifeMethods> = LifeMethods[N]['result'];

/** The commands of a domain's life beyond its start and end. */
export const LIFE_COMMANDS: Readonly<Record<string, Command>> = {
  suspend: {
    usage: 'DOMAIN…',
    summary: 'Asks domains to suspend themselves, and waits until they have.',
    arguments: [1, Number.POSITIVE_INFINITY],
    async run({ positionals, host }) {
      const client = await host();
      for (const domain of positionals) await client.call('suspend', { domain });
      return 0;
    },
  },
  resume: {
    usage: 'DOMAIN…',
    summary: 'Lets suspended domains go on; their frontends connect anew.',
    details: 'Guests of kind "linux" always go on as if they had not been suspended, as with xl.',
    options: {
      cancelled: { type: 'boolean', help: 'as if they had not been suspended: nothing connects anew' },
    },
    arguments: [1, Number.POSITIVE_INFINITY],
    async run({ positionals, host, flag }) {
      const client = await host();
      for (const domain of positionals) {
        await client.call('resume', { domain, cancelled: flag('cancelled') });
      }
      return 0;
    },
  },
  save: {
    usage: 'FILE',
    summary: 'Writes the whole host with its domains to a file, for "pvnet restore", and shuts it down.',
    details:
      'Domains of all kinds can be saved, modules if they have a "save". The file holds what their guests saved and their\n' +
      'part of xenstore; vifs connect anew when it is restored. Of a "netns" guest it has addresses and routes, and not the\n' +
      'programs that run in it.',
    options: { 'leave-running': { type: 'boolean', help: 'let the host go on' } },
    arguments: [1, 1],
    async run({ positionals, host, flag, show }) {
      const client = await host();
      const leaveRunning = flag('leave-running');
      const saved = await client.call<Result<'save'>>('save', {
        file: resolve(positionals[0]),
        leaveRunning,
      });
      if (!leaveRunning) await client.closed;
      show(saved, ({ domains, notes }) =>
        [`saved ${domains.join(', ') || 'a host without domains'}`, ...notes].join('\n'),
      );
      return 0;
    },
  },
  migrate: {
    usage: 'DOMAIN --to SOCKET',
    summary: 'Moves a domain that runs to another host.',
    details:
      'The domain keeps its name and addresses; the other host makes bridges that it does not have yet.',
    options: { to: { type: 'string', value: 'SOCKET', help: 'the control socket of the host that gets it' } },
    arguments: [1, 1],
    async run({ positionals: [domain], option, host, show }) {
      const to = option('to');
      if (to === undefined) throw new UsageError('say with --to which host gets the domain');
      const client = await host();
      const moved = await client.call<Result<'migrate'>>('migrate', { domain, to: resolve(to) });
      show(moved, ({ domid, notes }) => [`${domain} is domain ${domid} there`, ...notes].join('\n'));
      return 0;
    },
  },
  'vif-carrier': {
    usage: 'DOMAIN DEVID up|down',
    summary: 'Takes the link of a vif down, or lets it be up again.',
    arguments: [3, 3],
    async run({ positionals: [domain, devid, state], host }) {
      if (state !== 'up' && state !== 'down') throw new UsageError(`"${state}" is neither up nor down`);
      const params = { domain, devid: parseNumber(devid, 'DEVID', 0, DEVID_MAX), up: state === 'up' };
      await (await host()).call('vif-carrier', params);
      return 0;
    },
  },
};
