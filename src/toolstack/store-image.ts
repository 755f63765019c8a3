import type { XenStoreClient } from '../xenstore/index.js';

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

/** Writes saved nodes below a directory. @param domidNow the number of a domain that had another */
export async function restoreNodes(
  xs: XenStoreClient,
  directory: string,
  nodes: readonly SavedNode[],
  domidNow: (domid: number) => number = domid => domid,
): Promise<void> {
  for (const { path, value, permissions } of nodes) {
    const full = `${directory}${path}`;
    if (full === '') continue;
    await xs.write(full, Buffer.from(value, 'base64'));
    const perms = permissions.map(entry => `${entry[0]}${domidNow(Number(entry.slice(1)))}`);
    await xs.setPerms(full, perms);
  }
}
