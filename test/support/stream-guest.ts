import { packetBytes, sendFrame } from '../../src/guests/frames.js';
import type { ModuleContext, ModuleHooks } from '../../src/guests/module.js';
import { NETDEV_NOTIFY_PEERS } from '../../src/net/index.js';

/** An EtherType for local experiments. */
const TYPE = 0x88b5;
const HEADER = 14;
const RETRY_MS = 20;
const WINDOW = 8;
const BROADCAST = [255, 255, 255, 255, 255, 255];

/** What a stream guest shows of itself, by its domain's name. */
export interface StreamView {
  /** Bytes that the peer has acknowledged, and bytes received in order. */
  acked: number;
  received: number;
  /** The first byte that was not the one that comes next in the stream. */
  wrongAt: number;
  announced: number;
}

export const streams = new Map<string, StreamView>();

/**
 * A module guest with a stream as TCP's: segments with sequence numbers, acknowledged, sent again when they are
 * lost, a window, and a checksum by content: byte n of the stream is n modulo 251. A guest whose name starts with
 * "send" sends for as long as it lives; others receive. It announces itself when its link is new, and can be saved.
 */
export default async function stream({ name, device, kernel, state }: ModuleContext): Promise<ModuleHooks> {
  const view = (state as StreamView | undefined) ?? { acked: 0, received: 0, wrongAt: -1, announced: 0 };
  streams.set(name, view);
  const { scheduler } = kernel.platform;
  const sends = name.startsWith('send');
  let peer: number[] | null = null;
  let stopped = false;
  const dev = device(0);
  const put32 = (bytes: Uint8Array, at: number, value: number) =>
    new DataView(bytes.buffer).setUint32(at, value);
  const get32 = (bytes: Uint8Array, at: number) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(at);

  void dev.then(eth => {
    const frame = (to: readonly number[], kind: number, value: number, payload = new Uint8Array(0)) => {
      const bytes = new Uint8Array(HEADER + 46 + payload.length);
      bytes.set(to);
      bytes.set(eth.address, 6);
      bytes.set([TYPE >> 8, TYPE & 255], 12);
      bytes[HEADER] = kind;
      put32(bytes, HEADER + 2, value);
      put32(bytes, HEADER + 6, payload.length);
      bytes.set(payload, HEADER + 10);
      return bytes;
    };
    const push = () => {
      for (let i = 0; i < WINDOW; i++) {
        const from = view.acked + i * 1000;
        const payload = Uint8Array.from({ length: 1000 }, (_, at) => (from + at) % 251);
        sendFrame(eth, frame(peer!, 1, from, payload));
      }
    };
    const tick = () => {
      if (stopped) return;
      if (sends && eth.carrierOk) {
        if (peer === null) sendFrame(eth, frame(BROADCAST, 0, 0));
        else push();
      }
      scheduler.after(RETRY_MS, tick);
    };
    eth.rxHandler = packet => {
      const bytes = packetBytes(packet, eth);
      packet.release();
      if (stopped || bytes === null || bytes.length < HEADER + 10) return;
      if (((bytes[12] << 8) | bytes[13]) !== TYPE) return;
      const from = [...bytes.subarray(6, 12)];
      const value = get32(bytes, HEADER + 2);
      switch (bytes[HEADER]) {
        case 0:
          if (!sends) sendFrame(eth, frame(from, 3, view.received));
          break;
        case 1: {
          const payload = bytes.subarray(HEADER + 10, HEADER + 10 + get32(bytes, HEADER + 6));
          if (value === view.received) {
            const wrong = payload.findIndex((byte, at) => byte !== (value + at) % 251);
            if (wrong >= 0 && view.wrongAt < 0) view.wrongAt = value + wrong;
            view.received += payload.length;
          }
          sendFrame(eth, frame(from, 2, view.received));
          break;
        }
        case 2:
          if (value <= view.acked) break;
          view.acked = value;
          break;
        case 3:
          peer = from;
          push();
          break;
      }
    };
    kernel.net.registerNotifier({
      name: 'stream',
      notifierCall(event, changed) {
        if (event !== NETDEV_NOTIFY_PEERS || changed !== eth || stopped) return;
        view.announced++;
        sendFrame(eth, frame(BROADCAST, 4, 0));
      },
    });
    tick();
  });
  return {
    stop() {
      stopped = true;
    },
    save: () => ({ ...view }),
  };
}
