import { HypercallError } from '../errors.js';
import { PAGE_SIZE } from '../memory.js';
import type { DomainMemory } from '../platform.js';
import { MachineMemory } from '../sim/machine-memory.js';
import {
  addressOf,
  checked,
  libc,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  MAP_SHARED,
  PROT_READ,
  PROT_WRITE,
} from './libc.js';

/**
 * The process's pages: those of one shared WebAssembly.Memory, which the kernel backs where they are touched.
 * Any of them can be replaced by a page of a device file (a grant), and made an ordinary one again.
 */
export class LinuxMemory implements DomainMemory {
  readonly memory: MachineMemory;
  /** Address in this process of byte 0 of `memory`. */
  readonly base: number;
  private readonly freeList: Int32Array;
  private freeCount = 0;
  /** Page 0 is never handed out. */
  private next = 1;

  /** @param bytes a multiple of 64 KiB, what all pages together may take */
  constructor(bytes: number) {
    this.memory = new MachineMemory(bytes);
    this.base = addressOf(this.memory.u8);
    this.freeList = new Int32Array(this.memory.pages);
    if (this.base % PAGE_SIZE !== 0) {
      throw new HypercallError('EINVAL', `the memory lies at ${this.base}, not at the start of a page`);
    }
  }

  get allocated(): number {
    return this.next - 1 - this.freeCount;
  }

  allocPage(): number {
    if (this.freeCount > 0) {
      const page = this.freeList[--this.freeCount];
      this.memory.clearPage(page);
      return page;
    }
    if (this.next === this.memory.pages) {
      throw new HypercallError('ENOMEM', `all ${this.memory.pages} pages of the process are in use`);
    }
    return this.next++;
  }

  freePage(page: number): void {
    this.freeList[this.freeCount++] = page;
  }

  gfn(page: number): number {
    throw new HypercallError('EOPNOTSUPP', `page ${page}: a process does not know its frame numbers`);
  }

  /** Puts a page of a device file in the place of `page`, whose content is lost. @throws SystemError */
  replace(page: number, fd: number, offset: number, writable: boolean): void {
    const protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    this.mmap(page, protection, MAP_SHARED | MAP_FIXED, fd, offset, 'mapping a page of a device');
  }

  /** Makes `page` an ordinary page again, all zero. */
  restore(page: number): void {
    const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    this.mmap(page, PROT_READ | PROT_WRITE, flags, -1, 0, 'making a page an ordinary one');
  }

  private mmap(page: number, protection: number, flags: number, fd: number, offset: number, what: string) {
    const at = this.base + page * PAGE_SIZE;
    checked(libc().mmap(at, PAGE_SIZE, protection, flags, fd, offset), what);
  }
}
