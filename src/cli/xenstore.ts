import { parseArgs } from 'node:util';
import { type ClientTransaction, XenStoreClient, XenStoreError } from '../xenstore/index.js';
import { connectXenStore, defaultSocketPath } from '../xenstore/node/index.js';
import { escapeValue, unescapeValue } from './escape.js';

const options = {
  help: { type: 'boolean', short: 'h' },
  socket: { type: 'string' },
  json: { type: 'boolean' },
  flat: { type: 'boolean', short: 'f' },
  prefix: { type: 'boolean', short: 'p' },
  tidy: { type: 'boolean', short: 't' },
  upto: { type: 'boolean', short: 'u' },
  recurse: { type: 'boolean', short: 'r' },
  number: { type: 'string', short: 'n' },
  raw: { type: 'boolean', short: 'R' },
  depth: { type: 'string', short: 'd' },
  'socket-only': { type: 'boolean', short: 's' },
} as const;

type OptionName = keyof typeof options;
type Values = { [name in OptionName]?: (typeof options)[name]['type'] extends 'boolean' ? boolean : string };
/** A client, or one of its transactions. */
type Nodes = XenStoreClient | ClientTransaction;

/** Where results go: the process's standard output, or a test's. */
export interface Output {
  write(text: string | Uint8Array): void;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

interface Mode {
  readonly usage: string;
  readonly allowed: readonly OptionName[];
  /** Paths and values that must be there. */
  accepts(words: string[]): boolean;
  /** Whether all is done in one transaction. */
  isTransaction(words: string[]): boolean;
  /** @returns what to print, and the exit status */
  run(nodes: Nodes, words: string[], values: Values, output: Output): Promise<Result>;
}

interface Result {
  text?: string | Uint8Array;
  /** What --json prints instead. */
  json?: unknown;
  status?: number;
}

const some = (words: string[]) => words.length > 0;
const always = () => true;
const never = () => false;

const modes: Record<string, Mode> = {
  ls: {
    usage: '[-h] [-s] [-f] [-p] [path]',
    allowed: ['flat', 'prefix'],
    accepts: always,
    isTransaction: never,
    run: ls,
  },
  read: {
    usage: '[-h] [-s] [-p] [-R] key [...]',
    allowed: ['prefix', 'raw'],
    accepts: some,
    isTransaction: words => words.length > 1,
    run: read,
  },
  write: {
    usage: '[-h] [-s] [-R] key value [...]',
    allowed: ['raw'],
    accepts: words => words.length > 0 && words.length % 2 === 0,
    isTransaction: words => words.length > 2,
    run: write,
  },
  rm: { usage: '[-h] [-s] [-t] key [...]', allowed: ['tidy'], accepts: some, isTransaction: always, run: rm },
  list: {
    usage: '[-h] [-s] [-p] key [...]',
    allowed: ['prefix'],
    accepts: some,
    isTransaction: always,
    run: list,
  },
  exists: { usage: '[-h] [-s] key [...]', allowed: [], accepts: some, isTransaction: always, run: exists },
  chmod: {
    usage: '[-h] [-s] [-u] [-r] key <mode [modes...]>',
    allowed: ['upto', 'recurse'],
    accepts: words => words.length > 1,
    isTransaction: always,
    run: chmod,
  },
  watch: {
    usage: '[-h] [-s] [-n NR] [-d DEPTH] key [...]',
    allowed: ['number', 'depth'],
    accepts: some,
    isTransaction: never,
    run: watch,
  },
  control: {
    usage: '[-h] [-s] command [...]',
    allowed: [],
    accepts: some,
    isTransaction: never,
    run: control,
  },
};

/** `pvnet xenstore MODE …`: what xenstore-ls, -read, … do, with their flags and output. @returns exit status */
export async function xenstore(args: string[], output: Output = process.stdout): Promise<number> {
  const [name, ...rest] = args;
  const mode = name !== undefined && Object.hasOwn(modes, name) ? modes[name] : undefined;
  if (mode === undefined) {
    const names = Object.keys(modes).join('|');
    (name === '--help' || name === '-h' ? process.stdout : process.stderr).write(
      `Usage: pvnet xenstore ${names} [-h] [--socket PATH] [--json] [...]\n`,
    );
    return name === '--help' || name === '-h' ? 0 : 1;
  }
  const usage = `Usage: pvnet xenstore ${name} ${mode.usage} [--socket PATH] [--json]\n`;
  let values: Values;
  let words: string[];
  try {
    // What follows a control command is the command's own, whatever it looks like.
    const own = name === 'control' ? rest.findIndex(isCommandWord) : -1;
    const ours = own < 0 ? rest : rest.slice(0, own);
    const parsed = parseArgs({ args: ours, options, allowPositionals: true });
    values = parsed.values;
    words = own < 0 ? parsed.positionals : rest.slice(own);
    for (const given of Object.keys(values) as OptionName[]) {
      if (!['help', 'socket', 'socket-only', 'json', ...mode.allowed].includes(given))
        throw new Error(`no option --${given}`);
    }
    if (!values.help && !mode.accepts(words)) throw new Error('something is missing');
  } catch (error) {
    process.stderr.write(`xenstore ${name}: ${(error as Error).message}\n${usage}`);
    return 1;
  }
  if (values.help) {
    output.write(usage);
    return 0;
  }
  // -s of the real tools: the socket, even where the kernel has a device.
  const path = values.socket ?? (values['socket-only'] ? defaultSocketPath() : undefined);
  const client = new XenStoreClient(connectXenStore(path));
  try {
    const result = mode.isTransaction(words)
      ? await client.transaction(t => mode.run(t, words, values, output))
      : await mode.run(client, words, values, output);
    if (values.json && result.json !== undefined) output.write(`${JSON.stringify(result.json)}\n`);
    else if (!values.json && result.text !== undefined) output.write(result.text);
    return result.status ?? 0;
  } catch (error) {
    if (!(error instanceof XenStoreError)) throw error;
    process.stderr.write(`xenstore ${name}: ${error.message}\n`);
    return 1;
  } finally {
    client.close();
  }
}

function isCommandWord(word: string, at: number, words: string[]): boolean {
  return !word.startsWith('-') && words[at - 1] !== '--socket';
}

async function read(nodes: Nodes, paths: string[], { prefix, raw }: Values): Promise<Result> {
  const values = [];
  for (const path of paths) values.push(await nodes.readBytes(path));
  const parts = values.flatMap((value, i) => [
    Buffer.from(prefix ? `${paths[i]}: ` : ''),
    raw ? value : Buffer.from(`${escapeValue(value)}\n`),
  ]);
  return {
    text: Buffer.concat(parts),
    json: Object.fromEntries(values.map((value, i) => [paths[i], Buffer.from(value).toString()])),
  };
}

async function write(nodes: Nodes, words: string[], { raw }: Values): Promise<Result> {
  for (let i = 0; i < words.length; i += 2) {
    await nodes.write(words[i], raw ? words[i + 1] : unescapeValue(words[i + 1]));
  }
  return {};
}

async function rm(nodes: Nodes, paths: string[], { tidy }: Values): Promise<Result> {
  for (let path of paths) {
    await nodes.rm(path);
    // Tidying goes on with each parent that is left empty and has no value.
    while (tidy && path.lastIndexOf('/') > 0) {
      path = path.slice(0, path.lastIndexOf('/'));
      if ((await nodes.readBytes(path)).length > 0 || (await nodes.directory(path)).length > 0) break;
      await nodes.rm(path);
    }
  }
  return {};
}

async function list(nodes: Nodes, paths: string[], { prefix }: Values): Promise<Result> {
  let text = '';
  const lists: [path: string, names: string[]][] = [];
  for (const path of paths) {
    const names = await nodes.directory(path);
    lists.push([path, names]);
    const front = prefix ? `${path === '/' ? '' : path}/` : '';
    for (const name of names) text += `${front}${name}\n`;
  }
  return { text, json: Object.fromEntries(lists) };
}

async function exists(nodes: Nodes, paths: string[]): Promise<Result> {
  const found: [path: string, isThere: boolean][] = [];
  for (const path of paths) found.push([path, await nodes.exists(path)]);
  return { json: Object.fromEntries(found), status: found.every(([, isThere]) => isThere) ? 0 : 1 };
}

async function chmod(nodes: Nodes, words: string[], { upto, recurse }: Values): Promise<Result> {
  const [path, ...perms] = words;
  for (const perm of perms) {
    if (!/^[nrwb][0-9]+$/.test(perm)) {
      throw new XenStoreError('EINVAL', `${perm} is no permission: a letter of n, r, w, b and a domid is`);
    }
  }
  await nodes.setPerms(path, perms);
  if (upto) {
    for (let at = path.lastIndexOf('/'); at > 0; at = path.lastIndexOf('/', at - 1)) {
      await nodes.setPerms(path.slice(0, at), perms);
    }
  }
  if (recurse) await chmodBelow(nodes, path, perms);
  return {};
}

async function chmodBelow(nodes: Nodes, path: string, perms: string[]): Promise<void> {
  for (const name of await nodes.directory(path)) {
    const child = join(path, name);
    await nodes.setPerms(child, perms);
    await chmodBelow(nodes, child, perms);
  }
}

function join(path: string, name: string): string {
  return path.endsWith('/') ? `${path}${name}` : `${path}/${name}`;
}

async function watch(
  nodes: Nodes,
  paths: string[],
  { number, depth, json }: Values,
  output: Output,
): Promise<Result> {
  const client = nodes as XenStoreClient;
  let left = number === undefined ? Number.POSITIVE_INFINITY : count(number, '-n');
  return new Promise((resolve, reject) => {
    client.onClose = reject;
    client.onWatchEvent = path => {
      if (left <= 0) return;
      output.write(json ? `${JSON.stringify({ path })}\n` : `${path}\n`);
      if (--left <= 0) resolve({});
    };
    (async () => {
      const levels = depth === undefined ? undefined : count(depth, '-d');
      for (const path of paths) await client.watchRaw(path, path, levels);
      if (left <= 0) resolve({});
    })().catch(reject);
  });
}

function count(text: string, option: string): number {
  if (/^[0-9]{1,9}$/.test(text)) return Number(text);
  throw new XenStoreError('EINVAL', `${option} ${text}: a number is wanted`);
}

async function control(nodes: Nodes, words: string[]): Promise<Result> {
  const client = nodes as XenStoreClient;
  const [command, ...parameters] = words;
  if (command === 'live-update') return liveUpdate(client, parameters);
  const text = await client.control(command, ...parameters);
  return { text: text.endsWith('\n') ? text : `${text}\n`, json: text };
}

/**
 * `live-update [-c CMDLINE] [-F] [-t TIMEOUT] [FILE]`, as of xenstore-control, in the parts that xenstored
 * takes; without FILE it starts the program that runs anew. A part by itself (-f FILE, -c CMDLINE, -a, -s)
 * is sent as it is.
 */
async function liveUpdate(client: XenStoreClient, parameters: string[]): Promise<Result> {
  const parts: string[][] = [];
  const waiting: string[] = [];
  let isWhole = true;
  const left = parameters.slice();
  for (let word = left.shift(); word !== undefined; word = left.shift()) {
    if (word === '-a' || word === '-s' || word === '-f') isWhole = false;
    if (word === '-a') parts.push([word]);
    else if (word === '-F') waiting.push(word);
    else if (word === '-t') waiting.push(word, wanted(left.shift(), '-t TIMEOUT'));
    else if (word === '-c') parts.push([word, wanted(left.shift(), '-c CMDLINE')]);
    else if (word === '-f') parts.push([word, wanted(left.shift(), '-f FILE')]);
    else if (!word.startsWith('-') && left.length === 0) parts.unshift(['-f', word]);
    else if (word !== '-s') throw new XenStoreError('EINVAL', `live-update: ${word} is not understood`);
  }
  // A command line alone is a part as well.
  if (parameters[0] === '-c' && parameters.length === 2) isWhole = false;
  if (isWhole || parameters.includes('-s')) parts.push(['-s', ...waiting]);
  for (const part of parts) {
    const answer = await client.control('live-update', ...part);
    if (answer !== 'OK') throw new XenStoreError('EINVAL', `live-update ${part.join(' ')}: ${answer}`);
  }
  return { text: 'OK\n', json: 'OK' };
}

function wanted(word: string | undefined, what: string): string {
  if (word === undefined) throw new XenStoreError('EINVAL', `live-update: ${what} is wanted`);
  return word;
}

/** Room that ` = "..."` takes, and where permissions begin, in lines that are not flat. */
const TAG_LENGTH = 8;
const PERMS_COLUMN = 60;

interface Entry {
  path: string;
  value?: string;
  perms?: string[];
}

async function ls(nodes: Nodes, paths: string[], values: Values, output: Output): Promise<Result> {
  const lines: string[] = [];
  const entries: Entry[] = [];
  const width = output.isTTY ? (output.columns ?? 80) - 2 : 80;
  const lister = new Lister(nodes, values, values.flat ? Number.MAX_SAFE_INTEGER : width, lines, entries);
  for (const path of paths.length > 0 ? paths : ['/']) await lister.list(path, 0);
  return { text: lines.join(''), json: entries };
}

class Lister {
  constructor(
    readonly nodes: Nodes,
    readonly values: Values,
    readonly width: number,
    readonly lines: string[],
    readonly entries: Entry[],
  ) {}

  async list(path: string, depth: number): Promise<void> {
    let names: string[];
    try {
      names = await this.nodes.directory(path);
    } catch (error) {
      // A node that went away meanwhile is no error.
      if (depth > 0 && (error as XenStoreError).code === 'ENOENT') return;
      throw error;
    }
    for (const name of names) {
      const child = join(path, name);
      const [value, perms] = await Promise.all([
        this.nodes.readBytes(child).catch(() => undefined),
        this.values.prefix || this.values.json
          ? this.nodes.getPerms(child).catch(() => undefined)
          : undefined,
      ]);
      this.entries.push({ path: child, value: value && Buffer.from(value).toString(), perms });
      this.lines.push(this.#line(child, name, depth, value, this.values.prefix ? perms : undefined));
      await this.list(child, depth + 1);
    }
  }

  #line(path: string, name: string, depth: number, value: Uint8Array | undefined, perms?: string[]): string {
    const { width } = this;
    const { flat } = this.values;
    let line = flat ? path : ' '.repeat(depth) + name.slice(0, Math.max(width - TAG_LENGTH - depth, 0));
    let column = flat ? 0 : line.length;
    if (value === undefined) line += ':\n';
    else if (width < column + value.length + TAG_LENGTH) {
      line += ` = "${escapeValue(value).slice(0, Math.max(width - TAG_LENGTH - column, 0))}\\..."`;
    } else {
      const shown = ` = "${escapeValue(value)}"`;
      line += shown;
      column += shown.length;
      if (this.values.prefix) {
        line += ' ';
        const stop = flat ? 0 : Math.min(PERMS_COLUMN, width);
        for (column++; column < stop; column++) line += column & 1 ? '.' : ' ';
      }
    }
    if (perms !== undefined) line += `  (${perms.join(',')})`;
    return `${line}\n`;
  }
}
