import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import type { XenbusDevice } from '../xenbus/index.js';

/** What the other end of a vif takes, as its xenstore keys say; the same keys at both ends (io/netif.h). */
export interface PeerOffloads {
  readonly sg: boolean;
  readonly gsoTcpv4: boolean;
  readonly gsoTcpv6: boolean;
  readonly noCsumOffload: boolean;
  readonly ipv6CsumOffload: boolean;
}

/** Whether the other end has set a feature's key to anything but 0. */
export async function peerHas(xbdev: XenbusDevice, key: string): Promise<boolean> {
  return (await xbdev.readUnsigned(xbdev.otherend, key, 0)) !== 0;
}

export async function readPeerOffloads(xbdev: XenbusDevice): Promise<PeerOffloads> {
  return {
    sg: await peerHas(xbdev, 'feature-sg'),
    gsoTcpv4: await peerHas(xbdev, 'feature-gso-tcpv4'),
    gsoTcpv6: await peerHas(xbdev, 'feature-gso-tcpv6'),
    noCsumOffload: await peerHas(xbdev, 'feature-no-csum-offload'),
    ipv6CsumOffload: await peerHas(xbdev, 'feature-ipv6-csum-offload'),
  };
}

/** Takes away from a device's features (NETIF_F_*) what the other end does not take. */
export function withoutUntaken(features: number, peer: PeerOffloads): number {
  if (!peer.sg) features &= ~NETIF_F_SG;
  if (!peer.gsoTcpv4) features &= ~NETIF_F_TSO;
  if (!peer.gsoTcpv6) features &= ~NETIF_F_TSO6;
  if (peer.noCsumOffload) features &= ~NETIF_F_IP_CSUM;
  if (!peer.ipv6CsumOffload) features &= ~NETIF_F_IPV6_CSUM;
  return features;
}
