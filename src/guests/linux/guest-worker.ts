import { Memory } from '../../platform/index.js';
import { WORD } from './control-block.js';
import { Machine, type MachineParts } from './machine.js';
import { Personality } from './personality.js';

/** How long the guest may keep its thread from the event loop while there is nothing there to do. */
const MAX_RUN_MS = 20;

/** A part of a buffer that both threads have. */
export interface SharedPart {
  readonly buffer: ArrayBufferLike;
  readonly start: number;
  readonly bytes: number;
}

/** What the host's thread asks of a guest's thread. All but `create` are counted in WORD.mail. */
export type ToGuest =
  | { readonly type: 'create'; readonly parts: MachineParts }
  /** A bank of the hypervisor's memory is there, or no more. */
  | { readonly type: 'bank'; readonly bank: number; readonly memory: SharedPart | null }
  | { readonly type: 'restore'; readonly state: Uint8Array }
  | { readonly type: 'save' }
  | { readonly type: 'run' };

/** What a guest's thread says. A message that is the number 0 is a knock: look at the control block. */
export type FromGuest =
  | 0
  | { readonly type: 'created'; readonly ram: SharedPart; readonly control: number }
  | { readonly type: 'restored' }
  | { readonly type: 'saved'; readonly state: ArrayBuffer }
  /** It ran, and WORD.run is 0. */
  | { readonly type: 'stopped' }
  | { readonly type: 'serial'; readonly text: string };

/** The thread that a guest runs in, as its program sees it: a worker of Node or of a browser. */
export interface WorkerThread {
  post(message: FromGuest, transfer?: ArrayBuffer[]): void;
  onMessage(listener: (message: ToGuest) => void): void;
  /** Runs `run` after the event loop had its turn. */
  turn(run: () => void): void;
  /** Milliseconds. */
  now(): number;
}

/** The program of a guest's thread: one emulated PC and what makes it a domain of a hypervisor in another thread. */
export class GuestWorker {
  private readonly personality = new Personality(
    () => this.thread.post(0),
    () => this.thread.now(),
  );
  private machine: Machine | null = null;
  private running = false;
  private serial = '';

  constructor(private readonly thread: WorkerThread) {
    thread.onMessage(message => {
      if (message.type === 'create') void this.create(message.parts);
      else this.receive(message);
    });
  }

  private async create(parts: MachineParts): Promise<void> {
    const onSerial = (byte: number): void => {
      this.serial += String.fromCharCode(byte);
    };
    const machine = await Machine.create(parts, this.personality, onSerial, this.personality.window);
    this.machine = machine;
    this.personality.attach(machine);
    const { buffer, byteOffset, length } = machine.ram.u8;
    const ram = { buffer, start: byteOffset, bytes: length };
    this.thread.post({ type: 'created', ram, control: machine.control.address });
  }

  private receive(message: Exclude<ToGuest, { type: 'create' }>): void {
    const { thread, personality } = this;
    const machine = this.machine!;
    const { words } = machine.control;
    Atomics.sub(words, WORD.mail, 1);
    switch (message.type) {
      case 'bank': {
        const { bank, memory } = message;
        personality.window.setBank(bank, memory && new Memory(memory.buffer, memory.start, memory.bytes));
        Atomics.add(words, WORD.banks, 1);
        break;
      }
      case 'restore':
        machine.restore(message.state);
        thread.post({ type: 'restored' });
        break;
      case 'save': {
        const state = machine.save();
        thread.post({ type: 'saved', state }, [state]);
        break;
      }
      case 'run':
        personality.start();
        if (!this.running) {
          this.running = true;
          thread.turn(this.run);
        }
        break;
    }
  }

  /** Runs the machine until somebody wants something of this thread, sleeping while its processor has nothing to do. */
  private readonly run = (): void => {
    const { thread, personality } = this;
    const machine = this.machine!;
    const { words } = machine.control;
    const end = thread.now() + MAX_RUN_MS;
    for (;;) {
      const wakes = Atomics.load(words, WORD.wake);
      personality.takeMail();
      const idleMs = machine.slice();
      personality.flush();
      if (this.serial !== '') this.flushSerial();
      if (Atomics.load(words, WORD.run) === 0) {
        this.running = false;
        thread.post({ type: 'stopped' });
        return;
      }
      if (Atomics.load(words, WORD.mail) > 0) break;
      if (machine.compiling > 0) {
        if (idleMs > 0) Atomics.wait(words, WORD.wake, wakes, Math.min(idleMs, 1));
        break;
      }
      if (idleMs > 0) Atomics.wait(words, WORD.wake, wakes, idleMs);
      if (thread.now() >= end) break;
    }
    thread.turn(this.run);
  };

  private flushSerial(): void {
    this.thread.post({ type: 'serial', text: this.serial });
    this.serial = '';
  }
}
