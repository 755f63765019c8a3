import { V86 } from 'v86';
import { Memory, PAGE_SIZE } from '../../platform/index.js';
import { HOOK, patchV86, shareImportedMemory } from './v86-module.js';
import {
  type WebAssemblyGlobal,
  type WebAssemblyMemory,
  type WebAssemblyTable,
  webAssembly,
} from './webassembly.js';

/** General registers by their x86 number. */
export const REGISTER = { eax: 0, ecx: 1, edx: 2, ebx: 3, esp: 4, ebp: 5, esi: 6, edi: 7 } as const;

/** Memory of v86's own beside the guest's RAM: its tables, compiled code, the screen. */
const EMULATOR_BYTES = 96 << 20;
const VGA_BYTES = 2 << 20;
const WASM_PAGE_BYTES = 65536;
/** Where v86 keeps its functions for compiled code in the table (WASM_TABLE_OFFSET). */
const COMPILED_CODE_IN_TABLE = 1024;
/** v86 hands memory-mapped registers out in blocks of this size. */
const MMIO_BLOCK_BYTES = 1 << 17;

/** What the machine asks of whoever plays its hypervisor. Everything runs inside an instruction. */
export interface MachineHost {
  /** CPUID. @returns whether the registers were set */
  cpuid(machine: Machine): boolean;
  /** WRMSR. @returns whether the register is the hypervisor's */
  writeMsr(machine: Machine): boolean;
  /** RDMSR. @returns whether the register is the hypervisor's */
  readMsr(machine: Machine): boolean;
  /** VMCALL or VMMCALL in ring 0: number in eax, arguments in ebx, ecx, edx, esi, edi; the result into eax. */
  hypercall(machine: Machine): void;
  /** The processor takes interrupts, and `setUpcall(true)` was called. @returns the vector, or 0 for none */
  upcallVector(machine: Machine): number;
  /** The processor halted with interrupts off, as after power-off: it will not go on. */
  halted(machine: Machine): void;
  /** The machine is to be reset, by its keyboard controller or PCI bus. */
  reset(machine: Machine): void;
  /** Which page to use in place of a guest-physical one; asked while `setForeign(true)`. */
  translatePage(page: number): number;
}

/** Reads and writes of memory-mapped registers, by guest-physical address. */
export interface MmioHandler {
  read8(address: number): number;
  write8(address: number, value: number): void;
  read32(address: number): number;
  write32(address: number, value: number): void;
}

export interface MachineOptions {
  /** v86.wasm as it comes in the package. */
  module: Uint8Array;
  bios: Uint8Array;
  vgaBios: Uint8Array;
  /** A Linux kernel with the boot protocol (bzImage). */
  kernel: Uint8Array;
  ramdisk?: Uint8Array | undefined;
  commandLine: string;
  /** Guest RAM: a multiple of 128 KiB. */
  memoryBytes: number;
  host: MachineHost;
  /** Gets each byte of the first serial port. */
  onSerial?: (byte: number) => void;
  /** One of v86's own network cards, to compare with, and who gets what it sends. */
  networkCard?: { type: 'virtio' | 'ne2k'; onFrame: (frame: Uint8Array) => void } | undefined;
}

interface CpuIo {
  mmap_register(
    address: number,
    bytes: number,
    read8: (address: number) => number,
    write8: (address: number, value: number) => void,
    read32: (address: number) => number,
    write32: (address: number, value: number) => void,
  ): void;
  register_read(
    port: number,
    device: object,
    read8: () => number,
    read16?: () => number,
    read32?: () => number,
  ): void;
  register_write(
    port: number,
    device: object,
    write8: (value: number) => void,
    write16?: (value: number) => void,
    write32?: (value: number) => void,
  ): void;
}

interface Cpu {
  readonly io: CpuIo;
  readonly devices: { readonly pci: { register_device(device: object): void } };
  readonly reg32: Int32Array;
  readonly cpl: Uint8Array;
  readonly in_hlt: Uint8Array;
  readonly instruction_pointer: Int32Array;
  readonly previous_ip: Int32Array;
  readonly mem8: Uint8Array;
  translate_address_system_read(virtual: number): number;
  reboot_internal: () => void;
}

interface Exports {
  readonly memory: WebAssemblyMemory;
  readonly xen_upcall: WebAssemblyGlobal;
  readonly xen_foreign: WebAssemblyGlobal;
  handle_irqs(): void;
  full_clear_tlb(): void;
  jit_dirty_cache(start: number, end: number): void;
  codegen_finalize_finished(index: number, start: number, stateFlags: number): void;
  readonly [name: string]: unknown;
}

/** What v86 imports, as it passes it to `wasm_fn`. */
interface Environment {
  io_port_read32(port: number): number;
  cpu_event_halt: () => void;
  codegen_finalize(index: number, start: number, stateFlags: number, code: number, length: number): void;
  readonly __indirect_function_table: WebAssemblyTable;
}

interface Emulator {
  readonly v86: { readonly cpu: Cpu; readonly idle: boolean; next_tick(delayMs: number): void };
  add_listener(event: string, listener: (value: never) => void): void;
  run(): Promise<void>;
  stop(): Promise<void>;
  destroy(): Promise<void>;
  save_state(): Promise<ArrayBuffer>;
  restore_state(state: ArrayBuffer): Promise<void>;
  serial0_send(text: string): void;
}

/** A port of a device that the machine does not have by itself; widths that are left out read as all ones. */
export interface PortHandler {
  read8?(): number;
  read16?(): number;
  read32?(): number;
  write8?(value: number): void;
  write16?(value: number): void;
  write32?(value: number): void;
}

/** An emulated PC that a hypervisor of ours serves. */
export class Machine {
  /** The guest's RAM: guest-physical address 0 is its byte 0. Shared between threads, and never moves. */
  readonly ram: Memory;
  readonly pages: number;
  private readonly cpu: Cpu;
  /** The processor is running, so that what it must see next it will see without being woken. */
  private inHook = false;
  /** Where the instruction is that is being done for the guest. */
  private instructionAt = 0;

  private constructor(
    private readonly emulator: Emulator,
    private readonly exports: Exports,
    private readonly host: MachineHost,
  ) {
    this.cpu = emulator.v86.cpu;
    const { byteOffset, length } = this.cpu.mem8;
    this.ram = new Memory(exports.memory.buffer, byteOffset, length);
    this.pages = length / PAGE_SIZE;
  }

  /** A machine that has not run yet. */
  static create(options: MachineOptions): Promise<Machine> {
    const maximumPages = Math.ceil((options.memoryBytes + EMULATOR_BYTES) / WASM_PAGE_BYTES);
    let machine: Machine | null = null;
    let exports: Exports | null = null;

    const instantiate = async (imports: { env: Environment }): Promise<unknown> => {
      const { env } = imports;
      const readPort = env.io_port_read32;
      env.io_port_read32 = port => {
        if (port < HOOK.first) return readPort(port);
        return machine === null ? 0 : machine.onHook(port);
      };
      const onHalt = env.cpu_event_halt;
      env.cpu_event_halt = () => {
        onHalt();
        if (machine !== null) options.host.halted(machine);
      };
      const { module } = patchV86(options.module, maximumPages);
      let compile: Environment['codegen_finalize'];
      env.codegen_finalize = (...code) => compile(...code);
      const { instance } = await webAssembly.instantiate(module, { env });
      exports = instance.exports as unknown as Exports;
      compile = compiler(exports, env.__indirect_function_table, maximumPages);
      return exports;
    };

    const Emulator = V86 as unknown as new (options: Record<string, unknown>) => Emulator;
    const emulator = new Emulator({
      wasm_fn: instantiate,
      bios: { buffer: arrayBuffer(options.bios) },
      vga_bios: { buffer: arrayBuffer(options.vgaBios) },
      bzimage: { buffer: arrayBuffer(options.kernel) },
      initrd: options.ramdisk === undefined ? undefined : { buffer: arrayBuffer(options.ramdisk) },
      cmdline: options.commandLine,
      memory_size: options.memoryBytes,
      vga_memory_size: VGA_BYTES,
      net_device: { type: options.networkCard?.type ?? 'none' },
      autostart: false,
      // With ACPI the platform device is taken away again by hot-plug.
      acpi: false,
      disable_keyboard: true,
      disable_mouse: true,
      disable_speaker: true,
      log_level: 0,
    });
    const { onSerial, networkCard } = options;
    if (networkCard !== undefined)
      emulator.add_listener('net0-send', networkCard.onFrame as (v: never) => void);
    if (onSerial !== undefined) emulator.add_listener('serial0-output-byte', onSerial as (v: never) => void);
    return new Promise(resolve => {
      emulator.add_listener('emulator-ready', () => {
        const made = new Machine(emulator, exports!, options.host);
        emulator.v86.cpu.reboot_internal = () => options.host.reset(made);
        machine = made;
        resolve(made);
      });
    });
  }

  private onHook(hook: number): number {
    if (hook >= HOOK.page) return this.host.translatePage(hook - HOOK.page);
    this.inHook = true;
    try {
      switch (hook) {
        case HOOK.cpuid:
          return this.host.cpuid(this) ? 1 : 0;
        case HOOK.wrmsr:
          return this.host.writeMsr(this) ? 1 : 0;
        case HOOK.rdmsr:
          return this.host.readMsr(this) ? 1 : 0;
        case HOOK.invalidOpcode:
          return this.isHypercall() ? 1 : 0;
        case HOOK.upcall:
          return this.host.upcallVector(this);
        default:
          return 0;
      }
    } finally {
      this.inHook = false;
    }
  }

  /** VMCALL is 0f 01 c1, VMMCALL 0f 01 d9; v86 has moved the instruction pointer past it or not yet. */
  private isHypercall(): boolean {
    const { cpu } = this;
    if (cpu.cpl[0] !== 0) return false;
    const { u8 } = this.ram;
    for (const at of [cpu.previous_ip[0], cpu.instruction_pointer[0] - 3]) {
      const physical = cpu.translate_address_system_read(at);
      if (u8[physical] !== 0x0f || u8[physical + 1] !== 0x01) continue;
      if (u8[physical + 2] !== 0xc1 && u8[physical + 2] !== 0xd9) continue;
      this.instructionAt = at;
      this.host.hypercall(this);
      return true;
    }
    return false;
  }

  register(number: number): number {
    return this.cpu.reg32[number] >>> 0;
  }

  setRegister(number: number, value: number): void {
    this.cpu.reg32[number] = value;
  }

  /** Has the processor do its current instruction once more, when it goes on. */
  repeatInstruction(): void {
    this.cpu.instruction_pointer[0] = this.instructionAt;
  }

  /** The physical address behind a kernel address of the guest's. */
  physical(virtual: number): number {
    return this.cpu.translate_address_system_read(virtual) >>> 0;
  }

  /** Has the host asked for a vector whenever the processor takes interrupts. */
  setUpcall(wanted: boolean): void {
    this.exports.xen_upcall.value = wanted ? 1 : 0;
    // A processor that waits for an interrupt has one; one that runs looks for itself.
    if (wanted && !this.inHook && this.cpu.in_hlt[0] !== 0) {
      this.exports.handle_irqs();
      this.wake();
    }
  }

  private wake(): void {
    const { v86 } = this.emulator;
    if (v86.idle) v86.next_tick(0);
  }

  /** Has the host asked about every page that is looked up from here on. */
  setForeign(any: boolean): void {
    this.exports.xen_foreign.value = any ? 1 : 0;
    this.exports.full_clear_tlb();
  }

  /** Drops what was compiled from this RAM: something else than the processor wrote it. */
  written(address: number, bytes: number): void {
    this.exports.jit_dirty_cache(address, address + bytes);
  }

  /** @param bytes a multiple of 128 KiB, as is `address` */
  mapMmio(address: number, bytes: number, handler: MmioHandler): void {
    if (address % MMIO_BLOCK_BYTES !== 0 || bytes % MMIO_BLOCK_BYTES !== 0) {
      throw new RangeError(`MMIO at ${address.toString(16)}: want multiples of ${MMIO_BLOCK_BYTES} bytes`);
    }
    this.cpu.io.mmap_register(
      address,
      bytes,
      at => handler.read8(at >>> 0),
      (at, value) => handler.write8(at >>> 0, value),
      at => handler.read32(at >>> 0),
      (at, value) => handler.write32(at >>> 0, value),
    );
  }

  mapPort(port: number, handler: PortHandler): void {
    const { io } = this.cpu;
    const { read8, read16, read32, write8, write16, write32 } = handler;
    const ones = -1;
    io.register_read(
      port,
      handler,
      read8 ?? (() => ones & 0xff),
      read16 ?? (() => ones & 0xffff),
      read32 ?? (() => ones),
    );
    const ignore = () => {};
    io.register_write(port, handler, write8 ?? ignore, write16 ?? ignore, write32 ?? ignore);
  }

  /** @param device as v86's PCI bus takes it */
  addPciDevice(device: object): void {
    this.cpu.devices.pci.register_device(device);
  }

  run(): void {
    void this.emulator.run();
  }

  /** Lets the current slice end; then nothing runs until `run`. */
  stop(): Promise<void> {
    return this.emulator.stop();
  }

  async destroy(): Promise<void> {
    await this.emulator.destroy();
  }

  sendSerial(text: string): void {
    this.emulator.serial0_send(text);
  }

  /** The state of the machine; it must be stopped. */
  async save(): Promise<Uint8Array> {
    return new Uint8Array(await this.emulator.save_state());
  }

  async restore(state: Uint8Array): Promise<void> {
    await this.emulator.restore_state(arrayBuffer(state));
    this.exports.full_clear_tlb();
  }
}

/** v86's codegen_finalize for modules that import shared memory: what the guest's code was compiled to. */
function compiler(
  exports: Exports,
  table: WebAssemblyTable,
  maximumPages: number,
): Environment['codegen_finalize'] {
  const imports: Record<string, unknown> = { m: exports.memory };
  for (const [name, value] of Object.entries(exports)) {
    if (!name.startsWith('_') && !name.startsWith('zstd') && !name.endsWith('_js')) imports[name] = value;
  }
  return (index, start, stateFlags, code, length) => {
    const module = shareImportedMemory(new Uint8Array(exports.memory.buffer, code, length), maximumPages);
    void webAssembly.instantiate(module, { e: imports }).then(({ instance }) => {
      table.set(index + COMPILED_CODE_IN_TABLE, instance.exports['f']);
      exports.codegen_finalize_finished(index, start, stateFlags);
    });
  };
}

function arrayBuffer(bytes: Uint8Array): ArrayBuffer {
  // A Buffer's own slice() would not copy.
  return new Uint8Array(bytes).buffer;
}
