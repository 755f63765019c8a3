import { vifDevid, watchVifs } from '../guests/guest.js';
import { openLinuxHost, untilEnded } from '../linux/index.js';
import type { NetDevice } from '../net/device.js';
import { formatAddress } from '../net/device.js';
import { registerNetfront } from '../netfront/netfront.js';
import { runProgram } from '../uplink/namespace.js';
import { openTap, type Tap } from '../uplink/tap.js';
import { TapFace } from '../uplink/tap-face.js';
import type { Command } from './command.js';
import { NETFRONT_OPTIONS, readNetfrontOptions } from './netfront-options.js';

/** What makes an interface of the face of a vif; %d is the vif's number. */
const DEFAULT_NAME = 'pvnet%d';

/** `pvnet frontend`: a domain's own vifs in its user space. */
export const FRONTEND_COMMAND: Command = {
  usage: '[--name NAME%d] [--max-queues N] [--without FEATURE]… [--static-grants]',
  summary: 'Drives this domain’s own vifs from user space, in place of xen-netfront.',
  details: [
    'Each vif becomes a TAP with its MAC address. Needs root and /dev/xen/{evtchn,gntdev,gntalloc}; the kernel’s own',
    'xen-netfront must not have the vif. SIGTERM closes the vifs.',
  ].join('\n'),
  options: {
    name: {
      type: 'string',
      value: 'NAME%d',
      help: `the TAPs' names; %d is the vif's number (${DEFAULT_NAME})`,
    },
    ...NETFRONT_OPTIONS,
  },
  arguments: [0, 0],
  async run(invocation) {
    const { option, print } = invocation;
    const options = readNetfrontOptions(invocation);
    const log = (line: string): void => void process.stderr.write(`${line}\n`);
    const name = option('name') ?? DEFAULT_NAME;
    const { kernel, poller, close } = await openLinuxHost('frontend', log);
    const faces = new Map<NetDevice, TapFace>();
    const unwatch = watchVifs(kernel, {
      added(device, devid) {
        let tap: Tap | null = null;
        try {
          tap = openTap(name.replace('%d', String(devid)));
          const { name: interfaceName } = tap;
          const setMtu = (mtu: number): void => {
            runProgram(['ip', 'link', 'set', 'dev', interfaceName, 'mtu', String(mtu)]).catch(error =>
              log(`${interfaceName}: ${error}`),
            );
          };
          const face = new TapFace(device, tap, poller, setMtu);
          faces.set(device, face);
          face.start();
          setMtu(device.mtu);
          print(`vif ${devid}: ${interfaceName} ${formatAddress(device.address)}`);
        } catch (error) {
          tap?.close();
          log(`vif ${vifDevid(device)}: ${(error as Error).message}`);
        }
      },
      removed(device) {
        faces.get(device)?.close();
        faces.delete(device);
      },
    });
    await registerNetfront(kernel, options);
    print('pvnet frontend: ready');
    const shutdown = (): Promise<void> => kernel.shutdown();
    await untilEnded(kernel.xenbus, { SIGTERM: shutdown, SIGINT: shutdown });
    unwatch();
    close();
    return 0;
  },
};
