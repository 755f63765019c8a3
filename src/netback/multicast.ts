/** Addresses that a frontend may ask for (XEN_NETBK_MCAST_MAX). */
export const MULTICAST_MAX = 64;

/** The multicast addresses that a frontend wants, when it controls that (feature-multicast-control). */
export class MulticastFilter {
  private readonly addresses = new Set<number>();

  get size(): number {
    return this.addresses.size;
  }

  /** @returns false when the filter is full; an address twice counts once */
  add(address: Uint8Array): boolean {
    const key = addressKey(address, 0);
    if (this.addresses.has(key)) return true;
    if (this.addresses.size === MULTICAST_MAX) return false;
    this.addresses.add(key);
    return true;
  }

  delete(address: Uint8Array): void {
    this.addresses.delete(addressKey(address, 0));
  }

  clear(): void {
    this.addresses.clear();
  }

  /** Whether a frame may pass: to one station, to all, or to a group that was asked for. */
  allows(u8: Uint8Array, destination: number): boolean {
    if ((u8[destination] & 1) === 0) return true;
    const key = addressKey(u8, destination);
    return key === BROADCAST || this.addresses.has(key);
  }
}

const BROADCAST = 0xffffffffffff;

/** A MAC address as one integer. */
function addressKey(u8: Uint8Array, at: number): number {
  const high = (u8[at] << 8) | u8[at + 1];
  const low = ((u8[at + 2] << 24) | (u8[at + 3] << 16) | (u8[at + 4] << 8) | u8[at + 5]) >>> 0;
  return high * 0x100000000 + low;
}
