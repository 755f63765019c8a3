import type { Net } from './net.js';
import type { LinkStats } from './stats.js';

const HEADER =
  'Inter-|   Receive                                                |  Transmit\n' +
  ' face |bytes    packets errs drop fifo frame compressed multicast|' +
  'bytes    packets errs drop fifo colls carrier compressed\n';

/** /proc/net/dev of a namespace (net/core/net-procfs.c). */
export function procNetDev(net: Net): string {
  let text = HEADER;
  for (const device of net.devices) {
    device.ops.getStats?.(device);
    text += `${device.name.padStart(6)}: ${statsLine(device.stats)}\n`;
  }
  return text;
}

function statsLine(s: LinkStats): string {
  const columns: [number, number][] = [
    [s.rxBytes, 7],
    [s.rxPackets, 7],
    [s.rxErrors, 4],
    [s.rxDropped + s.rxMissedErrors, 4],
    [s.rxFifoErrors, 4],
    [s.rxLengthErrors + s.rxOverErrors + s.rxCrcErrors + s.rxFrameErrors, 5],
    [s.rxCompressed, 10],
    [s.multicast, 9],
    [s.txBytes, 8],
    [s.txPackets, 7],
    [s.txErrors, 4],
    [s.txDropped, 4],
    [s.txFifoErrors, 4],
    [s.collisions, 5],
    [s.txCarrierErrors + s.txAbortedErrors + s.txWindowErrors + s.txHeartbeatErrors, 7],
    [s.txCompressed, 10],
  ];
  return columns.map(([value, width]) => String(value).padStart(width)).join(' ');
}
