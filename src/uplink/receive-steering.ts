import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { libc } from '../platform/linux/libc.js';

/** Frames of one poll that make a burst: segments come by dozens, acknowledgements and GSO frames a few at a time. */
const BURST_FRAMES = 16;
/** How often to decide, and how many frames of a window are many. */
const WINDOW_MS = 100;
const BUSY_FRAMES = 1000;
/** With one there is none to steer to. */
const CPUS = cpus().length;
/** Bits of a word in the kernel's notation for sets of CPUs. */
const WORD_BITS = 32n;

/**
 * Who runs the kernel's stack for what is written to a TAP. By default the writer does; and with an acknowledgement
 * that is all that TCP sends next, too, which takes long when it has to be cut into segments without TSO. While such an
 * interface sends long bursts, its receive queue is steered to the CPUs of our NUMA node that we do not run on (RPS,
 * Documentation/networking/scaling.rst). Otherwise it is not: waking another CPU takes longer than most frames do.
 *
 * What somebody else has set is left alone. It takes CAP_NET_ADMIN of the machine; without, nothing is steered.
 */
export class ReceiveSteering {
  private readonly file: string;
  private since = 0;
  private frames = 0;
  private inBursts = 0;
  /** The CPU that the others of its node were set for; -1 while nothing is steered. */
  private own = -1;
  private impossible = CPUS < 2;

  /** @param interfaceFolder the interface's in sysfs */
  constructor(interfaceFolder: string) {
    this.file = `${interfaceFolder}/queues/rx-0/rps_cpus`;
  }

  /** @param frames how many one poll brought, at least 1; @param now in ms */
  polled(frames: number, now: number): void {
    this.frames += frames;
    if (frames >= BURST_FRAMES) this.inBursts += frames;
    if (now - this.since < WINDOW_MS) return;
    const busy = this.inBursts >= BUSY_FRAMES && this.inBursts * 2 >= this.frames;
    this.since = now;
    this.frames = 0;
    this.inBursts = 0;
    this.steer(busy);
  }

  /** Steers nothing any more. */
  stop(): void {
    this.steer(false);
  }

  private steer(on: boolean): void {
    if (this.impossible) return;
    const own = on ? libc().schedGetcpu() : -1;
    if (own === this.own) return;
    try {
      if (this.own < 0 && readCpus(this.file) !== 0n) return;
      // Never makes a file.
      writeFileSync(this.file, on ? otherCpus(own) : '0', { flag: 'r+' });
      this.own = own;
    } catch {
      // Not root, no RPS in this kernel, or the interface has another name or is gone: it works without.
      this.impossible = true;
    }
  }
}

/** The CPUs of a CPU's node but itself, in hexadecimal words with commas between. */
function otherCpus(own: number): string {
  let rest = nodeCpus(own) & ~(1n << BigInt(own));
  const words: string[] = [];
  do {
    words.unshift((rest & 0xffff_ffffn).toString(16).padStart(8, '0'));
    rest >>= WORD_BITS;
  } while (rest > 0n);
  return words.join();
}

/** The CPUs of a CPU's NUMA node, a bit each; all CPUs where the kernel knows of no nodes. */
function nodeCpus(cpu: number): bigint {
  const folder = `/sys/devices/system/cpu/cpu${cpu}`;
  const node = readdirSync(folder).find(name => /^node\d+$/.test(name));
  if (node === undefined) return (1n << BigInt(CPUS)) - 1n;
  return readCpus(`${folder}/${node}/cpumap`);
}

/** A set of CPUs in the kernel's notation, a bit each. */
function readCpus(file: string): bigint {
  return BigInt(`0x${readFileSync(file, 'utf8').trim().replaceAll(',', '')}`);
}
