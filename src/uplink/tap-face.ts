import { isSameAddress } from '../net/address-list.js';
import type { NetDevice } from '../net/device.js';
import { NETIF_F_ALL_TSO, NETIF_F_CSUM_MASK, NETIF_F_TSO, NETIF_F_TSO6 } from '../net/features.js';
import { Gro } from '../net/gro.js';
import type { NotifierBlock } from '../net/notifier.js';
import {
  NETDEV_CHANGE,
  NETDEV_CHANGEADDR,
  NETDEV_CHANGEMTU,
  NETDEV_DOWN,
  NETDEV_FEAT_CHANGE,
  NETDEV_UP,
} from '../net/notifier.js';
import type { Packet } from '../net/packet.js';
import { PAGE_SIZE } from '../platform/memory.js';
import { Task } from '../platform/scheduler.js';
import { POLL_BLOCKED, type Poller, type PollHandle } from './poller.js';
import { type Tap, TapIo, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6 } from './tap.js';

/** Packets that are written at a time. */
const BATCH = 64;
/**
 * Bytes of frames above a page that are read before they are sent on: of more, the first are out of the cache when they
 * are copied. Of those up to a page a poll's budget is not too many.
 */
const BURST_BYTES = 128 * 1024;
/** With the page of the headers, the slots that every backend takes: 18 of data. */
const GRO_FRAGMENTS_MAX = 17;
/** What may change what the interface should be. */
const EVENTS = [
  NETDEV_UP,
  NETDEV_DOWN,
  NETDEV_CHANGE,
  NETDEV_FEAT_CHANGE,
  NETDEV_CHANGEMTU,
  NETDEV_CHANGEADDR,
];

/**
 * A TAP as the user of a network device: what arrives on the device is what the TAP's interface receives,
 * and what is sent there goes out through the device. Frames are read straight into pages that the device
 * sends without copying, and are not read while it is stopped. The carrier, the address, the MTU and the
 * offloads of the interface follow the device's, the carrier from `start` on.
 */
export class TapFace {
  private readonly io: TapIo;
  private readonly handle: PollHandle;
  private readonly notifier: NotifierBlock;
  private readonly wake = (): void => this.handle.wake();
  /** Puts together what the interface sends in segments: one packet on the ring, not eighteen. */
  private readonly gro = new Gro(GRO_FRAGMENTS_MAX);
  private readonly sender = { receive: (packet: Packet): void => void this.device.xmit(packet, true) };
  private readonly waiting: (Packet | null)[] = new Array(BATCH).fill(null);
  private waitingCount = 0;
  private readonly flushTask: Task;
  private started = false;
  /** The address and the MTU that the interface was told of. */
  private readonly address = new Uint8Array(6);
  private mtu: number;

  /** @param onMtu learns the device's MTU when it is another than it was here */
  constructor(
    readonly device: NetDevice,
    readonly tap: Tap,
    poller: Poller,
    private readonly onMtu: (mtu: number) => void,
  ) {
    const { net } = device;
    this.mtu = device.mtu;
    this.flushTask = new Task(`tap ${tap.name}`, () => this.flush());
    this.io = new TapIo(tap, net.memory, net.packets, net.pages);
    this.handle = poller.add({ fd: tap.fd, poll: (budget, now) => this.poll(budget, now) });
    this.notifier = {
      name: `tap ${tap.name}`,
      notifierCall: (event, changed) => {
        if (changed !== device) return;
        if (EVENTS.includes(event)) this.follow();
      },
    };
    device.rxHandler = packet => this.receive(packet);
    device.onWake(this.wake);
    net.registerNotifier(this.notifier);
    this.follow();
  }

  /**
   * Lets the interface have a carrier: it is up, or will not be soon. The kernel tells its own IPv6 at once of a carrier that
   * comes to an interface that is up, and up to a second later of one that came and went before.
   */
  start(): void {
    this.started = true;
    this.follow();
  }

  /** Lets go of the device and closes the TAP. */
  close(): void {
    this.release().close();
  }

  /** Lets go of the device. @returns the TAP, open and without carrier, for another face */
  release(): Tap {
    const { device, tap } = this;
    device.net.unregisterNotifier(this.notifier);
    device.offWake(this.wake);
    device.rxHandler = null;
    this.handle.remove();
    for (let i = 0; i < this.waitingCount; i++) {
      this.waiting[i]!.release();
      this.waiting[i] = null;
    }
    this.waitingCount = 0;
    this.io.destroy();
    tap.setCarrier(false);
    return tap;
  }

  /** Makes the interface what the device is. */
  private follow(): void {
    const { device, tap } = this;
    const up = this.started && device.running && device.carrierOk;
    const { features } = device;
    let offload = 0;
    if ((features & NETIF_F_CSUM_MASK) !== 0) {
      offload = TUN_F_CSUM;
      if ((features & NETIF_F_TSO) !== 0) offload |= TUN_F_TSO4;
      if ((features & NETIF_F_TSO6) !== 0) offload |= TUN_F_TSO6;
      if (offload !== TUN_F_CSUM) offload |= TUN_F_TSO_ECN;
    }
    tap.setOffload(offload);
    // A driver may set these without an event, before it has a carrier.
    if (!isSameAddress(device.address, this.address)) {
      tap.setAddress(device.address);
      this.address.set(device.address);
    }
    if (device.mtu !== this.mtu) {
      this.mtu = device.mtu;
      this.onMtu(device.mtu);
    }
    this.io.setPool((up ? device.txPool : null) ?? device.net.pages);
    tap.setCarrier(up);
    if (up) this.handle.wake();
  }

  /** A packet with data in another domain waits for those behind it: one batch of copies fetches it all. */
  private receive(packet: Packet): void {
    if (packet.isLocal && this.waitingCount === 0) {
      this.io.writePacket(packet);
      packet.release();
      return;
    }
    if (this.waitingCount === BATCH) this.flush();
    this.waiting[this.waitingCount++] = packet;
    this.device.net.scheduler.post(this.flushTask);
  }

  private flush(): void {
    const { waiting, waitingCount } = this;
    this.waitingCount = 0;
    this.device.net.materialiser.materialise(waiting as Packet[], waitingCount);
    for (let i = 0; i < waitingCount; i++) {
      const packet = waiting[i]!;
      waiting[i] = null;
      if (!packet.failed) this.io.writePacket(packet);
      packet.release();
    }
  }

  private poll(budget: number, now: number): number {
    const { device, io } = this;
    // What is sent to an interface without carrier is not sent; the kernel keeps it from us, mostly.
    if (device.congested) return POLL_BLOCKED;
    let count = 0;
    let bytes = 0;
    do {
      const packet = io.readPacket();
      if (packet === null) break;
      if (packet.length > PAGE_SIZE) bytes += packet.length;
      if ((device.features & NETIF_F_ALL_TSO) !== 0) this.gro.receive(packet, this.sender);
      else device.xmit(packet, true);
    } while (++count < budget && bytes < BURST_BYTES && !device.congested);
    this.gro.flush();
    if (count > 0) device.net.flush();
    return io.endPoll(count, budget, now);
  }
}
