import { setImmediate as nextTurn } from 'node:timers/promises';
import type { ErrnoName } from '../../../src/abi/index.js';
import { HypercallError } from '../../../src/platform/index.js';
import {
  type Domain,
  type DomainOptions,
  Hypervisor,
  type HypervisorOptions,
  SeededScheduler,
} from '../../../src/platform/sim/index.js';

/** A small simulated machine on virtual time. */
export function makeHost(
  options: Partial<HypervisorOptions> = {},
  seed = 1,
): { scheduler: SeededScheduler; hypervisor: Hypervisor } {
  const scheduler = new SeededScheduler(seed, { yieldToMicrotasks: () => nextTurn() });
  const hypervisor = new Hypervisor({
    scheduler,
    random: scheduler.random,
    memoryBytes: 4 << 20,
    ...options,
  });
  return { scheduler, hypervisor };
}

/** Domain 0 and two guests. */
export function makeDomains(
  hypervisor: Hypervisor,
  options: DomainOptions = {},
): { dom0: Domain; a: Domain; b: Domain } {
  return {
    dom0: hypervisor.createDomain({ name: 'Domain-0' }),
    a: hypervisor.createDomain({ name: 'a', ...options }),
    b: hypervisor.createDomain({ name: 'b', ...options }),
  };
}

/** What a hypercall throws that is refused with that errno, for `assert.throws`. */
export const errno = (code: ErrnoName) => (error: unknown) =>
  error instanceof HypercallError && error.code === code;
