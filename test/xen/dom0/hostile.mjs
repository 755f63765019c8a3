// A frontend of dom0's own that breaks the protocol in one way after the other, against the backend in the same domain.
// Prints a line of RESULT for each: whether the backend let go of it and the vif's neighbours still work is checked by
// hostile.sh.
import { execFileSync } from 'node:child_process';
import { openLinuxHost } from '../../../src/linux/index.js';
import { HostileFrontend } from '../../../src/mock/index.js';

const ATTACKS = {
  'a tx producer index beyond the ring': front => {
    front.tx.reqProd = 100000;
  },
  'grant references that do not exist': front => {
    for (let i = 0; i < 200; i++) front.request({ gref: 0xfffffff0 - i, id: i, size: 60 });
    front.push();
  },
  'a packet of 200 slots': front => {
    for (let i = 0; i < 200; i++) front.request({ gref: i, id: i, size: i === 0 ? 60000 : 10, flags: 4 });
    front.push();
  },
  'fragments that cross their pages': front => {
    front.request({ gref: front.grantPage().gref, offset: 4000, size: 1000 });
    front.push();
  },
  'an extra info of an unknown type': front => {
    front.request({ gref: front.grantPage().gref, size: 100, flags: 8 });
    front.extra(0xff);
    front.push();
  },
  'random bytes all over both rings, indexes included': front => {
    const { u32 } = front.platform.memory.memory;
    for (const { address } of front.pages.slice(0, 2)) {
      for (let i = 0; i < 1024; i++) u32[(address >>> 2) + i] = Math.random() * 2 ** 32;
    }
  },
  'events without end': front => {
    for (let i = 0; i < 3000; i++) front.kick();
  },
};

const { kernel, platform, close } = await openLinuxHost('hostile frontend', line => console.error(line));
const { xs } = kernel.xenbus;
const mac = '00:16:3e:66:66:66';
let handle = 10;
for (const [what, attack] of Object.entries(ATTACKS)) {
  const frontDir = `/local/domain/0/device/vif/${handle}`;
  const backDir = `/local/domain/0/backend/vif/0/${handle}`;
  const front = new HostileFrontend(platform, 0);
  const { txRef, rxRef, txPort, rxPort } = front.publication;
  const write = async (dir, keys) => {
    for (const [key, value] of Object.entries(keys)) await xs.write(`${dir}/${key}`, String(value));
  };
  const until = async (path, values) => {
    for (let i = 0; i < 150; i++) {
      const state = await xs.readOptional(path);
      if (values.includes(state)) return state;
      await new Promise(resolve => setTimeout(resolve, 100));
    }
    return `still ${await xs.readOptional(path)}`;
  };
  await write(frontDir, {
    'backend-id': 0,
    backend: backDir,
    handle,
    mac,
    'request-rx-copy': 1,
    'feature-rx-notify': 1,
    'feature-sg': 1,
    'tx-ring-ref': txRef,
    'rx-ring-ref': rxRef,
    'event-channel-tx': txPort,
    'event-channel-rx': rxPort,
    state: 1,
  });
  await write(backDir, {
    'frontend-id': 0,
    frontend: frontDir,
    online: 1,
    handle,
    mac,
    'hotplug-status': 'connected',
    state: 1,
  });
  await until(`${backDir}/state`, ['2']);
  await xs.write(`${frontDir}/state`, '4');
  const connected = await until(`${backDir}/state`, ['4']);
  attack(front);
  front.kick();
  await new Promise(resolve => setTimeout(resolve, 1500));
  const state = await xs.readOptional(`${backDir}/state`);
  const error = await xs.readOptional(`error/backend/vif/0/${handle}/error`);
  await xs.write(`${frontDir}/state`, '6');
  const closed = await until(`${backDir}/state`, ['6']);
  await xs.rm(backDir);
  await xs.rm(frontDir);
  await new Promise(resolve => setTimeout(resolve, 500));
  front.destroy();
  const ok = connected === '4' && closed === '6';
  const end = state === '5' ? `vif disabled: ${error}` : 'answered, vif stays';
  console.log(
    `RESULT\t${ok ? 'ok' : 'FAIL'}\t${what}\t${ok ? end : `connected ${connected}, closed ${closed}`}`,
  );
  try {
    const out = execFileSync('ping', ['-q', '-c', '3', '-i', '0.2', '-W', '5', '10.77.0.2'], {
      encoding: 'utf8',
    });
    console.log(`RESULT\tok\t… and its neighbour\t${out.trim().split('\n').pop()}`);
  } catch (error) {
    console.log(`RESULT\tFAIL\t… and its neighbour\t${error.message}`);
  }
  handle++;
}
await kernel.shutdown();
close();
