import type { NetDevice } from '../net/device.js';
import { formatAddress } from '../net/device.js';
import { NETDEV_NOTIFY_PEERS } from '../net/notifier.js';
import { NetworkNamespace } from '../uplink/namespace.js';
import type { Tap } from '../uplink/tap.js';
import { TapFace } from '../uplink/tap-face.js';
import { EchoStack } from './echo-stack.js';
import { sendFrame } from './frames.js';
import { type Guest, type GuestOptions, type Luggage, vifDevid, watchVifs } from './guest.js';
import { interfaceNames, restoreRoutes, type SavedNamespace, saveInterface } from './netns-state.js';

/** What a guest takes along: its namespace with all that runs in it, and its interfaces by devid. */
interface NetnsState {
  readonly namespace: NetworkNamespace;
  readonly taps: Map<number, Tap>;
}

/**
 * `guest = "netns"`: a network namespace of this machine's kernel whose only interfaces are the domain's
 * netfront devices, under their names, with their MAC addresses, MTUs and carriers, and the addresses of the
 * vif's `ip=`. Any program can run inside. Works for any user where the kernel has user namespaces.
 *
 * What `save` gives has each interface's addresses and routes, for a new namespace. The programs go on only in the namespace
 * itself, which `leave` takes along.
 * @throws UplinkError that says what is missing
 */
export async function startNetns(options: GuestOptions): Promise<Guest> {
  const state = options.state as NetnsState | SavedNamespace | undefined;
  const continued = state !== undefined && 'namespace' in state ? state : undefined;
  /** What interfaces had that are yet to come back, by devid. */
  const saved = new Map(
    state !== undefined && 'interfaces' in state ? state.interfaces.map(face => [face.devid, face]) : [],
  );
  const namespace = continued?.namespace ?? (await NetworkNamespace.create());
  if (continued === undefined) await namespace.ip('link set lo up');
  const faces = new Map<NetDevice, TapFace>();
  const gone = new WeakSet<NetDevice>();
  let work: Promise<void> = Promise.resolve();
  /** Device set-ups run one after another; a failure of one is logged and hurts no other. */
  const enqueue = (what: string, job: () => Promise<void> | void): void => {
    work = work.then(job).catch(error => options.log(`netns: ${what}: ${(error as Error).message}`));
  };

  async function add(device: NetDevice, devid: number): Promise<void> {
    if (gone.has(device)) return;
    const { name } = device;
    const known = continued?.taps.get(devid);
    continued?.taps.delete(devid);
    const tap = known ?? (await namespace.openTap(name));
    if (gone.has(device)) {
      tap.close();
      return;
    }
    const setMtu = (mtu: number): void =>
      enqueue(`${name}: MTU ${mtu}`, () => namespace.ip(`link set dev ${tap.nameNow ?? name} mtu ${mtu}`));
    let face: TapFace;
    try {
      face = new TapFace(device, tap, options.poller(), setMtu);
    } catch (error) {
      tap.close();
      throw error;
    }
    faces.set(device, face);
    if (known !== undefined) {
      face.start();
      options.log(`netns: ${tap.name} goes on in the namespace of pid ${namespace.pid}`);
      return;
    }
    const before = saved.get(devid);
    saved.delete(devid);
    const addresses = before?.addresses ?? configured(devid);
    try {
      await namespace.ip(
        `link set dev ${name} mtu ${device.mtu}`,
        ...addresses.map(address => `addr add ${address} dev ${name}`),
        ...(before?.up === false ? [] : [`link set dev ${name} up`]),
      );
    } finally {
      if (!gone.has(device)) face.start();
    }
    if (before !== undefined) enqueue(`${name}: routes`, () => restoreRoutes(namespace, name, before));
    const shown = addresses.map(address => address.split(' ')[0]).join(' ') || 'no address';
    options.log(
      `netns: ${name} ${formatAddress(device.address)} ${shown} in the namespace of pid ${namespace.pid}`,
    );
  }

  /** What a vif's `ip=` says, for `ip addr add`. */
  function configured(devid: number): string[] {
    return (options.vif(devid)?.ip ?? []).map(({ address, prefix, version }) => {
      return `${address}/${prefix} ${version === 6 ? 'nodad' : 'brd +'}`;
    });
  }

  const unwatch = watchVifs(options.kernel, {
    added: (device, devid) => enqueue(device.name, () => add(device, devid)),
    removed(device) {
      gone.add(device);
      faces.get(device)?.close();
      faces.delete(device);
    },
  });

  const settled = async (): Promise<void> => {
    let seen: Promise<void>;
    do {
      seen = work;
      await seen;
    } while (seen !== work);
  };
  // The machine's kernel does not know that its interfaces may be elsewhere now: we tell the neighbours.
  const announcer = {
    name: 'netns',
    notifierCall(event: number, device: NetDevice): void {
      if (event !== NETDEV_NOTIFY_PEERS || !faces.has(device)) return;
      const addresses = (options.vif(vifDevid(device))?.ip ?? []).map(({ address }) => address);
      new EchoStack(device.address, addresses, frame => sendFrame(device, frame)).announce();
    },
  };
  options.kernel.net.registerNotifier(announcer);
  let left = false;

  return {
    kind: 'netns',
    settled,
    async save(): Promise<SavedNamespace> {
      await settled();
      const there = await interfaceNames(namespace);
      const save = async ([device, { tap }]: [NetDevice, TapFace]) => {
        const { nameNow } = tap;
        if (nameNow !== null && there.has(nameNow))
          return [await saveInterface(namespace, nameNow, vifDevid(device))];
        // Whoever is root inside has deleted it, or moved it elsewhere: it comes back as the domain's file has it.
        options.log(`netns: ${device.name} is not there any more: it is not saved`);
        return [];
      };
      return { interfaces: (await Promise.all([...faces].map(save))).flat() };
    },
    unsaved() {
      const programs = namespace.programs().map(({ pid, name }) => `${name} (pid ${pid})`);
      return programs.length === 0
        ? []
        : [`the programs in its namespace, and their connections: ${programs.join(', ')}`];
    },
    async leave(): Promise<Luggage> {
      await settled();
      left = true;
      const taps = new Map<number, Tap>();
      for (const [device, face] of faces) taps.set(vifDevid(device), face.release());
      faces.clear();
      const state: NetnsState = { namespace, taps };
      return {
        state,
        async abandon() {
          for (const tap of taps.values()) tap.close();
          await namespace.close();
        },
      };
    },
    command: (argv, workingDirectory) => namespace.command(argv, workingDirectory),
    async stop() {
      options.kernel.net.unregisterNotifier(announcer);
      // Unregistering the notifier reports every device as gone, which closes its face.
      unwatch();
      await work;
      if (!left) await namespace.close();
    },
  };
}
