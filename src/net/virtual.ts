import type { NetDevice } from './device.js';
import { makeUpAddress, NET_ADDR_RANDOM, NET_NAME_USER } from './device.js';
import { NETIF_F_ALL_TSO, NETIF_F_HIGHDMA, NETIF_F_HW_CSUM, NETIF_F_LLTX, NETIF_F_SG } from './features.js';
import { ETH_MAX_MTU, IFF_MULTICAST, IFF_NOARP } from './flags.js';
import type { Net } from './net.js';
import type { Packet } from './packet.js';
import { NETDEV_TX_OK } from './tx-queue.js';

/** What a device without hardware takes: all of it, since nobody has to. */
const FEATURES = NETIF_F_SG | NETIF_F_HIGHDMA | NETIF_F_HW_CSUM | NETIF_F_ALL_TSO;

function allocate(
  net: Net,
  name: string,
  kind: string,
  startXmit: (packet: Packet, device: NetDevice) => number,
): NetDevice {
  const device: NetDevice = net.allocEtherdev(name, {
    startXmit,
    setMacAddress: (dev, address) => dev.address.set(address),
  });
  device.kind = kind;
  device.driver = kind;
  device.noQueue = true;
  device.liveAddressChange = true;
  device.nameAssignType = NET_NAME_USER;
  device.addrAssignType = NET_ADDR_RANDOM;
  device.hwFeatures = FEATURES;
  device.features = FEATURES | NETIF_F_LLTX;
  makeUpAddress(device.address, net.random);
  return device;
}

function count(device: NetDevice, packet: Packet): void {
  device.stats.txPackets++;
  device.stats.txBytes += packet.length;
}

/** A device that takes every packet and drops it (drivers/net/dummy.c). @throws as `Net.register` */
export function createDummy(net: Net, name: string): NetDevice {
  const device = allocate(net, name, 'dummy', (packet, dev) => {
    count(dev, packet);
    packet.release();
    return NETDEV_TX_OK;
  });
  device.minMtu = 0;
  device.maxMtu = 0;
  device.flags = (device.flags | IFF_NOARP) & ~IFF_MULTICAST;
  net.register(device);
  return device;
}

/**
 * Two devices of one namespace, each of which receives what the other sends (drivers/net/veth.c). Either has a
 * carrier while both are up. One that is unregistered takes the other with it.
 * @throws as `Net.register`; neither is there then
 */
export function createVeth(net: Net, name: string, peerName: string): [device: NetDevice, peer: NetDevice] {
  const ends: NetDevice[] = [];
  const otherOf = (device: NetDevice): NetDevice => ends[device === ends[0] ? 1 : 0];
  const startXmit = (packet: Packet, device: NetDevice): number => {
    const other = otherOf(device);
    if (!other.running) {
      device.stats.txDropped++;
      packet.release();
      return NETDEV_TX_OK;
    }
    count(device, packet);
    other.stats.rxPackets++;
    other.stats.rxBytes += packet.length;
    other.receive(packet);
    return NETDEV_TX_OK;
  };
  const carriers = (device: NetDevice, up: boolean): void => {
    const both = up && otherOf(device).running;
    for (const end of ends) {
      if (both) end.carrierOn();
      else end.carrierOff();
    }
  };
  for (const end of [name, peerName]) {
    const device = allocate(net, end, 'veth', startXmit);
    device.maxMtu = ETH_MAX_MTU;
    device.speed = 10_000;
    device.ops.open = dev => carriers(dev, true);
    device.ops.stop = dev => carriers(dev, false);
    device.carrierOff();
    ends.push(device);
  }
  const [device, peer] = ends;
  // As Linux does: the peer is there first.
  net.register(peer);
  try {
    device.iflink = peer.ifindex;
    net.register(device);
  } catch (error) {
    void net.unregister(peer);
    throw error;
  }
  peer.iflink = device.ifindex;
  for (const end of ends) {
    end.ops.uninit = dev => {
      const other = otherOf(dev);
      if (other.registered) void net.unregister(other);
    };
  }
  return [device, peer];
}
