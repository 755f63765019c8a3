import type { Children } from './children.js';
import type { Permissions } from './permissions.js';

export const EMPTY = new Uint8Array(0);

/**
 * A node of the store. It is immutable for everybody but the editor whose epoch it carries: a snapshot is
 * a root, and keeps everything below it (see `Tree`).
 */
export class StoreNode {
  children: Children | null = null;
  /** Bytes of the children's names, each with its NUL. */
  childBytes = 0;
  /** The reply to DIRECTORY, kept until the children change. */
  listing: Uint8Array | null = null;

  constructor(
    /** The name in its parent; '' for the root. */
    readonly name: string,
    /** `hashName` of the name. */
    readonly hash: number,
    readonly epoch: number,
    public value: Uint8Array,
    public permissions: Permissions,
    /** Count of the store's changes when it came into being: which node of this name it is. */
    readonly created: number,
    /** Count of the store's changes when its value or permissions last changed. */
    public generation: number,
    /** Count of the store's changes when a child last came or went. */
    public childGeneration: number,
  ) {}

  /** A copy for the editor with this epoch. Both share value, permissions and children. */
  copy(epoch: number): StoreNode {
    const copy = new StoreNode(
      this.name,
      this.hash,
      epoch,
      this.value,
      this.permissions,
      this.created,
      this.generation,
      this.childGeneration,
    );
    copy.children = this.children;
    copy.childBytes = this.childBytes;
    copy.listing = this.listing;
    return copy;
  }
}
