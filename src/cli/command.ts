import { type ParseArgsConfig, parseArgs } from 'node:util';
import { defaultControlSocket, RpcClient } from './rpc.js';

type OptionKinds = NonNullable<ParseArgsConfig['options']>;

/** Arguments that a command does not take: one sentence that says why. */
export class UsageError extends Error {}

/** An option of a command. */
export interface OptionHelp {
  readonly type: 'string' | 'boolean';
  /** Given more than once, all count. */
  readonly multiple?: boolean;
  readonly short?: string;
  /** What stands for the value in the help. */
  readonly value?: string;
  readonly help: string;
}

/** A command as it was given. */
export interface Invocation {
  readonly positionals: readonly string[];
  flag(name: string): boolean;
  option(name: string): string | undefined;
  options(name: string): readonly string[];
  print(text: string): void;
  /** Prints a result: as JSON when --json was given, otherwise what `text` makes of it. */
  show<T>(result: T, text: (result: T) => string): void;
  /** A connection to the host; closed when the command ends. */
  host(): Promise<RpcClient>;
}

/** One of pvnet's commands. */
export interface Command {
  /** What stands behind the command's name, as "DOMAIN [DEVID]". */
  readonly usage: string;
  readonly summary: string;
  /** Sentences for --help. */
  readonly details?: string;
  readonly options?: Readonly<Record<string, OptionHelp>>;
  /** What stands behind the first argument is another program's, options and all. */
  readonly passThrough?: boolean;
  /** Positional arguments: how many at least and at most. */
  readonly arguments: readonly [min: number, max: number];
  /** @returns the exit status @throws UsageError, with which the status is 2; others with 1 */
  run(invocation: Invocation): Promise<number>;
}

const COMMON: Record<string, OptionHelp> = {
  socket: {
    type: 'string',
    value: 'PATH',
    help: 'the host’s control socket (else PVNET_SOCKET, else the default)',
  },
  json: { type: 'boolean', help: 'print JSON' },
  help: { type: 'boolean', short: 'h', help: 'print this' },
};

function helpOf(name: string, command: Command): string {
  const rows = Object.entries({ ...command.options, ...COMMON }).map(([option, { short, value, help }]) => {
    const form = `${short === undefined ? '' : `-${short}, `}--${option}${value === undefined ? '' : ` ${value}`}`;
    return `  ${form.padEnd(28)} ${help}`;
  });
  const details = command.details === undefined ? '' : `\n${command.details}\n`;
  return `Usage: pvnet ${name} ${command.usage}\n\n${command.summary}\n${details}\nOptions:\n${rows.join('\n')}`;
}

/** Runs a command with its arguments. @returns the exit status: 2 for arguments that it does not take */
export async function runCommand(name: string, command: Command, args: string[]): Promise<number> {
  const options: OptionKinds = {};
  for (const [option, { type, multiple, short }] of Object.entries({ ...command.options, ...COMMON })) {
    options[option] = { type, multiple: multiple ?? false, ...(short === undefined ? {} : { short }) };
  }
  let parsed: { values: Record<string, unknown>; positionals: string[] };
  try {
    parsed = parseArgs({
      args: command.passThrough ? passThrough(args) : args,
      options,
      allowPositionals: true,
      strict: true,
    });
  } catch (error) {
    return misused(name, (error as Error).message);
  }
  const { values, positionals } = parsed;
  if (values['help']) {
    process.stdout.write(`${helpOf(name, command)}\n`);
    return 0;
  }
  const [min, max] = command.arguments;
  if (positionals.length < min) return misused(name, `it needs ${command.usage}`);
  if (positionals.length > max) return misused(name, `"${positionals[max]}" is one argument too many`);
  let client: RpcClient | null = null;
  const print = (text: string): void => void process.stdout.write(`${text}\n`);
  try {
    return await command.run({
      positionals,
      flag: option => values[option] === true,
      option: option => values[option] as string | undefined,
      options: option => (values[option] as string[] | undefined) ?? [],
      print,
      show: (result, text) => {
        const shown = values['json'] ? JSON.stringify(result, null, 2) : text(result);
        if (shown !== '') print(shown);
      },
      async host() {
        client ??= await RpcClient.connect(
          (values['socket'] as string | undefined) ?? defaultControlSocket(),
        );
        return client;
      },
    });
  } catch (error) {
    if (error instanceof UsageError) return misused(name, error.message);
    throw error;
  } finally {
    (client as RpcClient | null)?.close();
  }
}

/** Ends our own options behind the first argument. */
function passThrough(args: readonly string[]): string[] {
  let first = 0;
  while (first < args.length && args[first].startsWith('-')) first += args[first] === '--socket' ? 2 : 1;
  return [...args.slice(0, first + 1), '--', ...args.slice(first + 1)];
}

function misused(name: string, what: string): number {
  process.stderr.write(`pvnet ${name}: ${what}\nSee "pvnet ${name} --help".\n`);
  return 2;
}

/**
 * Ends this process when what it prints cannot be written: a reader that went away, as of `pvnet list | head -1`, is no error,
 * a full disk is one.
 */
export function endWithOutput(): void {
  process.stdout.on('error', error => {
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') process.exit(0);
    process.stderr.write(`pvnet: what it prints cannot be written: ${error.message}\n`);
    process.exit(1);
  });
}

/** Rows with aligned columns; a column whose heading starts with ">" is flush right. */
export function table(headings: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const right = headings.map(heading => heading.startsWith('>'));
  const all = [headings.map(heading => heading.replace(/^>/, '')), ...rows.map(row => row.map(String))];
  const widths = headings.map((_, column) => Math.max(...all.map(row => row[column].length)));
  return all
    .map(row =>
      row
        .map((cell, column) => (right[column] ? cell.padStart(widths[column]) : cell.padEnd(widths[column])))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** A whole number in a range out of an argument. @throws UsageError */
export function parseNumber(text: string, what: string, low: number, high: number): number {
  const value = Number(text);
  if (!/^[0-9]+$/.test(text) || value < low || value > high) {
    throw new UsageError(`${what} "${text}": it is a number from ${low} to ${high}`);
  }
  return value;
}
