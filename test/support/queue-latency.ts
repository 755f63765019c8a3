import { DQL_MAX_LIMIT } from '../../src/net/dql.js';
import { buildFrame } from '../net/frames.js';
import { DataPath } from './data-path.js';
import { packetFrom } from './packets.js';

/** TC_PRIO_INTERACTIVE: the first band of pfifo_fast. */
const INTERACTIVE = 6;
/** What the sender's vif lets through: 10 Mbit/s. */
const RATE = { bytes: 12_500, usec: 10_000 };
const BULK_BYTES = 1400;
/** Bulk packets under way: more than the ring holds. */
const BULK_WINDOW = 600;
const PINGS = 40;
const PING_MS = 50;
/** Until the limit has found its size. */
const SETTLE_MS = 4000;

/** What an urgent packet meets beside a stream that fills the link. */
export interface QueueLatency {
  /** Milliseconds of simulated time from one guest to the other and back: the median. */
  medianMs: number;
  /** The most bytes that were on the sender's ring, and not yet taken by the backend. */
  ringBytes: number;
  /** Bytes of the stream that arrived in a second. */
  bytesPerSecond: number;
}

/**
 * A guest sends a stream through a vif of 10 Mbit/s, and beside it, each 50 ms, a packet of the highest band, which
 * the other guest sends back.
 * @param limited with netfront's byte queue limit, or with one that never holds anything back
 */
export async function queueLatency(limited: boolean): Promise<QueueLatency> {
  const path = new DataPath(71);
  const [a, b] = [path.guest(), path.guest()];
  const [queue] = a.dev.txQueues;
  if (!limited) queue.setMinLimit(DQL_MAX_LIMIT);
  a.vif.setRate(RATE);
  const frame = (from: typeof a, to: typeof a, length: number): Uint8Array =>
    buildFrame({
      source: [...from.dev.address],
      destination: [...to.dev.address],
      payload: new Uint8Array(length),
      udp: true,
    });
  const bulk = frame(a, b, BULK_BYTES);
  const [ping, pong] = [frame(a, b, 8), frame(b, a, 8)];
  let underWay = 0;
  let received = 0;
  let ringBytes = 0;
  const fill = (): void => {
    for (; underWay < BULK_WINDOW; underWay++) a.dev.xmit(packetFrom(a.dev, bulk), true);
    a.dom.net.flush();
    ringBytes = Math.max(ringBytes, queue.dql.inflight);
  };
  b.dev.rxHandler = (packet, dev) => {
    if (packet.length === ping.length) dev.xmit(packetFrom(dev, pong), true);
    else {
      underWay--;
      received += packet.length;
    }
    packet.release();
  };
  const times: number[] = [];
  let sentAt = 0;
  a.dev.rxHandler = packet => {
    packet.release();
    times.push(path.scheduler.now() - sentAt);
  };
  await stream(SETTLE_MS);
  ringBytes = 0;
  received = 0;
  const start = path.scheduler.now();
  for (let i = 0; i < PINGS; i++) {
    const urgent = packetFrom(a.dev, ping);
    urgent.priority = INTERACTIVE;
    sentAt = path.scheduler.now();
    a.dev.xmit(urgent);
    while (times.length === i) await stream(1);
    await stream(PING_MS);
  }
  times.sort((x, y) => x - y);
  return {
    medianMs: times[times.length >> 1],
    ringBytes,
    bytesPerSecond: (received / (path.scheduler.now() - start)) * 1000,
  };

  /** Keeps the stream going for so long. */
  async function stream(ms: number): Promise<void> {
    const end = path.scheduler.now() + ms;
    while (path.scheduler.now() < end) {
      fill();
      await path.scheduler.runFor(1);
    }
  }
}
