import { ErrnoError } from '../../abi/errno.js';
import type { GuestConsole } from '../guest.js';

/** An emulated machine on a busy one takes its time. */
const TIMEOUT_MS = 120_000;

let commands = 0;

/**
 * Runs a command in the shell that a guest has at its console. Nobody else may type there meanwhile.
 * @returns its status, and what the console showed, with "\n" between lines
 * @throws ErrnoError ETIMEDOUT with what there was to see
 */
export function runInShell(
  console: GuestConsole,
  command: string,
  timeoutMs = TIMEOUT_MS,
): Promise<{ status: number; output: string }> {
  // What is typed is echoed: the marks must not be found there.
  const number = ++commands;
  const begin = `begin-${number}-`;
  const end = new RegExp(`end-${number}-(\\d+)\r?\n`);
  return new Promise((resolve, reject) => {
    let seen = '';
    const done = (): void => {
      clearTimeout(timer);
      stop();
    };
    const timer = setTimeout(() => {
      done();
      reject(new ErrnoError('ETIMEDOUT', `"${command}" did not end in the guest: ${seen}`));
    }, timeoutMs);
    const stop = console.onOutput(text => {
      seen += text;
      const match = end.exec(seen);
      if (match === null) return;
      done();
      const start = seen.indexOf('\n', seen.lastIndexOf(begin)) + 1;
      const output = seen.slice(start, match.index).replaceAll('\r', '');
      resolve({ status: Number(match[1]), output });
    });
    console.type(`echo begin''-${number}-; ${command}; echo end''-${number}-$?\n`);
  });
}
