import { PacketPool } from '../../src/net/packet.js';
import { PagePool } from '../../src/net/page-pool.js';
import { Memory } from '../../src/platform/memory.js';
import type { DomainMemory } from '../../src/platform/platform.js';

/** 32 MiB of pages that belong to no domain, with the pools that an uplink works on. */
export function makePages(limit = 256): {
  own: DomainMemory;
  packets: PacketPool;
  pool: PagePool;
  memory: Memory;
} {
  const memory = new Memory(new SharedArrayBuffer(32 << 20));
  const free = Array.from({ length: 8191 }, (_, i) => 8191 - i);
  const own: DomainMemory = {
    memory,
    allocPage: () => free.pop()!,
    freePage: page => void free.push(page),
    gfn: page => page,
    get allocated() {
      return 8191 - free.length;
    },
  };
  return { own, packets: new PacketPool(own), pool: new PagePool(own, limit), memory };
}
