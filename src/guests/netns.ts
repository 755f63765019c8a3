import type { NetDevice } from '../net/device.js';
import { formatAddress } from '../net/device.js';
import { NetworkNamespace } from '../uplink/namespace.js';
import { TapFace } from '../uplink/tap-face.js';
import { type Guest, type GuestOptions, watchVifs } from './guest.js';

/**
 * `guest = "netns"`: a network namespace of this machine's kernel whose only interfaces are the domain's
 * netfront devices, under their names, with their MAC addresses, MTUs and carriers, and the addresses of the
 * vif's `ip=`. Any program can run inside. Works for any user where the kernel has user namespaces.
 * @throws UplinkError that says what is missing
 */
export async function startNetns(options: GuestOptions): Promise<Guest> {
  const namespace = await NetworkNamespace.create();
  await namespace.ip('link set lo up');
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
    const tap = await namespace.openTap(name);
    if (gone.has(device)) {
      tap.close();
      return;
    }
    const setMtu = (mtu: number): void =>
      enqueue(`${name}: MTU ${mtu}`, () => namespace.ip(`link set dev ${name} mtu ${mtu}`));
    let face: TapFace;
    try {
      tap.setAddress(device.address);
      face = new TapFace(device, tap, options.poller(), setMtu);
    } catch (error) {
      tap.close();
      throw error;
    }
    faces.set(device, face);
    const addresses = options.vif(devid)?.ip ?? [];
    await namespace.ip(
      `link set dev ${name} mtu ${device.mtu}`,
      ...addresses.map(({ address, prefix, version }) => {
        const rest = version === 6 ? 'nodad' : 'brd +';
        return `addr add ${address}/${prefix} dev ${name} ${rest}`;
      }),
      `link set dev ${name} up`,
    );
    const shown = addresses.map(({ address, prefix }) => `${address}/${prefix}`).join(' ') || 'no address';
    options.log(
      `netns: ${name} ${formatAddress(device.address)} ${shown} in the namespace of pid ${namespace.pid}`,
    );
  }

  const unwatch = watchVifs(options.kernel, {
    added: (device, devid) => enqueue(device.name, () => add(device, devid)),
    removed(device) {
      gone.add(device);
      faces.get(device)?.close();
      faces.delete(device);
    },
  });

  return {
    kind: 'netns',
    async settled() {
      let seen: Promise<void>;
      do {
        seen = work;
        await seen;
      } while (seen !== work);
    },
    command: (argv, workingDirectory) => namespace.command(argv, workingDirectory),
    async stop() {
      // Unregistering the notifier reports every device as gone, which closes its face.
      unwatch();
      await work;
      await namespace.close();
    },
  };
}
