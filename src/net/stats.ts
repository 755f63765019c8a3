import type { TxQueue } from './tx-queue.js';

/** A device's counters, in the order of struct rtnl_link_stats64 (linux/if_link.h). */
export class LinkStats {
  rxPackets = 0;
  txPackets = 0;
  rxBytes = 0;
  txBytes = 0;
  rxErrors = 0;
  txErrors = 0;
  rxDropped = 0;
  txDropped = 0;
  multicast = 0;
  collisions = 0;
  rxLengthErrors = 0;
  rxOverErrors = 0;
  rxCrcErrors = 0;
  rxFrameErrors = 0;
  rxFifoErrors = 0;
  rxMissedErrors = 0;
  txAbortedErrors = 0;
  txCarrierErrors = 0;
  txFifoErrors = 0;
  txHeartbeatErrors = 0;
  txWindowErrors = 0;
  rxCompressed = 0;
  txCompressed = 0;
  rxNohandler = 0;
  rxOtherhostDropped = 0;
}

/** The kernel's name of each counter, in the structure's order. */
export const LINK_STATS_FIELDS: readonly (readonly [string, keyof LinkStats])[] = [
  ['rx_packets', 'rxPackets'],
  ['tx_packets', 'txPackets'],
  ['rx_bytes', 'rxBytes'],
  ['tx_bytes', 'txBytes'],
  ['rx_errors', 'rxErrors'],
  ['tx_errors', 'txErrors'],
  ['rx_dropped', 'rxDropped'],
  ['tx_dropped', 'txDropped'],
  ['multicast', 'multicast'],
  ['collisions', 'collisions'],
  ['rx_length_errors', 'rxLengthErrors'],
  ['rx_over_errors', 'rxOverErrors'],
  ['rx_crc_errors', 'rxCrcErrors'],
  ['rx_frame_errors', 'rxFrameErrors'],
  ['rx_fifo_errors', 'rxFifoErrors'],
  ['rx_missed_errors', 'rxMissedErrors'],
  ['tx_aborted_errors', 'txAbortedErrors'],
  ['tx_carrier_errors', 'txCarrierErrors'],
  ['tx_fifo_errors', 'txFifoErrors'],
  ['tx_heartbeat_errors', 'txHeartbeatErrors'],
  ['tx_window_errors', 'txWindowErrors'],
  ['rx_compressed', 'rxCompressed'],
  ['tx_compressed', 'txCompressed'],
  ['rx_nohandler', 'rxNohandler'],
  ['rx_otherhost_dropped', 'rxOtherhostDropped'],
];

/**
 * What `ethtool -S` prints of counters that a driver keeps for each queue: the sums under the names that
 * Linux's drivers use, then each queue's own, with its byte queue limit. A field `rxQueueDrops` is
 * `rx_queue_drops`.
 */
export function ethtoolQueueStats(
  queues: readonly object[],
  txQueues: readonly TxQueue[],
): [string, number][] {
  const sums = new Map<string, number>();
  const each: [string, number][] = [];
  queues.forEach((queue, index) => {
    for (const [field, value] of Object.entries(queue)) {
      if (typeof value !== 'number') continue;
      const name = field.replace(/[A-Z]/g, letter => `_${letter.toLowerCase()}`);
      sums.set(name, (sums.get(name) ?? 0) + value);
      each.push([`queue_${index}_${name}`, value]);
    }
    const { dql, limitStops } = txQueues[index];
    each.push([`queue_${index}_bql_inflight`, dql.inflight]);
    each.push([`queue_${index}_bql_limit`, dql.limit]);
    each.push([`queue_${index}_bql_stops`, limitStops]);
  });
  return [...sums, ...each];
}
