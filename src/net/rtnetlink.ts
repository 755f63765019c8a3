import { ERRNO } from '../abi/errno.js';
import type { NetDevice } from './device.js';
import { NetError } from './error.js';
import type { Net } from './net.js';
import { shownOperstate } from './operstate.js';
import { LINK_STATS_FIELDS } from './stats.js';

/** Message types (linux/rtnetlink.h, linux/netlink.h). */
export const NLMSG_NOOP = 1;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
export const RTM_GETLINK = 18;
export const RTM_SETLINK = 19;

/** Flags of a message. */
export const NLM_F_REQUEST = 0x1;
export const NLM_F_MULTI = 0x2;
export const NLM_F_ACK = 0x4;
export const NLM_F_ROOT = 0x100;
export const NLM_F_MATCH = 0x200;
export const NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH;

/** Attributes of a link (linux/if_link.h). */
export const IFLA = {
  ADDRESS: 1,
  BROADCAST: 2,
  IFNAME: 3,
  MTU: 4,
  LINK: 5,
  QDISC: 6,
  STATS: 7,
  MASTER: 10,
  TXQLEN: 13,
  MAP: 14,
  OPERSTATE: 16,
  LINKMODE: 17,
  LINKINFO: 18,
  IFALIAS: 20,
  STATS64: 23,
  AF_SPEC: 26,
  GROUP: 27,
  EXT_MASK: 29,
  PROMISCUITY: 30,
  NUM_TX_QUEUES: 31,
  NUM_RX_QUEUES: 32,
  CARRIER: 33,
  CARRIER_CHANGES: 35,
  PROTO_DOWN: 39,
  GSO_MAX_SEGS: 40,
  GSO_MAX_SIZE: 41,
  XDP: 43,
  EVENT: 44,
  CARRIER_UP_COUNT: 47,
  CARRIER_DOWN_COUNT: 48,
  MIN_MTU: 50,
  MAX_MTU: 51,
  PERM_ADDRESS: 54,
  PARENT_DEV_NAME: 56,
  PARENT_DEV_BUS_NAME: 57,
  GRO_MAX_SIZE: 58,
  TSO_MAX_SIZE: 59,
  TSO_MAX_SEGS: 60,
  ALLMULTI: 61,
  DEVLINK_PORT: 62,
  GSO_IPV4_MAX_SIZE: 63,
  GRO_IPV4_MAX_SIZE: 64,
  DPLL_PIN: 65,
  MAX_PACING_OFFLOAD_HORIZON: 66,
  NETNS_IMMUTABLE: 67,
  HEADROOM: 68,
  TAILROOM: 69,
} as const;

const IFLA_INFO_KIND = 1;
const IFLA_INFO_SLAVE_KIND = 4;
const IFLA_XDP_ATTACHED = 2;
const IFLA_XDP_PROG_ID = 4;
const IFLA_XDP_DRV_PROG_ID = 5;
/** XDP_ATTACHED_*: not at all, or in the driver. */
const XDP_ATTACHED_NONE = 0;
const XDP_ATTACHED_DRV = 1;
/** Nobody here makes IPv6 addresses by himself. */
const AF_INET6 = 10;
const IFLA_INET6_ADDR_GEN_MODE = 8;
const IN6_ADDR_GEN_MODE_NONE = 1;
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;

/** Why a link message was sent (IFLA_EVENT). */
export const IFLA_EVENT_NONE = 0;
export const IFLA_EVENT_FEATURES = 2;
export const IFLA_EVENT_NOTIFY_PEERS = 4;
export const IFLA_EVENT_IGMP_RESEND = 5;

/** Bytes of struct nlmsghdr and of struct ifinfomsg. */
const HEADER_SIZE = 16;
const IFINFO_SIZE = 16;
/** Fields of struct rtnl_link_stats: the newest counter is only in rtnl_link_stats64. */
const STATS_FIELDS = 24;

export interface LinkMessageOptions {
  /** RTM_NEWLINK or RTM_DELLINK. */
  type: number;
  /** ifi_change: the flags that changed. */
  change?: number;
  /** IFLA_EVENT_*. */
  event?: number;
  /** nlmsg_flags, nlmsg_seq, nlmsg_pid: those of the request that this answers. */
  flags?: number;
  seq?: number;
  pid?: number;
}

/** Writes netlink's little-endian, 4-byte aligned records into a buffer that grows. */
class Writer {
  private bytes = new Uint8Array(1024);
  private view = new DataView(this.bytes.buffer);
  private end = 0;

  private room(size: number): number {
    const at = this.end;
    while (at + size > this.bytes.length) {
      const bigger = new Uint8Array(this.bytes.length * 2);
      bigger.set(this.bytes);
      this.bytes = bigger;
      this.view = new DataView(bigger.buffer);
    }
    this.end = at + size;
    return at;
  }

  u8(value: number): void {
    this.bytes[this.room(1)] = value;
  }

  u16(value: number): void {
    this.view.setUint16(this.room(2), value, true);
  }

  u32(value: number): void {
    this.view.setUint32(this.room(4), value >>> 0, true);
  }

  u64(value: number): void {
    const at = this.room(8);
    this.view.setUint32(at, value % 0x1_0000_0000, true);
    this.view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
  }

  raw(bytes: Uint8Array): void {
    this.bytes.set(bytes, this.room(bytes.length));
  }

  align(): void {
    const at = this.room(-this.end & 3);
    this.bytes.fill(0, at, this.end);
  }

  /** An attribute whose content `body` writes. */
  attribute(type: number, body: () => void): void {
    const at = this.room(4);
    body();
    this.view.setUint16(at, this.end - at, true);
    this.view.setUint16(at + 2, type, true);
    this.align();
  }

  attributeU8(type: number, value: number): void {
    this.attribute(type, () => this.u8(value));
  }

  attributeU16(type: number, value: number): void {
    this.attribute(type, () => this.u16(value));
  }

  attributeU32(type: number, value: number): void {
    this.attribute(type, () => this.u32(value));
  }

  attributeBytes(type: number, bytes: Uint8Array): void {
    this.attribute(type, () => this.raw(bytes));
  }

  attributeString(type: number, text: string): void {
    this.attribute(type, () => {
      for (let i = 0; i < text.length; i++) this.u8(text.charCodeAt(i));
      this.u8(0);
    });
  }

  /** The message, with its length filled in. */
  finish(): Uint8Array {
    this.view.setUint32(0, this.end, true);
    return this.bytes.slice(0, this.end);
  }
}

/** What a kernel says of a device: RTM_NEWLINK or RTM_DELLINK, attributes in Linux 6.18's order. */
export function encodeLink(device: NetDevice, options: LinkMessageOptions): Uint8Array {
  const w = new Writer();
  header(w, options.type, options.flags ?? 0, options.seq ?? 0, options.pid ?? 0);
  w.u8(0);
  w.u8(0);
  w.u16(device.type);
  w.u32(device.ifindex);
  w.u32(device.displayFlags);
  w.u32(options.change ?? 0);

  w.attributeString(IFLA.IFNAME, device.name);
  w.attributeU32(IFLA.TXQLEN, device.txQueueLen);
  w.attributeU8(IFLA.OPERSTATE, shownOperstate(device));
  w.attributeU8(IFLA.LINKMODE, device.linkMode);
  w.attributeU8(IFLA.NETNS_IMMUTABLE, device.netnsLocal ? 1 : 0);
  w.attributeU32(IFLA.MTU, device.mtu);
  w.attributeU32(IFLA.MIN_MTU, device.minMtu);
  w.attributeU32(IFLA.MAX_MTU, device.maxMtu);
  w.attributeU32(IFLA.GROUP, device.group);
  w.attributeU32(IFLA.PROMISCUITY, device.promiscuity);
  w.attributeU32(IFLA.ALLMULTI, device.allmulti);
  w.attributeU32(IFLA.NUM_TX_QUEUES, device.numTxQueues);
  w.attributeU32(IFLA.GSO_MAX_SEGS, device.gsoMaxSegs);
  w.attributeU32(IFLA.GSO_MAX_SIZE, device.gsoMaxSize);
  w.attributeU32(IFLA.GRO_MAX_SIZE, device.groMaxSize);
  w.attributeU32(IFLA.GSO_IPV4_MAX_SIZE, device.gsoMaxSize);
  w.attributeU32(IFLA.GRO_IPV4_MAX_SIZE, device.groMaxSize);
  w.attributeU32(IFLA.TSO_MAX_SIZE, device.tsoMaxSize);
  w.attributeU32(IFLA.TSO_MAX_SEGS, device.gsoMaxSegs);
  w.attributeU32(IFLA.MAX_PACING_OFFLOAD_HORIZON, 0);
  w.attributeU32(IFLA.NUM_RX_QUEUES, device.numRxQueues);
  if (device.master !== null) w.attributeU32(IFLA.MASTER, device.master.ifindex);
  w.attributeU8(IFLA.CARRIER, device.carrierOk ? 1 : 0);
  if (device.ifalias !== '') w.attributeString(IFLA.IFALIAS, device.ifalias);
  w.attributeU32(IFLA.CARRIER_CHANGES, device.carrierUpCount + device.carrierDownCount);
  w.attributeU32(IFLA.CARRIER_UP_COUNT, device.carrierUpCount);
  w.attributeU32(IFLA.CARRIER_DOWN_COUNT, device.carrierDownCount);
  w.attributeU16(IFLA.HEADROOM, 0);
  w.attributeU16(IFLA.TAILROOM, 0);
  w.attributeU8(IFLA.PROTO_DOWN, device.protoDown ? 1 : 0);
  if (options.event !== undefined && options.event !== IFLA_EVENT_NONE) {
    w.attributeU32(IFLA.EVENT, options.event);
  }
  if (device.addrLen > 0) {
    w.attributeBytes(IFLA.ADDRESS, device.address.subarray(0, device.addrLen));
    w.attributeBytes(IFLA.BROADCAST, device.broadcast.subarray(0, device.addrLen));
  }
  device.ops.getStats?.(device);
  w.attribute(IFLA.STATS64, () => {
    for (const [, field] of LINK_STATS_FIELDS) w.u64(device.stats[field]);
  });
  w.attribute(IFLA.STATS, () => {
    for (const [, field] of LINK_STATS_FIELDS.slice(0, STATS_FIELDS)) w.u32(device.stats[field] % 2 ** 32);
  });
  xdp(w, device);
  if (device.permAddress !== null && device.addrLen > 0) {
    w.attributeBytes(IFLA.PERM_ADDRESS, device.permAddress);
  }
  linkInfo(w, device);
  if (device.ifindex !== device.iflink) w.attributeU32(IFLA.LINK, device.iflink);
  w.attributeString(IFLA.QDISC, device.qdiscKind);
  w.attribute(IFLA.AF_SPEC, () => {
    w.attribute(AF_INET6, () => w.attributeU8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE));
  });
  w.attributeBytes(IFLA.MAP, new Uint8Array(32));
  if (device.parentName !== null) w.attributeString(IFLA.PARENT_DEV_NAME, device.parentName);
  if (device.parentBus !== null) w.attributeString(IFLA.PARENT_DEV_BUS_NAME, device.parentBus);
  w.attribute(IFLA.DEVLINK_PORT | NLA_F_NESTED, () => {});
  w.attribute(IFLA.DPLL_PIN | NLA_F_NESTED, () => {});
  return w.finish();
}

function xdp(w: Writer, { xdp: attached }: NetDevice): void {
  w.attribute(IFLA.XDP, () => {
    if (attached !== null) w.attributeU32(IFLA_XDP_DRV_PROG_ID, attached.id);
    w.attributeU8(IFLA_XDP_ATTACHED, attached === null ? XDP_ATTACHED_NONE : XDP_ATTACHED_DRV);
    if (attached !== null) w.attributeU32(IFLA_XDP_PROG_ID, attached.id);
  });
}

function linkInfo(w: Writer, device: NetDevice): void {
  const slaveKind = device.master?.kind ?? null;
  if (device.kind === null && slaveKind === null) return;
  w.attribute(IFLA.LINKINFO, () => {
    if (device.kind !== null) w.attributeString(IFLA_INFO_KIND, device.kind);
    if (slaveKind !== null) w.attributeString(IFLA_INFO_SLAVE_KIND, slaveKind);
  });
}

function header(w: Writer, type: number, flags: number, seq: number, pid: number): void {
  w.u32(0);
  w.u16(type);
  w.u16(flags);
  w.u32(seq);
  w.u32(pid);
}

/** One netlink message as read. */
export interface NetlinkMessage {
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  readonly pid: number;
  /** What is behind the header. */
  readonly payload: Uint8Array;
}

/** A link message's content. */
export interface LinkMessage {
  readonly family: number;
  readonly type: number;
  readonly ifindex: number;
  readonly flags: number;
  readonly change: number;
  /** By attribute number (flags of the type taken off), in their order. */
  readonly attributes: ReadonlyMap<number, Uint8Array>;
}

/** Splits bytes into messages. @throws NetError EBADMSG for a length that does not fit */
export function decodeMessages(bytes: Uint8Array): NetlinkMessage[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const messages: NetlinkMessage[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = at + HEADER_SIZE <= bytes.length ? view.getUint32(at, true) : 0;
    if (length < HEADER_SIZE || at + length > bytes.length) {
      throw new NetError(
        'EBADMSG',
        `a netlink message at byte ${at} does not fit into ${bytes.length} bytes`,
      );
    }
    messages.push({
      type: view.getUint16(at + 4, true),
      flags: view.getUint16(at + 6, true),
      seq: view.getUint32(at + 8, true),
      pid: view.getUint32(at + 12, true),
      payload: bytes.subarray(at + HEADER_SIZE, at + length),
    });
    at += (length + 3) & ~3;
  }
  return messages;
}

/** Reads struct ifinfomsg and its attributes. @throws NetError EBADMSG */
export function decodeLink(payload: Uint8Array): LinkMessage {
  if (payload.length < IFINFO_SIZE) {
    throw new NetError('EBADMSG', `a link message has at least ${IFINFO_SIZE} bytes, not ${payload.length}`);
  }
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  return {
    family: payload[0],
    type: view.getUint16(2, true),
    ifindex: view.getInt32(4, true),
    flags: view.getUint32(8, true),
    change: view.getUint32(12, true),
    attributes: decodeAttributes(payload.subarray(IFINFO_SIZE)),
  };
}

/** Attributes by number, in their order. @throws NetError EBADMSG for a length that does not fit */
export function decodeAttributes(bytes: Uint8Array): Map<number, Uint8Array> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const attributes = new Map<number, Uint8Array>();
  for (let at = 0; at + 4 <= bytes.length; ) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > bytes.length) {
      throw new NetError('EBADMSG', `an attribute at byte ${at} does not fit into ${bytes.length} bytes`);
    }
    attributes.set(view.getUint16(at + 2, true) & NLA_TYPE_MASK, bytes.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  return attributes;
}

/** A zero-terminated (or whole) attribute as text. */
export function attributeText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? bytes.length : end));
}

/** Asks for one link by number or name, or for all (RTM_GETLINK). */
export function encodeGetLink(of: number | string | 'all', seq: number, pid = 0): Uint8Array {
  const w = new Writer();
  header(w, RTM_GETLINK, of === 'all' ? NLM_F_REQUEST | NLM_F_DUMP : NLM_F_REQUEST, seq, pid);
  w.u32(0);
  w.u32(typeof of === 'number' ? of : 0);
  w.u32(0);
  w.u32(0);
  if (typeof of === 'string' && of !== 'all') w.attributeString(IFLA.IFNAME, of);
  return w.finish();
}

function encodeError(errno: number, request: NetlinkMessage, port: number): Uint8Array {
  const w = new Writer();
  header(w, NLMSG_ERROR, 0, request.seq, port);
  w.u32(-errno);
  const quoted = errno === 0 ? 0 : request.payload.length;
  w.u32(HEADER_SIZE + request.payload.length);
  w.u16(request.type);
  w.u16(request.flags);
  w.u32(request.seq);
  w.u32(request.pid);
  if (quoted > 0) w.raw(request.payload);
  return w.finish();
}

function encodeDone(request: NetlinkMessage, port: number): Uint8Array {
  const w = new Writer();
  header(w, NLMSG_DONE, NLM_F_MULTI, request.seq, port);
  w.u32(0);
  return w.finish();
}

/**
 * What a kernel answers to the messages in a request: RTM_GETLINK by number, by name, or for all. An
 * unknown device is answered with ENODEV, another type with EOPNOTSUPP.
 * @param port the netlink port of who asks
 * @returns the messages of the answer, in order
 */
export function answerRequest(net: Net, bytes: Uint8Array, port = 0): Uint8Array[] {
  const answers: Uint8Array[] = [];
  for (const request of decodeMessages(bytes)) {
    if ((request.flags & NLM_F_REQUEST) === 0) continue;
    try {
      answers.push(...answerOne(net, request, port));
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      answers.push(encodeError(error.errno, request, port));
    }
  }
  return answers;
}

function answerOne(net: Net, request: NetlinkMessage, pid: number): Uint8Array[] {
  if (request.type !== RTM_GETLINK) return [encodeError(ERRNO.EOPNOTSUPP, request, pid)];
  const { seq } = request;
  if ((request.flags & NLM_F_DUMP) === NLM_F_DUMP) {
    const all = [...net.devices].map(device =>
      encodeLink(device, { type: RTM_NEWLINK, flags: NLM_F_MULTI, seq, pid }),
    );
    return [...all, encodeDone(request, pid)];
  }
  const asked = decodeLink(request.payload);
  const name = asked.attributes.get(IFLA.IFNAME);
  if (asked.ifindex <= 0 && name === undefined) {
    throw new NetError('EINVAL', 'a request for one link names it by number or name');
  }
  const device =
    asked.ifindex > 0 ? net.byIndex(asked.ifindex) : net.byName(attributeText(name ?? new Uint8Array(0)));
  if (device === undefined) throw new NetError('ENODEV', 'there is no such device');
  const answer = encodeLink(device, { type: RTM_NEWLINK, seq, pid });
  return (request.flags & NLM_F_ACK) === 0 ? [answer] : [answer, encodeError(0, request, pid)];
}
