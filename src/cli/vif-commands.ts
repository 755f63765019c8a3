import { type Command, table } from './command.js';
import { CliError } from './rpc.js';
import type { VifCounters } from './vif-methods.js';

/** The commands that look into a backend's vifs. */
export const VIF_COMMANDS: Readonly<Record<string, Command>> = {
  stats: {
    usage: '[VIF]',
    summary: 'Prints the counters of a backend’s vifs that are not zero, and of its calls into Xen.',
    arguments: [0, 1],
    async run({ positionals: [vif], host, show }) {
      const all = await (await host()).call<VifCounters[]>('stats');
      const chosen = vif === undefined ? all : all.filter(each => each.vif === vif);
      if (vif !== undefined && chosen.length === 0) {
        const names = all.map(each => each.vif).join(', ') || 'none';
        throw new CliError('ENODEV', `there is no vif ${vif}; there are: ${names}`);
      }
      show(chosen, vifs =>
        table(
          ['Vif', 'Counter', '>Value'],
          vifs.flatMap(({ vif, counters }) =>
            Object.entries(counters)
              .filter(([, value]) => value !== 0)
              .map(([counter, value]) => [vif, counter, value]),
          ),
        ),
      );
      return 0;
    },
  },
  dump: {
    usage: '',
    summary: 'Prints the indexes of the rings of a backend’s vifs, shared and private.',
    arguments: [0, 0],
    async run({ host, show }) {
      show(await (await host()).call<{ text: string }>('dump'), ({ text }) => text);
      return 0;
    },
  },
  poke: {
    usage: 'VIF',
    summary: 'Has a backend look at a vif’s rings, and its frontend, as if there had been events.',
    details: 'For a vif that stands still: when it goes on after that, an event was lost.',
    arguments: [1, 1],
    async run({ positionals: [vif], host }) {
      await (await host()).call('poke', { vif });
      return 0;
    },
  },
};
