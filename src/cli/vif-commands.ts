import type { VifCounters } from './backend-daemon.js';
import { type Command, table } from './command.js';

/** The commands that look into a backend's vifs. */
export const VIF_COMMANDS: Readonly<Record<string, Command>> = {
  stats: {
    usage: '[VIF]',
    summary: 'Prints the counters of a backend’s vifs that are not zero, and of its calls into Xen.',
    arguments: [0, 1],
    async run({ positionals: [vif], host, show }) {
      const all = await (await host()).call<VifCounters[]>('stats');
      show(vif === undefined ? all : all.filter(each => each.vif === vif), vifs =>
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
};
