import { readFileSync } from 'node:fs';
import { NET_ADDR_SET, NET_NAME_USER, type NetDevice } from '../../src/net/device.js';
import {
  NETIF_F_ALL_TSO,
  NETIF_F_FRAGLIST,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_HW_VLAN_CTAG_RX,
  NETIF_F_HW_VLAN_CTAG_TX,
  NETIF_F_NOCACHE_COPY,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
} from '../../src/net/features.js';
import { ethMacAddr } from '../../src/net/link.js';
import type { TestKernel } from './kernel.js';

/** What a command printed on a real kernel. */
export interface Printed {
  command: string;
  status: number;
  stdout: string;
  stderr: string;
}

export interface SysfsEntry {
  mode: string;
  value: string | { errno: number };
}

/** Recorded on Linux 6.18 with iproute2 6.1.0 and ethtool 6.1. */
export const linux = JSON.parse(
  readFileSync(new URL('../../../test/vectors/linux-netdev.json', import.meta.url), 'utf8'),
) as {
  veth: Record<'down' | 'up' | 'changed', { netlink: string } & Record<string, Printed>>;
  ethtool: Record<string, Printed>;
  errors: Record<string, Printed>;
  bridge: Record<'port' | 'portj' | 'bridge' | 'procnetdev', Printed> & { portnetlink: string };
  /** A bridge, and its port, a TAP that a program has open. */
  details: Record<'bridge' | 'bridgej' | 'port' | 'portj', Printed>;
  /** ip and ethtool for that TAP. */
  tap: Record<string, Printed>;
  /** ip link add and del, and how they fail. */
  add: Record<string, Printed>;
  netlink: { nodev: string; nothing: string };
  sysfs: {
    up: Record<string, SysfsEntry>;
    down: Record<string, SysfsEntry>;
    writes: Record<string, { errno: number; after: string | { errno: number } }>;
  };
};

export const fromHex = (text: string): Uint8Array =>
  Uint8Array.from(text.match(/../g) ?? [], byte => Number.parseInt(byte, 16));

/**
 * A device with the settings of the recorded veth0, its peer veth1 being number 2 as there (and lo number 1),
 * still down.
 */
export function vethTwin(kernel: TestKernel): { veth0: NetDevice; veth1: NetDevice } {
  const make = (name: string, ifindex: number, iflink: number, last: number): NetDevice => {
    const device = kernel.net.allocEtherdev(
      name,
      { startXmit: () => 0, setMacAddress: (dev, address) => ethMacAddr(dev, address) },
      { txQueues: 2, rxQueues: 2 },
    );
    device.ifindex = ifindex;
    device.iflink = iflink;
    device.kind = 'veth';
    device.driver = 'veth';
    device.noQueue = true;
    device.maxMtu = 65535;
    device.tsoMaxSize = 524280;
    device.liveAddressChange = true;
    device.address.set([2, 0, 0, 0, 0, last]);
    device.addrAssignType = NET_ADDR_SET;
    device.nameAssignType = NET_NAME_USER;
    device.speed = 10000;
    device.hwFeatures =
      NETIF_F_SG |
      NETIF_F_FRAGLIST |
      NETIF_F_HW_CSUM |
      NETIF_F_RXCSUM |
      NETIF_F_HIGHDMA |
      NETIF_F_ALL_TSO |
      NETIF_F_HW_VLAN_CTAG_TX |
      NETIF_F_HW_VLAN_CTAG_RX |
      NETIF_F_NOCACHE_COPY;
    device.features = device.hwFeatures & ~NETIF_F_NOCACHE_COPY;
    kernel.net.register(device);
    device.setRealNumTxQueues(1);
    device.setRealNumRxQueues(1);
    return device as NetDevice;
  };
  const veth1 = make('veth1', 2, 3, 2);
  const veth0 = make('veth0', 3, 2, 1);
  for (const device of [veth1, veth0]) device.carrierOff();
  return { veth0, veth1 };
}

/** Brings the twin up as `ip link set … up` on both ends did. */
export function bringUp(kernel: TestKernel, twin: { veth0: NetDevice; veth1: NetDevice }): void {
  for (const device of [twin.veth0, twin.veth1]) device.open();
  for (const device of [twin.veth0, twin.veth1]) device.carrierOn();
  kernel.scheduler.advance(1000);
}
