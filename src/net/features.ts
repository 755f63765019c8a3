/**
 * Device features. The meaning is that of Linux's NETIF_F_*; the bit numbers are ours, so that a set fits
 * in a small integer.
 */
export const NETIF_F_SG = 1 << 0;
export const NETIF_F_IP_CSUM = 1 << 1;
export const NETIF_F_HW_CSUM = 1 << 2;
export const NETIF_F_IPV6_CSUM = 1 << 3;
export const NETIF_F_HIGHDMA = 1 << 4;
export const NETIF_F_FRAGLIST = 1 << 5;
export const NETIF_F_HW_VLAN_CTAG_TX = 1 << 6;
export const NETIF_F_HW_VLAN_CTAG_RX = 1 << 7;
export const NETIF_F_HW_VLAN_CTAG_FILTER = 1 << 8;
export const NETIF_F_VLAN_CHALLENGED = 1 << 9;
export const NETIF_F_GSO = 1 << 10;
export const NETIF_F_LLTX = 1 << 11;
export const NETIF_F_GRO = 1 << 12;
export const NETIF_F_LRO = 1 << 13;
export const NETIF_F_TSO = 1 << 14;
export const NETIF_F_GSO_ROBUST = 1 << 15;
export const NETIF_F_TSO_ECN = 1 << 16;
export const NETIF_F_TSO_MANGLEID = 1 << 17;
export const NETIF_F_TSO6 = 1 << 18;
export const NETIF_F_GSO_PARTIAL = 1 << 19;
export const NETIF_F_NTUPLE = 1 << 20;
export const NETIF_F_RXHASH = 1 << 21;
export const NETIF_F_RXCSUM = 1 << 22;
export const NETIF_F_NOCACHE_COPY = 1 << 23;
export const NETIF_F_LOOPBACK = 1 << 24;
export const NETIF_F_RXFCS = 1 << 25;
export const NETIF_F_RXALL = 1 << 26;
export const NETIF_F_GRO_HW = 1 << 27;
export const NETIF_F_HW_TLS_TX = 1 << 28;
export const NETIF_F_HW_TLS_RX = 1 << 29;
export const NETIF_F_NETNS_LOCAL = 1 << 30;

export const NETIF_F_CSUM_MASK = NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_HW_CSUM;
export const NETIF_F_ALL_TSO = NETIF_F_TSO | NETIF_F_TSO6 | NETIF_F_TSO_ECN | NETIF_F_TSO_MANGLEID;
/** What the stack does itself on any device (NETIF_F_SOFT_FEATURES). */
export const NETIF_F_SOFT_FEATURES = NETIF_F_GSO | NETIF_F_GRO;
/** Features that nobody can switch (NETIF_F_NEVER_CHANGE). */
export const NETIF_F_NEVER_CHANGE = NETIF_F_VLAN_CHALLENGED | NETIF_F_LLTX | NETIF_F_NETNS_LOCAL;

/** The names that ethtool prints, in its order, with the feature behind each; 0 for those we never have. */
export const FEATURE_NAMES: readonly (readonly [string, number])[] = [
  ['tx-scatter-gather', NETIF_F_SG],
  ['tx-checksum-ipv4', NETIF_F_IP_CSUM],
  ['tx-checksum-ip-generic', NETIF_F_HW_CSUM],
  ['tx-checksum-ipv6', NETIF_F_IPV6_CSUM],
  ['highdma', NETIF_F_HIGHDMA],
  ['tx-scatter-gather-fraglist', NETIF_F_FRAGLIST],
  ['tx-vlan-hw-insert', NETIF_F_HW_VLAN_CTAG_TX],
  ['rx-vlan-hw-parse', NETIF_F_HW_VLAN_CTAG_RX],
  ['rx-vlan-filter', NETIF_F_HW_VLAN_CTAG_FILTER],
  ['vlan-challenged', NETIF_F_VLAN_CHALLENGED],
  ['tx-generic-segmentation', NETIF_F_GSO],
  ['tx-lockless', NETIF_F_LLTX],
  ['rx-gro', NETIF_F_GRO],
  ['rx-lro', NETIF_F_LRO],
  ['tx-tcp-segmentation', NETIF_F_TSO],
  ['tx-gso-robust', NETIF_F_GSO_ROBUST],
  ['tx-tcp-ecn-segmentation', NETIF_F_TSO_ECN],
  ['tx-tcp-mangleid-segmentation', NETIF_F_TSO_MANGLEID],
  ['tx-tcp6-segmentation', NETIF_F_TSO6],
  ['tx-gso-partial', NETIF_F_GSO_PARTIAL],
  ['rx-ntuple-filter', NETIF_F_NTUPLE],
  ['rx-hashing', NETIF_F_RXHASH],
  ['rx-checksum', NETIF_F_RXCSUM],
  ['tx-nocache-copy', NETIF_F_NOCACHE_COPY],
  ['loopback', NETIF_F_LOOPBACK],
  ['rx-fcs', NETIF_F_RXFCS],
  ['rx-all', NETIF_F_RXALL],
  ['rx-gro-hw', NETIF_F_GRO_HW],
  ['tls-hw-tx-offload', NETIF_F_HW_TLS_TX],
  ['tls-hw-rx-offload', NETIF_F_HW_TLS_RX],
  ['netns-local', NETIF_F_NETNS_LOCAL],
];

/** @returns the ethtool names of the features in a set */
export function featureNames(features: number): string[] {
  return FEATURE_NAMES.filter(([, bit]) => (features & bit) !== 0).map(([name]) => name);
}

/**
 * netdev_fix_features: drops what cannot work without another feature.
 * @param partial the features that the device does only with GSO_PARTIAL
 * @param say learns, in words, each thing that was dropped
 */
export function fixFeatures(features: number, partial = 0, say?: (what: string) => void): number {
  const drop = (bits: number, why: string): void => {
    if ((features & bits) === 0) return;
    say?.(`Dropping ${featureNames(features & bits).join(', ')}: ${why}`);
    features &= ~bits;
  };
  const has = (bits: number): boolean => (features & bits) !== 0;
  if (has(NETIF_F_HW_CSUM)) {
    drop(NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM, 'mixed generic and specific checksum features');
  }
  if (!has(NETIF_F_SG)) drop(NETIF_F_ALL_TSO, 'no scatter-gather feature');
  if (!has(NETIF_F_HW_CSUM | NETIF_F_IP_CSUM))
    drop(NETIF_F_TSO | NETIF_F_TSO_ECN, 'no IPv4 checksum feature');
  if (!has(NETIF_F_HW_CSUM | NETIF_F_IPV6_CSUM)) drop(NETIF_F_TSO6, 'no IPv6 checksum feature');
  if (!has(NETIF_F_TSO)) drop(NETIF_F_TSO_MANGLEID, 'no TSO feature');
  if ((features & NETIF_F_ALL_TSO) === NETIF_F_TSO_ECN) drop(NETIF_F_TSO_ECN, 'no TSO feature');
  if (!has(NETIF_F_SG)) drop(NETIF_F_GSO, 'no scatter-gather feature');
  if (!has(NETIF_F_GSO_PARTIAL)) drop(partial, 'no partial GSO feature');
  if (!has(NETIF_F_RXCSUM)) drop(NETIF_F_GRO_HW, 'no receive checksum feature');
  if (has(NETIF_F_RXFCS)) {
    drop(NETIF_F_LRO, 'the frame check sequence is kept');
    drop(NETIF_F_GRO_HW, 'the frame check sequence is kept');
  }
  if (has(NETIF_F_GRO_HW)) drop(NETIF_F_LRO, 'hardware GRO replaces it');
  const bothCsum = (features & NETIF_F_IP_CSUM) !== 0 && (features & NETIF_F_IPV6_CSUM) !== 0;
  if (!has(NETIF_F_HW_CSUM) && !bothCsum) drop(NETIF_F_HW_TLS_TX, 'no checksum feature');
  if (!has(NETIF_F_RXCSUM)) drop(NETIF_F_HW_TLS_RX, 'no receive checksum feature');
  return features;
}
