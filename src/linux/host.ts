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
  /** This domain: its number, pages, grants, event channels, and what was asked of Xen for them (`counts`). */
  readonly platform: LinuxPlatform;
  /** What TAPs of this process are read by, too: `new TapPort(kernel.net, poller, openTap(name))` of `pvnet/uplink`. */
  readonly poller: Poller;
  /** For `registerNetback` and `registerNetfront`; its `shutdown` lets go of all vifs. */
  readonly kernel: Kernel;
  /** Lets go of Xen, after `kernel.shutdown()`; nothing keeps the process alive then. */
  close(): void;
}

/**
 * Opens Xen's devices and connects to XenStore (`XENSTORED_PATH`, xenstored's socket or /dev/xen/xenbus). Needs root.
 * @param name what messages call the process
 * @param log gets a line, without its end, for each of what the drivers have to say
 * @throws SystemError that says what the machine lacks; XenStoreError for what xenstored refuses
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
  const opened: { close(): void }[] = [poller];
  const close = (): void => {
    for (const part of opened.splice(0).reverse()) part.close();
  };
  try {
    const domid = await readDomid();
    const platform = new LinuxPlatform({ domid, scheduler, poller, openXenStore: connectXenStore, log });
    opened.push(platform);
    const kernel = await bootKernel(platform, { name });
    await kernel.xenbus.ready;
    return { platform, poller, kernel, close };
  } catch (error) {
    close();
    throw error;
  }
}

/**
 * Waits until a signal asks the process to end, and for what is done about it then.
 * @param byItself resolves when it has ended without a signal
 * @throws SystemError ENOTCONN when the connection to xenstored ends before: the process has to end, and be started anew
 */
export function untilEnded(
  xenbus: Xenbus,
  ends: Partial<Record<NodeJS.Signals, () => Promise<void>>>,
  byItself?: Promise<void>,
): Promise<void> {
  const listeners = new Map<string, () => void>();
  const ended = new Promise<void>((resolve, reject) => {
    xenbus.onLost = reason => {
      const meaning = 'no device can come or go without it; those that are connected wait for the next start';
      reject(new SystemError('ENOTCONN', `the connection to xenstored is lost (${reason}): ${meaning}`));
    };
    byItself?.then(resolve);
    for (const [signal, end] of Object.entries(ends)) {
      listeners.set(signal, () => void end().then(resolve, reject));
    }
  });
  for (const [signal, listener] of listeners) process.on(signal, listener);
  return ended.finally(() => {
    for (const [signal, listener] of listeners) process.off(signal, listener);
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
