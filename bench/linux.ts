// node dist/bench/linux.js: how fast Linux guests start, and how their xen-netfront compares with v86's own cards.
import { cachedFiles, readGuestFile, readV86Module } from '../src/guests/linux/files.js';
import { LinuxGuest } from '../src/guests/linux/guest.js';
import { linuxOf } from '../src/guests/linux/kind.js';
import { spawnNodeWorker } from '../src/guests/linux/spawn-node-worker.js';
import { parseDomain } from '../src/toolstack/domain-config.js';
import { writeDomain } from '../src/toolstack/domain-store.js';
import { Host } from '../src/toolstack/host.js';

const FRAME_BYTES = 1500;
const FRAMES = 20_000;
/** The JIT compiles during the first; the best of all counts. */
const ROUNDS = 5;
const MEMORY_MIB = 128;

interface Shell {
  onOutput(listener: (text: string) => void): () => void;
  type(text: string): void;
}

function run(shell: Shell, command: string): Promise<string> {
  return new Promise(resolve => {
    let seen = '';
    const stop = shell.onOutput(text => {
      seen += text;
      const match = /done-(\d+)\r?\n/.exec(seen);
      if (match === null) return;
      stop();
      resolve(seen.slice(0, match.index));
    });
    shell.type(`${command}; echo done''-$?\n`);
  });
}

/**
 * pktgen's frames from one interface of a guest by second of this process's CPU time, at its best: another
 * program on the machine disturbs that less than the clock's seconds.
 */
async function pktgen(shell: Shell, device: string): Promise<number> {
  const settings = [`count ${FRAMES}`, `pkt_size ${FRAME_BYTES - 4}`, 'delay 0', 'dst 10.0.0.9'];
  const words = [...settings, 'dst_mac 00:16:3e:ff:ff:01'].map(setting => `echo "${setting}" > $P/${device}`);
  await run(shell, `modprobe pktgen; P=/proc/net/pktgen; ip link set ${device} up`);
  await run(shell, `echo rem_device_all > $P/kpktgend_0; echo add_device ${device} > $P/kpktgend_0`);
  await run(shell, words.join('; '));
  let best = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const before = process.cpuUsage();
    await run(shell, 'echo start > $P/pgctrl');
    const { user, system } = process.cpuUsage(before);
    best = Math.max(best, Math.round(FRAMES / ((user + system) / 1e6)));
  }
  return best;
}

function line(what: string, value: string): void {
  process.stdout.write(`${what.padEnd(44)} ${value}\n`);
}

function rate(pps: number): string {
  return `${pps} frames per CPU second, ${((pps * FRAME_BYTES * 8) / 1e6).toFixed(0)} Mbit/s`;
}

async function ownCard(host: Host, type: 'virtio' | 'ne2k'): Promise<number> {
  const files = cachedFiles()!;
  const modules = type === 'virtio' ? 'virtio_pci,virtio_net' : 'ne2k-pci';
  const guest = await LinuxGuest.create({
    spawn: spawnNodeWorker,
    module: readV86Module(),
    kernel: readGuestFile(files.kernel, 'the kernel'),
    ramdisk: readGuestFile(files.ramdisk, 'the ramdisk'),
    bios: readGuestFile(files.bios, 'the BIOS'),
    vgaBios: readGuestFile(files.vgaBios, 'the VGA BIOS'),
    memoryMib: MEMORY_MIB,
    extra: `pvnet.modules=${modules}`,
    networkCard: type,
  });
  const domain = host.hypervisor.createDomain({ name: type, ...guest.domainOptions });
  await writeDomain(host.xs, { domid: domain.domid, name: type, uuid: type, memoryMib: MEMORY_MIB });
  await host.xs.introduce(domain.domid, host.hypervisor.frames.gfn[domain.storePage], domain.storePort);
  await guest.start(domain, host.dom0);
  await guest.whenUp();
  line(`boot (${type})`, `${(guest.bootMs! / 1000).toFixed(1)} s`);
  const pps = await pktgen(guest, 'eth0');
  await guest.destroy();
  domain.destroy();
  return pps;
}

if (cachedFiles() === null) {
  process.stderr.write('there is no Linux for guests: "pvnet linux fetch" gets it\n');
  process.exit(1);
}
const host = await Host.start();
const start = performance.now();
const hosted = await host.create(
  parseDomain('name = "linux"\nguest = "linux"\nvif = [ "ip=10.0.0.2" ]', 'bench.cfg'),
);
const created = performance.now() - start;
await host.settled(hosted);
line('create from the snapshot', `${(created / 1000).toFixed(2)} s`);
line('until its vif is configured', `${((performance.now() - start) / 1000).toFixed(2)} s`);
const netfront = await pktgen(linuxOf(hosted.booted!.guest)!, 'eth0');
line(`xen-netfront → netback, ${FRAME_BYTES} bytes`, rate(netfront));
await host.destroy(hosted);
for (const type of ['virtio', 'ne2k'] as const) {
  const pps = await ownCard(host, type);
  line(
    `v86's own ${type}, ${FRAME_BYTES} bytes`,
    `${rate(pps)} (netfront: ${(netfront / pps).toFixed(1)} times)`,
  );
}
await host.abandon();
process.exit(0);
