import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as abi from '../../src/abi/index.js';

test('event-channel operations', () => {
  assert.deepEqual(Object.keys(abi.EVTCHNOP), [
    'bind_interdomain',
    'bind_virq',
    'bind_pirq',
    'close',
    'send',
    'status',
    'alloc_unbound',
    'bind_ipi',
    'bind_vcpu',
    'unmask',
    'reset',
    'init_control',
    'expand_array',
    'set_priority',
  ]);
  assert.deepEqual(
    Object.values(abi.EVTCHNOP),
    Array.from({ length: 14 }, (_, i) => i),
  );
  assert.deepEqual(abi.EVTCHN_ALLOC_UNBOUND, { size: 8, dom: 0, remote_dom: 2, port: 4 });
  assert.deepEqual(abi.EVTCHN_BIND_INTERDOMAIN, { size: 12, remote_dom: 0, remote_port: 4, local_port: 8 });
  assert.deepEqual(
    [
      abi.EVTCHN_BIND_VIRQ,
      abi.EVTCHN_BIND_PIRQ,
      abi.EVTCHN_BIND_IPI,
      abi.EVTCHN_CLOSE,
      abi.EVTCHN_SEND,
      abi.EVTCHN_STATUS,
      abi.EVTCHN_BIND_VCPU,
      abi.EVTCHN_UNMASK,
      abi.EVTCHN_RESET,
      abi.EVTCHN_INIT_CONTROL,
      abi.EVTCHN_EXPAND_ARRAY,
      abi.EVTCHN_SET_PRIORITY,
    ].map(struct => struct.size),
    [12, 12, 8, 4, 4, 24, 8, 4, 2, 24, 8, 8],
  );
  const { status } = abi.EVTCHN_STATUS;
  assert.deepEqual([status, abi.EVTCHN_STATUS.vcpu, abi.EVTCHN_STATUS.interdomain.port], [8, 12, 20]);
});

test('port statuses and virtual interrupts', () => {
  assert.deepEqual(abi.EVTCHNSTAT, { closed: 0, unbound: 1, interdomain: 2, pirq: 3, virq: 4, ipi: 5 });
  assert.equal(abi.evtchnStatusName(2), 'interdomain');
  assert.equal(abi.evtchnStatusName(9), 'status 9');
  assert.equal(abi.VIRQ.DOM_EXC, 3);
  assert.equal(abi.VIRQ.ARGO, 11);
  assert.equal(abi.NR_VIRQS, 24);
});

test('shared_info of the two-level ABI', () => {
  const wide = abi.sharedInfoLayout(64);
  assert.deepEqual(
    [wide.vcpu_info, wide.evtchn_pending, wide.evtchn_mask, wide.wc_sec, wide.nrEventChannels],
    [0, 2048, 2560, 3076, 4096],
  );
  assert.deepEqual(wide.vcpu, {
    size: 64,
    evtchn_upcall_pending: 0,
    evtchn_upcall_mask: 1,
    evtchn_pending_sel: 8,
    arch: 16,
    time: 32,
  });
  const narrow = abi.sharedInfoLayout(32);
  assert.deepEqual(
    [narrow.evtchn_pending, narrow.evtchn_mask, narrow.wc_version, narrow.nrEventChannels],
    [2048, 2048 + 128, 2048 + 256, 1024],
  );
  assert.equal(narrow.vcpu.evtchn_pending_sel, 4);
  for (const layout of [wide, narrow]) {
    assert.equal(layout.vcpu.size * abi.XEN_LEGACY_MAX_VCPUS, layout.evtchn_pending);
    assert.equal(layout.nrEventChannels, layout.wordBits ** 2);
    assert.equal(layout.evtchn_mask - layout.evtchn_pending, layout.nrEventChannels / 8);
  }
});

test('the FIFO event word and control block', () => {
  const { PENDING, MASKED, LINKED, BUSY, LINK_BITS, NR_CHANNELS, control_block } = abi.EVTCHN_FIFO;
  assert.deepEqual([PENDING, MASKED, LINKED, BUSY, LINK_BITS, NR_CHANNELS], [31, 30, 29, 28, 17, 131072]);
  assert.deepEqual(control_block, { size: 72, ready: 0, head: 8 });
});
