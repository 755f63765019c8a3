import { parseXenbusState, XenbusState } from '../abi/xenbus-state.js';
import type { Timer } from '../platform/scheduler.js';
import { XenbusDevice, type XenbusSide } from './device.js';
import type { XenbusDriver } from './driver.js';
import { asErrnoError, isGone, XenbusError } from './error.js';
import type { Xenbus } from './xenbus.js';
import type { XsWatch } from './xs.js';

/** The first and the longest pause before the other end's unreadable directory is tried again. */
const OTHEREND_RETRY_MIN_MS = 100;
const OTHEREND_RETRY_MAX_MS = 5_000;
/** How long the other end's directory may stay unreadable (Linux waits 30 + 270 s at boot). */
export const OTHEREND_TIMEOUT_MS = 300_000;

/** A device whose driver waits for the other end's directory. */
interface Waiting {
  readonly driver: XenbusDriver;
  readonly until: number;
  delayMs: number;
  timer: Timer | null;
  watch: XsWatch | null;
}

/**
 * One of a domain's two buses: finds devices below its root in xenstore and brings them together with drivers.
 * All that it does to devices happens on xenwatch.
 */
export class XenbusBus {
  /** Directory below the domain's home. */
  readonly root: string;
  /** Names in a device's path after the root: type/id, or type/frontend-id/id. */
  readonly levels: number;
  readonly drivers: XenbusDriver[] = [];
  /** Devices by nodename. */
  readonly devices = new Map<string, XenbusDevice>();
  #watch: XsWatch | null = null;
  readonly #waiting = new Map<XenbusDevice, Waiting>();

  constructor(
    readonly xenbus: Xenbus,
    readonly side: XenbusSide,
  ) {
    this.root = side === 'frontend' ? 'device' : 'backend';
    this.levels = side === 'frontend' ? 2 : 3;
  }

  /** The driver whose type the device is of, whether it has the device or not. */
  driverFor(device: XenbusDevice): XenbusDriver | undefined {
    return this.drivers.find(({ ids }) => ids.includes(device.devicetype));
  }

  /** Starts to watch the root; the first event finds the devices that are there. @internal */
  async start(): Promise<void> {
    this.#watch = await this.xenbus.xs.registerWatch({
      node: this.root,
      callback: path => this.#changed(path),
      willHandle: path => this.#concernsUs(path),
    });
  }

  /** @internal */
  async stop(): Promise<void> {
    if (this.#watch !== null) await this.xenbus.xs.unregisterWatch(this.#watch);
    this.#watch = null;
  }

  /** Adds a driver and gives it the devices that have none; on xenwatch. @internal */
  async addDriver(driver: XenbusDriver): Promise<void> {
    if (this.drivers.some(({ name }) => name === driver.name)) {
      throw new XenbusError('EEXIST', `the ${this.side} bus has a driver ${driver.name} already`);
    }
    this.drivers.push(driver);
    this.xenbus.step(`${this.side} driver ${driver.name} registered`);
    for (const device of [...this.devices.values()]) {
      if (device.driver === null && !this.#waiting.has(device)) await this.#match(device);
    }
  }

  /** Takes a driver away from its devices, which stay on the bus; on xenwatch. @internal */
  async removeDriver(driver: XenbusDriver): Promise<void> {
    const at = this.drivers.indexOf(driver);
    if (at < 0) return;
    this.drivers.splice(at, 1);
    for (const device of [...this.devices.values()]) {
      if (device.driver === driver || this.#waiting.get(device)?.driver === driver)
        await this.#detach(device);
    }
    this.xenbus.step(`${this.side} driver ${driver.name} unregistered`);
  }

  /** Reads the other end anew after a resume, and lets the driver start from Initialising; on xenwatch. @internal */
  async resumeDevice(device: XenbusDevice): Promise<void> {
    const { driver } = device;
    if (driver === null) return;
    await device.unwatchOtherend();
    try {
      await device.restart();
      await device.readOtherendDetails();
      await driver.resume?.(device);
      await device.watchOtherend();
    } catch (error) {
      if (asErrnoError(error).code === 'EACCES' && device.driver === driver) {
        await this.#waitForOtherend(device, driver, true);
      } else {
        await device.fatal(error, `resuming ${device.id}`);
      }
    }
  }

  // ----------------------------------------------------------------

  /** An event deeper in a known device's directory is the driver's own business, but for `state`. */
  #concernsUs(path: string): boolean {
    const parts = path.split('/');
    const deep = parts.length - (this.levels + 1);
    if (deep <= 0) return true;
    if (!this.devices.has(parts.slice(0, this.levels + 1).join('/'))) return true;
    return deep === 1 && parts[this.levels + 1] === 'state';
  }

  async #changed(path: string): Promise<void> {
    const parts = path.split('/');
    if (parts[0] !== this.root) return;
    if (parts.length <= this.levels) {
      await this.#scan(path);
    } else {
      await this.#nodeChanged(parts.slice(0, this.levels + 1).join('/'));
    }
  }

  /** Looks for devices that came or went at or below a directory above theirs. */
  async #scan(path: string): Promise<void> {
    const found = new Set<string>();
    let paths = [path];
    for (let level = path.split('/').length; level <= this.levels; level++) {
      const next: string[] = [];
      for (const dir of paths) {
        try {
          for (const name of await this.xenbus.xs.directory(dir)) next.push(`${dir}/${name}`);
        } catch (error) {
          if (!isGone(error)) throw error;
        }
      }
      paths = next;
    }
    for (const nodename of paths) found.add(nodename);
    for (const nodename of this.devices.keys()) {
      if (nodename.startsWith(`${path}/`)) found.add(nodename);
    }
    for (const nodename of found) await this.#nodeChanged(nodename);
  }

  async #nodeChanged(nodename: string): Promise<void> {
    const device = this.devices.get(nodename);
    if (device !== undefined) {
      if ((await device.exists()) && !(await device.isReplugged())) return;
      await this.#remove(device);
    }
    await this.#probeNode(nodename);
  }

  /** Makes a device of a directory whose state is Initialising. */
  async #probeNode(nodename: string): Promise<void> {
    const state = parseXenbusState(await this.xenbus.xs.readOptional(`${nodename}/state`));
    if (state !== XenbusState.Initialising) return;
    const device = new XenbusDevice(this.xenbus, this.side, nodename);
    this.devices.set(nodename, device);
    this.xenbus.step(`new ${this.side} device ${device.id}`);
    this.xenbus.devicesChanged();
    await this.#match(device);
  }

  async #match(device: XenbusDevice): Promise<void> {
    const driver = this.driverFor(device);
    if (driver === undefined || (driver.match !== undefined && !(await driver.match(device)))) return;
    await this.#bind(device, driver);
  }

  /** Gives a device to a driver (xenbus_dev_probe). */
  async #bind(device: XenbusDevice, driver: XenbusDriver): Promise<void> {
    try {
      await device.readOtherendDetails();
    } catch (error) {
      if (asErrnoError(error).code === 'EACCES') {
        await this.#waitForOtherend(device, driver, false);
        return;
      }
      await device.fatal(error, `reading other end details from ${device.nodename}`);
      await device.switchState(XenbusState.Closed);
      return;
    }
    this.#stopWaiting(device);
    device.driver = driver;
    device.refusal = null;
    this.xenbus.step(`probe ${device.id}`);
    this.xenbus.devicesChanged();
    try {
      await driver.probe(device, device.devicetype);
      await device.watchOtherend();
    } catch (error) {
      device.refusal = asErrnoError(error).message;
      await device.error(error, `probing ${device.nodename}`);
      await this.#letGo(device, driver);
      await device.switchState(XenbusState.Closed);
    }
  }

  /** Tries again whenever the other end's directory changes, and from time to time. */
  async #waitForOtherend(device: XenbusDevice, driver: XenbusDriver, resuming: boolean): Promise<void> {
    const { scheduler } = this.xenbus.platform;
    let waiting = this.#waiting.get(device);
    if (waiting === undefined) {
      waiting = {
        driver,
        until: scheduler.now() + OTHEREND_TIMEOUT_MS,
        delayMs: OTHEREND_RETRY_MIN_MS,
        timer: null,
        watch: null,
      };
      this.#waiting.set(device, waiting);
      const other = device.side === 'frontend' ? 'backend' : 'frontend';
      const path = (await this.xenbus.xs.readOptional(`${device.nodename}/${other}`)) ?? '';
      device.blockedBy = `waiting for the ${other}'s directory ${path} to become readable`;
      this.xenbus.platform.log(`xenbus: ${device.nodename}: ${device.blockedBy}`);
      this.xenbus.devicesChanged();
      try {
        let first = true;
        waiting.watch = await this.xenbus.xs.registerWatch({
          node: path,
          callback: () => {
            if (!first) return this.#tryAgain(device, resuming);
            first = false;
          },
          // It looks at the whole directory, in which the other end may write as fast as it likes.
          willHandle: (_path, nrPending) => nrPending === 0,
        });
      } catch {
        // No right to watch, or no watch left: the timer alone has to do.
      }
    }
    if (waiting.timer !== null) return;
    if (scheduler.now() >= waiting.until) {
      this.#stopWaiting(device);
      const error = new XenbusError('EACCES', `not readable within ${OTHEREND_TIMEOUT_MS / 1000} s`);
      await device.fatal(error, `reading other end details from ${device.nodename}`);
      await device.switchState(XenbusState.Closed);
      return;
    }
    const retry = waiting;
    retry.timer = scheduler.after(retry.delayMs, () => {
      retry.timer = null;
      retry.delayMs = Math.min(retry.delayMs * 2, OTHEREND_RETRY_MAX_MS);
      this.xenbus.later(() => this.#tryAgain(device, resuming));
    });
  }

  async #tryAgain(device: XenbusDevice, resuming: boolean): Promise<void> {
    const waiting = this.#waiting.get(device);
    if (waiting === undefined || device.gone) return;
    if (!resuming) {
      await this.#bind(device, waiting.driver);
      return;
    }
    if (!(await this.xenbus.xs.exists(device.nodename))) return;
    try {
      await device.readOtherendDetails();
    } catch (error) {
      if (asErrnoError(error).code === 'EACCES') return this.#waitForOtherend(device, waiting.driver, true);
      this.#stopWaiting(device);
      return device.fatal(error, `resuming ${device.id}`);
    }
    this.#stopWaiting(device);
    await this.resumeDevice(device);
  }

  #stopWaiting(device: XenbusDevice): void {
    const waiting = this.#waiting.get(device);
    if (waiting === undefined) return;
    this.#waiting.delete(device);
    device.blockedBy = null;
    if (waiting.timer !== null) this.xenbus.platform.scheduler.cancel(waiting.timer);
    if (waiting.watch !== null) this.xenbus.background(this.xenbus.xs.unregisterWatch(waiting.watch));
    this.xenbus.devicesChanged();
  }

  /** Takes the driver off (xenbus_dev_remove). */
  async #detach(device: XenbusDevice): Promise<void> {
    const { driver } = device;
    this.#stopWaiting(device);
    if (driver === null) return;
    this.xenbus.step(`remove ${device.id}`);
    await this.#letGo(device, driver);
    if (driver.allowRebind) {
      const stored = parseXenbusState(await this.xenbus.xs.readOptional(`${device.nodename}/state`));
      if (stored !== XenbusState.Closing) return;
    }
    await device.switchState(XenbusState.Closed);
  }

  async #letGo(device: XenbusDevice, driver: XenbusDriver): Promise<void> {
    await device.freeWatches();
    try {
      await driver.remove?.(device);
    } catch (error) {
      this.xenbus.platform.log(
        `xenbus: ${device.nodename}: driver ${driver.name} failed to remove: ${asErrnoError(error).message}`,
      );
    }
    // What the driver watched while it was at it.
    await device.freeWatches();
    device.driver = null;
    device.driverData = undefined;
    this.xenbus.devicesChanged();
  }

  /** The device's node is gone. */
  async #remove(device: XenbusDevice): Promise<void> {
    this.devices.delete(device.nodename);
    device.release();
    try {
      await this.#detach(device);
    } finally {
      this.xenbus.step(`${this.side} device ${device.id} gone`);
      this.xenbus.devicesChanged();
    }
  }
}
