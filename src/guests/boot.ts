import { ErrnoError } from '../abi/errno.js';
import { bootKernel, type Kernel } from '../kernel/kernel.js';
import { type NetfrontOptions, registerNetfront } from '../netfront/netfront.js';
import type { Domain } from '../platform/sim/domain.js';
import type { VifConfig } from '../toolstack/vif-config.js';
import type { Poller } from '../uplink/poller.js';
import type { XenbusTrace } from '../xenbus/index.js';
import type { Guest, GuestKind } from './guest.js';
import type { GuestModule } from './module.js';

export interface BootOptions {
  domain: Domain;
  kind: GuestKind;
  argument: string;
  /** See `GuestSpec.module`. */
  module?: GuestModule;
  vif(devid: number): VifConfig | undefined;
  poller(): Poller;
  readonly netfront?: NetfrontOptions;
  /** See `Kernel.destroyed`. */
  readonly destroyed?: AbortSignal;
  trace?: XenbusTrace;
  /** What the guest continues; see `GuestOptions.state`. */
  state?: unknown;
  /** Hears of the kernel before its first device is there. */
  readonly onKernel?: (kernel: Kernel) => void;
}

/** A domain that runs: its kernel, and what runs above it. */
export interface BootedGuest {
  /** Null for a guest that brings its own: an emulated machine. */
  readonly kernel: Kernel | null;
  readonly guest: Guest;
  /**
   * Goes on after a suspend, in a domain that runs again; absent where the guest cannot be suspended.
   * @param cancelled nothing has happened to the domain meanwhile: its devices are as they were
   */
  resume?(cancelled: boolean): Promise<void>;
}

/** What control/shutdown may ask for, and how the domain then ends. */
const SHUTDOWN_REASONS: ReadonlyMap<string, 'poweroff' | 'reboot' | 'suspend'> = new Map([
  ['poweroff', 'poweroff'],
  ['halt', 'poweroff'],
  ['reboot', 'reboot'],
  ['suspend', 'suspend'],
]);

/**
 * Boots a domain: kernel, netfront, guest. The kernel does what control/shutdown asks for, as Linux does:
 * stops the guest, closes its devices, and ends with that reason.
 */
export async function bootGuest(options: BootOptions): Promise<BootedGuest & { kernel: Kernel }> {
  const { domain, kind, argument, module, poller, trace, destroyed } = options;
  const { platform } = domain;
  const kernel = await bootKernel(platform, { name: domain.name, trace, destroyed });
  options.onKernel?.(kernel);
  let registered: Promise<void> | null = null;
  const registerDrivers = () => {
    registered ??= registerNetfront(kernel, options.netfront);
    return registered;
  };
  const started = await kind({
    name: domain.name,
    kernel,
    argument,
    module,
    vif: devid => options.vif(devid),
    poller,
    // Whether that worked is asked below.
    needDevices: () => void registerDrivers().catch(() => {}),
    log: line => platform.log(line),
    state: options.state,
  });
  let stopped: Promise<void> | null = null;
  const guest: Guest = {
    ...started,
    stop() {
      stopped ??= started.stop();
      return stopped;
    },
  };
  try {
    // Nobody waited for a guest that took too long to start, and the bus of a domain that is gone never answers.
    if (domain.state !== 'running') throw new ErrnoError('ESRCH', `the domain ${domain.name} is gone`);
    await registerDrivers();
    return { kernel, guest, resume: await watchShutdown(domain, kernel, guest) };
  } catch (error) {
    await guest.stop();
    throw error;
  }
}

/** @returns what goes on after a suspend */
async function watchShutdown(
  domain: Domain,
  kernel: Kernel,
  guest: Guest,
): Promise<(cancelled: boolean) => Promise<void>> {
  const { xs } = kernel.xenbus;
  const node = 'control/shutdown';
  let ending = false;
  const end = async (reason: 'poweroff' | 'reboot'): Promise<void> => {
    try {
      await guest.stop();
      await kernel.shutdown();
    } catch (error) {
      domain.platform.log(`shutting down: ${(error as Error).message}`);
    }
    domain.shutdown(reason);
  };
  const suspend = async (): Promise<void> => {
    try {
      await kernel.xenbus.suspend();
      domain.shutdown('suspend');
    } catch (error) {
      ending = false;
      domain.platform.log(`suspending: ${(error as Error).message}`);
    }
  };
  await xs.registerWatch({
    node,
    callback: async () => {
      const asked = await xs.readOptional(node);
      if (asked === undefined || asked === '' || ending) return;
      // Says that it was seen.
      await xs.write(node, '');
      const reason = SHUTDOWN_REASONS.get(asked);
      if (reason === undefined) {
        domain.platform.log(`control/shutdown asks for "${asked}", which this kernel does not do`);
        return;
      }
      ending = true;
      domain.platform.log(`control/shutdown: ${asked}`);
      // Not from inside the watch's callback, for which closing devices would wait.
      void (reason === 'suspend' ? suspend() : end(reason));
    },
  });
  for (const feature of ['feature-poweroff', 'feature-reboot', 'feature-suspend']) {
    try {
      await xs.write(`control/${feature}`, '1');
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
    }
  }
  return async cancelled => {
    ending = false;
    await (cancelled ? kernel.xenbus.suspendCancel() : kernel.xenbus.resume());
    domain.platform.log(cancelled ? 'the suspend was called off' : 'resumed');
  };
}
