import { etherSetup, makeUpAddress, type NetDevice } from '../net/device.js';
import {
  NETIF_F_ALL_TSO,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
  NETIF_F_TSO_MANGLEID,
} from '../net/features.js';
import { ETH_MAX_MTU } from '../net/flags.js';
import type { Net } from '../net/net.js';
import type { Packet } from '../net/packet.js';
import { NETDEV_TX_OK } from '../net/tx-queue.js';
import type { Poller, PollHandle } from './poller.js';
import { type Tap, TapIo } from './tap.js';

/** What a TAP claims (the default of drivers/net/tun.c). */
const SPEED_MBITS = 10_000;
/** Packets that are written at one flush. */
const BATCH = 64;

/**
 * A TAP as a network device of a simulated domain: what is sent through the device arrives on the TAP's
 * interface, and the other way round. As a port of a bridge it is that bridge's uplink to the machine.
 */
export class TapPort {
  readonly device: NetDevice;
  private readonly io: TapIo;
  private readonly queue: (Packet | null)[] = new Array(BATCH).fill(null);
  private queued = 0;
  private handle: PollHandle | null = null;

  /** @param name the device's name in `net`; may hold one %d */
  constructor(
    private readonly net: Net,
    poller: Poller,
    readonly tap: Tap,
    name = tap.name,
  ) {
    this.io = new TapIo(tap, net.memory, net.packets, net.pages);
    this.device = net.allocNetdevMqs(
      name,
      device => {
        etherSetup(device);
        device.maxMtu = ETH_MAX_MTU;
        device.kind = 'tun';
        device.driver = 'tun';
        device.busInfo = 'tap';
        device.speed = SPEED_MBITS;
        device.hwFeatures =
          NETIF_F_SG | NETIF_F_HIGHDMA | NETIF_F_HW_CSUM | (NETIF_F_ALL_TSO & ~NETIF_F_TSO_MANGLEID);
        device.features = device.hwFeatures | NETIF_F_RXCSUM;
        device.noQueue = true;
      },
      {
        open: () => {
          this.handle = poller.add({ fd: tap.fd, poll: (budget, now) => this.poll(budget, now) });
        },
        stop: () => this.stop(),
        startXmit: packet => this.startXmit(packet),
        flush: () => this.flush(),
      },
    ) as NetDevice;
    makeUpAddress(this.device.address, net.random);
    net.register(this.device);
  }

  /** Takes the device away and closes the TAP. */
  async close(): Promise<void> {
    await this.net.unregister(this.device);
    this.io.destroy();
    this.tap.close();
  }

  private poll(budget: number, now: number): number {
    const { io, device } = this;
    let count = 0;
    for (; count < budget; count++) {
      const packet = io.readPacket();
      if (packet === null) break;
      device.stats.rxPackets++;
      device.stats.rxBytes += packet.length;
      device.receive(packet);
    }
    device.stats.rxErrors = io.stats.rxErrors;
    this.net.flush();
    return io.endPoll(count, budget, now);
  }

  private startXmit(packet: Packet): number {
    if (this.queued === BATCH) this.flush();
    this.queue[this.queued++] = packet;
    return NETDEV_TX_OK;
  }

  /** Fetches what lies in other domains by one batch of copies, then writes. */
  private flush(): void {
    const { queue, io } = this;
    const { stats } = this.device;
    const count = this.queued;
    this.net.materialiser.materialise(queue as Packet[], count);
    for (let i = 0; i < count; i++) {
      const packet = queue[i]!;
      queue[i] = null;
      if (!packet.failed && io.writePacket(packet)) {
        stats.txPackets++;
        stats.txBytes += packet.length;
      } else stats.txDropped++;
      packet.release();
    }
    this.queued = 0;
  }

  private stop(): void {
    this.handle?.remove();
    this.handle = null;
    for (let i = 0; i < this.queued; i++) {
      this.queue[i]!.release();
      this.queue[i] = null;
    }
    this.queued = 0;
  }
}
