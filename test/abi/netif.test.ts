import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as netif from '../../src/abi/netif.js';
import { toeplitzHash } from '../../src/abi/toeplitz.js';
import { parseXenbusState, XenbusState, xenbusStateName } from '../../src/abi/xenbus-state.js';

test('bits 0 and 1 are swapped between tx and rx flags', () => {
  assert.equal(netif.NETTXF_CSUM_BLANK, netif.NETRXF_DATA_VALIDATED);
  assert.equal(netif.NETTXF_DATA_VALIDATED, netif.NETRXF_CSUM_BLANK);
});

test('extra infos decode from their two words', () => {
  const infos = new netif.ExtraInfos();
  assert.ok(infos.take(netif.gsoExtraWord0(1448, true), netif.gsoExtraWord1(2)));
  assert.deepEqual([infos.gsoSize, infos.gsoType], [1448, 2]);
  const bytes = Uint8Array.of(4, 1, 3, 1, 0x78, 0x56, 0x34, 0x12);
  const words = new Uint32Array(bytes.buffer);
  assert.equal(words[0], netif.hashExtraWord0(3, 1, true));
  assert.ok(infos.take(words[0], words[1]));
  assert.deepEqual([infos.hashType, infos.hashAlgorithm, infos.hash], [3, 1, 0x12345678]);
  const multicast = new Uint32Array(Uint8Array.of(2, 0, 1, 0, 0x5e, 0x7f, 0xff, 0xfa).buffer);
  assert.ok(infos.take(multicast[0], multicast[1]));
  assert.deepEqual([...infos.multicastAddress], [1, 0, 0x5e, 0x7f, 0xff, 0xfa]);
  assert.equal(infos.multicast, netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD);
  assert.ok(infos.take(5 | (256 << 16), 0));
  assert.equal(infos.xdpHeadroom, 256);
  assert.equal(infos.count, 4);
});

test('extra infos that no peer may send are refused', () => {
  const infos = new netif.ExtraInfos();
  for (const type of [0, 6, 7, 255]) assert.equal(infos.take(type, 0), false, `type ${type}`);
  assert.equal(infos.take(netif.gsoExtraWord0(0), 1), false, 'GSO size 0');
  assert.equal(infos.take(netif.gsoExtraWord0(1448), 0), false, 'GSO type none');
  assert.equal(infos.take(netif.gsoExtraWord0(1448), 3), false, 'GSO type 3');
});

const rssKey = Uint8Array.from(
  '6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa'.match(/../g)!,
  hex => Number.parseInt(hex, 16),
);
const port = (n: number) => [n >> 8, n & 255];
const v4 = (text: string) => text.split('.').map(Number);
function v6(text: string): number[] {
  const [head, tail = ''] = text.split('::');
  const groups = (part: string) => part.split(':').filter(Boolean);
  const missing = 8 - groups(head).length - groups(tail).length;
  const all = [
    ...groups(head),
    ...Array<string>(text.includes('::') ? missing : 0).fill('0'),
    ...groups(tail),
  ];
  return all.flatMap(group => port(Number.parseInt(group, 16)));
}

test('Toeplitz results of the well-known RSS key', () => {
  const flows4: [string, number, string, number, number, number][] = [
    ['66.9.149.187', 2794, '161.142.100.80', 1766, 0x323e8fc2, 0x51ccc178],
    ['199.92.111.2', 14230, '65.69.140.83', 4739, 0xd718262a, 0xc626b0ea],
    ['24.19.198.95', 12898, '12.22.207.184', 38024, 0xd2d0a5de, 0x5c2b394a],
    ['38.27.205.30', 48228, '209.142.163.6', 2217, 0x82989176, 0xafc7327f],
    ['153.39.163.191', 44251, '202.188.127.2', 1303, 0x5d1809c5, 0x10e828a2],
  ];
  const flows6: typeof flows4 = [
    ['3ffe:2501:200:1fff::7', 2794, '3ffe:2501:200:3::1', 1766, 0x2cc18cd5, 0x40207d3d],
    ['3ffe:501:8::260:97ff:fe40:efab', 14230, 'ff02::1', 4739, 0x0f0c461c, 0xdde51bbf],
    ['3ffe:1900:4545:3:200:f8ff:fe21:67cf', 44251, 'fe80::200:f8ff:fe21:67cf', 38024, 0x4b61e985, 0x02d1feef],
  ];
  for (const [flows, address] of [[flows4, v4] as const, [flows6, v6] as const]) {
    for (const [src, sport, dst, dport, hash, hashWithPorts] of flows) {
      const addresses = Uint8Array.from([...address(src), ...address(dst)]);
      assert.equal(toeplitzHash(rssKey, addresses), hash, src);
      const all = Uint8Array.from([...addresses, ...port(sport), ...port(dport)]);
      assert.equal(toeplitzHash(rssKey, all), hashWithPorts, src);
    }
  }
  const first = Uint8Array.from([...v4('66.9.149.187'), ...v4('161.142.100.80')]);
  assert.equal(toeplitzHash(new Uint8Array(40), first), 0);
  assert.equal(toeplitzHash(rssKey.subarray(0, 4), first), 0x166bbb34);
  assert.equal(toeplitzHash(new Uint8Array(0), first), 0);
});

test('XenbusState is read from a decimal string', () => {
  assert.equal(parseXenbusState('4'), XenbusState.Connected);
  for (const junk of [undefined, '', '9', '-1', '04', '4 ', 'x', '1e0']) {
    assert.equal(parseXenbusState(junk), XenbusState.Unknown, `${junk}`);
  }
  assert.equal(xenbusStateName(2), 'InitWait');
  assert.equal(xenbusStateName(12), 'state 12');
});
