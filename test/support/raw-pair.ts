import type { HostileFrontend, TxPacketOptions } from '../../src/mock/index.js';
import type { NetDevice } from '../../src/net/index.js';
import type { FastPathModule } from '../../src/netback/fast-path.js';
import { buildFrame, type TcpFrame } from '../net/frames.js';
import { DataPath } from './data-path.js';
import { Attacker, holdings } from './hostile.js';

export type RawGuestOptions = ConstructorParameters<typeof Attacker>[1];

/** Two guests whose rings a test writes itself; dom0's bridge knows where both are. */
export class RawPair {
  readonly path: DataPath;
  readonly sender: Attacker;
  readonly receiver: Attacker;

  /**
   * @param fastPath false to have TypeScript take every packet; or what makes the module for the fast path
   * @param options.start the rings' first index
   * @param options.looselyOrdered as of guests whose processors are emulated in other threads
   */
  constructor(
    fastPath: boolean | ((path: DataPath) => FastPathModule),
    private readonly options: {
      sender?: RawGuestOptions;
      receiver?: RawGuestOptions;
      start?: number;
      looselyOrdered?: boolean;
    } = {},
  ) {
    this.path = new DataPath(1, undefined, fastPath === true);
    if (typeof fastPath === 'function') Object.assign(this.path, { fastPathModule: fastPath(this.path) });
    if (options.looselyOrdered) Object.assign(this.path.dom0.platform, { looselyOrdered: () => true });
    this.sender = this.add(options.sender);
    this.receiver = this.add(options.receiver);
  }

  /** One more guest, of which the bridge knows, too. */
  add(options?: RawGuestOptions): Attacker {
    const guest = new Attacker(this.path, { gro: false, ...options });
    guest.connect(front => startAt(front, this.options.start ?? 0));
    this.learn(guest.mac, guest);
    return guest;
  }

  /** As if a frame from that address had come in from a guest. */
  learn(mac: readonly number[], guest: Attacker): void {
    const [high, low] = [(mac[0] << 8) | mac[1], (mac[2] << 24) | (mac[3] << 16) | (mac[4] << 8) | mac[5]];
    const { bridge, dom0 } = this.path;
    bridge.fdb.learn(high, low, bridge.portOf(guest.vif.dev as NetDevice)!.number, dom0.net.now);
  }

  /** A frame from the sender to the receiver; UDP, as long as nothing else is asked for. */
  frame(length: number, changes: Partial<TcpFrame> = {}): Uint8Array {
    return buildFrame({
      source: this.sender.mac,
      destination: this.receiver.mac,
      udp: true,
      payload: Uint8Array.from({ length }, (_, i) => (i * 13 + length) & 0xff),
      ...changes,
    });
  }

  /** Puts a packet on the sender's ring, and lets the host run until it is quiet. */
  async send(bytes: Uint8Array, options?: TxPacketOptions): Promise<void> {
    this.sender.front.packet(bytes, options);
    await this.strike();
  }

  /** Publishes what both have put on their rings, and lets the host run until it is quiet. */
  async strike(): Promise<void> {
    this.receiver.front.push();
    await this.sender.strike();
  }

  /** All that anybody can tell of what happened; what came since the last call. */
  outcome(): unknown {
    return {
      guests: [this.sender, this.receiver].map(({ front, vif, fatal }) => ({
        tx: front.txResponses(),
        rx: front.rxPackets(),
        indexes: [front.tx, front.rx].map(ring => [ring.reqProd, ring.rspProd]),
        stats: [vif.dev.stats, vif.stats, ...vif.queues.map(({ stats }) => stats)].map(stats => ({
          ...stats,
        })),
        inFlight: vif.queues.map(({ inFlight, waitingPages }) => [inFlight, waitingPages]),
        fatal: [...fatal],
      })),
      holdings: holdings(this.path),
    };
  }
}

function startAt(front: HostileFrontend, index: number): void {
  for (const ring of [front.tx, front.rx]) {
    ring.reqProd = index;
    ring.rspProd = index;
    ring.reqEvent = index + 1;
    ring.rspEvent = index + 1;
  }
  front.txNext = index;
  front.rxNext = index;
}
