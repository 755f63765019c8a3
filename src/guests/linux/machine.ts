import { V86 } from 'v86';
import { Memory } from '../../platform/index.js';
import { CONTROL_BYTES, ControlBlock, WORD } from './control-block.js';
import { HOOK, patchV86, shareImportedMemory } from './v86-module.js';
import {
  type WebAssemblyGlobal,
  type WebAssemblyMemory,
  type WebAssemblyModule,
  type WebAssemblyTable,
  webAssembly,
} from './webassembly.js';

/** General registers by their x86 number. */
export const REGISTER = { eax: 0, ecx: 1, edx: 2, ebx: 3, esp: 4, ebp: 5, esi: 6, edi: 7 } as const;

/** Memory of v86's own beside the guest's RAM: its tables, compiled code, the screen; and the control block. */
const EMULATOR_BYTES = (96 << 20) + CONTROL_BYTES;
const VGA_BYTES = 2 << 20;
const WASM_PAGE_BYTES = 65536;
/** Where v86 keeps its functions for compiled code in the table (WASM_TABLE_OFFSET). */
const COMPILED_CODE_IN_TABLE = 1024;
/** More instructions than v86 does before it looks at the time again. */
const INSTRUCTIONS_PER_ROUND = 1 << 20;
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
  /** The processor takes interrupts, and there may be an event. @returns the vector, or 0 for none */
  upcallVector(machine: Machine): number;
  /** The processor halted with interrupts off, as after power-off: it will not go on. */
  halted(machine: Machine): void;
  /** The machine is to be reset, by its keyboard controller or PCI bus. */
  reset(machine: Machine): void;
}

/** Registers in a part of the address space that is a power of two in size, and aligned to that. */
export interface MmioWindow extends MmioHandler {
  /** The part is where a guest-physical address >>> shift is this. */
  readonly number: number;
  readonly shift: number;
  write16(address: number, value: number): void;
}

/** Reads and writes of memory-mapped registers, by guest-physical address. */
export interface MmioHandler {
  read8(address: number): number;
  write8(address: number, value: number): void;
  read32(address: number): number;
  write32(address: number, value: number): void;
}

/** What a machine is made of; it can be posted to the thread that is to run it. */
export interface MachineParts {
  /** As `compileV86` gives it for this size of memory. */
  readonly module: WebAssemblyModule;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array;
  /** A Linux kernel with the boot protocol (bzImage); none in a machine that only goes on from a saved state. */
  readonly kernel?: Uint8Array | undefined;
  readonly ramdisk?: Uint8Array | undefined;
  readonly commandLine: string;
  /** Guest RAM: a multiple of 128 KiB. */
  readonly memoryBytes: number;
  /** One of v86's own network cards, to compare with; what it sends goes nowhere. */
  readonly networkCard?: 'virtio' | 'ne2k' | undefined;
}

/** Patches and compiles v86.wasm, as it comes in the package, for machines with that much RAM. */
export function compileV86(module: Uint8Array, memoryBytes: number): Promise<WebAssemblyModule> {
  return webAssembly.compile(patchV86(module, maximumPages(memoryBytes)).module);
}

function maximumPages(memoryBytes: number): number {
  return Math.ceil((memoryBytes + EMULATOR_BYTES) / WASM_PAGE_BYTES);
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
  readonly cr: Int32Array;
  readonly instruction_pointer: Int32Array;
  readonly previous_ip: Int32Array;
  readonly instruction_counter: Int32Array;
  readonly mem8: Uint8Array;
  translate_address_system_read(virtual: number): number;
  reboot_internal: () => void;
}

interface Exports {
  readonly memory: WebAssemblyMemory;
  readonly xen_events: WebAssemblyGlobal;
  readonly xen_upcall: WebAssemblyGlobal;
  readonly xen_pages: WebAssemblyGlobal;
  main_loop(): number;
  full_clear_tlb(): void;
  jit_dirty_cache(start: number, end: number): void;
  codegen_finalize_finished(index: number, start: number, stateFlags: number): void;
  readonly [name: string]: unknown;
}

/** What v86 imports, as it passes it to `wasm_fn`. */
interface Environment {
  io_port_read32(port: number): number;
  mmap_read8(address: number): number;
  mmap_read32(address: number): number;
  mmap_write8(address: number, value: number): void;
  mmap_write16(address: number, value: number): void;
  mmap_write32(address: number, value: number): void;
  cpu_event_halt: () => void;
  codegen_finalize(index: number, start: number, stateFlags: number, code: number, length: number): void;
  readonly __indirect_function_table: WebAssemblyTable;
}

interface Emulator {
  readonly v86: {
    readonly cpu: Cpu;
    yield: (delayMs: number) => void;
    save_state(): ArrayBuffer;
    restore_state(state: ArrayBuffer): void;
  };
  add_listener(event: string, listener: (value: never) => void): void;
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

/** An emulated PC that a hypervisor of ours serves, in the thread that runs it. */
export class Machine {
  /** The guest's RAM: guest-physical address 0 is its byte 0. Shared between threads, and never moves. */
  readonly ram: Memory;
  private readonly cpu: Cpu;
  // v86's own views are proxies that make an array at each access.
  private readonly registers: Int32Array;
  private readonly controlRegisters: Int32Array;
  private readonly privilegeLevel: Uint8Array;
  private readonly instructionPointer: Int32Array;
  private readonly previousInstruction: Int32Array;
  private readonly instructionCounter: Int32Array;
  /** Where the instruction is that is being done for the guest. */
  private instructionAt = 0;

  private constructor(
    private readonly emulator: Emulator,
    private readonly exports: Exports,
    private readonly compiler: Compiler,
    readonly control: ControlBlock,
    private readonly host: MachineHost,
  ) {
    this.cpu = emulator.v86.cpu;
    const { buffer } = exports.memory;
    const { byteOffset, length } = this.cpu.mem8;
    this.ram = new Memory(buffer, byteOffset, length);
    const words = (view: Int32Array, count: number) => new Int32Array(buffer, view.byteOffset, count);
    this.registers = words(this.cpu.reg32, 8);
    this.controlRegisters = words(this.cpu.cr, 8);
    this.privilegeLevel = new Uint8Array(buffer, this.cpu.cpl.byteOffset, 1);
    this.instructionPointer = words(this.cpu.instruction_pointer, 1);
    this.previousInstruction = words(this.cpu.previous_ip, 1);
    this.instructionCounter = words(this.cpu.instruction_counter, 1);
  }

  /**
   * A machine that has not run yet.
   * @param onSerial gets each byte of the first serial port
   * @param window registers that are used all the time
   */
  static create(
    parts: MachineParts,
    host: MachineHost,
    onSerial: (byte: number) => void,
    window: MmioWindow,
  ): Promise<Machine> {
    let machine: Machine | null = null;
    let exports: Exports | null = null;
    let compiler: Compiler | null = null;
    let control: ControlBlock | null = null;

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
        if (machine !== null) host.halted(machine);
      };
      serveWindow(env, window);
      env.codegen_finalize = (...code) => compiler!.compile(...code);
      const instance = await webAssembly.instantiate(parts.module, { env });
      exports = instance.exports as unknown as Exports;
      compiler = new Compiler(exports, env.__indirect_function_table, maximumPages(parts.memoryBytes));
      control = makeControlBlock(exports);
      return exports;
    };

    const Emulator = V86 as unknown as new (options: Record<string, unknown>) => Emulator;
    const emulator = new Emulator({
      wasm_fn: instantiate,
      bios: { buffer: arrayBuffer(parts.bios) },
      vga_bios: { buffer: arrayBuffer(parts.vgaBios) },
      bzimage: parts.kernel === undefined ? undefined : { buffer: arrayBuffer(parts.kernel) },
      initrd: parts.ramdisk === undefined ? undefined : { buffer: arrayBuffer(parts.ramdisk) },
      cmdline: parts.commandLine,
      memory_size: parts.memoryBytes,
      vga_memory_size: VGA_BYTES,
      net_device: { type: parts.networkCard ?? 'none' },
      autostart: false,
      // With ACPI the platform device is taken away again by hot-plug.
      acpi: false,
      disable_keyboard: true,
      disable_mouse: true,
      disable_speaker: true,
      log_level: 0,
    });
    emulator.add_listener('serial0-output-byte', onSerial as (value: never) => void);
    return new Promise(resolve => {
      emulator.add_listener('emulator-ready', () => {
        const made = new Machine(emulator, exports!, compiler!, control!, host);
        // The machine runs by `slice` alone.
        emulator.v86.yield = () => {};
        emulator.v86.cpu.reboot_internal = () => host.reset(made);
        machine = made;
        resolve(made);
      });
    });
  }

  private onHook(hook: number): number {
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
  }

  /** VMCALL is 0f 01 c1, VMMCALL 0f 01 d9; v86 has moved the instruction pointer past it or not yet. */
  private isHypercall(): boolean {
    const { cpu } = this;
    if (this.privilegeLevel[0] !== 0) return false;
    const { u8 } = this.ram;
    for (const at of [this.previousInstruction[0], this.instructionPointer[0] - 3]) {
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
    return this.registers[number] >>> 0;
  }

  setRegister(number: number, value: number): void {
    this.registers[number] = value;
  }

  /** Has the processor do its current instruction once more, when it goes on; the slice ends soon. */
  repeatInstruction(): void {
    this.instructionPointer[0] = this.instructionAt;
    this.instructionCounter[0] += INSTRUCTIONS_PER_ROUND;
  }

  /** The physical address behind a kernel address of the guest's. */
  physical(virtual: number): number {
    return this.cpu.translate_address_system_read(virtual) >>> 0;
  }

  /** A control register of the processor. */
  controlRegister(number: 0 | 3 | 4): number {
    return this.controlRegisters[number];
  }

  /**
   * Has the host asked for a vector when the processor takes interrupts and this byte of RAM is not zero, or
   * WORD.events of the control block is not.
   * @param address guest-physical, of vcpu_info's evtchn_upcall_pending; -1: it is never asked
   */
  watchUpcall(address: number): void {
    const { control, exports } = this;
    const never = control.addressOf(WORD.zero);
    exports.xen_events.value = address < 0 ? never : control.addressOf(WORD.events);
    exports.xen_upcall.value = address < 0 ? never : this.ram.u8.byteOffset + address;
  }

  /** The control block's `pages` has changed. */
  pagesChanged(): void {
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

  /**
   * Runs the processor for about a millisecond, or until it halts.
   * @returns how many milliseconds it has nothing to do then; 0 when it goes on
   */
  slice(): number {
    return this.exports.main_loop();
  }

  /** Code that is being compiled, for which the event loop must have its turn. */
  get compiling(): number {
    return this.compiler.running;
  }

  /** The state of the machine, between two slices. */
  save(): ArrayBuffer {
    return this.emulator.v86.save_state();
  }

  restore(state: Uint8Array): void {
    this.emulator.v86.restore_state(arrayBuffer(state));
    this.exports.full_clear_tlb();
  }
}

/** Has accesses to a window go to it at once, rather than through v86's map of all registers. */
function serveWindow(env: Environment, window: MmioWindow): void {
  const { number, shift } = window;
  const { mmap_read8, mmap_read32, mmap_write8, mmap_write16, mmap_write32 } = env;
  env.mmap_read8 = at => (at >>> shift === number ? window.read8(at) : mmap_read8(at));
  env.mmap_read32 = at => (at >>> shift === number ? window.read32(at) : mmap_read32(at));
  env.mmap_write8 = (at, value) =>
    at >>> shift === number ? window.write8(at, value) : mmap_write8(at, value);
  env.mmap_write16 = (at, value) =>
    at >>> shift === number ? window.write16(at, value) : mmap_write16(at, value);
  env.mmap_write32 = (at, value) =>
    at >>> shift === number ? window.write32(at, value) : mmap_write32(at, value);
}

/** Memory for the control block behind all that v86 has, and the patch's globals for a machine without a domain. */
function makeControlBlock(exports: Exports): ControlBlock {
  const address = exports.memory.grow(CONTROL_BYTES / WASM_PAGE_BYTES) * WASM_PAGE_BYTES;
  const control = new ControlBlock(exports.memory.buffer, address);
  exports.xen_events.value = control.addressOf(WORD.zero);
  exports.xen_upcall.value = control.addressOf(WORD.zero);
  exports.xen_pages.value = control.pagesAddress;
  return control;
}

/** v86's codegen_finalize for modules that import shared memory: what the guest's code was compiled to. */
class Compiler {
  /** Compilations under way. */
  running = 0;
  private readonly imports: Record<string, unknown>;

  constructor(
    private readonly exports: Exports,
    private readonly table: WebAssemblyTable,
    private readonly maximumPages: number,
  ) {
    this.imports = { m: exports.memory };
    for (const [name, value] of Object.entries(exports)) {
      if (!name.startsWith('_') && !name.startsWith('zstd') && !name.endsWith('_js')) {
        this.imports[name] = value;
      }
    }
  }

  compile(index: number, start: number, stateFlags: number, code: number, length: number): void {
    const { exports, table } = this;
    const module = shareImportedMemory(
      new Uint8Array(exports.memory.buffer, code, length),
      this.maximumPages,
    );
    this.running++;
    void webAssembly.instantiate(module, { e: this.imports }).then(({ instance }) => {
      this.running--;
      table.set(index + COMPILED_CODE_IN_TABLE, instance.exports['f']);
      exports.codegen_finalize_finished(index, start, stateFlags);
    });
  }
}

function arrayBuffer(bytes: Uint8Array): ArrayBuffer {
  // A Buffer's own slice() would not copy.
  return new Uint8Array(bytes).buffer;
}
