import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { HYPERVISOR, SHARED_INFO_32 } from '../../src/abi/xen.js';
import { CALL, CONTROL_BYTES, ControlBlock, WORD } from '../../src/guests/linux/control-block.js';
import { GuestMemory } from '../../src/guests/linux/guest-memory.js';
import { type GuestServer, GuestThread } from '../../src/guests/linux/guest-thread.js';
import type { FromGuest, ToGuest } from '../../src/guests/linux/guest-worker.js';
import { AGAIN } from '../../src/guests/linux/hypercalls.js';
import { SharedInfo } from '../../src/guests/linux/shared-info.js';
import { type HypercallError, Memory, type Scheduler, type Task } from '../../src/platform/index.js';

const PAGE = 4096;

describe('a guest’s memory by its virtual addresses', () => {
  const CR0 = 0x8000_0000 | 0;
  const CR4_PSE = 0x10;
  const CR4_PAE = 0x20;
  const PRESENT = 3;
  const LARGE = 0x80 | PRESENT;

  test('is what page tables of three levels say', () => {
    const ram = new Memory(new SharedArrayBuffer(2 << 20));
    const { u32 } = ram;
    const memory = new GuestMemory(ram);
    const at = (page: number) => (page * PAGE) / 4;
    u32[at(1)] = (2 * PAGE) | PRESENT; // the first of four directories
    u32[at(2)] = (3 * PAGE) | PRESENT; // its first table
    u32[at(2) + 2] = LARGE; // virtual 2 MiB to 4 MiB is physical 0 to 2 MiB
    u32[at(3) + 2 * 5] = (9 * PAGE) | PRESENT; // virtual page 5
    u32[at(3) + 2 * 6] = (7 * PAGE) | PRESENT; // virtual page 6
    u32[at(3) + 2 * 8] = (4000 * PAGE) | PRESENT; // beyond the RAM
    u32[at(3) + 2 * 9] = PRESENT; // beyond 4 GiB
    u32[at(3) + 2 * 9 + 1] = 1;
    memory.setRegisters(CR0, PAGE, CR4_PAE);
    u32[at(9)] = 0x11223344;
    assert.equal(memory.u32(5 * PAGE), 0x11223344);
    assert.equal(memory.u32((2 << 20) + 9 * PAGE), 0x11223344);
    memory.setU32(6 * PAGE - 2, 0xaabbccdd);
    assert.equal(ram.u16[(10 * PAGE - 2) / 2], 0xccdd);
    assert.equal(ram.u16[(7 * PAGE) / 2], 0xaabb);
    assert.equal(memory.u32(6 * PAGE - 2), 0xaabbccdd);
    for (const page of [7, 8, 9, 0xfffff]) {
      assert.throws(
        () => memory.u32(page * PAGE),
        (error: HypercallError) => error.code === 'EFAULT',
      );
    }
    u32[at(3) + 2 * 5] = (8 * PAGE) | PRESENT;
    memory.setRegisters(CR0, PAGE, CR4_PAE);
    assert.equal(memory.u32(5 * PAGE), 0);
  });

  test('is what page tables of two levels say, and physical without any', () => {
    const ram = new Memory(new SharedArrayBuffer(1 << 20));
    const { u32 } = ram;
    const memory = new GuestMemory(ram);
    u32[PAGE / 4 + 1] = (2 * PAGE) | PRESENT;
    u32[PAGE / 4 + 2] = LARGE;
    u32[(2 * PAGE) / 4 + 3] = (5 * PAGE) | PRESENT;
    u32[(5 * PAGE) / 4] = 42;
    memory.setRegisters(CR0, PAGE, CR4_PSE);
    assert.equal(memory.u32((1 << 22) + 3 * PAGE), 42);
    assert.equal(memory.u32((2 << 22) + 5 * PAGE), 42);
    memory.setRegisters(0, PAGE, 0);
    assert.equal(memory.u32(5 * PAGE), 42);
  });
});

test('events go into the two-level bitmaps, and masked ones wait', () => {
  const ram = new Memory(new SharedArrayBuffer(4 * PAGE));
  const info = new SharedInfo(ram);
  const { evtchn_mask, evtchn_pending, vcpu } = SHARED_INFO_32;
  const VCPU = 2 * PAGE;
  const selector = (VCPU + vcpu.evtchn_pending_sel) / 4;
  info.place(-1, -1);
  assert.equal(info.upcallPending, -1);
  assert.equal(info.isPending, false);
  info.place(PAGE, VCPU);
  ram.u32[(PAGE + evtchn_mask) / 4 + 1] = 1 << 5;
  info.deliver(1, 1 << 5);
  assert.equal(ram.u32[(PAGE + evtchn_pending) / 4 + 1], 1 << 5);
  assert.equal(info.isPending, false);
  info.unmask(32 + 5);
  assert.equal(info.isPending, true);
  assert.equal(ram.u32[selector], 1 << 1);
  assert.equal(ram.u32[(PAGE + evtchn_mask) / 4 + 1], 0);
  ram.u8[VCPU + vcpu.evtchn_upcall_pending] = 0;
  ram.u32[selector] = 0;
  info.deliver(1, 1 << 5);
  assert.equal(info.isPending, false, 'it is pending already');
  info.unmask(32 + 5);
  assert.equal(info.isPending, false, 'it was not masked');
  info.deliver(31, 1 << 31);
  assert.equal(info.isPending, true);
  assert.equal(ram.u32[selector], 0x8000_0000);
});

describe('the host’s side of a guest’s thread', () => {
  /** A thread that a test plays. */
  async function make(server: Partial<GuestServer> = {}) {
    const buffer = new SharedArrayBuffer(CONTROL_BYTES + 4 * PAGE);
    const posted: ToGuest[] = [];
    let say: (message: FromGuest) => void = () => {};
    let die: (error: Error) => void = () => {};
    let terminated = false;
    const port = {
      post: (message: ToGuest) => {
        posted.push(message);
        const ram = { buffer, start: CONTROL_BYTES, bytes: 4 * PAGE };
        if (message.type === 'create') setImmediate(() => say({ type: 'created', ram, control: 0 }));
      },
      onMessage: (listener: typeof say) => {
        say = listener;
      },
      onError: (listener: typeof die) => {
        die = listener;
      },
      terminate: async () => {
        terminated = true;
      },
    };
    const thread = await GuestThread.create(() => port, {} as never);
    // Time goes on at each look at it, so that nobody spins for ever.
    let time = 0;
    const tasks: Task[] = [];
    const scheduler = { now: () => (time += 0.02), post: (task: Task) => tasks.push(task) };
    const seen: unknown[] = [];
    thread.attach(
      {
        send: port => void seen.push(['send', port]),
        call: (...call) => {
          seen.push(call);
          return 7;
        },
        serial: text => void seen.push(text),
        failed: error => void seen.push(error.message),
        ...server,
      },
      scheduler as unknown as Scheduler,
    );
    const control = new ControlBlock(buffer, 0);
    const runTasks = () => {
      for (let task = tasks.shift(); task !== undefined; task = tasks.shift()) task.run();
    };
    const { words } = control;
    return {
      thread,
      words,
      posted,
      seen,
      runTasks,
      say: (message: FromGuest) => say(message),
      die: (error: Error) => die(error),
      terminated: () => terminated,
    };
  }

  test('takes what a guest has sent before its hypercall, then sleeps until it knocks', async () => {
    const { words, seen, say, runTasks } = await make();
    assert.equal(words[WORD.asleep], 1);
    words[WORD.sendWords] = (1 << 3) | (1 << 31);
    words[WORD.sendWords + 31] = 1;
    words[WORD.sends] = 1;
    words[WORD.number] = HYPERVISOR.sched_op;
    words[WORD.a] = -1;
    words[WORD.call] = CALL.asked;
    words[WORD.asleep] = 0;
    say(0);
    assert.deepEqual(seen, [
      ['send', 3],
      ['send', 31],
      ['send', 992],
      [HYPERVISOR.sched_op, 0xffff_ffff, 0, 0],
    ]);
    assert.equal(words[WORD.call], CALL.answered);
    assert.equal(words[WORD.result], 7);
    assert.equal(words[WORD.again], 0);
    assert.equal(words[WORD.asleep], 0, 'it looks for more');
    words[WORD.call] = CALL.asked;
    runTasks();
    assert.equal(seen.length, 5);
    assert.equal(words[WORD.asleep], 1);
  });

  test('says when a hypercall is to be made again', async () => {
    const { words, say } = await make({ call: () => AGAIN });
    words[WORD.call] = CALL.asked;
    say(0);
    assert.equal(words[WORD.again], 1);
  });

  test('leaves events, and pages that were written to', async () => {
    const { thread, words } = await make();
    thread.deliver(33);
    thread.deliver(34);
    assert.equal(words[WORD.events], 1);
    assert.equal(words[WORD.eventWords + 1], 6);
    assert.equal(words[WORD.wake], 1, 'it is woken once');
    thread.written(2 * PAGE - 1, 2);
    thread.written(2 * PAGE, 100);
    assert.equal(words[WORD.writtenProd], 2);
    assert.deepEqual([...words.subarray(WORD.written, WORD.written + 2)], [1, 2]);
    words[WORD.writtenCons] = 2;
    thread.written(2 * PAGE, 100);
    assert.equal(words[WORD.writtenProd], 3, 'that page was taken before');
  });

  test('tells of memory banks, and knows when they were taken', async () => {
    const { thread, words, posted } = await make();
    const memory = new Memory(new SharedArrayBuffer(PAGE));
    assert.equal(thread.reaches(2, memory), false);
    assert.equal(thread.reaches(2, memory), false);
    assert.equal(words[WORD.mail], 1);
    words[WORD.banks]++;
    assert.equal(thread.reaches(2, memory), true);
    assert.equal(thread.reaches(2, new Memory(new SharedArrayBuffer(PAGE))), false, 'another of that number');
    thread.forget(2);
    thread.forget(2);
    assert.deepEqual(
      posted.map(message => (message.type === 'bank' ? message.memory?.bytes : message.type)),
      ['create', PAGE, PAGE, undefined],
    );
  });

  test('runs, stops, and saves in that order; fails with its thread', async () => {
    const { thread, words, posted, say, die, seen, terminated } = await make();
    await thread.stop();
    await thread.run();
    assert.equal(words[WORD.run], 1);
    const stopped = thread.stop();
    assert.equal(words[WORD.run], 0);
    const again = thread.run();
    assert.equal(posted.length, 2, 'it has not stopped yet');
    say({ type: 'stopped' });
    await stopped;
    await again;
    assert.equal(words[WORD.run], 1);
    const saved = thread.save();
    say({ type: 'saved', state: new ArrayBuffer(3) });
    assert.equal((await saved).length, 3);
    const lost = assert.rejects(thread.restore(new Uint8Array(1)), /out of order/);
    die(new Error('out of order'));
    await lost;
    assert.deepEqual(seen, ['out of order']);
    await thread.destroy();
    assert.ok(terminated());
  });
});
