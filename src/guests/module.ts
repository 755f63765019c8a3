import { AsyncLocalStorage } from 'node:async_hooks';
import { statSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { ErrnoError } from '../abi/errno.js';
import type { Kernel } from '../kernel/kernel.js';
import type { NetDevice } from '../net/device.js';
import { abortable } from '../platform/abort.js';
import { describeError } from '../platform/errors.js';
import type { Platform } from '../platform/platform.js';
import { type Guest, type GuestOptions, watchVifs } from './guest.js';

/** What the function of a guest module gets. */
export interface ModuleContext {
  /** The domain's name. */
  readonly name: string;
  /** The domain's view of Xen. */
  readonly platform: Platform;
  readonly kernel: Kernel;
  /**
   * Resolves with the network device of a vif when it is connected for the first time. Rejects with ESRCH when the domain is destroyed
   * while the module has not returned; later its `stop` tells it of the end.
   */
  device(devid?: number): Promise<NetDevice>;
  /** One line for the domain's log (`pvnet dmesg`). */
  log(line: string): void;
  /** What `save` returned in the domain that this one continues, restored or migrated; otherwise undefined. */
  readonly state: unknown;
}

/** What a guest module may give back. */
export interface ModuleHooks {
  /** Called before the domain goes. */
  stop?(): void | Promise<void>;
  /** JSON of all that the module needs to go on in another domain; without it the domain cannot be saved. */
  save?(): unknown;
}

/** What a guest module exports as its default. A function that it returns is its `stop`. */
export type GuestModule = (context: ModuleContext) => ModuleResult | Promise<ModuleResult>;
export type ModuleResult = (() => void | Promise<void>) | ModuleHooks | void;

/** The kernel of the domain whose module runs, also in promises and timers of its own. */
const running = new AsyncLocalStorage<Kernel>();

/**
 * For whoever handles `uncaughtException` or `unhandledRejection` of the process: whose module has started what threw.
 * @returns undefined when none has, or one did in a handler of its device's, which is in no such context
 */
export function kernelOfRunningModule(): Kernel | undefined {
  return running.getStore();
}

/** Whether an error comes from code of a module's file. */
export function isFromModule(error: unknown, argument: string): boolean {
  return describeError(error).includes(pathToFileURL(argument).href);
}

/**
 * Imports a file of the user's.
 * @throws Error that says what is wrong with it, and nothing of who imports it
 */
export async function importFile(path: string): Promise<Record<string, unknown>> {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined) throw new Error('there is no such file');
  if (found.isDirectory()) throw new Error('it is a folder');
  return await import(pathToFileURL(path).href);
}

async function loadModule({ name, kernel, argument }: GuestOptions): Promise<GuestModule> {
  let loaded: { default?: unknown };
  try {
    loaded = await running.run(kernel, () => importFile(argument));
  } catch (error) {
    throw new ErrnoError('EINVAL', `${name}: ${argument} cannot be loaded: ${(error as Error).message}`);
  }
  if (typeof loaded.default !== 'function') {
    const right = 'export default function ({ device, log }) { … }';
    throw new ErrnoError('EINVAL', `${name}: ${argument} has no default export that is a function: ${right}`);
  }
  return loaded.default as GuestModule;
}

/** `guest = "module:./file.js"`, or a function: the user's code in a domain of its own. */
export async function startModule(options: GuestOptions): Promise<Guest> {
  const { kernel, argument } = options;
  const module = options.module ?? (await loadModule(options));
  const devices = new Map<number, NetDevice>();
  const waiting = new Map<number, ((device: NetDevice) => void)[]>();
  const unwatch = watchVifs(kernel, {
    up(device, devid) {
      devices.set(devid, device);
      for (const resolve of waiting.get(devid) ?? []) resolve(device);
      waiting.delete(devid);
    },
    removed(device) {
      for (const [devid, known] of devices) if (known === device) devices.delete(devid);
    },
  });
  // One that has returned may have left its promises alone: rejected ones would be nobody's.
  const starting = new AbortController();
  const giveUp = () => starting.abort(kernel.destroyed?.reason);
  if (kernel.destroyed?.aborted) giveUp();
  kernel.destroyed?.addEventListener('abort', giveUp);
  let result: ModuleResult;
  try {
    const context: ModuleContext = {
      name: options.name,
      platform: kernel.platform,
      kernel,
      device(devid = 0) {
        const known = devices.get(devid);
        if (known !== undefined) return Promise.resolve(known);
        // The module may await it before it returns.
        options.needDevices();
        const came = new Promise<NetDevice>(resolve =>
          waiting.set(devid, [...(waiting.get(devid) ?? []), resolve]),
        );
        return abortable(came, starting.signal);
      },
      log: line => options.log(line),
      state: options.state,
    };
    result = await running.run(kernel, () => module(context));
  } catch (error) {
    unwatch();
    const what = argument === '' ? 'its module' : argument;
    throw new ErrnoError('EIO', `${options.name}: ${what} threw: ${(error as Error)?.message ?? error}`);
  } finally {
    kernel.destroyed?.removeEventListener('abort', giveUp);
  }
  const hooks: ModuleHooks = typeof result === 'function' ? { stop: result } : (result ?? {});
  return {
    kind: 'module',
    settled: () => Promise.resolve(),
    ...(hooks.save === undefined ? {} : { save: () => hooks.save!() }),
    async stop() {
      unwatch();
      await hooks.stop?.();
    },
  };
}
