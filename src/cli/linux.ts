import { fetchLinux } from '../guests/linux/fetch.js';
import { cachedFiles, cacheFolder } from '../guests/linux/files.js';
import { keepSnapshot, lacksSnapshot, linuxOf } from '../guests/linux/kind.js';
import { parseDomain } from '../toolstack/domain-config.js';
import { Host } from '../toolstack/host.js';
import type { Command } from './command.js';
import { CliError } from './rpc.js';

/** The two kinds of guests that are booted once, so that later ones go on from there. */
const TEMPLATES = [
  'name = "template"\nguest = "linux"',
  'name = "driver-template"\nguest = "linux"\ndriver_domain = 1',
];

/** Boots a guest of each kind that has no snapshot yet, and keeps one. */
export async function takeSnapshots(log: (line: string) => void): Promise<void> {
  const configs = TEMPLATES.map(text => parseDomain(text, 'template.cfg')).filter(lacksSnapshot);
  if (configs.length === 0) return;
  const host = await Host.start();
  try {
    for (const config of configs) {
      log(`booting ${config.name} once, for a snapshot`);
      const hosted = await host.create(config);
      await host.settled(hosted);
      await host.suspend(hosted);
      keepSnapshot(config, await linuxOf(hosted.booted!.guest)!.save());
      await host.destroy(hosted);
    }
  } finally {
    await host.close();
  }
}

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
        await takeSnapshots(print);
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
