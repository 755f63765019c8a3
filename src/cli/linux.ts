import { fetchLinux } from '../guests/linux/fetch.js';
import { cachedFiles, cacheFolder } from '../guests/linux/files.js';
import { keepSnapshot, lacksSnapshot, linuxOf } from '../guests/linux/kind.js';
import { parseDomain } from '../toolstack/domain-config.js';
import { Host } from '../toolstack/host.js';
import { type Command, UsageError } from './command.js';
import { CliError } from './rpc.js';

/** The two kinds of guests that are booted once, so that later ones go on from there. */
const TEMPLATES = {
  guest: 'name = "template"\nguest = "linux"',
  driver: 'name = "driver-template"\nguest = "linux"\ndriver_domain = 1',
} as const;

/**
 * Boots a guest of each kind that has no snapshot yet, and keeps one.
 * @param signal gives it up
 */
export async function takeSnapshots(
  log: (line: string) => void,
  kinds: readonly (keyof typeof TEMPLATES)[] = ['guest', 'driver'],
  signal?: AbortSignal,
): Promise<void> {
  const configs = kinds.map(kind => parseDomain(TEMPLATES[kind], 'template.cfg')).filter(lacksSnapshot);
  if (configs.length === 0) return;
  const host = await Host.start();
  try {
    for (const config of configs) {
      log(`booting ${config.name} once, for a snapshot`);
      const hosted = await host.create(config);
      const giveUp = (): void => void host.destroy(hosted);
      if (signal?.aborted) giveUp();
      signal?.addEventListener('abort', giveUp);
      await host.settled(hosted).finally(() => signal?.throwIfAborted());
      await host.suspend(hosted);
      keepSnapshot(config, await linuxOf(hosted.booted!.guest)!.save());
      signal?.removeEventListener('abort', giveUp);
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
    '"fetch" downloads Debian 12’s kernel, busybox, SeaBIOS and a few tools for i386 by this machine’s apt,\n' +
    'builds an initramfs of them, boots a guest of each kind once, and keeps all that in the cache. "status" says\n' +
    'whether the files are there. Where there is no apt, copy the cache from a machine that has it, or name files of\n' +
    'your own in the domain file: kernel = "…", ramdisk = "…", bios = "…", vga_bios = "…".',
  arguments: [1, 1],
  async run({ positionals: [what], print, show }) {
    switch (what) {
      case 'fetch': {
        const interruption = new AbortController();
        for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
          process.on(name, () =>
            interruption.abort(new CliError('EINTR', 'interrupted: nothing has changed')),
          );
        }
        const { signal } = interruption;
        try {
          await fetchLinux(print, signal);
          await takeSnapshots(print, undefined, signal);
        } catch (error) {
          throw signal.aborted ? signal.reason : error;
        }
        return 0;
      }
      case 'status': {
        const there = cachedFiles() !== null;
        show({ ready: there, folder: cacheFolder() }, ({ ready, folder }) =>
          ready ? `Linux guests can boot from ${folder}` : `there is nothing in ${folder}`,
        );
        return there ? 0 : 1;
      }
      default:
        throw new UsageError(`"${what}": it is "fetch" or "status"`);
    }
  },
};
