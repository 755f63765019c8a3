import {
  Bridge,
  type BridgePort,
  changeAlias,
  changeFlags,
  changeGroup,
  changeTxQueueLen,
  createBridge,
  createDummy,
  createVeth,
  IFF_ALLMULTI,
  IFF_MULTICAST,
  IFF_NOARP,
  IFF_PROMISC,
  IFF_UP,
  type Net,
  type NetDevice,
} from '../net/index.js';
import {
  argument,
  checkName,
  findDevice,
  parseGroup,
  parseLinkAddress,
  parseNumber,
  Refusal,
} from './ip-arguments.js';

/** What `ip link set` or `add` was asked for, in the order in which the kernel does it (do_setlink). */
interface Request {
  /** The device, or what a new one is to be called, without `dev`. */
  device?: string;
  address?: Uint8Array;
  mtu?: number;
  group?: number;
  name?: string;
  alias?: string;
  setFlags: number;
  clearFlags: number;
  /** null for `nomaster`. */
  master?: NetDevice | null;
  txQueueLen?: number;
  /** The word behind `type`, and all that is behind that. */
  kind?: string;
  kindArguments: string[];
}

const FLAGS: Readonly<Record<string, number>> = {
  promisc: IFF_PROMISC,
  allmulticast: IFF_ALLMULTI,
  multicast: IFF_MULTICAST,
  arp: IFF_NOARP,
};

function parseRequest(net: Net, args: string[]): Request {
  const request: Request = { setFlags: 0, clearFlags: 0, kindArguments: [] };
  for (let word = args.shift(); word !== undefined; word = args.shift()) {
    if (Object.hasOwn(FLAGS, word)) {
      // What is stored of arp is that there is none.
      if (onOff(args, word) === (word !== 'arp')) request.setFlags |= FLAGS[word];
      else request.clearFlags |= FLAGS[word];
      continue;
    }
    switch (word) {
      case 'up':
        request.setFlags |= IFF_UP;
        break;
      case 'down':
        request.clearFlags |= IFF_UP;
        break;
      case 'mtu':
        request.mtu = parseNumber(args, word);
        break;
      case 'txqueuelen':
      case 'txqlen':
      case 'qlen':
        request.txQueueLen = parseNumber(args, word);
        break;
      case 'group':
        request.group = parseGroup(argument(args, word));
        break;
      case 'alias':
        request.alias = argument(args, word);
        break;
      case 'address':
      case 'addr':
      case 'lladdr':
        request.address = parseLinkAddress(argument(args, word));
        break;
      case 'name':
        request.name = checkName(argument(args, word), 'name');
        break;
      case 'master':
        request.master = masterOf(net, argument(args, word));
        break;
      case 'nomaster':
        request.master = null;
        break;
      case 'netns':
        throw new Refusal(
          255,
          `Error: argument "${argument(args, word)}" is wrong: Invalid "netns" value\n\n` +
            'a domain has one network namespace, and a device cannot move to another domain',
        );
      case 'type':
        request.kind = argument(args, word);
        request.kindArguments = args.splice(0);
        break;
      default:
        if (word === 'dev') word = argument(args, word);
        if (request.device !== undefined) {
          throw new Refusal(255, `Error: either "dev" is duplicate, or "${word}" is a garbage.`);
        }
        request.device = word;
    }
  }
  return request;
}

function onOff(args: string[], word: string): boolean {
  const value = argument(args, word);
  if (value === 'on' || value === 'off') return value === 'on';
  throw new Refusal(255, `Error: argument of "${word}" must be "on" or "off", not "${value}"`);
}

function masterOf(net: Net, name: string): NetDevice {
  const master = net.byName(name);
  if (master !== undefined) return master;
  throw new Refusal(255, `Error: argument "${name}" is wrong: Device does not exist\n`);
}

/** `ip link set`. @throws Refusal, ErrnoError */
export function setLink(net: Net, args: string[]): void {
  const request = parseRequest(net, args);
  const device = findDevice(net, request.device);
  apply(device, request);
  if (request.kind !== undefined) setKind(device, request.kind, request.kindArguments);
}

function apply(device: NetDevice, request: Request): void {
  if (request.address !== undefined) device.setAddress(request.address);
  if (request.mtu !== undefined) device.setMtu(request.mtu);
  if (request.group !== undefined) changeGroup(device, request.group);
  if (request.name !== undefined) device.rename(request.name);
  if (request.alias !== undefined) changeAlias(device, request.alias);
  if ((request.setFlags | request.clearFlags) !== 0) {
    const shown = (device.flags & ~(IFF_PROMISC | IFF_ALLMULTI)) | device.gflags;
    changeFlags(device, (shown | request.setFlags) & ~request.clearFlags);
  }
  if (request.master !== undefined) enslave(device, request.master);
  if (request.txQueueLen !== undefined) changeTxQueueLen(device, request.txQueueLen);
}

function enslave(device: NetDevice, master: NetDevice | null): void {
  if (device.master === master) return;
  if (master !== null && !(master instanceof Bridge)) {
    throw device.error('EOPNOTSUPP', `${master.name} is no bridge`);
  }
  if (device.master instanceof Bridge) device.master.removePort(device);
  master?.addPort(device);
}

type PortFlag = 'isolated' | 'learning' | 'unicastFlood' | 'multicastFlood' | 'broadcastFlood' | 'hairpin';

const PORT_FLAGS: Readonly<Record<string, PortFlag>> = {
  isolated: 'isolated',
  learning: 'learning',
  flood: 'unicastFlood',
  mcast_flood: 'multicastFlood',
  bcast_flood: 'broadcastFlood',
  hairpin: 'hairpin',
} satisfies Record<string, PortFlag & keyof BridgePort>;

/** What is behind `type bridge` or `type bridge_slave`. */
function setKind(device: NetDevice, kind: string, args: string[]): void {
  const port = device.master instanceof Bridge ? device.master.portOf(device) : undefined;
  if (kind === 'bridge_slave' && port !== undefined) {
    for (let word = args.shift(); word !== undefined; word = args.shift()) {
      if (!Object.hasOwn(PORT_FLAGS, word)) throw unknown(kind, word, Object.keys(PORT_FLAGS));
      port[PORT_FLAGS[word]] = onOff(args, word);
    }
  } else if (kind === 'bridge' && device instanceof Bridge) setBridge(device, args);
  else throw device.error('EOPNOTSUPP', `it is no ${kind}`);
}

function setBridge(bridge: Bridge, args: string[]): void {
  for (let word = args.shift(); word !== undefined; word = args.shift()) {
    if (word !== 'ageing_time') throw unknown('bridge', word, ['ageing_time']);
    bridge.fdb.ageingMs = parseNumber(args, word) * 10;
  }
}

function unknown(kind: string, word: string, known: readonly string[]): Refusal {
  return new Refusal(1, `${kind}: unknown command "${word}"?\n${kind} has ${known.join(', ')}`);
}

/** `ip link add`. @throws Refusal, ErrnoError; nothing is there then */
export function addLink(net: Net, args: string[]): void {
  const request = parseRequest(net, args);
  const { kind } = request;
  if (kind === undefined) throw new Refusal(1, 'Not enough information: "type" argument is required');
  const name =
    request.device === undefined ? (request.name ?? `${kind}%d`) : checkName(request.device, 'dev');
  if (!Object.hasOwn(MAKERS, kind)) {
    const known = Object.keys(MAKERS).join(', ');
    throw new Refusal(2, `Error: Unknown device type.\nthere is no "${kind}" here; there are: ${known}`);
  }
  const device = MAKERS[kind](net, name, request.kindArguments);
  try {
    apply(device, { ...request, name: undefined });
  } catch (error) {
    void net.unregister(device);
    throw error;
  }
}

function noArguments(kind: string, args: string[]): void {
  if (args.length > 0) throw new Refusal(1, `${kind}: unknown command "${args[0]}"?`);
}

const MAKERS: Readonly<Record<string, (net: Net, name: string, args: string[]) => NetDevice>> = {
  bridge(net, name, args) {
    const bridge = createBridge(net, name);
    try {
      setBridge(bridge, args);
    } catch (error) {
      void net.unregister(bridge as NetDevice);
      throw error;
    }
    return bridge as NetDevice;
  },
  dummy(net, name, args) {
    noArguments('dummy', args);
    return createDummy(net, name);
  },
  veth(net, name, args) {
    let peer = 'veth%d';
    if (args[0] === 'peer') {
      args.shift();
      const word = args.shift();
      const given = word === 'name' || word === 'dev' ? argument(args, word) : word;
      if (given !== undefined) peer = checkName(given, 'name');
    }
    noArguments('veth', args);
    return createVeth(net, name, peer)[0];
  },
};

/** `ip link delete`: what `add` can make, and nothing that a driver or the toolstack has made. @throws Refusal, ErrnoError */
export function deleteLink(net: Net, args: string[]): void {
  const request = parseRequest(net, args);
  const device = findDevice(net, request.device);
  if (device.kind === null || !Object.hasOwn(MAKERS, device.kind)) {
    throw device.error('EOPNOTSUPP', 'it is its driver that takes it away');
  }
  void net.unregister(device);
}
