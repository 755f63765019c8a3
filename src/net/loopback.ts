import { NET_NAME_PREDICTABLE, type NetDevice } from './device.js';
import {
  NETIF_F_ALL_TSO,
  NETIF_F_FRAGLIST,
  NETIF_F_HIGHDMA,
  NETIF_F_HW_CSUM,
  NETIF_F_LLTX,
  NETIF_F_LOOPBACK,
  NETIF_F_NETNS_LOCAL,
  NETIF_F_RXCSUM,
  NETIF_F_SG,
  NETIF_F_VLAN_CHALLENGED,
} from './features.js';
import { ARPHRD_LOOPBACK, ETH_HLEN, IFF_LOOPBACK } from './flags.js';
import type { Net } from './net.js';
import { NETDEV_TX_OK } from './tx-queue.js';

/** Makes a namespace's `lo`, as every kernel has: what it sends it receives. It is down until opened. */
export function createLoopback(net: Net): NetDevice {
  const device: NetDevice = net.allocNetdevMqs(
    'lo',
    dev => {
      dev.type = ARPHRD_LOOPBACK;
      dev.mtu = 65536;
      dev.hardHeaderLen = ETH_HLEN;
      dev.addrLen = 6;
      dev.flags = IFF_LOOPBACK;
      dev.driver = 'loopback';
      dev.netnsLocal = true;
      dev.nameAssignType = NET_NAME_PREDICTABLE;
      dev.hwFeatures = NETIF_F_ALL_TSO;
      dev.features =
        NETIF_F_SG |
        NETIF_F_FRAGLIST |
        NETIF_F_ALL_TSO |
        NETIF_F_HW_CSUM |
        NETIF_F_RXCSUM |
        NETIF_F_HIGHDMA |
        NETIF_F_LLTX |
        NETIF_F_NETNS_LOCAL |
        NETIF_F_VLAN_CHALLENGED |
        NETIF_F_LOOPBACK;
    },
    {
      startXmit: (packet, dev) => {
        dev.stats.txPackets++;
        dev.stats.txBytes += packet.length;
        dev.stats.rxPackets++;
        dev.stats.rxBytes += packet.length;
        dev.receive(packet);
        return NETDEV_TX_OK;
      },
    },
  );
  net.register(device);
  return device;
}
