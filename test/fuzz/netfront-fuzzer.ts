import assert from 'node:assert/strict';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  NETRXF_CSUM_BLANK,
  NETRXF_DATA_VALIDATED,
  NETRXF_EXTRA_INFO,
  NETRXF_GSO_PREFIX,
  NETRXF_MORE_DATA,
} from '../../src/abi/index.js';
import { HostileBackend, type RawRing } from '../../src/mock/index.js';
import { NETIF_F_HW_VLAN_CTAG_FILTER } from '../../src/net/features.js';
import {
  GSO_TCPV4,
  type NetDevice,
  type Packet,
  XDP_DROP,
  XDP_PASS,
  XDP_TX,
  type XdpBuffs,
  XdpFrames,
} from '../../src/net/index.js';
import { Control } from '../../src/netfront/control.js';
import { GrantedPool, Queue } from '../../src/netfront/index.js';
import { type GrantMapping, PAGE_SIZE } from '../../src/platform/index.js';
import { buildFrame } from '../net/frames.js';
import { type DataPath, Dom } from '../support/data-path.js';
import { packetFrom, partial } from '../support/packets.js';
import type { Draw } from './random.js';

/** Packets that the guest keeps for a while. */
const KEPT_MAX = 30;

/** Does one evil thing after another to a device, as its backend. */
export class NetfrontFuzzer {
  private readonly dom: Dom;
  private readonly dev: NetDevice;
  private queue!: Queue;
  private granted!: GrantedPool;
  private back!: HostileBackend;
  private ctrl!: RawRing;
  private control!: Control;
  private reasons: string[] = [];
  private controlReasons: string[] = [];
  /** Of the control requests that were sent. */
  private readonly types: number[] = [];
  private readonly kept: Packet[] = [];
  private readonly frames: XdpFrames;
  private readonly mapped: GrantMapping[] = [];
  /** Ids of requests that were not answered yet. */
  private outstanding: number[] = [];

  constructor(
    private readonly path: DataPath,
    private readonly draw: Draw,
  ) {
    this.dom = new Dom(path.hypervisor.createDomain());
    this.dev = this.dom.net.allocEtherdev('eth%d', {
      startXmit: packet => this.queue.startXmit(packet),
      xdpXmit: (_, frames) => this.queue.xdpXmit(frames),
      flush: () => this.queue.flush(),
    }) as NetDevice;
    const { dev } = this;
    dev.mtu = 65535;
    dev.hwFeatures = 0x7fffffff & ~NETIF_F_HW_VLAN_CTAG_FILTER;
    dev.features = dev.hwFeatures;
    dev.rxHandler = packet => {
      this.checkPages(packet);
      if (this.kept.length < KEPT_MAX && draw.oneIn(4)) this.kept.push(packet);
      else packet.release();
    };
    this.dom.net.register(dev);
    dev.open();
    this.frames = new XdpFrames(dev);
    this.connect();
  }

  /** What a guest gets lies in its own pages, inside each, and the backend can reach none of them any more. */
  private checkPages(packet: Packet): void {
    this.checkPage(packet.data, packet.linear);
    for (let i = 0; i < packet.fragments; i++) {
      this.checkPage(packet.ref[i] * PAGE_SIZE + packet.offset[i], packet.size[i]);
    }
  }

  private checkPage(from: number, size: number): void {
    this.checkOwnPage(from, size);
    const page = Math.floor(from / PAGE_SIZE);
    for (const { address } of this.mapped) assert.notEqual(address / PAGE_SIZE, page, 'a mapped page');
  }

  private checkOwnPage(from: number, size: number): void {
    assert.ok((from % PAGE_SIZE) + size <= PAGE_SIZE, `${size} bytes at ${from % PAGE_SIZE}`);
    const page = Math.floor(from / PAGE_SIZE);
    assert.doesNotThrow(() => this.dom.platform.memory.gfn(page), 'a page of somebody else');
  }

  /** An XDP program that changes its frames, and does anything with them. */
  private judge(buffs: XdpBuffs): void {
    const { draw } = this;
    for (let i = 0; i < buffs.count; i++) {
      this.checkPage(buffs.data[i], buffs.bytes[i]);
      if (draw.oneIn(4)) buffs.adjustHead(i, draw.below(512) - 256);
      if (draw.oneIn(4)) buffs.adjustTail(i, draw.below(512) - 256);
      this.checkPage(buffs.data[i], buffs.bytes[i]);
      buffs.memory.u8[buffs.data[i] + draw.below(buffs.bytes[i])] = draw.below(256);
      if (draw.oneIn(8)) buffs.redirect(i, this.dev);
      else buffs.verdict[i] = draw.of([XDP_PASS, XDP_PASS, XDP_DROP, XDP_TX, draw.below(256)]);
    }
  }

  private connect(): void {
    const { dom, dev, path, draw } = this;
    const reasons: string[] = [];
    this.reasons = reasons;
    this.outstanding = [];
    this.granted = new GrantedPool(dom.platform, dom.reclaimer, 0, 512);
    const broken = (reason: string) => void reasons.push(reason);
    const device = {
      ...dom,
      dev,
      backendId: 0,
      trusted: !draw.oneIn(4),
      gsoPrefix: draw.oneIn(2),
      broken,
    };
    this.queue = new Queue(device, 0, !draw.oneIn(3), this.granted);
    dev.txPool = device.trusted ? this.granted.pages : null;
    dev.setXdp(draw.oneIn(2) ? buffs => this.judge(buffs) : null);
    this.back = new HostileBackend(path.dom0.platform, dom.platform.domid, this.queue.publication);
    const controlReasons: string[] = [];
    this.controlReasons = controlReasons;
    const ownDevice = { ...device, broken: (reason: string) => void controlReasons.push(reason) };
    this.control = new Control(ownDevice, 'eth0');
    this.back.attachControl(this.control.ringRef, this.control.port);
    this.ctrl = this.back.ctrl!;
    this.types.length = 0;
    this.queue.start();
    dev.wakeAllQueues();
    if (draw.oneIn(2)) this.offerPages();
  }

  /** The frontend offers pages to receive into; the backend maps some, or all, and answers when it likes. */
  private offerPages(): void {
    const { draw, back, queue } = this;
    for (const gref of queue.offerRxPages()) {
      if (!draw.oneIn(10)) this.mapped.push(back.map(gref, draw.oneIn(10)));
    }
    if (draw.oneIn(2)) queue.rxPagesMapped(!draw.oneIn(8));
  }

  /** Writes to a page that is mapped, now that it was answered or that it was not. */
  private scribblePages(): void {
    const { draw, mapped } = this;
    for (let n = draw.below(20); n > 0 && mapped.length > 0; n--) {
      const { memory, address, readonly } = draw.of(mapped);
      if (!readonly) memory.u8.set(draw.bytes(1 + draw.below(200)), address + draw.below(PAGE_SIZE - 200));
    }
  }

  disconnect(): void {
    this.mapped.length = 0;
    this.back.destroy();
    this.control.destroy();
    this.dev.txPool = null;
    this.queue.destroy();
    this.granted.retire();
    for (const packet of this.kept.splice(0)) packet.release();
    this.frames.release();
    this.dom.reclaimer.retry();
    this.dev.txQueues[0].reset();
    const { net, reclaimer, platform } = this.dom;
    assert.equal(net.packets.used, 0, 'packets of the guest');
    assert.equal(net.pages.used, 0, 'pages of the guest');
    assert.equal(reclaimer.pending, 0, 'grants that the backend holds');
    assert.equal(platform.grants.allocated, 0, 'grants of the guest');
  }

  reconnect(): void {
    this.disconnect();
    this.connect();
  }

  get broken(): boolean {
    return this.reasons.length > 0 || this.controlReasons.length > 0;
  }

  destroy(): void {
    this.disconnect();
    this.path.hypervisor.domain(this.dom.platform.domid)!.destroy();
  }

  attack(): void {
    const { draw, back } = this;
    for (let n = draw.below(4); n > 0; n--) this.send();
    if (draw.oneIn(3)) this.sendFrames();
    if (this.kept.length > 0 && draw.oneIn(2)) this.kept.splice(draw.below(this.kept.length), 1)[0].release();
    if (draw.oneIn(20)) this.queue.rxPagesMapped(!draw.oneIn(8));
    if (draw.oneIn(4)) this.scribblePages();
    switch (draw.below(11)) {
      case 10:
        this.answerControl();
        break;
      case 0: {
        const ring = draw.of([back.tx, back.rx, this.ctrl]);
        ring.scribble(draw.bytes(1 + draw.below(200)), draw.oneIn(4) ? 0 : 64 + draw.below(2000));
        if (draw.oneIn(2)) this.publish();
        break;
      }
      case 1:
        this.moveIndexes();
        break;
      case 2:
        this.holdPages();
        this.deliverSome();
        break;
      case 3:
        this.deliverSome();
        this.answerSome(true);
        this.mutate();
        break;
      case 4:
      case 5:
        this.deliverSome();
        this.mutate();
        break;
      default:
        this.answerSome(false);
        this.deliverSome();
    }
    if (!draw.oneIn(10)) back.kickTx();
    if (!draw.oneIn(10)) back.kickRx();
    if (draw.oneIn(6)) back.kickCtrl();
  }

  /** Asks for something, and answers some of it: with a lie, now and then. */
  private answerControl(): void {
    const { draw, back } = this;
    for (let n = draw.below(4); n > 0; n--) {
      const type = 1 + draw.below(10);
      this.types.push(type);
      this.control.request(type, draw.u32(), draw.u32(), draw.u32()).catch(() => {});
    }
    for (let n = draw.below(4); n > 0 && this.types.length > 0; n--) {
      const id = back.ctrlNext + 1;
      const type = draw.oneIn(20) ? draw.u16() : this.types[back.ctrlNext];
      back.respondCtrl(draw.oneIn(20) ? draw.u16() : id, type ?? 0, draw.u32(), draw.u32());
    }
    this.publish();
  }

  private send(): void {
    const { draw, dev } = this;
    const length = draw.of([0, 100, 1400, 4000, 9000, 30000, 64000]);
    const bytes = buildFrame({ payload: new Uint8Array(length) });
    const linear = draw.of([54, 128, 480]);
    const pool = draw.oneIn(2) && this.granted.pages.available > 20 ? this.granted.pages : undefined;
    const packet = packetFrom(dev, bytes, linear, pool);
    if (draw.oneIn(3)) {
      partial(packet, dev);
      packet.gsoType = GSO_TCPV4;
      packet.gsoSize = 1448;
    }
    dev.xmit(packet);
  }

  private sendFrames(): void {
    const { draw, dev, frames } = this;
    for (let n = draw.below(20); n > 0; n--) {
      const bytes = draw.of([14, 60, 1514, PAGE_SIZE]);
      const at = frames.add(bytes, draw.below(PAGE_SIZE - bytes + 1));
      // The backend may read what was sent to it before for as long as it likes.
      if (at >= 0) this.checkOwnPage(at, bytes);
    }
    dev.xdpXmit(frames);
  }

  private moveIndexes(): void {
    const { draw, back } = this;
    const ring = draw.of([back.tx, back.rx, this.ctrl]);
    const index = draw.of(['reqProd', 'rspProd', 'reqEvent', 'rspEvent'] as const);
    ring[index] = draw.index(ring[index]);
  }

  /** Keeps a page mapped that is to be answered, or lets go of one. */
  private holdPages(): void {
    const { draw, back } = this;
    const old = this.mapped.pop();
    if (old !== undefined) back.unmap(old);
    if (draw.oneIn(2)) return;
    try {
      this.mapped.push(back.map(draw.of([back.rxGref, back.tx.word(draw.below(256), 0)]), draw.oneIn(2)));
    } catch {
      // There is no such grant.
    }
  }

  private answerSome(evil: boolean): void {
    const { draw, back, outstanding } = this;
    outstanding.push(...back.txRequests().map(({ id }) => id));
    for (let n = draw.below(40); n > 0 && outstanding.length > 0; n--) {
      const [id] = outstanding.splice(draw.below(outstanding.length), 1);
      back.respondTx(evil && draw.oneIn(8) ? draw.u16() : id, draw.of([0, 0, 0, -1, -2, 1]));
    }
    this.publish();
  }

  private deliverSome(): void {
    const { draw, back } = this;
    for (let n = draw.below(6); n >= 0; n--) {
      const slots = draw.oneIn(12) ? 1 + draw.below(22) : 1 + draw.below(3);
      if (((back.rx.reqProd - back.rxNext) | 0) < slots + 3) break;
      const extra = draw.oneIn(4);
      if (draw.oneIn(8)) {
        const flags = NETRXF_GSO_PREFIX | (draw.oneIn(8) ? draw.u16() : NETRXF_MORE_DATA);
        back.respondRx({ offset: draw.of([1448, 1, 65535, 0]), flags, status: slots + 1 });
        back.rxNext >>>= 0;
      }
      for (let i = 0; i < slots; i++) {
        let flags = i + 1 < slots ? NETRXF_MORE_DATA : 0;
        if (i === 0) {
          flags |= draw.of([0, NETRXF_DATA_VALIDATED, NETRXF_DATA_VALIDATED | NETRXF_CSUM_BLANK]);
          if (extra) flags |= NETRXF_EXTRA_INFO;
          this.fillHead();
        }
        const status = draw.oneIn(30) ? draw.u16() - 0x8000 : draw.of([0, 14, 60, 128, 1000, 4096]);
        const offset = draw.oneIn(30)
          ? draw.u16()
          : draw.oneIn(4)
            ? draw.below(4097 - Math.abs(status % 4097))
            : 0;
        back.respondRx({ offset, flags, status });
        back.rxNext >>>= 0;
        if (i > 0 || !extra) continue;
        if (draw.oneIn(4)) back.rxExtra(draw.u32() & ~0x100, draw.u32());
        else back.rxExtra(gsoExtraWord0(draw.of([1448, 1, 65535])), gsoExtraWord1(1 + draw.below(2)));
        back.rxNext >>>= 0;
      }
    }
    this.publish();
  }

  /** Puts headers where a packet is going to start. */
  private fillHead(): void {
    const { draw, back } = this;
    if (draw.oneIn(4)) return;
    const bytes = buildFrame({
      version: draw.of([4, 6] as const),
      udp: draw.oneIn(4),
      payload: new Uint8Array(draw.of([0, 6, 74, 946, 4042])),
    });
    try {
      back.fill(back.rxGref, bytes.subarray(0, PAGE_SIZE));
    } catch {
      // The request on the ring is not what the frontend wrote any more.
    }
  }

  private mutate(): void {
    const { draw, back } = this;
    const ring = draw.of([back.tx, back.rx, back.rx]);
    const at = ring === back.tx ? back.txNext : back.rxNext;
    for (let n = draw.below(4); n >= 0; n--) {
      const index = at - 1 - draw.below(12);
      const word = draw.below(2);
      ring.memory.u32[(ring.slot(index) >>> 2) + word] = draw.changed(ring.word(index, word));
    }
  }

  private publish(): void {
    this.back.push();
  }

  /** What must hold whenever the host is quiet. */
  check(): void {
    const { reasons, dom } = this;
    for (const all of [reasons, this.controlReasons])
      assert.ok(all.length <= 1, `broken ${all.length} times: ${all.join(', ')}`);
    const { waiting } = this.control as unknown as { waiting: Map<number, unknown> };
    assert.ok(waiting.size <= this.ctrl.size, `${waiting.size} control requests wait`);
    const { used } = dom.net.packets;
    assert.ok(used <= 256 + 1000 + KEPT_MAX, `${used} packets are held`);
    const { allocated } = dom.platform.memory;
    assert.ok(allocated < 8192 + 1024 + 256, `${allocated} pages of the guest`);
  }
}
