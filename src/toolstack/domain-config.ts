import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { GuestModule } from '../guests/module.js';
import type { NetfrontOptions } from '../netfront/netfront.js';
import { type ConfigSetting, type ConfigValue, parseConfigSyntax } from './config-syntax.js';
import { ToolstackError } from './error.js';
import { parseNetfront } from './netfront-config.js';
import { parseVif, type VifConfig } from './vif-config.js';

/** What runs in a domain: `guest = "kind"` or `guest = "kind:argument"`. */
export interface GuestSpec {
  readonly kind: string;
  /** What is behind the colon; a path is absolute. */
  readonly argument: string;
  /**
   * Of a guest of kind "module" whose `argument` is "": a function of this program in place of a file's default export. It is in
   * no image that goes through JSON.
   */
  readonly module?: GuestModule;
}

/** What a guest of kind "linux" boots; what is left out comes from the cache. Paths are absolute. */
export interface LinuxSpec {
  readonly kernel?: string;
  readonly ramdisk?: string;
  readonly bios?: string;
  readonly vgaBios?: string;
  /** Words for the kernel's command line. */
  readonly extra?: string;
  /** Its netback serves other domains' vifs. */
  readonly driverDomain: boolean;
}

/** A domain to create. */
export interface DomainConfig {
  readonly name: string;
  /** MiB. */
  readonly memory: number;
  readonly guest: GuestSpec;
  readonly vifs: readonly VifConfig[];
  /** Of all other guests: what their kernel's netfront does. */
  readonly netfront?: NetfrontOptions;
  /** Of a guest of kind "linux". */
  readonly linux?: LinuxSpec;
  /** Settings that xl knows and pvnet has no use for, with their lines; what the user may want to hear. */
  readonly ignored: readonly string[];
  /** The rest of the settings as they are in the file, for the guest's kind. */
  readonly settings: ReadonlyMap<string, ConfigValue>;
}

/** MiB that a domain may have: Xen's own limit; an emulated PC has less than 2 GiB. */
export function memoryMax(kind: string): number {
  return kind === 'linux' ? 2047 : 1 << 24;
}

const DEFAULT_MEMORY_MIB = 64;
/** A Linux kernel with an initramfs needs more. */
const DEFAULT_LINUX_MEMORY_MIB = 128;
const DEFAULT_GUEST = 'echo';
/** The kinds of guests that there are: true for those with an argument. */
export const GUEST_ARGUMENTS: Readonly<Record<string, boolean>> = {
  echo: false,
  netns: false,
  module: true,
  linux: false,
};
const USED = ['name', 'memory', 'guest', 'vif', 'netfront'];
const USED_BY_LINUX = [
  'kernel',
  'ramdisk',
  'initrd',
  'bios',
  'vga_bios',
  'extra',
  'vcpus',
  'driver_domain',
  'type',
];

/** @throws ToolstackError with file, line and key; ENOENT when there is no such file */
export function readDomainFile(path: string): DomainConfig {
  return parseDomain(readText(path), path);
}

/** A text file that the user names. @throws ToolstackError that says why it cannot be read */
export function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') throw new ToolstackError('ENOENT', `${path}: there is no such file`);
    throw new ToolstackError(code === 'EACCES' ? 'EACCES' : 'EIO', `${path}: it cannot be read (${code})`);
  }
}

/**
 * Parses a domain file in xl's syntax.
 * @param file its path: messages name it, and relative paths in it start from its folder
 * @throws ToolstackError EINVAL with file, line and key
 */
export function parseDomain(text: string, file: string): DomainConfig {
  const settings = parseConfigSyntax(text, file);
  const fail = (setting: { key: string; line: number }, what: string): never => {
    throw new ToolstackError('EINVAL', `${file}:${setting.line}: ${setting.key}: ${what}`);
  };
  const string = (key: string): { setting: ConfigSetting; text: string } | null => {
    const setting = settings.get(key);
    if (setting === undefined) return null;
    if (setting.value.kind === 'string') return { setting, text: setting.value.text };
    return fail(setting, `it is a string, as in ${key} = "…"`);
  };
  const misspelt = settings.get('vifs');
  if (misspelt !== undefined)
    fail(misspelt, 'there is no such key; the list of network devices is vif = [ … ]');
  const name = string('name');
  if (name === null)
    throw new ToolstackError('EINVAL', `${file}: name: it is missing, as in name = "guest1"`);
  if (!isDomainName(name.text)) {
    fail(
      name.setting,
      `"${name.text}" is no name: 1 to 64 letters, digits and "_.+-", and not a number, which would be a domid`,
    );
  }
  const memory = settings.get('memory');
  const guest = parseGuest(string('guest'), file, fail);
  const mib = memory?.value.kind === 'number' ? memory.value.number : 0;
  if (memory !== undefined && (mib < 1 || mib > memoryMax(guest.kind))) {
    fail(memory, `it is a number of MiB up to ${memoryMax(guest.kind)}, as in memory = 64`);
  }
  const isLinux = guest.kind === 'linux';
  const used = isLinux ? [...USED, ...USED_BY_LINUX] : USED;
  const defaultMemory = isLinux ? DEFAULT_LINUX_MEMORY_MIB : DEFAULT_MEMORY_MIB;
  return {
    name: name.text,
    memory: memory === undefined ? defaultMemory : mib,
    guest,
    netfront: parseNetfrontOf(guest, string('netfront'), file, fail),
    linux: isLinux ? parseLinux(settings, string, file, fail) : undefined,
    vifs: parseVifs(settings.get('vif'), file, fail),
    ignored: [...settings.values()]
      .filter(({ key }) => !used.includes(key))
      .map(({ key, line }) => `${file}:${line}: ${key}: pvnet has no use for it`),
    settings: new Map([...settings].map(([key, { value }]) => [key, value])),
  };
}

export function isDomainName(text: string): boolean {
  return /^[A-Za-z0-9_.+-]{1,64}$/.test(text) && !/^[0-9]+$/.test(text);
}

function parseLinux(
  settings: ReadonlyMap<string, ConfigSetting>,
  string: (key: string) => { setting: ConfigSetting; text: string } | null,
  file: string,
  fail: Fail,
): LinuxSpec {
  const path = (key: string) => {
    const given = string(key);
    return given === null ? undefined : resolve(dirname(file), given.text);
  };
  /** @returns the number, which must be one of these; undefined without the key */
  const oneOf = (key: string, numbers: readonly number[], why: string): number | undefined => {
    const setting = settings.get(key);
    if (setting === undefined) return undefined;
    const { value } = setting;
    if (value.kind !== 'number' || !numbers.includes(value.number)) return fail(setting, why);
    return value.number;
  };
  oneOf('vcpus', [1], 'a guest of kind "linux" has one, as in vcpus = 1');
  return {
    kernel: path('kernel'),
    ramdisk: path('ramdisk') ?? path('initrd'),
    bios: path('bios'),
    vgaBios: path('vga_bios'),
    extra: string('extra')?.text,
    driverDomain: oneOf('driver_domain', [0, 1], 'it is 0 or 1') === 1,
  };
}

type Fail = (setting: { key: string; line: number }, what: string) => never;

function parseGuest(
  given: { setting: ConfigSetting; text: string } | null,
  file: string,
  fail: Fail,
): GuestSpec {
  if (given === null) return { kind: DEFAULT_GUEST, argument: '' };
  const colon = given.text.indexOf(':');
  const kind = colon < 0 ? given.text : given.text.slice(0, colon);
  const argument = colon < 0 ? '' : given.text.slice(colon + 1);
  if (!Object.hasOwn(GUEST_ARGUMENTS, kind)) {
    fail(
      given.setting,
      `"${given.text}" is no kind of guest; there are "echo", "netns", "linux" and "module:./file.js"`,
    );
  }
  if (GUEST_ARGUMENTS[kind] && argument === '')
    fail(given.setting, `it needs a file, as in guest = "${kind}:./file.js"`);
  if (!GUEST_ARGUMENTS[kind] && colon >= 0) fail(given.setting, `"${kind}" takes nothing behind a colon`);
  return { kind, argument: argument === '' ? '' : resolve(dirname(file), argument) };
}

function parseNetfrontOf(
  { kind }: GuestSpec,
  given: { setting: ConfigSetting; text: string } | null,
  file: string,
  fail: Fail,
): NetfrontOptions | undefined {
  if (given === null) return undefined;
  const { setting, text } = given;
  if (kind === 'linux') {
    fail(setting, 'a guest of kind "linux" has Linux\'s own, as in extra = "xen_netfront.max_queues=1"');
  }
  const options = parseNetfront(text, `${file}:${setting.line}: netfront`);
  if (kind === 'netns' && options.multicastControl) {
    fail(setting, 'multicast_control: a namespace ("netns") does not tell netfront which groups it wants');
  }
  return options;
}

function parseVifs(setting: ConfigSetting | undefined, file: string, fail: Fail): VifConfig[] {
  if (setting === undefined) return [];
  if (setting.value.kind !== 'list') return fail(setting, "it is a list, as in vif = [ 'bridge=xenbr0' ]");
  const devids = new Set<number>();
  return setting.value.items.map((item, index) => {
    const where = { key: `vif[${index}]`, line: item.line };
    if (item.kind !== 'string') return fail(where, "each vif is a string, as in vif = [ 'bridge=xenbr0' ]");
    const vif = parseVif(item.text, `${file}:${item.line}: vif[${index}]`);
    const devid = vif.devid ?? index;
    if (devids.has(devid)) fail(where, `another vif has the devid ${devid}`);
    devids.add(devid);
    return vif;
  });
}
