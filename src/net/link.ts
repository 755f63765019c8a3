import { ErrnoError } from '../abi/errno.js';
import { isSameAddress } from './address-list.js';
import type { NetDevice } from './device.js';
import { formatAddress, isValidEtherAddress, NET_ADDR_SET, NET_NAME_RENAMED } from './device.js';
import { featureNames, fixFeatures, NETIF_F_NEVER_CHANGE } from './features.js';
import {
  IFF_ALLMULTI,
  IFF_AUTOMEDIA,
  IFF_DEBUG,
  IFF_DYNAMIC,
  IFF_MULTICAST,
  IFF_NOARP,
  IFF_NOTRAILERS,
  IFF_PORTSEL,
  IFF_PROMISC,
  IFF_RUNNING,
  IFF_UP,
  LINK_STATE_START,
} from './flags.js';
import {
  NETDEV_CHANGE,
  NETDEV_CHANGE_TX_QUEUE_LEN,
  NETDEV_CHANGEADDR,
  NETDEV_CHANGEMTU,
  NETDEV_CHANGENAME,
  NETDEV_DOWN,
  NETDEV_FEAT_CHANGE,
  NETDEV_GOING_DOWN,
  NETDEV_NOTIFY_PEERS,
  NETDEV_PRE_CHANGEADDR,
  NETDEV_PRE_UP,
  NETDEV_PRECHANGEMTU,
  NETDEV_RESEND_IGMP,
  NETDEV_UP,
} from './notifier.js';
import type { XdpProgram } from './xdp.js';

/** Flags that the user switches directly. */
const SETTABLE =
  IFF_DEBUG | IFF_NOTRAILERS | IFF_NOARP | IFF_DYNAMIC | IFF_MULTICAST | IFF_PORTSEL | IFF_AUTOMEDIA;
/** Characters of an alias (IFALIASZ with its terminating zero). */
export const IFALIAS_MAX = 255;

/** dev_open: PRE_UP, the driver, UP, in the kernel's order. Does nothing to a device that is up. */
export function openDevice(device: NetDevice): void {
  device.net.rtnl.with(() => {
    if (device.flagsUp) return;
    bringUp(device);
    device.net.linkChanged(device, IFF_UP | IFF_RUNNING);
    device.net.notify(NETDEV_UP, device);
  });
}

function bringUp(device: NetDevice): void {
  if (!device.present) throw device.error('ENODEV', 'it is not registered');
  device.net.notifyOrThrow(NETDEV_PRE_UP, device);
  device.state |= LINK_STATE_START;
  try {
    device.ops.validateAddress?.(device);
    device.ops.open?.(device);
  } catch (error) {
    device.state &= ~LINK_STATE_START;
    throw error;
  }
  device.flags |= IFF_UP;
  device.updateRxMode();
  device.activateQueues();
}

/** dev_close_many */
export function closeDevices(devices: readonly NetDevice[]): void {
  const up = devices.filter(device => device.flagsUp);
  if (up.length === 0) return;
  up[0].net.rtnl.with(() => {
    bringDown(up);
    for (const device of up) {
      device.net.linkChanged(device, IFF_UP | IFF_RUNNING);
      device.net.notify(NETDEV_DOWN, device);
    }
  });
}

function bringDown(devices: readonly NetDevice[]): void {
  for (const device of devices) {
    device.net.notify(NETDEV_GOING_DOWN, device);
    device.state &= ~LINK_STATE_START;
  }
  for (const device of devices) device.deactivateQueues();
  for (const device of devices) {
    device.ops.stop?.(device);
    device.flags &= ~IFF_UP;
  }
}

/**
 * dev_change_flags: what the user may switch in IFF_*, with up and down.
 * @throws what opening throws; the other flags are set even so, as in the kernel
 */
export function changeFlags(device: NetDevice, flags: number): void {
  device.net.rtnl.with(() => {
    const before = device.flags;
    device.flags = (flags & SETTABLE) | (before & ~SETTABLE);
    if (((before ^ flags) & IFF_MULTICAST) !== 0) device.ops.changeRxFlags?.(device, IFF_MULTICAST);
    device.updateRxMode();
    let failure: unknown;
    if (((before ^ flags) & IFF_UP) !== 0) {
      try {
        if ((flags & IFF_UP) !== 0) bringUp(device);
        else bringDown([device]);
      } catch (error) {
        failure = error;
      }
    }
    let gchanges = 0;
    for (const bit of [IFF_PROMISC, IFF_ALLMULTI]) {
      if (((flags ^ device.gflags) & bit) === 0) continue;
      const by = (flags & bit) !== 0 ? 1 : -1;
      device.gflags ^= bit;
      gchanges |= bit;
      if (bit === IFF_PROMISC) changePromiscuity(device, by, false);
      else changeAllmulti(device, by, false);
    }
    if (failure !== undefined) throw failure;
    const changes = (before ^ device.flags) | gchanges;
    if (changes !== 0) device.net.linkChanged(device, changes);
    if ((changes & IFF_UP) !== 0) device.net.notify(device.flagsUp ? NETDEV_UP : NETDEV_DOWN, device);
    if (device.flagsUp && (changes & ~(IFF_UP | IFF_PROMISC | IFF_ALLMULTI)) !== 0) {
      device.net.notify(NETDEV_CHANGE, device, changes);
    }
  });
}

/** __dev_set_promiscuity @param tell whether the change is announced */
export function changePromiscuity(device: NetDevice, by: number, tell = true): void {
  const before = device.flags;
  if (device.promiscuity + by < 0) throw new RangeError(`${device.name}: promiscuity would be negative`);
  device.promiscuity += by;
  device.flags = device.promiscuity > 0 ? before | IFF_PROMISC : before & ~IFF_PROMISC;
  if (device.flags !== before) {
    device.net.log(`${device.name}: ${device.promiscuity > 0 ? 'entered' : 'left'} promiscuous mode`);
    device.ops.changeRxFlags?.(device, IFF_PROMISC);
    if (tell && device.registered) device.net.linkChanged(device, IFF_PROMISC);
  }
  device.updateRxMode();
}

/** netif_set_allmulti */
export function changeAllmulti(device: NetDevice, by: number, tell = true): void {
  const before = device.flags;
  if (device.allmulti + by < 0) throw new RangeError(`${device.name}: allmulti would be negative`);
  device.allmulti += by;
  device.flags = device.allmulti > 0 ? before | IFF_ALLMULTI : before & ~IFF_ALLMULTI;
  if (device.flags === before) return;
  device.net.log(`${device.name}: ${device.allmulti > 0 ? 'entered' : 'left'} allmulticast mode`);
  device.ops.changeRxFlags?.(device, IFF_ALLMULTI);
  device.updateRxMode();
  if (tell && device.registered) device.net.linkChanged(device, IFF_ALLMULTI);
}

/**
 * dev_set_mtu
 * @throws NetError EINVAL below minMtu or above maxMtu, ENODEV when not registered, or what a notifier or
 *   the driver throws; the MTU is as before then
 */
export function changeMtu(device: NetDevice, mtu: number): void {
  device.net.rtnl.with(() => {
    if (mtu === device.mtu) return;
    if (!Number.isInteger(mtu) || mtu < 0 || mtu < device.minMtu) {
      throw device.error('EINVAL', `mtu less than device minimum: ${mtu} is below ${device.minMtu}`);
    }
    if (device.maxMtu > 0 && mtu > device.maxMtu) {
      throw device.error('EINVAL', `mtu greater than device maximum: ${mtu} is above ${device.maxMtu}`);
    }
    if (!device.present) throw device.error('ENODEV', 'it is not registered');
    device.net.notifyOrThrow(NETDEV_PRECHANGEMTU, device, mtu);
    const before = device.mtu;
    device.ops.changeMtu?.(device, mtu);
    device.mtu = mtu;
    try {
      device.net.notifyOrThrow(NETDEV_CHANGEMTU, device, before);
    } catch (error) {
      device.ops.changeMtu?.(device, before);
      device.mtu = before;
      device.net.notify(NETDEV_CHANGEMTU, device, mtu);
      throw error;
    }
  });
}

/**
 * dev_set_mac_address
 * @throws NetError EOPNOTSUPP when the driver cannot, EINVAL for a wrong length, ENODEV when not
 *   registered, or what a notifier or the driver throws
 */
export function changeAddress(device: NetDevice, address: Uint8Array): void {
  device.net.rtnl.with(() => {
    if (device.ops.setMacAddress === undefined) {
      throw device.error('EOPNOTSUPP', 'its driver cannot change the address');
    }
    if (address.length !== device.addrLen) {
      throw device.error('EINVAL', `an address has ${device.addrLen} bytes, not ${address.length}`);
    }
    if (!device.present) throw device.error('ENODEV', 'it is not registered');
    device.net.notifyOrThrow(NETDEV_PRE_CHANGEADDR, device, address);
    if (!isSameAddress(address, device.address)) {
      device.ops.setMacAddress(device, address);
    }
    device.addrAssignType = NET_ADDR_SET;
    device.net.notify(NETDEV_CHANGEADDR, device);
  });
}

/**
 * eth_mac_addr, for `ops.setMacAddress`: stores the address.
 * @throws NetError EBUSY while the device is open unless it has liveAddressChange, EADDRNOTAVAIL for an
 *   address that no interface can have
 */
export function ethMacAddr(device: NetDevice, address: Uint8Array): void {
  if (device.running && !device.liveAddressChange) {
    throw device.error('EBUSY', 'the address cannot be changed while it is up');
  }
  if (!isValidEtherAddress(address)) {
    throw device.error('EADDRNOTAVAIL', `${formatAddress(address)} is zero or a group's address`);
  }
  device.address.set(address);
}

/** eth_validate_addr, for `ops.validateAddress`. @throws NetError EADDRNOTAVAIL */
export function ethValidateAddress(device: NetDevice): void {
  if (!isValidEtherAddress(device.address)) {
    throw device.error('EADDRNOTAVAIL', `${formatAddress(device.address)} is zero or a group's address`);
  }
}

/**
 * dev_change_name, also while the device is up; a %d is filled in.
 * @throws NetError EINVAL, EEXIST, ENFILE for the name, or what a notifier throws: the old name is back then
 */
export function changeName(device: NetDevice, name: string): void {
  const { net } = device;
  net.rtnl.with(() => {
    if (name === device.name) return;
    const before = device.name;
    const assign = device.nameAssignType;
    const chosen = net.table.validName(name);
    const rename = (from: string, to: string): void => {
      net.table.names.delete(from);
      net.table.names.add(to);
      device.name = to;
      net.table.renamed(device, from);
    };
    rename(before, chosen);
    device.nameAssignType = NET_NAME_RENAMED;
    try {
      net.notifyOrThrow(NETDEV_CHANGENAME, device, before);
    } catch (error) {
      rename(chosen, before);
      device.nameAssignType = assign;
      net.notify(NETDEV_CHANGENAME, device, chosen);
      throw error;
    }
    net.log(`${chosen}: renamed from ${before}${device.flagsUp ? ' (while UP)' : ''}`);
  });
}

/** dev_change_tx_queue_len @throws NetError ERANGE for no 32-bit number, or what a notifier throws */
export function changeTxQueueLen(device: NetDevice, length: number): void {
  device.net.rtnl.with(() => {
    if (!Number.isInteger(length) || length < 0 || length > 0xffffffff) {
      throw device.error('ERANGE', `a queue length is 0 to 4294967295, not ${length}`);
    }
    if (length === device.txQueueLen) return;
    const before = device.txQueueLen;
    device.txQueueLen = length;
    try {
      device.net.notifyOrThrow(NETDEV_CHANGE_TX_QUEUE_LEN, device, before);
    } catch (error) {
      device.txQueueLen = before;
      throw error;
    }
    device.resizeQueues();
  });
}

/** dev_set_alias @throws NetError EINVAL beyond 255 bytes */
export function changeAlias(device: NetDevice, alias: string): void {
  if (alias.length > IFALIAS_MAX) {
    throw device.error('EINVAL', `an alias has at most ${IFALIAS_MAX} bytes, not ${alias.length}`);
  }
  device.net.rtnl.with(() => {
    device.ifalias = alias;
    device.net.linkChanged(device, 0);
  });
}

/**
 * dev_xdp_install: shows what the device receives to a program from now on, in place of the one before; to none with null.
 * @throws NetError EOPNOTSUPP for a driver that has no XDP
 */
export function changeXdp(device: NetDevice, program: XdpProgram | null): void {
  if (device.ops.xdpXmit === undefined) throw device.error('EOPNOTSUPP', 'its driver has no XDP');
  device.net.rtnl.with(() => {
    device.xdp =
      program === null ? null : { id: ++device.net.xdpPrograms, name: program.name || 'xdp', program };
    if (device.registered) device.net.linkChanged(device, 0);
  });
}

/** dev_set_group */
export function changeGroup(device: NetDevice, group: number): void {
  device.net.rtnl.with(() => {
    device.group = group;
    device.net.linkChanged(device, 0);
  });
}

/**
 * __netdev_update_features: the features that are wanted, as far as they are possible.
 * @returns true when something changed. A driver that fails leaves them as they are (said in the log).
 */
export function refreshFeatures(device: NetDevice): boolean {
  let features = (device.features & ~device.hwFeatures) | (device.wantedFeatures & device.hwFeatures);
  features = device.ops.fixFeatures?.(device, features) ?? features;
  features = fixFeatures(features, device.gsoPartialFeatures);
  if (features === device.features) return false;
  try {
    device.ops.setFeatures?.(device, features);
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    device.net.log(
      `${device.name}: set_features() failed (-${error.errno}); wanted ${featureNames(features).join(' ')}`,
    );
    return false;
  }
  device.features = features;
  return true;
}

/** netdev_update_features: as `refreshFeatures`, and everybody hears of a change. */
export function updateFeatures(device: NetDevice): boolean {
  return device.net.rtnl.with(() => {
    const changed = refreshFeatures(device);
    if (changed) device.net.notify(NETDEV_FEAT_CHANGE, device);
    return changed;
  });
}

/**
 * What ethtool -K does: switches wanted features.
 * @throws NetError EINVAL for features that can never be switched
 * @returns the features that did not become what was asked
 */
export function wantFeatures(device: NetDevice, mask: number, values: number): number {
  const never = mask & NETIF_F_NEVER_CHANGE;
  if (never !== 0) {
    throw device.error('EINVAL', `${featureNames(never).join(', ')} can never be switched`);
  }
  const possible = mask & device.hwFeatures;
  device.wantedFeatures = (device.wantedFeatures & ~possible) | (values & possible);
  updateFeatures(device);
  return (device.features ^ values) & mask;
}

/** netdev_notify_peers: has everybody tell their neighbours (gratuitous ARP). */
export function notifyPeers(device: NetDevice): void {
  device.net.rtnl.with(() => {
    device.net.notify(NETDEV_NOTIFY_PEERS, device);
    device.net.notify(NETDEV_RESEND_IGMP, device);
  });
}
