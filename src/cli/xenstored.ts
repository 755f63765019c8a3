import { parseArgs } from 'node:util';
import { QUOTA_NAMES, type QuotaName, type Quotas, XenStoreError } from '../xenstore/index.js';
import { Daemon, defaultSocketPath } from '../xenstore/node/index.js';

const usage = `Usage: pvnet xenstored [--socket PATH] [--state FILE] [--quota NAME=N]...
                        [--timeout watch-event=SECONDS] [--trace-file FILE]

Runs a xenstored on a UNIX socket, without a hypervisor and without privilege.

  --socket PATH     where to listen (XENSTORED_PATH, or ${defaultSocketPath({})})
  --state FILE      keep the nodes in FILE over restarts and crashes
  --quota NAME=N    a limit for unprivileged domains; 0 for none. Names:
                    ${QUOTA_NAMES.slice(0, 5).join(', ')},
                    ${QUOTA_NAMES.slice(5).join(', ')}
  --timeout watch-event=SECONDS
                    drop an event that a domain makes no room for in this time;
                    0 for never (20)
  --trace-file FILE write the log to FILE
  --help            this text

Update it while it runs: pvnet xenstore control live-update FILE, FILE being the new version's main.js.
`;

/** `pvnet xenstored`: runs until it is told to end. @returns the exit status */
export async function xenstored(args: string[]): Promise<number> {
  let daemon: Daemon;
  const told = new Promise<void>(resolve => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
  try {
    const { values } = parseArgs({
      args,
      options: {
        socket: { type: 'string' },
        state: { type: 'string' },
        quota: { type: 'string', multiple: true },
        timeout: { type: 'string', short: 'w' },
        'trace-file': { type: 'string', short: 'T' },
        resume: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
      },
    });
    const quotas = parseQuotas(values.quota ?? []);
    const watchEventTimeoutMs = parseTimeout(values.timeout);
    if (values.help) {
      process.stdout.write(usage);
      return 0;
    }
    const socket = values.socket ?? defaultSocketPath();
    daemon = await Daemon.start({
      socket,
      stateFile: values.state,
      quotas,
      watchEventTimeoutMs,
      log: line => process.stderr.write(`xenstored: ${line}\n`),
      traceFile: values['trace-file'],
      program: { script: process.argv[1], args: withoutResume(process.argv.slice(2)) },
      resume: values.resume,
    });
    if (values.resume === undefined) process.stdout.write(`xenstored: listens on ${socket}\n`);
  } catch (error) {
    if (!(error instanceof XenStoreError) && !isUsageError(error)) throw error;
    process.stderr.write(`xenstored: ${(error as Error).message}\n`);
    return 1;
  }
  await told;
  await daemon.close();
  return 0;
}

function parseQuotas(settings: string[]): Partial<Quotas> {
  const quotas: Partial<Quotas> = {};
  for (const setting of settings) {
    const [, name, value] = /^(.*)=([0-9]{1,9})$/.exec(setting) ?? [];
    if (!(QUOTA_NAMES as string[]).includes(name)) {
      const names = QUOTA_NAMES.join(', ');
      throw new XenStoreError('EINVAL', `--quota ${setting}: NAME=N is wanted, with a NAME of ${names}`);
    }
    quotas[name as QuotaName] = Number(value);
  }
  return quotas;
}

function parseTimeout(setting: string | undefined): number | undefined {
  if (setting === undefined) return undefined;
  const seconds = /^watch-event=([0-9]{1,6})$/.exec(setting)?.[1];
  if (seconds === undefined) {
    throw new XenStoreError('EINVAL', `--timeout ${setting}: watch-event=SECONDS is wanted`);
  }
  return Number(seconds) * 1000;
}

function withoutResume(args: string[]): string[] {
  const at = args.indexOf('--resume');
  return at < 0 ? args : [...args.slice(0, at), ...args.slice(at + 2)];
}

function isUsageError(error: unknown): boolean {
  return String((error as { code?: string }).code).startsWith('ERR_PARSE_ARGS');
}
