import { ErrnoError } from '../abi/errno.js';
import { xenbusStateName } from '../abi/xenbus-state.js';
import {
  directory,
  file,
  link,
  type Net,
  procNetDev,
  sysClassNet,
  sysNetOf,
  sysVirtualNet,
  type VirtualDirectory,
  type VirtualNode,
  VirtualTree,
} from '../net/index.js';
import type { XenStoreAccess } from '../platform/platform.js';
import { errnoText, type Printed, printed, refused } from './printed.js';

/** A device on a xenbus bus, as far as its files show it. */
export interface BusDevice {
  /** "vif-0", "vif-5-0". */
  readonly id: string;
  readonly side: 'frontend' | 'backend';
  readonly devicetype: string;
  readonly nodename: string;
  readonly state: number;
  readonly driver: { readonly name: string } | null;
}

/** What a domain's trees are made of; a Kernel is one. */
export interface DomainFiles {
  readonly net: Net;
  readonly irqs: { interrupts(): string };
  readonly xenbus: { readonly devices: readonly BusDevice[]; readonly initialDomain: boolean };
  readonly platform: { readonly xenstore: XenStoreAccess };
}

const BUS = { frontend: 'xen', backend: 'xen-backend' } as const;

/** /sys and /proc of a domain, as far as its network and its Xen devices go. */
export function domainTree(domain: DomainFiles): VirtualTree {
  const { net } = domain;
  const bus = (side: BusDevice['side']): VirtualDirectory =>
    directory(() => ({
      devices: directory(() => links(domain, side, device => `../../../devices/${device.id}`)),
      drivers: directory(() => drivers(domain, side)),
    }));
  return new VirtualTree(
    directory(() => ({
      sys: directory(() => ({
        class: directory(() => ({ net: sysClassNet(net) })),
        bus: directory(() => ({ xen: bus('frontend'), 'xen-backend': bus('backend') })),
        devices: directory(() => ({
          virtual: directory(() => ({ net: sysVirtualNet(net) })),
          ...Object.fromEntries(domain.xenbus.devices.map(device => [device.id, busDevice(net, device)])),
        })),
        hypervisor: directory(() => ({ type: file(0o444, () => 'xen\n') })),
      })),
      proc: directory(() => ({
        interrupts: file(0o444, () => domain.irqs.interrupts()),
        net: directory(() => ({ dev: file(0o444, () => procNetDev(net)) })),
        xen: directory(() => procXen(domain)),
      })),
    })),
  );
}

function links(
  domain: DomainFiles,
  side: BusDevice['side'],
  target: (device: BusDevice) => string,
): Record<string, VirtualNode> {
  const chosen = domain.xenbus.devices.filter(device => device.side === side);
  return Object.fromEntries(chosen.map(device => [device.id, link(target(device))]));
}

function drivers(domain: DomainFiles, side: BusDevice['side']): Record<string, VirtualNode> {
  const names = new Set<string>();
  for (const device of domain.xenbus.devices) {
    if (device.side === side && device.driver !== null) names.add(device.driver.name);
  }
  return Object.fromEntries(
    [...names].map(name => [
      name,
      directory(() => {
        const bound = domain.xenbus.devices.filter(d => d.side === side && d.driver?.name === name);
        return Object.fromEntries(bound.map(d => [d.id, link(`../../../../devices/${d.id}`)]));
      }),
    ]),
  );
}

/** The attributes of every xenbus device (drivers/xen/xenbus/xenbus_probe.c). */
function busDevice(net: Net, device: BusDevice): VirtualDirectory {
  const bus = BUS[device.side];
  return directory(() => ({
    nodename: file(0o444, () => `${device.nodename}\n`),
    devtype: file(0o444, () => `${device.devicetype}\n`),
    modalias: file(0o444, () => `${bus}:${device.devicetype}\n`),
    state: file(0o444, () => `${xenbusStateName(device.state)}\n`),
    uevent: file(
      0o644,
      () =>
        (device.driver === null ? '' : `DRIVER=${device.driver.name}\n`) +
        (device.side === 'frontend'
          ? `MODALIAS=xen:${device.devicetype}\n`
          : `XENBUS_TYPE=${device.devicetype}\nXENBUS_PATH=${device.nodename}\nXENBUS_BASE_PATH=backend\n`),
      () => {},
    ),
    subsystem: link(`../../bus/${bus}`),
    ...(device.driver === null ? {} : { driver: link(`../../bus/${bus}/drivers/${device.driver.name}`) }),
    net: sysNetOf(net, device.id),
  }));
}

function procXen(domain: DomainFiles): Record<string, VirtualNode> {
  const { xenstore } = domain.platform;
  const refuse = (): never => {
    throw new ErrnoError('EOPNOTSUPP', 'xenbus carries messages, not text: use `pvnet exec` or the socket');
  };
  const entries: Record<string, VirtualNode> = {
    capabilities: file(0o444, () => (domain.xenbus.initialDomain ? 'control_d\n' : '')),
    xenbus: file(0o600, refuse, refuse),
  };
  if (domain.xenbus.initialDomain && xenstore.kind === 'ring') {
    entries.xsd_kva = file(0o600, () => `0x${xenstore.address.toString(16).padStart(16, '0')}`);
    entries.xsd_port = file(0o600, () => `${xenstore.port}`);
  }
  return entries;
}

function answer(program: string, path: string, body: () => string): Printed {
  try {
    return printed(body());
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    return refused(1, `${program}: ${path}: ${errnoText(error.code)}\n${error.message}\n`);
  }
}

/** `pvnet ls DOMAIN:PATH`: names, and with `long` permissions and where links lead. */
export function ls(tree: VirtualTree, path: string, long = false): Printed {
  return answer('ls', path, () =>
    tree
      .list(path)
      .map(entry => {
        if (!long) return `${entry.name}\n`;
        const kind = entry.kind === 'directory' ? 'd' : entry.kind === 'link' ? 'l' : '-';
        const arrow = entry.target === undefined ? '' : ` -> ${entry.target}`;
        return `${kind}${permissions(entry.mode)} ${entry.name}${arrow}\n`;
      })
      .join(''),
  );
}

function permissions(mode: number): string {
  let text = '';
  for (let bit = 8; bit >= 0; bit--) text += (mode >> bit) & 1 ? 'xwr'[bit % 3] : '-';
  return text;
}

/** `pvnet cat DOMAIN:PATH` */
export function cat(tree: VirtualTree, path: string): Printed {
  return answer('cat', path, () => tree.read(path));
}

/** `pvnet write DOMAIN:PATH VALUE` */
export function write(tree: VirtualTree, path: string, value: string): Printed {
  return answer('write', path, () => {
    tree.write(path, `${value}\n`);
    return '';
  });
}
