import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XEN_NETIF_CTRL_TYPE as T } from '../../src/abi/index.js';
import { ControlRing, HashConfig, StaticGrants } from '../../src/netback/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Attacker, Bystanders } from '../support/hostile.js';
import { packetFrom } from '../support/packets.js';

describe('one vif does not take what all share', () => {
  test('guests that take nothing leave pages for packets that wait for others', async () => {
    const pages = 256;
    const path = new DataPath(501, pages);
    const by = new Bystanders(path);
    const takers = [new Attacker(path), new Attacker(path)];
    for (const taker of takers) taker.connect();
    const late = new Attacker(path);
    late.connect();
    const sender = path.guest({ mtu: 9000 });
    const send = (to: Attacker, length: number) => {
      const bytes = buildFrame({ destination: to.mac, payload: new Uint8Array(length).fill(length) });
      sender.dev.xmit(packetFrom(sender.dev, bytes));
      return bytes;
    };
    // The bridge learns where everybody is.
    for (const attacker of [...takers, late]) {
      attacker.front.packet(attacker.frame([...sender.dev.address], 46));
      await attacker.strike();
    }
    const used: number[] = [];
    for (const taker of takers) {
      for (let i = 0; i < 600; i++) {
        send(taker, 1400);
        if (i % 16 === 15) await path.scheduler.runReady();
      }
      used.push(path.dom0.net.pages.used);
    }
    assert.ok(used[0] > 0 && used[0] <= pages / 3 + 1, `the first one holds ${used[0]} pages`);
    assert.ok(used[1] - used[0] > 0 && used[1] <= (pages * 5) / 9 + 2, `both hold ${used[1]}`);
    const sent = [8000, 4000, 1400].map(length => send(late, length));
    await path.scheduler.runReady();
    late.front.postRx(20);
    await late.strike();
    // The bridge gave it what the bystanders said before it knew where they were, too.
    const got = late.front.rxPackets().map(({ bytes }) => bytes);
    assert.deepEqual(got.slice(-sent.length), sent);
    await by.check();
    for (const attacker of [...takers, late]) assert.ok(attacker.disconnect());
    assert.equal(path.dom0.net.pages.used, 0);
  });

  test('a guest that sends without end gets its turns and no more', async () => {
    const path = new DataPath(502);
    const by = new Bystanders(path);
    const flooder = new Attacker(path);
    const front = flooder.connect();
    const [a, b, c] = Array.from({ length: 3 }, () => path.guest({ mtu: 9000 }));
    let got = 0;
    b.dev.rxHandler = packet => {
      got++;
      packet.release();
    };
    const frame = (from: typeof a, to: typeof a) =>
      buildFrame({
        source: [...from.dev.address],
        destination: [...to.dev.address],
        payload: new Uint8Array(1000),
      });
    for (const guest of [b, c]) guest.dev.xmit(packetFrom(guest.dev, frame(guest, a)));
    await by.check();
    got = 0;
    const flood = flooder.frame([...c.dev.address], 1000);
    for (let i = 0; i < front.tx.size; i++) front.packet(flood);
    for (let i = 0; i < 100; i++) a.dev.xmit(packetFrom(a.dev, frame(a, b)));
    let flooded = 0;
    let turns = 0;
    // Whenever anything has run, the flooder's ring is full again.
    await path.scheduler.runUntil(() => {
      const answered = front.tx.rspProd;
      flooded += (answered + front.tx.size - front.tx.reqProd) >>> 0;
      front.tx.reqProd = answered + front.tx.size;
      front.kickTx();
      return got === 100 || ++turns === 1000;
    });
    assert.equal(got, 100);
    assert.ok(flooded < 6000, `${flooded} frames of the flooder went first`);
    await path.scheduler.runReady();
    await by.check();
    assert.ok(flooder.disconnect());
  });

  test('a control ring that is always full costs a few requests a turn', async () => {
    const path = new DataPath(503);
    const by = new Bystanders(path);
    const attacker = new Attacker(path);
    const front = attacker.connect();
    await by.check();
    const { platform, irqs } = path.dom0;
    const { domid } = attacker.domain;
    const staticGrants = new StaticGrants(platform, domid);
    const fatal: string[] = [];
    const ring = platform.grants.map(domid, front.ctrlRef, false);
    const target = {
      platform,
      irqs,
      hash: new HashConfig(),
      staticGrants: [staticGrants],
      fatal: (reason: string) => void fatal.push(reason),
    };
    const back = new ControlRing(target, { domid, ring, port: front.ctrlPort }, 'vif');
    // The dearest request: a page full of grants to map, or to unmap.
    const list = front.grantPage(false);
    const entries = 512;
    for (let i = 0; i < entries; i++) {
      const { u32 } = attacker.domain.platform.memory.memory;
      u32[(list.address >>> 2) + 2 * i] = front.grantPage(false).gref;
    }
    for (let i = 0; i < front.ctrl.size; i++) {
      const type = i % 2 === 0 ? T.ADD_GREF_MAPPING : T.DEL_GREF_MAPPING;
      front.ctrl.write(i, i | (type << 16), 0, list.gref, entries);
    }
    let served = 0;
    let atOnce = 0;
    let turns = 0;
    for (let i = 0; i < 3; i++) by.send();
    await path.scheduler.runUntil(() => {
      const now = front.ctrl.rspProd;
      atOnce = Math.max(atOnce, now - served);
      served = now;
      front.ctrl.reqProd = now + front.ctrl.size;
      front.kickCtrl();
      return ++turns === 300;
    });
    assert.ok(served > 100, `${served} requests were served`);
    assert.ok(atOnce <= 8, `${atOnce} in one turn`);
    assert.deepEqual(fatal, []);
    // Then it stops: every request gets its answer, and nobody has noticed.
    await path.scheduler.runReady();
    assert.equal(front.ctrl.rspProd, front.ctrl.reqProd);
    await by.check();
    back.destroy();
    staticGrants.destroy();
    platform.grants.unmap(ring);
    assert.ok(attacker.disconnect());
  });
});
