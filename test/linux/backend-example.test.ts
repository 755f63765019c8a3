import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const EXAMPLE = fileURLToPath(new URL('../../examples/backend.js', import.meta.url));
const TYPE = '/sys/hypervisor/type';
const onXen = existsSync(TYPE) && readFileSync(TYPE, 'utf8').trim() === 'xen';

// On Xen: test/xen/dom0/options.sh.
test('examples/backend.ts says in a sentence that there is no Xen, and ends with status 1', {
  skip: onXen,
}, () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [EXAMPLE], { encoding: 'utf8' });
  assert.equal(status, 1);
  assert.equal(stdout, '');
  assert.match(stderr, /^backend: ENODEV: \/dev\/xen\/evtchn: this machine does not run on Xen .*\n$/);
});
