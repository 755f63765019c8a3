import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GNTST } from '../../src/abi/index.js';
import { COPY_LOCAL, CopyBatch, GrantError } from '../../src/platform/index.js';

test('a batch holds what was added, up to its capacity', () => {
  const batch = new CopyBatch(2);
  assert.equal(batch.free, 2);
  assert.equal(batch.add(3, 0xffffffff, 10, COPY_LOCAL, 20, 30, 40), 0);
  assert.equal(batch.add(COPY_LOCAL, 1, 0, 5, 6, 0, 0xffff), 1);
  assert.equal(batch.free, 0);
  assert.deepEqual(
    [batch.srcDomid[0], batch.srcRef[0], batch.srcOffset[0], batch.dstDomid[0], batch.dstRef[0]],
    [3, 0xffffffff, 10, COPY_LOCAL, 20],
  );
  assert.deepEqual([batch.dstOffset[0], batch.length[1]], [30, 0xffff]);
  assert.equal(batch.status[0], GNTST.general_error, 'until it was flushed');
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
