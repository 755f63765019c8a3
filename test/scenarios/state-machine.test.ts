import assert from 'node:assert/strict';
import { test } from 'node:test';
import { XenbusState, xenbusStateName } from '../../src/abi/index.js';
import type { Bridge, NetDevice } from '../../src/net/index.js';
import { netbackOf } from '../../src/netback/netback.js';
import { Queue as BackQueue } from '../../src/netback/queue.js';
import type { Netfront } from '../../src/netfront/netfront.js';
import { Queue as FrontQueue } from '../../src/netfront/queue.js';
import type { XenbusDevice, XenbusDriver } from '../../src/xenbus/index.js';
import { buildFrame } from '../net/frames.js';
import { type GuestDomain, Host } from '../support/host.js';
import { packetFrom } from '../support/packets.js';

/**
 * The model check: what netfront and netback do when anything happens to their vif, in any order. States are
 * explored breadth-first with the real drivers on a host in virtual time; each path has a vif of its own, so that
 * one host serves them all and whatever a path leaves behind is seen.
 */

const SEED = Number(process.env['PVNET_MODEL_SEED'] ?? 1);
/** Events in a row with `npm run model-check`; `npm test` has 2, and goes on from a few states only. */
const DEPTH = Number(process.env['PVNET_MODEL_DEPTH'] ?? 2);
const EXPANDED_MAX = process.env['PVNET_MODEL_DEPTH'] === undefined ? 5 : Number.POSITIVE_INFINITY;

/** Random walks, whose events do not wait for each other. */
const WALKS = process.env['PVNET_MODEL_DEPTH'] === undefined ? 30 : 1000;
/** What an event says that finds another going on: a driver that is there again, a domain that runs again. */
const EXPECTED = /EEXIST|EINVAL/;

interface ModelEvent {
  readonly name: string;
  /** @param devid the vif that it happens to */
  run(model: Model, devid: number): Promise<void>;
}

const ALL_STATES = Array.from({ length: 9 }, (_, state) => state);

function write(path: () => string, value: string): ModelEvent['run'] {
  return async ({ host }) => {
    const { xs } = host;
    const node = path();
    await xs.transaction(async t => {
      // A node that was removed does not come back by somebody's write to it.
      if (await t.exists(node)) await t.write(node, value);
    });
  };
}

const EVENTS: readonly ModelEvent[] = [
  { name: 'nothing', run: async () => {} },
  ...ALL_STATES.map(state => ({
    name: `frontend writes ${xenbusStateName(state)}`,
    run: (model: Model, devid: number) =>
      write(() => `${model.frontPath(devid)}/state`, String(state))(model, devid),
  })),
  ...ALL_STATES.map(state => ({
    name: `backend writes ${xenbusStateName(state)}`,
    run: (model: Model, devid: number) =>
      write(() => `${model.backPath(devid)}/state`, String(state))(model, devid),
  })),
  {
    name: 'frontend directory removed',
    run: async (model, devid) => void (await model.host.xs.rm(model.frontPath(devid)).catch(() => {})),
  },
  {
    name: 'backend directory removed',
    run: async (model, devid) => void (await model.host.xs.rm(model.backPath(devid)).catch(() => {})),
  },
  { name: 'toolstack closes', run: (model, devid) => model.requestClose(devid) },
  { name: 'hotplug script done', run: (model, devid) => model.hotplug(devid) },
  {
    name: 'hotplug script failed',
    run: (model, devid) => write(() => `${model.backPath(devid)}/hotplug-status`, 'error')(model, devid),
  },
  { name: 'frontend driver out and in', run: model => model.reloadFront() },
  { name: 'backend driver out and in', run: model => model.reloadBack() },
  { name: 'suspend and resume', run: model => model.suspendAndResume() },
  { name: 'suspend called off', run: model => model.suspendCancelled() },
];

class Model {
  host!: Host;
  guest!: GuestDomain;
  private nextDevid = 0;
  private base!: object;
  private drivers!: readonly [front: XenbusDriver, back: XenbusDriver];

  static async boot(seed: number): Promise<Model> {
    const model = new Model();
    model.host = await Host.boot(seed);
    model.guest = await model.host.createGuest('a');
    const { guest, host } = model;
    model.drivers = [guest.kernel.xenbus.frontend.drivers[0], host.dom0.xenbus.backend.drivers[0]];
    // The first vif makes pools and tables that stay.
    const devid = await model.plug();
    await model.connect(devid);
    await model.unplug(devid);
    model.base = model.holdings();
    return model;
  }

  frontPath(devid: number): string {
    return this.host.frontPath(this.guest, devid);
  }

  backPath(devid: number): string {
    return this.host.backPath(this.guest, devid);
  }

  front(devid: number): XenbusDevice | undefined {
    return this.guest.kernel.xenbus.frontend.devices.get(`device/vif/${devid}`);
  }

  back(devid: number): XenbusDevice | undefined {
    return this.host.dom0.xenbus.backend.devices.get(`backend/vif/${this.guest.domain.domid}/${devid}`);
  }

  vif(devid: number): NetDevice | undefined {
    return this.host.dom0.net.byName(`vif${this.guest.domain.domid}.${devid}`);
  }

  /** Lets everybody react; long enough for transactions that have to be done again. */
  async settle(): Promise<void> {
    await this.host.scheduler.runFor(20);
  }

  async plug(devid = this.nextDevid++ & 0x7f): Promise<number> {
    await this.host.addVif(this.guest, devid);
    await this.settle();
    return devid;
  }

  /** What the script vif-bridge does, if there is an interface to do it with. */
  async hotplug(devid: number): Promise<void> {
    const vif = this.vif(devid);
    if (vif === undefined) return;
    if (vif.master === null) this.host.bridge.addPort(vif);
    vif.open();
    await write(() => `${this.backPath(devid)}/hotplug-status`, 'connected')(this, devid);
  }

  async requestClose(devid: number): Promise<void> {
    const back = this.backPath(devid);
    await this.host.xs.transaction(async t => {
      if (!(await t.exists(`${back}/state`))) return;
      await t.write(`${back}/online`, '0');
      if ((await t.read(`${back}/state`)) !== String(XenbusState.Closed)) {
        await t.write(`${back}/state`, String(XenbusState.Closing));
      }
    });
  }

  async reloadFront(): Promise<void> {
    const { xenbus } = this.guest.kernel;
    const [driver] = this.drivers;
    await xenbus.unregisterDriver(driver);
    await xenbus.registerFrontend(driver);
  }

  async reloadBack(): Promise<void> {
    const { xenbus } = this.host.dom0;
    const [, driver] = this.drivers;
    await xenbus.unregisterDriver(driver);
    await xenbus.registerBackend(driver);
  }

  async suspendAndResume(): Promise<void> {
    const { domain, kernel } = this.guest;
    await kernel.xenbus.suspend();
    domain.shutdown('suspend');
    domain.resume();
    await kernel.xenbus.resume();
  }

  async suspendCancelled(): Promise<void> {
    const { domain, kernel } = this.guest;
    await kernel.xenbus.suspend();
    domain.shutdown('suspend');
    domain.resume();
    await kernel.xenbus.suspendCancel();
  }

  isConnected(devid: number): boolean {
    const front = this.front(devid);
    const back = this.back(devid);
    return (
      front?.state === XenbusState.Connected &&
      back?.state === XenbusState.Connected &&
      (front.driverData as Netfront).connected &&
      netbackOf(back)?.vif?.connected === true &&
      front.waitingFor() === null &&
      back.waitingFor() === null
    );
  }

  /** What `pvnet vif-list` says: in words what the vif waits for, and nothing of one that works. */
  assertWords(devid: number, after: string): void {
    const [front, back] = [this.front(devid), this.back(devid)];
    if (front === undefined || back === undefined) return;
    const words = back.waitingFor() ?? front.waitingFor();
    const carriers = [(front.driverData as Netfront | undefined)?.dev, this.vif(devid)];
    const works = this.isConnected(devid) && carriers.every(dev => dev?.carrierOk);
    assert.equal(
      words === null,
      works,
      `after ${after} it says ${words}, and it ${works ? 'works' : 'does not'}`,
    );
  }

  /** What distinguishes one state from another, all that is stored and all that the drivers know. */
  async key(devid: number): Promise<string> {
    const { xs } = this.host;
    const read = (path: string) => this.host.run(xs.readIfExists(path));
    const front = this.front(devid);
    const back = this.back(devid);
    const netfront = front?.driverData as Netfront | undefined;
    const netback = back === undefined ? undefined : netbackOf(back);
    const mark = (flag: boolean | undefined, name: string) => (flag ? name : '');
    return [
      `front ${(await read(`${this.frontPath(devid)}/state`)) ?? '-'}/${front?.state ?? '-'}`,
      mark(front?.driver !== null && front !== undefined, 'driven'),
      mark(netfront?.connected, 'rings'),
      mark(netfront?.dev.carrierOk, 'carrier'),
      `back ${(await read(`${this.backPath(devid)}/state`)) ?? '-'}/${back?.state ?? '-'}`,
      mark(back?.driver !== null && back !== undefined, 'driven'),
      mark(netback?.vif?.connected, 'rings'),
      `online ${(await read(`${this.backPath(devid)}/online`)) ?? '-'}`,
      `hotplug ${(await read(`${this.backPath(devid)}/hotplug-status`)) ?? '-'}`,
    ]
      .filter(part => part !== '')
      .join(' ');
  }

  /** Lets a toolstack and a script that do what they should bring the vif up. @returns whether it is */
  async connect(devid: number, patienceMs = 70_000): Promise<boolean> {
    const { scheduler } = this.host;
    const until = scheduler.now() + patienceMs;
    for (let pause = 0; scheduler.now() < until; pause = Math.max(1, pause * 4)) {
      await this.host.run(this.hotplug(devid));
      await this.settle();
      if (this.isConnected(devid)) return true;
      if (this.front(devid) === undefined || this.back(devid) === undefined) return false;
      await scheduler.runFor(pause);
    }
    return this.isConnected(devid);
  }

  /** A packet from the guest reaches the bridge. */
  async sends(devid: number, name: string): Promise<void> {
    const eth = (this.front(devid)!.driverData as Netfront).dev as NetDevice;
    const bridge = this.host.bridge as Bridge;
    let got = 0;
    bridge.rxHandler = packet => {
      got++;
      packet.release();
    };
    const payload = new Uint8Array(50);
    const frame = buildFrame({
      source: [...eth.address],
      destination: [255, 255, 255, 255, 255, 255],
      payload,
    });
    eth.xmit(packetFrom(eth, frame));
    for (let i = 0; i < 100 && got === 0; i++) await this.host.scheduler.runFor(1);
    assert.equal(got, 1, `connected, but nothing gets through, after: ${name}`);
    bridge.rxHandler = null;
  }

  /** Takes the vif away for good: politely, and by force if that takes too long. */
  async unplug(devid: number): Promise<void> {
    const { host } = this;
    await host.run(this.requestClose(devid));
    await this.settle();
    const vif = this.vif(devid);
    if (vif !== undefined && vif.master !== null) host.bridge.removePort(vif);
    await host.run(
      host.xs.transaction(async t => {
        for (const path of [this.frontPath(devid), this.backPath(devid)]) {
          if (await t.exists(path)) await t.rm(path);
        }
      }),
    );
    await host.until(() => this.front(devid) === undefined && this.back(devid) === undefined);
    await host.until(() => this.guest.kernel.reclaimer.pending === 0);
    await this.settle();
  }

  private holdings(): object {
    const { host, guest } = this;
    const kernels = [host.dom0, guest.kernel];
    return {
      ...Object.fromEntries(
        kernels.map(({ platform, irqs, net, xenbus }) => [
          platform.domid,
          {
            grants: platform.grants.allocated,
            mapped: platform.grants.mapped,
            ports: platform.events.allocated,
            irqs: irqs.counts.length,
            devices: [...net.devices].map(({ name }) => name),
            watches: [...xenbus.xs.watches].length,
            pendingEvents: xenbus.pendingEvents,
          },
        ]),
      ),
    };
  }

  assertNothingLeft(path: string): void {
    assert.deepEqual(this.holdings(), this.base, `something is left after: ${path}`);
    const lines = [...this.host.hypervisor.domain(0)!.dmesg, ...this.guest.domain.dmesg];
    const bad = lines.filter(line => /TypeError|RangeError|ReferenceError|failed to remove/.test(line));
    assert.deepEqual(bad, [], path);
  }
}

/** Counts the teardowns of each queue: more than one, or one of a queue that another has, is an error. */
function watchTeardowns(): { built: number; restore(): void } {
  const seen = { built: 0, restore: () => {} };
  const torn = new WeakSet<object>();
  const undo: (() => void)[] = [];
  for (const Queue of [BackQueue, FrontQueue] as { prototype: { start(): void; destroy(): void } }[]) {
    const { start, destroy } = Queue.prototype;
    Queue.prototype.start = function () {
      seen.built++;
      start.call(this);
    };
    Queue.prototype.destroy = function () {
      assert.ok(!torn.has(this), 'a connection is torn down twice');
      torn.add(this);
      destroy.call(this);
    };
    undo.push(() => Object.assign(Queue.prototype, { start, destroy }));
  }
  seen.restore = () => {
    for (const step of undo) step();
  };
  return seen;
}

test('whatever happens to a vif, it connects again or goes, and leaves nothing', async t => {
  const teardowns = watchTeardowns();
  try {
    const model = await Model.boot(SEED);
    const states = new Map<string, string>();
    let frontier: ModelEvent[][] = [[]];
    let transitions = 0;
    let byThemselves = 0;
    let byReplug = 0;
    for (let depth = 0; depth < DEPTH; depth++) {
      const next: ModelEvent[][] = [];
      for (const path of frontier) {
        for (const event of EVENTS) {
          const events = [...path, event];
          const name = events.map(({ name }) => name).join(', ');
          const devid = await model.plug();
          for (const step of events) {
            await model.host.run(step.run(model, devid));
            await model.settle();
          }
          transitions++;
          const key = await model.key(devid);
          if (!states.has(key)) {
            states.set(key, name);
            model.assertWords(devid, name);
            next.push(events);
            if (await model.connect(devid)) byThemselves++;
            else {
              byReplug++;
              await model.unplug(devid);
              model.assertNothingLeft(name);
              await model.plug(devid);
              if (!(await model.connect(devid))) {
                const now = await model.key(devid);
                const waits = [model.front(devid)?.waitingFor(), model.back(devid)?.waitingFor()].join('; ');
                assert.fail(`seed ${SEED}: no way back from: ${name} (${key}); now ${now}: ${waits}`);
              }
            }
            await model.sends(devid, name);
          }
          await model.unplug(devid);
          model.assertNothingLeft(name);
        }
      }
      frontier = next.slice(0, EXPANDED_MAX);
    }
    t.diagnostic(
      `${states.size} states, ${transitions} transitions, ${teardowns.built} connections of either end; ` +
        `from ${byThemselves} states the ends find together by themselves, from ${byReplug} after a replug`,
    );
  } finally {
    teardowns.restore();
  }
});

test('events that come while the ends are still at the last ones', async t => {
  const teardowns = watchTeardowns();
  try {
    const model = await Model.boot(SEED);
    const { random } = model.host.scheduler;
    let byThemselves = 0;
    for (let walk = 0; walk < WALKS; walk++) {
      const events = Array.from({ length: 1 + Math.floor(random() * 6) }, () => {
        return EVENTS[Math.floor(random() * EVENTS.length)];
      });
      const name = `seed ${SEED}, walk ${walk}: ${events.map(({ name }) => name).join(', ')}`;
      const devid = await model.plug();
      // All at the same time, but for what little the host gets done in between.
      const running: Promise<void>[] = [];
      for (const event of events) {
        running.push(event.run(model, devid).catch(error => assert.match(String(error), EXPECTED, name)));
        await model.host.scheduler.runFor(random() * random() * 0.3);
      }
      await model.host.run(Promise.all(running));
      await model.settle();
      if (await model.connect(devid)) byThemselves++;
      else {
        await model.unplug(devid);
        model.assertNothingLeft(name);
        await model.plug(devid);
        assert.ok(await model.connect(devid), `no way back from ${name}: ${await model.key(devid)}`);
      }
      await model.sends(devid, name);
      await model.unplug(devid);
      model.assertNothingLeft(name);
    }
    t.diagnostic(
      `${WALKS} walks, ${teardowns.built} connections of either end; after ${byThemselves} the ends find together`,
    );
  } finally {
    teardowns.restore();
  }
});

test('a frontend domain that is destroyed in any state leaves nothing in domain 0', async () => {
  const host = await Host.boot(SEED);
  const warm = await host.createGuest('warm');
  await host.connectVif(warm);
  const holdings = () => {
    const { grants, events } = host.dom0.platform;
    return {
      grants: grants.allocated,
      mapped: grants.mapped,
      ports: events.allocated,
      devices: [...host.dom0.net.devices].length,
    };
  };
  await host.scheduler.runReady();
  const base = holdings();
  for (const state of ALL_STATES) {
    const guest = await host.createGuest(`g${state}`);
    await host.connectVif(guest);
    await host.run(host.xs.write(`${host.frontPath(guest)}/state`, String(state)));
    if (state % 2 === 0) await host.scheduler.runReady();
    guest.domain.destroy();
    await host.scheduler.runReady();
    for (const path of [host.frontPath(guest), host.backPath(guest)]) {
      await host.run(host.xs.rm(path).catch(() => {}));
    }
    await host.run(host.xs.rm(`/local/domain/${guest.domain.domid}`).catch(() => {}));
    await host.until(() => host.states(guest)[1] === -1);
    await host.scheduler.runReady();
    assert.deepEqual(holdings(), base, xenbusStateName(state));
    assert.equal(host.hypervisor.dyingDomains.length, 0);
  }
});
