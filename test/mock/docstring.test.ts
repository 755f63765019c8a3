import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { Publication } from '../../src/mock/index.js';
import { HostileFrontend } from '../../src/mock/index.js';
import { Vif } from '../../src/netback/index.js';
import { buildFrame } from '../net/frames.js';
import { ALL_FEATURES, DataPath } from '../support/data-path.js';

/** The example in a source file's docstrings, with `x; // → y` made an assertion. */
function example(name: string): string {
  const source = readFileSync(new URL(`../../../src/mock/${name}`, import.meta.url), 'utf8');
  const [, code] = /```ts\n(.*?) \* ```/s.exec(source)!;
  return code.replace(/^ \* ?/gm, '').replace(/^(.*); \/\/ → (.*)$/gm, 'same($1, $2);');
}

test('the example of HostileFrontend does what it says', async () => {
  const path = new DataPath(901);
  const { platform } = path.hypervisor.createDomain();
  const { platform: backend } = path.dom0;
  const { domid } = platform;
  const vif = new Vif(path.dom0, { domid, handle: 0, onFatal: reason => assert.fail(reason) });
  const connect = ({ txRef, rxRef, txPort, rxPort }: Publication) => {
    const [txRing, rxRing] = [txRef, rxRef].map(ref => backend.grants.map(domid, ref, false));
    vif.connect(ALL_FEATURES, [{ domid, txRing, rxRing, txPort, rxPort }]);
    return () => {
      vif.disconnect();
      for (const ring of [txRing, rxRing]) backend.grants.unmap(ring);
    };
  };
  const frame = buildFrame({ payload: new Uint8Array(100) });
  const code = example('hostile-frontend.ts');
  assert.equal(code.match(/same\(/g)?.length, 2, code);
  const AsyncFunction = (async () => {}).constructor as FunctionConstructor;
  const run = () => path.scheduler.runReady();
  const body = new AsyncFunction('HostileFrontend', 'platform', 'frame', 'connect', 'run', 'same', code);
  await body(HostileFrontend, platform, frame, connect, run, assert.deepEqual);
});
