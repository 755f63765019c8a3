import { type DomainMemory, Memory, PAGE_SIZE } from '../../src/platform/index.js';

/** Pages of a plain buffer: what a step of the data path needs when no hypervisor takes part. */
export function plainMemory(pages = 64): DomainMemory {
  const memory = new Memory(new SharedArrayBuffer(pages * PAGE_SIZE));
  const free = Array.from({ length: pages - 1 }, (_, i) => pages - 1 - i);
  return {
    memory,
    allocPage() {
      const page = free.pop();
      if (page === undefined) throw new Error('ENOMEM');
      memory.u8.fill(0, page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
      return page;
    },
    freePage: page => void free.push(page),
    gfn: page => page,
    get allocated() {
      return pages - 1 - free.length;
    },
  };
}
