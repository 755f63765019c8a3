import type { ModuleContext, ModuleResult } from 'pvnet/guests';
import { XDP_DROP, XDP_TX, type XdpBuffs, XdpFrames } from 'pvnet/net';

const ADDRESS = [10, 0, 0, 99];
const ARP_LENGTH = 42;
const [DST, SRC, TYPE] = [0, 6, 12];
const [ARP_OPERATION, ARP_SENDER, ARP_TARGET] = [20, 22, 32];
const [IP_PROTOCOL, IP_SOURCE, IP_TARGET, ICMP] = [23, 26, 30, 34];

/**
 * A guest of our own without an IP stack: guest = "module:./xdp-responder.js". An XDP program answers ARP requests and pings
 * to 10.0.0.99 in the page that they came in, and drops all else, so that no packet is ever made. It tells the neighbours
 * where it is with a frame that never was a packet either.
 */
export default function responder({ device, log }: ModuleContext): ModuleResult {
  void device(0).then(eth0 => {
    const { address } = eth0;

    function swap(u8: Uint8Array, a: number, b: number, length: number): void {
      const kept = u8.slice(a, a + length);
      u8.copyWithin(a, b, b + length);
      u8.set(kept, b);
    }

    /** Makes the frame its own answer. @returns false for one that is not for us */
    function answer(u8: Uint8Array, at: number, bytes: number): boolean {
      const ours = (field: number) => ADDRESS.every((byte, i) => u8[at + field + i] === byte);
      const type = (u8[at + TYPE] << 8) | u8[at + TYPE + 1];
      if (
        type === 0x0806 &&
        bytes >= ARP_LENGTH &&
        u8[at + ARP_OPERATION + 1] === 1 &&
        ours(ARP_TARGET + 6)
      ) {
        swap(u8, at + ARP_SENDER, at + ARP_TARGET, 10);
        u8.set(address, at + ARP_SENDER);
        u8[at + ARP_OPERATION + 1] = 2;
      } else if (type === 0x0800 && u8[at + IP_PROTOCOL] === 1 && u8[at + ICMP] === 8 && ours(IP_TARGET)) {
        swap(u8, at + IP_SOURCE, at + IP_TARGET, 4);
        u8[at + ICMP] = 0;
        // The type has become 8 less, and so the checksum is 8 more (RFC 1624).
        const sum = ((u8[at + ICMP + 2] << 8) | u8[at + ICMP + 3]) + 0x0800;
        u8[at + ICMP + 2] = (sum + (sum >>> 16)) >>> 8;
        u8[at + ICMP + 3] = sum + (sum >>> 16);
      } else return false;
      u8.copyWithin(at + DST, at + SRC, at + SRC + 6);
      u8.set(address, at + SRC);
      return true;
    }

    eth0.setXdp(function respond({ count, data, bytes, memory, verdict }: XdpBuffs) {
      for (let i = 0; i < count; i++) {
        // The shortest of both has 42 bytes.
        const answered = bytes[i] >= ARP_LENGTH && answer(memory.u8, data[i], bytes[i]);
        verdict[i] = answered ? XDP_TX : XDP_DROP;
      }
    });

    const frames = new XdpFrames(eth0);
    const at = frames.add(ARP_LENGTH);
    if (at >= 0) {
      const { u8 } = eth0.net.memory.memory;
      u8.set([255, 255, 255, 255, 255, 255, ...address, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1], at);
      u8.set([...address, ...ADDRESS, 0, 0, 0, 0, 0, 0, ...ADDRESS], at + ARP_SENDER);
      eth0.xdpXmit(frames);
    }
    log(`answering for ${ADDRESS.join('.')} on ${eth0.name}`);
  });
}
