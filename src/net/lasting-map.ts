/**
 * A map whose removed keys keep their place until many are gone. A JavaScript Map leaves a hole behind
 * each removal, so that a key which comes and goes in a large map has to pass all its former selves.
 */
export class LastingMap<V> {
  private map = new Map<string, V | undefined>();
  private live = 0;

  get size(): number {
    return this.live;
  }

  get(key: string): V | undefined {
    return this.map.get(key);
  }

  has(key: string): boolean {
    return this.map.get(key) !== undefined;
  }

  set(key: string, value: V): void {
    if (this.map.get(key) === undefined) this.live++;
    this.map.set(key, value);
  }

  /** @returns false when it was not there */
  delete(key: string): boolean {
    if (this.map.get(key) === undefined) return false;
    this.map.set(key, undefined);
    this.live--;
    if (this.map.size > 2 * this.live + 64) {
      this.map = new Map([...this.map].filter(([, value]) => value !== undefined));
    }
    return true;
  }

  *keys(): IterableIterator<string> {
    for (const [key, value] of this.map) if (value !== undefined) yield key;
  }
}
