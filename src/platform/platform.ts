import type { CopyBatch } from './copy-batch.js';
import type { Memory } from './memory.js';
import type { Scheduler } from './scheduler.js';

/**
 * What one domain gets from Xen, and nothing else. Drivers are written against this and never learn which
 * host they run on: simulated, real, or in a browser page.
 */
export interface Platform {
  readonly domid: number;
  readonly memory: DomainMemory;
  readonly grants: Grants;
  readonly events: EventChannels;
  /** How this domain reaches its xenstored. */
  readonly xenstore: XenStoreAccess;
  readonly scheduler: Scheduler;
  /**
   * Whether a domain runs in another thread on a processor whose barriers are none to us (an emulated one): its store and its
   * next load may pass each other, so that it may miss that we have just asked for an event, and we that it has
   * (`SecondLook`). Absent where that cannot be.
   */
  looselyOrdered?(domid: number): boolean;
  /** A number in [0, 1): the only source of chance for what runs on this platform. */
  random(): number;
  /** One line for the domain's kernel log (dmesg). */
  log(line: string): void;
}

/** Pages of the domain's own. */
export interface DomainMemory {
  /** Where the pages lie: page n is at byte address n * 4096. */
  readonly memory: Memory;
  /**
   * A zeroed page.
   * @returns its page number in `memory`
   * @throws ENOMEM when the domain has no page left
   */
  allocPage(): number;
  /** Gives a page back; nobody may hold a grant of it any more. */
  freePage(page: number): void;
  /** The guest frame number by which Xen and other domains know the page. */
  gfn(page: number): number;
  /** Pages allocated and not yet freed. */
  readonly allocated: number;
}

/** A foreign page in reach of this domain. */
export interface GrantMapping {
  readonly domid: number;
  readonly gref: number;
  readonly readonly: boolean;
  /** The memory that holds the page, which need not be the domain's own. */
  readonly memory: Memory;
  /** Byte address of the page in `memory`. */
  readonly address: number;
}

/**
 * The domain's grant table and what it may do with other domains' grants.
 * The names follow Linux's grant-table.h.
 */
export interface Grants {
  /**
   * Whether a reference can be granted for one page and then another. Where not (a process on a real Xen host),
   * `alloc`, `free`, `grant` and `end` throw EOPNOTSUPP: a grant is tied to its page from `grantAccess` to
   * `endAccess`.
   */
  readonly regrantable: boolean;
  /** Takes a free grant reference. @throws ENOSPC when the table is full */
  alloc(): number;
  /** Gives a reference back that is granted to nobody. */
  free(gref: number): void;
  /** Lets `domid` reach `page` through a reference taken with `alloc`. */
  grant(gref: number, domid: number, page: number, readonly: boolean): void;
  /** Revokes a grant. @returns false while the peer has it mapped or pinned: the page must not be reused */
  end(gref: number): boolean;
  /** `alloc` and `grant` in one. */
  grantAccess(domid: number, page: number, readonly: boolean): number;
  /** `end` and, if that worked, `free`. */
  endAccess(gref: number): boolean;
  /** Maps a page that `domid` granted to us. @throws GrantError with the GNTST status */
  map(domid: number, gref: number, readonly: boolean): GrantMapping;
  unmap(mapping: GrantMapping): void;
  /** Does all copies of the batch; each gets its own GNTST status. Never throws. */
  copy(batch: CopyBatch): void;
  /** References taken and not yet freed. */
  readonly allocated: number;
  /** References that can still be taken. */
  readonly available: number;
  /** Foreign pages mapped and not yet unmapped. */
  readonly mapped: number;
  /** The same operations for code in WebAssembly over this domain's memory; null where there are none. */
  readonly wasm: GrantsWasm | null;
}

/** Grant operations that a WebAssembly module can import (`platform/wasm/grants.ts` declares them). */
export interface GrantsWasm {
  /** What the functions know the domain by. */
  readonly record: number;
  /** `grant` and `end` work on the domain's table, too. */
  readonly regrantable: boolean;
  readonly functions: Readonly<Record<string, unknown>>;
}

/** How a domain learns that an event channel is pending. */
export type EventDelivery =
  | {
      /** A kernel's way: an upcall, then a scan of the two-level bitmaps in the shared info page. */
      readonly kind: 'shared-info';
      readonly memory: Memory;
      /** Byte address of struct shared_info. */
      readonly sharedInfo: number;
      readonly wordBits: 32 | 64;
      readonly vcpu: number;
      onUpcall(upcall: () => void): void;
    }
  | {
      /** A user-space process's way: /dev/xen/evtchn hands out ports, each masked until `unmask`. */
      readonly kind: 'ports';
      onPort(deliver: (port: number) => void): void;
    };

/** Event-channel hypercalls. All throw HypercallError with Xen's errno. */
export interface EventChannels {
  /** Ports are 1 … maxPorts - 1. */
  readonly maxPorts: number;
  readonly delivery: EventDelivery;
  allocUnbound(remoteDomid: number): number;
  bindInterdomain(remoteDomid: number, remotePort: number): number;
  bindVirq(virq: number, vcpu: number): number;
  close(port: number): void;
  /** EVTCHNOP_send. */
  notify(port: number): void;
  mask(port: number): void;
  /** Clears the mask; a pending event is delivered now. */
  unmask(port: number): void;
  /** Ports of this domain that are not closed. */
  readonly allocated: number;
}

/** Where the domain's xenstored is. */
export type XenStoreAccess =
  | {
      /** The ring page (struct xenstore_domain_interface) and the event channel that belongs to it. */
      readonly kind: 'ring';
      readonly memory: Memory;
      /** Byte address of the ring page. */
      readonly address: number;
      readonly port: number;
    }
  | {
      /** A byte stream: xenstored's socket, or /dev/xen/xenbus. */
      readonly kind: 'stream';
      open(): ByteStream;
    };

/** A connected stream of bytes in both directions. */
export interface ByteStream {
  /** Queues bytes; the array may be reused after the call returns. */
  write(bytes: Uint8Array): void;
  /** Sets who gets what arrives; the array is only valid during the call. */
  onData(listener: (bytes: Uint8Array) => void): void;
  /** Sets who learns, once, that the stream has ended; `error` says why when it was not asked for. */
  onClose(listener: (error?: Error) => void): void;
  close(): void;
}
