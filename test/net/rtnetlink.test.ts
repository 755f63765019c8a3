import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { changeAlias, changeFlags, changeGroup, changeTxQueueLen } from '../../src/net/link.js';
import { nlmonFileHeader, nlmonRecord } from '../../src/net/nlmon.js';
import {
  answerRequest,
  attributeText,
  decodeLink,
  decodeMessages,
  encodeGetLink,
  encodeLink,
  IFLA,
  NLMSG_DONE,
  NLMSG_ERROR,
  RTM_DELLINK,
  RTM_NEWLINK,
} from '../../src/net/rtnetlink.js';
import { TestKernel } from './kernel.js';
import { bringUp, fromHex, linux, vethTwin } from './linux.js';

/** Compares a whole message with a real kernel's, but for AF_SPEC: we have no inet stack to speak of. */
function assertSameLink(ours: Uint8Array, recorded: string, what: string): void {
  const theirs = fromHex(recorded);
  const [our] = decodeMessages(ours).map(m => decodeLink(m.payload));
  const [their] = decodeMessages(theirs).map(m => decodeLink(m.payload));
  assert.deepEqual(
    [our.family, our.type, our.ifindex, our.flags],
    [their.family, their.type, their.ifindex, their.flags],
    what,
  );
  assert.deepEqual([...our.attributes.keys()], [...their.attributes.keys()], `${what}: attributes and order`);
  for (const [number, value] of their.attributes) {
    if (number === IFLA.AF_SPEC) continue;
    assert.deepEqual([...our.attributes.get(number)!], [...value], `${what}: attribute ${number}`);
  }
}

test('a link message is that of a real kernel for the same device: up, and with everything changed', () => {
  const kernel = new TestKernel();
  const twin = vethTwin(kernel);
  const { veth0 } = twin;
  bringUp(kernel, twin);
  assertSameLink(encodeLink(veth0, { type: RTM_NEWLINK }), linux.veth.up.netlink, 'up');
  changeFlags(veth0, (veth0.flags & ~0x1000) | 0x380);
  changeTxQueueLen(veth0, 5);
  changeAlias(veth0, 'hello world');
  changeGroup(veth0, 7);
  veth0.setMtu(9000);
  assertSameLink(encodeLink(veth0, { type: RTM_NEWLINK }), linux.veth.changed.netlink, 'changed');
});

test('a link message is that of a real kernel before the device was ever up', () => {
  const kernel = new TestKernel();
  const { veth0 } = vethTwin(kernel);
  kernel.scheduler.advance(1000);
  assertSameLink(encodeLink(veth0, { type: RTM_NEWLINK }), linux.veth.down.netlink, 'down');
});

test('the messages as bytes: header, alignment, and what is behind the attributes', () => {
  const kernel = new TestKernel();
  const twin = vethTwin(kernel);
  bringUp(kernel, twin);
  const theirs = fromHex(linux.veth.up.netlink);
  const pid = new DataView(theirs.buffer).getUint32(12, true);
  const ours = encodeLink(twin.veth0, { type: RTM_NEWLINK, seq: 7, pid });
  // Byte for byte up to AF_SPEC (but for the length), and from behind it to the end.
  const find = (bytes: Uint8Array): [number, number] => {
    const view = new DataView(bytes.buffer);
    let at = 32;
    while (view.getUint16(at + 2, true) !== IFLA.AF_SPEC) at += (view.getUint16(at, true) + 3) & ~3;
    return [at, at + ((view.getUint16(at, true) + 3) & ~3)];
  };
  const [ourStart, ourEnd] = find(ours);
  const [theirStart, theirEnd] = find(theirs);
  assert.deepEqual([...ours.subarray(4, ourStart)], [...theirs.subarray(4, theirStart)]);
  assert.deepEqual([...ours.subarray(ourEnd)], [...theirs.subarray(theirEnd)]);
  assert.equal(new DataView(ours.buffer).getUint32(0, true), ours.length);
});

test('RTM_GETLINK: by number, by name, all, none, unknown', () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  for (let i = 0; i < 3; i++) kernel.device('eth%d');
  const ask = (of: number | string | 'all') =>
    answerRequest(net, encodeGetLink(of, 7), 99).flatMap(bytes => decodeMessages(bytes));
  const names = (messages: ReturnType<typeof ask>): string[] =>
    messages
      .filter(m => m.type === RTM_NEWLINK)
      .map(m => attributeText(decodeLink(m.payload).attributes.get(IFLA.IFNAME)!));
  assert.deepEqual(names(ask(2)), ['eth1']);
  assert.deepEqual(names(ask('eth2')), ['eth2']);
  const dump = ask('all');
  assert.deepEqual(names(dump), ['eth0', 'eth1', 'eth2']);
  assert.equal(dump.at(-1)!.type, NLMSG_DONE);
  assert.ok(dump.every(m => (m.flags & 2) !== 0 && m.seq === 7 && m.pid === 99));
  assert.equal(ask('nope')[0].type, NLMSG_ERROR);

  // The kernel's own answers to a request for number 999 and for nothing.
  for (const [recorded, ifindex] of [
    [linux.netlink.nodev, 999],
    [linux.netlink.nothing, 0],
  ] as const) {
    const theirs = fromHex(recorded);
    const pid = new DataView(theirs.buffer).getUint32(12, true);
    const [ours] = answerRequest(net, encodeGetLink(ifindex, 7), pid);
    assert.deepEqual([...ours], [...theirs]);
  }
});

test('what cannot be read is refused, whatever the bytes', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), bytes => {
      try {
        for (const message of decodeMessages(bytes)) decodeLink(message.payload);
      } catch (error) {
        assert.equal((error as { code: string }).code, 'EBADMSG');
      }
    }),
  );
});

test('what the kernel multicasts while a device lives', async () => {
  const kernel = new TestKernel();
  const { net } = kernel;
  const heard: string[] = [];
  net.onLinkMessage(bytes => {
    const [message] = decodeMessages(bytes);
    const link = decodeLink(message.payload);
    const event = link.attributes.get(IFLA.EVENT);
    const kind = message.type === RTM_DELLINK ? 'DEL' : 'NEW';
    heard.push(
      `${kind} ${(link.change >>> 0).toString(16)}${event === undefined ? '' : ` event ${event[0]}`}`,
    );
  });
  const steps: [string, () => void, string[]][] = [];
  const device = net.allocEtherdev('eth%d', { startXmit: () => 0 });
  steps.push(['register', () => net.register(device), ['NEW ffffffff']]);
  steps.push(['open', () => device.open(), ['NEW 41']]);
  steps.push(['mtu', () => device.setMtu(1400), ['NEW 0']]);
  steps.push(['name', () => device.rename('lan%d'), ['NEW 0']]);
  steps.push(['promisc', () => device.setPromiscuity(1), ['NEW 100']]);
  steps.push(['carrier', () => device.carrierOff(), ['NEW 0']]);
  steps.push(['close', () => device.close(), ['NEW 41']]);
  for (const [what, step, expected] of steps) {
    step();
    kernel.scheduler.advance(1000);
    assert.deepEqual(heard.splice(0), expected, what);
  }
  assert.equal(device.name, 'lan0');
  await net.unregister(device);
  assert.deepEqual(heard, ['DEL ffffffff']);
});

test('tshark reads the capture of nlmon without an error', t => {
  if (spawnSync('tshark', ['--version']).error !== undefined) return t.skip('there is no tshark here');
  const kernel = new TestKernel();
  const { net } = kernel;
  const parts = [nlmonFileHeader()];
  net.onLinkMessage(message => parts.push(nlmonRecord(message, 1_700_000_000_123 + parts.length)));
  const device = kernel.device('eth%d');
  device.setMtu(1400);
  void net.unregister(device);
  const directory = mkdtempSync(join(tmpdir(), 'pvnet-nlmon-'));
  try {
    const file = join(directory, 'nlmon.pcap');
    writeFileSync(file, Buffer.concat(parts));
    const fields = ['netlink-route.ifla_ifname', '_ws.malformed', '_ws.expert.severity'];
    const run = spawnSync('tshark', ['-r', file, '-T', 'fields', ...fields.flatMap(field => ['-e', field])], {
      encoding: 'utf8',
    });
    assert.equal(run.status, 0, run.stderr);
    const rows = run.stdout
      .trim()
      .split('\n')
      .map(line => line.split('\t').map(cell => cell.trim()));
    assert.equal(rows.length, parts.length - 1);
    assert.ok(
      rows.every(row => row[0] === 'eth0' && (row[1] ?? '') === '' && (row[2] ?? '') === ''),
      run.stdout,
    );
  } finally {
    rmSync(directory, { recursive: true });
  }
});
