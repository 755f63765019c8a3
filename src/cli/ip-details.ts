import { Bridge, type BridgePort, type NetDevice } from '../net/index.js';

/** A value of `ip -d link`: its names in JSON and in text, null for where it does not appear. */
interface Field {
  readonly json: string | null;
  readonly text: string | null;
  readonly value: unknown;
  /** How text has the value; JSON's form without it. */
  readonly shown?: string;
}

const field = (json: string, value: string | number, text: string = json): Field => ({ json, text, value });
const onOff = (json: string, value: boolean, text: string | null = json): Field => ({
  json,
  text,
  value,
  shown: value ? 'on' : 'off',
});
/** What counts down in seconds; nothing of ours does. */
const timer = (name: string): Field => ({ json: name, text: name, value: 0, shown: '   0.00' });
const zero = (...names: string[]): Field[] => names.map(name => field(name, 0));

/** Priority 32768 and the address, each byte without leading zeros. */
function bridgeId(bridge: Bridge): string {
  return `8000.${[...bridge.address].map(byte => byte.toString(16)).join(':')}`;
}

/** What iproute2 prints of a bridge: ours forwards at once, has no spanning tree and looks into no groups. */
function bridgeFields(bridge: Bridge): Field[] {
  const id = bridgeId(bridge);
  return [
    field('forward_delay', 0),
    field('hello_time', 200),
    field('max_age', 2000),
    field('ageing_time', Math.round(bridge.fdb.ageingMs / 10)),
    field('stp_state', 0),
    field('priority', 32768),
    field('vlan_filtering', 0),
    field('bridge_id', id),
    field('root_id', id, 'designated_root'),
    ...zero('root_port', 'root_path_cost', 'topology_change', 'topology_change_detected'),
    ...['hello_timer', 'tcn_timer', 'topology_change_timer', 'gc_timer'].map(timer),
    field('group_fwd_mask', '0'),
    field('group_addr', '01:80:c2:00:00:00', 'group_address'),
    ...zero('mcast_snooping', 'no_linklocal_learn', 'mcast_vlan_snooping'),
    field('mcast_router', 1),
    ...zero('mcast_query_use_ifaddr', 'mcast_querier'),
    field('mcast_hash_elasticity', 16),
    field('mcast_hash_max', 4096),
    field('mcast_last_member_cnt', 2, 'mcast_last_member_count'),
    field('mcast_startup_query_cnt', 2, 'mcast_startup_query_count'),
    field('mcast_last_member_intvl', 100, 'mcast_last_member_interval'),
    field('mcast_membership_intvl', 26000, 'mcast_membership_interval'),
    field('mcast_querier_intvl', 25500, 'mcast_querier_interval'),
    field('mcast_query_intvl', 12500, 'mcast_query_interval'),
    field('mcast_query_response_intvl', 1000, 'mcast_query_response_interval'),
    field('mcast_startup_query_intvl', 3124, 'mcast_startup_query_interval'),
    field('mcast_stats_enabled', 0),
    field('mcast_igmp_version', 2),
    field('mcast_mld_version', 1),
    ...zero('nf_call_iptables', 'nf_call_ip6tables', 'nf_call_arptables'),
  ];
}

function portFields(port: BridgePort): Field[] {
  const id = bridgeId(port.bridge);
  return [
    field('state', port.forwarding ? 'forwarding' : 'disabled'),
    field('priority', 32),
    field('cost', 2),
    onOff('hairpin', port.hairpin),
    onOff('guard', false),
    onOff('root_block', false),
    onOff('fastleave', false),
    onOff('learning', port.learning),
    onOff('flood', port.unicastFlood),
    field('id', `0x${(0x8000 + port.number).toString(16)}`, 'port_id'),
    field('no', `0x${port.number.toString(16)}`, 'port_no'),
    field('designated_port', 0x8000 + port.number),
    field('designated_cost', 0),
    field('bridge_id', id, 'designated_bridge'),
    field('root_id', id, 'designated_root'),
    ...['hold_timer', 'message_age_timer', 'forward_delay_timer'].map(timer),
    ...zero('topology_change_ack', 'config_pending'),
    onOff('proxy_arp', false),
    onOff('proxy_arp_wifi', false),
    field('multicast_router', 1, 'mcast_router'),
    // Once more, under its other name.
    { json: null, text: 'mcast_fast_leave', value: false, shown: 'off' },
    onOff('mcast_flood', port.multicastFlood),
    onOff('bcast_flood', port.broadcastFlood),
    onOff('mcast_to_unicast', false),
    onOff('neigh_suppress', false),
    field('group_fwd_mask', '0'),
    field('group_fwd_mask_str', '0x0'),
    onOff('vlan_tunnel', false),
    onOff('isolated', port.isolated),
    onOff('locked', false),
  ];
}

/** A TAP that a program has open. */
const TAP_FIELDS: readonly Field[] = [
  field('type', 'tap'),
  onOff('pi', false),
  onOff('vnet_hdr', true),
  onOff('multi_queue', false, null),
  onOff('persist', false),
];

function kindFields(device: NetDevice): readonly Field[] {
  if (device instanceof Bridge) return bridgeFields(device);
  return device.kind === 'tun' ? TAP_FIELDS : [];
}

function limitFields(device: NetDevice): Field[] {
  const fields = [
    field('inet6_addr_gen_mode', 'none', 'addrgenmode'),
    field('num_tx_queues', device.numTxQueues, 'numtxqueues'),
    field('num_rx_queues', device.numRxQueues, 'numrxqueues'),
    field('gso_max_size', device.gsoMaxSize),
    field('gso_max_segs', device.gsoMaxSegs),
    field('tso_max_size', device.tsoMaxSize),
    field('tso_max_segs', device.gsoMaxSegs),
    field('gro_max_size', device.groMaxSize),
  ];
  if (device.parentBus !== null) fields.push(field('parentbus', device.parentBus));
  if (device.parentName !== null) fields.push(field('parentdev', device.parentName));
  return fields;
}

function text(fields: readonly Field[]): string {
  return fields
    .filter(entry => entry.text !== null)
    .map(entry => `${entry.text} ${entry.shown ?? entry.value} `)
    .join('');
}

function json(fields: readonly Field[]): Record<string, unknown> {
  return Object.fromEntries(
    fields.filter(entry => entry.json !== null).map(entry => [entry.json, entry.value]),
  );
}

function portOf(device: NetDevice): BridgePort | undefined {
  return device.master instanceof Bridge ? device.master.portOf(device) : undefined;
}

/** What `ip -d link` adds to a device's second line, and below it. */
export function detailsText(device: NetDevice): string {
  const port = portOf(device);
  return (
    ` promiscuity ${device.promiscuity}  allmulti ${device.allmulti} ` +
    `minmtu ${device.minMtu} maxmtu ${device.maxMtu} ` +
    (device.kind === null ? '' : `\n    ${device.kind} ${text(kindFields(device))}`) +
    (port === undefined ? '' : `\n    bridge_slave ${text(portFields(port))}`) +
    text(limitFields(device))
  );
}

/** What `ip -d -j link` adds to a device's object. */
export function detailsJson(device: NetDevice): Record<string, unknown> {
  const port = portOf(device);
  const ofKind = kindFields(device);
  const info = {
    ...(device.kind === null ? {} : { info_kind: device.kind }),
    ...(ofKind.length === 0 ? {} : { info_data: json(ofKind) }),
    ...(port === undefined ? {} : { info_slave_kind: 'bridge', info_slave_data: json(portFields(port)) }),
  };
  return {
    promiscuity: device.promiscuity,
    allmulti: device.allmulti,
    min_mtu: device.minMtu,
    max_mtu: device.maxMtu,
    ...(Object.keys(info).length === 0 ? {} : { linkinfo: info }),
    ...json(limitFields(device)),
  };
}
