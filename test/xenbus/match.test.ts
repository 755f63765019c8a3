import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { XenbusDevice } from '../../src/xenbus/index.js';
import { EchoBack } from './echo-device.js';
import { backOf, register, scene } from './scene.js';

test('a device that its driver does not want is left alone', async () => {
  const asked: string[] = [];
  const back = Object.assign(new EchoBack(), {
    match: async ({ nodename }: XenbusDevice) => {
      asked.push(nodename);
      return false;
    },
  });
  const s = await scene(1, { back });
  await register(s);
  await s.host.plug(s.vdev);
  await s.host.until(() => asked.length > 0);
  await s.host.scheduler.runFor(100);
  assert.equal(backOf(s)?.driver, null);
  assert.deepEqual(back.calls, []);
});
