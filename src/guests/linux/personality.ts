import { EVTCHNOP } from '../../abi/event-channel.js';
import { SCHEDOP, XEN_CPUID_FIRST_LEAF, XEN_CPUID_SIGNATURE, XEN_PLATFORM } from '../../abi/hvm.js';
import { HYPERVISOR } from '../../abi/xen.js';
import { PAGE_SIZE } from '../../platform/index.js';
import { CALL, MACHINE_CALL, PORT_WORDS, WINDOW_PAGES, WORD, WRITTEN_ENTRIES } from './control-block.js';
import { ForeignWindow, WINDOW_ADDRESS } from './foreign-window.js';
import { type Machine, type MachineHost, REGISTER } from './machine.js';
import { SharedInfo } from './shared-info.js';
import { XEN_VERSION } from './xen-version.js';

/** The platform device's BARs: ports, and where the guest puts its grant table. */
const PLATFORM_SLOT = 3;
const PLATFORM_IO = 0xc000;
const PLATFORM_IO_BYTES = 0x100;
const PLATFORM_MMIO = 0xf200_0000;
const PLATFORM_MMIO_BYTES = 1 << 24;

const CPUID_LEAVES = 3;
/**
 * How long what the guest sends may wait for more: its backends then do more in one go, and it is interrupted less. It
 * never waits longer than until the guest has nothing to do.
 */
const GATHER_MS = 0.3;
/** Looks at whether a hypercall was answered, before going to sleep until it is: about 20 µs. */
const SPINS = 2000;

/**
 * What makes an emulated PC an HVM domain, in the thread that runs it: answers CPUID as Xen does, passes hypercalls on
 * to the host's thread, injects the event vector, and has the xen-platform device.
 *
 * What needs no hypervisor is done here: sending on a port that is known to be open is only noted for the host's thread,
 * and unmasking one is a matter of the guest's own memory.
 */
export class Personality implements MachineHost {
  private machine!: Machine;
  private sharedInfo!: SharedInfo;
  /** Pages of other memories that the guest sees. */
  readonly window = new ForeignWindow();
  /** 1 for a port of the guest's that is open: only the guest itself closes it. */
  private readonly open = new Uint8Array(32 * PORT_WORDS);
  private pagesChanged = 0;

  /** When the oldest was sent of what the host's thread has not taken. */
  private sentAt = 0;

  /**
   * @param knock wakes the host's thread, which sleeps
   * @param now milliseconds
   */
  constructor(
    private readonly knock: () => void,
    private readonly now: () => number,
  ) {}

  /** Becomes the host of a machine that has not run yet. */
  attach(machine: Machine): void {
    this.machine = machine;
    this.sharedInfo = new SharedInfo(machine.ram);
    this.window.attach(machine.control);
    machine.mapMmio(WINDOW_ADDRESS, WINDOW_PAGES * PAGE_SIZE, this.window);
    addPlatformDevice(machine);
  }

  /** Before the machine runs for the first time, or again after its domain was suspended. */
  start(): void {
    this.open.fill(0);
    this.refresh();
  }

  /** Takes what the host's thread has left: before each slice, and whenever the guest may see it. */
  takeMail(): void {
    const { words } = this.machine.control;
    if (words[WORD.writtenProd] !== words[WORD.writtenCons]) this.dropCode();
    if (words[WORD.events] === 0 || this.sharedInfo.upcallPending < 0) return;
    Atomics.store(words, WORD.events, 0);
    for (let i = 0; i < PORT_WORDS; i++) {
      const ports = Atomics.exchange(words, WORD.eventWords + i, 0);
      if (ports !== 0) this.sharedInfo.deliver(i, ports);
    }
  }

  /** The host wrote to these pages: what was compiled from them is no longer what is there. */
  private dropCode(): void {
    const { machine } = this;
    const { words } = machine.control;
    const prod = Atomics.load(words, WORD.writtenProd);
    const first = words[WORD.writtenCons];
    for (let cons = first; cons !== prod; cons = (cons + 1) | 0) {
      const page = words[WORD.written + (cons & (WRITTEN_ENTRIES - 1))];
      machine.written(page * PAGE_SIZE, PAGE_SIZE);
    }
    // The ring may have gone round meanwhile.
    const missed = ((Atomics.load(words, WORD.writtenProd) - first) | 0) > WRITTEN_ENTRIES;
    if (missed) machine.written(0, machine.ram.u8.length);
    Atomics.store(words, WORD.writtenCons, prod);
  }

  /** Takes up what a hypercall may have changed. */
  private refresh(): void {
    const { machine, sharedInfo } = this;
    const { words } = machine.control;
    sharedInfo.place(words[WORD.sharedInfo], words[WORD.vcpuInfo]);
    machine.watchUpcall(words[WORD.vector] === 0 ? -1 : sharedInfo.upcallPending);
    const changed = Atomics.load(words, WORD.pagesChanged);
    if (changed !== this.pagesChanged) {
      this.pagesChanged = changed;
      machine.pagesChanged();
    }
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
    const number = machine.register(REGISTER.eax);
    const a = machine.register(REGISTER.ebx);
    const b = machine.register(REGISTER.ecx);
    if (number === HYPERVISOR.event_channel_op && this.eventChannelOp(a, b)) {
      machine.setRegister(REGISTER.eax, 0);
      return;
    }
    if (number === HYPERVISOR.sched_op && (a === SCHEDOP.yield || a === SCHEDOP.block)) {
      machine.setRegister(REGISTER.eax, 0);
      return;
    }
    const { words } = machine.control;
    this.call(number, a, b, machine.register(REGISTER.edx));
    if (words[WORD.again] !== 0) {
      machine.repeatInstruction();
      return;
    }
    const result = words[WORD.result];
    machine.setRegister(REGISTER.eax, result);
    if (number === HYPERVISOR.event_channel_op && result === 0) this.learn(a, b);
  }

  /** @returns false when it is for the hypervisor to do */
  private eventChannelOp(command: number, arg: number): boolean {
    if (command !== EVTCHNOP.send && command !== EVTCHNOP.unmask) return false;
    const port = this.port(arg);
    if (this.open[port] !== 1 || this.sharedInfo.upcallPending < 0) return false;
    if (command === EVTCHNOP.unmask) {
      this.sharedInfo.unmask(port);
      return true;
    }
    const { words } = this.machine.control;
    Atomics.or(words, WORD.sendWords + (port >>> 5), 1 << (port & 31));
    const now = this.now();
    if (Atomics.exchange(words, WORD.sends, 1) === 0) this.sentAt = now;
    else if (now - this.sentAt >= GATHER_MS) this.wakeHost();
    return true;
  }

  /** Has the host's thread take what the guest has sent. */
  flush(): void {
    if (this.machine.control.words[WORD.sends] !== 0) this.wakeHost();
  }

  /** Remembers which ports are open from what succeeded. */
  private learn(command: number, arg: number): void {
    switch (command) {
      case EVTCHNOP.send:
      case EVTCHNOP.unmask:
        this.open[this.port(arg)] = 1;
        break;
      case EVTCHNOP.close:
        this.open[this.port(arg)] = 0;
        break;
      case EVTCHNOP.reset:
        this.open.fill(0);
        break;
    }
  }

  /** The first field of the structs of those operations; a number that is no port for one that cannot be read. */
  private port(arg: number): number {
    const { machine } = this;
    return (arg & 3) === 0 ? (machine.ram.u32[machine.physical(arg) >>> 2] ?? -1) : -1;
  }

  /** Has the host's thread do a hypercall, and waits until it has. */
  private call(number: number, a: number, b: number, c: number): void {
    const { machine } = this;
    const { words } = machine.control;
    // It may look at the guest's event bits.
    this.takeMail();
    words[WORD.number] = number;
    words[WORD.a] = a;
    words[WORD.b] = b;
    words[WORD.c] = c;
    words[WORD.cr0] = machine.controlRegister(0);
    words[WORD.cr3] = machine.controlRegister(3);
    words[WORD.cr4] = machine.controlRegister(4);
    Atomics.store(words, WORD.call, CALL.asked);
    this.wakeHost();
    for (let i = 0; i < SPINS && Atomics.load(words, WORD.call) === CALL.asked; i++);
    while (Atomics.load(words, WORD.call) === CALL.asked) Atomics.wait(words, WORD.call, CALL.asked);
    this.refresh();
    this.takeMail();
  }

  private wakeHost(): void {
    if (Atomics.exchange(this.machine.control.words, WORD.asleep, 0) === 1) this.knock();
  }

  /** What is left to do after power-off without ACPI. */
  halted(): void {
    this.call(MACHINE_CALL.halted, 0, 0, 0);
  }

  reset(): void {
    this.call(MACHINE_CALL.reset, 0, 0, 0);
  }

  upcallVector(): number {
    this.takeMail();
    return this.sharedInfo.isPending ? this.machine.control.words[WORD.vector] : 0;
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
