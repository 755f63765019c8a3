import { addressBytes, linkLocalAddress } from '../guests/echo-stack.js';
import type { Bridge } from '../net/bridge.js';
import { type NetDevice, parseAddress } from '../net/device.js';
import type { Net } from '../net/net.js';
import { SourceFilter } from '../netback/source-filter.js';
import { Vif } from '../netback/vif.js';
import type { XenStoreClient } from '../xenstore/index.js';
import { ToolstackError } from './error.js';
import type { VifConfig } from './vif-config.js';
import { frontendMtu, type VifPaths } from './vif-store.js';

/** Whom a vif with `antispoof` may send as; with no IP addresses, under any. Of itself, every interface has the link-local address that follows from its MAC. */
export function sourceFilter(mac: string, addresses: readonly string[]): SourceFilter {
  const address = parseAddress(mac);
  if (addresses.length === 0) return new SourceFilter({ macs: [address] });
  const all = addresses.map(addressBytes);
  return new SourceFilter({
    macs: [address],
    ipv4: all.filter(({ length }) => length === 4),
    ipv6: [...all.filter(({ length }) => length === 16), linkLocalAddress(address)],
  });
}

/**
 * What the script vif-bridge does when a vif comes online: gives the backend's interface its name and MTU, makes it a
 * port of the bridge, brings it up, and says so in hotplug-status.
 * @throws ToolstackError after it has written hotplug-error, as the script does
 */
export async function hotplugOnline(
  xs: XenStoreClient,
  net: Net,
  bridge: Bridge,
  paths: VifPaths,
  name: string,
  mac: string,
  vif: VifConfig,
): Promise<NetDevice> {
  try {
    const device = net.byName(name);
    if (device === undefined)
      throw new ToolstackError('ENODEV', `there is no interface ${name} to add to ${bridge.name}`);
    if (vif.vifname !== undefined && vif.vifname !== device.name) device.rename(vif.vifname);
    if (vif.mtu !== device.mtu) {
      device.ops.changeMtu?.(device, vif.mtu);
      device.mtu = vif.mtu;
    }
    if (vif.antispoof && device.priv instanceof Vif) {
      device.priv.sourceFilter = sourceFilter(
        mac,
        vif.ip.map(({ address }) => address),
      );
    }
    await xs.write(`${paths.frontend}/mtu`, frontendMtu(vif));
    bridge.addPort(device);
    device.open();
    await xs.write(`${paths.backend}/hotplug-status`, 'connected');
    return device;
  } catch (error) {
    await xs.write(`${paths.backend}/hotplug-error`, (error as Error).message);
    await xs.write(`${paths.backend}/hotplug-status`, 'error');
    throw error;
  }
}
