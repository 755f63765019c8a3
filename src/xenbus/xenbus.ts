import { XenbusState } from '../abi/xenbus-state.js';
import type { Irqs } from '../events/index.js';
import type { Platform } from '../platform/platform.js';
import type { Timer } from '../platform/scheduler.js';
import { XenStoreClient } from '../xenstore/index.js';
import { XenbusBus } from './bus.js';
import { type XenbusComms, xbInitComms } from './comms.js';
import type { XenbusDevice } from './device.js';
import type { XenbusDriver } from './driver.js';
import { asErrnoError, XenbusError } from './error.js';
import type { XenbusTrace } from './trace.js';
import { Xenwatch } from './xenwatch.js';
import { Xs } from './xs.js';

/** How long a frontend that is shut down waits for its backend. */
export const SHUTDOWN_TIMEOUT_MS = 5_000;
/** How long a boot waits for devices, and how much longer for essential ones. */
export const BOOT_WAIT_MS = 30_000;
export const BOOT_WAIT_ESSENTIAL_MS = 270_000;
/** How often it says so. */
const BOOT_WAIT_MESSAGE_MS = 5_000;

export interface XenbusOptions {
  platform: Platform;
  irqs: Irqs;
  /**
   * The domain that xenstored runs in or is started by: its store may come up later than its kernel, so `init` does
   * not wait for it. Domain 0.
   */
  initialDomain?: boolean;
  /** Sees every request to the store, watch event, change of state and step of the bus. */
  trace?: XenbusTrace;
}

/**
 * XenBus of one domain's kernel: the connection to xenstored with its two tasks (xenbus moves the bytes of the
 * ring, xenwatch runs callbacks one at a time), the frontend bus and the backend bus.
 */
export class Xenbus {
  readonly platform: Platform;
  readonly irqs: Irqs;
  readonly trace: XenbusTrace | undefined;
  readonly initialDomain: boolean;
  readonly frontend: XenbusBus;
  readonly backend: XenbusBus;
  /** The store, with watches whose callbacks run in turn with the drivers'. */
  readonly xs: Xs;
  /** Frontends only react to Closing from now on. */
  isShuttingDown = false;
  /**
   * Resolves when xenstored has answered and both buses watch their roots; `init` of a domain other than the
   * initial one waits for it. Rejects when `init` failed.
   */
  readonly ready: Promise<void>;
  readonly #xenwatch: Xenwatch;
  #comms: XenbusComms | null = null;
  #isClosed = false;
  #setReady: () => void = () => {};
  #setFailed: (error: unknown) => void = () => {};
  readonly #listeners = new Set<() => void>();
  /** Gets to know that the connection to xenstored has ended by itself, and why. */
  onLost: ((reason: string) => void) | null = null;

  constructor(options: XenbusOptions) {
    this.platform = options.platform;
    this.irqs = options.irqs;
    this.trace = options.trace;
    this.initialDomain = options.initialDomain ?? options.platform.domid === 0;
    const { domid, scheduler } = this.platform;
    this.#xenwatch = new Xenwatch(scheduler, {
      onEvent: path => this.trace?.({ kind: 'event', domid, path }),
      onError: (path, error) => this.#complain(`handling a change of ${path}`, error),
    });
    this.xs = new Xs(domid, this.#xenwatch, {
      log: line => this.platform.log(line),
      trace: options.trace,
    });
    this.frontend = new XenbusBus(this, 'frontend');
    this.backend = new XenbusBus(this, 'backend');
    this.ready = new Promise((resolve, reject) => {
      this.#setReady = resolve;
      this.#setFailed = reject;
    });
    this.ready.catch(() => {});
  }

  /** Devices of both buses. */
  get devices(): XenbusDevice[] {
    return [...this.frontend.devices.values(), ...this.backend.devices.values()];
  }

  /** Watch events and jobs that wait for their turn. */
  get pendingEvents(): number {
    return this.#xenwatch.pending;
  }

  /**
   * Brings the bus up (xenbus_probe_init): registers both buses, connects to xenstored (xs_init, xb_init_comms),
   * watches the buses' roots. Resolves when the devices that are there have been found; in the initial domain
   * already when the connection is set up, see `ready`.
   * @throws EBUSY when it is up already; ENOSPC when no IRQ is left; what xenstored answers
   */
  async init(): Promise<void> {
    if (this.#comms !== null || this.#isClosed) {
      throw new XenbusError('EBUSY', `domain ${this.platform.domid}'s xenbus was initialised already`);
    }
    this.step('xenbus_probe_init');
    this.step('bus xen (frontend) registered');
    this.step('bus xen-backend registered');
    this.step('xs_init');
    this.#initComms();
    this.step('task xenwatch');
    this.step('task xenbus');
    const probed = this.#probe();
    if (this.initialDomain) this.background(probed.catch(error => this.#complain('probing', error)));
    else await probed;
  }

  /** Registers a driver for devices whose other end is the backend (xenbus_register_frontend); gives it those that are there. */
  registerFrontend(driver: XenbusDriver): Promise<void> {
    return this.#xenwatch.run(() => this.frontend.addDriver(driver));
  }

  /** Registers a driver for devices whose other end is the frontend (xenbus_register_backend). */
  registerBackend(driver: XenbusDriver): Promise<void> {
    return this.#xenwatch.run(() => this.backend.addDriver(driver));
  }

  /**
   * Unregisters a driver (xenbus_unregister_driver). Its connected frontends close first, as in `shutdown`;
   * then it loses its devices. A driver that is not registered is no error.
   */
  async unregisterDriver(driver: XenbusDriver): Promise<void> {
    const frontends = [...this.frontend.devices.values()].filter(device => device.driver === driver);
    await this.#closeFrontends(frontends);
    await this.#xenwatch.run(async () => {
      await this.frontend.removeDriver(driver);
      await this.backend.removeDriver(driver);
    });
  }

  /**
   * Runs `job` in turn with the watch callbacks and the drivers' (what holding xenwatch_mutex does). Not to be
   * waited for inside such a callback.
   */
  runOnXenwatch<T>(job: () => T | Promise<T>): Promise<T> {
    return this.#xenwatch.run(job);
  }

  /** Calls `listener` after any change of what a device is or waits for. @returns what ends that */
  onDevicesChanged(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Waits at boot for frontends that have a driver to connect: 30 s for all, 270 s more for those that are essential.
   * @returns the devices that did not
   */
  async waitForDevices(): Promise<XenbusDevice[]> {
    const { scheduler } = this.platform;
    const start = scheduler.now();
    let left = this.#connecting(false);
    while (left.length > 0) {
      const elapsed = scheduler.now() - start;
      if (elapsed >= BOOT_WAIT_MS + BOOT_WAIT_ESSENTIAL_MS) break;
      const untilMessage = BOOT_WAIT_MESSAGE_MS - (elapsed % BOOT_WAIT_MESSAGE_MS);
      await this.#devicesChangeWithin(Math.max(1, untilMessage));
      const now = scheduler.now() - start;
      left = this.#connecting(now >= BOOT_WAIT_MS);
      const messages = (ms: number) => Math.floor(ms / BOOT_WAIT_MESSAGE_MS);
      if (messages(now) === messages(elapsed)) continue;
      for (const device of left) {
        this.platform.log(`xenbus: ${Math.round(now / 1000)} s: ${device.nodename}: ${device.waitingFor()}`);
      }
    }
    return this.#connecting(false);
  }

  /**
   * The domain is going down: each connected frontend goes to Closing and waits up to 5 s for its backend to let go.
   * Frontends do nothing else any more.
   */
  async shutdown(): Promise<void> {
    this.isShuttingDown = true;
    this.step('shutdown');
    await this.#closeFrontends([...this.frontend.devices.values()]);
  }

  /** Takes the bus down: all drivers lose their devices, watches end, and the connection is closed. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const driver of [...this.frontend.drivers, ...this.backend.drivers]) {
      await this.unregisterDriver(driver);
    }
    await this.#xenwatch.run(async () => {
      for (const bus of [this.frontend, this.backend]) {
        await bus.stop();
        for (const device of bus.devices.values()) device.release();
        bus.devices.clear();
      }
      for (const watch of [...this.xs.watches]) await this.xs.unregisterWatch(watch);
    });
    this.#closeComms();
    this.step('xenbus down');
    this.devicesChanged();
  }

  /**
   * Before SHUTDOWN_suspend: the frontends' drivers are told, requests and transactions under way finish, and
   * nothing runs any more until `resume` or `suspendCancel`.
   */
  async suspend(): Promise<void> {
    await this.#xenwatch.run(async () => {
      for (const device of this.frontend.devices.values()) {
        await this.#hook(device, 'suspending', device.driver?.suspend);
      }
      this.#xenwatch.pause();
    });
    await this.xs.suspend();
    this.step('xs_suspend');
  }

  /** The suspend did not happen; all goes on where it was. */
  suspendCancel(): Promise<void> {
    this.step('xs_suspend_cancel');
    this.xs.unsuspend();
    return this.#continue(async () => {
      for (const device of this.frontend.devices.values()) {
        await this.#hook(device, 'cancelling the suspend of', device.driver?.suspendCancel);
      }
    });
  }

  /**
   * After a suspend, here or on another host: a new connection to xenstored, the same watches, and each frontend starts
   * from Initialising with the other end that its directory names now.
   * @throws what setting up the connection throws
   */
  async resume(): Promise<void> {
    await this.#reconnect('xs_resume', false);
    await this.#continue(async () => {
      for (const device of [...this.frontend.devices.values()]) {
        if (!device.gone && (await device.exists())) await this.frontend.resumeDevice(device);
      }
    });
  }

  /**
   * Connects to xenstored again after the connection was lost. Devices stay as they are; their watches fire.
   * @throws what setting up the connection throws
   */
  async reconnect(): Promise<void> {
    await this.#reconnect('reconnect', true);
    this.#xenwatch.unpause();
  }

  // ---------------------------------------------------------------- for the buses and devices

  /** @internal */
  step(text: string): void {
    this.trace?.({ kind: 'step', domid: this.platform.domid, text });
  }

  /** @internal */
  devicesChanged(): void {
    for (const listener of [...this.#listeners]) listener();
  }

  /** Work that nobody waits for: what it throws goes to the log. @internal */
  background(work: Promise<unknown>): void {
    work.catch(error => this.#complain('working', error));
  }

  /** Runs a job on xenwatch that nobody waits for. @internal */
  later(job: () => Promise<void>): void {
    this.background(this.#xenwatch.run(job));
  }

  // ----------------------------------------------------------------

  /** xb_init_comms, and a client over it. */
  #initComms(reconnect = false): void {
    this.step('xb_init_comms');
    const comms = xbInitComms(this.platform, this.irqs, {
      reconnect,
      onFirstEvent: () => this.step('xenstored is there'),
    });
    const client = new XenStoreClient(comms.stream, {
      scheduler: this.platform.scheduler,
      random: () => this.platform.random(),
    });
    this.#comms = comms;
    client.onClose = error => {
      if (!this.xs.lost(client)) return;
      const reason = error?.message ?? 'closed by the other side';
      this.platform.log(`xenbus: connection to xenstored lost: ${reason}`);
      this.step('connection to xenstored lost');
      this.devicesChanged();
      this.onLost?.(reason);
    };
    this.xs.connect(client);
  }

  #closeComms(): void {
    this.xs.disconnect();
    this.#comms?.close();
    this.#comms = null;
  }

  async #probe(): Promise<void> {
    try {
      await this.#resetWatches();
      await this.frontend.start();
      await this.backend.start();
      // Behind the first events of the two watches.
      await this.#xenwatch.run(() => {});
      this.step('xenbus_probe');
      this.#setReady();
    } catch (error) {
      this.#setFailed(error);
      throw error;
    }
  }

  /** Clears what an earlier kernel left, if the toolstack says that this xenstored can. */
  async #resetWatches(): Promise<void> {
    if (this.initialDomain || this.platform.xenstore.kind !== 'ring') return;
    const feature = await this.xs.readOptional('control/platform-feature-xs_reset_watches');
    if (feature !== '1') return;
    try {
      await this.xs.resetWatches();
    } catch (error) {
      if (!this.xs.connected) throw error;
      this.#complain('resetting watches', error);
    }
  }

  async #reconnect(step: string, fresh: boolean): Promise<void> {
    if (this.#isClosed) throw new XenbusError('ENOTCONN', 'the bus was closed');
    this.step(step);
    this.#closeComms();
    this.#initComms(fresh);
    await this.xs.reregisterWatches();
    this.xs.unsuspend();
  }

  async #continue(job: () => Promise<void>): Promise<void> {
    // First of all: a fresh directory is the old device's, which starts anew, and no new device.
    const done = this.#xenwatch.run(job, true);
    this.#xenwatch.unpause();
    await done;
  }

  /** Frontends with a driver that are on their way to be connected. */
  #connecting(essentialOnly: boolean): XenbusDevice[] {
    return [...this.frontend.devices.values()].filter(device => {
      const { state } = device;
      const driver = device.driver ?? this.frontend.driverFor(device);
      if (driver === undefined || (essentialOnly && driver.notEssential)) return false;
      if (state === XenbusState.Connected) return driver.isReady !== undefined && !driver.isReady(device);
      return state < XenbusState.Connected;
    });
  }

  #devicesChangeWithin(delayMs: number): Promise<void> {
    return new Promise(resolve => {
      const { scheduler } = this.platform;
      const done = () => {
        stop();
        scheduler.cancel(timer);
        resolve();
      };
      const stop = this.onDevicesChanged(done);
      const timer = scheduler.after(delayMs, done);
    });
  }

  /** Closes the connected ones of these, all at a time. */
  async #closeFrontends(devices: XenbusDevice[]): Promise<void> {
    await Promise.all(
      devices.map(async device => {
        if (device.state !== XenbusState.Connected || device.gone) return;
        let timer: Timer | null = null;
        const timeout = new Promise<void>(resolve => {
          timer = this.platform.scheduler.after(SHUTDOWN_TIMEOUT_MS, () => {
            this.platform.log(`xenbus: ${device.nodename}: timeout closing device`);
            resolve();
          });
        });
        const down = device.untilDown();
        if (await device.switchState(XenbusState.Closing)) await Promise.race([down, timeout]);
        if (timer !== null) this.platform.scheduler.cancel(timer);
      }),
    );
  }

  async #hook(
    device: XenbusDevice,
    doing: string,
    hook: ((device: XenbusDevice) => void | Promise<void>) | undefined,
  ): Promise<void> {
    try {
      await hook?.call(device.driver, device);
    } catch (error) {
      this.platform.log(`xenbus: ${doing} ${device.id}: ${asErrnoError(error).message}`);
    }
  }

  #complain(doing: string, error: unknown): void {
    this.platform.log(`xenbus: ${doing}: ${asErrnoError(error).message}`);
  }
}
