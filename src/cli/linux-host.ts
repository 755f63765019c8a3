import { bootKernel, type Kernel } from '../kernel/kernel.js';
import { describeError } from '../platform/errors.js';
import { checkXen, LinuxPlatform, SystemError } from '../platform/linux/index.js';
import { EventLoopScheduler } from '../platform/sim/event-loop-scheduler.js';
import { Poller } from '../uplink/poller.js';
import type { Xenbus } from '../xenbus/index.js';
import { XenStoreClient } from '../xenstore/index.js';
import { connectXenStore } from '../xenstore/node/index.js';

/** Drivers of ours in a real Xen domain, as a process of its user space. */
export interface LinuxHost {
  readonly platform: LinuxPlatform;
  readonly poller: Poller;
  readonly kernel: Kernel;
  /** Lets go of Xen; the drivers have to be gone by then. */
  close(): void;
}

/**
 * Opens Xen's devices and connects to XenStore.
 * @param name what messages call the process
 * @throws ErrnoError that says what the machine lacks
 */
export async function openLinuxHost(name: string, log: (line: string) => void): Promise<LinuxHost> {
  checkXen();
  const scheduler = new EventLoopScheduler({
    setImmediate,
    setTimeout,
    clearTimeout,
    now: () => performance.now(),
    onError: (error, task) => log(`${task}: ${describeError(error)}`),
  });
  const poller = new Poller(scheduler);
  try {
    const domid = await readDomid();
    const platform = new LinuxPlatform({ domid, scheduler, poller, openXenStore: connectXenStore, log });
    const kernel = await bootKernel(platform, { name });
    await kernel.xenbus.ready;
    return {
      platform,
      poller,
      kernel,
      close() {
        platform.close();
        poller.close();
      },
    };
  } catch (error) {
    poller.close();
    throw error;
  }
}

/**
 * Waits until a signal asks the process to end, and for what is done about it then.
 * @throws SystemError ENOTCONN when the connection to xenstored ends before: the process has to be started anew then
 */
export function untilEnded(
  xenbus: Xenbus,
  ends: Partial<Record<NodeJS.Signals, () => Promise<void>>>,
): Promise<void> {
  return new Promise((resolve, reject) => {
    xenbus.onLost = reason => {
      const meaning = 'no device can come or go without it; those that are connected wait for the next start';
      reject(new SystemError('ENOTCONN', `the connection to xenstored is lost (${reason}): ${meaning}`));
    };
    for (const [signal, end] of Object.entries(ends)) process.on(signal, () => end().then(resolve, reject));
  });
}

/** Which domain this is: the toolstack writes it into every domain's directory, dom0's included. */
async function readDomid(): Promise<number> {
  const client = new XenStoreClient(connectXenStore());
  try {
    const text = await client.read('domid');
    if (/^\d{1,5}$/.test(text)) return Number(text);
    throw new SystemError('EINVAL', `the node "domid" of this domain is "${text}", not a domain's number`);
  } finally {
    client.close();
  }
}
