import { NetError } from './error.js';

/** One address of a list, with the number of those who asked for it. */
export interface ListedAddress {
  readonly address: Uint8Array;
  references: number;
}

/** A device's list of unicast or multicast addresses that it receives besides its own (netdev_hw_addr_list). */
export class AddressList implements Iterable<ListedAddress> {
  private readonly entries = new Map<string, ListedAddress>();

  get size(): number {
    return this.entries.size;
  }

  has(address: Uint8Array): boolean {
    return this.entries.has(key(address));
  }

  [Symbol.iterator](): Iterator<ListedAddress> {
    return this.entries.values();
  }

  /** Adds an address, or counts one more who wants it. @returns true when it is new */
  add(address: Uint8Array): boolean {
    const found = this.entries.get(key(address));
    if (found !== undefined) {
      found.references++;
      return false;
    }
    this.entries.set(key(address), { address: address.slice(), references: 1 });
    return true;
  }

  /** Adds an address that nobody may have added. @throws NetError EEXIST */
  addExclusive(address: Uint8Array): void {
    if (this.has(address)) throw new NetError('EEXIST', `the address ${key(address)} is in the list already`);
    this.add(address);
  }

  /** @returns true when nobody wants it any more. @throws NetError ENOENT */
  delete(address: Uint8Array): boolean {
    const found = this.entries.get(key(address));
    if (found === undefined) throw new NetError('ENOENT', `the address ${key(address)} is not in the list`);
    if (--found.references > 0) return false;
    this.entries.delete(key(address));
    return true;
  }

  flush(): void {
    this.entries.clear();
  }
}

/** @param b of the same length */
export function isSameAddress(a: Uint8Array, b: Uint8Array): boolean {
  return a.every((byte, i) => byte === b[i]);
}

function key(address: Uint8Array): string {
  return Array.from(address, byte => byte.toString(16).padStart(2, '0')).join(':');
}
