import { ErrnoError } from '../abi/errno.js';
import {
  NETIF_F_FRAGLIST,
  NETIF_F_GRO,
  NETIF_F_GRO_HW,
  NETIF_F_GSO,
  NETIF_F_GSO_PARTIAL,
  NETIF_F_GSO_ROBUST,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_HW_TLS_RX,
  NETIF_F_HW_TLS_TX,
  NETIF_F_HW_VLAN_CTAG_FILTER,
  NETIF_F_HW_VLAN_CTAG_RX,
  NETIF_F_HW_VLAN_CTAG_TX,
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_LOOPBACK,
  NETIF_F_LRO,
  NETIF_F_NEVER_CHANGE,
  NETIF_F_NOCACHE_COPY,
  NETIF_F_NTUPLE,
  NETIF_F_RXALL,
  NETIF_F_RXCSUM,
  NETIF_F_RXFCS,
  NETIF_F_RXHASH,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO_ECN,
  NETIF_F_TSO_MANGLEID,
  NETIF_F_TSO6,
  NETIF_F_VLAN_CHALLENGED,
  type Net,
  type NetDevice,
  wantFeatures,
} from '../net/index.js';
import { errnoText, type Printed, printed, refused } from './printed.js';

/** A line of `ethtool -k`: its name, our feature (0 for one that no device of ours has), and its group. */
type FeatureLine = readonly [name: string, bit: number];

/** What older ethtools had as one switch: its long and short name, and the features behind it. */
const GROUPS: readonly (readonly [long: string, short: string, features: readonly FeatureLine[]])[] = [
  ['rx-checksumming', 'rx', [['rx-checksum', NETIF_F_RXCSUM]]],
  [
    'tx-checksumming',
    'tx',
    [
      ['tx-checksum-ipv4', NETIF_F_IP_CSUM],
      ['tx-checksum-ip-generic', NETIF_F_HW_CSUM],
      ['tx-checksum-ipv6', NETIF_F_IPV6_CSUM],
      ['tx-checksum-fcoe-crc', 0],
      ['tx-checksum-sctp', 0],
    ],
  ],
  [
    'scatter-gather',
    'sg',
    [
      ['tx-scatter-gather', NETIF_F_SG],
      ['tx-scatter-gather-fraglist', NETIF_F_FRAGLIST],
    ],
  ],
  [
    'tcp-segmentation-offload',
    'tso',
    [
      ['tx-tcp-segmentation', NETIF_F_TSO],
      ['tx-tcp-ecn-segmentation', NETIF_F_TSO_ECN],
      ['tx-tcp-mangleid-segmentation', NETIF_F_TSO_MANGLEID],
      ['tx-tcp6-segmentation', NETIF_F_TSO6],
      ['tx-tcp-accecn-segmentation', 0],
    ],
  ],
  ['generic-segmentation-offload', 'gso', [['tx-generic-segmentation', NETIF_F_GSO]]],
  ['generic-receive-offload', 'gro', [['rx-gro', NETIF_F_GRO]]],
  ['large-receive-offload', 'lro', [['rx-lro', NETIF_F_LRO]]],
  ['rx-vlan-offload', 'rxvlan', [['rx-vlan-hw-parse', NETIF_F_HW_VLAN_CTAG_RX]]],
  ['tx-vlan-offload', 'txvlan', [['tx-vlan-hw-insert', NETIF_F_HW_VLAN_CTAG_TX]]],
  ['ntuple-filters', 'ntuple', [['rx-ntuple-filter', NETIF_F_NTUPLE]]],
  ['receive-hashing', 'rxhash', [['rx-hashing', NETIF_F_RXHASH]]],
];

/** The features without a group, in the order of a modern kernel's list. */
const SINGLES: readonly FeatureLine[] = [
  ['highdma', NETIF_F_HIGHDMA],
  ['rx-vlan-filter', NETIF_F_HW_VLAN_CTAG_FILTER],
  ['vlan-challenged', NETIF_F_VLAN_CHALLENGED],
  ['tx-gso-robust', NETIF_F_GSO_ROBUST],
  ['tx-fcoe-segmentation', 0],
  ['tx-gre-segmentation', 0],
  ['tx-gre-csum-segmentation', 0],
  ['tx-ipxip4-segmentation', 0],
  ['tx-ipxip6-segmentation', 0],
  ['tx-udp_tnl-segmentation', 0],
  ['tx-udp_tnl-csum-segmentation', 0],
  ['tx-gso-partial', NETIF_F_GSO_PARTIAL],
  ['tx-tunnel-remcsum-segmentation', 0],
  ['tx-sctp-segmentation', 0],
  ['tx-esp-segmentation', 0],
  ['tx-udp-segmentation', 0],
  ['tx-gso-list', 0],
  ['tx-nocache-copy', NETIF_F_NOCACHE_COPY],
  ['loopback', NETIF_F_LOOPBACK],
  ['rx-fcs', NETIF_F_RXFCS],
  ['rx-all', NETIF_F_RXALL],
  ['tx-vlan-stag-hw-insert', 0],
  ['rx-vlan-stag-hw-parse', 0],
  ['rx-vlan-stag-filter', 0],
  ['l2-fwd-offload', 0],
  ['hw-tc-offload', 0],
  ['esp-hw-offload', 0],
  ['esp-tx-csum-hw-offload', 0],
  ['rx-udp_tunnel-port-offload', 0],
  ['tls-hw-tx-offload', NETIF_F_HW_TLS_TX],
  ['tls-hw-rx-offload', NETIF_F_HW_TLS_RX],
  ['rx-gro-hw', NETIF_F_GRO_HW],
  ['tls-hw-record', 0],
  ['rx-gro-list', 0],
  ['macsec-hw-offload', 0],
  ['rx-udp-gro-forwarding', 0],
  ['hsr-tag-ins-offload', 0],
  ['hsr-tag-rm-offload', 0],
  ['hsr-fwd-offload', 0],
  ['hsr-dup-offload', 0],
];

const ALL: readonly FeatureLine[] = [...GROUPS.flatMap(([, , features]) => features), ...SINGLES];
const NO_DEVICE = 'netlink error: no device matches name (offset 24)\nnetlink error: No such device\n';
const MESSAGE_LEVEL = `        Current message level: 0x00000000 (0)\n${' '.repeat(30)}\n`;
const UNSUPPORTED = 'netlink error: Operation not supported\n';

/** `ethtool [-k|-K|-S|-i|-g|-l] DEVICE …` for the devices of a namespace, as ethtool 6.1 prints it. */
export function ethtool(net: Net, args: readonly string[]): Printed {
  const rest = [...args];
  const option = rest[0]?.startsWith('-') ? rest.shift()! : '';
  const command = COMMANDS[option];
  if (command === undefined) {
    return refused(
      1,
      `ethtool: bad command line argument(s)\nFor more information run ethtool -h\n${option}\n`,
    );
  }
  const name = rest.shift();
  if (name === undefined) return refused(1, 'ethtool: bad command line argument(s)\nwhich device?\n');
  const device = net.byName(name);
  if (device === undefined) {
    return option === '' ? refused(75, NO_DEVICE, 'No data available\n') : refused(1, NO_DEVICE);
  }
  return command(device, rest);
}

const COMMANDS: Readonly<Record<string, (device: NetDevice, args: string[]) => Printed>> = {
  '': settings,
  '-k': features,
  '--show-features': features,
  '--show-offload': features,
  '-K': setFeatures,
  '--features': setFeatures,
  '--offload': setFeatures,
  '-S': statistics,
  '--statistics': statistics,
  '-i': driver,
  '--driver': driver,
  '-g': rings,
  '--show-ring': rings,
  '-l': channels,
  '--show-channels': channels,
};

function settings(device: NetDevice): Printed {
  const known = device.speed >= 0;
  const lines = [
    'Supported ports: [  ]',
    'Supported link modes:   Not reported',
    'Supported pause frame use: No',
    'Supports auto-negotiation: No',
    'Supported FEC modes: Not reported',
    'Advertised link modes:  Not reported',
    'Advertised pause frame use: No',
    'Advertised auto-negotiation: No',
    'Advertised FEC modes: Not reported',
    `Speed: ${known ? `${device.speed}Mb/s` : 'Unknown!'}`,
    `Duplex: ${known ? 'Full' : 'Unknown! (255)'}`,
    'Auto-negotiation: off',
    'Port: Twisted Pair',
    'PHYAD: 0',
    'Transceiver: internal',
    'MDI-X: Unknown',
    // tun is the one driver with a message level, which ethtool prints in a form of its own.
    ...(device.driver === 'tun' ? [MESSAGE_LEVEL] : []),
    `Link detected: ${device.running && device.carrierOk ? 'yes' : 'no'}`,
  ];
  return printed(
    `Settings for ${device.name}:\n${lines.map(text => (text === MESSAGE_LEVEL ? text : `\t${text}\n`)).join('')}`,
  );
}

function stateOf(device: NetDevice, bit: number): string {
  const active = (device.features & bit) !== 0;
  const state = active ? 'on' : 'off';
  if ((device.hwFeatures & bit) === 0 || (bit & NETIF_F_NEVER_CHANGE) !== 0) return `${state} [fixed]`;
  const wanted = (device.wantedFeatures & bit) !== 0;
  return wanted === active ? state : `${state} [requested ${wanted ? 'on' : 'off'}]`;
}

function features(device: NetDevice): Printed {
  let text = `Features for ${device.name}:\n`;
  for (const [long, , members] of GROUPS) {
    if (members.length === 1) text += `${long}: ${stateOf(device, members[0][1])}\n`;
    else {
      const any = members.some(([, bit]) => (device.features & bit) !== 0);
      text += `${long}: ${any ? 'on' : 'off'}\n`;
      for (const [name, bit] of members) text += `\t${name}: ${stateOf(device, bit)}\n`;
    }
  }
  for (const [name, bit] of SINGLES) text += `${name}: ${stateOf(device, bit)}\n`;
  return printed(text);
}

function setFeatures(device: NetDevice, args: string[]): Printed {
  let mask = 0;
  let values = 0;
  /** Features that nothing of ours has. */
  const impossible: string[] = [];
  for (let i = 0; i < args.length; i += 2) {
    const group = GROUPS.find(([long, short]) => short === args[i] || long === args[i]);
    const single = ALL.find(([name]) => name === args[i]);
    const value = args[i + 1];
    if (group === undefined && single === undefined) {
      return refused(
        92,
        `netlink error: bit name not found (offset 56)\n${UNSUPPORTED}there is no feature "${args[i]}"\n`,
      );
    }
    if (value !== 'on' && value !== 'off') {
      return refused(1, `ethtool: bad command line argument(s)\n"${args[i]}" is "on" or "off"\n`);
    }
    // A group switches what can be switched of it.
    const chosen =
      group === undefined ? [single!] : group[2].filter(([, bit]) => (device.hwFeatures & bit) !== 0);
    for (const [name, bit] of chosen) {
      mask |= bit;
      if (value === 'on') values |= bit;
      else values &= ~bit;
      if (bit === 0 && value === 'on') impossible.push(name);
    }
  }
  const before = device.features;
  let missed: number;
  try {
    missed = wantFeatures(device, mask, values);
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    return refused(1, `netlink error: ${errnoText(error.code)}\n${error.message}\n`);
  }
  const changed = before ^ device.features;
  if ((changed & ~mask) === 0 && missed === 0 && impossible.length === 0) return printed('');
  let text = 'Actual changes:\n';
  for (const [name, bit] of ALL) {
    const state = (device.features & bit) !== 0 ? 'on' : 'off';
    if ((missed & bit) !== 0) text += `${name}: ${state} [requested ${state === 'on' ? 'off' : 'on'}]\n`;
    else if (impossible.includes(name)) text += `${name}: off [requested on]\n`;
    else if ((changed & bit) !== 0)
      text += `${name}: ${state}${(mask & bit) === 0 ? ' [not requested]' : ''}\n`;
  }
  if (changed === 0) return refused(1, 'Could not change any device features\n', text);
  return printed(text);
}

function statistics(device: NetDevice): Printed {
  const values = device.ops.ethtoolStats?.(device) ?? [];
  if (values.length === 0) return refused(94, 'no stats available\n');
  return printed(`NIC statistics:\n${values.map(([name, value]) => `     ${name}: ${value}\n`).join('')}`);
}

function driver(device: NetDevice): Printed {
  const yes = (device.ops.ethtoolStats?.(device).length ?? 0) > 0 ? 'yes' : 'no';
  return printed(
    `driver: ${device.driver}\nversion: \nfirmware-version: \nexpansion-rom-version: \n` +
      `bus-info: ${device.busInfo}\nsupports-statistics: ${yes}\nsupports-test: no\n` +
      'supports-eeprom-access: no\nsupports-register-dump: no\nsupports-priv-flags: no\n',
  );
}

function rings(device: NetDevice): Printed {
  const sizes = device.ops.ringSizes?.(device);
  if (sizes === undefined) return refused(1, UNSUPPORTED);
  const block = `RX:\t\t${sizes.rx}\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\t${sizes.tx}\n`;
  return printed(
    `Ring parameters for ${device.name}:\nPre-set maximums:\n${block}Current hardware settings:\n${block}`,
  );
}

function channels(device: NetDevice): Printed {
  const block = (rx: number, tx: number): string =>
    `RX:\t\t${rx}\nTX:\t\t${tx}\nOther:\t\tn/a\nCombined:\tn/a\n`;
  return printed(
    `Channel parameters for ${device.name}:\nPre-set maximums:\n` +
      `${block(device.numRxQueues, device.numTxQueues)}Current hardware settings:\n` +
      block(device.realNumRxQueues, device.realNumTxQueues),
  );
}
