import { createHash } from 'node:crypto';
import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { deflate as deflateCallback, inflate as inflateCallback } from 'node:zlib';
import { list, object, shown, string, whole } from '../../toolstack/checks.js';
import { DEVID_MAX } from '../../toolstack/vif-config.js';
import { cacheFolder, LinuxGuestError, requireFiles } from './files.js';
import type { SavedLinux } from './guest.js';
import { ourArchive } from './initramfs.js';
import { V86_VERSION } from './v86-module.js';

const deflate: (bytes: Uint8Array, options: { level: number }) => Promise<Buffer> =
  promisify(deflateCallback);
const inflate: (bytes: Uint8Array, options: { maxOutputLength: number }) => Promise<Buffer> =
  promisify(inflateCallback);

/** Of the file; a file of another is not read. */
const FORMAT = 1;
const MAGIC = 'pvnet saved linux';
const LENGTH_BYTES = 4;
/** What a saved machine has beside its memory. */
const MACHINE_MIB_MAX = 256;
const UINT32_MAX = 0xffff_ffff;

interface Header extends Omit<SavedLinux, 'machine'> {
  readonly magic: string;
  readonly format: number;
  readonly v86: string;
}

/** v86's state in it is compressed, and base64. */
type SavedJson = Header & { readonly machine: string };

/** A saved guest as the bytes of a file: the length of a JSON header, the header, v86's state. */
export function encodeSaved(saved: SavedLinux): Uint8Array {
  const { machine, ...rest } = saved;
  const header: Header = { magic: MAGIC, format: FORMAT, v86: V86_VERSION, ...rest };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(LENGTH_BYTES + json.length + machine.length);
  new DataView(bytes.buffer).setUint32(0, json.length, true);
  bytes.set(json, LENGTH_BYTES);
  bytes.set(machine, LENGTH_BYTES + json.length);
  return bytes;
}

/** @throws LinuxGuestError EINVAL when the bytes are no guest that this version has saved */
export function decodeSaved(bytes: Uint8Array, name: string): SavedLinux {
  const fail = (why: string): never => {
    throw new LinuxGuestError(
      'EINVAL',
      `${name}: it is no guest that this version of pvnet has saved (${why})`,
    );
  };
  if (bytes.length < LENGTH_BYTES) return fail('too short');
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (length > bytes.length - LENGTH_BYTES) return fail('too short');
  let header: Header;
  try {
    header = JSON.parse(
      new TextDecoder().decode(bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + length)),
    ) as Header;
  } catch {
    return fail('no header');
  }
  const { magic, format, v86, ...rest } = header;
  if (magic !== MAGIC) return fail('no header');
  if (format !== FORMAT) return fail(`format ${format}`);
  if (v86 !== V86_VERSION) return fail(`v86 ${v86}`);
  return { ...rest, machine: bytes.subarray(LENGTH_BYTES + length) };
}

/** A saved guest as plain JSON; v86's state is compressed, as most of it is zeros and text. */
export async function savedAsJson(saved: SavedLinux): Promise<unknown> {
  const { machine, ...rest } = saved;
  const compressed = await deflate(machine, { level: 1 });
  return { magic: MAGIC, format: FORMAT, v86: V86_VERSION, ...rest, machine: compressed.toString('base64') };
}

const SAVED = object({
  magic: string(),
  format: whole(FORMAT, FORMAT),
  v86: string(),
  memoryMib: whole(1, UINT32_MAX),
  hypercalls: object({
    callback: whole(0, 2 ** 64),
    vector: whole(0, 0xff),
    balloonedPages: list(whole(0, UINT32_MAX)),
  }),
  vifs: list(whole(0, DEVID_MAX)),
  machine: string(),
});

/** @throws LinuxGuestError EINVAL for what is not from `savedAsJson` of this version; ToolstackError EINVAL for what is damaged */
export function checkSavedLinux(json: unknown, where: string): asserts json is SavedJson {
  const { magic, format, v86 } = Object(json) as Partial<SavedJson>;
  if (magic !== MAGIC || format !== FORMAT || v86 !== V86_VERSION) {
    throw new LinuxGuestError(
      'EINVAL',
      `${where}: it is no Linux guest that this version of pvnet has saved (v86 ${shown(v86)})`,
    );
  }
  SAVED(json, where);
}

/** @throws as `checkSavedLinux` */
export async function savedFromJson(json: unknown, where = 'the saved guest'): Promise<SavedLinux> {
  checkSavedLinux(json, where);
  const { magic, format, v86, machine, ...rest } = json;
  const maxOutputLength = (rest.memoryMib + MACHINE_MIB_MAX) * 2 ** 20;
  try {
    return { ...rest, machine: await inflate(Buffer.from(machine, 'base64'), { maxOutputLength }) };
  } catch (error) {
    throw new LinuxGuestError('EINVAL', `${where}: machine: it is damaged (${(error as Error).message})`);
  }
}

/**
 * Where the snapshot of a guest that has just booted is: one for each kernel, ramdisk, init, size of memory and
 * command line.
 */
export function snapshotPath(memoryMib: number, commandLine: string): string {
  const { kernel, ramdisk } = requireFiles();
  const stamp = (path: string) => {
    const { size, mtimeMs } = statSync(path);
    return [size, mtimeMs];
  };
  const key = JSON.stringify([FORMAT, V86_VERSION, stamp(kernel), stamp(ramdisk), memoryMib, commandLine]);
  const hash = createHash('sha256').update(key).update(ourArchive()).digest('hex').slice(0, 16);
  return join(cacheFolder(), `snapshot-${hash}`);
}

/** @returns null when there is none */
export function readSnapshot(memoryMib: number, commandLine: string): SavedLinux | null {
  const path = snapshotPath(memoryMib, commandLine);
  return existsSync(path) ? decodeSaved(readFileSync(path), path) : null;
}

export function writeSnapshot(memoryMib: number, commandLine: string, saved: SavedLinux): void {
  const path = snapshotPath(memoryMib, commandLine);
  const unfinished = `${path}.${process.pid}`;
  writeFileSync(unfinished, encodeSaved(saved));
  renameSync(unfinished, path);
}
