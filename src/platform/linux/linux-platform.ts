import type { ByteStream, Platform, XenStoreAccess } from '../platform.js';
import type { Scheduler } from '../scheduler.js';
import { LinuxEvents, type ReadinessPoller } from './linux-events.js';
import { LinuxGrants } from './linux-grants.js';
import { LinuxMemory } from './linux-memory.js';

/** What the pages of the process may take together; the kernel backs only those that are used. */
const DEFAULT_MEMORY_BYTES = 512 << 20;

export interface LinuxPlatformOptions {
  /** This domain, as its `domid` node in XenStore says. */
  domid: number;
  scheduler: Scheduler;
  poller: ReadinessPoller;
  /** Connects to XenStore. */
  openXenStore: () => ByteStream;
  log: (line: string) => void;
  /** A multiple of 64 KiB. */
  memoryBytes?: number;
}

/** A real Xen domain, as a process in it reaches it: through /dev/xen/* and XenStore. */
export class LinuxPlatform implements Platform {
  readonly domid: number;
  readonly memory: LinuxMemory;
  readonly grants: LinuxGrants;
  readonly events: LinuxEvents;
  readonly xenstore: XenStoreAccess;
  readonly scheduler: Scheduler;
  readonly log: (line: string) => void;

  /** @throws SystemError that says what the machine lacks */
  constructor(options: LinuxPlatformOptions) {
    this.domid = options.domid;
    this.scheduler = options.scheduler;
    this.log = options.log;
    this.events = new LinuxEvents(options.scheduler, options.poller);
    this.memory = new LinuxMemory(options.memoryBytes ?? DEFAULT_MEMORY_BYTES);
    this.grants = new LinuxGrants(this.memory, options.log);
    this.xenstore = { kind: 'stream', open: options.openXenStore };
  }

  random(): number {
    return Math.random();
  }

  /** Gives everything back: event channels, grants and mappings. */
  close(): void {
    this.events.destroy();
    this.grants.close();
  }
}
