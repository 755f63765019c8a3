import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GNTST } from '../../src/abi/index.js';
import {
  COPY_LENGTH,
  COPY_LOCAL,
  COPY_STATUS,
  COPY_WORDS,
  CopyBatch,
  GrantError,
} from '../../src/platform/index.js';

test('a batch holds what was added, up to its capacity', () => {
  const batch = new CopyBatch(2);
  assert.equal(batch.free, 2);
  assert.equal(batch.add(3, 0xffffffff, 10, COPY_LOCAL, 20, 30, 40), 0);
  assert.equal(batch.add(COPY_LOCAL, 1, 0, 5, 6, 0, 0xffff), 1);
  assert.equal(batch.free, 0);
  assert.deepEqual([...batch.words.subarray(0, COPY_STATUS)], [3, -1, 10, COPY_LOCAL, 20, 30, 40]);
  assert.equal(batch.words[COPY_WORDS + COPY_LENGTH], 0xffff);
  assert.deepEqual(
    [batch.status(0), batch.status(1)],
    Array(2).fill(GNTST.general_error),
    'until it was flushed',
  );
  assert.equal(batch.done(0, 0), true);
  assert.equal(batch.done(0, 2), false);
  batch.setStatus(0, GNTST.okay);
  assert.deepEqual([batch.done(0, 1), batch.done(0, 2)], [true, false]);
  batch.setAll(GNTST.okay);
  assert.equal(batch.done(0, 2), true);
  assert.throws(() => batch.add(0, 0, 0, 0, 0, 0, 0), RangeError);
  batch.clear();
  assert.deepEqual([batch.count, batch.free], [0, 2]);
});

test('a grant error tells the status and the nearest errno', () => {
  const error = new GrantError(GNTST.bad_gntref, 'domain 0 cannot map grant 9 of domain 3');
  assert.deepEqual([error.status, error.code, error.errno, error.name], [-3, 'EINVAL', 22, 'GrantError']);
  assert.equal(error.message, 'EINVAL: domain 0 cannot map grant 9 of domain 3 (GNTST_bad_gntref)');
  assert.equal(new GrantError(-99, 'x').code, 'EIO');
});
