import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import { explainDevice, openXenDevice, SystemError } from '../../../src/platform/linux/index.js';

const XEN = { hypervisor: 'xen', deviceExists: true, isRoot: true };

describe('what a message about a device of Xen says', () => {
  test('not on Xen', () => {
    const facts = { hypervisor: '', deviceExists: false, isRoot: true };
    assert.match(explainDevice('/dev/xen/evtchn', 'ENOENT', facts), /does not run on Xen/);
  });

  test('module not loaded', () => {
    const facts = { ...XEN, deviceExists: false };
    assert.match(explainDevice('/dev/xen/gntalloc', 'ENOENT', facts), /"modprobe xen-gntalloc"/);
  });

  test('not root', () => {
    const facts = { ...XEN, isRoot: false };
    assert.match(explainDevice('/dev/xen/gntdev', 'EACCES', facts), /run as root/);
  });

  test('anything else: the error', () => {
    assert.match(explainDevice('/dev/xen/gntdev', 'EBUSY', XEN), /cannot be opened \(EBUSY\)/);
  });

  test('this machine, where it is no Xen domain', { skip: existsSync('/dev/xen/evtchn') }, () => {
    assert.throws(
      () => openXenDevice('/dev/xen/evtchn'),
      (error: SystemError) =>
        error instanceof SystemError && /does not run on Xen|modprobe/.test(error.message),
    );
  });
});
