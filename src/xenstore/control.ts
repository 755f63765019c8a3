import { parseXsdError, type XsdErrorName } from '../abi/xs-wire.js';
import { isQuotaName, QUOTA_NAMES, QUOTAS } from './quota.js';
import type { XenStoreServer } from './server.js';

export type ControlAnswer = { text: string; error?: undefined } | { error: XsdErrorName };

const OK: ControlAnswer = { text: 'OK\0' };
const INVALID: ControlAnswer = { error: 'EINVAL' };

interface Command {
  readonly parameters: string;
  run(server: XenStoreServer, words: string[]): ControlAnswer;
}

/** What `xenstore-control` can ask for, as with C xenstored. */
const commands: Record<string, Command> = {
  check: {
    parameters: '',
    run(server, words) {
      if (words.length > 0) return INVALID;
      const wrong = server.store.check();
      for (const line of wrong) server.log(`check: ${line}`);
      return wrong.length === 0 ? OK : { error: 'EIO' };
    },
  },
  log: {
    parameters: '[on|off]',
    run(server, words) {
      if (words.length === 0) return { text: `Logging is ${server.isLogging ? 'on' : 'off'}\n\0` };
      if (words.length > 1 || (words[0] !== 'on' && words[0] !== 'off')) return INVALID;
      server.isLogging = words[0] === 'on';
      return OK;
    },
  },
  'live-update': {
    parameters: '[-c <cmdline>] [-F] [-t <timeout>] <file>',
    run(server, words) {
      return server.liveUpdate === undefined
        ? { error: 'ENOSYS' }
        : { text: `${server.liveUpdate(words)}\0` };
    },
  },
  logfile: {
    parameters: '<file>',
    run(server, words) {
      if (words.length !== 1 || words[0] === '') return INVALID;
      if (server.openLogFile === undefined) return { error: 'ENOSYS' };
      return attempt(server, `logfile ${words[0]}`, () => server.openLogFile!(words[0]));
    },
  },
  memreport: {
    parameters: '[<file>]',
    run(server, words) {
      if (words.length > 1 || words[0] === '') return INVALID;
      const lines = memoryReport(server);
      if (words.length === 0) {
        for (const line of lines) server.log(`memreport: ${line}`);
        return OK;
      }
      if (server.writeFile === undefined) return { error: 'ENOSYS' };
      return attempt(server, `memreport ${words[0]}`, () =>
        server.writeFile!(words[0], `${lines.join('\n')}\n`),
      );
    },
  },
  print: {
    parameters: '<string>',
    run(server, words) {
      if (words.length !== 1) return INVALID;
      server.log(`control: ${words[0]}`);
      return OK;
    },
  },
  quota: {
    parameters: '[set <name> <val>|<domid>|max [-r]]',
    run(server, words) {
      if (words.length === 0) return listQuotas(server);
      if (words[0] === 'set') return setQuota(server, words.slice(1));
      if (words[0] === 'max') return maximum(server, words.slice(1));
      return words.length === 1 ? usage(server, words[0]) : INVALID;
    },
  },
  'quota-soft': {
    parameters: '[set <name> <val>]',
    run(server, words) {
      const { softQuotas } = server;
      if (words.length === 0) {
        const what = 'Total Xenstore memory per domain (warning level)';
        return { text: `Quota settings:\n${quotaLine('memory', softQuotas.memory)} ${what}\n\0` };
      }
      if (words.length !== 3 || words[0] !== 'set' || words[1] !== 'memory' || !(Number(words[2]) >= 1)) {
        return INVALID;
      }
      softQuotas.memory = Math.floor(Number(words[2]));
      return OK;
    },
  },
  help: {
    parameters: '',
    run(_server, words) {
      if (words.length > 0) return INVALID;
      const lines = Object.entries(commands).map(
        ([name, { parameters }]) => `${name.padEnd(15)} ${parameters}\n`,
      );
      return { text: `${lines.join('')}\0` };
    },
  },
};

/** Runs a CONTROL command: its name, then its parameters. */
export function control(server: XenStoreServer, words: string[]): ControlAnswer {
  const [name, ...parameters] = words;
  if (name === undefined || !Object.hasOwn(commands, name)) return INVALID;
  return commands[name].run(server, parameters);
}

/** Does what may fail for reasons of the host's; the log has the words that the answer has no room for. */
function attempt(server: XenStoreServer, what: string, action: () => void): ControlAnswer {
  try {
    action();
    return OK;
  } catch (error) {
    server.log(`${what}: ${(error as Error).message}`);
    return { error: parseXsdError((error as { code?: string }).code ?? '') };
  }
}

function memoryReport({ store, connections }: XenStoreServer): string[] {
  const lines = [`${store.nodeCount} nodes, ${connections.size} connections`];
  for (const { domid, usage } of store.domains) {
    lines.push(`domain ${domid}: ${usage.memory} bytes, ${usage.nodes} nodes`);
  }
  return lines;
}

function quotaLine(name: string, value: number): string {
  return `${name.padEnd(17)}: ${String(value).padStart(8)}`;
}

function listQuotas(server: XenStoreServer): ControlAnswer {
  const lines = QUOTA_NAMES.map(
    name => `${quotaLine(name, server.store.quotas[name])} ${QUOTAS[name].what}\n`,
  );
  return { text: `Quota settings:\n${lines.join('')}\0` };
}

function setQuota(server: XenStoreServer, words: string[]): ControlAnswer {
  const [name, value] = words;
  if (words.length !== 2 || !isQuotaName(name) || !/^[0-9]{1,9}$/.test(value) || Number(value) < 1) {
    return INVALID;
  }
  server.store.quotas[name] = Number(value);
  return OK;
}

function usage(server: XenStoreServer, word: string): ControlAnswer {
  if (!/^[0-9]{1,5}$/.test(word)) return INVALID;
  const domain = server.store.domains.get(Number(word));
  if (domain === undefined) return { error: 'ENOENT' };
  const lines = Object.entries(domain.usage).map(([name, used]) => `${quotaLine(name, used)}\n`);
  return { text: `Domain ${domain.domid}:\n${lines.join('')}\0` };
}

function maximum(server: XenStoreServer, words: string[]): ControlAnswer {
  if (words.length > 1 || (words.length === 1 && words[0] !== '-r')) return INVALID;
  const { peaks } = server.store.domains;
  if (words.length === 1) for (const name of Object.keys(peaks) as (keyof typeof peaks)[]) peaks[name] = 0;
  const lines = Object.entries(peaks).map(([name, peak]) => `${quotaLine(name, peak)}\n`);
  return { text: `Max. seen accounting values:\n${lines.join('')}\0` };
}
