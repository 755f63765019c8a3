import { framePacket, packetBytes } from '../guests/frames.js';
import type { Bridge } from '../net/bridge.js';
import type { NetDevice } from '../net/device.js';
import { NETDEV_TX_OK } from '../net/tx-queue.js';
import { Task } from '../platform/scheduler.js';

/** Frames under way in one direction; more are lost, as on a real one. */
const FRAMES_MAX = 1024;

/** One end: a port of a bridge. */
class CableEnd {
  readonly device: NetDevice;
  other!: CableEnd;
  private readonly arriving: Uint8Array[] = [];
  private readonly task: Task;

  constructor(private readonly bridge: Bridge) {
    const { net } = bridge;
    this.device = net.allocEtherdev('cable%d', {
      startXmit: (packet, dev) => {
        const bytes = packetBytes(packet, dev as NetDevice);
        if (bytes !== null && this.other.take(bytes)) {
          dev.stats.txPackets++;
          dev.stats.txBytes += bytes.length;
        } else dev.stats.txDropped++;
        packet.release();
        return NETDEV_TX_OK;
      },
    }) as NetDevice;
    this.device.maxMtu = 65535;
    this.device.mtu = bridge.mtu;
    for (let i = 1; i < 6; i++) this.device.address[i] = Math.floor(net.random() * 256);
    this.device.address[0] = 0xfe;
    this.task = new Task(`${this.device.name} arrival`, () => this.deliver());
    net.register(this.device);
    bridge.addPort(this.device);
    this.device.open();
  }

  close(): void {
    this.arriving.length = 0;
    this.bridge.removePort(this.device);
  }

  private take(bytes: Uint8Array): boolean {
    if (this.arriving.length >= FRAMES_MAX || !this.device.registered) return false;
    this.arriving.push(bytes);
    this.bridge.net.scheduler.post(this.task);
    return true;
  }

  private deliver(): void {
    const { device } = this;
    for (const bytes of this.arriving.splice(0)) {
      const packet = framePacket(device, bytes);
      if (packet === null) {
        device.stats.rxDropped++;
        continue;
      }
      device.stats.rxPackets++;
      device.stats.rxBytes += bytes.length;
      device.receive(packet);
    }
  }
}

/** A cable between bridges of two hosts in one process, which share nothing else: frames are copied. */
export class Cable {
  readonly ends: readonly [NetDevice, NetDevice];
  private readonly both: readonly [CableEnd, CableEnd];

  constructor(left: Bridge, right: Bridge) {
    const both = [new CableEnd(left), new CableEnd(right)] as const;
    both[0].other = both[1];
    both[1].other = both[0];
    this.both = both;
    this.ends = [both[0].device, both[1].device];
  }

  /** Pulls it out at both ends. */
  async close(): Promise<void> {
    for (const end of this.both) {
      end.close();
      await end.device.net.unregister(end.device);
    }
  }
}
