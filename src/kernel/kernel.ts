import { Irqs } from '../events/index.js';
import { createLoopback } from '../net/loopback.js';
import { Net } from '../net/net.js';
import type { AbortSignalLike } from '../platform/abort.js';
import { GrantReclaimer } from '../platform/grant-reclaimer.js';
import type { Platform } from '../platform/platform.js';
import { Xenbus, type XenbusTrace } from '../xenbus/index.js';

export interface KernelOptions {
  /** What messages call the domain. */
  name: string;
  /** Sees what xenbus does. */
  trace?: XenbusTrace;
  /** Packets that the domain's stack may hold data of at a time, in pages; see `NetOptions.pageLimit`. */
  pageLimit?: number;
  /** See `Kernel.destroyed`. */
  destroyed?: AbortSignalLike;
}

/** One domain's kernel as its drivers see it: interrupts, XenBus, network devices. */
export class Kernel {
  readonly name: string;
  readonly irqs: Irqs;
  readonly net: Net;
  readonly xenbus: Xenbus;
  /** Ends grants that a peer holds on to after their user has gone. */
  readonly reclaimer: GrantReclaimer;
  /** Aborted when the domain is destroyed, after which nothing of it runs that could settle a promise; undefined where nobody tells. */
  readonly destroyed: AbortSignalLike | undefined;

  constructor(
    readonly platform: Platform,
    options: KernelOptions,
  ) {
    this.name = options.name;
    this.destroyed = options.destroyed;
    this.irqs = new Irqs(platform);
    const { scheduler, memory, grants } = platform;
    this.net = new Net({
      scheduler,
      memory,
      grants,
      log: line => platform.log(line),
      random: () => platform.random(),
      pageLimit: options.pageLimit,
    });
    createLoopback(this.net);
    this.reclaimer = new GrantReclaimer(platform);
    this.xenbus = new Xenbus({ platform, irqs: this.irqs, trace: options.trace });
  }

  /** Closes all devices in order, as before a power-off. The domain can be destroyed afterwards. */
  async shutdown(): Promise<void> {
    await this.xenbus.shutdown();
    await this.xenbus.close();
    this.reclaimer.stop();
  }
}

/**
 * Boots a domain's kernel as far as its drivers need it. In the initial domain `xenbus.ready` tells when xenstored
 * has answered. @throws what `Xenbus.init` throws
 */
export async function bootKernel(platform: Platform, options: KernelOptions): Promise<Kernel> {
  const kernel = new Kernel(platform, options);
  await kernel.xenbus.init();
  return kernel;
}
