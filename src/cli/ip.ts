import { ErrnoError } from '../abi/errno.js';
import {
  ARPHRD_ETHER,
  ARPHRD_LOOPBACK,
  formatAddress,
  IFF_ALLMULTI,
  IFF_AUTOMEDIA,
  IFF_BROADCAST,
  IFF_DEBUG,
  IFF_DORMANT,
  IFF_DYNAMIC,
  IFF_ECHO,
  IFF_LOOPBACK,
  IFF_LOWER_UP,
  IFF_MASTER,
  IFF_MULTICAST,
  IFF_NOARP,
  IFF_NOTRAILERS,
  IFF_POINTOPOINT,
  IFF_PORTSEL,
  IFF_PROMISC,
  IFF_RUNNING,
  IFF_SLAVE,
  IFF_UP,
  type LinkStats,
  type Net,
  type NetDevice,
  OPERSTATES,
  shownOperstate,
} from '../net/index.js';
import { argument, parseGroup, Refusal } from './ip-arguments.js';
import { addLink, deleteLink, setLink } from './ip-change.js';
import { detailsJson, detailsText } from './ip-details.js';
import { errnoText, type Printed, printed, refused } from './printed.js';

/** Flags in iproute2's order, without those that it computes. */
const FLAG_NAMES: readonly (readonly [string, number])[] = [
  ['LOOPBACK', IFF_LOOPBACK],
  ['BROADCAST', IFF_BROADCAST],
  ['POINTOPOINT', IFF_POINTOPOINT],
  ['MULTICAST', IFF_MULTICAST],
  ['NOARP', IFF_NOARP],
  ['ALLMULTI', IFF_ALLMULTI],
  ['PROMISC', IFF_PROMISC],
  ['MASTER', IFF_MASTER],
  ['SLAVE', IFF_SLAVE],
  ['DEBUG', IFF_DEBUG],
  ['DYNAMIC', IFF_DYNAMIC],
  ['AUTOMEDIA', IFF_AUTOMEDIA],
  ['PORTSEL', IFF_PORTSEL],
  ['NOTRAILERS', IFF_NOTRAILERS],
  ['UP', IFF_UP],
  ['LOWER_UP', IFF_LOWER_UP],
  ['DORMANT', IFF_DORMANT],
  ['ECHO', IFF_ECHO],
];
const USAGE = `Usage: ip [ OPTIONS ] link
       ip [ OPTIONS ] link show [ DEVICE | group GROUP ] [up] [master DEVICE] [type KIND]
       ip link set [ dev ] DEVICE [ { up | down } ] [ name NAME ] [ address LLADDR ] [ mtu MTU ]
                [ txqueuelen LENGTH ] [ group GROUP ] [ alias TEXT ] [ { master DEVICE | nomaster } ]
                [ { promisc | allmulticast | multicast | arp } { on | off } ]
                [ type { bridge ageing_time TIME | bridge_slave FLAG { on | off } … } ]
       ip link add [ [ name ] NAME ] [ mtu MTU ] [ address LLADDR ] … type { bridge | dummy | veth [ peer name NAME ] }
       ip link delete [ dev ] DEVICE
       OPTIONS := { -s[tatistics] | -d[etails] | -j[son] | -p[retty] | -br[ief] | -o[neline] }`;
const LINK_MODES = ['DEFAULT', 'DORMANT', 'TESTING'];

interface Options {
  statistics: number;
  details: boolean;
  json: boolean;
  pretty: boolean;
  brief: boolean;
  oneline: boolean;
}

/**
 * `ip` for the devices of a namespace, as iproute2 6.1 has it: `ip [-s] [-s] [-d] [-j [-p]] [-br] [-o] link
 * [show|set|add|delete] …`. What the kernel refuses is said as iproute2 says it, then in a sentence that names the rule.
 */
export function ip(net: Net, args: readonly string[]): Printed {
  try {
    return run(net, args);
  } catch (error) {
    if (error instanceof Refusal) return refused(error.status, `${error.text}\n`);
    if (!(error instanceof ErrnoError)) throw error;
    const sentence = error.message.slice(error.code.length + 2);
    const known = /mtu (?:less|greater) than device (?:minimum|maximum)/.exec(sentence);
    const first = known === null ? `RTNETLINK answers: ${errnoText(error.code)}` : `Error: ${known[0]}.`;
    return refused(2, `${first}\n${sentence}\n`);
  }
}

function run(net: Net, args: readonly string[]): Printed {
  const options: Options = {
    statistics: 0,
    details: false,
    json: false,
    pretty: false,
    brief: false,
    oneline: false,
  };
  const rest = [...args];
  while (rest[0]?.startsWith('-')) parseOption(rest.shift()!, options);
  const object = rest.shift();
  if (object === undefined || object === 'help') throw new Refusal(255, USAGE);
  if (!'link'.startsWith(object)) {
    throw new Refusal(1, `Object "${object}" is unknown, try "ip help".`);
  }
  const command = rest.shift() ?? 'show';
  if (['show', 'list', 'lst', 'ls'].some(word => word.startsWith(command))) return show(net, rest, options);
  if (command === 'help') throw new Refusal(255, USAGE);
  const change = CHANGES.find(([words]) => words.some(word => word.startsWith(command)));
  if (change !== undefined) {
    change[1](net, rest);
    return printed('');
  }
  throw new Refusal(255, `Command "${command}" is unknown, try "ip link help".`);
}

const CHANGES: readonly (readonly [words: string[], change: (net: Net, args: string[]) => void])[] = [
  [['set'], setLink],
  [['add'], addLink],
  [['delete'], deleteLink],
];

function parseOption(option: string, options: Options): void {
  const word = option.replace(/^--?/, '');
  if (word === '') throw new Refusal(255, 'Option "-" is unknown, try "ip -help".');
  if (word === 'br' || 'brief'.startsWith(word)) options.brief = true;
  else if ('details'.startsWith(word)) options.details = true;
  else if ('stats'.startsWith(word) || 'statistics'.startsWith(word)) options.statistics++;
  else if ('json'.startsWith(word)) options.json = true;
  else if ('pretty'.startsWith(word)) options.pretty = true;
  else if ('oneline'.startsWith(word)) options.oneline = true;
  else throw new Refusal(255, `Option "${option}" is unknown, try "ip -help".`);
}

function show(net: Net, args: string[], options: Options): Printed {
  let chosen = [...net.devices];
  let named = false;
  for (let word = args.shift(); word !== undefined; word = args.shift()) {
    if (word === 'up') chosen = chosen.filter(device => device.flagsUp);
    else if (word === 'master') {
      const master = argument(args, word);
      const bridge = net.byName(master);
      if (bridge === undefined) {
        throw new Refusal(255, `Error: argument "${master}" is wrong: Device does not exist\n`);
      }
      chosen = chosen.filter(device => device.master === bridge);
    } else if (word === 'type') {
      const kind = argument(args, word);
      chosen = chosen.filter(device => device.kind === kind);
    } else if (word === 'group') {
      const group = parseGroup(argument(args, word));
      chosen = chosen.filter(device => device.group === group);
    } else {
      if (word === 'dev') word = argument(args, word);
      if (named) throw new Refusal(255, `Error: either "dev" is duplicate, or "${word}" is a garbage.`);
      const device = net.byName(word);
      if (device === undefined) throw new Refusal(1, `Device "${word}" does not exist.`);
      chosen = chosen.filter(other => other === device);
      named = true;
    }
  }
  if (options.json) {
    const objects = chosen.map(device => (options.brief ? briefObject(device) : object(device, options)));
    return printed(`${JSON.stringify(objects, null, options.pretty ? 4 : undefined)}\n`);
  }
  const text = chosen.map(device => (options.brief ? brief(device) : describe(device, options)));
  if (!options.oneline) return printed(text.join(''));
  return printed(text.map(lines => `${lines.replace(/\n$/, '').replaceAll('\n', '\\')}\n`).join(''));
}

function flagNames(device: NetDevice): string[] {
  const flags = device.displayFlags;
  const names = (flags & IFF_UP) !== 0 && (flags & IFF_RUNNING) === 0 ? ['NO-CARRIER'] : [];
  for (const [name, bit] of FLAG_NAMES) if ((flags & bit) !== 0) names.push(name);
  const lower = lowerOf(device);
  if (lower !== undefined && !lower.flagsUp) names.push('M-DOWN');
  return names;
}

function lowerOf(device: NetDevice): NetDevice | undefined {
  return device.ifindex === device.iflink ? undefined : device.net.byIndex(device.iflink);
}

function fullName(device: NetDevice): string {
  if (device.ifindex === device.iflink) return device.name;
  return `${device.name}@${lowerOf(device)?.name ?? `if${device.iflink}`}`;
}

function linkType(device: NetDevice): string {
  if (device.type === ARPHRD_ETHER) return 'ether';
  return device.type === ARPHRD_LOOPBACK ? 'loopback' : `[${device.type}]`;
}

function groupName(group: number): string {
  return group === 0 ? 'default' : String(group);
}

function brief(device: NetDevice): string {
  const state = OPERSTATES[shownOperstate(device)].toUpperCase();
  const address = formatAddress(device.address.subarray(0, device.addrLen));
  return `${fullName(device).padEnd(16)} ${state.padEnd(14)} ${address} <${flagNames(device).join(',')}> \n`;
}

function briefObject(device: NetDevice): object {
  return {
    ...linkOf(device),
    operstate: OPERSTATES[shownOperstate(device)].toUpperCase(),
    address: formatAddress(device.address.subarray(0, device.addrLen)),
    flags: flagNames(device),
  };
}

function linkOf(device: NetDevice): object {
  if (device.ifindex === device.iflink) return { ifname: device.name };
  const lower = lowerOf(device);
  const where = lower === undefined ? { link_index: device.iflink } : { link: lower.name };
  return { ...where, ifname: device.name };
}

/** In the driver (XDP_ATTACHED_DRV), the only place where programs are attached. */
function xdpOf({ xdp }: NetDevice): object {
  if (xdp === null) return {};
  const attached = { mode: 1, prog: { id: xdp.id, name: xdp.name } };
  return { xdp: { ...attached, attached: [attached] } };
}

function describe(device: NetDevice, options: Options): string {
  const address = formatAddress(device.address.subarray(0, device.addrLen));
  const broadcast = formatAddress(device.broadcast.subarray(0, device.addrLen));
  const master = device.master === null ? '' : `master ${device.master.name} `;
  let text =
    `${device.ifindex}: ${fullName(device)}: <${flagNames(device).join(',')}> mtu ${device.mtu} ` +
    `${device.xdp === null ? '' : 'xdp '}qdisc ${device.qdiscKind} ${master}state ${OPERSTATES[shownOperstate(device)].toUpperCase()} ` +
    `mode ${LINK_MODES[device.linkMode]} group ${groupName(device.group)} qlen ${device.txQueueLen}\n` +
    `    link/${linkType(device)} ${address} brd ${broadcast}`;
  if (options.details) text += detailsText(device);
  if (device.ifalias !== '') text += `\n    alias ${device.ifalias}`;
  if (device.xdp !== null) text += `\n    prog/xdp id ${device.xdp.id} name ${device.xdp.name} `;
  text += '\n';
  if (options.statistics > 0) {
    device.ops.getStats?.(device);
    text += statistics(device, options.statistics > 1);
  }
  return text;
}

function object(device: NetDevice, options: Options): object {
  const entry: Record<string, unknown> = {
    ifindex: device.ifindex,
    ...linkOf(device),
    flags: flagNames(device),
    mtu: device.mtu,
    ...xdpOf(device),
    qdisc: device.qdiscKind,
  };
  if (device.master !== null) entry.master = device.master.name;
  entry.operstate = OPERSTATES[shownOperstate(device)].toUpperCase();
  entry.linkmode = LINK_MODES[device.linkMode];
  entry.group = groupName(device.group);
  entry.txqlen = device.txQueueLen;
  entry.link_type = linkType(device);
  entry.address = formatAddress(device.address.subarray(0, device.addrLen));
  entry.broadcast = formatAddress(device.broadcast.subarray(0, device.addrLen));
  if (options.details) Object.assign(entry, detailsJson(device));
  if (device.ifalias !== '') entry.ifalias = device.ifalias;
  if (options.statistics > 0) {
    device.ops.getStats?.(device);
    entry.stats64 = statisticsObject(device, options.statistics > 1);
  }
  return entry;
}

function statisticsObject(device: NetDevice, more: boolean): object {
  const s = device.stats;
  const rx: Record<string, number> = {
    bytes: s.rxBytes,
    packets: s.rxPackets,
    errors: s.rxErrors,
    dropped: s.rxDropped,
    over_errors: s.rxOverErrors,
    multicast: s.multicast,
  };
  const tx: Record<string, number> = {
    bytes: s.txBytes,
    packets: s.txPackets,
    errors: s.txErrors,
    dropped: s.txDropped,
    carrier_errors: s.txCarrierErrors,
    collisions: s.collisions,
  };
  if (s.rxCompressed !== 0) rx.compressed = s.rxCompressed;
  if (s.txCompressed !== 0) tx.compressed = s.txCompressed;
  if (more) {
    rx.length_errors = s.rxLengthErrors;
    rx.crc_errors = s.rxCrcErrors;
    rx.frame_errors = s.rxFrameErrors;
    rx.fifo_errors = s.rxFifoErrors;
    rx.missed_errors = s.rxMissedErrors;
    if (s.rxNohandler !== 0) rx.nohandler = s.rxNohandler;
    tx.aborted_errors = s.txAbortedErrors;
    tx.fifo_errors = s.txFifoErrors;
    tx.window_errors = s.txWindowErrors;
    tx.heartbeat_errors = s.txHeartbeatErrors;
    tx.carrier_changes = device.carrierUpCount + device.carrierDownCount;
  }
  return { rx, tx };
}

/** Columns as wide as the widest number in them, or their heading. */
function statistics(device: NetDevice, more: boolean): string {
  const s: LinkStats = device.stats;
  const changes = device.carrierUpCount + device.carrierDownCount;
  const rx = [s.rxBytes, s.rxPackets, s.rxErrors, s.rxDropped, s.rxMissedErrors, s.multicast, s.rxCompressed];
  const rxErrors = [s.rxLengthErrors, s.rxCrcErrors, s.rxFrameErrors, s.rxFifoErrors, s.rxOverErrors];
  const tx = [
    s.txBytes,
    s.txPackets,
    s.txErrors,
    s.txDropped,
    s.txCarrierErrors,
    s.collisions,
    s.txCompressed,
  ];
  const txErrors = [s.txAbortedErrors, s.txFifoErrors, s.txWindowErrors, s.txHeartbeatErrors, changes];
  const widths = ['*X errors:', 'packets', 'errors', 'dropped', 'heartbt', 'overrun', 'compressed'].map(
    heading => heading.length,
  );
  const widen = (values: number[], from: number): void => {
    values.forEach((value, i) => {
      widths[i + from] = Math.max(widths[i + from], String(value).length);
    });
  };
  widen(rx, 0);
  widen(tx, 0);
  if (more) {
    widen(rxErrors, 1);
    widen(txErrors, 1);
  }
  const heading = (title: string, names: string[], compressed: number): string => {
    const columns = names.map((name, i) => name.padStart(i === 0 ? widths[0] - 4 : widths[i]));
    return `    ${title}: ${columns.join(' ')} ${(compressed === 0 ? '' : 'compressed').padStart(widths[6])}\n`;
  };
  const row = (values: number[]): string => {
    const shown = values[6] === 0 ? values.slice(0, 6) : values;
    return `    ${shown.map((value, i) => `${String(value).padStart(widths[i])} `).join('')}\n`;
  };
  const errors = (title: string, names: string[], values: number[]): string =>
    `    ${title} errors:${names.map((name, i) => ` ${name.padStart(widths[i + 1])}`).join('')}\n` +
    `    ${' '.repeat(widths[0] + 1)}${values.map((v, i) => `${String(v).padStart(widths[i + 1])} `).join('')}\n`;
  let text = heading('RX', ['bytes', 'packets', 'errors', 'dropped', 'missed', 'mcast'], s.rxCompressed);
  text += row(rx);
  if (more) text += errors('RX', ['length', 'crc', 'frame', 'fifo', 'overrun'], rxErrors);
  text += heading('TX', ['bytes', 'packets', 'errors', 'dropped', 'carrier', 'collsns'], s.txCompressed);
  text += row(tx);
  if (more) text += errors('TX', ['aborted', 'fifo', 'window', 'heartbt', 'transns'], txErrors);
  return text;
}
