import { runSelftest } from '../netback/selftest.js';
import type { Command } from './command.js';

export const SELFTEST_COMMANDS: Readonly<Record<string, Command>> = {
  selftest: {
    usage: '',
    summary: 'Runs the unit vectors of the data path here and now, and prints how many passed.',
    details: "They are those of FreeBSD's netback (its sysctl unit_test_results), and need no host.",
    arguments: [0, 0],
    async run({ show }) {
      const results = runSelftest();
      const failed = results.filter(({ failure }) => failure !== null);
      show({ passed: results.length - failed.length, failed }, ({ passed }) =>
        [
          ...failed.map(({ name, failure }) => `${name}: ${failure}`),
          failed.length === 0 ? `${passed} tests passed` : `${passed} tests passed, ${failed.length} failed`,
        ].join('\n'),
      );
      return failed.length === 0 ? 0 : 1;
    },
  },
};
