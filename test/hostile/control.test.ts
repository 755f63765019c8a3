import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XEN_NETIF_CTRL_STATUS as STATUS, XEN_NETIF_CTRL_TYPE as T } from '../../src/abi/index.js';
import { DoubleFetchMemory } from '../../src/mock/index.js';
import { ControlRing, HashConfig } from '../../src/netback/index.js';
import { Control } from '../../src/netfront/control.js';
import { PAGE_SIZE } from '../../src/platform/index.js';
import { DataPath } from '../support/data-path.js';
import { holdings, Victim, withPage } from '../support/hostile.js';

/** A frontend with a control ring, whose backend attacks it. */
class Scene {
  readonly path = new DataPath(811);
  readonly victim = new Victim(this.path);
  readonly broken: string[] = [];
  readonly rings: DoubleFetchMemory[] = [];
  readonly control: Control;

  constructor() {
    const { victim, broken, rings } = this;
    victim.connect();
    const platform = withPage(victim.dom.platform, 1, (memory, page) => {
      rings.push(new DoubleFetchMemory(memory, page * PAGE_SIZE));
      return rings[0];
    });
    const device = {
      ...victim.dom,
      platform,
      backendId: 0,
      broken: (reason: string) => void broken.push(reason),
    };
    this.control = new Control(device, 'eth0');
    victim.back.attachControl(this.control.ringRef, this.control.port);
  }

  async strike(): Promise<void> {
    const { back } = this.victim;
    back.push();
    back.kickCtrl();
    await this.path.settle();
  }

  /** How often the handler of the control ring's events ran. */
  get runs(): number {
    return this.victim.dom.irqs.counts.find(({ name }) => name === 'eth0-ctrl')!.count;
  }
}

describe('a frontend’s control ring and a hostile backend', () => {
  test('answers in any order reach who asked, and no byte of them is read twice', async () => {
    const scene = new Scene();
    const { control, rings, path } = scene;
    const { back } = scene.victim;
    const types = [T.GET_HASH_FLAGS, T.GET_HASH_MAPPING_SIZE, T.GET_GREF_MAPPING_SIZE];
    const answers = types.map(type => control.request(type));
    await path.settle();
    rings[0].rearm();
    for (const i of [2, 0, 1]) back.respondCtrl(i + 1, types[i], STATUS.SUCCESS, 100 + i);
    await scene.strike();
    const got = await Promise.all(answers);
    assert.deepEqual(
      got.map(({ data }) => data),
      [100, 101, 102],
    );
    assert.deepEqual(scene.broken, []);
    assert.equal(rings[0].mostReads, 1);
  });

  const beyond = (index: number) => (scene: Scene) => {
    scene.victim.back.ctrlNext = index;
  };
  const answered = (id: number, type: number) => (scene: Scene) => scene.victim.back.respondCtrl(id, type);
  for (const [name, attack, reason] of [
    ['more responses than requests', beyond(2), /rsp_prod 2 is beyond/],
    ['a producer index that goes back', beyond(0xffffffff), /rsp_prod 4294967295 is beyond/],
    ['an id that is not outstanding', answered(7, T.GET_HASH_FLAGS), /request 7/],
    ['another type', answered(1, T.SET_HASH_FLAGS), /request 1, which/],
  ] as [string, (scene: Scene) => void, RegExp][]) {
    test(`${name}: broken once, and who waits hears it`, async () => {
      const scene = new Scene();
      const answer = scene.control.request(T.GET_HASH_FLAGS);
      await scene.path.settle();
      attack(scene);
      await scene.strike();
      assert.equal(scene.broken.length, 1);
      assert.match(scene.broken[0], reason);
      assert.equal((await answer).status, STATUS.NOT_SUPPORTED);
      await assert.rejects(scene.control.request(T.GET_HASH_FLAGS), /ENOTCONN/);
      const { runs } = scene;
      for (let i = 0; i < 100; i++) await scene.strike();
      assert.equal(scene.broken.length, 1);
      assert.equal(scene.runs, runs, 'it is not heard any more');
      scene.control.destroy();
      scene.victim.disconnect();
      assert.equal(scene.victim.dom.reclaimer.pending, 0);
    });
  }

  test('an answer given twice', async () => {
    const scene = new Scene();
    const answers = [1, 2].map(() => scene.control.request(T.GET_HASH_FLAGS));
    await scene.path.settle();
    for (let i = 0; i < 2; i++) scene.victim.back.respondCtrl(1, T.GET_HASH_FLAGS, STATUS.SUCCESS, 5);
    await scene.strike();
    assert.deepEqual(await Promise.all(answers), [
      { status: STATUS.SUCCESS, data: 5 },
      { status: STATUS.NOT_SUPPORTED, data: 0 },
    ]);
    assert.match(scene.broken[0], /request 1, which is not outstanding/);
  });

  test('XSA-391: events without a response cost few handler runs', async () => {
    const scene = new Scene();
    for (let i = 0; i < 10_000; i++) {
      scene.victim.back.kickCtrl();
      await scene.path.scheduler.runFor(1);
    }
    assert.ok(scene.runs < 40, `${scene.runs} handler runs in 10 s`);
    const answer = scene.control.request(T.GET_HASH_FLAGS);
    await scene.path.settle();
    scene.victim.back.respondCtrl(1, T.GET_HASH_FLAGS, STATUS.SUCCESS, 3);
    await scene.strike();
    await scene.path.scheduler.runFor(2000);
    assert.equal((await answer).data, 3);
  });
});

test('a backend reads no byte of a control request twice', async () => {
  const path = new DataPath(812);
  const guest = path.guest().dom;
  const before = holdings(path);
  const { platform, irqs } = path.dom0;
  const { domid } = guest.platform;
  const front = new Control({ ...guest, backendId: 0, broken: assert.fail }, 'eth0');
  const mapping = platform.grants.map(domid, front.ringRef, false);
  const memory = new DoubleFetchMemory(mapping.memory, mapping.address);
  const ring = { ...mapping, memory, address: mapping.address };
  const target = { platform, irqs, hash: new HashConfig(), staticGrants: [], fatal: assert.fail };
  const back = new ControlRing(target, { domid, ring, port: front.port }, 'vif1.0');
  const answer = front.setHash({ flags: 15, key: new Uint8Array(40).fill(7), mapping: [0] });
  const refused = assert.rejects(answer, /SET_HASH_MAPPING/, 'there is no queue 0');
  for (let i = 0; i < 8; i++) {
    await path.settle();
    assert.ok(memory.mostReads <= 1, `${memory.mostReads} reads`);
    memory.rearm();
  }
  await refused;
  assert.equal(target.hash.algorithm, 1);
  back.destroy();
  platform.grants.unmap(mapping);
  front.destroy();
  assert.deepEqual(holdings(path), before);
});
