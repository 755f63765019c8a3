import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { deflateSync } from 'node:zlib';
import { ERRNO } from '../../src/abi/errno.js';
import { GNTTABOP } from '../../src/abi/grant-table.js';
import { VCPUOP, XENMAPSPACE, XENMEM } from '../../src/abi/hvm.js';
import { DOMID_SELF, HYPERVISOR } from '../../src/abi/xen.js';
import { CONTROL_BYTES, ControlBlock, WORD } from '../../src/guests/linux/control-block.js';
import { cpio, S_IFDIR, S_IFREG } from '../../src/guests/linux/cpio.js';
import { LinuxGuestError } from '../../src/guests/linux/files.js';
import { ForeignPages } from '../../src/guests/linux/foreign-pages.js';
import { ForeignWindow } from '../../src/guests/linux/foreign-window.js';
import { GuestMemory } from '../../src/guests/linux/guest-memory.js';
import { Hypercalls } from '../../src/guests/linux/hypercalls.js';
import { Lines } from '../../src/guests/linux/lines.js';
import { decodeSaved, encodeSaved, savedAsJson, savedFromJson } from '../../src/guests/linux/snapshot.js';
import { Memory } from '../../src/platform/memory.js';
import { BANK_SHIFT } from '../../src/platform/sim/frame-table.js';
import { makeHost } from '../platform/sim/host.js';

const PAGE = 4096;

test('an initramfs is newc: headers of 110 digits, names and data on multiples of 4, a trailer', () => {
  const archive = cpio([
    { path: 'bin', mode: S_IFDIR | 0o755 },
    { path: 'bin/a', mode: S_IFREG | 0o644, data: new TextEncoder().encode('hello') },
  ]);
  const text = new TextDecoder().decode(archive);
  assert.equal(archive.length % 4, 0);
  const heads = [...text.matchAll(/070701/g)].map(({ index }) => index);
  assert.deepEqual(
    heads.map(at => at % 4),
    [0, 0, 0],
  );
  const field = (head: number, i: number) =>
    Number.parseInt(text.slice(head + 6 + 8 * i, head + 14 + 8 * i), 16);
  assert.equal(field(heads[1], 1), S_IFREG | 0o644);
  assert.equal(field(heads[1], 6), 5);
  assert.equal(field(heads[1], 11), 'bin/a\0'.length);
  assert.equal(text.slice(heads[1] + 110, heads[1] + 116), 'bin/a\0');
  assert.equal(text.slice(heads[1] + 116, heads[1] + 121), 'hello');
  assert.match(text, /TRAILER!!!\0/);
});

test('a saved guest is read as it was written, and nothing else is', async () => {
  const saved = {
    memoryMib: 64,
    hypercalls: { callback: 2 ** 57 + 0xf3, vector: 0xf3, balloonedPages: [7] },
    vifs: [0],
    machine: Uint8Array.of(1, 2, 3),
  };
  const bytes = encodeSaved(saved);
  assert.deepEqual(decodeSaved(bytes, 'file'), saved);
  const json = JSON.parse(JSON.stringify(await savedAsJson(saved))) as Record<string, unknown>;
  const again = await savedFromJson(json);
  assert.deepEqual({ ...again, machine: [...again.machine] }, { ...saved, machine: [1, 2, 3] });
  for (const broken of [bytes.subarray(0, 3), bytes.subarray(0, 40), Uint8Array.of(255, 255, 255, 255, 0)]) {
    assert.throws(() => decodeSaved(broken, 'file'), LinuxGuestError);
  }
  await assert.rejects(savedFromJson({ ...json, v86: 'another' }), LinuxGuestError);
  await assert.rejects(savedFromJson({}), LinuxGuestError);
  await assert.rejects(savedFromJson(null), LinuxGuestError);
  for (const [key, value, message] of [
    ['memoryMib', '64', 'memoryMib: "64" is not a whole number from 1 to 4294967295'],
    [
      'hypercalls',
      { callback: 1, vector: 256, balloonedPages: [] },
      'hypercalls: vector: 256 is not a whole number',
    ],
    [
      'hypercalls',
      { callback: 1, vector: 1, balloonedPages: {} },
      'hypercalls: balloonedPages: an object is not a list',
    ],
    ['vifs', undefined, 'vifs: it is missing'],
    ['machine', Buffer.from('no').toString('base64'), 'machine: it is damaged (incorrect header check)'],
    [
      'machine',
      deflateSync(Buffer.alloc(400 << 20)).toString('base64'),
      'machine: it is damaged (Cannot create a Buffer',
    ],
  ] as const) {
    const refused = (error: Error) => error.message.startsWith(`EINVAL: the saved guest: ${message}`);
    await assert.rejects(savedFromJson({ ...json, [key]: value }), refused, message);
  }
});

test('a console’s lines come in pieces, and one that does not end is cut', () => {
  const lines = new Lines();
  assert.deepEqual(
    ['a', 'b\nc', '', '\n', 'd\ne\nf', 'g\n'].map(piece => lines.add(piece)),
    ['', 'ab', '', 'c', 'd\ne', 'fg'],
  );
  for (let i = 0; i < 1000; i++) lines.add('x'.repeat(1000));
  assert.equal(lines.add('\n').length, 1024);
});

describe('an emulated PC’s RAM', () => {
  const pages = 16;

  function emulated() {
    const { hypervisor } = makeHost();
    // It lies somewhere in the emulator's own memory.
    const buffer = new SharedArrayBuffer((pages + 3) * PAGE);
    const memory = new Memory(buffer, 3 * PAGE, pages * PAGE);
    const dom0 = hypervisor.createDomain({ privileged: true });
    const guest = hypervisor.createDomain({ wordBits: 32, bank: { memory, pages, threaded: false } });
    const grant = (gref: number, gfn: number) => {
      const at = guest.grantTable.entryWord(gref);
      hypervisor.memory.u32[at + 1] = gfn;
      hypervisor.memory.i32[at] = 1;
    };
    return { dom0, guest, memory, buffer, grant };
  }

  test('is mapped where it lies, from the first byte of its own', () => {
    const { dom0, buffer, memory, grant } = emulated();
    grant(8, 5);
    const mapping = dom0.platform.grants.map(1, 8, false);
    assert.equal(mapping.memory, memory);
    mapping.memory.u8[mapping.address] = 42;
    assert.equal(new Uint8Array(buffer)[(3 + 5) * PAGE], 42);
    dom0.platform.grants.unmap(mapping);
  });

  test('cannot be reached where the guest gave a page up, until it has it back', () => {
    const { dom0, guest, grant } = emulated();
    grant(8, 5);
    const before = guest.pages;
    assert.ok(guest.takeRam(5));
    assert.ok(!guest.takeRam(5) && !guest.takeRam(pages));
    assert.equal(guest.pages, before - 1);
    assert.throws(() => dom0.platform.grants.map(1, 8, false), /GNTST_bad_page/);
    assert.ok(guest.giveRam(5));
    assert.ok(!guest.giveRam(5) && !guest.giveRam(pages));
    dom0.platform.grants.unmap(dom0.platform.grants.map(1, 8, false));
    assert.equal(guest.pages, before);
  });
});

describe('a hostile guest’s hypercalls', () => {
  const STORE_GFN = 0xfef00;
  const pages = 16;

  function make() {
    const { hypervisor } = makeHost();
    const ram = new Memory(new SharedArrayBuffer(pages * PAGE));
    hypervisor.createDomain({ privileged: true });
    const bank = { memory: ram, pages, threaded: true };
    const domain = hypervisor.createDomain({ wordBits: 32, storeGfn: STORE_GFN, bank });
    const control = new ControlBlock(new SharedArrayBuffer(CONTROL_BYTES), 0);
    const memory = new GuestMemory(ram);
    const foreign = new ForeignPages(ram, control, () => {});
    const hypercalls = new Hypercalls({
      domain,
      ram,
      memory,
      foreign,
      reaches: () => true,
      onConsole: () => {},
    });
    return { ram, memory, hypercalls };
  }

  for (const gfn of [STORE_GFN, pages, 0xffff_ffff]) {
    test(`page ${gfn.toString(16)} is no place for what Xen shares with it`, () => {
      const { ram, hypercalls } = make();
      ram.u32.set([DOMID_SELF, XENMAPSPACE.shared_info, 0, gfn], PAGE / 4);
      assert.equal(hypercalls.call(HYPERVISOR.memory_op, XENMEM.add_to_physmap, PAGE, 0), -ERRNO.EINVAL);
      ram.u32.set([gfn, 0, 0, 0], PAGE / 4);
      assert.equal(hypercalls.call(HYPERVISOR.vcpu_op, VCPUOP.register_vcpu_info, 0, PAGE), -ERRNO.EINVAL);
    });
  }

  test('one does 8192 grant operations, and refuses more without a look at them', () => {
    const { ram, memory, hypercalls } = make();
    // All its addresses are one page: no end of the operations is beyond its memory.
    ram.u32.fill((2 * PAGE) | 3, PAGE / 4, (2 * PAGE) / 4);
    ram.u32.fill((3 * PAGE) | 3, (2 * PAGE) / 4, (3 * PAGE) / 4);
    memory.setRegisters(0x8000_0000 | 0, PAGE, 0);
    for (const operation of [GNTTABOP.map_grant_ref, GNTTABOP.unmap_grant_ref, GNTTABOP.copy]) {
      assert.equal(hypercalls.call(HYPERVISOR.grant_table_op, operation, 0, 8192), 0);
      for (const count of [8193, 10_000_000]) {
        assert.equal(hypercalls.call(HYPERVISOR.grant_table_op, operation, 0, count), -ERRNO.EINVAL);
      }
    }
  });
});

test('pages of other domains: writable ones are live, read-only ones are what they were when mapped', () => {
  const ram = new Memory(new SharedArrayBuffer(8 * PAGE));
  const control = new ControlBlock(new SharedArrayBuffer(CONTROL_BYTES), 0);
  const written: number[] = [];
  const foreign = new ForeignPages(ram, control, address => written.push(address));
  const window = new ForeignWindow();
  const other = new Memory(new SharedArrayBuffer(4 * PAGE));
  const BANK = 3;
  const frame = (BANK << BANK_SHIFT) | 1;
  const seenAt = (gfn: number) => (gfn ^ control.pages[gfn]) * PAGE;

  assert.ok(foreign.map(2, frame, other, PAGE, false));
  const at = seenAt(2);
  assert.notEqual(at, 2 * PAGE);
  assert.equal(seenAt(3), 3 * PAGE);
  assert.equal(at >>> window.shift, window.number);
  assert.equal(window.read32(at), -1, 'nothing is there yet');
  window.attach(control);
  assert.equal(window.read32(at), -1, 'a bank that this thread has not been told of');
  window.setBank(BANK, other);
  window.write32(at + 8, 0x01020304);
  assert.equal(other.u32[(PAGE + 8) / 4], 0x01020304);
  window.write16(at + 13, 0x0506);
  assert.equal(other.u32[(PAGE + 12) / 4], 0x00050600);
  window.write16(at + 14, 0x0708);
  assert.equal(other.u32[(PAGE + 12) / 4], 0x07080600);
  other.u8[PAGE + 8] = 0xff;
  assert.equal(window.read8(at + 8), 0xff);
  assert.equal(window.read32(at + 9) & 0xff, 0x03);
  assert.ok(!foreign.map(2, frame, other, 0, false), 'a page is replaced once');
  assert.ok(!foreign.map(8, frame, other, 0, false), 'beyond the RAM there is none');
  assert.equal(foreign.shown, 1);
  foreign.hide(2);
  assert.equal(seenAt(2), 2 * PAGE);
  assert.equal(window.read32(at + 8), -1);
  assert.equal(control.words[WORD.pagesChanged], 2);

  other.u8[2 * PAGE] = 7;
  assert.ok(foreign.map(4, frame + 1, other, 2 * PAGE, true));
  other.u8[2 * PAGE] = 8;
  assert.equal(ram.u8[4 * PAGE], 7);
  assert.deepEqual(written, [4 * PAGE]);
  assert.equal(foreign.shown, 0);
});
