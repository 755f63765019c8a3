import { parseArgs } from 'node:util';
import { EventLoopScheduler } from '../platform/sim/index.js';
import { XenStoreServer } from '../xenstore/index.js';
import { EpollServer } from '../xenstore/node/epoll-server.js';
import { listen } from '../xenstore/node/index.js';
import { Memory, PAGE_SIZE } from '../platform/memory.js';

export async function xenstored(args: string[]): Promise<number> {
  const { values } = parseArgs({ args, options: { socket: { type: 'string' }, net: { type: 'boolean' } } });
  const scheduler = new EventLoopScheduler({ setImmediate, setTimeout, clearTimeout, now: () => performance.now() } as never);
  const server = new XenStoreServer({
    scheduler, random: Math.random, log: console.error,
    host: { domainState: d => d < 0x7ff0 ? 'alive' : 'absent', introduce: () => ({ memory: new Memory(new SharedArrayBuffer(PAGE_SIZE)), address: 0, notify() {}, unmap() {} }) },
  });
  if (values.net) await listen(server, values.socket!); else await EpollServer.listen(server, values.socket!);
  return new Promise(() => {});
}
