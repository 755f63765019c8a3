import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { EVTCHNOP } from '../../src/abi/event-channel.js';
import { SCHEDOP } from '../../src/abi/hvm.js';
import { HYPERVISOR, SHARED_INFO_32 } from '../../src/abi/xen.js';
import { CALL, CONTROL_BYTES, ControlBlock, WORD } from '../../src/guests/linux/control-block.js';
import { type Machine, REGISTER } from '../../src/guests/linux/machine.js';
import { Personality } from '../../src/guests/linux/personality.js';
import { Memory } from '../../src/platform/index.js';

const PAGE = 4096;
const SHARED_INFO = PAGE;
const VCPU_INFO = 2 * PAGE;
/** Where the guest keeps arguments; memory is mapped one to one. */
const ARG = 3 * PAGE;
const VECTOR = 0xf3;
const PORT = 37;

/** What makes a machine a guest, with a machine that does what the test says and a host that answers at once. */
function make(answer: (number: number, a: number) => { result?: number; again?: boolean } = () => ({})) {
  const control = new ControlBlock(new SharedArrayBuffer(CONTROL_BYTES), 0);
  const { words } = control;
  const ram = new Memory(new SharedArrayBuffer(4 * PAGE));
  const registers = new Int32Array(8);
  const log: string[] = [];
  const machine = {
    control,
    ram,
    pages: 4,
    register: (number: number) => registers[number] >>> 0,
    setRegister: (number: number, value: number) => {
      registers[number] = value;
    },
    controlRegister: () => 0,
    physical: (virtual: number) => virtual,
    repeatInstruction: () => log.push('again'),
    watchUpcall: (address: number) => log.push(`watch ${address}`),
    pagesChanged: () => log.push('pages'),
    written: (address: number) => log.push(`written ${address}`),
    mapMmio: () => {},
    mapPort: () => {},
    addPciDevice: () => {},
  };
  let knocks = 0;
  let time = 0;
  // A host that sleeps: knocked at, it answers before the guest's thread looks.
  const knock = () => {
    knocks++;
    if (words[WORD.call] !== CALL.asked) return;
    const { result = 0, again = false } = answer(words[WORD.number], words[WORD.a]);
    log.push(`call ${words[WORD.number]}.${words[WORD.a]}`);
    words[WORD.result] = result;
    words[WORD.again] = again ? 1 : 0;
    words[WORD.asleep] = 1;
    Atomics.store(words, WORD.call, CALL.answered);
  };
  words[WORD.asleep] = 1;
  words[WORD.sharedInfo] = -1;
  words[WORD.vcpuInfo] = -1;
  const personality = new Personality(knock, () => time);
  personality.attach(machine as unknown as Machine);
  const place = () => {
    words[WORD.sharedInfo] = SHARED_INFO;
    words[WORD.vcpuInfo] = VCPU_INFO;
    words[WORD.vector] = VECTOR;
  };
  return {
    personality,
    words,
    ram,
    log,
    place,
    knocks: () => knocks,
    wait: (ms: number) => {
      time += ms;
    },
    hypercall: (number: number, command: number, port = 0) => {
      registers[REGISTER.eax] = number;
      registers[REGISTER.ebx] = command;
      registers[REGISTER.ecx] = ARG;
      ram.u32[ARG / 4] = port;
      personality.hypercall(machine as unknown as Machine);
      return registers[REGISTER.eax];
    },
  };
}

describe('what makes an emulated PC a guest, in its thread', () => {
  test('sends without waiting on a port that is known to be open, until it closes it', () => {
    const { hypercall, words, log, place, personality } = make((_, a) => ({
      result: a === EVTCHNOP.send && log.length === 0 ? -22 : 0,
    }));
    place();
    personality.start();
    log.length = 0;
    const send = () => hypercall(HYPERVISOR.event_channel_op, EVTCHNOP.send, PORT);
    const sent = `call ${HYPERVISOR.event_channel_op}.${EVTCHNOP.send}`;
    assert.equal(send(), -22, 'the hypervisor says that it is not open');
    assert.equal(words[WORD.sends], 0);
    assert.equal(send(), 0);
    assert.deepEqual(
      log.filter(line => line === sent),
      [sent, sent],
    );
    assert.equal(send(), 0);
    assert.equal(words[WORD.sends], 1);
    assert.equal(words[WORD.sendWords + 1], 1 << 5);
    assert.equal(hypercall(HYPERVISOR.event_channel_op, EVTCHNOP.close, PORT), 0);
    send();
    assert.equal(log.filter(line => line === sent).length, 3, 'it is the hypervisor’s to know again');
  });

  test('lets what it sends gather, but not for long', () => {
    const { hypercall, place, personality, knocks, wait, words } = make();
    place();
    personality.start();
    const send = () => hypercall(HYPERVISOR.event_channel_op, EVTCHNOP.send, PORT);
    send();
    const before = knocks();
    send();
    wait(0.1);
    send();
    assert.equal(knocks(), before);
    wait(0.3);
    send();
    assert.equal(knocks(), before + 1);
    send();
    assert.equal(knocks(), before + 1, 'the host is awake');
    words[WORD.asleep] = 1;
    words[WORD.sends] = 0;
    personality.flush();
    assert.equal(knocks(), before + 1, 'there is nothing to take');
    send();
    personality.flush();
    assert.equal(knocks(), before + 2);
  });

  test('unmasks by itself, and asks for the vector when events wait', () => {
    const { hypercall, place, personality, ram, words, log } = make();
    personality.start();
    assert.deepEqual(log, ['watch -1']);
    const { evtchn_mask, vcpu } = SHARED_INFO_32;
    const unmask = () => hypercall(HYPERVISOR.event_channel_op, EVTCHNOP.unmask, PORT);
    const mask = (SHARED_INFO + evtchn_mask) / 4 + 1;
    words[WORD.eventWords + 1] = 1 << 5;
    words[WORD.events] = 1;
    assert.equal(personality.upcallVector(), 0);
    assert.equal(words[WORD.events], 1, 'it waits until the guest has said where');
    ram.u32[mask] = 1 << 5;
    place();
    unmask();
    assert.equal(log.at(-1), `watch ${VCPU_INFO + vcpu.evtchn_upcall_pending}`);
    assert.equal(words[WORD.events], 0);
    assert.equal(personality.upcallVector(), 0, 'it is masked');
    const calls = log.length;
    unmask();
    assert.equal(log.length, calls, 'nobody was asked');
    assert.equal(ram.u32[mask], 0);
    assert.equal(personality.upcallVector(), VECTOR);
    ram.u8[VCPU_INFO + vcpu.evtchn_upcall_pending] = 0;
    assert.equal(personality.upcallVector(), 0);
  });

  test('answers yield and block, and repeats what is to be made again', () => {
    const { hypercall, log } = make(() => ({ again: true }));
    assert.equal(hypercall(HYPERVISOR.sched_op, SCHEDOP.yield), 0);
    assert.equal(hypercall(HYPERVISOR.sched_op, SCHEDOP.block), 0);
    assert.deepEqual(log, []);
    assert.equal(hypercall(HYPERVISOR.sched_op, SCHEDOP.shutdown), HYPERVISOR.sched_op);
    assert.equal(log.at(-1), 'again');
  });

  test('drops code where the host wrote, all of it when the ring has gone round', () => {
    const { personality, words, log } = make();
    words[WORD.written] = 2;
    words[WORD.written + 1] = 3;
    words[WORD.writtenProd] = 2;
    personality.takeMail();
    personality.takeMail();
    assert.deepEqual(log, [`written ${2 * PAGE}`, `written ${3 * PAGE}`]);
    words[WORD.writtenProd] = 100_000;
    personality.takeMail();
    assert.equal(log.at(-1), 'written 0');
    assert.equal(words[WORD.writtenCons], 100_000);
  });

  test('looks pages up anew when the host has changed them', () => {
    const { hypercall, words, log } = make();
    words[WORD.pagesChanged] = 5;
    hypercall(HYPERVISOR.memory_op, 0);
    hypercall(HYPERVISOR.memory_op, 0);
    assert.deepEqual(
      log.filter(line => line === 'pages'),
      ['pages'],
    );
  });
});
