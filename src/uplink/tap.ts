import { accessSync, constants } from 'node:fs';
import { nameProblem } from '../net/names.js';
import {
  CHECKSUM_PARTIAL,
  CHECKSUM_UNNECESSARY,
  FRAGMENT_LOCAL,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  MAX_FRAGMENTS,
  type Packet,
  type PacketPool,
} from '../net/packet.js';
import type { PagePool } from '../net/page-pool.js';
import {
  addressOf,
  CStruct,
  checked,
  errno,
  type Libc,
  libc,
  O_CLOEXEC,
  O_NONBLOCK,
  O_RDWR,
} from '../platform/linux/libc.js';
import { type Memory, PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { DomainMemory } from '../platform/platform.js';
import { UplinkError } from './error.js';
import { POLL_STARVED } from './poller.js';
import { ReceiveSteering } from './receive-steering.js';

export const TUN_DEVICE = '/dev/net/tun';

/** linux/if_tun.h */
const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const TUNSETCARRIER = 0x400454e2;
const TUNGETIFF = 0x800454d2;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
export const TUN_F_CSUM = 0x01;
export const TUN_F_TSO4 = 0x02;
export const TUN_F_TSO6 = 0x04;
export const TUN_F_TSO_ECN = 0x08;
/** asm-generic/errno.h: what requests get on a file whose interface is gone. */
const EBADFD = 77;
/** linux/sockios.h, linux/if_arp.h */
const SIOCSIFHWADDR = 0x8924;
const ARPHRD_ETHER = 1;
/** struct ifreq */
const IFREQ_SIZE = 40;
const IFNAMSIZ = 16;

/** struct virtio_net_hdr (linux/virtio_net.h): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset. */
const VNET_HDR_SIZE = 10;
const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
const VIRTIO_NET_HDR_F_DATA_VALID = 2;
const VIRTIO_NET_HDR_GSO_NONE = 0;
const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
const VIRTIO_NET_HDR_GSO_ECN = 0x80;

const ETH_HLEN = 14;
const TCP_HLEN = 20;
/** Offset of the flags in a TCP header, and the flag that makes a segmented packet an ECN one. */
const TCP_FLAGS = 13;
const TCP_DATA_OFFSET = 12;
const TCP_CWR = 0x80;
/** The longest IP packet, behind an Ethernet header with two VLAN tags. */
const FRAME_MAX = 65535 + ETH_HLEN + 8;
/** Pages that hold any frame. */
const READ_PAGES = Math.ceil(FRAME_MAX / PAGE_SIZE);

/** Layout of a TapIo's page: the iovecs to read with, those to write with, and the two headers. */
const IOVEC_SIZE = 16;
const READ_IOVECS = 0;
const WRITE_IOVECS = READ_IOVECS + (1 + READ_PAGES) * IOVEC_SIZE;
const READ_HEADER = WRITE_IOVECS + (2 + MAX_FRAGMENTS) * IOVEC_SIZE;
const WRITE_HEADER = READ_HEADER + 16;

/**
 * A Linux TAP device, open and non-blocking; frames have a struct virtio_net_hdr in front. Whoever is root where its
 * interface is may delete that: from then on nothing comes from it, and nothing happens to it.
 */
export class Tap {
  private open = true;

  constructor(
    private readonly c: Libc,
    readonly fd: number,
    /** The name that its interface was made with. */
    readonly name: string,
    /** Where that namespace's sysfs is in a folder sys. */
    private readonly root = '',
  ) {}

  /** The interface's folder in sysfs. */
  get folder(): string {
    return `${this.root}/sys/class/net/${this.name}`;
  }

  /** Sets which unfinished work the kernel may leave to us: TUN_F_* bits. */
  setOffload(bits: number): void {
    this.set(TUNSETOFFLOAD, bits, `the offload bits ${bits}`);
  }

  /** What `ip link` shows as LOWER_UP. */
  setCarrier(up: boolean): void {
    const value = new CStruct(4);
    value.view.setInt32(0, up ? 1 : 0, true);
    this.set(TUNSETCARRIER, value.address, 'the carrier');
  }

  setAddress(mac: Uint8Array): void {
    const ifreq = new CStruct(IFREQ_SIZE);
    ifreq.view.setUint16(IFNAMSIZ, ARPHRD_ETHER, true);
    ifreq.u8.set(mac, IFNAMSIZ + 2);
    this.set(SIOCSIFHWADDR, ifreq.address, 'the MAC address');
  }

  /** What its interface is called now: whoever is root in its namespace may rename it. Null when it was deleted there. */
  get nameNow(): string | null {
    const ifreq = new CStruct(IFREQ_SIZE);
    return this.c.ioctl(this.fd, TUNGETIFF, ifreq.address) < 0 ? null : nameIn(ifreq);
  }

  /** Closes the device; the interface goes away. */
  close(): void {
    if (!this.open) return;
    this.open = false;
    this.c.close(this.fd);
  }

  private set(request: number, argument: number, what: string): void {
    const result = this.c.ioctl(this.fd, request, argument);
    if (result < 0 && errno() !== EBADFD) checked(result, `${this.name}: setting ${what}`);
  }
}

/**
 * Says why no TAP can be had on this machine, or null when one can (a network namespace of one's own is
 * then all it takes; the machine's own namespace also takes CAP_NET_ADMIN).
 */
export function tapObstacle(): string | null {
  if (process.platform !== 'linux') return `TAP devices need Linux, and this is ${process.platform}`;
  try {
    accessSync(TUN_DEVICE, constants.R_OK | constants.W_OK);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return code === 'ENOENT'
      ? `there is no ${TUN_DEVICE}: load the kernel's module with "modprobe tun"`
      : `this user may not open ${TUN_DEVICE} (${code}): run as root, or let root "chmod 0666 ${TUN_DEVICE}"`;
  }
  return null;
}

/** What a message about a missing TAP ends with. */
const WITHOUT = 'Guests of kind "echo" and "module" work without.';

/**
 * Opens a TAP device in this process's network namespace.
 * @param name the interface's name, at most 15 characters; a %d in it becomes the next free number
 * @throws UplinkError when the machine has no TAPs or the user may not make one: the message says what is
 *   missing
 */
export function openTap(name = 'tap%d'): Tap {
  const obstacle = tapObstacle();
  if (obstacle !== null) throw new UplinkError('ENODEV', `no TAP device: ${obstacle}. ${WITHOUT}`);
  const c = libc();
  const fd = c.open(TUN_DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  return adoptTun(checked(fd, `opening ${TUN_DEVICE}`), name);
}

/**
 * Makes a TAP of /dev/net/tun's open file. The interface appears in the network namespace in which the
 * file was opened, which need not be ours. The file is closed when that fails.
 * @param root as of `Tap`
 */
export function adoptTun(fd: number, name: string, root = ''): Tap {
  const c = libc();
  try {
    // In the bytes by which programs call it, which are more than its characters beyond ASCII.
    const bytes = Buffer.from(name);
    const long = bytes.length < IFNAMSIZ ? null : `it has ${bytes.length} bytes and may have ${IFNAMSIZ - 1}`;
    const problem = nameProblem(name) ?? long;
    if (problem !== null) throw new UplinkError('EINVAL', `"${name}" is no interface name: ${problem}`);
    const ifreq = new CStruct(IFREQ_SIZE);
    ifreq.u8.set(bytes);
    ifreq.view.setUint16(IFNAMSIZ, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true);
    if (c.ioctl(fd, TUNSETIFF, ifreq.address) < 0) throw tunError(errno(), name);
    const tap = new Tap(c, fd, nameIn(ifreq), root);
    tap.setOffload(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN);
    return tap;
  } catch (error) {
    c.close(fd);
    throw error;
  }
}

/** The name at the start of a struct ifreq. */
function nameIn({ u8 }: CStruct): string {
  return Buffer.from(u8.slice(0, u8.indexOf(0))).toString();
}

function tunError(number: number, name: string): UplinkError {
  switch (number) {
    case 1:
      return new UplinkError(
        'EPERM',
        `TAP ${name}: making one in this network namespace takes CAP_NET_ADMIN (root). A guest of kind ` +
          `"netns" has a namespace of its own and works without where the kernel allows user namespaces. ${WITHOUT}`,
      );
    case 16:
      return new UplinkError('EBUSY', `TAP ${name}: another program has it open, or it is no TAP`);
    case 22:
      return new UplinkError('EINVAL', `TAP ${name}: an interface of that name exists and is no TAP`);
    default:
      return new UplinkError('EIO', `TAP ${name}: the kernel refused it (errno ${number})`);
  }
}

/** Counts of one TapIo. */
export interface TapStats {
  rxPackets: number;
  rxBytes: number;
  /** Frames that came with a header that contradicts them. */
  rxErrors: number;
  txPackets: number;
  txBytes: number;
  /** Packets that the kernel did not take. */
  txErrors: number;
}

/**
 * Frames out of and into a TAP. A frame is scattered by the kernel straight into pages of a pool, and a
 * packet is written straight from its pages; what the virtio-net header says becomes the packet's checksum
 * and GSO state, and back.
 */
export class TapIo {
  readonly stats: TapStats = { rxPackets: 0, rxBytes: 0, rxErrors: 0, txPackets: 0, txBytes: 0, txErrors: 0 };
  /** The last `readPacket` gave nothing because pages were missing … */
  private starved = false;
  /** … or because the TAP is empty. */
  private empty = false;
  private readonly steering: ReceiveSteering;
  private readonly c: Libc;
  private readonly memory: Memory;
  /** Address in this process of byte 0 of `memory`. */
  private readonly base: number;
  private readonly page: number;
  private readonly at: number;
  private pool: PagePool;
  /** Index in `pool` of the page behind each read iovec, or -1. */
  private readonly readPages = new Int32Array(READ_PAGES).fill(-1);
  /** Read iovecs that have no page. */
  private missing = READ_PAGES;

  /**
   * @param own where the iovecs get a page of their own
   * @param packets gives the packets that are read
   * @param pool gives the pages that frames are read into
   */
  constructor(
    readonly tap: Tap,
    private readonly own: DomainMemory,
    private readonly packets: PacketPool,
    pool: PagePool,
  ) {
    this.c = libc();
    this.steering = new ReceiveSteering(tap.folder);
    this.memory = own.memory;
    this.base = addressOf(this.memory.u8);
    this.page = own.allocPage();
    this.at = this.page << PAGE_SHIFT;
    this.pool = pool;
    this.setIovec(READ_IOVECS, this.at + READ_HEADER, VNET_HDR_SIZE);
    this.setIovec(WRITE_IOVECS, this.at + WRITE_HEADER, VNET_HDR_SIZE);
  }

  /** Reads into pages of another pool from now on. */
  setPool(pool: PagePool): void {
    if (pool === this.pool) return;
    this.dropPages();
    this.pool = pool;
  }

  /** Gives all pages back. The TAP stays open. */
  destroy(): void {
    this.steering.stop();
    this.dropPages();
    this.own.freePage(this.page);
  }

  /**
   * Reads one frame.
   * @returns a packet, which the caller has to release; null when there is none or no pages for one
   */
  readPacket(): Packet | null {
    this.starved = false;
    this.empty = false;
    for (;;) {
      if (this.missing > 0 && !this.refill()) {
        this.starved = true;
        return null;
      }
      const got = this.c.readv(this.tap.fd, this.base + this.at + READ_IOVECS, 1 + READ_PAGES);
      // EAGAIN: empty. Anything else (the interface is down or gone) looks the same to the reader.
      if (got < 0) {
        this.empty = true;
        return null;
      }
      const length = got - VNET_HDR_SIZE;
      if (length < ETH_HLEN || length > FRAME_MAX) {
        this.stats.rxErrors++;
        continue;
      }
      const packet = this.packets.tryGet();
      if (packet === null) {
        // The frame is read already: without memory it is lost, as in a card whose ring is empty.
        this.stats.rxErrors++;
        return null;
      }
      if (!this.readHeader(packet, length)) {
        this.stats.rxErrors++;
        packet.release();
        continue;
      }
      this.fill(packet, length);
      this.stats.rxPackets++;
      this.stats.rxBytes += length;
      return packet;
    }
  }

  /** Ends a poll that has read `count` packets and was asked for `budget`, at `now` ms. @returns what `PollSource.poll` has to */
  endPoll(count: number, budget: number, now: number): number {
    if (count === 0) return this.starved ? POLL_STARVED : 0;
    this.steering.polled(count, now);
    return this.empty ? count : budget;
  }

  /**
   * Writes a packet, all of whose bytes are local; the caller still has to release it.
   * @returns false when the kernel did not take it: it is lost
   */
  writePacket(packet: Packet): boolean {
    this.writeHeader(packet);
    let iovec = WRITE_IOVECS + IOVEC_SIZE;
    this.setIovec(iovec, packet.data, packet.linear);
    const { fragments } = packet;
    for (let i = 0; i < fragments; i++) {
      if (packet.source[i] !== FRAGMENT_LOCAL) {
        throw new Error(`${this.tap.name}: a packet with granted fragments must be materialised first`);
      }
      iovec += IOVEC_SIZE;
      this.setIovec(iovec, (packet.ref[i] << PAGE_SHIFT) + packet.offset[i], packet.size[i]);
    }
    const put = this.c.writev(this.tap.fd, this.base + this.at + WRITE_IOVECS, 2 + fragments);
    if (put < 0) {
      this.stats.txErrors++;
      return false;
    }
    this.stats.txPackets++;
    this.stats.txBytes += packet.length;
    return true;
  }

  /** Writes a struct iovec at an offset of our page. */
  private setIovec(offset: number, address: number, length: number): void {
    const { u32 } = this.memory;
    const word = (this.at + offset) >>> 2;
    const absolute = this.base + address;
    u32[word] = absolute;
    u32[word + 1] = absolute / 0x1_0000_0000;
    u32[word + 2] = length;
    u32[word + 3] = 0;
  }

  private refill(): boolean {
    const { pool, readPages } = this;
    // A frame takes the first ones.
    for (let i = 0; this.missing > 0; i++) {
      if (readPages[i] >= 0) continue;
      const index = pool.alloc();
      if (index < 0) return false;
      readPages[i] = index;
      this.missing--;
      this.setIovec(READ_IOVECS + (1 + i) * IOVEC_SIZE, pool.pages[index] << PAGE_SHIFT, PAGE_SIZE);
    }
    return true;
  }

  private dropPages(): void {
    for (let i = 0; i < READ_PAGES; i++) {
      if (this.readPages[i] >= 0) this.pool.free(this.readPages[i]);
      this.readPages[i] = -1;
    }
    this.missing = READ_PAGES;
  }

  /** Moves the pages that a frame was read into to the packet. */
  private fill(packet: Packet, length: number): void {
    const { pool, readPages } = this;
    packet.pool = pool;
    packet.linearPoolIndex = readPages[0];
    packet.data = pool.pages[readPages[0]] << PAGE_SHIFT;
    packet.linear = Math.min(length, PAGE_SIZE);
    packet.length = packet.linear;
    readPages[0] = -1;
    this.missing++;
    for (let i = 1, left = length - PAGE_SIZE; left > 0; i++, left -= PAGE_SIZE) {
      const index = readPages[i];
      packet.addFragment(FRAGMENT_LOCAL, pool.pages[index], 0, Math.min(left, PAGE_SIZE), index);
      readPages[i] = -1;
      this.missing++;
    }
  }

  /** Takes over what the virtio-net header says. @returns false when it contradicts the frame */
  private readHeader(packet: Packet, length: number): boolean {
    const { u8, u16 } = this.memory;
    const at = this.at + READ_HEADER;
    const flags = u8[at];
    const type = u8[at + 1];
    if ((flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0) {
      const start = u16[(at + 6) >>> 1];
      const offset = u16[(at + 8) >>> 1];
      const linear = Math.min(length, PAGE_SIZE);
      if (start < ETH_HLEN || start + offset + 2 > linear) return false;
      packet.checksum = CHECKSUM_PARTIAL;
      packet.csumStart = start;
      packet.csumOffset = offset;
    } else if ((flags & VIRTIO_NET_HDR_F_DATA_VALID) !== 0) {
      packet.checksum = CHECKSUM_UNNECESSARY;
    }
    if (type === VIRTIO_NET_HDR_GSO_NONE) return true;
    const gsoSize = u16[(at + 4) >>> 1];
    if (gsoSize === 0 || packet.checksum !== CHECKSUM_PARTIAL) return false;
    const kind = type & ~VIRTIO_NET_HDR_GSO_ECN;
    if (kind === VIRTIO_NET_HDR_GSO_TCPV4) packet.gsoType = GSO_TCPV4;
    else if (kind === VIRTIO_NET_HDR_GSO_TCPV6) packet.gsoType = GSO_TCPV6;
    else return false;
    packet.gsoSize = gsoSize;
    return true;
  }

  private writeHeader(packet: Packet): void {
    const { u8, u16 } = this.memory;
    const at = this.at + WRITE_HEADER;
    const half = at >>> 1;
    const partial = packet.checksum === CHECKSUM_PARTIAL;
    u8[at] = partial
      ? VIRTIO_NET_HDR_F_NEEDS_CSUM
      : packet.checksum === CHECKSUM_UNNECESSARY
        ? VIRTIO_NET_HDR_F_DATA_VALID
        : 0;
    u16[half + 3] = partial ? packet.csumStart : 0;
    u16[half + 4] = partial ? packet.csumOffset : 0;
    if (packet.gsoType === GSO_NONE) {
      u8[at + 1] = VIRTIO_NET_HDR_GSO_NONE;
      u16[half + 1] = 0;
      u16[half + 2] = 0;
      return;
    }
    let type = packet.gsoType === GSO_TCPV4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
    let headers = packet.linear;
    const tcp = packet.csumStart;
    if (partial && tcp + TCP_HLEN <= packet.linear) {
      if ((u8[packet.data + tcp + TCP_FLAGS] & TCP_CWR) !== 0) type |= VIRTIO_NET_HDR_GSO_ECN;
      headers = tcp + ((u8[packet.data + tcp + TCP_DATA_OFFSET] >> 4) << 2);
    }
    u8[at + 1] = type;
    u16[half + 1] = Math.min(headers, packet.length);
    u16[half + 2] = packet.gsoSize;
  }
}
