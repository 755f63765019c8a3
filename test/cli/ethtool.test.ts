import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ethtool } from '../../src/cli/ethtool.js';
import { ethtoolQueueStats, type NetDevice } from '../../src/net/index.js';
import { TestKernel } from '../net/kernel.js';
import { bringUp, linux, vethTwin } from '../net/linux.js';

function recorded() {
  const kernel = new TestKernel();
  const twin = vethTwin(kernel);
  bringUp(kernel, twin);
  return { kernel, ...twin };
}

test('settings and channels are printed as ethtool prints them', () => {
  const { kernel } = recorded();
  assert.equal(ethtool(kernel.net, ['veth0']).stdout, linux.ethtool.plain.stdout);
  assert.equal(ethtool(kernel.net, ['-l', 'veth0']).stdout, linux.ethtool.l.stdout);
  assert.deepEqual(ethtool(kernel.net, ['-g', 'veth0']), {
    status: linux.ethtool.g.status,
    stdout: linux.ethtool.g.stdout,
    stderr: linux.ethtool.g.stderr,
  });
  const names = (text: string): string[] => text.split('\n').map(line => line.split(':')[0]);
  assert.deepEqual(names(ethtool(kernel.net, ['-i', 'veth0']).stdout), names(linux.ethtool.i.stdout));
});

test('features: the same names in the same order, and the same state for those that we have', () => {
  const { kernel } = recorded();
  const our = ethtool(kernel.net, ['-k', 'veth0']).stdout.split('\n');
  const their = linux.ethtool.k.stdout.split('\n');
  const name = (line: string): string => line.split(':')[0];
  assert.deepEqual(our.map(name), their.map(name));
  // Tunnels, SCTP, service tags and lists of segments are not ours; GRO is on with us.
  const foreign = /sctp|accecn|gre|ipxip|udp|gso-list|stag|gro/;
  for (const [i, line] of their.entries()) {
    if (!foreign.test(line) && name(line) !== 'generic-receive-offload') assert.equal(our[i], line);
  }
});

test('switching features: silent when all went as asked, otherwise what really changed', () => {
  const { kernel } = recorded();
  for (const command of ['fixed', 'tsooff', 'sgoff', 'sgon']) {
    const { command: line, ...of } = linux.ethtool[command];
    const result = ethtool(kernel.net, line.split(' ').slice(1));
    assert.deepEqual({ ...result }, of, line);
  }
});

test('refusals', () => {
  const { kernel } = recorded();
  for (const command of ['nodevk', 'badfeature'] as const) {
    const of = linux.ethtool[command];
    const result = ethtool(kernel.net, of.command.split(' ').slice(1));
    assert.equal(result.status, of.status);
    assert.ok(result.stderr.startsWith(of.stderr), result.stderr);
  }
  assert.equal(ethtool(kernel.net, ['nope']).status, linux.ethtool.nodev.status);
  assert.equal(ethtool(kernel.net, ['-Z', 'veth0']).status, 1);
  assert.equal(ethtool(kernel.net, ['-S', 'veth0']).stderr, 'no stats available\n');
});

test('statistics and ring sizes of a driver that has them', () => {
  const kernel = new TestKernel();
  const device: NetDevice = kernel.net.allocEtherdev('eth%d', {
    startXmit: () => 0,
    ethtoolStats: () => [
      ['rx_gso_checksum_fixup', 3],
      ['tx_queue_0_packets', 12],
    ],
    ringSizes: () => ({ rx: 256, tx: 256 }),
  });
  kernel.net.register(device);
  assert.equal(
    ethtool(kernel.net, ['-S', 'eth0']).stdout,
    'NIC statistics:\n     rx_gso_checksum_fixup: 3\n     tx_queue_0_packets: 12\n',
  );
  assert.match(
    ethtool(kernel.net, ['-g', 'eth0']).stdout,
    /^Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t256\n/,
  );
});

test('counters of queues: sums under Linux’s names, then each queue’s own', () => {
  const { txQueues } = new TestKernel().net.allocEtherdev('eth%d', { startXmit: () => 0 }, { txQueues: 2 });
  txQueues[1].sent(1500);
  assert.deepEqual(
    ethtoolQueueStats([{ rxGsoChecksumFixup: 2, name: 'x' }, { rxGsoChecksumFixup: 3 }], txQueues),
    [
      ['rx_gso_checksum_fixup', 5],
      ['queue_0_rx_gso_checksum_fixup', 2],
      ['queue_0_bql_inflight', 0],
      ['queue_0_bql_limit', 0],
      ['queue_0_bql_stops', 0],
      ['queue_1_rx_gso_checksum_fixup', 3],
      ['queue_1_bql_inflight', 1500],
      ['queue_1_bql_limit', 0],
      ['queue_1_bql_stops', 1],
    ],
  );
});
