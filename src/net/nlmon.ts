import { ARPHRD_NETLINK } from './flags.js';

/** LINKTYPE_NETLINK of the pcap format. */
const LINKTYPE_NETLINK = 253;
const PCAP_MAGIC = 0xa1b2c3d4;
const SNAPLEN = 262144;
/** Bytes of a record's header, and of the cooked header in front of each message. */
const RECORD_SIZE = 16;
const COOKED_SIZE = 16;
/** sll_pkttype: sent by us, as the kernel marks what it multicasts. */
const PACKET_OUTGOING = 4;
const NETLINK_ROUTE = 0;

/** What a pcap file of netlink messages begins with. */
export function nlmonFileHeader(): Uint8Array {
  const bytes = new Uint8Array(24);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, PCAP_MAGIC, true);
  view.setUint16(4, 2, true);
  view.setUint16(6, 4, true);
  view.setUint32(16, SNAPLEN, true);
  view.setUint32(20, LINKTYPE_NETLINK, true);
  return bytes;
}

/** One netlink message as a record of such a file, as an nlmon device sees it. @param timeMs since 1970 */
export function nlmonRecord(message: Uint8Array, timeMs: number): Uint8Array {
  const bytes = new Uint8Array(RECORD_SIZE + COOKED_SIZE + message.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Math.floor(timeMs / 1000), true);
  view.setUint32(4, Math.floor((timeMs % 1000) * 1000), true);
  view.setUint32(8, COOKED_SIZE + message.length, true);
  view.setUint32(12, COOKED_SIZE + message.length, true);
  view.setUint16(16, PACKET_OUTGOING);
  view.setUint16(18, ARPHRD_NETLINK);
  view.setUint16(30, NETLINK_ROUTE);
  bytes.set(message, RECORD_SIZE + COOKED_SIZE);
  return bytes;
}
