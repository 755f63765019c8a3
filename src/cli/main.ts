#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { type Command, endWithOutput, runCommand } from './command.js';
import { DOMAIN_COMMANDS } from './domain-commands.js';
import { LIFE_COMMANDS } from './life-commands.js';
import { NET_COMMANDS } from './net-commands.js';
import { SELFTEST_COMMANDS } from './selftest.js';
import { VIF_COMMANDS } from './vif-commands.js';

const COMMANDS: Readonly<Record<string, Command>> = {
  ...DOMAIN_COMMANDS,
  ...LIFE_COMMANDS,
  ...NET_COMMANDS,
  ...VIF_COMMANDS,
  ...SELFTEST_COMMANDS,
};

/** A command that lives in a module of its own, loaded when it is used. */
interface LazyCommand {
  readonly summary: string;
  load(): Promise<Command>;
}

const LAZY: Readonly<Record<string, LazyCommand>> = {
  up: {
    summary: 'Starts a simulated Xen host; Ctrl-C shuts it down.',
    load: async () => (await import('./up.js')).UP_COMMAND,
  },
  restore: {
    summary: 'Starts a host as "pvnet save" wrote it to a file.',
    load: async () => (await import('./up.js')).RESTORE_COMMAND,
  },
  backend: {
    summary: 'Serves the vifs of other domains on a real Xen host.',
    load: async () => (await import('./backend.js')).BACKEND_COMMAND,
  },
  console: {
    summary: 'Sits at the console of a guest of kind "linux"; Ctrl-] leaves.',
    load: async () => (await import('./console.js')).CONSOLE_COMMAND,
  },
  linux: {
    summary: 'Gets what guests of kind "linux" boot.',
    load: async () => (await import('./linux.js')).LINUX_COMMAND,
  },
  frontend: {
    summary: 'Drives this domain’s own vifs on a real Xen host.',
    load: async () => (await import('./frontend.js')).FRONTEND_COMMAND,
  },
};

/** Commands with the arguments, help and statuses of the real tools, which parse them themselves. */
const WHOLE: Readonly<Record<string, { summary: string; run(args: string[]): Promise<number> }>> = {
  xenstored: {
    summary: 'Runs a XenStore server alone.',
    run: async args => (await import('./xenstored.js')).xenstored(args),
  },
  xenstore: {
    summary: 'Reads and writes XenStore as the xenstore-* tools do: ls, read, write, watch …',
    run: async args => (await import('./xenstore.js')).xenstore(args),
  },
};

async function find(name: string): Promise<Command | undefined> {
  if (Object.hasOwn(COMMANDS, name)) return COMMANDS[name];
  return Object.hasOwn(LAZY, name) ? LAZY[name].load() : undefined;
}

function usage(): string {
  const summaries = [
    ...Object.entries(LAZY).map(([name, { summary }]) => [name, summary]),
    ...Object.entries(COMMANDS).map(([name, { summary }]) => [name, summary]),
    ...Object.entries(WHOLE).map(([name, { summary }]) => [name, summary]),
  ];
  const rows = summaries.map(([name, summary]) => `  ${name.padEnd(12)} ${summary}`);
  return `Usage: pvnet COMMAND [ARGUMENT…]\n\n${rows.join('\n')}\n\nSee "pvnet COMMAND --help". "pvnet --version" tells which one this is.`;
}

function version(): string {
  return JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')).version;
}

async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    if (name === 'help' && rest.length > 0) return main([rest[0], '--help']);
    process.stdout.write(`${usage()}\n`);
    return name === undefined ? 2 : 0;
  }
  if (name === '--version') {
    process.stdout.write(`pvnet ${version()}\n`);
    return 0;
  }
  try {
    if (Object.hasOwn(WHOLE, name)) return await WHOLE[name].run(rest);
    const command = await find(name);
    if (command !== undefined) return await runCommand(name, command, rest);
    process.stderr.write(`pvnet: there is no command "${name}"\n\n${usage()}\n`);
    return 2;
  } catch (error) {
    process.stderr.write(`pvnet ${name}: ${(error as Error).message}\n`);
    return 1;
  }
}

endWithOutput();
const status = await main(process.argv.slice(2));
// What became of the last that was printed is told in the next tick.
setImmediate(() => process.exit(status));
