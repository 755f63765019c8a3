/** The events of one watch: paths, each at most once until it is taken. */
export class WatchEvents implements AsyncIterableIterator<string> {
  readonly #paths = new Set<string>();
  #waiting: { resolve: (result: IteratorResult<string>) => void; reject: (error: unknown) => void }[] = [];
  #ended = false;
  #error: unknown;
  readonly #unwatch: () => Promise<void>;

  /** @param unwatch removes the watch; called once */
  constructor(unwatch: () => Promise<void>) {
    this.#unwatch = unwatch;
  }

  add(path: string): void {
    if (this.#ended) return;
    const next = this.#waiting.shift();
    if (next !== undefined) next.resolve({ value: path, done: false });
    else this.#paths.add(path);
  }

  /** Ends the series with an error, after the events that came before it. */
  fail(error: unknown): void {
    if (this.#ended) return;
    this.#error = error;
    this.#end();
  }

  /** Removes the watch. Events that are not taken are dropped. */
  async close(): Promise<void> {
    if (this.#ended) return;
    this.#paths.clear();
    await this.#end();
  }

  next(): Promise<IteratorResult<string>> {
    for (const path of this.#paths) {
      this.#paths.delete(path);
      return Promise.resolve({ value: path, done: false });
    }
    if (this.#ended) {
      const error = this.#error;
      this.#error = undefined;
      return error === undefined ? Promise.resolve({ value: undefined, done: true }) : Promise.reject(error);
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
    });
  }

  async return(): Promise<IteratorResult<string>> {
    await this.close();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async #end(): Promise<void> {
    this.#ended = true;
    for (const { resolve, reject } of this.#waiting.splice(0)) {
      if (this.#error === undefined) resolve({ value: undefined, done: true });
      else reject(this.#error);
    }
    // The connection may be gone, and the watch with it.
    await this.#unwatch().catch(() => {});
  }
}
