import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as abi from '../../src/abi/index.js';

/** Sizes and offsets that the public headers give for x86-64 (sizeof and offsetof, Xen c447b7308b13). */
test('grant entries lie as in grant_table.h', () => {
  assert.deepEqual(abi.GRANT_ENTRY_V1, { size: 8, flags: 0, domid: 2, frame: 4 });
  assert.deepEqual(abi.GRANT_ENTRY_V2, {
    size: 16,
    flags: 0,
    domid: 2,
    full_page: { frame: 8 },
    sub_page: { page_off: 4, length: 6, frame: 8 },
    transitive: { trans_domid: 4, gref: 8 },
  });
  assert.equal(4096 / abi.GRANT_ENTRY_V1.size, abi.GRANT_ENTRIES_PER_FRAME_V1);
  assert.equal(4096 / abi.GRANT_ENTRY_V2.size, abi.GRANT_ENTRIES_PER_FRAME_V2);
  assert.equal(4096 / abi.GRANT_STATUS_SIZE, abi.GRANT_STATUS_PER_FRAME);
  assert.equal(1 << abi.GRANT_ENTRY_V1_SHIFT, abi.GRANT_ENTRY_V1.size);
  assert.equal(1 << abi.GRANT_ENTRY_V2_SHIFT, abi.GRANT_ENTRY_V2.size);
  assert.equal(abi.GNTTAB_NR_RESERVED_ENTRIES, 8);
  assert.equal(abi.GNTTAB_RESERVED_CONSOLE, 0);
  assert.equal(abi.GNTTAB_RESERVED_XENSTORE, 1);
});

test('grant flags', () => {
  assert.deepEqual(
    [abi.GTF_invalid, abi.GTF_permit_access, abi.GTF_accept_transfer, abi.GTF_transitive, abi.GTF_type_mask],
    [0, 1, 2, 3, 3],
  );
  assert.deepEqual(
    [abi.GTF_readonly, abi.GTF_reading, abi.GTF_writing, abi.GTF_PWT, abi.GTF_PCD, abi.GTF_PAT],
    [4, 8, 16, 32, 64, 128],
  );
  assert.equal(abi.GTF_sub_page, 256);
  assert.deepEqual([abi.GTF_transfer_committed, abi.GTF_transfer_completed], [4, 8]);
});

test('grant operations', () => {
  assert.deepEqual(Object.keys(abi.GNTTABOP), [
    'map_grant_ref',
    'unmap_grant_ref',
    'setup_table',
    'dump_table',
    'transfer',
    'copy',
    'query_size',
    'unmap_and_replace',
    'set_version',
    'get_status_frames',
    'get_version',
    'swap_grant_ref',
    'cache_flush',
  ]);
  assert.deepEqual(
    Object.values(abi.GNTTABOP),
    Array.from({ length: 13 }, (_, i) => i),
  );
  assert.deepEqual(abi.GNTTAB_MAP_GRANT_REF, {
    size: 32,
    host_addr: 0,
    flags: 8,
    ref: 12,
    dom: 16,
    status: 18,
    handle: 20,
    dev_bus_addr: 24,
  });
  assert.deepEqual(abi.GNTTAB_UNMAP_GRANT_REF, {
    size: 24,
    host_addr: 0,
    dev_bus_addr: 8,
    handle: 16,
    status: 20,
  });
  const { source, dest, len, flags, status, side, size } = abi.GNTTAB_COPY;
  assert.deepEqual([source, dest, len, flags, status, size], [0, 16, 32, 34, 36, 40]);
  assert.deepEqual(side, { ref: 0, gmfn: 0, domid: 8, offset: 10 });
  assert.deepEqual(
    [
      abi.GNTTAB_SETUP_TABLE,
      abi.GNTTAB_TRANSFER,
      abi.GNTTAB_QUERY_SIZE,
      abi.GNTTAB_UNMAP_AND_REPLACE,
      abi.GNTTAB_SET_VERSION,
      abi.GNTTAB_GET_VERSION,
      abi.GNTTAB_GET_STATUS_FRAMES,
      abi.GNTTAB_SWAP_GRANT_REF,
      abi.GNTTAB_CACHE_FLUSH,
    ].map(struct => struct.size),
    [24, 24, 16, 24, 4, 8, 16, 12, 16],
  );
  assert.deepEqual(abi.GNTTAB_QUERY_SIZE, { size: 16, dom: 0, nr_frames: 4, max_nr_frames: 8, status: 12 });
  assert.deepEqual(abi.GNTTAB_SETUP_TABLE, { size: 24, dom: 0, nr_frames: 4, status: 8, frame_list: 16 });
  assert.deepEqual([abi.GNTCOPY_source_gref, abi.GNTCOPY_dest_gref], [1, 2]);
  assert.deepEqual(
    [
      abi.GNTMAP_device_map,
      abi.GNTMAP_host_map,
      abi.GNTMAP_readonly,
      abi.GNTMAP_application_map,
      abi.GNTMAP_contains_pte,
    ],
    [1, 2, 4, 8, 16],
  );
});

test('grant statuses have names', () => {
  assert.deepEqual(
    Object.values(abi.GNTST),
    Array.from({ length: 14 }, (_, i) => 0 - i),
  );
  assert.equal(abi.grantStatusName(-3), 'GNTST_bad_gntref');
  assert.equal(abi.grantStatusName(-99), 'GNTST -99');
});
