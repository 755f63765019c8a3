import type { StoreNode } from './node.js';
import type { Path } from './path.js';

/** A power of two. */
const SLOTS = 1 << 16;
const MASK = SLOTS - 1;

/**
 * Where the nodes that are asked for again and again are: one look instead of one at each level of the
 * tree, most of which a large store has far from the processor. Forgets everything at once when a node is
 * replaced or removed, for nothing.
 */
export class PathCache {
  readonly #texts: (string | undefined)[] = new Array(SLOTS).fill(undefined);
  readonly #nodes: (StoreNode | undefined)[] = new Array(SLOTS).fill(undefined);
  /** When each slot was filled; older than `#age` is no more. */
  readonly #ages = new Int32Array(SLOTS);
  /** Path hash that last missed in each slot: what is asked for once is not worth remembering. */
  readonly #missed = new Int32Array(SLOTS);
  #age = 1;

  get(path: Path): StoreNode | undefined {
    const at = path.prefixHashes[path.count] & MASK;
    if (this.#ages[at] !== this.#age) return undefined;
    return path.prefixIs(path.count, this.#texts[at] as string) ? this.#nodes[at] : undefined;
  }

  /** Notes a node that `get` did not find. */
  put(path: Path, node: StoreNode): void {
    const hash = path.prefixHashes[path.count];
    const at = hash & MASK;
    if (this.#missed[at] !== hash) {
      this.#missed[at] = hash;
      return;
    }
    this.#ages[at] = this.#age;
    this.#texts[at] = path.prefix(path.count);
    this.#nodes[at] = node;
  }

  clear(): void {
    this.#age = (this.#age + 1) | 0;
  }
}
