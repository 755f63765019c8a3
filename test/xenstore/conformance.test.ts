import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { XS } from '../../src/abi/xs-wire.js';
import { connectSocket, Daemon } from '../../src/xenstore/node/index.js';
import { RawClient } from './raw.js';

const peer = fileURLToPath(new URL('../../../bench/xenstore/peer', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'pvnet-conformance-'));
// Where the tests are skipped, too.
process.once('exit', () => rmSync(folder, { recursive: true, force: true }));

/** C xenstored, where Debian's package and a compiler are there. */
function whyNoPeer(): string | false {
  const found = spawnSync('sh', ['-c', 'ls /usr/lib/xen-*/bin/xenstored'], { stdio: 'ignore' });
  if (found.status !== 0) return "Debian's xen-utils-4.17 is not installed";
  const made = spawnSync('make', ['-s', '-C', peer, `BUILD=${folder}`], { stdio: 'ignore' });
  return made.status === 0 ? false : 'the stub library cannot be built (gcc, make, libxen-dev)';
}

const skip = whyNoPeer();

type Request = [type: number, payload: string, txId?: number];

/** Requests in a row, whose answers C xenstored and ours must agree on. */
const conversations: Record<string, Request[]> = {
  nodes: [
    [XS.WRITE, '/c/a\0one'],
    [XS.WRITE, '/c/b/deep/er\0'],
    [XS.READ, '/c/a\0'],
    [XS.READ, '/c/b/deep\0'],
    [XS.READ, '/c/none\0'],
    [XS.DIRECTORY, '/c\0'],
    [XS.DIRECTORY, '/c/none\0'],
    [XS.MKDIR, '/c/a\0'],
    [XS.MKDIR, '/c/m/n\0'],
    [XS.READ, '/c/a\0'],
    [XS.RM, '/c/b\0'],
    [XS.RM, '/c/b\0'],
    [XS.RM, '/c/b/deep\0'],
    [XS.RM, '/\0'],
    [XS.DIRECTORY, '/c\0'],
    [XS.WRITE, '/c/bin\0a\0b\xff'],
    [XS.READ, '/c/bin\0'],
    [XS.READ, 'relative\0'],
    [XS.WRITE, 'relative\0v'],
    [XS.READ, '/local/domain/0/relative\0'],
    [XS.RM, '/local\0'],
  ],
  permissions: [
    [XS.WRITE, '/p/x\0'],
    [XS.GET_PERMS, '/p/x\0'],
    [XS.SET_PERMS, '/p/x\0n3\0r4\0w5\0b6\0'],
    [XS.GET_PERMS, '/p/x\0'],
    [XS.WRITE, '/p/x/child\0'],
    [XS.GET_PERMS, '/p/x/child\0'],
    [XS.SET_PERMS, '/p/x\0z3\0'],
    [XS.SET_PERMS, '/p/none\0n0\0'],
    [XS.GET_PERMS, '/p/none\0'],
    [XS.SET_PERMS, '@releaseDomain\0n0\0r3\0'],
    [XS.SET_PERMS, '@releaseDomain\0n0\0'],
    [XS.RM, '/p\0'],
  ],
  watches: [
    [XS.WATCH, '/w\0t\0'],
    [XS.WATCH, '/w\0t\0'],
    [XS.WATCH, '/w/x/y\0u\0'],
    [XS.WATCH, 'rel\0r\0'],
    [XS.WATCH, '@introduceDomain\0s\0'],
    [XS.WRITE, '/w/x/y\0v'],
    [XS.WRITE, 'rel/z\0v'],
    [XS.SET_PERMS, '/w/x/y\0n0\0r1\0'],
    [XS.RM, '/w/x\0'],
    [XS.MKDIR, '/w/x\0'],
    [XS.MKDIR, '/w/x\0'],
    [XS.UNWATCH, '/w\0t\0'],
    [XS.UNWATCH, '/w\0t\0'],
    [XS.UNWATCH, '/w\0none\0'],
    [XS.WRITE, '/w/x\0v'],
    [XS.RESET_WATCHES, '\0'],
    [XS.WRITE, 'rel/z\0w'],
    [XS.RM, '/w\0'],
    [XS.RM, '/local\0'],
  ],
  transactions: [
    [XS.TRANSACTION_START, '\0'],
    [XS.TRANSACTION_START, '\0', 1],
    [XS.WRITE, '/t/x\0v', 1],
    [XS.READ, '/t/x\0', 1],
    [XS.READ, '/t/x\0'],
    [XS.TRANSACTION_END, 'X\0', 1],
    [XS.TRANSACTION_END, 'T\0', 1],
    [XS.READ, '/t/x\0'],
    [XS.TRANSACTION_START, '\0'],
    [XS.READ, '/t/x\0', 2],
    [XS.WRITE, '/t/x\0other'],
    [XS.WRITE, '/t/y\0v', 2],
    [XS.TRANSACTION_END, 'T\0', 2],
    [XS.READ, '/t/y\0'],
    [XS.READ, '/t/y\0', 77],
    [XS.TRANSACTION_START, '\0'],
    [XS.WRITE, '/t/z\0v', 3],
    [XS.TRANSACTION_END, 'F\0', 3],
    [XS.READ, '/t/z\0'],
    [XS.TRANSACTION_END, 'T\0'],
    [XS.RM, '/t\0'],
  ],
  domains: [
    [XS.IS_DOMAIN_INTRODUCED, '9\0'],
    [XS.GET_DOMAIN_PATH, '9\0'],
    [XS.INTRODUCE, '9\x001\x001\0'],
    [XS.IS_DOMAIN_INTRODUCED, '9\0'],
    [XS.SET_TARGET, '9\x008\0'],
    [XS.RESUME, '9\0'],
    [XS.RELEASE, '9\0'],
    [XS.RELEASE, '9\0'],
    [XS.RELEASE, '0\0'],
    [XS.RESUME, '9\0'],
    [XS.INTRODUCE, '9\x001\0'],
    [XS.INTRODUCE, '9\x001\x000\0'],
  ],
  'bad requests': [
    [XS.WRITE, '/no-nul'],
    [XS.WATCH, '/w\0'],
    [XS.WATCH, '/w x\0t\0'],
    [XS.SET_PERMS, '/tool\0'],
    [XS.MKDIR, '/bad//path\0'],
    [XS.WRITE, '/bad/\0v'],
    [XS.CONTROL, 'nonsense\0'],
    [XS.CONTROL, 'check\0'],
    [XS.CONTROL, 'print\0hello\0'],
    [99, 'x\0'],
  ],
};

/** The answers to each request, with the events that came with them. */
async function talk(socket: string, requests: Request[]): Promise<string[][]> {
  const raw = new RawClient(connectSocket(socket));
  const answers: string[][] = [];
  for (const [at, [type, payload, txId]] of requests.entries()) {
    raw.send(type, payload, { reqId: at + 1, txId });
    // An answered GET_DOMAIN_PATH after it shows that all of its events are there.
    raw.send(XS.GET_DOMAIN_PATH, '0\0', { reqId: 10_000 });
    while (!raw.messages.some(({ reqId }) => reqId === 10_000)) {
      if (raw.isClosed) return answers;
      await new Promise(resolve => setTimeout(resolve, 1));
    }
    const came = raw.messages.splice(0).filter(({ reqId }) => reqId !== 10_000);
    answers.push(came.map(({ type, text }) => `${type} ${text.replaceAll('\0', '|')}`).sort());
  }
  raw.stream.close();
  return answers;
}

describe('as C xenstored answers', { skip }, () => {
  let c: ChildProcess;
  let daemon: Daemon;
  const sockets = { c: join(folder, 'c'), ours: join(folder, 'ours') };

  before(async () => {
    c = spawn(join(peer, 'run-peer'), ['-f', 'c', sockets.c], {
      stdio: 'ignore',
      env: { ...process.env, BUILD: folder },
    });
    for (let i = 0; !existsSync(sockets.c); i++) {
      if (i > 200) throw new Error('C xenstored does not start');
      await new Promise(resolve => setTimeout(resolve, 50));
    }
    daemon = await Daemon.start({ socket: sockets.ours, log: () => {} });
  });

  after(async () => {
    c?.kill('SIGKILL');
    await daemon?.close();
  });

  for (const [name, requests] of Object.entries(conversations)) {
    test(name, async () => {
      const theirs = await talk(sockets.c, requests);
      const ours = await talk(sockets.ours, requests);
      for (const [at, request] of requests.entries()) {
        assert.deepEqual(ours[at], theirs[at], `request ${at}: ${JSON.stringify(request)}`);
      }
    });
  }
});
