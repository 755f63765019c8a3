import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { cpio, S_IFDIR, S_IFREG } from '../../src/guests/linux/cpio.js';
import { LinuxGuestError } from '../../src/guests/linux/files.js';
import { ForeignPages } from '../../src/guests/linux/foreign-pages.js';
import type { Machine, MmioHandler } from '../../src/guests/linux/machine.js';
import { decodeSaved, encodeSaved, savedAsJson, savedFromJson } from '../../src/guests/linux/snapshot.js';
import { Memory } from '../../src/platform/memory.js';
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

test('pages of other domains: writable ones are live, read-only ones are what they were when mapped', () => {
  const ram = new Memory(new SharedArrayBuffer(8 * PAGE));
  const foreign: boolean[] = [];
  let mmio: MmioHandler | null = null;
  const machine = {
    ram,
    pages: 8,
    mapMmio: (_address: number, _bytes: number, handler: MmioHandler) => {
      mmio = handler;
    },
    setForeign: (any: boolean) => foreign.push(any),
    written: () => {},
  } as unknown as Machine;
  const mapped = new ForeignPages(machine);
  const other = new Memory(new SharedArrayBuffer(4 * PAGE));

  assert.ok(mapped.map(2, other, PAGE, false));
  const window = mapped.translatePage(2) * PAGE;
  assert.notEqual(window, 2 * PAGE);
  assert.equal(mapped.translatePage(3), 3);
  mmio!.write32(window + 8, 0x01020304);
  assert.equal(other.u32[(PAGE + 8) / 4], 0x01020304);
  other.u8[PAGE + 8] = 0xff;
  assert.equal(mmio!.read8(window + 8), 0xff);
  assert.equal(mmio!.read32(window + 9) & 0xff, 0x03);
  assert.ok(!mapped.map(2, other, 0, false), 'a page is replaced once');
  assert.ok(!mapped.map(8, other, 0, false), 'beyond the RAM there is none');
  mapped.unmap(2);
  assert.equal(mapped.translatePage(2), 2);
  assert.equal(mmio!.read32(window + 8), -1);
  assert.deepEqual(foreign, [true, false]);

  other.u8[2 * PAGE] = 7;
  assert.ok(mapped.map(4, other, 2 * PAGE, true));
  other.u8[2 * PAGE] = 8;
  assert.equal(ram.u8[4 * PAGE], 7);
  assert.equal(mapped.mapped, 0);
});
