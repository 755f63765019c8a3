import type { NetDevice } from './device.js';
import {
  NET_ADDR_PERM,
  NETREG_REGISTERED,
  NETREG_RELEASED,
  NETREG_UNINITIALIZED,
  NETREG_UNREGISTERED,
  NETREG_UNREGISTERING,
} from './device.js';
import {
  NETIF_F_GSO_PARTIAL,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_HW_VLAN_CTAG_FILTER,
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SOFT_FEATURES,
  NETIF_F_TSO,
  NETIF_F_TSO_MANGLEID,
} from './features.js';
import { LINK_STATE_PRESENT } from './flags.js';
import { closeDevices, refreshFeatures } from './link.js';
import type { Net } from './net.js';
import {
  errnoName,
  NETDEV_POST_INIT,
  NETDEV_PRE_UNINIT,
  NETDEV_REGISTER,
  NETDEV_UNREGISTER,
} from './notifier.js';
import { operstateOf } from './operstate.js';
import { encodeLink, RTM_DELLINK } from './rtnetlink.js';

/** While a device that is gone has users: how long the first and the longest sleep between two looks is. */
const WAIT_MIN_MS = 1;
const WAIT_MAX_MS = 250;
/** How often UNREGISTER is sent again, and how often the log says who is waited for. */
const REBROADCAST_MS = 1000;
const WARNING_MS = 10_000;

/** All bits: what a registration says of the flags that changed. */
const EVERYTHING = 0xffffffff;

/**
 * register_netdevice, in the order of a modern kernel (docs/netdevice.md names each step). The caller
 * holds the rtnl lock.
 * @throws ErrnoError; everything that was done is undone
 */
export function registerNetdevice(net: Net, device: NetDevice): void {
  if (device.regState !== NETREG_UNINITIALIZED) {
    throw new Error(`${device.name}: it is registered, or was; a device registers once`);
  }
  const template = device.name;
  const askedIndex = device.ifindex;
  const { table } = net;
  device.name = table.validName(device.name);
  table.names.add(device.name);
  let initialised = false;
  let indexed = false;
  try {
    runInit(device);
    initialised = true;
    if ((device.features & NETIF_F_HW_VLAN_CTAG_FILTER) !== 0) {
      throw device.error(
        'EINVAL',
        'it claims to filter VLANs, and no driver can be told which (NetDeviceOps)',
      );
    }
    device.ifindex = table.reserveIndex(askedIndex);
    indexed = true;
    if (device.iflink === -1) device.iflink = device.ifindex;
    setUpFeatures(device);
    net.notifyOrThrow(NETDEV_POST_INIT, device);
  } catch (error) {
    if (indexed) table.releaseIndex(device.ifindex);
    if (indexed && device.iflink === device.ifindex) device.iflink = -1;
    device.ifindex = askedIndex;
    if (initialised) device.ops.uninit?.(device);
    table.names.delete(device.name);
    device.name = template;
    throw error;
  }
  device.regState = NETREG_REGISTERED;
  refreshFeatures(device);
  device.state |= LINK_STATE_PRESENT;
  if (!device.carrierOk || device.dormant || device.testing) device.operstate = operstateOf(device);
  device.hold('registration');
  table.list(device);
  if (device.addrAssignType === NET_ADDR_PERM) device.permAddress = device.address.slice();
  const errno = net.notify(NETDEV_REGISTER, device);
  if (errno !== 0) {
    device.needsFree = false;
    void unregisterMany(net, [device]);
    throw device.error(errnoName(errno), 'a notifier refused to let it register');
  }
  net.linkChanged(device, EVERYTHING);
}

function runInit(device: NetDevice): void {
  const result = device.ops.init?.(device) ?? 0;
  if (result > 0) throw device.error('EIO', `its init returned ${result}, which is no errno`);
  if (result < 0) throw device.error(errnoName(-result), 'its init failed');
}

function setUpFeatures(device: NetDevice): void {
  if (
    (device.features & NETIF_F_HW_CSUM) !== 0 &&
    (device.features & (NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM)) !== 0
  ) {
    device.net.log(`${device.name}: mixed HW and IP checksum settings.`);
  }
  device.hwFeatures |= NETIF_F_SOFT_FEATURES;
  device.features |= NETIF_F_SOFT_FEATURES;
  device.wantedFeatures = device.features & device.hwFeatures;
  if ((device.hwFeatures & NETIF_F_TSO) !== 0) device.hwFeatures |= NETIF_F_TSO_MANGLEID;
  if ((device.gsoPartialFeatures & NETIF_F_TSO) !== 0) device.gsoPartialFeatures |= NETIF_F_TSO_MANGLEID;
  if (device.gsoPartialFeatures !== 0) device.hwFeatures |= NETIF_F_GSO_PARTIAL;
  device.vlanFeatures |= NETIF_F_HIGHDMA;
}

/**
 * unregister_netdevice_many: takes devices out, all closed first, then one by one. The caller holds the
 * rtnl lock; what is left is done when it lets go.
 * @returns a promise for each device, fulfilled when nobody uses it any more
 */
export function unregisterMany(net: Net, devices: readonly NetDevice[]): Promise<void>[] {
  const going: NetDevice[] = [];
  for (const device of devices) {
    if (device.regState === NETREG_REGISTERED) going.push(device);
    else if (device.regState === NETREG_UNINITIALIZED) {
      net.log(`unregister_netdevice: device ${device.name} was never registered`);
    }
  }
  closeDevices(going);
  for (const device of going) {
    net.table.unlist(device);
    device.regState = NETREG_UNREGISTERING;
  }
  for (const device of going) {
    device.shutdownQueues();
    device.xdp = null;
    net.notify(NETDEV_UNREGISTER, device);
    const farewell = net.wantsLinkMessages
      ? encodeLink(device, { type: RTM_DELLINK, change: EVERYTHING })
      : null;
    device.uc.flush();
    device.mc.flush();
    net.table.names.delete(device.name);
    net.notify(NETDEV_PRE_UNINIT, device);
    device.ops.uninit?.(device);
    if (farewell !== null) net.sendLinkMessage(farewell);
    if (device.master !== null) {
      net.log(`${device.name}: it is unregistered while it is a port of ${device.master.name}`);
    }
    device.state &= ~LINK_STATE_PRESENT;
    device.put('registration');
  }
  return going.map(device => net.whenGone(device));
}

/**
 * netdev_run_todo for one device: waits until only its driver has a reference, telling everybody again
 * each second, and the log each ten seconds who is waited for.
 */
export function waitForReferences(net: Net, device: NetDevice, done: () => void): void {
  device.regState = NETREG_UNREGISTERED;
  net.linkwatch.sync(device);
  if (device.refcount === 1) {
    done();
    return;
  }
  const { scheduler } = net;
  let sleep = WAIT_MIN_MS;
  let rebroadcast = scheduler.now();
  let warning = rebroadcast;
  let timer = scheduler.after(0, look);
  device.onReferencesGone = () => {
    device.onReferencesGone = null;
    scheduler.cancel(timer);
    done();
  };

  function look(): void {
    const now = scheduler.now();
    if (now - rebroadcast >= REBROADCAST_MS) {
      rebroadcast = now;
      net.rtnl.with(() => net.notify(NETDEV_UNREGISTER, device));
      if (device.refcount === 1) return;
    }
    if (now - warning >= WARNING_MS) {
      warning = now;
      net.log(
        `unregister_netdevice: waiting for ${device.name} to become free. ` +
          `Usage count = ${device.refcount} (${device.heldBy.join(', ')})`,
      );
    }
    timer = scheduler.after(sleep, look);
    sleep = Math.min(sleep * 2, WAIT_MAX_MS);
  }
}

/**
 * free_netdev: the driver has no more use for a device. One that never registered, or has gone, is
 * released; one that is going is released when it has gone.
 * @throws Error for a registered device
 */
export function freeNetdev(device: NetDevice): void {
  switch (device.regState) {
    case NETREG_REGISTERED:
      throw new Error(`${device.name}: it is registered; unregister it first`);
    case NETREG_UNREGISTERING:
      device.needsFree = true;
      return;
    default:
      for (const napi of [...device.napis]) device.napiDel(napi);
      device.regState = NETREG_RELEASED;
  }
}
