import { lstatSync, mkdirSync, statSync, unlinkSync } from 'node:fs';
import { createConnection } from 'node:net';
import { dirname, resolve } from 'node:path';
import { XenStoreError } from '../error.js';

/** sun_path. */
const SOCKET_PATH_MAX = 107;

/**
 * Makes a place for a UNIX socket: its folder, and away with a socket that its server left behind.
 * @param server who wants to listen there
 * @returns the folders that were made here, as `makeFolder`
 * @throws XenStoreError EADDRINUSE when such a server listens there, EEXIST for what is no socket, EINVAL for a path that is
 * too long; as `makeFolder`
 */
export async function prepareSocket(path: string, server: string): Promise<string[]> {
  if (Buffer.byteLength(path) > SOCKET_PATH_MAX) {
    throw new XenStoreError(
      'EINVAL',
      `${path}: the path of a UNIX socket has at most ${SOCKET_PATH_MAX} bytes`,
    );
  }
  const made = makeFolder(dirname(path));
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return made;
  if (!found.isSocket()) throw new XenStoreError('EEXIST', `${path} is there and is no socket`);
  if (await isListenedOn(path)) {
    throw new XenStoreError(
      'EADDRINUSE',
      `another ${server} listens on ${path}; --socket gives this one another place`,
    );
  }
  unlinkSync(path);
  return made;
}

/**
 * Makes a folder for this user, with those that it is in. Node's own `recursive` never ends where there can be none, as in /proc.
 * @returns those that were made here, the innermost first: whoever leaves removes them again
 * @throws XenStoreError EACCES when that is not allowed, EIO for what else keeps it from being made
 */
export function makeFolder(folder: string): string[] {
  const missing: string[] = [];
  for (let at = resolve(folder); !isFolder(at); at = dirname(at)) missing.push(at);
  const made: string[] = [];
  for (const each of missing.reverse()) if (makeOne(each)) made.unshift(each);
  return made;
}

/** @returns false when somebody else has made it meanwhile */
function makeOne(path: string): boolean {
  try {
    mkdirSync(path, { mode: 0o700 });
    return true;
  } catch (error) {
    if (isFolder(path)) return false;
    throw placeError(error as NodeJS.ErrnoException, path);
  }
}

function isFolder(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch {
    return false;
  }
}

/** Whether somebody answers at a UNIX socket. */
export function isListenedOn(path: string): Promise<boolean> {
  return new Promise(resolve => {
    const probe = createConnection({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}

/** What keeps a socket, or a folder for one, from being made. */
export function placeError(error: NodeJS.ErrnoException, path: string): XenStoreError {
  if (error.code === 'EACCES' || error.code === 'EPERM') {
    return new XenStoreError('EACCES', `no permission to make ${path}; --socket names another place`);
  }
  if (error.code === 'EADDRINUSE') return new XenStoreError('EADDRINUSE', `somebody listens on ${path}`);
  return new XenStoreError('EIO', `${path} cannot be made (${error.code}); --socket names another place`);
}
