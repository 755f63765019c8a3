import { DOMID_FIRST_RESERVED } from '../abi/xen.js';
import { parseXenbusState, XenbusState, xenbusStateName } from '../abi/xenbus-state.js';
import type { GrantMapping, Platform } from '../platform/platform.js';
import type { XenbusDriver } from './driver.js';
import { asErrnoError, XenbusError } from './error.js';
import {
  type Gathered,
  joinPath,
  text,
  unsigned,
  type XenbusParser,
  xenbusGather,
  xenbusReadUnsigned,
  xenbusScanf,
} from './values.js';
import type { Xenbus } from './xenbus.js';
import type { XsOperations, XsWatch, XsWatchOptions } from './xs.js';

export type XenbusSide = 'frontend' | 'backend';

/** How often an error may lead to another while it is dealt with (switch_state ↔ fatal). */
const FATAL_DEPTH = 1;

/** A device on one of the buses: a directory in xenstore with a `state`, and its other end in another domain. */
export class XenbusDevice {
  /** The type as the path has it, "vif". */
  readonly devicetype: string;
  /** Its name on the bus: "vif-0", or "vif-5-0" for the backend of domain 5's. */
  readonly id: string;
  /** Absolute path of the other end's directory; "" until it was read. */
  otherend = '';
  /** Domain of the other end, -1 until it was read. */
  otherendId = -1;
  /** Own state, as last written. */
  state: XenbusState = XenbusState.Initialising;
  /** The other end's state, as last seen. */
  otherendState: XenbusState = XenbusState.Unknown;
  driver: XenbusDriver | null = null;
  /** The driver's own. */
  driverData: unknown = undefined;
  /** The node is gone, or the bus has given the device up. */
  gone = false;
  /** Why the driver cannot have the device yet; set by the bus. */
  blockedBy: string | null = null;
  /** What its driver's `probe` threw; set by the bus. */
  refusal: string | null = null;
  /** Odd while a state is being written. */
  #changes = 0;
  #serial: Promise<unknown> = Promise.resolve();
  #isFatal = false;
  /** The directory was not ours any more when we wrote to it. */
  #isLost = false;
  #otherendWatch: XsWatch | null = null;
  readonly #watches = new Set<XsWatch>();
  #onDown: (() => void)[] = [];

  /** @param nodename the directory below the domain's home: "device/vif/0", "backend/vif/5/0" */
  constructor(
    readonly xenbus: Xenbus,
    readonly side: XenbusSide,
    readonly nodename: string,
  ) {
    const parts = nodename.split('/');
    this.devicetype = parts[1];
    this.id = parts.slice(1).join('-');
  }

  get platform(): Platform {
    return this.xenbus.platform;
  }

  /** The store, for what the helpers below do not do. */
  get xs(): XsOperations {
    return this.xenbus.xs;
  }

  // ---------------------------------------------------------------- values

  /** Reads several nodes of a directory, all or nothing; see `xenbusGather`. */
  gather<S extends Record<string, XenbusParser<unknown>>>(
    dir: string,
    parsers: S,
    t: XsOperations = this.xs,
  ): Promise<Gathered<S>> {
    return xenbusGather(t, dir, parsers);
  }

  /** Reads and parses one node; see `xenbusScanf`. */
  scanf<T>(dir: string, node: string, parse: XenbusParser<T>, t: XsOperations = this.xs): Promise<T> {
    return xenbusScanf(t, dir, node, parse);
  }

  /** Writes one node (xenbus_printf). */
  printf(dir: string, node: string, value: string | number, t: XsOperations = this.xs): Promise<void> {
    return t.write(joinPath(dir, node), value);
  }

  /** Reads a number, with a default for whatever is none; see `xenbusReadUnsigned`. */
  readUnsigned(dir: string, node: string, defaultValue: number, t: XsOperations = this.xs): Promise<number> {
    return xenbusReadUnsigned(t, dir, node, defaultValue);
  }

  /** Runs `body` in a transaction, again when it lost against another. */
  transaction<T>(body: (t: XsOperations) => Promise<T>): Promise<T> {
    return this.xenbus.xs.transaction(body);
  }

  /**
   * Writes several nodes of the own directory at once, for the other end to read; null removes one. As with
   * `switchState`, the directory must still be there: what the toolstack has removed does not come to life again.
   * @returns whether they were written; if not, the device is about to be removed
   */
  async publish(nodes: Readonly<Record<string, string | number | null>>): Promise<boolean> {
    const written = await this.transaction(async t => {
      if (!this.#isOurs(await t.readOptional(`${this.nodename}/state`))) return false;
      for (const [node, value] of Object.entries(nodes)) {
        const path = `${this.nodename}/${node}`;
        if (value === null) await t.rm(path);
        else await t.write(path, value);
      }
      return true;
    });
    if (!written) this.#isLost = true;
    return written;
  }

  // ---------------------------------------------------------------- watches

  /**
   * Watches a node for as long as the driver has the device. The callback runs on xenwatch, first at once; what it
   * throws is fatal for the device.
   */
  async watchPath(
    node: string,
    callback: (path: string) => void | Promise<void>,
    willHandle?: XsWatchOptions['willHandle'],
  ): Promise<XsWatch> {
    const guarded = async (path: string) => {
      try {
        await callback(path);
      } catch (error) {
        await this.fatal(error, `handling a change of ${node}`);
      }
    };
    const watch = await this.xenbus.xs.registerWatch({ node, callback: guarded, willHandle });
    this.#watches.add(watch);
    return watch;
  }

  async unwatch(watch: XsWatch): Promise<void> {
    this.#watches.delete(watch);
    await this.xenbus.xs.unregisterWatch(watch);
  }

  // ---------------------------------------------------------------- state

  /**
   * Sets the own state (xenbus_switch_state). The write happens in a transaction that finds the `state` node in
   * place, so that a directory which the toolstack has removed does not come to life again. An error is fatal for
   * the device, and reported here.
   * @returns whether the state is now `next`
   */
  switchState(next: XenbusState): Promise<boolean> {
    return this.#inTurn(() => this.#writeState(next, FATAL_DEPTH));
  }

  /** The frontend is closed: state Closed, and whoever waits for the shutdown goes on (xenbus_frontend_closed). */
  async frontendClosed(): Promise<void> {
    await this.switchState(XenbusState.Closed);
    this.#down();
  }

  /** Reads the other end's state. Unknown when it is gone. @throws when the store is out of reach */
  async readOtherendState(): Promise<XenbusState> {
    const state = parseXenbusState(await this.xs.readOptional(`${this.otherend}/state`));
    if (state !== this.otherendState) {
      const from = this.otherendState;
      this.otherendState = state;
      this.xenbus.trace?.({
        kind: 'otherend-state',
        domid: this.platform.domid,
        device: this.nodename,
        from,
        to: state,
      });
      this.xenbus.devicesChanged();
    }
    return state;
  }

  // ---------------------------------------------------------------- errors

  /** Reports an error in the kernel's log and in the node `error/<nodename>/error` as "errno text" (xenbus_dev_error). */
  async error(error: unknown, doing: string): Promise<void> {
    const { errno, message } = asErrnoError(error);
    this.platform.log(`xenbus: ${this.nodename}: ${doing}: ${message}`);
    if (!this.xenbus.xs.connected) return;
    try {
      await this.xs.write(`error/${this.nodename}/error`, `${errno} ${doing}`);
    } catch (failure) {
      this.platform.log(
        `xenbus: ${this.nodename}: cannot write error/${this.nodename}/error: ${asErrnoError(failure).message}`,
      );
    }
  }

  /** Reports an error after which the device cannot go on: as `error`, and the state goes to Closing (xenbus_dev_fatal). */
  async fatal(error: unknown, doing: string): Promise<void> {
    if (this.#isFatal) {
      this.platform.log(`xenbus: ${this.nodename}: ${doing}: ${asErrnoError(error).message}`);
      return;
    }
    this.#isFatal = true;
    try {
      await this.error(error, doing);
      await this.#inTurn(() => this.#writeState(XenbusState.Closing, 0));
    } finally {
      this.#isFatal = false;
    }
  }

  // ---------------------------------------------------------------- rings and event channels

  /**
   * Grants pages to the other end (xenbus_grant_ring). When it fails no page is granted, and the device is closing.
   * @param pages page numbers in the domain's memory
   * @returns a grant reference for each
   * @throws ENOSPC when the grant table is full
   */
  async grantRing(pages: readonly number[]): Promise<number[]> {
    const grefs: number[] = [];
    try {
      for (const page of pages) grefs.push(this.platform.grants.grantAccess(this.otherendId, page, false));
    } catch (error) {
      this.ungrantRing(grefs);
      await this.fatal(error, `granting access to ring page ${grefs.length}`);
      throw error;
    }
    for (const gref of grefs) this.#traceNumber('grant', gref);
    return grefs;
  }

  /**
   * Takes the grants back. @returns whether all were: a page whose grant the other end still maps must not be used
   * again. A GrantReclaimer takes care of such pages.
   */
  ungrantRing(grefs: readonly number[]): boolean {
    let all = true;
    for (const gref of grefs) if (!this.platform.grants.endAccess(gref)) all = false;
    return all;
  }

  /**
   * Maps pages that the other end granted (xenbus_map_ring). When it fails nothing is mapped, and the device is
   * closing. @throws GrantError
   */
  async mapRing(grefs: readonly number[]): Promise<GrantMapping[]> {
    const mappings: GrantMapping[] = [];
    try {
      for (const gref of grefs) {
        mappings.push(this.platform.grants.map(this.otherendId, gref, false));
        this.#traceNumber('map', gref);
      }
    } catch (error) {
      this.unmapRing(mappings);
      await this.fatal(
        error,
        `mapping in shared page ${grefs[mappings.length]} from domain ${this.otherendId}`,
      );
      throw error;
    }
    return mappings;
  }

  unmapRing(mappings: readonly GrantMapping[]): void {
    for (const mapping of mappings) this.platform.grants.unmap(mapping);
  }

  /**
   * Opens an event channel for the other end to bind to (xenbus_alloc_evtchn). When it fails the device is closing.
   * @throws ENOSPC
   */
  async allocEvtchn(): Promise<number> {
    try {
      const port = this.platform.events.allocUnbound(this.otherendId);
      this.#traceNumber('evtchn', port);
      return port;
    } catch (error) {
      await this.fatal(error, 'allocating event channel');
      throw error;
    }
  }

  /** Closes an event channel that no IRQ is bound to (xenbus_free_evtchn). */
  freeEvtchn(port: number): void {
    this.platform.events.close(port);
  }

  // ---------------------------------------------------------------- in words

  /** What the device waits for, as "waiting for the frontend (domain 5) to go from Initialising to Connected"; null when for nothing. */
  waitingFor(): string | null {
    if (this.gone) return 'gone';
    if (this.blockedBy !== null) return this.blockedBy;
    if (this.driver === null) {
      if (this.refusal !== null) return `not taken by its ${this.side} driver: ${this.refusal}`;
      if (this.state === XenbusState.Closed) return 'closed; waiting to be removed';
      return `waiting for a ${this.side} driver for ${this.devicetype} in domain ${this.platform.domid}`;
    }
    const special = this.driver.waitingFor?.(this);
    if (special !== undefined && special !== null) return special;
    const { state, otherendState } = this;
    const front = this.side === 'frontend';
    const other = `the ${front ? 'backend' : 'frontend'} (domain ${this.otherendId})`;
    const S = XenbusState;
    if (state === S.Connected && otherendState === S.Connected) return null;
    if (state === S.Closed) {
      if (otherendState !== S.Closed && otherendState !== S.Unknown) return `closed; ${goTo(S.Closed)}`;
      return front ? 'closed; waiting to be removed' : `closed; ${goTo(S.Initialising)}, or to be removed`;
    }
    if (otherendState === S.Unknown) return `waiting for ${other} to appear at ${this.otherend}`;
    if (state === S.Closing) return goTo(S.Closed);
    if (otherendState === S.Closing || otherendState === S.Closed) {
      return `waiting to close: ${other} is ${xenbusStateName(otherendState)}`;
    }
    const wanted = front && state < S.Initialised ? S.InitWait : S.Connected;
    if (otherendState >= wanted) return `waiting for the ${this.side} driver to connect`;
    return goTo(wanted);

    function goTo(wanted: XenbusState): string {
      return `waiting for ${other} to go from ${xenbusStateName(otherendState)} to ${xenbusStateName(wanted)}`;
    }
  }

  // ---------------------------------------------------------------- for the bus

  /**
   * Reads where the other end is, from the own directory.
   * @throws EINVAL, ENOENT for what the directory lacks; EACCES when the other end's directory is not readable yet;
   *   ENOENT when it does not exist
   * @internal
   */
  async readOtherendDetails(): Promise<void> {
    const other = this.side === 'frontend' ? 'backend' : 'frontend';
    const details = await this.gather(this.nodename, { [`${other}-id`]: unsigned, [other]: text });
    const domid = details[`${other}-id`] as number;
    const path = details[other] as string;
    if (domid >= DOMID_FIRST_RESERVED) {
      throw new XenbusError('EINVAL', `${this.nodename}/${other}-id is ${domid}, which is no domain`);
    }
    if (!path.startsWith('/')) {
      throw new XenbusError(
        'ENOENT',
        `${this.nodename}/${other} is "${path.slice(0, 64)}", not an absolute path`,
      );
    }
    await this.xs.read(path);
    this.otherend = path;
    this.otherendId = domid;
  }

  /** Starts to tell the driver about the other end's state. @internal */
  async watchOtherend(): Promise<void> {
    this.#otherendWatch = await this.xenbus.xs.registerWatch({
      node: `${this.otherend}/state`,
      callback: path => this.#otherendChanged(path),
      // One that waits is enough: its callback reads what is current then (XSA-349).
      willHandle: (_path, nrPending) => nrPending === 0,
    });
  }

  /** @internal */
  async unwatchOtherend(): Promise<void> {
    const watch = this.#otherendWatch;
    this.#otherendWatch = null;
    if (watch !== null) await this.xenbus.xs.unregisterWatch(watch);
  }

  /** Ends all watches of the device; nothing more is called for it. @internal */
  async freeWatches(): Promise<void> {
    await this.unwatchOtherend();
    for (const watch of [...this.#watches]) await this.unwatch(watch);
  }

  /** Whether its directory is still there. @internal */
  async exists(): Promise<boolean> {
    if ((await this.xs.readOptional(`${this.nodename}/state`)) !== undefined) return true;
    return this.xs.exists(this.nodename);
  }

  /**
   * Whether the toolstack has removed the directory and made a new one before we looked: its state is
   * Initialising though ours is not (and we are not writing it), or a write of ours found another's directory, or
   * it names another other end. @internal
   */
  async isReplugged(): Promise<boolean> {
    const before = this.#changes;
    const stored = parseXenbusState(await this.xs.readOptional(`${this.nodename}/state`));
    // While we write, or if we just did, there is another event to come.
    if ((before & 1) !== 0 || this.#changes !== before) return false;
    if (stored !== XenbusState.Initialising) return false;
    if (this.state !== XenbusState.Initialising || this.#isLost) return true;
    if (this.driver === null) return false;
    const other = this.side === 'frontend' ? 'backend' : 'frontend';
    const path = await this.xs.readOptional(`${this.nodename}/${other}`);
    return path !== undefined && path !== this.otherend;
  }

  /** The state after a resume: Initialising, whatever the directory says. @internal */
  restart(): Promise<boolean> {
    return this.#inTurn(async () => {
      this.#setState(XenbusState.Initialising);
      this.otherendState = XenbusState.Unknown;
      this.#isLost = false;
      return this.#storeState(XenbusState.Initialising, () => true);
    });
  }

  /** Resolves when the frontend has closed, or the device is gone. @internal */
  untilDown(): Promise<void> {
    return new Promise(resolve => {
      this.#onDown.push(resolve);
    });
  }

  /** The bus gives the device up. @internal */
  release(): void {
    this.gone = true;
    this.#down();
  }

  // ----------------------------------------------------------------

  async #otherendChanged(path: string): Promise<void> {
    // Before a resume the other end may have been elsewhere.
    if (this.gone || this.driver === null || !path.startsWith(this.otherend)) return;
    try {
      const state = await this.readOtherendState();
      if (this.xenbus.isShuttingDown) {
        if (this.side === 'frontend' && state === XenbusState.Closing) await this.frontendClosed();
        return;
      }
      await this.driver.otherendChanged?.(this, state);
    } catch (error) {
      await this.fatal(error, `handling a change of ${this.otherend}/state`);
    }
  }

  #inTurn<T>(body: () => Promise<T>): Promise<T> {
    const result = this.#serial.then(body, body);
    this.#serial = result.catch(() => {});
    return result;
  }

  async #writeState(next: XenbusState, depth: number): Promise<boolean> {
    if (next === this.state) return true;
    if (this.gone) return false;
    let written: boolean;
    let mustClose = false;
    try {
      written = await this.#storeState(next, current => {
        mustClose = this.#isToClose(current, next);
        return !mustClose && this.#isOurs(current);
      });
    } catch (error) {
      const doing = `writing new state ${xenbusStateName(next)}`;
      if (next === XenbusState.Closing || depth === 0) {
        this.platform.log(`xenbus: ${this.nodename}: ${doing}: ${asErrnoError(error).message}`);
      } else {
        await this.error(error, doing);
        await this.#writeState(XenbusState.Closing, depth - 1);
      }
      return false;
    }
    if (written) this.#setState(next);
    else if (!mustClose) this.#isLost = true;
    return written;
  }

  async #storeState(next: XenbusState, mayWrite: (current: string) => boolean): Promise<boolean> {
    const path = `${this.nodename}/state`;
    this.#changes++;
    try {
      return await this.transaction(async t => {
        const current = await t.readOptional(path);
        if (current === undefined || !mayWrite(current)) return false;
        await t.write(path, next);
        return true;
      });
    } finally {
      this.#changes++;
    }
  }

  /** Whether a directory with that `state` may be the one we know: not gone, nor a fresh one in its place. */
  #isOurs(stored: string | undefined): boolean {
    if (stored === undefined || this.gone) return false;
    return parseXenbusState(stored) !== XenbusState.Initialising || this.state === XenbusState.Initialising;
  }

  /**
   * Whether the toolstack has asked a backend to close that is on its way up. It does so in the backend's own `state`, for the
   * frontend to see; written over, that would be lost.
   */
  #isToClose(stored: string, next: XenbusState): boolean {
    const { Closing, Closed } = XenbusState;
    const closes = (state: XenbusState) => state === Closing || state === Closed;
    return (
      this.side === 'backend' && parseXenbusState(stored) === Closing && !closes(this.state) && !closes(next)
    );
  }

  #setState(next: XenbusState): void {
    const from = this.state;
    if (from === next) return;
    this.state = next;
    this.xenbus.trace?.({
      kind: 'state',
      domid: this.platform.domid,
      device: this.nodename,
      from,
      to: next,
    });
    this.xenbus.devicesChanged();
  }

  #down(): void {
    const listeners = this.#onDown;
    this.#onDown = [];
    for (const resolve of listeners) resolve();
  }

  #traceNumber(kind: 'grant' | 'map' | 'evtchn', number: number): void {
    this.xenbus.trace?.({ kind, domid: this.platform.domid, device: this.nodename, number });
  }
}
