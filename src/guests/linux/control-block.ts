/**
 * What the thread of an emulated PC and the host's thread tell each other without messages: words in the emulator's own
 * memory, which both can reach, and which the patched emulator reads, too. All are int32.
 */
export const WORD = {
  /** Grows to wake the guest's thread, which sleeps on it while its processor is halted. */
  wake: 0,
  /** 1 while the guest is to run. */
  run: 1,
  /** Messages that were posted to the guest's thread and that it has not taken. */
  mail: 2,
  /** 1 while the host's thread wants a knock when there is something for it. */
  asleep: 3,
  /** One of CALL: whose turn it is in a hypercall. */
  call: 4,
  /** Of the hypercall: its number and arguments, then the processor's control registers. */
  number: 5,
  a: 6,
  b: 7,
  c: 8,
  cr0: 9,
  cr3: 10,
  cr4: 11,
  result: 12,
  /** 1 when the hypercall is to be made again. */
  again: 13,
  /** The interrupt vector of events; 0 for none. */
  vector: 14,
  /** Guest-physical addresses of struct shared_info and vcpu_info; -1 until the guest has placed them. */
  sharedInfo: 15,
  vcpuInfo: 16,
  /** Grows when `pages` has changed. */
  pagesChanged: 17,
  /** Memory banks that the guest's thread was told of. */
  banks: 18,
  /** 1 when `eventWords` has bits: ports with an event for the guest. */
  events: 19,
  /** 1 when `sendWords` has bits: ports on which the guest has sent. */
  sends: 20,
  /** Pages that the host wrote to, put into and taken out of the ring `written`; free-running. */
  writtenProd: 21,
  writtenCons: 22,
  /** Always 0. */
  zero: 23,
  eventWords: 32,
  sendWords: 64,
  written: 128,
} as const;

/** Values of WORD.call. */
export const CALL = { none: 0, asked: 1, answered: 2 } as const;

/** Hypercall numbers of the machine's own. */
export const MACHINE_CALL = {
  /** The processor halted with interrupts off: it will not go on. */
  halted: 0x1000_0000,
  /** The machine is to be reset. */
  reset: 0x1000_0001,
} as const;

/** Ports of a 32-bit guest, in words of the bitmaps. */
export const PORT_WORDS = 32;
/** Entries of the ring of written pages. */
export const WRITTEN_ENTRIES = 8192;

/** Pages of the window in which pages of other memories appear to the processor. */
export const WINDOW_PAGES = 1 << 15;
const ADDRESSABLE_PAGES = 1 << 20;

const WINDOW_AT = 1 << 16;
const PAGES_AT = WINDOW_AT + 4 * WINDOW_PAGES;
/** A multiple of a WebAssembly page; what is never touched costs nothing. */
export const CONTROL_BYTES = PAGES_AT + 4 * ADDRESSABLE_PAGES;

/** The block, in either thread. */
export class ControlBlock {
  readonly words: Int32Array;
  /** The hypervisor's frame by page of the window; 0 for none. */
  readonly window: Int32Array;
  /** Guest-physical page number XOR the one to use in its place, by page. */
  readonly pages: Int32Array;

  /** @param address of its first byte in the emulator's memory */
  constructor(
    buffer: ArrayBufferLike,
    readonly address: number,
  ) {
    this.words = new Int32Array(buffer, address, WINDOW_AT / 4);
    this.window = new Int32Array(buffer, address + WINDOW_AT, WINDOW_PAGES);
    this.pages = new Int32Array(buffer, address + PAGES_AT, ADDRESSABLE_PAGES);
  }

  /** Address of a word in the emulator's memory. */
  addressOf(word: number): number {
    return this.address + 4 * word;
  }

  /** Address of `pages` in the emulator's memory. */
  get pagesAddress(): number {
    return this.pages.byteOffset;
  }

  /** Wakes the guest's thread, if it sleeps. */
  wake(): void {
    Atomics.add(this.words, WORD.wake, 1);
    Atomics.notify(this.words, WORD.wake);
  }
}
