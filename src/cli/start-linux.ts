import { fetchLinux } from '../guests/linux/fetch.js';
import { cachedFiles, LinuxGuestError } from '../guests/linux/files.js';
import { lacksSnapshot, runInShell } from '../guests/linux/index.js';
import { parseDomain } from '../toolstack/domain-config.js';
import type { Host, HostedDomain } from '../toolstack/host.js';
import { takeSnapshots } from './linux.js';
import { CliError } from './rpc.js';
import { dim, heading, indent, print, type Results } from './start-report.js';
import { ADDRESSES, sendTo, startReceiver, tellTransfer } from './start-traffic.js';

export const LINUX_NAME = 'linux';
const ADDRESS = '10.0.0.3';
const CONFIG = parseDomain(
  `name = "${LINUX_NAME}"\nguest = "linux"\nvif = [ 'bridge=xenbr0,ip=${ADDRESS}/24 fd00::3/64' ]\n`,
  `${LINUX_NAME}.cfg`,
);
const GUEST1 = ADDRESSES[0];
const PINGS = 20;
const PORT = 5001;
const TRANSFER_BYTES = 2_000_000;
/** What the guest sends: a file that it has, as random bytes take an emulated processor seconds. */
const FILE = '/bin/busybox';
/** What is shown of the guest from its own shell. */
const SHOWN = [
  'uname -sr',
  'dmesg | grep -iE "hypervisor detected|platform pci: i|xen_netfront"',
  'ethtool -i eth0 | head -n 2',
];

/** A guest of kind "linux" goes on from a snapshot: it is there in a second, with nothing to get. */
export function linuxIsReady(): boolean {
  return cachedFiles() !== null && !lacksSnapshot(CONFIG);
}

/** Gets what the guest needs, once. @returns whether it can be had; where it cannot, why is printed */
export async function prepareLinux(signal: AbortSignal): Promise<boolean> {
  const began = performance.now();
  const step = (line: string): void =>
    print(`  ${dim(`${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s`)}  ${line}`);
  try {
    if (cachedFiles() === null) {
      heading('A real Linux kernel is fetched for a third guest: once, in a minute or two');
      await fetchLinux(step, signal);
    } else heading('A real Linux kernel is booted for a third guest: once, in some seconds');
    await takeSnapshots(step, ['guest'], signal);
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    if (!(error instanceof LinuxGuestError)) throw error;
    print(`  There is no Linux guest: ${error.message.replace(/^E[A-Z]+: /, '')}.`);
    print('  "npx pvnet linux fetch" tries again, as does the next "npm start"; "--no-linux" leaves it out.');
    return false;
  }
}

/** Boots the guest and waits until it is on the bridge. @throws CliError ETIMEDOUT */
export async function joinLinux(host: Host): Promise<HostedDomain> {
  heading('An unmodified Linux kernel joins, in an emulated PC');
  print('  It finds that it runs on Xen, and its own xen-netfront connects to our netback.');
  const linux = await host.create(CONFIG);
  const [left] = await host.settled(linux);
  if (left === undefined) return linux;
  throw new CliError('ETIMEDOUT', `${LINUX_NAME} did not connect: ${host.waitingFor(linux, left)}`);
}

/** Shows the guest from within, and sends to and from it. @param guest1 of kind "netns" or "echo" */
export async function linuxTraffic(
  linux: HostedDomain,
  guest1: HostedDomain,
  results: Results,
): Promise<void> {
  const { signal } = results;
  const shell = async (command: string): Promise<string> => {
    const { status, output } = await runInShell(linux.booted!.guest.console!, command);
    if (status !== 0) throw new Error(output.trim());
    return output.trimEnd();
  };
  heading('Traffic: guest1 → our netfront → netback → bridge → netback → Linux’s xen-netfront → linux');
  for (const command of SHOWN) {
    print(dim(`  ${LINUX_NAME}# ${command}`));
    print(indent(await shell(command)));
  }
  await results.check(`${PINGS} pings from linux to guest1`, async () => {
    const output = await shell(`ping -q -c ${PINGS} -w 10 -i 0.02 ${GUEST1}`);
    const average = /= [\d.]+\/([\d.]+)\//.exec(output);
    if (average === null || !output.includes(` ${PINGS} packets received`)) throw new Error(output);
    return `all answered, ${average[1]} ms on average`;
  });
  const { guest } = guest1.booted!;
  if (guest.ping !== undefined) {
    await results.check(`${PINGS} pings from guest1 to linux`, async () => {
      let total = 0;
      for (let i = 0; i < PINGS; i++) total += await guest.ping!(ADDRESS);
      return `all answered, ${(total / PINGS).toFixed(3)} ms on average`;
    });
    return;
  }
  await results.check(`TCP from linux to guest1, ${FILE} with a checksum`, async () => {
    const sent = readSum(await shell(`wc -c < ${FILE}; sha256sum ${FILE}`));
    const { lines, kill } = await startReceiver(guest1, PORT, signal);
    try {
      await shell(`nc ${GUEST1} ${PORT} < ${FILE}`);
      const got = JSON.parse((await lines.next()).value ?? '{}');
      return tellTransfer(got, got.seconds, sent);
    } finally {
      kill();
    }
  });
  await results.check(`TCP from guest1 to linux, ${TRANSFER_BYTES / 1e6} MB with a checksum`, async () => {
    await shell(`nc -l -p ${PORT} > /tmp/got & until netstat -ltn | grep -q :${PORT}; do usleep 50000; done`);
    const sent = await sendTo(guest1, ADDRESS, PORT, TRANSFER_BYTES, signal);
    const got = readSum(await shell('wait; wc -c < /tmp/got; sha256sum /tmp/got; rm /tmp/got'));
    return tellTransfer(got, sent.seconds, sent);
  });
}

/** What "wc -c" and "sha256sum" print. */
function readSum(output: string): { bytes: number; sha256: string } {
  const [bytes, sha256] = output.trim().split(/\s+/);
  return { bytes: Number(bytes), sha256 };
}
