import { ErrnoError } from '../abi/errno.js';
import type { NetDevice } from '../net/device.js';
import { NETDEV_NOTIFY_PEERS } from '../net/notifier.js';
import { list, object, optional, tuple, whole } from '../toolstack/checks.js';
import { DEVID_MAX } from '../toolstack/vif-config.js';
import { addressBytes, EchoStack } from './echo-stack.js';
import { packetBytes, sendFrame } from './frames.js';
import { type Guest, type GuestOptions, watchVifs } from './guest.js';

/** What an echo guest continues: how many requests each interface has answered. */
interface EchoState {
  readonly answered: readonly (readonly [devid: number, count: number])[];
}

export const checkEchoState = optional(
  object({ answered: list(tuple(whole(0, DEVID_MAX), whole(0, Number.MAX_SAFE_INTEGER))) }),
);

/** How long a ping waits for its answer. */
const PING_TIMEOUT_MS = 1000;

/**
 * `guest = "echo"`: answers ARP, neighbour solicitations, pings and UDP port 7 on the addresses of each
 * vif's `ip=`, and can ping. Needs nothing of the machine.
 */
export async function startEcho(options: GuestOptions): Promise<Guest> {
  const { kernel } = options;
  const { scheduler } = kernel.platform;
  const stacks = new Map<NetDevice, EchoStack>();
  const devids = new WeakMap<NetDevice, number>();
  const answered = new Map((options.state as EchoState | undefined)?.answered);
  const unwatch = watchVifs(kernel, {
    added(device, devid) {
      const addresses = (options.vif(devid)?.ip ?? []).map(({ address }) => address);
      const stack = new EchoStack(device.address, addresses, frame => sendFrame(device, frame));
      stack.answered = answered.get(devid) ?? 0;
      stacks.set(device, stack);
      // For a backend that passes on no other groups.
      for (const group of stack.groups) device.addMulticast(group);
      devids.set(device, devid);
      device.rxHandler = packet => {
        const bytes = packetBytes(packet, device);
        packet.release();
        if (bytes !== null) stack.receive(bytes);
      };
      options.log(`echo: ${device.name} answers for ${addresses.join(', ') || 'its link-local address'}`);
    },
    removed(device) {
      device.rxHandler = null;
      stacks.delete(device);
    },
  });
  const announcer = {
    name: 'echo',
    notifierCall(event: number, device: NetDevice): void {
      if (event === NETDEV_NOTIFY_PEERS) stacks.get(device)?.announce();
    },
  };
  kernel.net.registerNotifier(announcer);
  return {
    kind: 'echo',
    settled: () => Promise.resolve(),
    save(): EchoState {
      return { answered: [...stacks].map(([device, stack]) => [devids.get(device)!, stack.answered]) };
    },
    ping(address, timeoutMs = PING_TIMEOUT_MS) {
      const bytes = addressBytes(address);
      const stack = [...stacks.values()].find(candidate => candidate.canReach(bytes));
      if (stack === undefined) {
        throw new ErrnoError(
          'ENETDOWN',
          `${options.name} has no interface with an address to ask ${address} from`,
        );
      }
      const start = scheduler.now();
      return new Promise((resolve, reject) => {
        const timer = scheduler.after(timeoutMs, () => {
          forget();
          reject(new ErrnoError('ETIMEDOUT', `${address} did not answer within ${timeoutMs} ms`));
        });
        const forget = stack.ping(bytes, () => {
          scheduler.cancel(timer);
          resolve(scheduler.now() - start);
        });
      });
    },
    async stop() {
      kernel.net.unregisterNotifier(announcer);
      unwatch();
    },
  };
}
