import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LOOK_AGAIN_MS } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from '../support/data-path.js';
import { Victim } from '../support/hostile.js';
import { packetFrom } from '../support/packets.js';

const SOON = LOOK_AGAIN_MS + 1;

/** A frontend whose backend's processor is emulated in another thread. */
class Front {
  readonly path = new DataPath(1);
  readonly victim: Victim;

  constructor(split: boolean) {
    this.victim = new Victim(this.path, { split });
    Object.assign(this.victim.domain.platform, { looselyOrdered: (domid: number) => domid === 0 });
    this.victim.connect();
  }

  frame(length: number): Uint8Array {
    return buildFrame({ destination: this.victim.mac, udp: true, payload: new Uint8Array(length) });
  }

  /** Lets the frontend look, and go back to sleep. */
  async rest(): Promise<void> {
    await this.path.scheduler.runFor(10 * LOOK_AGAIN_MS);
  }

  send(count: number): void {
    const { dev } = this.victim;
    for (let i = 0; i < count; i++) dev.xmit(packetFrom(dev, this.frame(100)));
  }

  /** Whether the backend has been sent events, on the channels of the tx ring and the rx ring; and forgets them. */
  told(): boolean[] {
    const { back, path } = this.victim;
    const domain = path.hypervisor.domain(0)!;
    return back.ports.map(port => {
      const pending = domain.isPending(port);
      domain.clearPending(port);
      return pending;
    });
  }

  async runsNothing(ms: number): Promise<void> {
    const { scheduler } = this.path;
    const { steps } = scheduler;
    await scheduler.runFor(ms);
    assert.equal(scheduler.steps, steps);
  }
}

for (const split of [true, false]) {
  describe(`a frontend of a backend whose barriers are none to it, ${split ? 'split event channels' : 'one event channel'}`, () => {
    test('takes packets and responses soon of which no event tells', async () => {
      const front = new Front(split);
      const { victim, path } = front;
      const { back, dev } = victim;
      await front.rest();
      front.send(4);
      const ids = back.txRequests().map(({ id }) => id);
      // What it asks to be told of comes with its event, what comes next does not.
      back.packet(front.frame(100));
      back.respondTx(ids[0]);
      await victim.strike();
      back.packet(front.frame(101));
      for (const id of ids.slice(1)) back.respondTx(id);
      back.push();
      assert.equal(victim.got.length, 1);
      await path.scheduler.runFor(SOON);
      assert.equal(victim.got.length, 2);
      assert.equal(dev.net.packets.used, 0);
      await front.rest();
      await front.runsNothing(1000);
      victim.disconnect();
    });

    for (const asked of [[0], [1], [0, 1]]) {
      const which = asked.map(ring => ['tx', 'rx'][ring]).join(' and ');
      test(`tells it soon of ${which} requests that it asked for just when they were published`, async () => {
        const front = new Front(split);
        const { victim, path } = front;
        const { back } = victim;
        const rings = [back.tx, back.rx];
        await front.rest();
        for (const ring of rings) ring.reqEvent = ring.reqProd + 1000;
        front.told();
        front.send(2);
        for (let i = 0; i < 4; i++) back.packet(front.frame(100));
        back.push();
        back.kickRx();
        await path.scheduler.runReady();
        const nobody = split ? [false, false] : [false];
        assert.deepEqual(front.told(), nobody);
        for (const ring of asked) rings[ring].reqEvent = rings[ring].reqProd;
        await path.scheduler.runFor(2 * SOON);
        assert.deepEqual(front.told(), split ? [asked.includes(0), asked.includes(1)] : [true]);
        await path.scheduler.runFor(1000);
        assert.deepEqual(front.told(), nobody, 'once');
        await front.runsNothing(1000);
        victim.disconnect();
      });
    }

    test('does not look after it has gone, or was broken', async () => {
      for (const how of ['gone', 'broken'] as const) {
        const front = new Front(split);
        const { victim, path } = front;
        await front.rest();
        victim.back.packet(front.frame(100));
        await victim.strike();
        if (how === 'gone') victim.disconnect();
        else victim.queue.stop();
        await path.scheduler.runReady();
        await front.runsNothing(SOON);
        if (how === 'broken') victim.disconnect();
      }
    });
  });
}
