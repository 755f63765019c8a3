import type { Irqs } from '../../events/index.js';
import type { Platform } from '../../platform/index.js';
import type { Domain, DomainOptions } from '../../platform/sim/index.js';
import type { SavedHypercalls } from './hypercalls.js';
import { Machine, type MachineOptions } from './machine.js';
import { Personality } from './personality.js';
import { PvConsole } from './pv-console.js';

/** Output that a console keeps for whoever looks later. */
const SCROLLBACK_BYTES = 64 << 10;
const MIN_MEMORY_MIB = 64;

/** Options of every boot: no Plug-and-Play BIOS, no self-tests, nothing that an emulator pays for and nobody needs. */
const COMMAND_LINE =
  'console=hvc0 noisapnp cryptomgr.notests quiet tsc=reliable mitigations=off random.trust_cpu=on';
/** What our init prints when it is done, and its agent for each vif that it has configured. */
const UP = 'pvnet: up after';
const VIF_UP = /pvnet: vif (\d+) is /g;

export interface LinuxGuestOptions {
  /** v86.wasm. */
  readonly module: Uint8Array;
  readonly kernel: Uint8Array;
  readonly ramdisk?: Uint8Array;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array;
  readonly memoryMib: number;
  /** Words for the end of the kernel's command line. */
  readonly extra?: string;
  /** One of v86's own network cards, to compare with. */
  readonly networkCard?: MachineOptions['networkCard'];
}

/** A guest that was suspended and then saved. */
export interface SavedLinux {
  readonly memoryMib: number;
  readonly hypercalls: SavedHypercalls;
  /** Vifs that it had configured, by devid: after a restore they are again what they were. */
  readonly vifs: readonly number[];
  /** The machine, as v86 saves it. */
  readonly machine: Uint8Array;
}

/**
 * A real Linux kernel as a domain of the simulated host: `create` makes the machine, a domain is created with
 * `domainOptions`, `start` boots the one as the other.
 */
export class LinuxGuest {
  readonly domainOptions: Partial<DomainOptions>;
  /** Milliseconds of the host's clock from `start` until the guest's init was done; null until then. */
  bootMs: number | null = null;
  private domain: Domain | null = null;
  private console: PvConsole | null = null;
  private output = '';
  /** What came since the last end of a line. */
  private line = '';
  /** Vifs that our agent has configured at some time, by devid. */
  private readonly vifsUp = new Set<number>();
  private readonly listeners = new Set<(text: string) => void>();
  private readonly decoder = new TextDecoder('latin1');
  private isUp = false;
  private startedAt = 0;
  private destroyed = false;
  private unlisten: (() => void) | null = null;
  private readonly upWaiters: (() => void)[] = [];

  private constructor(
    readonly machine: Machine,
    readonly personality: Personality,
    readonly memoryMib: number,
  ) {
    this.domainOptions = Personality.domainOptions(machine);
  }

  static async create(options: LinuxGuestOptions): Promise<LinuxGuest> {
    const memoryMib = Math.max(options.memoryMib, MIN_MEMORY_MIB);
    let guest: LinuxGuest | null = null;
    const personality = new Personality(text => guest?.emit(text));
    const machine = await Machine.create({
      module: options.module,
      bios: options.bios,
      vgaBios: options.vgaBios,
      kernel: options.kernel,
      ramdisk: options.ramdisk,
      commandLine: `${COMMAND_LINE} ${options.extra ?? ''}`.trim(),
      memoryBytes: memoryMib << 20,
      host: personality,
      networkCard: options.networkCard,
    });
    guest = new LinuxGuest(machine, personality, memoryMib);
    return guest;
  }

  /**
   * Boots, or goes on from where a saved guest was suspended.
   * @param dom0 whose kernel has the other end of the console
   */
  async start(
    domain: Domain,
    dom0: { platform: Platform; irqs: Irqs },
    saved: SavedLinux | null = null,
  ): Promise<void> {
    const { hypervisor } = domain;
    this.domain = domain;
    this.startedAt = hypervisor.scheduler.now();
    this.personality.attach(this.machine, domain);
    this.console = new PvConsole(dom0, domain, bytes => this.emit(this.decoder.decode(bytes)));
    // A domain that has shut down or suspended does not run on.
    this.unlisten = hypervisor.onDomainChange(changed => {
      if (changed === domain && domain.state !== 'running') void this.machine.stop();
    });
    if (saved !== null) {
      await this.machine.restore(saved.machine);
      this.personality.hypercalls!.restore(saved.hypercalls);
      this.isUp = true;
      for (const devid of saved.vifs) this.vifsUp.add(devid);
    }
    this.machine.run();
  }

  /** The state of a guest whose domain is suspended. */
  async save(): Promise<SavedLinux> {
    await this.machine.stop();
    return {
      memoryMib: this.memoryMib,
      hypercalls: this.personality.hypercalls!.saved,
      vifs: [...this.vifsUp],
      machine: await this.machine.save(),
    };
  }

  /**
   * Goes on after a suspend, in a domain that runs again.
   * @param cancelled what its kernel is told: whether the suspend was called off, or its devices must connect anew
   */
  resume(cancelled: boolean): void {
    this.personality.hypercalls!.resumed = cancelled ? 1 : 0;
    this.machine.run();
  }

  private emit(text: string): void {
    this.output = (this.output + text).slice(-SCROLLBACK_BYTES);
    this.line += text;
    if (this.line.includes('\n')) {
      const end = this.line.lastIndexOf('\n');
      this.readLines(this.line.slice(0, end));
      this.line = this.line.slice(end + 1);
    }
    for (const listener of this.listeners) listener(text);
  }

  private readLines(lines: string): void {
    if (!this.isUp && lines.includes(UP)) {
      this.isUp = true;
      this.bootMs = this.domain!.hypervisor.scheduler.now() - this.startedAt;
      this.wakeWaiters();
    }
    for (const [, devid] of lines.matchAll(VIF_UP)) {
      this.vifsUp.add(Number(devid));
      this.wakeWaiters();
    }
  }

  /** The last of what the console showed. */
  get scrollback(): string {
    return this.output;
  }

  /** Calls `listener` with what the console shows from here on. @returns what ends that */
  onOutput(listener: (text: string) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Types into the console. */
  type(text: string): void {
    this.console?.write(Uint8Array.from(text, character => character.charCodeAt(0)));
  }

  /** Resolves when our init has run and has configured these vifs, or the guest is no more. */
  async whenUp(devids: readonly number[] = []): Promise<void> {
    while (!this.destroyed && !(this.isUp && devids.every(devid => this.vifsUp.has(devid)))) {
      await new Promise<void>(resolve => this.upWaiters.push(resolve));
    }
  }

  private wakeWaiters(): void {
    for (const resolve of this.upWaiters.splice(0)) resolve();
  }

  /** Our init has run. Always false for a ramdisk of somebody else's. */
  get up(): boolean {
    return this.isUp;
  }

  async destroy(): Promise<void> {
    if (this.destroyed) return;
    this.destroyed = true;
    this.wakeWaiters();
    this.unlisten?.();
    this.console?.close();
    await this.machine.destroy();
  }
}
