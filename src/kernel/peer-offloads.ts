import {
  NETIF_F_IP_CSUM,
  NETIF_F_IPV6_CSUM,
  NETIF_F_SG,
  NETIF_F_TSO,
  NETIF_F_TSO6,
} from '../net/features.js';
import { Headers } from '../net/headers.js';
import { CHECKSUM_PARTIAL, GSO_NONE, GSO_TCPV4, type Packet } from '../net/packet.js';
import type { XenbusDevice } from '../xenbus/index.js';

/** What the other end of a vif takes, as its xenstore keys say; the same keys at both ends (io/netif.h). */
export interface PeerOffloads {
  readonly sg: boolean;
  readonly gsoTcpv4: boolean;
  readonly gsoTcpv6: boolean;
  readonly noCsumOffload: boolean;
  readonly ipv6CsumOffload: boolean;
}

/** The offloads of either end, under the names that they have in xenstore: feature-sg, …, and feature-no-csum-offload. */
export const OFFLOADS = ['sg', 'gso-tcpv4', 'gso-tcpv6', 'csum-offload', 'ipv6-csum-offload'] as const;

/** The xenstore nodes that offer features; null for those that are left out. Without a word, checksums are taken. */
export function featureNodes(
  features: readonly string[],
  without: ReadonlySet<string>,
): Record<string, number | null> {
  const node = (feature: string): [string, number | null] =>
    feature === 'csum-offload'
      ? ['feature-no-csum-offload', without.has(feature) ? 1 : null]
      : [`feature-${feature}`, without.has(feature) ? null : 1];
  return Object.fromEntries(features.map(node));
}

/** What an end takes that leaves out these features; null when it takes all offloads. */
export function offloadsWithout(without: ReadonlySet<string>): PeerOffloads | null {
  if (!OFFLOADS.some(offload => without.has(offload))) return null;
  return {
    sg: !without.has('sg'),
    gsoTcpv4: !without.has('gso-tcpv4'),
    gsoTcpv6: !without.has('gso-tcpv6'),
    noCsumOffload: without.has('csum-offload'),
    ipv6CsumOffload: !without.has('ipv6-csum-offload'),
  };
}

const headers = new Headers();

/**
 * Whether an end that takes only these, or all without a word, may get a packet whose offloads have been set up; of how many
 * slots is no matter here.
 */
export function takesPacket(taken: PeerOffloads | null | undefined, packet: Packet): boolean {
  if (taken === null || taken === undefined) return true;
  const { gsoType, checksum } = packet;
  if (gsoType !== GSO_NONE) return gsoType === GSO_TCPV4 ? taken.gsoTcpv4 : taken.gsoTcpv6;
  if (checksum !== CHECKSUM_PARTIAL) return true;
  headers.parse(packet);
  return headers.ipVersion === 6 ? taken.ipv6CsumOffload : !taken.noCsumOffload;
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
