import type { ByteStream } from '../../platform/platform.js';
import { connectDevice } from './device-stream.js';
import { findXenStore } from './socket-path.js';
import { connectSocket } from './socket-stream.js';

/** Connects to this domain's XenStore, where libxenstore would find it: the socket, else the device. */
export function connectXenStore(path?: string): ByteStream {
  const found = path === undefined ? findXenStore() : { kind: 'socket', path };
  return found.kind === 'device' || found.path.startsWith('/dev/')
    ? connectDevice(found.path)
    : connectSocket(found.path);
}
