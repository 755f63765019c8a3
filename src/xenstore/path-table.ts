import type { Path } from './path.js';

/** What stands at a path. */
export interface Located {
  /** Hash of the path, as `Path.prefixHashes` has it. */
  readonly hash: number;
  /** Whether its path is the one of the first `count` names of `path`. */
  isAt(path: Path, count: number): boolean;
  /** Reads what a request for it will read; see `PathTable.fetch`. @returns a number of no meaning */
  fetch(): number;
}

/** A power of two: a part grows on its own, so that no growth takes long. */
const PARTS = 256;
const FIRST_SLOTS = 8;

/**
 * A hash table by path. A look-up touches one place, however long the path and large the table is: hashes
 * and items stand side by side, and a hash that differs is passed by without a look at its item.
 */
export class PathTable<T extends Located> {
  readonly #parts = Array.from({ length: PARTS }, () => new Part<T>());
  size = 0;
  /** Means nothing; that it is kept lets no compiler leave out the reading. */
  fetched = 0;

  /** The item at the path of the first `count` names. */
  find(path: Path, count: number): T | undefined {
    const hash = path.prefixHashes[count];
    const { slots, mask } = this.#parts[hash >>> 24];
    for (let at = (hash << 1) & mask; ; at = (at + 2) & mask) {
      const item = slots[at + 1] as T | null;
      if (item === null) return undefined;
      if (slots[at] === hash && item.isAt(path, count)) return item;
    }
  }

  /** Adds an item at a path that has none. */
  add(item: T): void {
    const part = this.#parts[item.hash >>> 24];
    this.size++;
    part.count++;
    if (part.count * 8 > part.slots.length * 3) part.grow();
    part.put(item);
  }

  /** Puts `item` in the place of `old`, at the same path. */
  replace(old: T, item: T): void {
    const part = this.#parts[old.hash >>> 24];
    part.slots[part.placeOf(old) + 1] = item;
  }

  /** Removes an item that is there. */
  remove(item: T): void {
    const part = this.#parts[item.hash >>> 24];
    this.size--;
    part.count--;
    part.remove(part.placeOf(item));
  }

  /**
   * Fetches the items of these hashes. Look-ups one after the other wait for memory several times each;
   * here the processor can wait for all slots at once, then for all items, then for what they point to.
   */
  fetch(hashes: Int32Array, count: number): void {
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const { slots, mask } = this.#parts[hashes[i] >>> 24];
      if (slots[(hashes[i] << 1) & mask] === hashes[i]) sum++;
    }
    for (let i = 0; i < count; i++) sum += this.#first(hashes[i])?.hash ?? 0;
    for (let i = 0; i < count; i++) sum += this.#first(hashes[i])?.fetch() ?? 0;
    this.fetched = sum;
  }

  #first(hash: number): T | null {
    const { slots, mask } = this.#parts[hash >>> 24];
    let at = (hash << 1) & mask;
    while (slots[at + 1] !== null && slots[at] !== hash) at = (at + 2) & mask;
    return slots[at + 1] as T | null;
  }
}

/** Open addressing with linear probing; at most three quarters of the slots are taken. */
class Part<T extends Located> {
  /** For each slot a hash, and an item or null. */
  slots: (number | T | null)[] = emptySlots(FIRST_SLOTS);
  /** Of an offset in `slots`, its bits, the lowest one not. */
  mask = FIRST_SLOTS * 2 - 2;
  count = 0;

  put(item: T): void {
    const { slots, mask } = this;
    let at = (item.hash << 1) & mask;
    while (slots[at + 1] !== null) at = (at + 2) & mask;
    slots[at] = item.hash;
    slots[at + 1] = item;
  }

  /** The offset of an item that is there. */
  placeOf(item: T): number {
    const { slots, mask } = this;
    let at = (item.hash << 1) & mask;
    while (slots[at + 1] !== item) at = (at + 2) & mask;
    return at;
  }

  /** Empties a slot, and moves up what a search would not find behind it any more. */
  remove(free: number): void {
    const { slots, mask } = this;
    for (let at = (free + 2) & mask; slots[at + 1] !== null; at = (at + 2) & mask) {
      const wanted = ((slots[at] as number) << 1) & mask;
      if (((at - wanted) & mask) < ((at - free) & mask)) continue;
      slots[free] = slots[at];
      slots[free + 1] = slots[at + 1];
      free = at;
    }
    slots[free] = 0;
    slots[free + 1] = null;
  }

  grow(): void {
    const { slots } = this;
    this.slots = emptySlots(slots.length);
    this.mask = slots.length * 2 - 2;
    for (let at = 1; at < slots.length; at += 2) if (slots[at] !== null) this.put(slots[at] as T);
  }
}

function emptySlots<T>(count: number): (number | T | null)[] {
  const slots = new Array<number | T | null>(count * 2);
  for (let at = 0; at < slots.length; at += 2) {
    slots[at] = 0;
    slots[at + 1] = null;
  }
  return slots;
}
