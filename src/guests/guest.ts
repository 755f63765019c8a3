import type { Kernel } from '../kernel/kernel.js';
import type { NetDevice } from '../net/device.js';
import { NETDEV_CHANGE, NETDEV_REGISTER, NETDEV_UNREGISTER, NETDEV_UP } from '../net/notifier.js';
import type { Netfront } from '../netfront/netfront.js';
import type { VifConfig } from '../toolstack/vif-config.js';
import type { Poller } from '../uplink/poller.js';
import type { GuestModule } from './module.js';

/** What a guest is made from. */
export interface GuestOptions {
  /** The domain's name. */
  readonly name: string;
  readonly kernel: Kernel;
  /** What is behind the colon of `guest = "kind:argument"`. */
  readonly argument: string;
  /** Of a module that is a function of this program, and in no file. */
  readonly module?: GuestModule;
  /** How the domain's file describes a vif; undefined for one that was attached in another way. */
  vif(devid: number): VifConfig | undefined;
  /** What reads the devices of the machine that we run on. */
  poller(): Poller;
  /** Has devices come before the guest has started; by default they do afterwards. */
  needDevices(): void;
  /** One line for the domain's log. */
  log(line: string): void;
  /** What `save` or `leave` of the same kind gave, of the domain that this one continues. */
  readonly state?: unknown;
}

/** What a guest takes along to another host of the same process. */
export interface Luggage {
  /** The `state` of the guest that continues it. */
  readonly state: unknown;
  /** Gives it back: there is none that continues it. */
  abandon(): Promise<void>;
}

/** A guest's console, for whoever sits at it. */
export interface GuestConsole {
  /** The last of what it showed. */
  scrollback(): string;
  /** Calls back with what it shows from here on. @returns what ends that */
  onOutput(listener: (text: string) => void): () => void;
  type(text: string): void;
}

/** What runs in a simulated domain, above its kernel. */
export interface Guest {
  readonly kind: string;
  /** Absent where there is none to sit at. */
  readonly console?: GuestConsole;
  /** Resolves when what has been started (devices being set up) is done. */
  settled(): Promise<void>;
  /** What to run on this machine so that a program runs in the guest; absent where none can. */
  command?(argv: readonly string[], workingDirectory?: string): string[];
  /** Sends one echo request. @returns milliseconds until the answer. @throws ErrnoError ETIMEDOUT */
  ping?(address: string, timeoutMs?: number): Promise<number>;
  /**
   * The guest's state as JSON or a promise of it, to be continued by another guest; absent where it cannot be had.
   * Nothing changes.
   */
  save?(): unknown;
  /** What `save` leaves out of what is there now, in words for the user. */
  unsaved?(): string[];
  /** Lets go of its devices but of nothing else; only `stop` may follow. Absent where `save` has all. */
  leave?(): Promise<Luggage>;
  /** Gives everything back. The kernel's devices may be gone by then, or still be there. */
  stop(): Promise<void>;
}

/** Starts a guest of one kind. @throws ErrnoError that says what is missing */
export type GuestKind = (options: GuestOptions) => Promise<Guest>;

/** The number in device/vif/N, or -1 for a device that is no netfront's. */
export function vifDevid(device: NetDevice): number {
  const nodename = (device.priv as Partial<Netfront> | undefined)?.xbdev?.nodename ?? '';
  const match = /(?:^|\/)device\/vif\/(\d+)$/.exec(nodename);
  return match === null ? -1 : Number(match[1]);
}

/** Who hears of netfront devices. */
export interface VifListener {
  /** It is registered; its rings may not be there yet. */
  added?(device: NetDevice, devid: number): void;
  /** It is up with a carrier, and passes packets; told again when that comes back. */
  up?(device: NetDevice, devid: number): void;
  removed(device: NetDevice): void;
}

/** Calls back for each netfront device that is there, comes or goes. @returns what ends that */
export function watchVifs(kernel: Kernel, listener: VifListener): () => void {
  const block = {
    name: 'guest',
    notifierCall(event: number, device: NetDevice): void {
      const devid = vifDevid(device);
      if (devid < 0) return;
      if (event === NETDEV_REGISTER) listener.added?.(device, devid);
      else if ((event === NETDEV_UP || event === NETDEV_CHANGE) && device.passesPackets)
        listener.up?.(device, devid);
      else if (event === NETDEV_UNREGISTER) listener.removed(device);
    },
  };
  kernel.net.registerNotifier(block);
  return () => kernel.net.unregisterNotifier(block);
}
