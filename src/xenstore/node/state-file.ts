import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { XenStoreError } from '../error.js';
import { restoreState, saveNodesInParts } from '../saved-state.js';
import type { XenStoreServer } from '../server.js';

/** How long changes may stay unsaved. */
const SAVE_INTERVAL_MS = 1000;

/**
 * Takes up what the file holds, when it is there, in a store that is empty.
 * @throws XenStoreError when it holds no state, or could not be written
 */
export function loadState(server: XenStoreServer, path: string): void {
  try {
    if (existsSync(path)) restoreState(server, readFileSync(path));
    closeSync(openSync(`${path}.new`, 'a', 0o600));
    unlinkSync(`${path}.new`);
  } catch (error) {
    throw new XenStoreError('EIO', `the state file ${path} cannot be used: ${(error as Error).message}`);
  }
}

/**
 * Keeps a store's nodes and quotas in a file, so that they survive a crash: at most a second of changes is
 * lost. The file is replaced as a whole, so it is always one state that was; it is written in parts,
 * between which requests are served.
 */
export class StateFile {
  #savedAt = -1;
  #timer: NodeJS.Timeout | null = null;
  #parts: Iterator<Uint8Array> | null = null;
  #fd = -1;
  #closed = false;

  constructor(
    readonly server: XenStoreServer,
    readonly path: string,
  ) {
    this.#savedAt = this.#changes;
    this.#wait();
  }

  /** Saves what is not saved yet, at once, and nothing from then on. @throws the system's error */
  close(): void {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.save();
  }

  /** Saves what is not saved yet, at once. @throws the system's error */
  save(): void {
    const isHalfDone = this.#parts !== null;
    this.#stop();
    if (!isHalfDone && this.#savedAt === this.#changes) return;
    try {
      this.#begin();
      while (this.#writePart());
    } catch (error) {
      this.#savedAt = -1;
      this.#stop();
      throw error;
    }
  }

  get #temporary(): string {
    return `${this.path}.new`;
  }

  get #changes(): number {
    return this.server.store.tree.generations.count;
  }

  #wait(): void {
    this.#timer = setTimeout(() => {
      if (this.#savedAt === this.#changes) this.#wait();
      else this.#saveInParts();
    }, SAVE_INTERVAL_MS);
    this.#timer.unref();
  }

  #saveInParts(): void {
    try {
      this.#begin();
    } catch (error) {
      this.#failed(error);
      return;
    }
    const parts = this.#parts;
    const next = (): void => {
      if (this.#closed) return;
      try {
        // Unless `save` has done it all meanwhile.
        if (this.#parts === parts && this.#writePart()) setImmediate(next);
        else this.#wait();
      } catch (error) {
        this.#failed(error);
      }
    };
    next();
  }

  #begin(): void {
    this.#savedAt = this.#changes;
    this.#fd = openSync(this.#temporary, 'w', 0o600);
    this.#parts = saveNodesInParts(this.server);
  }

  /** @returns false when the file is complete */
  #writePart(): boolean {
    const part = this.#parts!.next();
    if (!part.done) {
      for (let at = 0; at < part.value.length; ) at += writeSync(this.#fd, part.value, at);
      return true;
    }
    fsyncSync(this.#fd);
    this.#stop();
    renameSync(this.#temporary, this.path);
    // The rename itself has to reach the disk.
    const folder = openSync(dirname(this.path), 'r');
    fsyncSync(folder);
    closeSync(folder);
    return false;
  }

  #failed(error: unknown): void {
    this.server.log(`the state cannot be saved to ${this.path}: ${(error as Error).message}`);
    this.#savedAt = -1;
    this.#stop();
    this.#wait();
  }

  #stop(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
    this.#parts = null;
  }
}
