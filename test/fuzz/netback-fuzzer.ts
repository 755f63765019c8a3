import assert from 'node:assert/strict';
import {
  gsoExtraWord0,
  gsoExtraWord1,
  hashExtraWord0,
  NETTXF_CSUM_BLANK,
  NETTXF_DATA_VALIDATED,
  NETTXF_EXTRA_INFO,
  NETTXF_MORE_DATA,
  XEN_NETIF_EXTRA_FLAG_MORE,
} from '../../src/abi/index.js';
import { type GrantedPage, HostileFrontend } from '../../src/mock/index.js';
import { GSO_TCPV4, GSO_TCPV6, NETIF_F_GRO, type NetDevice } from '../../src/net/index.js';
import { type FrontendFeatures, RX_QUEUE_PACKETS_MAX, SourceFilter, Vif } from '../../src/netback/index.js';
import type { Domain } from '../../src/platform/sim/index.js';
import { buildFrame } from '../net/frames.js';
import { ALL_FEATURES, type DataPath } from '../support/data-path.js';
import { packetFrom } from '../support/packets.js';
import type { Draw } from './random.js';

const DATA_PAGES = 24;
const KEPT_MAX = 20;

/** What the books of a queue are checked by. */
interface Innards {
  readonly tx: { readonly ring: Indexes };
  readonly rx: { readonly ring: Indexes; readonly waiting: { readonly length: number } };
}

interface Indexes {
  readonly reqCons: number;
  readonly rspProdPvt: number;
}

/** Does one evil thing after another to a vif, as its frontend. */
export class NetbackFuzzer {
  private readonly domain: Domain;
  private readonly vif: Vif;
  private readonly front: HostileFrontend;
  private readonly data: GrantedPage[] = [];
  private fatal: string[] = [];
  /** Packets that somebody in the backend's kernel is slow with: their slots stay unanswered. */
  private readonly kept: (() => void)[] = [];
  private unmap: (() => void)[] = [];
  /** The host has no memory for packets of its own. */
  starved = false;
  /** Nobody looks at packets on their way, so that they may take the fast path. */
  private readonly plain: boolean;
  /** Pages that packets begin in, and that are received in. */
  private readonly heads: readonly GrantedPage[];
  private readonly received: readonly GrantedPage[];

  constructor(
    private readonly path: DataPath,
    private readonly draw: Draw,
    private readonly targets: readonly (readonly number[])[],
  ) {
    this.domain = path.hypervisor.createDomain();
    const { domid } = this.domain;
    const onFatal = (reason: string) => this.fatal.push(reason);
    this.vif = new Vif(path.dom0, { domid, handle: 0, onFatal, fastPathModule: path.fastPathModule });
    this.vif.dev.mtu = 9000;
    this.plain = path.fastPathModule !== null;
    path.bridge.addPort(this.vif.dev as NetDevice);
    if (this.plain) this.letPass();
    else this.watch();
    this.front = new HostileFrontend(this.domain.platform, 0, { split: !draw.oneIn(3) });
    for (let i = 0; i < DATA_PAGES; i++) {
      const page = this.front.grantPage(draw.oneIn(2) || (this.plain && i < DATA_PAGES / 2));
      this.data.push(page);
      const bytes = i < DATA_PAGES / 2 ? this.frame() : draw.bytes(200);
      this.front.platform.memory.memory.u8.set(bytes, page.address);
    }
    // Without a filter what was flooded to it must not be sent again: it would come from another.
    this.heads = this.plain ? this.data.slice(0, DATA_PAGES / 2) : this.data;
    this.received = this.plain ? this.data.slice(DATA_PAGES / 2) : this.data;
    this.connect();
  }

  /** Packets wait for somebody now and then, and none comes from another's address. */
  private watch(): void {
    const { draw } = this;
    // Who may send as anybody can have the bridge send him what is another's, as on any Ethernet.
    const own = Uint8Array.from([0, 0x16, 0x3e, 0, 0, this.domain.domid]);
    this.vif.sourceFilter = new SourceFilter({ macs: [own] });
    const toBridge = this.vif.dev.rxHandler!;
    this.vif.dev.rxHandler = (packet, dev) => {
      const pass = () => toBridge(packet, dev);
      if (this.kept.length < KEPT_MAX && draw.oneIn(16)) this.kept.push(pass);
      else pass();
    };
  }

  /**
   * The bridge learns from others only where they are, and does not forget it: what is another's never comes here, to be sent
   * again. TCP data is not put together.
   */
  private letPass(): void {
    const { vif, path } = this;
    path.bridge.portOf(vif.dev as NetDevice)!.learning = false;
    path.bridge.fdb.ageingMs = Number.POSITIVE_INFINITY;
    vif.dev.wantedFeatures &= ~NETIF_F_GRO;
  }

  private frame(): Uint8Array {
    const { draw } = this;
    return buildFrame({
      version: draw.of([4, 4, 6] as const),
      udp: draw.oneIn(5),
      vlan: draw.oneIn(5) ? draw.below(4096) : undefined,
      source: [0, 0x16, 0x3e, 0, 0, this.domain.domid],
      destination: draw.of(this.plain && !draw.oneIn(6) ? this.targets.slice(0, 2) : this.targets),
      payload: draw.bytes(draw.below(900)),
    });
  }

  private connect(): void {
    const { front, draw } = this;
    const { platform } = this.path.dom0;
    const { domid } = this.domain;
    front.reset();
    this.fatal = [];
    const { txRef, rxRef, txPort, rxPort } = front.publication;
    const refs = [txRef, draw.oneIn(50) ? txRef : rxRef, front.ctrlRef];
    const [txRing, rxRing, ring] = refs.map(ref => platform.grants.map(domid, ref, false));
    this.unmap = [txRing, rxRing, ring].map(mapping => () => platform.grants.unmap(mapping));
    // A ring need not start at 0.
    const start = draw.oneIn(4) ? draw.u32() : 0;
    for (const shared of [front.tx, front.rx]) {
      shared.reqProd = start;
      shared.rspProd = start;
    }
    front.txNext = start;
    front.rxNext = start;
    const gsoPrefix = draw.oneIn(4) ? draw.of([1 << GSO_TCPV4, 1 << GSO_TCPV6, 6]) : 0;
    const features: FrontendFeatures = draw.oneIn(4)
      ? {
          sg: false,
          gsoTcpv4: false,
          gsoTcpv6: false,
          noCsumOffload: true,
          ipv6CsumOffload: false,
          rxNotify: draw.oneIn(2),
          xdpHeadroom: draw.oneIn(2) ? 0 : draw.u32() & 0x7fff,
        }
      : { ...ALL_FEATURES, gsoPrefix };
    // A control ring needs a page of the backend's.
    const control = this.starved ? null : { domid, ring, port: front.ctrlPort };
    this.vif.connect(features, [{ domid, txRing, rxRing, txPort, rxPort }], control);
    if (this.plain) this.announce();
  }

  /** The bridge is told where it is, as it does not learn that. */
  private announce(): void {
    const { bridge, dom0 } = this.path;
    const { number } = bridge.portOf(this.vif.dev as NetDevice)!;
    bridge.fdb.learn(0x0016, 0x3e000000 | this.domain.domid, number, dom0.net.now);
  }

  disconnect(): void {
    this.vif.disconnect();
    for (const step of this.unmap.splice(0)) step();
  }

  reconnect(): void {
    this.disconnect();
    this.connect();
  }

  get broken(): boolean {
    return this.fatal.length > 0;
  }

  /** Gives everything back. */
  destroy(): void {
    this.letGo();
    this.disconnect();
    for (const { gref, page } of this.data) {
      this.front.platform.grants.grant(gref, 0, page, false);
    }
    assert.ok(this.front.destroy(), 'the backend holds a page of the frontend');
    this.path.bridge.removePort(this.vif.dev as NetDevice);
    void this.vif.destroy();
    this.domain.destroy();
  }

  /** Brings the rings into some state, and notifies. */
  attack(): void {
    const { draw, front } = this;
    if (this.plain) this.forgetRest();
    switch (draw.below(10)) {
      case 0:
        this.scribble();
        break;
      case 1:
        this.moveIndexes();
        break;
      case 2:
        this.regrant();
        this.sendSome();
        break;
      case 3:
        this.control();
        break;
      case 4:
        this.sendSome();
        this.postSome();
        this.mutate();
        this.mutate();
        break;
      case 5:
      case 6:
        this.sendSome();
        this.mutate();
        break;
      default:
        this.sendSome();
        this.postSome();
    }
    if (draw.oneIn(3) && !this.starved) this.deliverSome();
    if (draw.oneIn(4)) this.letGo();
    if (!draw.oneIn(20)) front.kickTx();
    if (!draw.oneIn(4)) front.kickRx();
    if (draw.oneIn(6)) front.kickCtrl();
  }

  /** The fast path is tried each time, whatever it has met before. */
  private forgetRest(): void {
    Object.assign(this.vif.queues[0].fastPath ?? {}, { resting: 0, rest: 0 });
  }

  /** What was kept goes on. */
  letGo(): void {
    for (const pass of this.kept.splice(0)) pass();
  }

  private scribble(): void {
    const { draw, front } = this;
    const ring = draw.of([front.tx, front.rx, front.ctrl]);
    const offset = draw.oneIn(4) ? 0 : 64 + draw.below(3000);
    ring.scribble(draw.bytes(1 + draw.below(200)), offset);
    if (draw.oneIn(2)) this.publish();
  }

  private moveIndexes(): void {
    const { draw, front } = this;
    const ring = draw.of([front.tx, front.rx, front.ctrl]);
    const index = draw.of(['reqProd', 'rspProd', 'reqEvent', 'rspEvent'] as const);
    ring[index] = draw.index(ring[index]);
  }

  /** Takes a grant away, or gives it as another. */
  private regrant(): void {
    const { draw, front } = this;
    const granted = draw.of(this.data);
    const { gref, page } = granted;
    const { grants } = front.platform;
    grants.end(gref);
    if (draw.oneIn(3)) return;
    grants.grant(gref, draw.oneIn(4) ? 1 : 0, page, draw.oneIn(2) || !this.received.includes(granted));
  }

  private gref(): number {
    const { draw, front } = this;
    if (draw.oneIn(40)) return draw.u32();
    if (draw.oneIn(40)) return draw.of(front.pages).gref;
    return draw.of(this.data).gref;
  }

  private rxGref(): number {
    const { draw, front, plain } = this;
    if (draw.oneIn(40)) return draw.u32();
    if (draw.oneIn(40)) return draw.of(plain ? front.pages.slice(0, 3) : front.pages).gref;
    return draw.of(this.received).gref;
  }

  /** Sound packets, more or less, as many as there is room for. */
  private sendSome(): void {
    const { draw, front } = this;
    for (let n = draw.below(5); n >= 0; n--) {
      const slots = draw.oneIn(12) ? 1 + draw.below(23) : 1 + draw.below(4);
      if (((front.txNext - front.tx.rspProd) | 0) + slots + 4 > 256) break;
      this.sendOne(slots);
    }
    this.publish();
  }

  private sendOne(slots: number): void {
    const { draw, front } = this;
    const sizes = Array.from({ length: slots }, (_, i) => {
      if (draw.oneIn(40)) return draw.u16();
      if (i === 0) return 54 + draw.below(1400);
      return draw.oneIn(this.plain ? 20 : 5) ? 0 : draw.oneIn(4) ? 4096 : draw.below(1500);
    });
    const total = sizes.reduce((a, b) => a + b);
    const { gref, address } = draw.of(this.heads);
    this.setIpLength(address, total);
    const extras = draw.oneIn(this.plain ? 8 : 3) ? this.extras() : [];
    for (let i = 0; i < slots; i++) {
      let flags = i + 1 < slots ? NETTXF_MORE_DATA : 0;
      if (i === 0) {
        flags |= draw.of([0, NETTXF_DATA_VALIDATED, NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED]);
        if (extras.length > 0) flags |= NETTXF_EXTRA_INFO;
      }
      front.request({
        gref: i === 0 ? gref : this.gref(),
        offset: i > 0 && draw.oneIn(4) ? draw.below(Math.max(1, 4097 - sizes[i])) : 0,
        flags,
        id: draw.below(0x10000),
        size: (i === 0 ? total : sizes[i]) & 0xffff,
      });
      front.txNext >>>= 0;
      if (i > 0) continue;
      for (const [k, [word0, word1]] of extras.entries()) {
        const more = k + 1 < extras.length ? XEN_NETIF_EXTRA_FLAG_MORE << 8 : 0;
        front.extra((word0 | more) >>> 0, word1);
        front.txNext >>>= 0;
      }
    }
  }

  /** Makes the IP header's length fit, so that the packet gets as far as it can. */
  private setIpLength(address: number, total: number): void {
    const { u8 } = this.front.platform.memory.memory;
    const vlan = u8[address + 12] === 0x81 ? 4 : 0;
    const ip = address + 14 + vlan;
    const six = u8[ip] >> 4 === 6;
    const length = Math.max(0, total - 14 - vlan - (six ? 40 : 0));
    u8[ip + (six ? 4 : 2)] = length >>> 8;
    u8[ip + (six ? 5 : 3)] = length & 0xff;
  }

  private extras(): [number, number][] {
    const { draw } = this;
    return Array.from({ length: 1 + (draw.oneIn(4) ? draw.below(4) : 0) }, (): [number, number] => {
      switch (draw.below(8)) {
        case 0:
          return [draw.of([2, 3]) | (draw.below(0x10000) << 16), draw.u32()];
        case 1:
          return [hashExtraWord0(draw.below(256), draw.below(256)), draw.u32()];
        case 2:
          return [5 | (draw.u16() << 16), 0];
        case 3:
          return draw.oneIn(4) ? [draw.u32() & ~0x100, draw.u32()] : [gsoExtraWord0(1), gsoExtraWord1(1)];
        default:
          return [gsoExtraWord0(draw.of([1448, 1, 32, 100, 65535])), gsoExtraWord1(1 + draw.below(2))];
      }
    });
  }

  private postSome(): void {
    const { draw, front } = this;
    for (let n = draw.below(12); n >= 0; n--) {
      if (((front.rxNext - front.rx.rspProd) | 0) >= 256) break;
      front.rxRequest(draw.below(0x10000), this.rxGref());
      front.rxNext >>>= 0;
    }
    this.publish();
  }

  /** Changes a few bytes or fields of what is on a ring. */
  private mutate(): void {
    const { draw, front } = this;
    const ring = draw.of([front.tx, front.tx, front.rx]);
    const at = ring === front.tx ? front.txNext : front.rxNext;
    for (let n = draw.below(4); n >= 0; n--) {
      const index = at - 1 - draw.below(12);
      const word = draw.below(ring.slotSize / 4);
      ring.memory.u32[(ring.slot(index) >>> 2) + word] = draw.changed(ring.word(index, word));
    }
  }

  private control(): void {
    const { draw, front } = this;
    const { ctrl } = front;
    let prod = ctrl.reqProd;
    for (let n = draw.below(6); n >= 0; n--) {
      const type = draw.oneIn(20) ? draw.u16() : draw.below(12);
      const data = () => (draw.oneIn(2) ? draw.below(130) : draw.oneIn(2) ? this.gref() : draw.u32());
      ctrl.write(prod++, draw.below(0x10000) | (type << 16), data(), data(), data());
    }
    if (((prod - ctrl.rspProd) | 0) <= ctrl.size) ctrl.reqProd = prod >>> 0;
  }

  private publish(): void {
    this.front.tx.reqProd = this.front.txNext;
    this.front.rx.reqProd = this.front.rxNext;
  }

  /** Packets for the guest, from the host's side. */
  private deliverSome(): void {
    const { draw, vif } = this;
    for (let n = draw.below(4); n >= 0; n--) {
      const bytes = buildFrame({
        version: draw.of([4, 6] as const),
        destination: [0, 0x16, 0x3e, 0, 0, this.domain.domid],
        payload: new Uint8Array(draw.of([0, 100, 1000, 5000, 8000])),
      });
      const packet = packetFrom(vif.dev as NetDevice, bytes);
      if (draw.oneIn(4)) packet.hashType = draw.below(4);
      vif.dev.xmit(packet);
    }
  }

  /** What must hold whenever the host is quiet. */
  check(): void {
    const { vif, fatal, path } = this;
    assert.ok(fatal.length <= 1, `disabled ${fatal.length} times: ${fatal.join(', ')}`);
    assert.equal(vif.disabled, fatal.length === 1);
    // It may post no rx requests for so long that it counts as stalled.
    assert.equal(vif.dev.carrierOk, fatal.length === 0 && vif.stalledQueues === 0);
    const { packets } = path.dom0.net;
    assert.ok(packets.used <= RX_QUEUE_PACKETS_MAX + 64, `${packets.used} packets are held`);
    const { tx, rx } = vif.queues[0] as unknown as Innards;
    if (vif.disabled) {
      assert.equal(rx.waiting.length, 0, 'packets that wait for a disabled vif');
      return;
    }
    if (this.kept.length === 0)
      assert.equal(tx.ring.reqCons, tx.ring.rspProdPvt, 'tx: every request is answered');
    assert.equal(rx.ring.reqCons, rx.ring.rspProdPvt, 'rx: every request that was taken is answered');
  }
}
