import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

export interface Finished {
  status: number | null;
  stdout: string;
  stderr: string;
}

async function finish(child: ChildProcess): Promise<Finished> {
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', chunk => {
    stdout += chunk;
  });
  child.stderr?.on('data', chunk => {
    stderr += chunk;
  });
  const [status] = (await once(child, 'close')) as [number | null];
  return { status, stdout, stderr };
}

/** A `pvnet up` of its own, with its files and sockets in a folder of its own. */
export class PvnetUp {
  readonly dir = mkdtempSync(join(tmpdir(), 'pvnet-e2e-'));
  readonly socket = join(this.dir, 'control.sock');
  readonly xenstored = join(this.dir, 'xenstored.sock');
  private child!: ChildProcess;
  private finished!: Promise<Finished>;
  private readonly running = new Set<ChildProcess>();

  /** @param domains the text of a domain file by its name */
  static async start(domains: Record<string, string>, args: string[] = []): Promise<PvnetUp> {
    const host = new PvnetUp();
    const files = Object.entries(domains).map(([name, text]) => {
      const file = join(host.dir, `${name}.cfg`);
      writeFileSync(file, text);
      return file;
    });
    const options = ['--socket', host.socket, '--xenstored', host.xenstored];
    host.child = spawn(process.execPath, [main, 'up', ...files, ...options, ...args], { stdio: 'pipe' });
    host.finished = finish(host.child);
    await new Promise<void>((resolve, reject) => {
      let out = '';
      host.child.stdout?.on('data', chunk => {
        out += chunk;
        if (out.includes('ready')) resolve();
      });
      host.finished.then(({ stdout, stderr }) => reject(new Error(`pvnet up ended: ${stdout}${stderr}`)));
    });
    return host;
  }

  /** Runs a pvnet command against this host. */
  run(...args: string[]): Promise<Finished> {
    return finish(this.spawn(...args));
  }

  spawn(...args: string[]): ChildProcess {
    const env = { ...process.env, PVNET_SOCKET: this.socket };
    const child = spawn(process.execPath, [main, ...args], { env, stdio: 'pipe' });
    this.running.add(child);
    child.on('close', () => this.running.delete(child));
    return child;
  }

  /** Runs a command that must succeed. @returns what it printed */
  async ok(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.run(...args);
    if (status !== 0) throw new Error(`pvnet ${args.join(' ')}: status ${status}\n${stdout}\n${stderr}`);
    return stdout;
  }

  exec(domain: string, ...command: string[]): Promise<string> {
    return this.ok('exec', domain, '--', ...command);
  }

  /** Runs one of Debian's xenstore tools against this host's xenstored. */
  async xenstore(tool: string, ...args: string[]): Promise<Finished> {
    const env = { ...process.env, XENSTORED_PATH: this.xenstored };
    return finish(spawn(`xenstore-${tool}`, args, { env, stdio: 'pipe' }));
  }

  /** Ctrl-C; ends the commands that a failed test has left, too. */
  async stop(): Promise<Finished> {
    for (const child of this.running) child.kill('SIGTERM');
    this.child.kill('SIGINT');
    const finished = await this.finished;
    rmSync(this.dir, { recursive: true, force: true });
    return finished;
  }
}
