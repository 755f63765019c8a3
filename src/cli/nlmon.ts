import { type Net, nlmonFileHeader, nlmonRecord } from '../net/index.js';

/**
 * Captures a namespace's link messages as an nlmon device would: a pcap file of link type NETLINK.
 * @param write takes the bytes of the file in their order
 * @param epochMs the time of day, in milliseconds since 1970
 * @returns a function that ends the capture
 */
export function captureNlmon(
  net: Net,
  write: (bytes: Uint8Array) => void,
  epochMs: () => number,
): () => void {
  write(nlmonFileHeader());
  return net.onLinkMessage(message => write(nlmonRecord(message, epochMs())));
}
