import { table } from './command.js';

const colour = process.stdout.isTTY && !process.env['NO_COLOR'];
export const bold = (text: string): string => (colour ? `\x1b[1m${text}\x1b[0m` : text);
export const dim = (text: string): string => (colour ? `\x1b[2m${text}\x1b[0m` : text);
export const print = (text = ''): void => void process.stdout.write(`${text}\n`);
export const heading = (text: string): void => print(`\n${bold(text)}`);

/** What was measured or checked; one that failed makes the exit status 1. */
export class Results {
  private readonly rows: [string, string][] = [];
  failed = 0;

  /** @param signal after which nothing fails any more: it is interrupted */
  constructor(readonly signal: AbortSignal) {}

  async check(what: string, run: () => Promise<string>): Promise<void> {
    try {
      const result = await run();
      this.signal.throwIfAborted();
      this.rows.push([what, result]);
      print(`  ✓ ${what}: ${result}`);
    } catch (error) {
      this.signal.throwIfAborted();
      this.failed++;
      this.rows.push([what, 'FAILED']);
      print(`  ✗ ${what}: ${(error as Error).message}`);
    }
  }

  note(what: string, result: string): void {
    this.rows.push([what, result]);
  }

  get table(): string {
    return table(['What', 'Result'], this.rows);
  }
}

export const indent = (text: string): string => text.replace(/^/gm, '  ');
