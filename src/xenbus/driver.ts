import type { XenbusState } from '../abi/xenbus-state.js';
import type { XenbusDevice } from './device.js';

/**
 * A driver for devices of one or more types, at the front or at the back. The bus runs all of these
 * callbacks on xenwatch, one at a time for the whole domain: none may wait for its peer. An error thrown by
 * one is fatal for that device alone.
 */
export interface XenbusDriver {
  /** Unique on its bus, as "vif". */
  readonly name: string;
  /** Device types that it drives: the directory below the bus's root, as ["vif"]. */
  readonly ids: readonly string[];
  /** Whether the driver wants this device of one of its types; without it, it wants every one. */
  match?(device: XenbusDevice): boolean | Promise<boolean>;
  /** Takes a device whose other end is known. When it throws, the device goes to Closed and stays undriven. */
  probe(device: XenbusDevice, id: string): void | Promise<void>;
  /**
   * The other end's state, read just now: after the probe, and whenever it may have changed. Unknown when the
   * other end's directory is gone or may not be read.
   */
  otherendChanged?(device: XenbusDevice, state: XenbusState): void | Promise<void>;
  /**
   * Lets go of the device: its node vanished, or the driver is unregistered. Its watches are gone already; ports,
   * grants and mappings are the driver's to give back. May be called in any state.
   */
  remove?(device: XenbusDevice): void | Promise<void>;
  /** The domain is about to be suspended. */
  suspend?(device: XenbusDevice): void | Promise<void>;
  /** The suspend was called off; nothing has changed. */
  suspendCancel?(device: XenbusDevice): void | Promise<void>;
  /**
   * The domain runs again, on the same host or another: ports and mappings are gone, the other end may be another.
   * The device's state is Initialising; `otherendChanged` follows.
   */
  resume?(device: XenbusDevice): void | Promise<void>;
  /**
   * A later driver may take the device up where this one leaves it: unregistering the driver does not close the
   * device, unless the toolstack has set it to Closing.
   */
  readonly allowRebind?: boolean;
  /** At boot nobody waits long for such a device. */
  readonly notEssential?: boolean;
  /** Whether a Connected device can be used; without it, every Connected one can. */
  isReady?(device: XenbusDevice): boolean;
  /** What the device waits for, where the driver knows better than the states say; null when it does not. */
  waitingFor?(device: XenbusDevice): string | null;
}
