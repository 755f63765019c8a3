import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenbusState } from '../../src/abi/index.js';
import { antispoof } from '../../src/linux/index.js';
import type { Vif } from '../../src/netback/index.js';
import { buildFrame, type TcpFrame } from '../net/frames.js';
import { Host } from '../support/host.js';
import { packetFrom } from '../support/packets.js';

const HOST = { netback: { prepare: antispoof } };

describe('a backend with antispoof takes the addresses from its directory', () => {
  const cases: [string | null, v4: boolean, v6: boolean][] = [
    [null, true, true],
    ['10.0.0.1', true, false],
    ['10.0.0.7 10.0.0.1/24 fd00::1', true, true],
    ['10.0.0.9 fd00::9/64', false, false],
  ];
  for (const [ip, v4, v6] of cases) {
    test(`ip = ${ip}`, async () => {
      const host = await Host.boot(71, HOST);
      const guest = await host.createGuest('a');
      const eth0 = await host.connectVif(guest, 0, { back: ip === null ? {} : { ip } });
      const { stats } = host.dom0.net.byName('vif1.0')!.priv as Vif;
      /** Whether a frame passes; those of `buildFrame` come from 10.0.0.1 or fd00::1. */
      const passes = async (changes: Partial<TcpFrame>): Promise<boolean> => {
        const before = stats.spoofed;
        const usual = { source: [...eth0.address], payload: new Uint8Array(50), udp: true };
        eth0.xmit(packetFrom(eth0, buildFrame({ ...usual, ...changes })));
        await host.scheduler.runFor(10);
        return stats.spoofed === before;
      };
      assert.equal(await passes({}), v4, 'IPv4');
      assert.equal(await passes({ version: 6 }), v6, 'IPv6');
      assert.equal(await passes({ source: [2, 0, 0, 0, 0, 1] }), false, 'another MAC address');
    });
  }

  for (const [key, value] of [
    ['ip', '10.0.0.300'],
    ['mac', '1:2'],
  ]) {
    test(`and does not serve a vif with ${key} = ${value}`, async () => {
      const host = await Host.boot(72, HOST);
      const guest = await host.createGuest('a');
      await host.addVif(guest, 0, { back: { [key]: value } });
      await host.until(() => host.states(guest)[1] === XenbusState.Closed);
      assert.equal(host.dom0.net.byName('vif1.0'), undefined);
      const { dmesg } = host.hypervisor.domain(0)!;
      assert.ok(dmesg.some(line => line.includes(`vif1.0: antispoof: "${value}" is no`)));
    });
  }
});
