import { XENSTORE_SERVER_FEATURE } from '../abi/xs-wire.js';
import type { Quotas } from './quota.js';
import type { Credit } from './write-rate.js';

/** What the host knows of a domain. A domain that is shut down still exists; one that is dying goes away. */
export type DomainState = 'alive' | 'shutdown' | 'dying' | 'absent';

/** What counts against a quota. */
export type Usage = Record<'nodes' | 'watches' | 'transactions' | 'outstanding' | 'memory', number>;

/** All features that a ring page's server_features can announce. */
export const SUPPORTED_FEATURES =
  XENSTORE_SERVER_FEATURE.RECONNECTION | XENSTORE_SERVER_FEATURE.ERROR | XENSTORE_SERVER_FEATURE.WATCHDEPTH;

/** What xenstored keeps for a domain: from the first mention of one that exists until it is gone. */
export class Domain implements Credit {
  /** INTRODUCE was done. */
  introduced = false;
  /** Its shutdown was noticed and reported. */
  shutdown = false;
  features: number = SUPPORTED_FEATURES;
  /** The domain's own limits, where SET_QUOTA gave it some. */
  quotas: Partial<Quotas> = {};
  readonly usage: Usage = { nodes: 0, watches: 0, transactions: 0, outstanding: 0, memory: 0 };
  /** Paths of the nodes it owns; not kept for domain 0. */
  readonly owned = new Set<string>();
  memoryWarned = false;
  credit = 0;
  updated = 0;

  constructor(
    readonly domid: number,
    /** Tells domains that had the same number apart. */
    readonly incarnation: number,
  ) {}
}

/** All domains that xenstored knows of. */
export class Domains {
  /** The most that any domain but the control domain was seen to use. */
  readonly peaks: Usage = { nodes: 0, watches: 0, transactions: 0, outstanding: 0, memory: 0 };
  readonly #domains = new Map<number, Domain>();
  #incarnations = 0;

  /** @param state asks the host for a domain that is not known yet */
  constructor(readonly state: (domid: number) => DomainState) {}

  get(domid: number): Domain | undefined {
    return this.#domains.get(domid);
  }

  /** As `get`, and makes the record of a domain that exists and was not mentioned before. */
  find(domid: number): Domain | undefined {
    const domain = this.#domains.get(domid);
    if (domain !== undefined) return domain;
    const state = this.state(domid);
    return state === 'absent' || state === 'dying' ? undefined : this.add(domid);
  }

  add(domid: number): Domain {
    const domain = new Domain(domid, ++this.#incarnations);
    this.#domains.set(domid, domain);
    return domain;
  }

  remove(domain: Domain): void {
    if (this.#domains.get(domain.domid) === domain) this.#domains.delete(domain.domid);
  }

  /** Adds to (or takes from) what a domain uses. */
  use(domain: Domain, what: keyof Usage, amount: number): void {
    const used = domain.usage[what] + amount;
    domain.usage[what] = used;
    if (used > this.peaks[what] && domain.domid !== 0) this.peaks[what] = used;
  }

  /** Whether the domain of this number is still the one that was meant. */
  isSame(domid: number, incarnation: number): boolean {
    return this.#domains.get(domid)?.incarnation === incarnation;
  }

  [Symbol.iterator](): IterableIterator<Domain> {
    return this.#domains.values();
  }
}
