import { closeSync, openSync, writeSync } from 'node:fs';
import { type Command, type Invocation, UsageError } from './command.js';
import type { NetMethods } from './net-methods.js';
import type { Printed } from './printed.js';
import { CliError } from './rpc.js';

async function run<N extends keyof NetMethods>(
  { host, flag }: Invocation,
  method: N,
  params: NetMethods[N]['params'],
): Promise<number> {
  const { status, stdout, stderr } = await (await host()).call<Printed>(method, params);
  // What the tools print is text, but for ip, which has JSON of its own.
  const asText = method === 'ip' || stdout === '' || !flag('json');
  process.stdout.write(asText ? stdout : `${JSON.stringify({ text: stdout }, null, 2)}\n`);
  process.stderr.write(stderr);
  return status;
}

/** @throws UsageError for what is not DOMAIN:PATH */
function domainAndPath(text: string): { domain: string; path: string } {
  const colon = text.indexOf(':');
  if (colon <= 0) throw new UsageError(`"${text}": it is DOMAIN:PATH, as Domain-0:/proc/net/dev`);
  return { domain: text.slice(0, colon), path: text.slice(colon + 1) || '/' };
}

/** The commands that look at a domain's network as its own user would. */
export const NET_COMMANDS: Readonly<Record<string, Command>> = {
  ip: {
    usage: 'DOMAIN [-s] [-d] [-j] [-br] [-o] link [show [DEV]|set DEV …|add NAME type KIND|delete DEV]',
    summary: 'Shows and changes the network devices of a domain’s kernel, as iproute2 does.',
    details:
      'link set takes: up, down, mtu N, txqueuelen N, name NAME, address MAC, alias TEXT, group N, promisc, allmulticast, multicast and arp on|off, master BRIDGE, nomaster, type bridge|bridge_slave …; `pvnet ip DOMAIN link help` says it all.',
    passThrough: true,
    arguments: [1, Number.POSITIVE_INFINITY],
    run: invocation => {
      const [domain, ...args] = invocation.positionals;
      return run(invocation, 'ip', { domain, args: invocation.flag('json') ? ['-j', ...args] : args });
    },
  },
  ethtool: {
    usage: 'DOMAIN [-k|-K|-S|-i|-g|-l] DEV [FEATURE on|off …]',
    summary: 'Shows and changes what a domain’s network device can do, as ethtool does.',
    passThrough: true,
    arguments: [2, Number.POSITIVE_INFINITY],
    run: invocation => {
      const [domain, ...args] = invocation.positionals;
      return run(invocation, 'ethtool', { domain, args });
    },
  },
  ls: {
    usage: 'DOMAIN:PATH',
    summary: 'Lists a directory of a domain’s /sys or /proc.',
    options: { long: { type: 'boolean', short: 'l', help: 'with permissions, and where links lead' } },
    arguments: [1, 1],
    run: invocation =>
      run(invocation, 'ls', { ...domainAndPath(invocation.positionals[0]), long: invocation.flag('long') }),
  },
  cat: {
    usage: 'DOMAIN:PATH',
    summary: 'Prints a file of a domain’s /sys or /proc.',
    arguments: [1, 1],
    run: invocation => run(invocation, 'cat', domainAndPath(invocation.positionals[0])),
  },
  write: {
    usage: 'DOMAIN:PATH VALUE',
    summary: 'Writes an attribute of a domain’s /sys.',
    arguments: [2, 2],
    run: invocation =>
      run(invocation, 'write', {
        ...domainAndPath(invocation.positionals[0]),
        value: invocation.positionals[1],
      }),
  },
  monitor: {
    usage: '[DOMAIN]',
    summary: 'Tells of devices, states and notifier events as they happen; with --json a line of JSON each.',
    arguments: [0, 1],
    async run({ positionals: [domain], host, print, flag }) {
      const client = await host();
      await client.call('monitor', { domain, json: flag('json') }, line => print(String(line)));
      return 0;
    },
  },
  nlmon: {
    usage: 'DOMAIN -w FILE',
    summary: 'Captures a domain’s rtnetlink messages into a pcap file, until Ctrl-C.',
    options: { write: { type: 'string', short: 'w', value: 'FILE', help: 'the file' } },
    arguments: [1, 1],
    async run({ positionals: [domain], host, option }) {
      const path = option('write');
      if (path === undefined) throw new UsageError('where to? -w FILE');
      const client = await host();
      // Opened for the first bytes: a domain that there is none of costs no older capture.
      let file: number | null = null;
      const write = (bytes: unknown): void => {
        try {
          file ??= openSync(path, 'w');
          writeSync(file, Buffer.from(String(bytes), 'base64'));
        } catch (error) {
          throw new CliError('EIO', `${path} cannot be written (${(error as NodeJS.ErrnoException).code})`);
        }
      };
      try {
        await client.call('nlmon', { domain }, write);
      } finally {
        if (file !== null) closeSync(file);
      }
      return 0;
    },
  },
};
