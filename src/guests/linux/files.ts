import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { ErrnoError } from '../../abi/errno.js';
import { ourArchive } from './initramfs.js';

/** Linux guests cannot be had, or one of their files cannot. */
export class LinuxGuestError extends ErrnoError {}

/** What a Linux guest boots from, as paths. */
export interface LinuxFiles {
  readonly kernel: string;
  readonly ramdisk: string;
  readonly bios: string;
  readonly vgaBios: string;
}

/** Of the header in Documentation/arch/x86/boot.rst of Linux. */
const BOOT_MAGIC = 'HdrS';
const BOOT_MAGIC_AT = 0x202;

const NAMES: LinuxFiles = {
  kernel: 'vmlinuz',
  ramdisk: 'initramfs.cpio',
  bios: 'bios.bin',
  vgaBios: 'vgabios.bin',
};

/** Where pvnet keeps what it has fetched, and snapshots: $XDG_CACHE_HOME/pvnet/linux. */
export function cacheFolder(): string {
  const cache = process.env['XDG_CACHE_HOME'];
  const base = cache?.startsWith('/') ? cache : join(homedir(), '.cache');
  return join(base, 'pvnet', 'linux');
}

/** The files in the cache. @returns null when `pvnet linux fetch` has not put them there */
export function cachedFiles(): LinuxFiles | null {
  const folder = cacheFolder();
  const paths = Object.fromEntries(Object.entries(NAMES).map(([key, name]) => [key, join(folder, name)]));
  return Object.values(paths).every(existsSync) ? (paths as unknown as LinuxFiles) : null;
}

/** A name of a file in the cache. */
export function cacheName(key: keyof LinuxFiles): string {
  return NAMES[key];
}

/** @throws LinuxGuestError ENOENT that says what to do */
export function requireFiles(): LinuxFiles {
  const files = cachedFiles();
  if (files !== null) return files;
  throw new LinuxGuestError(
    'ENOENT',
    `there is no Linux for guests in ${cacheFolder()}: "pvnet linux fetch" gets it from Debian's packages`,
  );
}

/** @throws LinuxGuestError that names the file */
export function readGuestFile(path: string, what: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new LinuxGuestError(
      code === 'ENOENT' ? 'ENOENT' : 'EIO',
      `${what} ${path} cannot be read (${code})`,
    );
  }
}

/** @throws LinuxGuestError for a file that is no bzImage, by the boot protocol's magic number */
export function readKernel(path: string): Uint8Array {
  const kernel = readGuestFile(path, 'the kernel');
  const magic = Buffer.from(kernel.subarray(BOOT_MAGIC_AT, BOOT_MAGIC_AT + BOOT_MAGIC.length)).toString(
    'latin1',
  );
  if (magic === BOOT_MAGIC) return kernel;
  throw new LinuxGuestError('EINVAL', `the kernel ${path} is no Linux kernel: it wants a bzImage (vmlinuz)`);
}

/** The ramdisk of the cache with our init, as it is in this version. @throws LinuxGuestError */
export function readOurRamdisk(): Uint8Array {
  const packages = readGuestFile(requireFiles().ramdisk, 'the ramdisk');
  return Buffer.concat([packages, ourArchive()]);
}

let v86Module: Uint8Array | null = null;

/** v86.wasm of the installed package; the same array each time. */
export function readV86Module(): Uint8Array {
  const main = createRequire(import.meta.url).resolve('v86');
  v86Module ??= readGuestFile(join(dirname(main), 'v86.wasm'), 'the emulator');
  return v86Module;
}
