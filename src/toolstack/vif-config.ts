import { isIP } from 'node:net';
import { nameProblem } from '../net/names.js';
import { ToolstackError } from './error.js';
import type { FollowedNodes } from './followed-nodes.js';

/** What a frontend may send in each interval; what xenstore's `rate` says. */
export interface VifRate {
  readonly bytes: number;
  readonly usecs: number;
}

/** An address in a vif's `ip=`. */
export interface VifAddress {
  readonly address: string;
  readonly prefix: number;
  readonly version: 4 | 6;
}

/** A vif as xl-network-configuration(5) describes it. What is absent has libxl's default. */
export interface VifConfig {
  /** Six lower-case hex octets. */
  readonly mac?: string;
  readonly bridge: string;
  readonly ip: readonly VifAddress[];
  readonly rate?: VifRate;
  /** The name of the backend's interface, in the place of vif<domid>.<devid>. */
  readonly vifname?: string;
  readonly mtu: number;
  readonly script: string;
  /** Name or domid of the domain that has the backend. */
  readonly backend: string;
  readonly type: 'vif' | 'vif_ioemu';
  readonly model: string;
  readonly gatewaydev?: string;
  readonly forwarddev?: string;
  readonly vlan?: string;
  readonly devid?: number;
  /** The frontend may rely on the backend. */
  readonly trusted: boolean;
  /** The guest may send only from its MAC address and, if it has addresses in `ip`, from those. */
  readonly antispoof: boolean;
  /** In the place of what is said above, for a vif that goes on: a node that is missing here was missing there. */
  readonly followed?: FollowedNodes;
}

/** libxl's defaults (xl.conf(5), libxl_nic.c). */
export const DEFAULT_BRIDGE = 'xenbr0';
export const DEFAULT_SCRIPT = '/etc/xen/scripts/vif-bridge';
export const DEFAULT_MTU = 1500;
const DEFAULT_MODEL = 'rtl8139';
export const MTU_MIN = 68;
export const MTU_MAX = 65535;
/** Of a vif in its domain. */
export const DEVID_MAX = 0xffff;
/** xl's interval when a rate names none: 50 ms. */
const DEFAULT_RATE_USECS = 50_000;
/** Bytes and microseconds of a rate, at most. */
export const RATE_MAX = 0xffff_ffff;

export const VIF_KEYS = [
  'mac',
  'bridge',
  'ip',
  'rate',
  'vifname',
  'mtu',
  'script',
  'backend',
  'type',
  'model',
  'gatewaydev',
  'forwarddev',
  'vlan',
  'devid',
  'trusted',
  'untrusted',
  'antispoof',
] as const;
type Key = (typeof VIF_KEYS)[number];
/** Keys that may stand without a value, and what they then say. */
const FLAGS: ReadonlyMap<string, readonly [key: Key, value: string]> = new Map([
  ['trusted', ['trusted', '1']],
  ['untrusted', ['trusted', '0']],
  ['antispoof', ['antispoof', '1']],
]);

/**
 * Parses a vif as in xl's `vif = [ 'mac=…,bridge=…' ]` or on `network-attach`'s command line.
 * @param where what a message starts with: file, line and key
 * @throws ToolstackError EINVAL
 */
export function parseVif(text: string, where = 'vif'): VifConfig {
  const fail = (key: string, what: string): never => {
    throw new ToolstackError('EINVAL', `${where}: ${key}: ${what}`);
  };
  const given = new Map<Key, string>();
  for (const part of text.split(',')) {
    const trimmed = part.trim();
    if (trimmed === '') continue;
    const equals = trimmed.indexOf('=');
    const key = (equals < 0 ? trimmed : trimmed.slice(0, equals)).trim().toLowerCase();
    if (!VIF_KEYS.includes(key as Key))
      fail(JSON.stringify(key), `no vif has that; there are ${VIF_KEYS.join(', ')}`);
    const flag = equals < 0 ? FLAGS.get(key) : undefined;
    if (equals < 0 && flag === undefined) fail(key, `it needs a value, as in ${key}=…`);
    if (equals >= 0 && key === 'untrusted') fail(key, 'it stands without a value, or say trusted=0');
    const [name, value] = flag ?? [key as Key, trimmed.slice(equals + 1).trim()];
    if (given.has(name)) fail(name, 'it is given twice');
    given.set(name, value);
  }
  const interfaceName = (key: Key, value: string): string => {
    const problem = nameProblem(value);
    return problem === null ? value : fail(key, `"${value}" is no interface name: ${problem}`);
  };
  const number = (key: Key, low: number, high: number): number => {
    const value = given.get(key)!;
    const parsed = Number(value);
    return /^[0-9]+$/.test(value) && parsed >= low && parsed <= high
      ? parsed
      : fail(key, `"${value}" is no number from ${low} to ${high}`);
  };
  const parsed = <T>(key: Key, parse: (value: string) => T): T | undefined => {
    const value = given.get(key);
    if (value === undefined) return undefined;
    try {
      return parse(value);
    } catch (error) {
      return fail(key, (error as Error).message);
    }
  };
  const type = given.get('type') ?? 'vif';
  if (type !== 'vif' && type !== 'vif_ioemu' && type !== 'ioemu') {
    fail('type', `"${type}" is none of vif and ioemu`);
  }
  const truth = (key: Key, absent: boolean): boolean => {
    const value = given.get(key);
    if (value === undefined) return absent;
    return value === '0' || value === '1' ? value === '1' : fail(key, `"${value}" is neither 0 nor 1`);
  };
  return {
    mac: parsed('mac', parseMac),
    bridge: interfaceName('bridge', given.get('bridge') ?? DEFAULT_BRIDGE),
    ip: parsed('ip', parseAddresses) ?? [],
    rate: parsed('rate', parseRate),
    vifname: given.has('vifname') ? interfaceName('vifname', given.get('vifname')!) : undefined,
    mtu: given.has('mtu') ? number('mtu', MTU_MIN, MTU_MAX) : DEFAULT_MTU,
    script: scriptPath(given.get('script')),
    backend: given.get('backend') ?? '0',
    type: type === 'vif' ? 'vif' : 'vif_ioemu',
    model: given.get('model') ?? DEFAULT_MODEL,
    gatewaydev: given.get('gatewaydev'),
    forwarddev: given.get('forwarddev'),
    vlan: given.get('vlan'),
    devid: given.has('devid') ? number('devid', 0, DEVID_MAX) : undefined,
    trusted: truth('trusted', true),
    antispoof: truth('antispoof', false),
  };
}

/** xl takes a name without a slash from its scripts directory. */
function scriptPath(script: string | undefined): string {
  if (script === undefined || script === '') return DEFAULT_SCRIPT;
  return script.includes('/') ? script : `/etc/xen/scripts/${script}`;
}

/** Six hex octets with colons, in lower case. @throws Error that says what is wrong with it */
export function parseMac(text: string): string {
  if (!/^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/.test(text)) {
    throw new Error(`"${text}" is no MAC address: six pairs of hex digits with colons, as 00:16:3e:01:02:03`);
  }
  const mac = text.toLowerCase();
  if (Number.parseInt(mac.slice(0, 2), 16) & 1)
    throw new Error(`${mac} is a group address: the first octet is odd`);
  if (mac === '00:00:00:00:00:00') throw new Error('a device cannot have the address of all zeros');
  return mac;
}

/** One or more addresses with blanks between them, each with its prefix length or /24 or /64. */
export function parseAddresses(text: string): VifAddress[] {
  return text
    .split(/\s+/)
    .filter(part => part !== '')
    .map(part => {
      const [address, prefix, ...rest] = part.split('/');
      const version = isIP(address);
      if (version === 0 || rest.length > 0) {
        throw new Error(`"${part}" is no IP address, as 10.0.0.1, 10.0.0.1/24 or fd00::1/64`);
      }
      const bits = version === 4 ? 32 : 128;
      const length = prefix === undefined ? (version === 4 ? 24 : 64) : Number(prefix);
      if (!/^[0-9]{0,3}$/.test(prefix ?? '') || prefix === '' || length > bits) {
        throw new Error(`"${part}": the length of the prefix is 0 to ${bits}`);
      }
      return { address, prefix: length, version: version as 4 | 6 };
    });
}

/** Decimal, as libxlu_vif.c has them. */
const UNITS: Record<string, number> = { '': 1, K: 1_000, M: 1_000_000, G: 1_000_000_000 };
const INTERVALS: Record<string, number> = { us: 1, ms: 1_000, s: 1_000_000 };

/**
 * Parses xl's rate: "10Mb/s" (bits), "1MB/s" (bytes), with an interval "10Mb/s@20ms".
 * @throws Error that says what is wrong with it
 */
export function parseRate(text: string): VifRate {
  const match = /^([0-9]+)([KMG]?)([bB])\/s(?:@([0-9]+)(us|ms|s))?$/.exec(text);
  if (match === null) throw new Error(`"${text}" is no rate, as 10Mb/s (bits), 1MB/s (bytes) or 10Mb/s@20ms`);
  const perSecond = (Number(match[1]) * UNITS[match[2]]) / (match[3] === 'b' ? 8 : 1);
  const usecs = match[4] === undefined ? DEFAULT_RATE_USECS : Number(match[4]) * INTERVALS[match[5]];
  const bytes = Math.floor((Math.floor(perSecond) * usecs) / 1_000_000);
  if (usecs === 0 || usecs > RATE_MAX || bytes > RATE_MAX) {
    throw new Error(`"${text}": an interval has at most ${RATE_MAX} bytes and 1 to ${RATE_MAX} microseconds`);
  }
  if (bytes === 0) throw new Error(`"${text}" lets nothing through: it is less than a byte an interval`);
  return { bytes, usecs };
}

/** A MAC address as libxl makes one up: Xen's prefix, then 3 random octets, the first below 0x80. */
export function randomMac(random: () => number): string {
  const octets = [0, 0x16, 0x3e, random() * 0x80, random() * 256, random() * 256];
  return octets.map(octet => Math.floor(octet).toString(16).padStart(2, '0')).join(':');
}
