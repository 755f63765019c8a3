/** Interface flags (linux/if.h). RUNNING, LOWER_UP and DORMANT are computed, never stored. */
export const IFF_UP = 0x1;
export const IFF_BROADCAST = 0x2;
export const IFF_DEBUG = 0x4;
export const IFF_LOOPBACK = 0x8;
export const IFF_POINTOPOINT = 0x10;
export const IFF_NOTRAILERS = 0x20;
export const IFF_RUNNING = 0x40;
export const IFF_NOARP = 0x80;
export const IFF_PROMISC = 0x100;
export const IFF_ALLMULTI = 0x200;
export const IFF_MASTER = 0x400;
export const IFF_SLAVE = 0x800;
export const IFF_MULTICAST = 0x1000;
export const IFF_PORTSEL = 0x2000;
export const IFF_AUTOMEDIA = 0x4000;
export const IFF_DYNAMIC = 0x8000;
export const IFF_LOWER_UP = 0x10000;
export const IFF_DORMANT = 0x20000;
export const IFF_ECHO = 0x40000;

/** Bits of NetDevice.state (enum netdev_state_t). */
export const LINK_STATE_START = 0x1;
export const LINK_STATE_PRESENT = 0x2;
export const LINK_STATE_NOCARRIER = 0x4;
export const LINK_STATE_LINKWATCH_PENDING = 0x8;
export const LINK_STATE_DORMANT = 0x10;
export const LINK_STATE_TESTING = 0x20;

/** ARPHRD_ETHER and ARPHRD_LOOPBACK (linux/if_arp.h). */
export const ARPHRD_ETHER = 1;
export const ARPHRD_LOOPBACK = 772;
export const ARPHRD_NETLINK = 824;

export const ETH_ALEN = 6;
export const ETH_HLEN = 14;
export const VLAN_HLEN = 4;
export const ETH_DATA_LEN = 1500;
export const ETH_MIN_MTU = 68;
export const ETH_MAX_MTU = 65535;

/** Room for a name and its terminating zero. */
export const IFNAMSIZ = 16;
