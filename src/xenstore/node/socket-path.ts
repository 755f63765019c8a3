import { existsSync } from 'node:fs';

/** The sockets that xenstored listens on by default, and the devices that a domain's kernel offers. */
const SOCKETS = ['/run/xenstored/socket', '/var/run/xenstored/socket'];
const DEVICES = ['/dev/xen/xenbus', '/proc/xen/xenbus'];

/** Where a xenstored of ours listens unless told otherwise: XENSTORED_PATH, or in XENSTORED_RUNDIR. */
export function defaultSocketPath(env: NodeJS.ProcessEnv = process.env): string {
  if (env['XENSTORED_PATH']) return env['XENSTORED_PATH'];
  return env['XENSTORED_RUNDIR'] ? `${env['XENSTORED_RUNDIR']}/socket` : SOCKETS[0];
}

/** Where a client finds XenStore, as libxenstore looks: the socket, else the kernel's device. */
export function findXenStore(env: NodeJS.ProcessEnv = process.env): {
  kind: 'socket' | 'device';
  path: string;
} {
  const path = defaultSocketPath(env);
  if (env['XENSTORED_PATH'] || env['XENSTORED_RUNDIR']) {
    return { kind: path.startsWith('/dev/') ? 'device' : 'socket', path };
  }
  const socket = SOCKETS.find(existsSync);
  if (socket !== undefined) return { kind: 'socket', path: socket };
  const device = DEVICES.find(existsSync);
  return device === undefined ? { kind: 'socket', path } : { kind: 'device', path: device };
}

/** What is missing when there is no socket at `path`. */
export function missing(path: string): string {
  if (path !== SOCKETS[0] || DEVICES.some(existsSync)) return `there is no socket ${path}`;
  return `there is neither the socket ${path} nor the device ${DEVICES[0]}`;
}
