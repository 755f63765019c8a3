import type { Directory } from './children.js';
import type { Path } from './path.js';
import type { Located } from './path-table.js';
import type { Permissions } from './permissions.js';
import type { Value } from './value.js';

/**
 * A node of the store. It is immutable for everybody but the editor whose epoch it carries: a snapshot is
 * a root, and keeps everything below it (see `Tree`). Small: most of a large store is nodes without children.
 */
export class StoreNode implements Located {
  /** Its children; null as long as it never had one. */
  directory: Directory | null = null;

  constructor(
    /** The name in its parent; '' for the root. */
    readonly name: string,
    /** The path of its parent, one string for all its children; '' for the root. */
    readonly parentPath: string,
    /** Hash of its path. */
    readonly hash: number,
    readonly epoch: number,
    public value: Value,
    public permissions: Permissions,
    /** Count of the store's changes when it came into being: which node of this name it is. */
    readonly created: number,
    /** Count of the store's changes when its value or permissions last changed. */
    public generation: number,
  ) {}

  /** Bytes of the children's names, each with its NUL. */
  get childBytes(): number {
    return this.directory === null ? 0 : this.directory.bytes;
  }

  /** Count of the store's changes when a child last came or went. */
  get childGeneration(): number {
    return this.directory === null ? this.created : this.directory.generation;
  }

  isAt(path: Path, count: number): boolean {
    return path.nameIs(count - 1, this.name) && path.prefixIs(count - 1, this.parentPath);
  }

  fetch(): number {
    return this.value.length + this.parentPath.length + this.generation;
  }

  /** A copy for the editor with this epoch. Both share value, permissions and children. */
  copy(epoch: number): StoreNode {
    const copy = new StoreNode(
      this.name,
      this.parentPath,
      this.hash,
      epoch,
      this.value,
      this.permissions,
      this.created,
      this.generation,
    );
    if (this.directory !== null) copy.directory = this.directory.copy();
    return copy;
  }
}
