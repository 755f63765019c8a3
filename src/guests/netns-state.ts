import { isIP } from 'node:net';
import { bool, list, object, optional, string, whole } from '../toolstack/checks.js';
import { DEVID_MAX } from '../toolstack/vif-config.js';
import type { NetworkNamespace } from '../uplink/namespace.js';

/** How often, and in what intervals, routes are tried whose interface has no carrier yet. */
const ROUTE_TRIES = 50;
const ROUTE_RETRY_MS = 100;
/** Routes that come by themselves with addresses and from routers, and what is only said of a route. */
const MADE_BY_KERNEL = /\bproto (kernel|ra|redirect)\b/;
const ONLY_SAID = /\b(linkdown|dead)\b/g;

/** What is set up on an interface of a namespace by hand, as arguments of iproute2's `ip`, without the interface. */
export interface SavedInterface {
  readonly devid: number;
  readonly up: boolean;
  /** What `addr add` takes. */
  readonly addresses: readonly string[];
  /** What `route replace` takes, by family. */
  readonly routes: Readonly<Record<4 | 6, readonly string[]>>;
}

/** A namespace of which all is known that can be made anew elsewhere. */
export interface SavedNamespace {
  readonly interfaces: readonly SavedInterface[];
}

/** They become lines of input to `ip`, so they may be nothing else. */
function isAddress(text: string): boolean {
  const match = /^(\S+?)(?: peer (\S+?))?\/[0-9]{1,3}(?: nodad| brd (\S+))?$/.exec(text);
  return match?.slice(1).every(each => each === undefined || isIP(each) !== 0) === true;
}

const isRoute = (text: string) => /^[A-Za-z0-9][^\s"'\\#]*( +[^\s"'\\#]+)*$/.test(text);
const routes = list(string(isRoute, 'a route'));

export const checkSavedNamespace = optional(
  object({
    interfaces: list(
      object({
        devid: whole(0, DEVID_MAX),
        up: bool,
        addresses: list(string(isAddress, 'an address, as "10.0.0.1/24 brd 10.0.0.255"')),
        routes: object({ 4: routes, 6: routes }),
      }),
    ),
  }),
);

/** Fields of `ip -json address` (iproute2, ipaddress.c) that are used. */
interface ShownLink {
  readonly flags: readonly string[];
  readonly addr_info: readonly {
    readonly family: 'inet' | 'inet6';
    readonly local: string;
    readonly prefixlen: number;
    readonly scope: string;
    readonly address?: string;
    readonly broadcast?: string;
    readonly dynamic?: boolean;
  }[];
}

/** The interfaces of a namespace. @throws UplinkError EINVAL with what `ip` said */
export async function interfaceNames(namespace: NetworkNamespace): Promise<Set<string>> {
  const links = JSON.parse(await namespace.show(['-json', 'link'])) as { readonly ifname: string }[];
  return new Set(links.map(({ ifname }) => ifname));
}

/** @throws UplinkError EINVAL with what `ip` said */
export async function saveInterface(
  namespace: NetworkNamespace,
  name: string,
  devid: number,
): Promise<SavedInterface> {
  const [link] = JSON.parse(await namespace.show(['-json', 'address', 'show', 'dev', name])) as ShownLink[];
  const routesOf = async (family: 4 | 6): Promise<string[]> => {
    const shown = await namespace.show([`-${family}`, 'route', 'show', 'dev', name]);
    const lines = shown.split('\n').filter(line => line !== '' && !MADE_BY_KERNEL.test(line));
    return lines.map(line => line.replace(ONLY_SAID, '').trim());
  };
  const addresses = link.addr_info.filter(({ scope, dynamic }) => scope !== 'link' && !dynamic);
  return {
    devid,
    up: link.flags.includes('UP'),
    addresses: addresses.map(({ family, local, prefixlen, address, broadcast }) => {
      const whole = address === undefined ? `${local}/${prefixlen}` : `${local} peer ${address}/${prefixlen}`;
      if (family === 'inet6') return `${whole} nodad`;
      return broadcast === undefined ? whole : `${whole} brd ${broadcast}`;
    }),
    routes: { 4: await routesOf(4), 6: await routesOf(6) },
  };
}

/**
 * Gives an interface the routes that it had. One through a neighbour can only be set once there is a carrier.
 * @throws UplinkError EINVAL with what `ip` said, when it says so for 5 s
 */
export async function restoreRoutes(
  namespace: NetworkNamespace,
  name: string,
  { routes }: SavedInterface,
): Promise<void> {
  for (const family of [4, 6] as const) {
    const lines = routes[family].map(route => `route replace ${route} dev ${name}`);
    if (lines.length === 0) continue;
    for (let tries = 1; ; tries++) {
      try {
        await namespace.ipOf(family, ...lines);
        break;
      } catch (error) {
        if (tries === ROUTE_TRIES) throw error;
        await new Promise(resolve => setTimeout(resolve, ROUTE_RETRY_MS));
      }
    }
  }
}
