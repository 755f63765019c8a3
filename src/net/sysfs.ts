import { Bridge } from './bridge.js';
import { formatAddress, NET_NAME_UNKNOWN, type NetDevice } from './device.js';
import { DQL_MAX_LIMIT } from './dql.js';
import { NetError } from './error.js';
import { changeAlias, changeFlags, changeGroup, changeMtu, changeTxQueueLen } from './link.js';
import type { Net } from './net.js';
import { OPERSTATES, shownOperstate } from './operstate.js';
import { LINK_STATS_FIELDS } from './stats.js';
import type { TxQueue } from './tx-queue.js';
import { directory, file, link, type VirtualDirectory, type VirtualFile, type VirtualNode } from './vfs.js';

/** Counters that /sys/class/net/X/statistics has: all of the structure but the newest. */
const STATISTICS = LINK_STATS_FIELDS.filter(([name]) => name !== 'rx_otherhost_dropped');
const ULONG_MAX = 2 ** 64;

/** /sys/class/net: a link for each device, into /sys/devices. */
export function sysClassNet(net: Net): VirtualDirectory {
  return byName(
    () => net.devices,
    device => link(`../../devices/${devicePath(device)}`),
  );
}

/** /sys/devices/virtual/net: what belongs to no bus. */
export function sysVirtualNet(net: Net): VirtualDirectory {
  return sysNetOf(net, null);
}

/** The directories of devices that belong to a bus device, for its `net` directory. @param parentName null for no bus */
export function sysNetOf(net: Net, parentName: string | null): VirtualDirectory {
  return byName(() => [...net.devices].filter(device => device.parentName === parentName), sysfsDirectory);
}

function byName(
  devices: () => Iterable<NetDevice>,
  node: (device: NetDevice) => VirtualNode,
): VirtualDirectory {
  return directory(() =>
    Object.fromEntries(Array.from(devices(), device => [device.name, node(device)] as const)),
  );
}

/** Where a device's directory is, below /sys/devices. */
function devicePath(device: NetDevice): string {
  return device.parentName === null
    ? `virtual/net/${device.name}`
    : `${device.parentName}/net/${device.name}`;
}

/** A device's directory with all its attributes (net/core/net-sysfs.c). */
export function sysfsDirectory(device: NetDevice): VirtualDirectory {
  return directory(() => ({
    ...attributes(device),
    ...device.sysfs,
    ...(device instanceof Bridge ? bridgeEntries(device) : {}),
    ...(device.master instanceof Bridge ? portEntries(device, device.master) : {}),
    ...(device.parentName === null ? {} : { device: link(`../../../${device.parentName}`) }),
    queues: directory(() => queues(device)),
    statistics: directory(() => statistics(device)),
    power: directory(() => ({ runtime_status: file(0o444, () => 'unsupported\n') })),
    subsystem: link('../../../../class/net'),
  }));
}

const line = (value: string | number): string => `${value}\n`;

function attributes(device: NetDevice): Record<string, VirtualNode> {
  const alive = <T>(value: () => T): (() => T) => {
    return () => {
      if (!device.registered) throw device.error('EINVAL', 'the device is going');
      return value();
    };
  };
  const show = (value: () => string | number): VirtualFile =>
    file(
      0o444,
      alive(() => line(value())),
    );
  const number = (value: () => number, store: (n: number) => void): VirtualFile =>
    file(
      0o644,
      alive(() => line(value())),
      text => alive(() => store(parseUnsigned(device, text)))(),
    );
  const whenRunning = (value: () => string | number) => () => {
    if (!device.running) throw device.error('EINVAL', 'this is known only while it is up');
    return value();
  };
  const tunable = (name: keyof NetDevice['tunables']): VirtualFile =>
    number(
      () => device.tunables[name],
      n => {
        device.tunables[name] = n;
      },
    );
  const unsupported = (what: string) => () => {
    throw device.error('EOPNOTSUPP', `its driver has no ${what}`);
  };
  return {
    addr_assign_type: show(() => device.addrAssignType),
    addr_len: show(() => device.addrLen),
    address: show(() => formatAddress(device.address.subarray(0, device.addrLen))),
    broadcast: show(() => formatAddress(device.broadcast.subarray(0, device.addrLen))),
    carrier: file(
      0o644,
      alive(() => line(whenRunning(() => (device.carrierOk ? 1 : 0))())),
      unsupported('way to change the carrier'),
    ),
    carrier_changes: show(() => device.carrierUpCount + device.carrierDownCount),
    carrier_down_count: show(() => device.carrierDownCount),
    carrier_up_count: show(() => device.carrierUpCount),
    dev_id: show(() => '0x0'),
    dev_port: show(() => 0),
    dormant: show(whenRunning(() => (device.dormant ? 1 : 0))),
    duplex: show(whenRunning(() => (device.speed < 0 ? 'unknown' : 'full'))),
    flags: file(
      0o644,
      alive(() => line(`0x${device.flags.toString(16)}`)),
      text => changeFlags(device, parseUnsigned(device, text)),
    ),
    gro_flush_timeout: tunable('groFlushTimeout'),
    ifalias: file(
      0o644,
      alive(() => (device.ifalias === '' ? '' : line(device.ifalias))),
      text => changeAlias(device, text.replace(/\n$/, '')),
    ),
    ifindex: show(() => device.ifindex),
    iflink: show(() => device.iflink),
    link_mode: show(() => device.linkMode),
    mtu: number(
      () => device.mtu,
      n => changeMtu(device, n),
    ),
    name_assign_type: show(() => {
      if (device.nameAssignType === NET_NAME_UNKNOWN) {
        throw device.error('EINVAL', 'nobody has said where its name comes from');
      }
      return device.nameAssignType;
    }),
    napi_defer_hard_irqs: tunable('napiDeferHardIrqs'),
    netdev_group: number(
      () => device.group,
      n => changeGroup(device, n),
    ),
    operstate: show(() => OPERSTATES[shownOperstate(device)]),
    phys_port_id: show(unsupported('physical port')),
    phys_port_name: show(unsupported('physical port')),
    phys_switch_id: show(unsupported('switch')),
    proto_down: file(
      0o644,
      alive(() => line(device.protoDown ? 1 : 0)),
      unsupported('way to keep protocols down'),
    ),
    speed: show(whenRunning(() => device.speed)),
    testing: show(whenRunning(() => (device.testing ? 1 : 0))),
    threaded: tunable('threaded'),
    tx_queue_len: number(
      () => device.txQueueLen,
      n => changeTxQueueLen(device, n),
    ),
    type: show(() => device.type),
    uevent: file(
      0o644,
      () =>
        `${device.kind === 'bridge' ? 'DEVTYPE=bridge\n' : ''}INTERFACE=${device.name}\nIFINDEX=${device.ifindex}\n`,
      () => {},
    ),
  };
}

function statistics(device: NetDevice): Record<string, VirtualNode> {
  device.ops.getStats?.(device);
  return Object.fromEntries(
    STATISTICS.map(([name, field]) => [name, file(0o444, () => line(device.stats[field]))]),
  );
}

function queues(device: NetDevice): Record<string, VirtualNode> {
  const entries: Record<string, VirtualNode> = {};
  for (let i = 0; i < device.realNumRxQueues; i++) {
    entries[`rx-${i}`] = directory(() => ({
      rps_cpus: file(0o644, () => line(0)),
      rps_flow_cnt: file(0o644, () => line(0)),
    }));
  }
  for (let i = 0; i < device.realNumTxQueues; i++) {
    const queue = device.txQueues[i];
    entries[`tx-${i}`] = directory(() => ({
      tx_maxrate: file(0o644, () => line(0)),
      tx_timeout: file(0o444, () => line(queue.timeouts)),
      traffic_class: file(0o444, () => {
        if (device.realNumTxQueues === 1 && device.numTxQueues === 1) {
          throw new NetError('ENOENT', 'a device with one queue has no traffic classes');
        }
        return line(0);
      }),
      xps_cpus: file(0o644, () => line(0)),
      xps_rxqs: file(0o644, () => line(0)),
      ...(device.noQueue ? {} : { byte_queue_limits: directory(() => byteQueueLimits(device, queue)) }),
    }));
  }
  return entries;
}

/** The byte queue limit of a transmit queue, live. */
function byteQueueLimits(device: NetDevice, { dql }: TxQueue): Record<string, VirtualNode> {
  const limit = (name: 'limit' | 'minLimit' | 'maxLimit'): VirtualFile =>
    file(
      0o644,
      () => line(dql[name]),
      text => {
        const value = text.trim() === 'max' ? DQL_MAX_LIMIT : parseUnsigned(device, text);
        if (value > DQL_MAX_LIMIT) {
          throw device.error('EINVAL', `${value} bytes are more than the largest limit, ${DQL_MAX_LIMIT}`);
        }
        dql[name] = value;
      },
    );
  return {
    hold_time: file(
      0o644,
      () => line(dql.holdMs),
      text => {
        dql.holdMs = parseUnsigned(device, text);
      },
    ),
    inflight: file(0o444, () => line(dql.inflight)),
    limit: limit('limit'),
    limit_max: limit('maxLimit'),
    limit_min: limit('minLimit'),
  };
}

function bridgeEntries(bridge: Bridge): Record<string, VirtualNode> {
  const entries: Record<string, VirtualNode> = {
    brif: directory(() =>
      Object.fromEntries(
        bridge.portList.map(({ device }) => [device.name, link(`../../../../${devicePath(device)}/brport`)]),
      ),
    ),
    bridge: directory(() => ({
      ageing_time: file(
        0o644,
        () => line(bridge.fdb.ageingMs / 10),
        text => {
          bridge.fdb.ageingMs = parseUnsigned(bridge, text) * 10;
        },
      ),
      bridge_id: file(0o444, () => line(bridgeId(bridge))),
      root_id: file(0o444, () => line(bridgeId(bridge))),
      stp_state: file(0o444, () => line(0)),
      flush: file(0o200, undefined, () => bridge.fdb.flush()),
    })),
  };
  for (const { device } of bridge.portList) {
    entries[`lower_${device.name}`] = link(`../../../${devicePath(device)}`);
  }
  return entries;
}

/** Priority 32768 and the bridge's address. */
function bridgeId(bridge: Bridge): string {
  return `8000.${formatAddress(bridge.address).replaceAll(':', '')}`;
}

function portEntries(device: NetDevice, bridge: Bridge): Record<string, VirtualNode> {
  const up = `${device.parentName === null ? '../' : '../../../virtual/net/'}${bridge.name}`;
  return {
    brport: directory(() => portAttributes(device, bridge)),
    master: link(up),
    [`upper_${bridge.name}`]: link(up),
  };
}

type PortFlag = 'learning' | 'unicastFlood' | 'multicastFlood' | 'broadcastFlood' | 'hairpin' | 'isolated';

function portAttributes(device: NetDevice, bridge: Bridge): Record<string, VirtualNode> {
  const port = bridge.portOf(device);
  if (port === undefined) return {};
  const flag = (name: PortFlag): VirtualFile =>
    file(
      0o644,
      () => line(port[name] ? 1 : 0),
      text => {
        port[name] = parseUnsigned(device, text) !== 0;
      },
    );
  const fixed = (value: string | number, mode = 0o444): VirtualFile =>
    file(
      mode,
      () => line(value),
      () => {
        throw device.error('EOPNOTSUPP', 'this bridge does not do that');
      },
    );
  return {
    backup_port: file(0o644, () => ''),
    bpdu_guard: fixed(0, 0o644),
    bridge: link(`../../${bridge.name}`),
    broadcast_flood: flag('broadcastFlood'),
    change_ack: fixed(0),
    config_pending: fixed(0),
    designated_bridge: fixed(bridgeId(bridge)),
    designated_cost: fixed(0),
    designated_port: fixed(0x8000 + port.number),
    designated_root: fixed(bridgeId(bridge)),
    flush: file(0o200, undefined, () => bridge.fdb.flushPort(port.number)),
    forward_delay_timer: fixed(0),
    group_fwd_mask: fixed('0x0', 0o644),
    hairpin_mode: flag('hairpin'),
    hold_timer: fixed(0),
    isolated: flag('isolated'),
    learning: flag('learning'),
    message_age_timer: fixed(0),
    multicast_fast_leave: fixed(0, 0o644),
    multicast_flood: flag('multicastFlood'),
    multicast_router: fixed(1, 0o644),
    multicast_to_unicast: fixed(0, 0o644),
    neigh_suppress: fixed(0, 0o644),
    path_cost: fixed(2, 0o644),
    port_id: fixed(`0x${(0x8000 + port.number).toString(16)}`),
    port_no: fixed(`0x${port.number.toString(16)}`),
    priority: fixed(32, 0o644),
    proxyarp: fixed(0, 0o644),
    proxyarp_wifi: fixed(0, 0o644),
    root_block: fixed(0, 0o644),
    state: file(0o444, () => line(port.forwarding ? 3 : 0)),
    unicast_flood: flag('unicastFlood'),
  };
}

/**
 * The attributes of a netfront device that were there before rx buffers were the driver's own business:
 * they always say 256, and what is written is looked at and forgotten.
 */
export function netfrontRxbufAttributes(device: NetDevice): Record<string, VirtualNode> {
  const writable = (): VirtualFile =>
    file(
      0o644,
      () => line(256),
      text => {
        if (!/^[+]?(0x[0-9a-f]+|\d+)\s*$/i.test(text)) {
          throw device.error('EBADMSG', `${JSON.stringify(text)} is no number`);
        }
      },
    );
  return { rxbuf_min: writable(), rxbuf_max: writable(), rxbuf_cur: file(0o444, () => line(256)) };
}

/** kstrtoul. @throws NetError EINVAL for what is no number, ERANGE for one of more than 64 bits */
function parseUnsigned(device: NetDevice, text: string): number {
  const digits = text.replace(/\n$/, '').replace(/^\+/, '');
  let value: number;
  if (/^0x[0-9a-f]+$/i.test(digits)) value = Number.parseInt(digits.slice(2), 16);
  else if (/^0[0-7]*$/.test(digits)) value = Number.parseInt(digits, 8);
  else if (/^[1-9]\d*$/.test(digits)) value = Number.parseInt(digits, 10);
  else throw device.error('EINVAL', `${JSON.stringify(text)} is no number`);
  if (value >= ULONG_MAX) throw device.error('ERANGE', `${digits} has more than 64 bits`);
  return value;
}
