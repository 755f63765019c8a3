import { NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED } from '../abi/netif.js';
import type { FrontRing } from '../abi/ring.js';
import { takesPacket } from '../kernel/peer-offloads.js';
import type { NetDevice } from '../net/device.js';
import { ETH_HLEN } from '../net/flags.js';
import type { Napi } from '../net/napi.js';
import { CHECKSUM_UNNECESSARY, FRAGMENT_LOCAL, GSO_NONE, type Packet } from '../net/packet.js';
import { PagePool } from '../net/page-pool.js';
import { XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, XdpBuffs, type XdpProgram } from '../net/xdp.js';
import { setupChecksum, setupGso } from '../net/xmit.js';
import { PAGE_SHIFT, PAGE_SIZE } from '../platform/memory.js';
import type { Timer } from '../platform/scheduler.js';
import { GrantedPool } from './granted-pool.js';
import type { QueueDevice, QueueStats } from './queue.js';
import type { RingCode, Shorts, SlotBooks } from './ring-code.js';
import { RX_SLOTS_MAX, RxPacket, readRxPacket } from './rx-slots.js';

/** Requests that are posted to begin with, and at least. */
const RX_TARGET_MIN = 32;
/** Headers that the linear part of a received packet has, if the packet has that many bytes. */
const RX_PULL_BYTES = 128;
const RX_REFILL_RETRY_MS = 100;
/** Flags that say something of the checksum. */
const CHECKSUM_FLAGS = NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED;

/** The frontend's end of an rx ring: pages that are posted, and the packets that the backend puts into them. */
export class RxRing {
  /** Pages of received packets. */
  private readonly pool: PagePool;
  /**
   * Where a grant is tied to its page, or the backend keeps pages mapped: those that are posted. They stay the backend's to
   * write, so what was received is copied out of them before anybody looks at it. Null where a page's grant ends when it
   * is answered.
   */
  private granted: GrantedPool | null;
  /** Pages that the backend is being asked to map. */
  private offered: GrantedPool | null = null;
  /** Pages to post: those of `granted` or of `pool`. */
  private pages: PagePool;
  /** By slot of the ring: 1 when the page posted there is one of `granted`. */
  private readonly stays: Uint8Array;
  private target = RX_TARGET_MIN;
  /** What the device's program sees: packets of one slot, and one of another kind. */
  private shown: XdpBuffs | null = null;
  private shownAlone: XdpBuffs | null = null;
  private readonly response = new RxPacket();
  private readonly freeSpare = (index: number): void => this.pool.free(index);
  private refillTimer: Timer | null = null;
  private stopped = false;

  /**
   * @param code the loops over slots in WebAssembly, for pages whose grants end; null where the ring lies elsewhere
   * @param notify hears of requests that were published, and whether the backend wanted to be told
   * @param onBroken the backend broke the protocol
   */
  constructor(
    private readonly device: QueueDevice,
    readonly ring: FrontRing,
    private readonly napi: Napi,
    private readonly books: SlotBooks,
    private code: RingCode | null,
    private readonly stats: QueueStats,
    private readonly notify: (wanted: boolean) => void,
    private readonly onBroken: (reason: string) => void,
  ) {
    const { platform, reclaimer, backendId } = device;
    this.pool = new PagePool(platform.memory, 2 * ring.size);
    this.granted = platform.grants.regrantable
      ? null
      : new GrantedPool(platform, reclaimer, backendId, ring.size, false);
    this.pages = this.granted?.pages ?? this.pool;
    this.stays = new Uint8Array(ring.size);
  }

  /**
   * Makes and grants pages for the whole ring, which the backend is to be asked to map: `pagesMapped` tells what it said.
   * @returns their references; none when the ring is stopped @throws ENOSPC, ENOMEM; nothing stays behind then
   */
  offerPages(): readonly number[] {
    if (this.stopped) return [];
    const { platform, reclaimer, backendId } = this.device;
    const pool = this.granted ?? new GrantedPool(platform, reclaimer, backendId, this.ring.size, false);
    this.offered = pool;
    try {
      return pool.grantAll();
    } catch (error) {
      this.pagesMapped(false);
      throw error;
    }
  }

  /** Posts the pages that were offered from now on, or takes them back. What is posted already is received as before. */
  pagesMapped(mapped: boolean): void {
    const { offered } = this;
    this.offered = null;
    if (offered === null || offered === this.granted) return;
    if (!mapped) {
      offered.retire();
      return;
    }
    this.granted = offered;
    this.pages = offered.pages;
    this.code = null;
  }

  /** From now on nothing is written or read. */
  stop(): void {
    this.stopped = true;
  }

  /**
   * After `stop`: gives back pages that the backend still has mapped as soon as it does not, those in packets on their way up as
   * soon as those are released.
   */
  destroy(): void {
    const { platform, reclaimer } = this.device;
    if (this.refillTimer !== null) platform.scheduler.cancel(this.refillTimer);
    this.pagesMapped(false);
    const { posted, grefs } = this.books;
    for (let slot = 0; slot < posted.length; slot++) {
      const index = posted[slot];
      const stays = index >= 0 && this.stays[slot] === 1;
      if (stays) this.pages.free(index);
      if (!platform.grants.regrantable) continue;
      if (index < 0 || stays) platform.grants.free(grefs[slot]);
      else reclaimer.end(grefs[slot], this.pool.pages[index]);
    }
    this.granted?.retire();
    this.pool.retire(page => platform.memory.freePage(page));
  }

  /** Takes up to `budget` packets. @returns how many */
  receive(budget: number): number {
    const { ring } = this;
    const rspProd = ring.rspProd();
    if (ring.responseOverflow(rspProd)) {
      this.onBroken(`rx rsp_prod ${rspProd >>> 0} is beyond req_prod ${ring.reqProdPvt >>> 0}`);
      return 0;
    }
    let work = 0;
    while (work < budget && ring.rspCons !== rspProd && !this.stopped) {
      if (this.code !== null) work += this.receiveShort(this.code, rspProd, budget - work);
      if (work === budget || ring.rspCons === rspProd || this.stopped) break;
      work++;
      if (this.code === null || this.oneSlot || !this.takeLong(this.code, rspProd)) this.takeAny(rspProd);
    }
    if (work > 0) this.aim((ring.reqProdPvt - rspProd) | 0);
    return work;
  }

  /**
   * Posts more when few requests were left, or less than a packet may take, and slowly fewer when most were: pages that
   * are filled one after the other, each when all others have been, are out of the processor's cache.
   * @param left requests that the backend has not answered
   */
  private aim(left: number): void {
    const { target } = this;
    let next = target;
    if (left === 0) next = 2 * target;
    else if (left < Math.max(target >>> 2, RX_SLOTS_MAX)) next = target + (target >>> 2);
    else if (left > target - (target >>> 2)) next = target - 1;
    this.target = Math.min(Math.max(next, RX_TARGET_MIN), this.ring.size);
  }

  /** Hands on a packet whose responses said that of it; the program, if there is one, sees it alone. */
  private give(packet: Packet, flags: number, gsoType: number, gsoSize: number): void {
    const { stats, xdp } = this.device.dev;
    const buffs = xdp === null ? null : this.showOne(packet, xdp.program);
    const dropped = buffs?.verdict[0] === XDP_DROP;
    if (!dropped && !this.takeGso(packet, flags, gsoType, gsoSize)) {
      this.refuse(packet);
      return;
    }
    stats.rxPackets++;
    stats.rxBytes += packet.length;
    if (buffs === null) this.napi.receive(packet);
    else this.follow(packet, buffs, 0);
  }

  private showOne(packet: Packet, program: XdpProgram): XdpBuffs {
    this.shownAlone ??= new XdpBuffs(this.device.dev as NetDevice, new Int32Array(1), new Int32Array(1));
    const buffs = this.shownAlone;
    buffs.beginPacket(packet);
    try {
      program(buffs);
    } catch (error) {
      this.stats.xdpAborted++;
      packet.release();
      throw error;
    }
    buffs.endPacket(packet);
    return buffs;
  }

  /** Takes packets of one slot, up to the first of another kind. @returns how many */
  private receiveShort(code: RingCode, rspProd: number, limit: number): number {
    const count = code.receive(this.ring, rspProd, limit);
    if (count === 0) return 0;
    const { xdp } = this.device.dev;
    if (xdp === null) this.giveShort(code.shorts, count, null);
    else this.showShort(code.shorts, count, xdp.program);
    return count;
  }

  /** @param buffs what the program said of them, if there is one */
  private giveShort({ index, data, bytes, flags }: Shorts, count: number, buffs: XdpBuffs | null): void {
    const { pool, device, napi } = this;
    const { packets } = device.net;
    const { stats } = device.dev;
    let sum = 0;
    let next = 0;
    try {
      while (next < count && !this.stopped) {
        const at = next++;
        const packet = packets.tryGet();
        if (packet === null) {
          stats.rxErrors++;
          pool.free(index[at]);
          continue;
        }
        const length = bytes[at];
        packet.pool = pool;
        packet.linearPoolIndex = index[at];
        packet.data = data[at];
        packet.linear = length;
        packet.length = length;
        if ((flags[at] & CHECKSUM_FLAGS) !== 0 && !this.takeChecksum(packet, flags[at])) {
          this.refuse(packet);
          continue;
        }
        stats.rxPackets++;
        sum += length;
        if (buffs === null) napi.receive(packet);
        else this.follow(packet, buffs, at);
      }
    } finally {
      stats.rxBytes += sum;
      // Whoever received one has stopped us, or thrown: nobody else knows of these pages.
      for (; next < count; next++) pool.free(index[next]);
    }
  }

  /** Shows packets of one slot to the program; packets are made only of those that it does not drop. */
  private showShort(shorts: Shorts, count: number, program: XdpProgram): void {
    const { device, stats, pool } = this;
    this.shown ??= new XdpBuffs(device.dev as NetDevice, shorts.data, shorts.bytes);
    const buffs = this.shown;
    buffs.begin(count);
    try {
      program(buffs);
    } catch (error) {
      stats.xdpAborted += count;
      for (let at = 0; at < count; at++) pool.free(shorts.index[at]);
      throw error;
    }
    const kept = this.dropShort(shorts, count, buffs);
    if (kept > 0) this.giveShort(shorts, kept, buffs);
  }

  /** @returns how many are left, in front */
  private dropShort({ index, bytes, flags }: Shorts, count: number, buffs: XdpBuffs): number {
    const { pool } = this;
    const { verdict } = buffs;
    let kept = 0;
    let sum = 0;
    for (let at = 0; at < count; at++) {
      if (verdict[at] === XDP_DROP) {
        pool.free(index[at]);
        sum += bytes[at];
        continue;
      }
      index[kept] = index[at];
      flags[kept] = flags[at];
      buffs.move(at, kept++);
    }
    this.stats.xdpDrops += count - kept;
    const { stats } = this.device.dev;
    stats.rxPackets += count - kept;
    stats.rxBytes += sum;
    return kept;
  }

  /** Does with a packet what the program said of it. */
  private follow(packet: Packet, buffs: XdpBuffs, at: number): void {
    const { stats, device } = this;
    const verdict = buffs.verdict[at];
    const target = verdict === XDP_TX ? (device.dev as NetDevice) : buffs.target(at);
    if (verdict === XDP_PASS) this.napi.receive(packet);
    else if ((verdict === XDP_TX || verdict === XDP_REDIRECT) && target !== null) {
      if (verdict === XDP_TX) stats.xdpTx++;
      else stats.xdpRedirects++;
      target.xmit(packet, true);
    } else {
      if (verdict === XDP_DROP) stats.xdpDrops++;
      else stats.xdpAborted++;
      packet.release();
    }
  }

  /** Takes a packet of several slots, if it is usual. @returns whether it did */
  private takeLong(code: RingCode, rspProd: number): boolean {
    const packet = this.device.net.packets.tryGet();
    if (packet === null) return false;
    if (!code.receiveLong(this.ring, rspProd, packet, this.pool, this.freeSpare)) {
      packet.release();
      return false;
    }
    this.give(packet, code.flags, code.gsoType, code.gsoSize);
    return true;
  }

  private refuse(packet: Packet): void {
    this.device.dev.stats.rxErrors++;
    packet.release();
  }

  /** Takes any packet, unless the backend turns out to be broken. */
  private takeAny(rspProd: number): void {
    const { ring, response } = this;
    const available = (rspProd - ring.rspCons) | 0;
    readRxPacket(ring, ring.rspCons, available, response, this.device.gsoPrefix);
    if (!this.revoke(response.consumed)) return;
    const sound = response.reason === '' && (!this.oneSlot || response.slots === 1);
    const packet = sound ? this.build() : null;
    this.recycle(ring.rspCons, response.consumed);
    ring.rspCons = (ring.rspCons + response.consumed) | 0;
    const { flags, infos } = response;
    if (packet === null) this.device.dev.stats.rxErrors++;
    else this.give(packet, flags, infos.gsoType, infos.gsoSize);
  }

  /** Ends the grants of the next slots, but for those that stay: only then are their pages safe from the backend. */
  private revoke(count: number): boolean {
    const { ring } = this;
    const { grants } = this.device.platform;
    for (let i = 0; i < count; i++) {
      const slot = (ring.rspCons + i) & (ring.size - 1);
      if (this.stays[slot] === 1) continue;
      const gref = this.books.grefs[slot];
      if (grants.end(gref)) continue;
      this.onBroken(`the backend answered rx request ${slot} and still uses its grant ${gref}`);
      return false;
    }
    return true;
  }

  /** Makes a packet of the pages of `response`; those that it takes are posted no longer. */
  private build(): Packet | null {
    const { response, pool } = this;
    if (response.size < ETH_HLEN) return null;
    const packet = this.device.net.packets.tryGet();
    if (packet === null) return null;
    packet.pool = pool;
    const inPlace = response.bytes[0] >= Math.min(response.size, RX_PULL_BYTES);
    for (let i = 0; i < response.slots; i++) {
      const bytes = response.bytes[i];
      if (bytes === 0) continue;
      const slot = response.index[i] & (this.ring.size - 1);
      const index = this.takePage(slot, response.offset[i], bytes);
      if (index < 0) {
        packet.release();
        return null;
      }
      const page = pool.pages[index];
      if (i === 0 && inPlace) {
        packet.linearPoolIndex = index;
        packet.data = (page << PAGE_SHIFT) + response.offset[0];
        packet.linear = bytes;
        packet.length = bytes;
      } else packet.addFragment(FRAGMENT_LOCAL, page, response.offset[i], bytes, index);
    }
    packet.hashType = response.infos.hashType;
    packet.hash = response.infos.hash;
    if (this.pull(packet)) return packet;
    packet.release();
    return null;
  }

  /** The index in `pool` of a page with what the backend put into the one posted at `slot`; -1 without one left. */
  private takePage(slot: number, offset: number, bytes: number): number {
    const { posted } = this.books;
    const taken = posted[slot];
    if (this.stays[slot] === 0) {
      posted[slot] = -1;
      return taken;
    }
    const index = this.pool.alloc();
    if (index < 0) return -1;
    const from = (this.pages.pages[taken] << PAGE_SHIFT) + offset;
    const to = (this.pool.pages[index] << PAGE_SHIFT) + offset;
    this.device.platform.memory.memory.copy(to, from, bytes);
    return index;
  }

  private pull(packet: Packet): boolean {
    return this.device.net.materialiser.pull(packet, Math.min(packet.length, RX_PULL_BYTES));
  }

  /** The backend was told that packets of several slots are not taken. */
  private get oneSlot(): boolean {
    return this.device.taken?.sg === false;
  }

  /** @returns false when the packet claims an offload that its headers do not allow, or that was not offered */
  private takeGso(packet: Packet, flags: number, gsoType: number, gsoSize: number): boolean {
    if (gsoType === GSO_NONE) return this.takeChecksum(packet, flags);
    const blank = (flags & NETRXF_CSUM_BLANK) !== 0;
    if (!blank) this.stats.rxGsoChecksumFixup++;
    const sound = setupGso(packet, gsoType, gsoSize, !blank, this.device.net.materialiser);
    return sound && takesPacket(this.device.taken, packet);
  }

  /** @returns false when the packet has no checksum where one is said to be blank, or blank ones were not offered to be taken */
  private takeChecksum(packet: Packet, flags: number): boolean {
    if ((flags & NETRXF_CSUM_BLANK) !== 0) {
      const sound = setupChecksum(packet, false, this.device.net.materialiser);
      return sound && takesPacket(this.device.taken, packet);
    }
    if ((flags & NETRXF_DATA_VALIDATED) !== 0) packet.checksum = CHECKSUM_UNNECESSARY;
    return true;
  }

  /** Gives the pages back that no packet took. */
  private recycle(start: number, count: number): void {
    const { posted } = this.books;
    for (let i = 0; i < count; i++) {
      const slot = (start + i) & (this.ring.size - 1);
      const pages = this.stays[slot] === 1 ? this.pages : this.pool;
      if (posted[slot] >= 0) pages.free(posted[slot]);
      posted[slot] = -1;
    }
  }

  /** Posts pages up to the target. */
  refill(): void {
    if (this.stopped) return;
    const { ring } = this;
    const until = (ring.rspCons + this.target) | 0;
    const before = ring.reqProdPvt;
    if (this.code !== null) this.code.post(ring, this.pool, until, !this.device.trusted);
    else this.postEach(until);
    if (ring.reqProdPvt !== before) this.notify(ring.pushRequests());
    // Without a page now and without requests outstanding, no event would ever come to try again.
    if (((ring.reqProdPvt - ring.rspCons) | 0) < RX_SLOTS_MAX) this.refillLater();
  }

  private postEach(until: number): void {
    const { ring } = this;
    const { i32 } = ring.memory;
    const { posted } = this.books;
    while (((until - ring.reqProdPvt) | 0) > 0) {
      const index = this.pages.alloc();
      if (index < 0) break;
      const slot = ring.reqProdPvt & (ring.size - 1);
      const gref = this.grantRx(slot, index);
      if (gref === 0) break;
      posted[slot] = index;
      this.stays[slot] = this.granted === null ? 0 : 1;
      const at = ring.slot(ring.reqProdPvt) >>> 2;
      i32[at] = slot;
      i32[at + 1] = gref;
      ring.reqProdPvt = (ring.reqProdPvt + 1) | 0;
    }
  }

  /** Lets the backend write to a page at `slot`. @returns its reference; 0, with the page given back, when there is none left */
  private grantRx(slot: number, index: number): number {
    const { platform, backendId } = this.device;
    const page = this.pages.pages[index];
    // Whoever had the page before may have written to it.
    if (!this.device.trusted) platform.memory.memory.zero(page << PAGE_SHIFT, PAGE_SIZE);
    if (this.granted === null) {
      const own = this.books.grefs[slot];
      platform.grants.grant(own, backendId, page, false);
      return own;
    }
    const gref = this.granted.tryGrefOf(index);
    if (gref === 0) this.pages.free(index);
    return gref;
  }

  private refillLater(): void {
    this.refillTimer ??= this.device.platform.scheduler.after(RX_REFILL_RETRY_MS, () => {
      this.refillTimer = null;
      this.refill();
    });
  }
}
