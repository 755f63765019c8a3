import { abortable } from '../platform/abort.js';
import { shown } from './checks.js';
import type { ConfigValue } from './config-syntax.js';
import type { DomainConfig } from './domain-config.js';
import { ToolstackError } from './error.js';
import { readFollowed } from './followed-nodes.js';
import type { Host, HostedDomain } from './host.js';
import { checkDomainImage, checkHostImage } from './image-check.js';
import {
  REMADE,
  REMADE_BY_HOST,
  renewPermissions,
  restoreNodes,
  type SavedNode,
  saveNodes,
  takeBackNodes,
} from './store-image.js';
import { isSuspended, requireVifsAtRest, resumeDomain, suspendDomain } from './suspend.js';

/** Why some guests of a kind cannot be saved. */
const UNSAVABLE: Readonly<Record<string, string>> = { module: 'its module has no "save"' };

/** A domain that was suspended, as plain JSON. */
export interface DomainImage {
  readonly domid: number;
  readonly uuid: string;
  readonly config: Omit<DomainConfig, 'settings'> & { readonly settings: readonly [string, ConfigValue][] };
  /** The nodes of its own in its home: data, attr, … */
  readonly nodes: readonly SavedNode[];
  /** What its guest's `save` gave. */
  readonly guest: unknown;
}

/** A whole host, as plain JSON. */
export interface HostImage {
  readonly format: 'pvnet host';
  readonly version: 1;
  readonly bridges: readonly string[];
  /** What users wrote to xenstore beside the domains. */
  readonly nodes: readonly SavedNode[];
  readonly domains: readonly DomainImage[];
}

/**
 * A domain's configuration with the vifs that it has now, but those that come or go, with the addresses that they got and what
 * was said of them since.
 */
export async function configNow({ xs }: Host, { config, vifs }: HostedDomain): Promise<DomainConfig> {
  const atRest = [...vifs.values()].filter(({ status }) => status === null);
  const all = atRest.map(async ({ devid, mac, paths, config: vif }) => {
    return { ...vif, devid, mac, followed: await readFollowed(xs, paths) };
  });
  return { ...config, vifs: await Promise.all(all) };
}

/** A suspended domain without its guest's state. */
async function domainImage(host: Host, hosted: HostedDomain): Promise<Omit<DomainImage, 'guest'>> {
  const { domid, uuid } = hosted.identity;
  const config = await configNow(host, hosted);
  return {
    domid,
    uuid,
    config: { ...config, settings: [...config.settings] },
    nodes: await saveNodes(host.xs, `/local/domain/${domid}`, path => REMADE.test(path)),
  };
}

function configOf({ config }: DomainImage): DomainConfig {
  return { ...config, settings: new Map(config.settings) };
}

/**
 * @throws ToolstackError EOPNOTSUPP for a guest whose state cannot be had, and for one whose kernel has backends in
 * use: Linux resumes frontends only
 */
function saverOf(host: Host, hosted: HostedDomain): () => unknown {
  const { config, booted, domain } = hosted;
  const served = [...host.domains].filter(({ vifs }) =>
    [...vifs.values()].some(({ backendDomid }) => backendDomid === domain.domid),
  );
  if (served.length > 0) {
    const names = served.map(({ config: { name } }) => name).join(', ');
    throw new ToolstackError(
      'EOPNOTSUPP',
      `${config.name}: a driver domain cannot be saved while it serves vifs, now of ${names}: detach them first`,
    );
  }
  const save = booted?.guest.save;
  if (save === undefined) {
    const why = UNSAVABLE[config.guest.kind] ?? 'it has no state to save';
    throw new ToolstackError(
      'EOPNOTSUPP',
      `${config.name}: a guest of kind "${config.guest.kind}" cannot be saved: ${why}`,
    );
  }
  return () => save();
}

/** What the image of a domain would leave out of what its guest is doing now, a sentence each. */
export function unsavedOf({ booted, config }: HostedDomain): string[] {
  return (booted?.guest.unsaved?.() ?? []).map(what => `${config.name}: not saved: ${what}`);
}

/**
 * Suspends a domain and makes its image. It stays suspended.
 * @throws ToolstackError as `Host.suspend`, EOPNOTSUPP for a guest that cannot be saved; the domain runs on then
 */
export function saveDomain(host: Host, hosted: HostedDomain): Promise<DomainImage> {
  return host.exclusively([hosted], 'being saved', () => suspendAndSave(host, hosted));
}

async function suspendAndSave(host: Host, hosted: HostedDomain): Promise<DomainImage> {
  const save = saverOf(host, hosted);
  await suspendDomain(host, hosted);
  try {
    const image = { ...(await domainImage(host, hosted)), guest: await whileAlive(hosted, save) };
    host.requireAlive(hosted);
    return image;
  } catch (error) {
    await callOff(host, hosted);
    // What failed then did so for that reason.
    host.requireAlive(hosted);
    throw error;
  }
}

/** What a guest's `save` gives, which may be a module's; not longer than its domain is there. */
function whileAlive({ destroyed }: HostedDomain, save: () => unknown): Promise<unknown> {
  return abortable((async () => save())(), destroyed);
}

/** Lets a domain go on as if nothing had been, if it is still there. */
async function callOff(host: Host, hosted: HostedDomain): Promise<void> {
  if (isSuspended(hosted.domain) && !host.hasEnded(hosted))
    await resumeDomain(host, hosted, { cancelled: true });
}

async function callOffAll(host: Host, all: readonly HostedDomain[]): Promise<void> {
  await Promise.all(all.map(hosted => callOff(host, hosted)));
}

/**
 * Creates a domain that continues a saved one.
 * @param options.keepDomid whether it must have the number that it had
 * @param options.beforeStart is called when all is there but its guest; when it throws, nothing of the domain stays
 * @throws ToolstackError as `Host.create`; what `beforeStart` throws
 */
export function restoreDomain(
  host: Host,
  image: DomainImage,
  options: { keepDomid?: boolean; beforeStart?(): void } = {},
): Promise<HostedDomain> {
  return host.create(configOf(image), {
    domid: options.keepDomid ? image.domid : undefined,
    uuid: image.uuid,
    async handOver({ domid }) {
      const domidNow = options.keepDomid ? undefined : elsewhere(image.domid, domid);
      await restoreNodes(host.xs, `/local/domain/${domid}`, image.nodes, domidNow);
      options.beforeStart?.();
      return image.guest;
    },
  });
}

/** The numbers of domains on another host, for one that had moved there: its neighbours are others. */
function elsewhere(before: number, now: number): (domid: number) => number | null {
  return domid => (domid === before ? now : domid === 0 ? 0 : null);
}

/**
 * Suspends all domains of a host and makes its image. They stay suspended.
 * @throws ToolstackError as `saveDomain`, for the first domain that cannot be saved; all run on then
 */
export function saveHost(host: Host): Promise<HostImage> {
  const all = [...host.domains];
  return host.exclusively(all, 'being saved', () => saveAll(host, all));
}

async function saveAll(host: Host, all: readonly HostedDomain[]): Promise<HostImage> {
  for (const hosted of all) saverOf(host, hosted);
  const domains: DomainImage[] = [];
  const suspended: HostedDomain[] = [];
  try {
    for (const hosted of all) {
      domains.push(await suspendAndSave(host, hosted));
      suspended.push(hosted);
    }
    const nodes = await saveNodes(host.xs, '', path => REMADE_BY_HOST.test(path));
    return { format: 'pvnet host', version: 1, bridges: host.bridgeNames, nodes, domains };
  } catch (error) {
    await callOffAll(host, suspended);
    throw error;
  }
}

/**
 * Saves a host and then lets its domains go on, or destroys them. Until that is done nothing else comes between.
 * @param store puts the image where it is to stay
 * @throws ToolstackError as `saveDomain`, EBUSY when a domain came meanwhile that is to be destroyed without being saved; what
 * `store` throws. All run on then
 */
export function storeHost(
  host: Host,
  store: (image: HostImage) => void | Promise<void>,
  then: 'go on' | 'end',
): Promise<void> {
  const all = [...host.domains];
  return host.exclusively(all, 'being saved', async () => {
    const image = await saveAll(host, all);
    try {
      if (then === 'end') requireNoMore(host, all);
      await store(image);
    } catch (error) {
      await callOffAll(host, all);
      throw error;
    }
    if (then === 'go on') await callOffAll(host, all);
    else await Promise.all(all.map(hosted => host.destroy(hosted)));
  });
}

function requireNoMore(host: Host, all: readonly HostedDomain[]): void {
  const added = [...host.domains].find(hosted => !all.includes(hosted));
  if (added === undefined) return;
  throw new ToolstackError(
    'EBUSY',
    `the domain ${added.config.name} was created meanwhile, and is not saved`,
  );
}

/** Lets those domains that are suspended go on as if nothing had been. @throws as `Host.resume` */
export async function resumeAll(host: Host, domains: Iterable<HostedDomain>): Promise<void> {
  for (const hosted of domains) {
    if (isSuspended(hosted.domain) && !host.hasEnded(hosted)) await host.resume(hosted, { cancelled: true });
  }
}

/** Reads the image of a host. @throws ToolstackError EINVAL for anything else */
export function parseHostImage(text: string, name: string): HostImage {
  const image = parseJson(text) as Partial<HostImage> | null;
  if (image?.format !== 'pvnet host') {
    throw new ToolstackError('EINVAL', `${name} is not what "pvnet save" writes`);
  }
  if (image.version !== 1) {
    const version = shown(image.version);
    throw new ToolstackError('EINVAL', `${name} is of version ${version}; this pvnet reads version 1`);
  }
  checkHostImage(image, name);
  return image;
}

/** Reads the image of a domain. @throws ToolstackError EINVAL for anything else */
export function parseDomainImage(text: string, name: string): DomainImage {
  const image = parseJson(text);
  checkDomainImage(image, name);
  return image;
}

/** @returns null for what is no JSON */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Creates all domains of a saved host, with the numbers that they had, on a host that has none. When anything fails nothing of
 * them stays.
 * @throws as `create`
 */
export async function restoreHost(host: Host, image: HostImage): Promise<HostedDomain[]> {
  const { xs } = host;
  const bridges = new Set(host.bridgeNames);
  const nodes = await saveNodes(xs, '', path => REMADE_BY_HOST.test(path));
  const restored: HostedDomain[] = [];
  try {
    for (const bridge of image.bridges) host.bridge(bridge);
    await restoreNodes(xs, '', image.nodes);
    for (const domain of image.domains) {
      restored.push(await restoreDomain(host, domain, { keepDomid: true }));
    }
    await renewPermissions(xs, '', image.nodes, [0]);
    for (const { domid, nodes } of image.domains) {
      await renewPermissions(xs, `/local/domain/${domid}`, nodes, [0, domid]);
    }
    return restored;
  } catch (error) {
    for (const hosted of restored) await host.destroy(hosted);
    await takeBackNodes(xs, '', nodes, image.nodes);
    for (const name of host.bridgeNames.filter(name => !bridges.has(name))) await host.removeBridge(name);
    throw error;
  }
}

/**
 * Moves a domain, while its peers talk to it, to another host of this process. Its backends are made there first;
 * then it is suspended here, its guest goes on there, and what is left here goes. A guest of kind "netns" takes
 * its namespace along, with all that runs in it.
 * @throws ToolstackError what creating it there throws; it runs on here then, unless its guest had left already. ESRCH when
 * it is destroyed here meanwhile: then it is nowhere. EBUSY, ESRCH as `Host.exclusively`
 */
export function migrateDomain(source: Host, hosted: HostedDomain, target: Host): Promise<HostedDomain> {
  return source.exclusively([hosted], 'being migrated', () => migrate(source, hosted, target));
}

async function migrate(source: Host, hosted: HostedDomain, target: Host): Promise<HostedDomain> {
  const { booted } = hosted;
  const leave = booted?.guest.leave?.bind(booted.guest);
  const save = leave === undefined ? saverOf(source, hosted) : null;
  requireVifsAtRest(hosted);
  const description = await domainImage(source, hosted);
  let abandon: (() => Promise<void>) | null = null;
  let moved: HostedDomain;
  try {
    moved = await target.create(configOf({ ...description, guest: null }), {
      uuid: description.uuid,
      async handOver({ domid }) {
        await suspendDomain(source, hosted);
        const { nodes } = await domainImage(source, hosted);
        const domidNow = elsewhere(description.domid, domid);
        await restoreNodes(target.xs, `/local/domain/${domid}`, nodes, domidNow);
        source.requireAlive(hosted);
        if (leave === undefined) return whileAlive(hosted, save!);
        const luggage = await leave();
        abandon = () => luggage.abandon();
        return luggage.state;
      },
    });
  } catch (error) {
    if (abandon !== null) {
      await (abandon as () => Promise<void>)();
      await source.destroy(hosted);
    } else await callOff(source, hosted);
    throw error;
  }
  try {
    source.requireAlive(hosted);
  } catch (error) {
    await target.destroy(moved);
    throw error;
  }
  await source.destroy(hosted);
  return moved;
}

/** What `send` throws when nobody here can know whether the domain runs where it was sent to. */
export class MayRunElsewhere extends ToolstackError {}

/**
 * Moves a domain to a host elsewhere.
 * @param send hands its image over and resolves when it runs there. Its signal is aborted when the domain is destroyed here:
 * it is not to start there any more
 * @throws ToolstackError as `saveDomain`, and what `send` throws; it runs on here then, but stays suspended after MayRunElsewhere
 */
export function sendDomain(
  source: Host,
  hosted: HostedDomain,
  send: (image: DomainImage, destroyed: AbortSignal) => Promise<void>,
): Promise<void> {
  return source.exclusively([hosted], 'being migrated', async () => {
    const image = await suspendAndSave(source, hosted);
    try {
      await send(image, hosted.destroyed);
    } catch (error) {
      if (!(error instanceof MayRunElsewhere)) await callOff(source, hosted);
      throw error;
    }
    await source.destroy(hosted);
  });
}
