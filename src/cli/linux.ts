import { fetchLinux } from '../guests/linux/fetch.js';
import { cachedFiles, cacheFolder } from '../guests/linux/files.js';
import type { Command } from './command.js';
import { CliError } from './rpc.js';

export const LINUX_COMMAND: Command = {
  usage: 'fetch | status',
  summary: 'Gets what guests of kind "linux" boot.',
  details:
    '"fetch" downloads Debian 12’s kernel, busybox, SeaBIOS and a few tools for i386 by this machine’s apt, builds an ' +
    'initramfs of them, and keeps that in the cache. "status" says whether they are there.',
  arguments: [1, 1],
  async run({ positionals: [what], print }) {
    switch (what) {
      case 'fetch':
        await fetchLinux(print);
        return 0;
      case 'status': {
        const there = cachedFiles() !== null;
        print(there ? `Linux guests can boot from ${cacheFolder()}` : `there is nothing in ${cacheFolder()}`);
        return there ? 0 : 1;
      }
      default:
        throw new CliError('EINVAL', `"${what}": it is "fetch" or "status"`);
    }
  },
};
