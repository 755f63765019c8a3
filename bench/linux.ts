// node dist/bench/linux.js: how fast Linux guests start, and how their xen-netfront compares with v86's own cards.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cachedFiles, readGuestFile, readOurRamdisk, readV86Module } from '../src/guests/linux/files.js';
import { LinuxGuest } from '../src/guests/linux/guest.js';
import { linuxOf } from '../src/guests/linux/kind.js';
import { spawnNodeWorker } from '../src/guests/linux/spawn-node-worker.js';
import { parseDomain } from '../src/toolstack/domain-config.js';
import { writeDomain } from '../src/toolstack/domain-store.js';
import { Host } from '../src/toolstack/host.js';

const FRAME_BYTES = 1500;
const FRAMES = 20_000;
const TCP_BYTES = 64 << 20;
/** The JIT compiles during the first; the best of all counts. */
const ROUNDS = 8;
const TCP_ROUNDS = 3;
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

/** CPU time in microseconds. */
interface Cost {
  readonly guest: number;
  readonly host: number;
}

/** Of this process so far: its main thread is the host's; all others work for the guest that is busy. */
function cpuTime(): Cost {
  const { user, system } = process.cpuUsage();
  const [running] = readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ');
  const host = Number(running) / 1e3;
  return { host, guest: user + system - host };
}

/** What `work` costs. */
async function costOf(work: () => Promise<unknown>): Promise<Cost> {
  const before = cpuTime();
  await work();
  const after = cpuTime();
  return { host: after.host - before.host, guest: after.guest - before.guest };
}

/**
 * The time of the busier thread: what it takes where each has a core to itself. In CPU time, as another program on the
 * machine disturbs that less than the clock's time.
 */
const busier = ({ host, guest }: Cost): number => Math.max(host, guest);

const UNKNOWN: Cost = { host: Number.POSITIVE_INFINITY, guest: Number.POSITIVE_INFINITY };

/** A network interface of a guest, and what it has done at its best. */
class Contender {
  best = UNKNOWN;

  constructor(
    readonly name: string,
    readonly shell: Shell,
  ) {}

  async prepare(): Promise<void> {
    const settings = [`count ${FRAMES}`, `pkt_size ${FRAME_BYTES - 4}`, 'delay 0', 'dst 10.0.0.9'];
    const words = [...settings, 'dst_mac 00:16:3e:ff:ff:01'].map(setting => `echo "${setting}" > $P/eth0`);
    await run(this.shell, 'modprobe pktgen; P=/proc/net/pktgen; ip link set eth0 up');
    await run(this.shell, 'echo rem_device_all > $P/kpktgend_0; echo add_device eth0 > $P/kpktgend_0');
    await run(this.shell, words.join('; '));
  }

  async round(): Promise<void> {
    this.best = better(this.best, await costOf(() => run(this.shell, 'echo start > $P/pgctrl')));
  }
}

function better(a: Cost, b: Cost): Cost {
  return busier(b) < busier(a) ? b : a;
}

function line(what: string, value: string): void {
  process.stdout.write(`${what.padEnd(44)} ${value}\n`);
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`;
}

function inFrames(cost: Cost): string {
  const pps = (FRAMES / busier(cost)) * 1e6;
  const each = `${(cost.guest / FRAMES).toFixed(1)} + ${(cost.host / FRAMES).toFixed(1)} µs`;
  return `${pps.toFixed(0)} frames, ${((pps * FRAME_BYTES * 8) / 1e6).toFixed(0)} Mbit/s; ${each} a frame`;
}

/** A guest with one of v86's own cards; what it sends goes nowhere. */
async function ownCard(host: Host, type: 'virtio' | 'ne2k'): Promise<Contender> {
  const files = cachedFiles()!;
  const modules = type === 'virtio' ? 'virtio_pci,virtio_net' : 'ne2k-pci';
  const guest = await LinuxGuest.create({
    spawn: spawnNodeWorker,
    module: readV86Module(),
    kernel: readGuestFile(files.kernel, 'the kernel'),
    ramdisk: readOurRamdisk(),
    bios: readGuestFile(files.bios, 'the BIOS'),
    vgaBios: readGuestFile(files.vgaBios, 'the VGA BIOS'),
    memoryMib: MEMORY_MIB,
    extra: `pvnet.modules=${modules}`,
    networkCard: type,
  });
  const domain = host.hypervisor.createDomain({ name: type, ...guest.domainOptions });
  await writeDomain(host.xs, { domid: domain.domid, name: type, uuid: type, memoryMib: MEMORY_MIB });
  await host.xs.introduce(domain.domid, host.hypervisor.frames.gfn[domain.storePage], domain.storePort);
  const cost = await costOf(async () => {
    await guest.start(domain, host.dom0);
    await guest.whenUp();
  });
  line(`boot (${type})`, `${seconds(guest.bootMs!)}, ${seconds(cost.guest / 1000)} of CPU time`);
  return new Contender(`v86's own ${type}`, guest);
}

/** TCP to a namespace of this machine, which needs root. */
async function tcp(host: Host, shell: Shell): Promise<void> {
  const space = await host.create(
    parseDomain('name = "space"\nguest = "netns"\nvif = [ "ip=10.0.0.1" ]', 'space.cfg'),
  );
  await host.settled(space);
  const [file, ...args] = space.booted!.guest.command!(['iperf3', '-s']);
  const server = spawn(file, args, { stdio: 'ignore' });
  try {
    for (const [what, offload] of [
      ['GSO', 'on'],
      ['frames of 1500 bytes', 'off'],
    ]) {
      await run(shell, `ethtool -K eth0 tso ${offload} gso ${offload}; sleep 1`);
      let best = UNKNOWN;
      for (let round = 0; round < TCP_ROUNDS; round++) {
        const transfer = () => run(shell, `iperf3 -c 10.0.0.1 -n ${TCP_BYTES} > /dev/null`);
        best = better(best, await costOf(transfer));
      }
      const each = `${seconds(best.guest / 1000)} + ${seconds(best.host / 1000)} for ${TCP_BYTES >> 20} MiB`;
      line(`xen-netfront, TCP, ${what}`, `${((TCP_BYTES * 8) / busier(best)).toFixed(0)} Mbit/s; ${each}`);
    }
  } finally {
    server.kill();
  }
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
line('create from the snapshot', seconds(created));
line('until its vif is configured', seconds(performance.now() - start));

const netfront = new Contender('xen-netfront → netback', linuxOf(hosted.booted!.guest)!);
const contenders = [netfront, await ownCard(host, 'virtio'), await ownCard(host, 'ne2k')];
line('', '(figures are for a second of CPU time of the busier thread; guest + host)');
for (const contender of contenders) await contender.prepare();
for (let round = 0; round < ROUNDS; round++) {
  for (const contender of contenders) await contender.round();
}
for (const { name, best } of contenders) {
  const times = (busier(best) / busier(netfront.best)).toFixed(2);
  const compared = best === netfront.best ? '' : `; netfront does ${times} times as many`;
  line(`${name}, ${FRAME_BYTES} bytes`, `${inFrames(best)}${compared}`);
}
if (process.getuid?.() === 0) await tcp(host, netfront.shell);
await host.abandon();
process.exit(0);
