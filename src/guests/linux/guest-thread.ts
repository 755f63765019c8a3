import { HypercallError, Memory, type Scheduler, Task } from '../../platform/index.js';
import { CALL, ControlBlock, PORT_WORDS, WORD, WRITTEN_ENTRIES } from './control-block.js';
import type { FromGuest, ToGuest } from './guest-worker.js';
import { AGAIN } from './hypercalls.js';
import type { MachineParts } from './machine.js';

/** How long to look for more hypercalls of the guest, which waits for each, before having it knock. */
const SPIN_MS = 0.05;

/** A guest's thread as the host sees it: a worker of Node or of a browser, whose program is GuestWorker. */
export interface GuestThreadPort {
  /** @param transfer buffers of the message that need not be copied */
  post(message: ToGuest, transfer?: ArrayBuffer[]): void;
  onMessage(listener: (message: FromGuest) => void): void;
  /** The thread has failed, and ended. */
  onError(listener: (error: Error) => void): void;
  terminate(): Promise<void>;
}

/** Who serves a guest. */
export interface GuestServer {
  /** It has sent on a port of its own. @throws HypercallError */
  send(port: number): void;
  /** One hypercall, or one of MACHINE_CALL. @returns its result, or AGAIN */
  call(number: number, a: number, b: number, c: number): number | typeof AGAIN;
  serial(text: string): void;
  failed(error: Error): void;
}

type Reply = Exclude<FromGuest, 0 | { type: 'serial' }>;

/**
 * An emulated PC in a thread of its own, from the host's thread. The two share the machine's memory, and the control block
 * in it: hypercalls, events and what the host wrote go through that, the rest by messages.
 */
export class GuestThread {
  /** The guest's RAM: guest-physical address 0 is its byte 0. */
  readonly ram: Memory;
  readonly control: ControlBlock;
  private server: GuestServer | null = null;
  private scheduler: Scheduler | null = null;
  private readonly task = new Task('linux guest', () => this.poll());
  private calledAt = -SPIN_MS;
  private running = false;
  /** It has been let run: only then its failure is the guest's end, and not an answer to who starts it. */
  private started = false;
  private failure: Error | null = null;
  private stopping: Promise<void> | null = null;
  private closed = false;
  private readonly banks = new Map<number, { memory: Memory; told: number }>();
  private told = 0;

  private constructor(
    private readonly port: GuestThreadPort,
    private readonly replies: Replies,
    ram: Memory,
    control: ControlBlock,
  ) {
    this.ram = ram;
    this.control = control;
    replies.onOther = message => this.receive(message);
    replies.onFailure = error => this.fail(error);
  }

  /** Starts the thread and makes the machine in it. @throws what the machine cannot be made for */
  static async create(spawn: () => GuestThreadPort, parts: MachineParts): Promise<GuestThread> {
    const port = spawn();
    const replies = new Replies(port);
    const created = replies.next('created');
    port.post({ type: 'create', parts });
    try {
      const { ram, control } = await created;
      const memory = new Memory(ram.buffer, ram.start, ram.bytes);
      return new GuestThread(port, replies, memory, new ControlBlock(ram.buffer, control));
    } catch (error) {
      await port.terminate();
      throw error;
    }
  }

  /** Joins it with who serves it. */
  attach(server: GuestServer, scheduler: Scheduler): void {
    this.server = server;
    this.scheduler = scheduler;
    this.control.words[WORD.asleep] = 1;
  }

  private post(message: ToGuest, transfer?: ArrayBuffer[]): void {
    Atomics.add(this.control.words, WORD.mail, 1);
    this.port.post(message, transfer);
    this.control.wake();
  }

  private receive(message: FromGuest): void {
    if (this.closed) return;
    if (message === 0) this.poll();
    else if (message.type === 'serial') this.server?.serial(message.text);
  }

  private fail(error: Error): void {
    this.running = false;
    this.failure = error;
    if (this.started && !this.closed) this.server?.failed(error);
  }

  // ---- from the guest ----

  /** Does what the guest asks for; stays awake for a while after a hypercall, then sleeps until it knocks. */
  private poll(): void {
    const scheduler = this.scheduler!;
    if (this.closed || this.task.queued) return;
    if (this.serve()) this.calledAt = scheduler.now();
    else if (scheduler.now() - this.calledAt >= SPIN_MS && this.sleep()) return;
    scheduler.post(this.task);
  }

  /** @returns false when something came meanwhile */
  private sleep(): boolean {
    const { words } = this.control;
    Atomics.store(words, WORD.asleep, 1);
    if (Atomics.load(words, WORD.sends) === 0 && Atomics.load(words, WORD.call) !== CALL.asked) return true;
    Atomics.store(words, WORD.asleep, 0);
    return false;
  }

  /** @returns whether there was a hypercall */
  private serve(): boolean {
    const { words } = this.control;
    if (Atomics.load(words, WORD.sends) !== 0) this.takeSends();
    if (Atomics.load(words, WORD.call) !== CALL.asked) return false;
    this.answer();
    return true;
  }

  private takeSends(): void {
    const { words } = this.control;
    Atomics.store(words, WORD.sends, 0);
    for (let i = 0; i < PORT_WORDS; i++) {
      if (words[WORD.sendWords + i] === 0) continue;
      let ports = Atomics.exchange(words, WORD.sendWords + i, 0);
      while (ports !== 0) {
        const bit = 31 - Math.clz32(ports & -ports);
        ports &= ports - 1;
        this.send(32 * i + bit);
      }
    }
  }

  private send(port: number): void {
    try {
      this.server!.send(port);
    } catch (error) {
      // The guest's thread queues for open ports only: this one is what a hostile guest wrote there.
      if (!(error instanceof HypercallError)) throw error;
    }
  }

  private answer(): void {
    const { words } = this.control;
    const argument = (word: number): number => words[word] >>> 0;
    const result = this.server!.call(
      argument(WORD.number),
      argument(WORD.a),
      argument(WORD.b),
      argument(WORD.c),
    );
    words[WORD.again] = result === AGAIN ? 1 : 0;
    words[WORD.result] = result === AGAIN ? 0 : result;
    Atomics.store(words, WORD.call, CALL.answered);
    Atomics.notify(words, WORD.call);
  }

  // ---- to the guest ----

  /** An event for a port of the guest's. */
  deliver(port: number): void {
    const { control } = this;
    const { words } = control;
    Atomics.or(words, WORD.eventWords + (port >>> 5), 1 << (port & 31));
    if (Atomics.exchange(words, WORD.events, 1) === 0) control.wake();
  }

  /** The host wrote to this part of the RAM: the emulator drops what it has compiled from there. */
  written(address: number, bytes: number): void {
    const { words } = this.control;
    let prod = words[WORD.writtenProd];
    for (let page = address >>> 12; page <= (address + bytes - 1) >>> 12; page++) {
      const previous = WORD.written + ((prod - 1) & (WRITTEN_ENTRIES - 1));
      if (prod !== Atomics.load(words, WORD.writtenCons) && words[previous] === page) continue;
      words[WORD.written + (prod & (WRITTEN_ENTRIES - 1))] = page;
      prod = (prod + 1) | 0;
    }
    Atomics.store(words, WORD.writtenProd, prod);
  }

  /**
   * Whether the guest's thread can reach a memory bank of the hypervisor's. If not it is told of it, and will as soon as it
   * has taken its messages.
   */
  reaches(bank: number, memory: Memory): boolean {
    const known = this.banks.get(bank);
    if (known?.memory === memory) {
      return ((Atomics.load(this.control.words, WORD.banks) - known.told) | 0) >= 0;
    }
    this.told++;
    this.banks.set(bank, { memory, told: this.told });
    const { buffer, byteOffset, length } = memory.u8;
    this.post({ type: 'bank', bank, memory: { buffer, start: byteOffset, bytes: length } });
    return false;
  }

  /** The bank is no more. */
  forget(bank: number): void {
    if (!this.banks.delete(bank)) return;
    this.told++;
    this.post({ type: 'bank', bank, memory: null });
  }

  // ---- life ----

  /** Lets the guest run. @throws what its thread has failed of */
  async run(): Promise<void> {
    await this.stopping;
    if (this.closed || this.running) return;
    if (this.failure !== null) throw this.failure;
    this.running = true;
    this.started = true;
    Atomics.store(this.control.words, WORD.run, 1);
    this.post({ type: 'run' });
  }

  /** Lets the current slice end; then nothing runs until `run`. */
  stop(): Promise<void> {
    if (!this.running || this.closed) return this.stopping ?? Promise.resolve();
    this.running = false;
    const stopped = this.replies.next('stopped');
    Atomics.store(this.control.words, WORD.run, 0);
    this.control.wake();
    this.stopping = stopped.then(
      () => {},
      () => {},
    );
    return this.stopping;
  }

  /** The machine's state; it must be stopped. */
  async save(): Promise<Uint8Array> {
    const saved = this.replies.next('saved');
    this.post({ type: 'save' });
    return new Uint8Array((await saved).state);
  }

  /**
   * @param state is what `save` gave for a machine with as much RAM; it is handed over, and empty afterwards
   * @throws what the thread fails of, for anything else
   */
  async restore(state: Uint8Array): Promise<void> {
    const restored = this.replies.next('restored');
    this.post({ type: 'restore', state }, [state.buffer as ArrayBuffer]);
    await restored;
  }

  async destroy(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.replies.close();
    await this.port.terminate();
  }
}

/** Messages of a thread, as answers to who waits for them. */
class Replies {
  onOther: (message: FromGuest) => void = () => {};
  onFailure: (error: Error) => void = () => {};
  private readonly waiting = new Map<string, { resolve(reply: never): void; reject(error: Error): void }>();

  constructor(port: GuestThreadPort) {
    port.onMessage(message => {
      if (message === 0 || message.type === 'serial') {
        this.onOther(message);
        return;
      }
      const waiter = this.waiting.get(message.type);
      this.waiting.delete(message.type);
      waiter?.resolve(message as never);
    });
    port.onError(error => {
      this.rejectAll(error);
      this.onFailure(error);
    });
  }

  next<Type extends Reply['type']>(type: Type): Promise<Extract<Reply, { type: Type }>> {
    return new Promise((resolve, reject) => this.waiting.set(type, { resolve, reject }));
  }

  close(): void {
    this.rejectAll(new Error('the guest was destroyed'));
  }

  private rejectAll(error: Error): void {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}
