/** `domid` of an entry that is free. */
const FREE = -1;

/**
 * Which foreign grants a domain maps, by handle (Xen's maptrack). Entries are reused; the arrays grow to
 * the domain's limit.
 */
export class Maptrack {
  /** The granter, or -1 for a handle that is not in use. */
  domid = new Int32Array(0);
  gref = new Uint32Array(0);
  /** GNTMAP flags of what is still mapped. */
  flags = new Int32Array(0);
  /** The frame that was granted when the mapping was made. */
  frame = new Int32Array(0);
  /** Mappings in use. */
  used = 0;
  /** Handles below have been used. */
  private made = 0;
  private freeList: number[] = [];

  constructor(readonly limit: number) {}

  /** True for a handle that maps something. */
  isUsed(handle: number): boolean {
    return handle < this.made && this.domid[handle] !== FREE;
  }

  /** @returns a handle, or -1 when the domain has as many mappings as it may */
  add(domid: number, gref: number, flags: number, frame: number): number {
    let handle = this.freeList.pop();
    if (handle === undefined) {
      if (this.made === this.limit) return -1;
      if (this.made === this.domid.length) this.grow();
      handle = this.made++;
    }
    this.domid[handle] = domid;
    this.gref[handle] = gref;
    this.flags[handle] = flags;
    this.frame[handle] = frame;
    this.used++;
    return handle;
  }

  remove(handle: number): void {
    this.domid[handle] = FREE;
    this.freeList.push(handle);
    this.used--;
  }

  /** Handles in use. */
  *handles(): Generator<number> {
    for (let handle = 0; handle < this.made; handle++) if (this.domid[handle] !== FREE) yield handle;
  }

  private grow(): void {
    const size = Math.min(this.limit, Math.max(32, this.domid.length * 2));
    const { domid, gref, flags, frame } = this;
    this.domid = new Int32Array(size);
    this.gref = new Uint32Array(size);
    this.flags = new Int32Array(size);
    this.frame = new Int32Array(size);
    this.domid.set(domid);
    this.gref.set(gref);
    this.flags.set(flags);
    this.frame.set(frame);
  }
}
