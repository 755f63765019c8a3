import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { COPY_LOCAL, CopyBatch } from '../../../src/platform/copy-batch.js';
import { CopySegments, type ForeignPages, SEGMENT_BYTES } from '../../../src/platform/linux/index.js';

const BASE = 0x7f12_3456_7000;
const OWN: ForeignPages = { domidAt: () => -1, grefAt: () => 0 };

function segments(count: number, foreign = OWN) {
  const bytes = new Uint8Array(count * SEGMENT_BYTES);
  const view = new DataView(bytes.buffer);
  return { view, segments: new CopySegments(new Uint32Array(bytes.buffer), BASE, foreign) };
}

function refuse(): void {
  assert.fail('there is no copy between two local sides');
}

describe('segments for IOCTL_GNTDEV_GRANT_COPY', () => {
  test('a grant to local memory: reference, offset and domain; address; length, flag 1', () => {
    const { view, segments: s } = segments(4);
    const batch = new CopyBatch(4);
    batch.add(7, 0x12345678, 0x123, COPY_LOCAL, 5, 0xff0, 16);
    assert.equal(s.encode(batch, 0, refuse), 1);
    assert.equal(view.getUint32(0, true), 0x12345678);
    assert.equal(view.getUint16(4, true), 0x123);
    assert.equal(view.getUint16(6, true), 7);
    assert.equal(view.getBigUint64(8, true), BigInt(BASE + 5 * 4096 + 0xff0));
    assert.equal(view.getUint16(16, true), 16);
    assert.equal(view.getUint16(18, true), 1);
  });

  test('local memory to a grant: flag 2; a domain above 32767 keeps its number', () => {
    const { view, segments: s } = segments(4);
    const batch = new CopyBatch(4);
    batch.add(COPY_LOCAL, 0x70000, 1, 0x7ff0, 9, 4095, 1);
    s.encode(batch, 0, refuse);
    assert.equal(view.getBigUint64(0, true), BigInt(BASE) + 0x70000n * 4096n + 1n);
    assert.equal(view.getUint32(8, true), 9);
    assert.equal(view.getUint16(12, true), 4095);
    assert.equal(view.getUint16(14, true), 0x7ff0);
    assert.equal(view.getUint16(18, true), 2);
  });

  test('a grant to a grant: flags 3', () => {
    const { view, segments: s } = segments(1);
    const batch = new CopyBatch(1);
    batch.add(1, 10, 0, 2, 20, 100, 4096 - 100);
    s.encode(batch, 0, refuse);
    assert.equal(view.getUint16(18, true), 3);
    assert.equal(view.getUint16(6, true), 1);
    assert.equal(view.getUint16(14, true), 2);
  });

  test('a local page at which a grant is mapped is named by that grant', () => {
    const foreign: ForeignPages = { domidAt: page => (page === 3 ? 6 : -1), grefAt: () => 77 };
    const { view, segments: s } = segments(1, foreign);
    const batch = new CopyBatch(1);
    batch.add(1, 10, 0, COPY_LOCAL, 3, 8, 4);
    s.encode(batch, 0, refuse);
    assert.equal(view.getUint32(8, true), 77);
    assert.equal(view.getUint16(12, true), 8);
    assert.equal(view.getUint16(14, true), 6);
    assert.equal(view.getUint16(18, true), 3);
  });

  test('copies inside local memory are left to the caller, and statuses go back to their copies', () => {
    const { view, segments: s } = segments(2);
    const batch = new CopyBatch(8);
    const local: number[] = [];
    batch.add(COPY_LOCAL, 1, 0, COPY_LOCAL, 2, 0, 64);
    batch.add(1, 10, 0, COPY_LOCAL, 2, 0, 64);
    batch.add(COPY_LOCAL, 1, 0, COPY_LOCAL, 2, 64, 64);
    batch.add(1, 11, 0, COPY_LOCAL, 2, 0, 64);
    batch.add(1, 12, 0, COPY_LOCAL, 2, 0, 64);
    const done = s.encode(batch, 0, (_, i) => local.push(i));
    assert.equal(done, 4, 'the segments are full');
    view.setInt16(20, 0, true);
    view.setInt16(24 + 20, -3, true);
    s.finish(batch);
    assert.equal(s.encode(batch, done, refuse), 5);
    assert.equal(s.count, 1);
    s.fail(batch);
    assert.deepEqual(local, [0, 2]);
    assert.deepEqual(
      [1, 2, 3, 4].map(i => batch.status(i)),
      [0, -1, -3, -1],
    );
  });
});
