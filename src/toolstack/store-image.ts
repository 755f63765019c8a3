import type { XenStoreClient } from '../xenstore/index.js';

/** What a domain's home has that the toolstack makes anew. */
export const REMADE = /^\/(device|backend|error|vm|name|domid|memory|cpu|control\/shutdown)(\/|$)/;
/** What else of xenstore is made anew with its domains. */
export const REMADE_BY_HOST = /^\/(libxl|vm|local\/domain\/\d+)(\/|$)/;

/** A node of xenstore as it is saved. */
export interface SavedNode {
  /** From the directory that was saved on; "" for that itself. */
  readonly path: string;
  /** Base64. */
  readonly value: string;
  /** As `getPerms` gives them, as ["n5", "r0"]. */
  readonly permissions: readonly string[];
}

/**
 * Saves a directory of xenstore.
 * @param skip tells which paths (relative ones) to leave out, with all that is below
 */
export async function saveNodes(
  xs: XenStoreClient,
  directory: string,
  skip: (path: string) => boolean,
): Promise<SavedNode[]> {
  const nodes: SavedNode[] = [];
  const save = async (path: string): Promise<void> => {
    const full = `${directory}${path}` || '/';
    const value = Buffer.from(await xs.readBytes(full)).toString('base64');
    nodes.push({ path, value, permissions: await xs.getPerms(full) });
    for (const name of await xs.directory(full)) {
      const child = `${path}/${name}`;
      if (!skip(child)) await save(child);
    }
  };
  if (await xs.exists(directory === '' ? '/' : directory)) await save('');
  return nodes;
}

const domidOf = (permission: string) => Number(permission.slice(1));

/**
 * Writes saved nodes below a directory.
 * @param domidNow the number that a domain has now; null for one that is not the same here
 */
export async function restoreNodes(
  xs: XenStoreClient,
  directory: string,
  nodes: readonly SavedNode[],
  domidNow: (domid: number) => number | null = domid => domid,
): Promise<void> {
  for (const { path, value, permissions } of nodes) {
    const full = `${directory}${path}`;
    if (full === '') continue;
    await xs.write(full, Buffer.from(value, 'base64'));
    const [owner, ...others] = permissions.map(entry => ({
      access: entry[0],
      domid: domidNow(domidOf(entry)),
    }));
    const named = [{ ...owner, domid: owner.domid ?? 0 }, ...others.filter(({ domid }) => domid !== null)];
    await xs.setPerms(
      full,
      named.map(({ access, domid }) => `${access}${domid}`),
    );
  }
}

/**
 * Sets the permissions of restored nodes once more that name other domains: they hold for those only that are there by then
 * (XSA-322). Nodes that are gone again stay so.
 * @param domids domains that were there when the nodes were written
 */
export async function renewPermissions(
  xs: XenStoreClient,
  directory: string,
  nodes: readonly SavedNode[],
  domids: readonly number[],
): Promise<void> {
  const naming = nodes.filter(
    ({ permissions }) => !permissions.every(entry => domids.includes(domidOf(entry))),
  );
  await xs.transaction(async t => {
    for (const { path, permissions } of naming) {
      const full = `${directory}${path}`;
      if (full !== '' && (await t.exists(full))) await t.setPerms(full, permissions);
    }
  });
}

/** Makes a directory what it was. @param before it then @param written what was written there since */
export async function takeBackNodes(
  xs: XenStoreClient,
  directory: string,
  before: readonly SavedNode[],
  written: readonly SavedNode[],
): Promise<void> {
  const known = new Set(before.map(({ path }) => path));
  for (const { path } of written) {
    const full = `${directory}${path}`;
    if (!known.has(path) && (await xs.exists(full))) await xs.rm(full);
  }
  await restoreNodes(xs, directory, before);
}
