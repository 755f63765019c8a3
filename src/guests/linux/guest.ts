import type { Irqs } from '../../events/index.js';
import { PAGE_SIZE, type Platform } from '../../platform/index.js';
import { BANK_SHIFT, type Domain, type DomainOptions } from '../../platform/sim/index.js';
import { MACHINE_CALL, WORD } from './control-block.js';
import { LinuxGuestError } from './files.js';
import { ForeignPages } from './foreign-pages.js';
import { GuestMemory } from './guest-memory.js';
import { GuestThread, type GuestThreadPort } from './guest-thread.js';
import { AGAIN, Hypercalls, type SavedHypercalls } from './hypercalls.js';
import { Lines } from './lines.js';
import { compileV86, type MachineParts } from './machine.js';
import { PvConsole } from './pv-console.js';
import type { WebAssemblyModule } from './webassembly.js';

/** Output that a console keeps for whoever looks later. */
const SCROLLBACK_BYTES = 64 << 10;
const MIN_MEMORY_MIB = 64;

/** Where the guest finds its rings: pages below the BIOS. */
const STORE_GFN = 0xfef00;
const CONSOLE_GFN = 0xfef01;
/** What a guest's thread knows as the bank of machine memory. */
const MACHINE_BANK = 0;
const NOWHERE = -1;

/** Options of every boot: no Plug-and-Play BIOS, no self-tests, nothing that an emulator pays for and nobody needs. */
const COMMAND_LINE =
  'console=hvc0 noisapnp cryptomgr.notests quiet tsc=reliable mitigations=off random.trust_cpu=on';
/** What our init prints when it is done, and its agent for each vif that it has configured. */
const UP = 'pvnet: up after';
const VIF_UP = /pvnet: vif (\d{1,5}) is /g;

export interface LinuxGuestOptions {
  /** Starts the thread that it is to run in. */
  readonly spawn: () => GuestThreadPort;
  /** v86.wasm. */
  readonly module: Uint8Array;
  /** None for a guest that only goes on from a saved one. */
  readonly kernel?: Uint8Array;
  readonly ramdisk?: Uint8Array;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array;
  readonly memoryMib: number;
  /** Words for the end of the kernel's command line. */
  readonly extra?: string;
  /** One of v86's own network cards, to compare with. */
  readonly networkCard?: MachineParts['networkCard'];
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
  private hypercalls!: Hypercalls;
  private console: PvConsole | null = null;
  private output = '';
  private readonly lines = new Lines();
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
    private readonly thread: GuestThread,
    readonly memoryMib: number,
  ) {
    this.domainOptions = {
      wordBits: 32,
      storeGfn: STORE_GFN,
      consoleGfn: CONSOLE_GFN,
      bank: {
        memory: thread.ram,
        pages: thread.ram.u8.length / PAGE_SIZE,
        threaded: true,
        written: (address, bytes) => thread.written(address, bytes),
        deliver: port => thread.deliver(port),
      },
    };
  }

  /** @throws V86PatchError for another v86 than this was made for; what the thread fails of */
  static async create(options: LinuxGuestOptions): Promise<LinuxGuest> {
    const memoryMib = Math.max(options.memoryMib, MIN_MEMORY_MIB);
    const memoryBytes = memoryMib << 20;
    const thread = await GuestThread.create(options.spawn, {
      module: await compiledModule(options.module, memoryBytes),
      bios: options.bios,
      vgaBios: options.vgaBios,
      kernel: options.kernel,
      ramdisk: options.ramdisk,
      commandLine: `${COMMAND_LINE} ${options.extra ?? ''}`.trim(),
      memoryBytes,
      networkCard: options.networkCard,
    });
    return new LinuxGuest(thread, memoryMib);
  }

  /**
   * Boots, or goes on from where a saved guest was suspended.
   * @param dom0 whose kernel has the other end of the console
   * @param saved is handed over: it is of no use afterwards
   * @throws LinuxGuestError EINVAL for a saved one that is damaged
   */
  async start(
    domain: Domain,
    dom0: { platform: Platform; irqs: Irqs },
    saved: SavedLinux | null = null,
  ): Promise<void> {
    const { hypervisor } = domain;
    this.domain = domain;
    this.startedAt = hypervisor.scheduler.now();
    this.attach(domain);
    this.console = new PvConsole(dom0, domain, bytes => this.emit(this.decoder.decode(bytes)));
    this.unlisten = hypervisor.onDomainChange(changed => {
      // A domain that has shut down or suspended does not run on.
      if (changed === domain && domain.state !== 'running') void this.thread.stop();
      if (changed.state === 'dead' && changed.bank !== MACHINE_BANK) this.thread.forget(changed.bank);
    });
    if (saved !== null) {
      await this.thread.restore(saved.machine).catch(error => {
        throw new LinuxGuestError('EINVAL', `the saved guest: machine: it is damaged (${error.message})`);
      });
      this.hypercalls.restore(saved.hypercalls);
      this.isUp = true;
      for (const devid of saved.vifs) this.vifsUp.add(devid);
    }
    this.publish();
    await this.thread.run();
  }

  /** Joins the machine with its domain. */
  private attach(domain: Domain): void {
    const { thread } = this;
    const { hypervisor } = domain;
    const memory = new GuestMemory(thread.ram);
    const foreign = new ForeignPages(thread.ram, thread.control, (at, bytes) => thread.written(at, bytes));
    const reaches = (bank: number): boolean =>
      bank === MACHINE_BANK || thread.reaches(bank, hypervisor.memoryOf(bank << BANK_SHIFT));
    this.hypercalls = new Hypercalls({
      domain,
      ram: thread.ram,
      memory,
      foreign,
      reaches,
      onConsole: text => this.emit(text),
    });
    const { words } = thread.control;
    thread.attach(
      {
        send: port => hypervisor.events.send(domain, port),
        call: (number, a, b, c) => {
          memory.setRegisters(words[WORD.cr0], words[WORD.cr3], words[WORD.cr4]);
          const result = this.call(number, a, b, c);
          this.publish();
          return result;
        },
        serial: text => this.emit(text),
        failed: error => {
          domain.log(`its emulator failed: ${error.stack ?? error.message}`);
          domain.shutdown('crash');
        },
      },
      hypervisor.scheduler,
    );
    thread.reaches(MACHINE_BANK, hypervisor.memory);
    foreign.show(STORE_GFN, domain.storePage);
    foreign.show(CONSOLE_GFN, domain.consolePage);
  }

  private call(number: number, a: number, b: number, c: number): number | typeof AGAIN {
    const domain = this.domain!;
    if (domain.state !== 'running') return AGAIN;
    switch (number) {
      case MACHINE_CALL.halted:
        // What is left to do after power-off without ACPI.
        domain.shutdown('poweroff');
        return 0;
      case MACHINE_CALL.reset:
        domain.shutdown('reboot');
        return 0;
      default:
        return this.hypercalls.call(number, a, b, c);
    }
  }

  /** Tells the guest's thread what it needs to know of the domain. */
  private publish(): void {
    const { words } = this.thread.control;
    const { ram } = this.thread;
    const { sharedMemory, sharedInfo, vcpus } = this.domain!;
    const [vcpu] = vcpus;
    words[WORD.vector] = this.hypercalls.vector;
    words[WORD.sharedInfo] = sharedMemory === ram ? sharedInfo : NOWHERE;
    words[WORD.vcpuInfo] = vcpu.memory === ram ? vcpu.info : NOWHERE;
  }

  /** The state of a guest whose domain is suspended. */
  async save(): Promise<SavedLinux> {
    await this.thread.stop();
    return {
      memoryMib: this.memoryMib,
      hypercalls: this.hypercalls.saved,
      vifs: [...this.vifsUp],
      machine: await this.thread.save(),
    };
  }

  /**
   * Goes on after a suspend, in a domain that runs again.
   * @param cancelled what its kernel is told: whether the suspend was called off, or its devices must connect anew
   */
  async resume(cancelled: boolean): Promise<void> {
    this.hypercalls.resumed = cancelled ? 1 : 0;
    await this.thread.run();
  }

  private emit(text: string): void {
    this.output = (this.output + text).slice(-SCROLLBACK_BYTES);
    this.readLines(this.lines.add(text));
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

  async destroy(): Promise<void> {
    if (this.destroyed) return;
    this.destroyed = true;
    this.wakeWaiters();
    this.unlisten?.();
    this.console?.close();
    await this.thread.destroy();
  }
}

/** v86 that was compiled, by what it was compiled from and how much RAM it is for. */
const compiled = new WeakMap<Uint8Array, Map<number, Promise<WebAssemblyModule>>>();

/** Compiled once for all guests of the same size: their threads share the code. */
function compiledModule(module: Uint8Array, memoryBytes: number): Promise<WebAssemblyModule> {
  const sizes = compiled.get(module) ?? new Map<number, Promise<WebAssemblyModule>>();
  compiled.set(module, sizes);
  const known = sizes.get(memoryBytes) ?? compileV86(module, memoryBytes);
  sizes.set(memoryBytes, known);
  return known;
}
