import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { rerunHotplug } from '../../src/linux/rerun-hotplug.js';
import { Host } from '../support/host.js';

test('the script of a vif that is taken over runs again; what goes wrong with it is logged, and harms nobody', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pvnet-hotplug-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const [good, bad, output] = ['good', 'bad', 'output'].map(name => join(folder, name));
  writeFileSync(good, `#!/bin/sh\necho "$@" $vif $XENBUS_PATH >${output}\n`, { mode: 0o700 });
  writeFileSync(bad, '#!/bin/sh\nexit 3\n', { mode: 0o700 });
  const host = await Host.boot();
  const { kernel } = host.dom0;
  await host.connectVif(await host.createGuest('a'));
  const dir = 'backend/vif/1/0';
  const log: string[] = [];
  const rerun = async (vif: string) => {
    let done = false;
    const ended = rerunHotplug(kernel, dir, vif, line => log.push(line)).finally(() => {
      done = true;
    });
    for (; !done; await delay(5)) await host.settle();
    await ended;
  };
  for (const script of [good, bad, join(folder, 'none'), 'a\0b']) {
    await host.write(`/local/domain/0/${dir}/script`, script);
    await rerun('vif1.0');
  }
  assert.equal(readFileSync(output, 'utf8'), `online type_if=vif vif1.0 ${dir}\n`);
  await rerun('vif9.0');
  await host.run(kernel.xenbus.close());
  await rerun('vif1.0');
  const expected = [
    /^vif1\.0: running its script again: .*bad online ended with status 3$/,
    /^vif1\.0: running its script again: .*ENOENT$/,
    /^vif1\.0: running its script again: .*null bytes/,
    /^vif9\.0: it did not come: .* was not run$/,
    /^vif1\.0: running its script again: ENOTCONN: domain 0 has no connection to xenstored$/,
  ];
  assert.equal(log.length, expected.length, log.join('\n'));
  for (const [i, pattern] of expected.entries()) assert.match(log[i], pattern);
});
