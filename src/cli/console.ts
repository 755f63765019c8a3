import type { GuestConsole } from '../guests/guest.js';
import { ToolstackError } from '../toolstack/error.js';
import type { Host } from '../toolstack/host.js';
import type { Command } from './command.js';
import type { RpcRegistry } from './rpc.js';

/** Ctrl-], as in xl console. */
const ESCAPE = 0x1d;
/** How often a console looks whether its domain is still there. */
const GONE_POLL_MS = 500;

/** Registers what `pvnet console` calls. */
export function registerConsoleMethods(registry: RpcRegistry, host: Host): void {
  const consoleOf = (domain: string): GuestConsole => {
    const { booted, config } = host.find(domain);
    if (booted?.guest.console === undefined) {
      throw new ToolstackError(
        'EOPNOTSUPP',
        `${config.name}: a guest of kind "${config.guest.kind}" has no console; "pvnet dmesg" shows its log`,
      );
    }
    return booted.guest.console;
  };
  registry.register('console', async ({ domain }: { domain: string }, { emit, signal }) => {
    const console = consoleOf(String(domain));
    const { booted } = host.find(domain);
    emit(console.scrollback());
    const stop = console.onOutput(emit);
    try {
      await new Promise<void>(resolve => {
        const timer = setInterval(() => {
          if (![...host.domains].some(hosted => hosted.booted === booted)) finish();
        }, GONE_POLL_MS);
        const finish = (): void => {
          clearInterval(timer);
          resolve();
        };
        signal.addEventListener('abort', finish, { once: true });
      });
    } finally {
      stop();
    }
    return null;
  });
  registry.register('console-input', ({ domain, text }: { domain: string; text: string }) => {
    consoleOf(String(domain)).type(String(text));
    return null;
  });
}

export const CONSOLE_COMMAND: Command = {
  usage: 'DOMAIN',
  summary: 'Sits at the console of a guest of kind "linux"; Ctrl-] leaves.',
  arguments: [1, 1],
  async run({ positionals: [domain], host }) {
    const client = await host();
    const { stdin, stdout } = process;
    let left = () => {};
    const leave = new Promise<void>(resolve => {
      left = resolve;
    });
    const onInput = (bytes: Buffer): void => {
      const end = bytes.indexOf(ESCAPE);
      const text = (end < 0 ? bytes : bytes.subarray(0, end)).toString('latin1');
      if (text !== '') client.call('console-input', { domain, text }).catch(left);
      if (end >= 0) left();
    };
    const output = client.call('console', { domain }, text => stdout.write(String(text)));
    if (stdin.isTTY) stdin.setRawMode(true);
    stdin.on('data', onInput);
    try {
      await Promise.race([output, leave]);
    } finally {
      stdin.off('data', onInput);
      if (stdin.isTTY) stdin.setRawMode(false);
      stdin.pause();
      // What ends it now is that we hang up.
      output.catch(() => {});
    }
    return 0;
  },
};
