import { isIP } from 'node:net';
import { isAbsolute } from 'node:path';
import { DOMID_FIRST_RESERVED } from '../abi/xen.js';
import { GUEST_STATE_CHECKS } from '../guests/index.js';
import { nameProblem } from '../net/names.js';
import { NETFRONT_FEATURES } from '../netfront/features.js';
import { MAX_QUEUES } from '../netfront/netfront.js';
import { parsePermission } from '../xenstore/permissions.js';
import {
  bool,
  type Check,
  distinct,
  list,
  object,
  oneOf,
  optional,
  refuse,
  string,
  that,
  tuple,
  whole,
} from './checks.js';
import { GUEST_ARGUMENTS, isDomainName, memoryMax } from './domain-config.js';
import { checkFollowed } from './followed-nodes.js';
import type { DomainImage, HostImage } from './save.js';
import { REMADE, REMADE_BY_HOST, type SavedNode } from './store-image.js';
import { DEVID_MAX, MTU_MAX, MTU_MIN, parseMac, RATE_MAX } from './vif-config.js';

/** Lists of lists in a setting: more than anybody writes, and few enough to follow. */
const DEPTH_MAX = 100;

const isUuid = (text: string) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
const isBase64 = (text: string) => /^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text);
const isPath = (text: string) => /^(\/[A-Za-z0-9_@-]+)*$/.test(text);
const isPermission = (text: string) => {
  const permission = parsePermission(text);
  const leadingZero = /^.0./.test(text);
  return permission !== null && permission.domid < DOMID_FIRST_RESERVED && !leadingZero;
};
const isMac = (text: string) => {
  try {
    return parseMac(text) === text;
  } catch {
    return false;
  }
};

const path = string(isAbsolute, 'an absolute path');
const interfaceName = string(text => nameProblem(text) === null, 'an interface name');
const anything: Check = () => {};

const NODE = object({
  path: string(isPath, 'a path in xenstore'),
  value: string(isBase64, 'base64'),
  permissions: list(string(isPermission, 'a permission, as "n0"')),
});

const ADDRESS: Check = (value, where) => {
  const fields = { address: string(text => isIP(text) !== 0, 'an IP address'), prefix: whole(0, 128) };
  object({ ...fields, version: that(version => version === 4 || version === 6, '4 or 6') })(value, where);
  const { address, prefix, version } = value as { address: string; prefix: number; version: number };
  if (isIP(address) !== version) refuse(where, `${address} is not of IP version ${version}`);
  if (version === 4 && prefix > 32)
    refuse(`${where}: prefix`, `${prefix} is not a whole number from 0 to 32`);
};

const VIF = object({
  mac: optional(string(isMac, 'a MAC address in lower case')),
  bridge: interfaceName,
  ip: list(ADDRESS),
  rate: optional(object({ bytes: whole(1, RATE_MAX), usecs: whole(1, RATE_MAX) })),
  vifname: optional(interfaceName),
  mtu: whole(MTU_MIN, MTU_MAX),
  script: string(),
  backend: string(),
  type: oneOf(['vif', 'vif_ioemu']),
  model: string(),
  gatewaydev: optional(string()),
  forwarddev: optional(string()),
  vlan: optional(string()),
  devid: optional(whole(0, DEVID_MAX)),
  trusted: bool,
  antispoof: bool,
  followed: optional(checkFollowed),
});

const NETFRONT = object({
  maxQueues: optional(whole(1, MAX_QUEUES)),
  staticGrants: optional(bool),
  multicastControl: optional(bool),
  gsoPrefix: optional(bool),
  without: optional(list(oneOf(NETFRONT_FEATURES))),
  trusted: optional(bool),
});

const LINUX = object({
  kernel: optional(path),
  ramdisk: optional(path),
  bios: optional(path),
  vgaBios: optional(path),
  extra: optional(string()),
  driverDomain: bool,
});

const SETTING_KINDS: Readonly<Record<string, (depth: number) => Record<string, Check>>> = {
  number: () => ({ number: whole(0, Number.MAX_SAFE_INTEGER) }),
  string: () => ({ text: string() }),
  list: depth => ({ items: list(settingValue(depth + 1)) }),
};

function settingValue(depth: number): Check {
  return (value, where) => {
    if (depth > DEPTH_MAX) refuse(where, `lists are in each other more than ${DEPTH_MAX} deep`);
    const { kind } = Object(value) as { kind: unknown };
    const kindCheck = oneOf(Object.keys(SETTING_KINDS));
    kindCheck(kind, `${where}: kind`);
    const ofKind = SETTING_KINDS[kind as string](depth);
    object({ kind: kindCheck, line: whole(1, Number.MAX_SAFE_INTEGER), ...ofKind })(value, where);
  };
}

const CONFIG = object({
  name: string(isDomainName, 'a name for a domain'),
  memory: anything,
  guest: object({ kind: oneOf(Object.keys(GUEST_ARGUMENTS)), argument: string() }),
  vifs: list(VIF),
  netfront: optional(NETFRONT),
  linux: optional(LINUX),
  ignored: list(string()),
  settings: list(tuple(string(), settingValue(0))),
});

const DOMAIN = object({
  domid: whole(1, DOMID_FIRST_RESERVED - 1),
  uuid: string(isUuid, 'a uuid'),
  config: CONFIG,
  nodes: list(NODE),
  guest: anything,
});

const HOST = object({
  format: anything,
  version: anything,
  bridges: list(interfaceName),
  nodes: list(NODE),
  domains: list(anything),
});

/** What the keys of a configuration say of each other. */
function checkConfig({ guest, memory, vifs, netfront, linux }: DomainImage['config'], where: string): void {
  const { kind, argument } = guest;
  whole(1, memoryMax(kind))(memory, `${where}: memory`);
  if (kind === 'module' && argument === '') {
    refuse(`${where}: guest`, 'its module was a function of the program that saved it, which no image holds');
  }
  if (GUEST_ARGUMENTS[kind]) path(argument, `${where}: guest: argument`);
  else if (argument !== '') refuse(`${where}: guest: argument`, `a guest of kind "${kind}" takes none`);
  if (linux !== undefined && kind !== 'linux') refuse(`${where}: linux`, `the guest is of kind "${kind}"`);
  if (netfront !== undefined && kind === 'linux') refuse(`${where}: netfront`, 'a Linux kernel has its own');
  distinct([...vifs.entries()], ([index, { devid }]) => devid ?? index, 'devid', `${where}: vifs`);
}

/**
 * Nodes come behind those that they are in, as they are saved.
 * @param remade those that are not restored, as they are made with their domain
 */
function checkNodes(nodes: readonly SavedNode[], remade: RegExp, where: string): void {
  const seen = new Set<string>();
  for (const [index, { path, permissions }] of nodes.entries()) {
    const here = `${where}: nodes[${index}]: ${path || '/'}`;
    const parent = path.slice(0, Math.max(path.lastIndexOf('/'), 0));
    if (path !== '' && !seen.has(parent)) refuse(here, 'what it is in does not come before it');
    if (seen.has(path)) refuse(here, 'it is there twice');
    if (remade.test(path)) refuse(here, 'the toolstack makes that node itself');
    if (permissions.length === 0) refuse(here, 'it has no permissions, so no owner');
    seen.add(path);
  }
}

/** @throws ToolstackError EINVAL that says what is wrong with it, and where */
export function checkDomainImage(image: unknown, where: string): asserts image is DomainImage {
  DOMAIN(image, where);
  const { config, nodes, guest } = image as DomainImage;
  checkConfig(config, `${where}: config`);
  checkNodes(nodes, REMADE, where);
  GUEST_STATE_CHECKS[config.guest.kind]?.(guest, `${where}: guest`);
}

/** @throws as `checkDomainImage` */
export function checkHostImage(image: unknown, where: string): asserts image is HostImage {
  HOST(image, where);
  const { nodes, domains } = image as HostImage;
  checkNodes(nodes, REMADE_BY_HOST, where);
  for (const [index, domain] of domains.entries()) checkDomainImage(domain, `${where}: domains[${index}]`);
  distinct(domains, ({ domid }) => domid, 'domid', `${where}: domains`);
  distinct(domains, ({ uuid }) => uuid, 'uuid', `${where}: domains`);
  distinct(domains, ({ config }) => config.name, 'name', `${where}: domains`);
}
