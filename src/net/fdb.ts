/** Addresses that a bridge remembers at most. */
export const FDB_MAX_ENTRIES = 16384;
/** Addresses that it learns from one port: a guest that makes up addresses fills its own share only. */
export const FDB_MAX_PER_PORT = 1024;
/** How long an address is remembered that is not seen again (br_ageing_time). */
export const FDB_AGEING_MS = 300_000;
/** `lookup` of an address that is the bridge's own. */
export const FDB_LOCAL = -2;
/** `lookup` of an address that is not known. */
export const FDB_UNKNOWN = -1;

const INITIAL_ENTRIES = 64;
/** A free entry's port. */
const FREE = -3;

export interface FdbEntry {
  readonly address: Uint8Array;
  /** Port number, or FDB_LOCAL. */
  readonly port: number;
  /** Milliseconds since it was seen; 0 for a local one. */
  readonly ageMs: number;
  readonly local: boolean;
}

/**
 * A bridge's forwarding database: which port an address was last seen on. Entries age by the time that the
 * caller gives; old ones are found when somebody looks, so nothing ticks while nothing happens.
 *
 * An address is two integers: `high` its first two bytes, `low` the other four.
 */
export class Fdb {
  private size = INITIAL_ENTRIES;
  private high = new Int32Array(INITIAL_ENTRIES);
  private low = new Int32Array(INITIAL_ENTRIES);
  private port = new Int32Array(INITIAL_ENTRIES).fill(FREE);
  private seen = new Float64Array(INITIAL_ENTRIES);
  private chain = new Int32Array(INITIAL_ENTRIES);
  private buckets = new Int32Array(INITIAL_ENTRIES).fill(-1);
  private freeHead = -1;
  private made = 0;
  private readonly perPort = new Map<number, number>();
  /** Entries in use, those too old included that nobody has met yet. */
  count = 0;
  /** Changes whenever an address comes, goes or moves to another port: `lookup` may answer otherwise then. */
  version = 0;
  /** Addresses that were not learned because a limit was reached. */
  refused = 0;

  /** @param seed makes the hash unpredictable for who chooses addresses */
  constructor(
    private readonly seed: number,
    readonly maxEntries = FDB_MAX_ENTRIES,
    readonly maxPerPort = FDB_MAX_PER_PORT,
    public ageingMs = FDB_AGEING_MS,
  ) {}

  /** The port of an address, FDB_LOCAL, or FDB_UNKNOWN. */
  lookup(high: number, low: number, now: number): number {
    const entry = this.find(high, low);
    if (entry < 0) return FDB_UNKNOWN;
    const port = this.port[entry];
    if (port !== FDB_LOCAL && now - this.seen[entry] >= this.ageingMs) {
      this.remove(entry);
      return FDB_UNKNOWN;
    }
    return port;
  }

  /**
   * Remembers that an address was seen on a port. A local address is never taken over.
   * @returns false when it is local or a limit is reached
   */
  learn(high: number, low: number, port: number, now: number): boolean {
    const entry = this.find(high, low);
    if (entry >= 0) {
      const before = this.port[entry];
      if (before === FDB_LOCAL) return false;
      this.seen[entry] = now;
      if (before === port) return true;
      if (!this.hasRoom(port, now)) {
        this.remove(entry);
        return false;
      }
      this.port[entry] = port;
      this.version = (this.version + 1) | 0;
      this.countPort(before, -1);
      this.countPort(port, 1);
      return true;
    }
    if (!this.hasRoom(port, now)) return false;
    this.insert(high, low, port, now);
    return true;
  }

  /** Makes an address the bridge's own. */
  addLocal(high: number, low: number): void {
    const entry = this.find(high, low);
    if (entry >= 0) this.remove(entry);
    this.insert(high, low, FDB_LOCAL, 0);
  }

  removeLocal(high: number, low: number): void {
    const entry = this.find(high, low);
    if (entry >= 0 && this.port[entry] === FDB_LOCAL) this.remove(entry);
  }

  /** Forgets what was learned on a port. */
  flushPort(port: number): void {
    for (let entry = 0; entry < this.made; entry++) if (this.port[entry] === port) this.remove(entry);
  }

  /** Forgets everything learned. */
  flush(): void {
    for (let entry = 0; entry < this.made; entry++) if (this.port[entry] >= 0) this.remove(entry);
  }

  /** What is remembered and not too old. */
  entries(now: number): FdbEntry[] {
    const found: FdbEntry[] = [];
    for (let entry = 0; entry < this.made; entry++) {
      const port = this.port[entry];
      if (port === FREE) continue;
      const local = port === FDB_LOCAL;
      const ageMs = local ? 0 : now - this.seen[entry];
      if (!local && ageMs >= this.ageingMs) continue;
      const high = this.high[entry];
      const low = this.low[entry];
      const address = Uint8Array.of(high >>> 8, high, low >>> 24, low >>> 16, low >>> 8, low);
      found.push({ address, port, ageMs, local });
    }
    return found;
  }

  private bucket(high: number, low: number): number {
    let hash = Math.imul(low ^ this.seed, 0x9e3779b1) ^ Math.imul(high + this.seed, 0x85ebca6b);
    hash ^= hash >>> 15;
    hash = Math.imul(hash, 0x2c1b3c6d);
    return (hash ^ (hash >>> 13)) & (this.size - 1);
  }

  private find(high: number, low: number): number {
    let entry = this.buckets[this.bucket(high, low)];
    while (entry >= 0 && (this.low[entry] !== low || this.high[entry] !== high)) entry = this.chain[entry];
    return entry;
  }

  private countPort(port: number, by: number): void {
    if (port < 0) return;
    const count = (this.perPort.get(port) ?? 0) + by;
    if (count === 0) this.perPort.delete(port);
    else this.perPort.set(port, count);
  }

  private hasRoom(port: number, now: number): boolean {
    if (!this.isFull(port)) return true;
    if (now - this.lastSweep >= 1000) {
      this.lastSweep = now;
      for (let entry = 0; entry < this.made; entry++) {
        if (this.port[entry] >= 0 && now - this.seen[entry] >= this.ageingMs) this.remove(entry);
      }
    }
    if (!this.isFull(port)) return true;
    this.refused++;
    return false;
  }

  private isFull(port: number): boolean {
    return this.count >= this.maxEntries || (this.perPort.get(port) ?? 0) >= this.maxPerPort;
  }

  /** When old entries were last looked for to make room: not for every packet of a flood. */
  private lastSweep = Number.NEGATIVE_INFINITY;

  private insert(high: number, low: number, port: number, now: number): void {
    let entry = this.freeHead;
    if (entry >= 0) this.freeHead = this.chain[entry];
    else {
      if (this.made === this.size) this.grow();
      entry = this.made++;
    }
    this.high[entry] = high;
    this.low[entry] = low;
    this.port[entry] = port;
    this.seen[entry] = now;
    const bucket = this.bucket(high, low);
    this.chain[entry] = this.buckets[bucket];
    this.buckets[bucket] = entry;
    this.count++;
    this.version = (this.version + 1) | 0;
    this.countPort(port, 1);
  }

  private remove(entry: number): void {
    const bucket = this.bucket(this.high[entry], this.low[entry]);
    let at = this.buckets[bucket];
    if (at === entry) this.buckets[bucket] = this.chain[entry];
    else {
      while (this.chain[at] !== entry) at = this.chain[at];
      this.chain[at] = this.chain[entry];
    }
    this.countPort(this.port[entry], -1);
    this.port[entry] = FREE;
    this.chain[entry] = this.freeHead;
    this.freeHead = entry;
    this.count--;
    this.version = (this.version + 1) | 0;
  }

  private grow(): void {
    const size = this.size * 2;
    const copy = (from: Int32Array): Int32Array<ArrayBuffer> => {
      const to = new Int32Array(size);
      to.set(from);
      return to;
    };
    this.high = copy(this.high);
    this.low = copy(this.low);
    this.port = copy(this.port).fill(FREE, this.size);
    const seen = new Float64Array(size);
    seen.set(this.seen);
    this.seen = seen;
    this.chain = new Int32Array(size);
    this.buckets = new Int32Array(size).fill(-1);
    this.size = size;
    for (let entry = 0; entry < this.made; entry++) {
      const bucket = this.bucket(this.high[entry], this.low[entry]);
      this.chain[entry] = this.buckets[bucket];
      this.buckets[bucket] = entry;
    }
  }
}
