/**
 * The write rate limit of C xenstored (XSA-206): a domain whose writes make other's transactions fail
 * spends credit, and is not heard while its credit is negative. Credit grows with time, shared evenly by
 * all domains; what one does not use goes to a reserve for all.
 */
const WRITE_RATE = {
  /** Credits a second, for all domains together. */
  rate: 200,
  /** Most credit that a domain saves up. */
  domainBurst: 10,
  /** Most credit in the reserve. */
  globalBurst: 1000,
  /** New domains that the reserve gives credit to, though it has none. */
  newDomains: 5,
} as const;

export interface Credit {
  /** Below 0: not heard. */
  credit: number;
  /** Time of the last update, in ms. */
  updated: number;
}

export class WriteRate {
  #reserve = 0;
  #domains = 0;

  constructor(readonly now: () => number) {}

  /** A domain has come; gives it its first credit. */
  add(domain: Credit): void {
    this.#domains++;
    domain.updated = this.now();
    const given = Math.min(
      this.#reserve + WRITE_RATE.newDomains * WRITE_RATE.domainBurst,
      WRITE_RATE.domainBurst,
    );
    domain.credit = Math.max(given, 0);
    this.#reserve -= domain.credit;
  }

  /** A domain has gone; the reserve takes what it had left. */
  remove(domain: Credit): void {
    this.#domains--;
    this.#reserve = Math.min(this.#reserve + Math.max(domain.credit, 0), WRITE_RATE.globalBurst);
  }

  /** Charges one write. */
  charge(domain: Credit): void {
    this.#update(domain);
    domain.credit--;
  }

  /** Milliseconds until the domain is heard again; 0 when it is heard now. */
  delay(domain: Credit): number {
    if (domain.credit >= 0) return 0;
    this.#update(domain);
    if (domain.credit >= 0) return 0;
    return Math.ceil((-domain.credit * 1000 * Math.max(this.#domains, 1)) / WRITE_RATE.rate);
  }

  #update(domain: Credit): void {
    const now = this.now();
    domain.credit += ((now - domain.updated) * WRITE_RATE.rate) / (1000 * Math.max(this.#domains, 1));
    domain.updated = now;
    if (domain.credit < 0 && this.#reserve > 0) {
      const taken = Math.min(this.#reserve, -domain.credit);
      this.#reserve -= taken;
      domain.credit += taken;
    }
    if (domain.credit > WRITE_RATE.domainBurst) {
      this.#reserve = Math.min(
        this.#reserve + domain.credit - WRITE_RATE.domainBurst,
        WRITE_RATE.globalBurst,
      );
      domain.credit = WRITE_RATE.domainBurst;
    }
  }
}
