import { execFile } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheFolder, cacheName, LinuxGuestError } from './files.js';
import { buildInitramfs } from './initramfs.js';

const run = promisify(execFile);

/** Debian 12's kernel for 32-bit PCs with PAE, the only one of them with Xen's drivers. */
const KERNEL = /^linux-image-6\.1\.0-\d+-686-pae$/;
/** What goes into the initramfs, with what their programs link to; and the BIOS. */
const PACKAGES = [
  'busybox-static',
  'seabios',
  'iperf3',
  'libiperf0',
  'libssl3',
  'libsctp1',
  'libc6',
  'ethtool',
  'libmnl0',
  'tcpdump',
  'libpcap0.8',
  'libdbus-1-3',
  'libsystemd0',
  'liblzma5',
  'libzstd1',
  'liblz4-1',
  'libgcrypt20',
  'libgpg-error0',
  'libcap2',
];
const OWN_FILES = 'or name files of your own in the domain file: kernel = "…", ramdisk = "…", bios = "…"';
/** For what apt waits for in vain. */
const TIMEOUT_SECONDS = 20;
const MAX_OUTPUT = 64 << 20;

/**
 * Gets what Linux guests need from Debian's packages by this machine's apt, which checks their signatures, and
 * builds the initramfs; all of it into the cache. apt gets a root of its own there, so the machine's architectures and package
 * lists stay as they are.
 * @param log gets a line for each step
 * @param signal gives it up; nothing of what is unfinished stays
 * @throws LinuxGuestError that says what is missing
 */
export async function fetchLinux(log: (line: string) => void, signal?: AbortSignal): Promise<void> {
  const cache = cacheFolder();
  mkdirSync(cache, { recursive: true });
  const apt = new PrivateApt(join(cache, 'apt'), signal);
  const work = mkdtempSync(join(cache, 'fetch-'));
  try {
    log('asking apt for its package lists (i386)');
    const updateError = await apt.update();
    const kernel = await apt.newest(KERNEL);
    if (kernel === null) {
      const what = 'linux-image-6.1.0-…-686-pae for i386, which Debian 12 has';
      throw new LinuxGuestError(
        'ENOENT',
        updateError === null
          ? `apt knows no package ${what}; add Debian 12 to its sources, ${OWN_FILES}`
          : `apt cannot get ${what} (${updateError}); try again with a network, ${OWN_FILES}`,
      );
    }
    log(`downloading ${kernel} and ${PACKAGES.length} more packages`);
    const root = join(work, 'root');
    mkdirSync(root);
    for (const file of await apt.download([kernel, ...PACKAGES], work)) {
      await command('dpkg-deb', ['--extract', file, root], { signal });
    }
    log('building the initramfs');
    writeFileSync(join(work, cacheName('ramdisk')), buildInitramfs(root, await busyboxApplets(root)));
    const image = readdirSync(join(root, 'boot')).find(name => name.startsWith('vmlinuz-'));
    copyFileSync(join(root, 'boot', image!), join(work, cacheName('kernel')));
    copyFileSync(join(root, 'usr/share/seabios/bios.bin'), join(work, cacheName('bios')));
    copyFileSync(join(root, 'usr/share/seabios/vgabios-stdvga.bin'), join(work, cacheName('vgaBios')));
    for (const key of ['bios', 'vgaBios', 'ramdisk', 'kernel'] as const) {
      chmodSync(join(work, cacheName(key)), 0o644);
      renameSync(join(work, cacheName(key)), join(cache, cacheName(key)));
    }
    for (const name of readdirSync(cache)) {
      if (name.startsWith('snapshot-')) rmSync(join(cache, name), { recursive: true });
    }
    log(`Linux guests are ready: ${cache}`);
  } finally {
    // A program that was ended may be writing for a moment yet.
    rmSync(work, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** apt with folders of its own and the architecture i386, and this machine's sources and keys. */
class PrivateApt {
  private readonly options: string[];

  constructor(
    folder: string,
    private readonly signal: AbortSignal | undefined,
  ) {
    const lists = join(folder, 'lists');
    const archives = join(folder, 'archives');
    for (const path of [lists, archives]) mkdirSync(join(path, 'partial'), { recursive: true });
    const status = join(folder, 'status');
    writeFileSync(status, '');
    this.options = [
      'APT::Architecture=i386',
      'APT::Architectures::=i386',
      'APT::Sandbox::User=root',
      `Dir::State=${folder}`,
      `Dir::State::lists=${lists}`,
      `Dir::State::status=${status}`,
      `Dir::Cache=${folder}`,
      `Dir::Cache::archives=${archives}`,
      `Acquire::http::Timeout=${TIMEOUT_SECONDS}`,
      `Acquire::https::Timeout=${TIMEOUT_SECONDS}`,
    ].flatMap(option => ['-o', option]);
  }

  /** @returns what went wrong with some source, if anything: others may do */
  async update(): Promise<string | null> {
    try {
      await this.run('apt-get', ['-o', 'APT::Update::Error-Mode=any', 'update', '-q']);
      return null;
    } catch (error) {
      if (error instanceof AptError) return error.told;
      throw error;
    }
  }

  /** The package with the highest number in its name. */
  async newest(pattern: RegExp): Promise<string | null> {
    const { stdout } = await this.run('apt-cache', ['pkgnames', 'linux-image-6.1.0-']);
    const names = stdout.split('\n').filter(name => pattern.test(name));
    const abi = (name: string) => Number(/6\.1\.0-(\d+)/.exec(name)![1]);
    names.sort((a, b) => abi(b) - abi(a));
    for (const name of names) {
      const { stdout: policy } = await this.run('apt-cache', ['policy', name]);
      if (/Candidate: (?!\(none\))/.test(policy)) return name;
    }
    return null;
  }

  private run(file: string, args: readonly string[], folder?: string): Promise<{ stdout: string }> {
    return command(file, [...this.options, ...args], { folder, signal: this.signal });
  }

  /** @returns paths of the packages, in `folder` */
  async download(packages: readonly string[], folder: string): Promise<string[]> {
    await this.run('apt-get', ['download', '-q', ...packages], folder);
    return readdirSync(folder)
      .filter(name => name.endsWith('.deb'))
      .map(name => join(folder, name));
  }
}

/** Names of busybox's commands; none where this machine cannot run the i386 program, and then init installs them. */
async function busyboxApplets(root: string): Promise<string[]> {
  try {
    const { stdout } = await run(join(root, 'bin/busybox'), ['--list']);
    return stdout.split('\n').filter(name => name !== '' && name !== 'busybox');
  } catch {
    return [];
  }
}

/** A program that is there failed. */
class AptError extends LinuxGuestError {
  /** @param told the first error that it printed */
  constructor(
    program: string,
    readonly told: string,
  ) {
    super('EIO', `${program} failed: ${told}`);
  }
}

/** @throws LinuxGuestError ENOENT when there is no such program, AptError with the first error that it tells */
async function command(
  file: string,
  args: readonly string[],
  { folder, signal }: { folder?: string; signal?: AbortSignal } = {},
): Promise<{ stdout: string }> {
  try {
    return await run(file, [...args], {
      cwd: folder,
      signal,
      maxBuffer: MAX_OUTPUT,
      env: { ...process.env, LC_ALL: 'C' },
    });
  } catch (error) {
    const { code, stderr } = error as { code?: string | number; stderr?: string };
    if (code === 'ENOENT') {
      throw new LinuxGuestError(
        'ENOENT',
        `this machine has no ${file}, by which Linux guests come from Debian's packages; do it where it is and ` +
          `copy ${cacheFolder()}, ${OWN_FILES}`,
      );
    }
    if (stderr === undefined || signal?.aborted) throw error;
    const told = stderr.split('\n').find(line => /^(E|W|dpkg-deb: error):/.test(line));
    throw new AptError(file, told?.replace(/^[EW]: /, '') ?? `status ${code}`);
  }
}
