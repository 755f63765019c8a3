/** One entry of an initramfs. */
export interface CpioEntry {
  /** Path without a leading slash. */
  readonly path: string;
  /** File type and permissions, as in st_mode. */
  readonly mode: number;
  /** A file's contents, a link's target. */
  readonly data?: Uint8Array;
  /** Of a device node. */
  readonly device?: { readonly major: number; readonly minor: number };
}

export const S_IFDIR = 0o040000;
export const S_IFREG = 0o100000;
export const S_IFLNK = 0o120000;
export const S_IFCHR = 0o020000;

const TRAILER = 'TRAILER!!!';
const ALIGNMENT = 4;

/**
 * An archive in the "newc" format, which is what Linux unpacks as an initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst). All times are 0, so that the same entries give the
 * same bytes.
 */
export function cpio(entries: readonly CpioEntry[]): Uint8Array {
  const text = new TextEncoder();
  const parts: Uint8Array[] = [];
  let length = 0;
  const add = (bytes: Uint8Array): void => {
    parts.push(bytes);
    const padding = (ALIGNMENT - ((length + bytes.length) % ALIGNMENT)) % ALIGNMENT;
    if (padding > 0) parts.push(new Uint8Array(padding));
    length += bytes.length + padding;
  };
  const none = new Uint8Array(0);
  [...entries, { path: TRAILER, mode: 0 } as CpioEntry].forEach((entry, inode) => {
    const { path, mode, data = none, device = { major: 0, minor: 0 } } = entry;
    const name = text.encode(`${path}\0`);
    const links = 1;
    const fields = [
      inode + 1,
      mode,
      0, // uid
      0, // gid
      links,
      0, // mtime
      data.length,
      0, // the device that the file is on
      0,
      device.major,
      device.minor,
      name.length,
      0, // checksum: none in this format
    ];
    const header = `070701${fields.map(field => field.toString(16).padStart(8, '0')).join('')}`;
    const head = new Uint8Array(header.length + name.length);
    head.set(text.encode(header));
    head.set(name, header.length);
    add(head);
    if (data.length > 0) add(data);
  });
  const out = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
