import { XEN_CPUID_FIRST_LEAF, XEN_CPUID_SIGNATURE, XEN_PLATFORM } from '../../abi/hvm.js';
import { PAGE_SHIFT } from '../../platform/index.js';
import type { Domain, DomainOptions } from '../../platform/sim/index.js';
import { ForeignPages } from './foreign-pages.js';
import { GuestMemory } from './guest-memory.js';
import { AGAIN, Hypercalls, XEN_VERSION } from './hypercalls.js';
import { type Machine, type MachineHost, type MmioHandler, REGISTER } from './machine.js';

/** Where the guest finds its rings, as pages of memory-mapped registers below the BIOS. */
const STORE_GFN = 0xfef00;
const CONSOLE_GFN = 0xfef01;
const SPECIAL_PAGES_AT = STORE_GFN * 4096;
const SPECIAL_PAGES_BYTES = 1 << 17;

/** The platform device's BARs: ports, and where the guest puts its grant table. */
const PLATFORM_SLOT = 3;
const PLATFORM_IO = 0xc000;
const PLATFORM_IO_BYTES = 0x100;
const PLATFORM_MMIO = 0xf200_0000;
const PLATFORM_MMIO_BYTES = 1 << 24;

const CPUID_LEAVES = 3;

/**
 * What makes an emulated PC an HVM domain: answers CPUID as Xen does, takes hypercalls, injects the event
 * vector, and has the xen-platform device. Above it is a domain of the simulated host like any other.
 */
export class Personality implements MachineHost {
  private domain: Domain | null = null;
  hypercalls: Hypercalls | null = null;
  foreign: ForeignPages | null = null;

  /** @param onConsole gets what the guest writes to Xen's own console */
  constructor(private readonly onConsole: (text: string) => void) {}

  /** What a domain must be created with to be this machine. */
  static domainOptions(machine: Machine): Partial<DomainOptions> {
    return {
      wordBits: 32,
      storeGfn: STORE_GFN,
      consoleGfn: CONSOLE_GFN,
      bank: {
        memory: machine.ram,
        pages: machine.pages,
        // The processor runs in this thread, between two tasks: nobody races it.
        threaded: false,
        written: (address, bytes) => machine.written(address, bytes),
      },
    };
  }

  /** Joins machine and domain; the machine has not run yet. */
  attach(machine: Machine, domain: Domain): void {
    this.domain = domain;
    this.foreign = new ForeignPages(machine);
    this.hypercalls = new Hypercalls({
      domain,
      ram: machine.ram,
      memory: new GuestMemory(machine),
      foreign: this.foreign,
      onConsole: this.onConsole,
    });
    const pages = new PhysmapPages(domain);
    machine.mapMmio(SPECIAL_PAGES_AT, SPECIAL_PAGES_BYTES, pages);
    machine.mapMmio(PLATFORM_MMIO, PLATFORM_MMIO_BYTES, pages);
    addPlatformDevice(machine);
    domain.onUpcall(0, () => machine.setUpcall(true));
  }

  cpuid(machine: Machine): boolean {
    const leaf = machine.register(REGISTER.eax) - XEN_CPUID_FIRST_LEAF;
    if (leaf < 0 || leaf > 0xff) return false;
    let values: readonly number[] = [0, 0, 0, 0];
    if (leaf === 0) values = [XEN_CPUID_FIRST_LEAF + CPUID_LEAVES - 1, ...XEN_CPUID_SIGNATURE];
    else if (leaf === 1) values = [(XEN_VERSION.major << 16) | XEN_VERSION.minor, 0, 0, 0];
    else if (leaf === 2) values = [1, XEN_CPUID_FIRST_LEAF, 0, 0];
    machine.setRegister(REGISTER.eax, values[0]);
    machine.setRegister(REGISTER.ebx, values[1]);
    machine.setRegister(REGISTER.ecx, values[2]);
    machine.setRegister(REGISTER.edx, values[3]);
    return true;
  }

  writeMsr(machine: Machine): boolean {
    return this.isOurMsr(machine);
  }

  readMsr(machine: Machine): boolean {
    if (!this.isOurMsr(machine)) return false;
    machine.setRegister(REGISTER.eax, 0);
    machine.setRegister(REGISTER.edx, 0);
    return true;
  }

  /** The MSR that leaf 2 names: where a guest would have its hypercall page. It may as well use VMCALL. */
  private isOurMsr(machine: Machine): boolean {
    const msr = machine.register(REGISTER.ecx);
    return msr >= XEN_CPUID_FIRST_LEAF && msr <= XEN_CPUID_FIRST_LEAF + 0xff;
  }

  hypercall(machine: Machine): void {
    const { domain, hypercalls } = this;
    const result =
      domain?.state === 'running'
        ? hypercalls!.call(
            machine.register(REGISTER.eax),
            machine.register(REGISTER.ebx),
            machine.register(REGISTER.ecx),
            machine.register(REGISTER.edx),
          )
        : AGAIN;
    if (result === AGAIN) machine.repeatInstruction();
    else machine.setRegister(REGISTER.eax, result);
    if (this.isPending()) machine.setUpcall(true);
  }

  /** What is left to do after power-off without ACPI. */
  halted(): void {
    this.domain?.shutdown('poweroff');
  }

  reset(): void {
    this.domain?.shutdown('reboot');
  }

  upcallVector(machine: Machine): number {
    const vector = this.hypercalls?.vector ?? 0;
    if (vector !== 0 && this.isPending()) return vector;
    machine.setUpcall(false);
    return 0;
  }

  translatePage(page: number): number {
    return this.foreign!.translatePage(page);
  }

  private isPending(): boolean {
    const vcpu = this.domain?.vcpus[0];
    if (vcpu === undefined || this.domain?.state !== 'running') return false;
    return vcpu.memory.u8[vcpu.info + this.domain.layout.vcpu.evtchn_upcall_pending] !== 0;
  }
}

/** Pages of machine memory that the guest sees: its rings with the toolstack, its grant table. */
class PhysmapPages implements MmioHandler {
  constructor(private readonly domain: Domain) {}

  /** Byte address in machine memory, or -1 where nothing is. */
  private at(address: number): number {
    const frame = this.domain.physmap[address >>> PAGE_SHIFT] ?? 0;
    return frame === 0 ? -1 : Math.abs(frame) * 4096 + (address & 4095);
  }

  read8(address: number): number {
    const at = this.at(address);
    return at < 0 ? 0xff : this.domain.hypervisor.memory.u8[at];
  }

  write8(address: number, value: number): void {
    const at = this.at(address);
    if (at >= 0) this.domain.hypervisor.memory.u8[at] = value;
  }

  read32(address: number): number {
    const at = this.at(address);
    if (at < 0) return -1;
    if ((at & 3) === 0) return this.domain.hypervisor.memory.i32[at >>> 2];
    let value = 0;
    for (let i = 0; i < 4; i++) value |= this.read8(address + i) << (8 * i);
    return value;
  }

  write32(address: number, value: number): void {
    const at = this.at(address);
    if (at < 0) return;
    if ((at & 3) === 0) this.domain.hypervisor.memory.i32[at >>> 2] = value;
    else for (let i = 0; i < 4; i++) this.write8(address + i, (value >>> (8 * i)) & 0xff);
  }
}

function addPlatformDevice(machine: Machine): void {
  const config = new DataView(new ArrayBuffer(64));
  config.setUint16(0x00, XEN_PLATFORM.vendor, true);
  config.setUint16(0x02, XEN_PLATFORM.device, true);
  config.setUint16(0x04, 3, true); // command: ports and memory
  config.setUint32(0x08, 0xff80_0001, true); // class: unassigned; revision 1
  config.setUint32(0x10, PLATFORM_IO | 1, true);
  config.setUint32(0x14, PLATFORM_MMIO, true);
  config.setUint16(0x2c, XEN_PLATFORM.vendor, true);
  config.setUint16(0x2e, XEN_PLATFORM.device, true);
  config.setUint8(0x3d, 1); // interrupt pin A
  machine.addPciDevice({
    pci_id: PLATFORM_SLOT << 3,
    pci_space: [...new Uint8Array(config.buffer)],
    pci_bars: [{ size: PLATFORM_IO_BYTES }, { size: PLATFORM_MMIO_BYTES }],
    name: 'xen-platform',
  });
  machine.mapPort(XEN_PLATFORM.unplugPort, {
    read16: () => XEN_PLATFORM.magic,
    read32: () => XEN_PLATFORM.magic,
  });
  machine.mapPort(XEN_PLATFORM.versionPort, { read8: () => 1, read16: () => 1 });
}
