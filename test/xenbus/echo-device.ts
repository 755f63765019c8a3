import { XenbusState } from '../../src/abi/xenbus-state.js';
import { GrantReclaimer } from '../../src/platform/grant-reclaimer.js';
import type { GrantMapping } from '../../src/platform/platform.js';
import { unsigned, type XenbusDevice, type XenbusDriver } from '../../src/xenbus/index.js';

/**
 * A device type that only the tests know: the frontend puts a byte on its ring page, the backend adds one to it.
 * Page: request at 0, response at 4.
 */
export const ECHO = 'echo';

interface Front {
  page: number;
  grefs: number[];
  irq: number;
  replies: number[];
}

interface Back {
  mappings: GrantMapping[];
  irq: number;
}

/** The frontend driver. */
export class EchoFront implements XenbusDriver {
  readonly name: string = 'echofront';
  readonly ids = [ECHO];
  readonly calls: string[] = [];
  /** Pages that the backend still maps. */
  reclaimer?: GrantReclaimer;
  isDeaf = false;
  notEssential?: boolean;

  probe(device: XenbusDevice): void | Promise<void> {
    this.calls.push(`probe ${device.id}`);
  }

  async otherendChanged(device: XenbusDevice, state: XenbusState): Promise<void> {
    this.calls.push(`otherend ${state}`);
    if (this.isDeaf) return;
    switch (state) {
      case XenbusState.InitWait:
        if (device.state === XenbusState.Initialising) await this.connect(device);
        break;
      case XenbusState.Closing:
        await device.frontendClosed();
        break;
      case XenbusState.Closed:
        if (device.state !== XenbusState.Closed) await device.frontendClosed();
        break;
    }
  }

  async connect(device: XenbusDevice): Promise<void> {
    const { platform, irqs } = device.xenbus;
    const page = platform.memory.allocPage();
    const front: Front = { page, grefs: [], irq: 0, replies: [] };
    device.driverData = front;
    front.grefs = await device.grantRing([page]);
    const port = await device.allocEvtchn();
    front.irq = irqs.bindCallerPortToIrqhandler(
      port,
      () => front.replies.push(platform.memory.memory.load(page * 4096 + 4)),
      device.id,
    );
    if (!(await device.publish({ 'ring-ref': front.grefs[0], 'event-channel': port }))) return;
    await device.switchState(XenbusState.Connected);
  }

  /** Sends a number; the answer appears in `replies`. */
  send(device: XenbusDevice, value: number): void {
    const { page, irq } = device.driverData as Front;
    device.platform.memory.memory.store(page * 4096, value);
    device.xenbus.irqs.notifyRemoteViaIrq(irq);
  }

  replies(device: XenbusDevice): number[] {
    return (device.driverData as Front).replies;
  }

  suspend(device: XenbusDevice): void {
    this.calls.push(`suspend ${device.id}`);
  }

  suspendCancel(device: XenbusDevice): void {
    this.calls.push(`suspendCancel ${device.id}`);
  }

  resume(device: XenbusDevice): void {
    this.calls.push(`resume ${device.id}`);
    this.disconnect(device);
  }

  remove(device: XenbusDevice): void {
    this.calls.push(`remove ${device.id}`);
    this.disconnect(device);
  }

  reclaimerOf(device: XenbusDevice): GrantReclaimer {
    this.reclaimer ??= new GrantReclaimer(device.platform);
    return this.reclaimer;
  }

  disconnect(device: XenbusDevice): void {
    const front = device.driverData as Front | undefined;
    if (front === undefined) return;
    device.driverData = undefined;
    if (front.irq !== 0) device.xenbus.irqs.unbindFromIrqhandler(front.irq);
    for (const gref of front.grefs) this.reclaimerOf(device).end(gref, front.page);
  }
}

/** The backend driver. */
export class EchoBack implements XenbusDriver {
  readonly name = 'echoback';
  readonly ids = [ECHO];
  readonly calls: string[] = [];

  constructor(readonly allowRebind = false) {}

  async probe(device: XenbusDevice): Promise<void> {
    this.calls.push(`probe ${device.id}`);
    if (this.allowRebind) await device.switchState(XenbusState.Initialising);
    if (!(await device.publish({ 'feature-echo': 1 }))) return;
    await device.switchState(XenbusState.InitWait);
  }

  async otherendChanged(device: XenbusDevice, state: XenbusState): Promise<void> {
    this.calls.push(`otherend ${state}`);
    switch (state) {
      case XenbusState.Initialising:
        if (device.state === XenbusState.Closed) await device.switchState(XenbusState.InitWait);
        break;
      case XenbusState.Connected:
        if (device.state !== XenbusState.Connected) await this.connect(device);
        break;
      case XenbusState.Closing:
        this.disconnect(device);
        await device.switchState(XenbusState.Closing);
        break;
      case XenbusState.Closed:
      case XenbusState.Unknown:
        this.disconnect(device);
        await device.switchState(XenbusState.Closed);
        break;
    }
  }

  async connect(device: XenbusDevice): Promise<void> {
    const { irqs } = device.xenbus;
    const { 'ring-ref': gref, 'event-channel': port } = await device.gather(device.otherend, {
      'ring-ref': unsigned,
      'event-channel': unsigned,
    });
    const mappings = await device.mapRing([gref]);
    const [{ memory, address }] = mappings;
    const back: Back = { mappings, irq: 0 };
    device.driverData = back;
    const handler = (irq: number) => {
      memory.store(address + 4, memory.load(address) + 1);
      irqs.notifyRemoteViaIrq(irq);
    };
    back.irq = irqs.bindInterdomainEvtchnToIrqhandler(device.otherendId, port, handler, device.id).irq;
    await device.switchState(XenbusState.Connected);
  }

  remove(device: XenbusDevice): void {
    this.calls.push(`remove ${device.id}`);
    this.disconnect(device);
  }

  disconnect(device: XenbusDevice): void {
    const back = device.driverData as Back | undefined;
    if (back === undefined) return;
    device.driverData = undefined;
    if (back.irq !== 0) device.xenbus.irqs.unbindFromIrqhandler(back.irq);
    device.unmapRing(back.mappings);
  }
}
