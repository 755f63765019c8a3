/** Builds and checks frames the slow, obvious way, to compare the real code with. */

export interface TcpFrame {
  version?: 4 | 6;
  vlan?: number;
  /** IPv4 options or IPv6 extension headers, ready-made; with `firstHeader` naming the first extension. */
  extra?: Uint8Array;
  firstHeader?: number;
  tcpOptions?: Uint8Array;
  flags?: number;
  sequence?: number;
  id?: number;
  payload: Uint8Array;
  sourcePort?: number;
  destinationPort?: number;
  udp?: boolean;
  source?: readonly number[];
  destination?: readonly number[];
}

/** A frame whose transport's checksum is zero, and IPv4's header checksum right. */
export function buildFrame(frame: TcpFrame): Uint8Array {
  const version = frame.version ?? 4;
  const out: number[] = [
    ...(frame.destination ?? [2, 0, 0, 0, 0, 2]),
    ...(frame.source ?? [2, 0, 0, 0, 0, 1]),
  ];
  if (frame.vlan !== undefined) out.push(0x81, 0, frame.vlan >> 8, frame.vlan & 255);
  out.push(...(version === 4 ? [8, 0] : [0x86, 0xdd]));
  const extra = frame.extra ?? new Uint8Array(0);
  const options = frame.tcpOptions ?? new Uint8Array(0);
  const l4Length = (frame.udp === true ? 8 : 20 + options.length) + frame.payload.length;
  const protocol = frame.udp === true ? 17 : 6;
  if (version === 4) {
    const total = 20 + extra.length + l4Length;
    const id = frame.id ?? 0x1234;
    out.push(
      0x45 + (extra.length >> 2),
      0,
      total >> 8,
      total & 255,
      id >> 8,
      id & 255,
      0x40,
      0,
      64,
      protocol,
      0,
      0,
    );
    out.push(10, 0, 0, 1, 10, 0, 0, 2, ...extra);
  } else {
    const length = extra.length + l4Length;
    out.push(0x60, 0, 0, 0, length >> 8, length & 255, frame.firstHeader ?? protocol, 64);
    out.push(0xfd, ...Array(14).fill(0), 1, 0xfd, ...Array(14).fill(0), 2, ...extra);
  }
  const sport = frame.sourcePort ?? 1000;
  const dport = frame.destinationPort ?? 2000;
  out.push(sport >> 8, sport & 255, dport >> 8, dport & 255);
  if (frame.udp === true) out.push(l4Length >> 8, l4Length & 255, 0, 0);
  else {
    const seq = frame.sequence ?? 0xfffffff0;
    out.push((seq >>> 24) & 255, (seq >>> 16) & 255, (seq >>> 8) & 255, seq & 255, 0, 0, 0, 9);
    out.push((5 + (options.length >> 2)) << 4, frame.flags ?? 0x18, 1, 0, 0, 0, 0, 0, ...options);
  }
  const bytes = new Uint8Array(out.length + frame.payload.length);
  bytes.set(out);
  bytes.set(frame.payload, out.length);
  fillHeaderChecksum(bytes);
  return bytes;
}

/** Makes the IPv4 header's checksum right, if there is one. */
export function fillHeaderChecksum(bytes: Uint8Array): void {
  const { l3, version } = layout(bytes);
  if (version !== 4) return;
  bytes.fill(0, l3 + 10, l3 + 12);
  const sum = ~referenceSum(bytes, l3, l3 + (bytes[l3] & 15) * 4);
  bytes[l3 + 10] = (sum >> 8) & 255;
  bytes[l3 + 11] = sum & 255;
}

/** The Internet checksum (RFC 1071), one big-endian word after another. */
export function referenceSum(bytes: Uint8Array, start = 0, end = bytes.length, sum = 0): number {
  for (let i = start; i < end; i += 2) {
    sum += (bytes[i] << 8) | (i + 1 < end ? bytes[i + 1] : 0);
    if (sum > 0xffff) sum = (sum & 0xffff) + 1;
  }
  return sum;
}

/** Offsets of the IP and transport headers and of the payload, without trust in lengths. */
export function layout(bytes: Uint8Array): {
  l3: number;
  l4: number;
  payload: number;
  version: number;
  end: number;
} {
  let l3 = 14;
  while (bytes[l3 - 2] === 0x81 && bytes[l3 - 1] === 0) l3 += 4;
  const version = bytes[l3] >> 4;
  let l4: number;
  let end: number;
  let protocol: number;
  if (version === 4) {
    l4 = l3 + (bytes[l3] & 15) * 4;
    end = l3 + ((bytes[l3 + 2] << 8) | bytes[l3 + 3]);
    protocol = bytes[l3 + 9];
  } else {
    l4 = l3 + 40;
    end = l4 + ((bytes[l3 + 4] << 8) | bytes[l3 + 5]);
    protocol = bytes[l3 + 6];
    while (protocol === 0 || protocol === 43 || protocol === 60) {
      protocol = bytes[l4];
      l4 += (bytes[l4 + 1] + 1) * 8;
    }
  }
  const payload = protocol === 17 ? l4 + 8 : l4 + (bytes[l4 + 12] >> 4) * 4;
  return { l3, l4, payload, version, end };
}

/** True when the IPv4 header's and the transport's checksums are right. */
export function checksumsAreRight(bytes: Uint8Array, udp = false): boolean {
  const { l3, l4, version, end } = layout(bytes);
  if (version === 4 && referenceSum(bytes, l3, l4) !== 0xffff) return false;
  const length = end - l4;
  let sum = version === 4 ? referenceSum(bytes, l3 + 12, l3 + 20) : referenceSum(bytes, l3 + 8, l3 + 40);
  sum = referenceSum(Uint8Array.of(0, udp ? 17 : 6, length >> 8, length & 255), 0, 4, sum);
  return referenceSum(bytes, l4, end, sum) === 0xffff;
}
