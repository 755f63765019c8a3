import { XenbusState } from '../../src/abi/xenbus-state.js';
import { formatXenbusTrace, type XenbusDevice } from '../../src/xenbus/index.js';
import {
  type Holdings,
  type PlugOptions,
  SimHost,
  type SimHostOptions,
  type SimKernel,
} from '../support/sim-host.js';
import { ECHO, EchoBack, EchoFront } from './echo-device.js';

/** Seeds that each scenario runs with. */
export const SEEDS = [1, 2, 3, 4, 5];

/** A host with one guest, and the drivers of the echo device for both ends, not registered yet. */
export interface Scene {
  readonly host: SimHost;
  readonly dom0: SimKernel;
  readonly domU: SimKernel;
  readonly front: EchoFront;
  readonly back: EchoBack;
  /** What to plug. */
  readonly vdev: PlugOptions;
}

export async function scene(
  seed: number,
  drivers: { front?: EchoFront; back?: EchoBack; host?: SimHostOptions } = {},
): Promise<Scene> {
  const host = await SimHost.boot(seed, drivers.host);
  const domU = await host.bootDomain({ name: 'guest' });
  return {
    host,
    dom0: host.dom0,
    domU,
    front: drivers.front ?? new EchoFront(),
    back: drivers.back ?? new EchoBack(),
    vdev: { type: ECHO, front: domU, back: host.dom0 },
  };
}

export function frontOf({ domU }: Scene): XenbusDevice {
  return domU.xenbus.frontend.devices.get(`device/${ECHO}/0`)!;
}

export function backOf({ dom0, domU }: Scene): XenbusDevice {
  return dom0.xenbus.backend.devices.get(`backend/${ECHO}/${domU.domid}/0`)!;
}

/** Both ends are Connected and have seen it of the other. */
export function isConnected(s: Scene): boolean {
  const [front, back] = [frontOf(s), backOf(s)];
  return [front?.state, back?.state, front?.otherendState, back?.otherendState].every(
    state => state === XenbusState.Connected,
  );
}

export async function register(s: Scene): Promise<void> {
  await s.host.run(s.dom0.xenbus.registerBackend(s.back));
  await s.host.run(s.domU.xenbus.registerFrontend(s.front));
  await s.host.settle();
}

/** Registers both drivers, plugs the device, waits for the connection. @returns what the domains held before */
export async function connect(s: Scene): Promise<{ dom0: Holdings; domU: Holdings }> {
  await register(s);
  const base = holdings(s);
  await s.host.plug(s.vdev);
  await s.host.until(() => isConnected(s));
  await s.host.settle();
  return base;
}

/** A number goes to the backend and comes back plus one. */
export async function ping(s: Scene, value: number): Promise<void> {
  const device = frontOf(s);
  s.front.send(device, value);
  await s.host.until(() => s.front.replies(device).includes(value + 1));
}

export function holdings({ host, dom0, domU }: Scene): { dom0: Holdings; domU: Holdings } {
  return { dom0: host.holdings(dom0), domU: host.holdings(domU) };
}

/** What a kernel's bus did with devices: all but reads and watch events; grefs and ports as N. */
export function story(kernel: SimKernel): string[] {
  return kernel.trace
    .filter(({ kind }) => !['read', 'exists', 'directory', 'event', 'unwatch'].includes(kind))
    .map(formatXenbusTrace)
    .filter(line => line.includes(`${ECHO}/`) || line.includes(`${ECHO}-`))
    .map(line => line.replace(/^d\d+ /, '').replace(/((?:ref|channel)(?: =)? )\d+$/, '$1N'));
}
