import { XenbusState } from '../abi/xenbus-state.js';
import type { ClientTransaction, XenStoreClient } from '../xenstore/index.js';
import { DEFAULT_MTU, type VifConfig } from './vif-config.js';

/** Where a vif is in xenstore. */
export interface VifPaths {
  readonly frontend: string;
  readonly backend: string;
  /** The toolstack's own notes. */
  readonly libxl: string;
}

export function vifPaths(domid: number, devid: number, backendDomid: number): VifPaths {
  return {
    frontend: `/local/domain/${domid}/device/vif/${devid}`,
    backend: `/local/domain/${backendDomid}/backend/vif/${domid}/${devid}`,
    libxl: `/libxl/${domid}/device/vif/${devid}`,
  };
}

export interface VifIdentity {
  readonly domid: number;
  readonly devid: number;
  readonly backendDomid: number;
  readonly mac: string;
}

/** Writes a vif's three directories in one transaction, as libxl__device_generic_add does. */
export async function writeVif(xs: XenStoreClient, id: VifIdentity, vif: VifConfig): Promise<void> {
  const { domid, devid, backendDomid, mac } = id;
  const paths = vifPaths(domid, devid, backendDomid);
  const { followed } = vif;
  const configured = vif.rate === undefined ? undefined : `${vif.rate.bytes},${vif.rate.usecs}`;
  const guestOwned = [`n${domid}`, `r${backendDomid}`];
  const backendOwned = [`n${backendDomid}`, `r${domid}`];
  const frontend: [string, string | number | undefined][] = [
    ['backend-id', backendDomid],
    ['state', XenbusState.Initialising],
    ['handle', devid],
    ['mac', mac],
    ['trusted', vif.trusted ? 1 : 0],
    ['disconnect', followed?.disconnect],
    ['speed', followed?.speed],
  ];
  const backend: [string, string | number | undefined][] = [
    ['frontend-id', domid],
    ['online', 1],
    ['state', XenbusState.Initialising],
    ['script', vif.script],
    ['vifname', vif.vifname],
    ['forwarddev', vif.forwarddev],
    ['mac', mac],
    ['ip', vif.ip.length === 0 ? undefined : vif.ip.map(({ address }) => address).join(' ')],
    ['gatewaydev', vif.gatewaydev],
    ['rate', followed === undefined ? configured : followed.rate],
    ['mtu', vif.mtu === DEFAULT_MTU ? undefined : vif.mtu],
    ['vlan', vif.vlan],
    ['bridge', vif.bridge],
    ['handle', devid],
    ['type', vif.type],
    ['hotplug-status', ''],
    ['carrier', followed?.carrier],
  ];
  await xs.transaction(async t => {
    await remove(t, paths.libxl);
    await t.mkdir(paths.libxl);
    await t.write(`${paths.libxl}/frontend`, paths.frontend);
    await t.write(`${paths.libxl}/backend`, paths.backend);

    await remove(t, paths.frontend);
    await t.mkdir(paths.frontend);
    await t.setPerms(paths.frontend, guestOwned);
    await t.write(`${paths.frontend}/backend`, paths.backend);
    for (const [key, value] of frontend) {
      if (value === undefined) continue;
      await t.write(`${paths.frontend}/${key}`, String(value));
      await t.setPerms(`${paths.frontend}/${key}`, guestOwned);
    }
    await t.write(`${paths.frontend}/mtu`, frontendMtu(vif));
    await t.setPerms(`${paths.frontend}/mtu`, backendOwned);

    await remove(t, paths.backend);
    await t.mkdir(paths.backend);
    await t.setPerms(paths.backend, backendOwned);
    for (const directory of [paths.backend, paths.libxl]) {
      if (directory === paths.backend) await t.write(`${directory}/frontend`, paths.frontend);
      for (const [key, value] of backend) {
        if (value !== undefined) await t.write(`${directory}/${key}`, String(value));
      }
    }
  });
}

/** What the frontend's `mtu` says. */
export function frontendMtu({ mtu, followed }: VifConfig): string {
  return followed?.mtu ?? String(mtu);
}

/**
 * Asks the backend to close, as libxl's device removal does. With `force` the frontend's directory goes at
 * once.
 * @returns false when there is no backend to wait for
 */
export function requestClose(xs: XenStoreClient, paths: VifPaths, force: boolean): Promise<boolean> {
  return xs.transaction(async t => {
    const state = await t.readIfExists(`${paths.backend}/state`);
    if (force) await remove(t, paths.frontend);
    if (state === undefined) return false;
    await t.write(`${paths.backend}/online`, '0');
    // No driver has taken it up yet, and none does that is not Initialising: nobody would close it.
    if (state === String(XenbusState.Initialising)) return false;
    if (state === String(XenbusState.Closed)) return false;
    await t.write(`${paths.backend}/state`, String(XenbusState.Closing));
    return true;
  });
}

/** Removes what is left of a vif, and parents that are empty then. */
export function removeVifNodes(xs: XenStoreClient, paths: VifPaths): Promise<void> {
  return xs.transaction(async t => {
    for (const path of [paths.libxl, paths.frontend, paths.backend]) await removeWithEmptyParents(t, path);
  });
}

async function remove(t: ClientTransaction, path: string): Promise<void> {
  if (await t.exists(path)) await t.rm(path);
}

/** libxl__xs_path_cleanup. */
async function removeWithEmptyParents(t: ClientTransaction, path: string): Promise<void> {
  await remove(t, path);
  for (let at = path.lastIndexOf('/'); at > 0; at = path.lastIndexOf('/')) {
    path = path.slice(0, at);
    if (!(await t.exists(path))) continue;
    if ((await t.directory(path)).length > 0) return;
    await t.rm(path);
  }
}
