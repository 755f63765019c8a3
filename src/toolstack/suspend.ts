import type { BootedGuest } from '../guests/index.js';
import { abortable } from '../platform/abort.js';
import type { Domain } from '../platform/sim/domain.js';
import { ToolstackError } from './error.js';
import type { Host, HostedDomain } from './host.js';

/** How long a guest has to suspend itself. */
const SUSPEND_TIMEOUT_MS = 10_000;

/** True for a domain that `resumeDomain` lets go on. */
export function isSuspended(domain: Domain): boolean {
  return domain.state === 'shutdown' && domain.shutdownReason === 'suspend';
}

/** A domain's state in words: "suspended" is what Xen calls a shutdown. */
export function stateOf(domain: Domain): string {
  return isSuspended(domain) ? 'suspended' : domain.state;
}

/** @throws ToolstackError EBUSY for a domain with a vif that is being attached or detached: no image of it would be right */
export function requireVifsAtRest({ config, vifs }: HostedDomain): void {
  const busy = [...vifs.values()].find(({ status }) => status !== null);
  if (busy === undefined) return;
  const doing = busy.ending === null ? 'attached' : 'detached';
  throw new ToolstackError('EBUSY', `vif ${busy.devid} of the domain ${config.name} is being ${doing}`);
}

/** `Host.suspend`, for who has the domain already. */
export async function suspendDomain(host: Host, hosted: HostedDomain): Promise<void> {
  const { domain, config, booted } = hosted;
  if (booted?.resume === undefined) {
    throw new ToolstackError(
      'EOPNOTSUPP',
      `${config.name}: a guest of kind "${config.guest.kind}" cannot be suspended`,
    );
  }
  host.requireAlive(hosted);
  if (domain.state !== 'running') {
    throw new ToolstackError('EINVAL', `the domain ${config.name} does not run: it is ${stateOf(domain)}`);
  }
  requireVifsAtRest(hosted);
  await host.xs.write(`/local/domain/${domain.domid}/control/shutdown`, 'suspend');
  const end = host.scheduler.now() + SUSPEND_TIMEOUT_MS;
  while (!isSuspended(domain)) {
    if (domain.state !== 'running') {
      throw new ToolstackError('ESRCH', `the domain ${config.name} ended when it was to suspend itself`);
    }
    if (host.scheduler.now() >= end) {
      throw new ToolstackError('ETIMEDOUT', `the domain ${config.name} did not suspend itself`);
    }
    await new Promise(resolve => host.scheduler.after(5, () => resolve(undefined)));
  }
}

/** `Host.resume`, for who has the domain already. */
export async function resumeDomain(
  host: Host,
  hosted: HostedDomain,
  options: { cancelled?: boolean } = {},
): Promise<void> {
  const { domain, config, booted } = hosted;
  if (!isSuspended(domain) || booted?.resume === undefined) {
    throw new ToolstackError('EINVAL', `the domain ${config.name} is not suspended: it is ${domain.state}`);
  }
  const cancelled = options.cancelled === true || booted.kernel === null;
  await abortable(goOn(host, hosted, booted.resume, cancelled), hosted.destroyed);
}

async function goOn(
  host: Host,
  hosted: HostedDomain,
  resume: NonNullable<BootedGuest['resume']>,
  cancelled: boolean,
): Promise<void> {
  const { domain } = hosted;
  // A domain that comes back has a fresh connection.
  if (!cancelled) {
    const gfn = host.hypervisor.frames.gfn[domain.storePage];
    await host.xs.introduce(domain.domid, gfn, domain.storePort);
  }
  host.requireAlive(hosted);
  domain.resume();
  await resume(cancelled);
}
