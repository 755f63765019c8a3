import {
  errnoName,
  formatAddress,
  type Net,
  type NetEvent,
  OPERSTATES,
  shownOperstate,
} from '../net/index.js';
import type { Host } from '../toolstack/host.js';

/** What each event means, for people. */
const WORDS: Readonly<Record<string, string>> = {
  UP: 'is up',
  DOWN: 'is down',
  GOING_DOWN: 'is going down',
  PRE_UP: 'is about to come up',
  CHANGE: 'has changed',
  POST_INIT: 'is initialised',
  REGISTER: 'is registered',
  UNREGISTER: 'is being unregistered',
  PRE_UNINIT: 'is about to be given up by its driver',
  PRECHANGEMTU: 'is about to get another MTU',
  CHANGEMTU: 'has another MTU',
  PRE_CHANGEADDR: 'is about to get another address',
  CHANGEADDR: 'has another address',
  CHANGENAME: 'has another name',
  FEAT_CHANGE: 'has other features',
  CHANGEUPPER: 'joins or leaves a bridge',
  NOTIFY_PEERS: 'has its neighbours told',
  RESEND_IGMP: 'has its groups joined again',
  CHANGE_TX_QUEUE_LEN: 'has another queue length',
};

/** An event as data, one JSON line. */
function monitorJson(domain: string, heard: NetEvent): string {
  const { device } = heard;
  return JSON.stringify({
    time: heard.time,
    domain,
    event: heard.event,
    ifname: device.name,
    ifindex: device.ifindex,
    operstate: OPERSTATES[shownOperstate(device)],
    carrier: device.carrierOk,
    mtu: device.mtu,
    address: formatAddress(device.address.subarray(0, device.addrLen)),
    master: device.master?.name ?? null,
    ...(heard.errno === 0 ? {} : { vetoed: errnoName(heard.errno) }),
  });
}

/** An event in words. */
function monitorText(domain: string, heard: NetEvent): string {
  const { device, event } = heard;
  const state = OPERSTATES[shownOperstate(device)];
  const more =
    event === 'CHANGEMTU'
      ? `, ${device.mtu}`
      : event === 'CHANGE' || event === 'UP'
        ? `, state ${state}`
        : '';
  const veto = heard.errno === 0 ? '' : `; refused with ${errnoName(heard.errno)}`;
  return `${domain}: ${device.name} ${WORDS[event] ?? event}${more}${veto} [${event}]`;
}

/**
 * Tells of every device event of a domain's network.
 * @param write takes one line, without its end
 * @returns a function that ends it
 */
export function monitor(
  net: Net,
  domain: string,
  options: { json?: boolean },
  write: (line: string) => void,
): () => void {
  return net.monitor(heard => write((options.json === true ? monitorJson : monitorText)(domain, heard)));
}

/** A domain that came or went, as an event is told. */
function domainLine(domain: string, event: 'BOOT' | 'END', time: number, json: boolean): string {
  if (json) return JSON.stringify({ time, domain, event });
  return `${domain}: the domain ${event === 'BOOT' ? 'boots' : 'has ended'} [${event}]`;
}

/**
 * Tells of every device event of a host's domains, and of the domains that boot and end meanwhile.
 * @param only a domain's name, null for all
 * @param write takes one line, without its end
 * @returns a function that ends it
 */
export function monitorHost(
  host: Host,
  only: string | null,
  options: { json?: boolean },
  write: (line: string) => void,
): () => void {
  const stops = new Map<string, () => void>();
  const json = options.json === true;
  let following = false;
  const tell = (name: string, event: 'BOOT' | 'END'): void => {
    if (following) write(domainLine(name, event, host.scheduler.now(), json));
  };
  const unwatch = host.watchKernels({
    came(name, { net }) {
      if (only !== null && name !== only) return;
      tell(name, 'BOOT');
      stops.set(name, monitor(net, name, options, write));
    },
    went(name) {
      if (!stops.delete(name)) return;
      tell(name, 'END');
    },
  });
  following = true;
  return () => {
    unwatch();
    for (const stop of stops.values()) stop();
  };
}
