import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { createInterface } from 'node:readline';
import { checked, F_SETFD, F_SETFL, FD_CLOEXEC, libc, O_NONBLOCK, O_RDWR } from '../platform/linux/libc.js';
import { UplinkError } from './error.js';
import { adoptTun, type Tap, TUN_DEVICE, tapObstacle } from './tap.js';

/** The file descriptor under which the holder opens /dev/net/tun. */
const HELD_FD = 3;

/**
 * What the process does that holds a namespace: it opens /dev/net/tun when told to, which ties the file to
 * the namespace, and closes it when we have our copy. It ends with its input, and so with us, however we
 * end.
 */
const HOLDER = `
mount -t sysfs sysfs /sys 2>/dev/null
echo ready
while read -r line; do
  if [ "$line" = close ]; then exec ${HELD_FD}>&-; echo closed
  elif command exec ${HELD_FD}<>${TUN_DEVICE}; then echo open
  else echo failed
  fi
done`;

function noNamespace(user: boolean, said: string): UplinkError {
  const advice = user
    ? 'allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, ' +
      'kernel.apparmor_restrict_unprivileged_userns), or run as root'
    : 'root needs CAP_SYS_ADMIN, which a container often lacks';
  return new UplinkError(
    'EPERM',
    `no network namespace (${said || 'unshare said nothing'}): ${advice}; guests of kind "echo" and "module" work without`,
  );
}

function ipError(command: string, stderr: string): UplinkError {
  const said = stderr.trim().split('\n').slice(-3).join('; ');
  return new UplinkError('EINVAL', `"ip ${command}" in the namespace: ${said}`);
}

/** The result of a program that has ended. */
export interface Outcome {
  /** Exit status; 128 + the signal's number when a signal ended it. */
  status: number;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end, which comes soon after `signal`. @throws UplinkError ENOENT when there is no such program */
export function runProgram(argv: readonly string[], input = '', signal?: AbortSignal): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(argv[0], argv.slice(1), { stdio: 'pipe', signal });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', chunk => {
      stdout += chunk;
    });
    child.stderr.on('data', chunk => {
      stderr += chunk;
    });
    child.on('error', error => reject(programError(argv[0], error)));
    child.on('close', (code, endedBy) => {
      resolve({ status: code ?? 128 + constants.signals[endedBy!], stdout, stderr });
    });
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}

const PACKAGES: Record<string, string> = { unshare: 'util-linux', nsenter: 'util-linux', ip: 'iproute2' };

function programError(program: string, error: Error): UplinkError {
  const code = (error as NodeJS.ErrnoException).code;
  const hint = PACKAGES[program] === undefined ? '' : ` (Debian's package ${PACKAGES[program]})`;
  return code === 'ENOENT'
    ? new UplinkError('ENOENT', `the program "${program}"${hint} is not installed`)
    : new UplinkError('EIO', `${program} does not start: ${error.message}`);
}

/**
 * A Linux network namespace of our own, with a sysfs that shows it. As root it is just that; for any other
 * user it comes with a user namespace in which this user is root, where the kernel allows that. It exists
 * as long as the process that holds it, which ends with ours.
 */
export class NetworkNamespace {
  private opening: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly holder: ChildProcessWithoutNullStreams,
    private readonly replies: AsyncIterator<string>,
    private readonly errors: { text: string },
    /** It came with a user namespace. */
    readonly user: boolean,
  ) {}

  /** @throws UplinkError that says what is missing */
  static async create(): Promise<NetworkNamespace> {
    const user = process.getuid?.() !== 0;
    const flags = user ? ['--user', '--map-root-user'] : [];
    const argv = [...flags, '--net', '--mount', '--', 'sh', '-c', HOLDER];
    // In a session of its own, so that Ctrl-C in the terminal reaches only us, and the order stays ours.
    const holder = spawn('unshare', argv, { stdio: 'pipe', detached: true });
    const errors = { text: '' };
    holder.stderr.on('data', chunk => {
      errors.text = (errors.text + chunk).slice(-2000);
    });
    holder.stdin.on('error', () => {});
    // Only then everything that it said has been read.
    const closed = new Promise<void>(resolve => holder.on('close', () => resolve()));
    const failed = new Promise<never>((_, reject) => {
      holder.on('error', error => reject(programError('unshare', error)));
    });
    const replies = createInterface({ input: holder.stdout })[Symbol.asyncIterator]();
    const first = await Promise.race([replies.next(), failed]);
    if (first.done) {
      await closed;
      throw noNamespace(user, errors.text.trim());
    }
    failed.catch(() => {});
    return new NetworkNamespace(holder, replies, errors, user);
  }

  /** The process that holds it: what tools that take a pid (nsenter -t) want. */
  get pid(): number {
    return this.holder.pid!;
  }

  /** Makes a TAP device inside. @throws UplinkError */
  openTap(name: string): Promise<Tap> {
    const result = this.opening.then(() => this.openHeld(name));
    this.opening = result.catch(() => {});
    return result;
  }

  /** What to run so that `argv` runs inside. */
  command(argv: readonly string[], workingDirectory = process.cwd()): string[] {
    const user = this.user ? ['--user', '--preserve-credentials'] : [];
    const enter = ['nsenter', '--target', String(this.pid), ...user, '--net', '--mount'];
    return [...enter, `--wd=${workingDirectory}`, '--', ...argv];
  }

  /** Runs a program inside to its end. */
  run(argv: readonly string[], input = ''): Promise<Outcome> {
    return runProgram(this.command(argv), input);
  }

  /** Runs commands of iproute2's `ip` inside, one a line. @throws UplinkError EINVAL with what `ip` said */
  ip(...lines: string[]): Promise<void> {
    return this.batch([], lines);
  }

  /** `ip` for addresses of one family, where a line does not tell which. @throws UplinkError EINVAL */
  ipOf(family: 4 | 6, ...lines: string[]): Promise<void> {
    return this.batch([`-${family}`], lines);
  }

  /** What `ip` shows inside. @throws UplinkError EINVAL with what it said */
  async show(argv: readonly string[]): Promise<string> {
    const { status, stdout, stderr } = await this.run(['ip', ...argv]);
    if (status !== 0) throw ipError(argv.join(' '), stderr);
    return stdout;
  }

  /** The programs that run inside, as far as we may see, beside the one that holds it. */
  programs(): { pid: number; name: string }[] {
    const inside = readlinkSync(`/proc/${this.pid}/ns/net`);
    const programs: { pid: number; name: string }[] = [];
    for (const entry of readdirSync('/proc')) {
      const pid = Number(entry);
      if (!(pid > 0) || pid === this.pid) continue;
      try {
        if (readlinkSync(`/proc/${pid}/ns/net`) !== inside) continue;
        programs.push({ pid, name: readFileSync(`/proc/${pid}/comm`, 'utf8').trim() });
      } catch {
        // It has ended, or is another user's, who cannot enter the namespace.
      }
    }
    return programs;
  }

  private async batch(options: readonly string[], lines: readonly string[]): Promise<void> {
    const { status, stderr } = await this.run(['ip', ...options, '-batch', '-'], `${lines.join('\n')}\n`);
    if (status !== 0) throw ipError(lines.join('; '), stderr);
  }

  /** Gives it up: what is in it is gone when the last process in it ends. */
  close(): Promise<void> {
    if (this.holder.exitCode !== null || this.holder.signalCode !== null) return Promise.resolve();
    return new Promise(resolve => {
      this.holder.once('exit', () => resolve());
      this.holder.stdin.end();
    });
  }

  private async openHeld(name: string): Promise<Tap> {
    const obstacle = tapObstacle();
    if (obstacle !== null) throw new UplinkError('ENODEV', `no TAP device: ${obstacle}`);
    this.errors.text = '';
    this.holder.stdin.write('open\n');
    const reply = await this.replies.next();
    if (reply.done || reply.value !== 'open') {
      throw new UplinkError(
        'EIO',
        `${TUN_DEVICE} in the namespace: ${this.errors.text.trim() || 'no answer'}`,
      );
    }
    const c = libc();
    const pidfd = checked(c.pidfdOpen(this.pid), `pidfd_open of the namespace's holder ${this.pid}`);
    let fd: number;
    try {
      fd = checked(
        c.pidfdGetfd(pidfd, HELD_FD),
        'pidfd_getfd (Linux 5.6 or later, and the right to trace) of a TAP',
      );
    } finally {
      c.close(pidfd);
      // Until the holder has let go, the device would outlive our closing it.
      this.holder.stdin.write('close\n');
      await this.replies.next();
    }
    c.fcntl(fd, F_SETFD, FD_CLOEXEC);
    c.fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
    return adoptTun(fd, name, `/proc/${this.pid}/root`);
  }
}

/** What keeps this machine from network namespaces with TAPs, in words; null when nothing does. */
export async function namespaceObstacle(): Promise<string | null> {
  try {
    const namespace = await NetworkNamespace.create();
    try {
      (await namespace.openTap('probe0')).close();
      await namespace.ip('link set lo up');
    } finally {
      await namespace.close();
    }
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}
