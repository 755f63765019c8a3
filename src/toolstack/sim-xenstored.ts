import { GNTTAB_RESERVED_XENSTORE } from '../abi/grant-table.js';
import { VIRQ } from '../abi/xen.js';
import type { Irqs } from '../events/index.js';
import type { Platform } from '../platform/platform.js';
import type { Hypervisor } from '../platform/sim/index.js';
import { type XenStoreHost, XenStoreServer, type XenStoreServerOptions } from '../xenstore/index.js';

/** xenstored that runs in domain 0 of a simulated host. */
export interface SimXenstored {
  readonly server: XenStoreServer;
  /** Hears no more of domains; the rings that are mapped stay so until their domains go. */
  close(): void;
}

/**
 * Starts xenstored in domain 0 of a simulated host: the glue between the server, which is portable, and the
 * simulated Xen. It maps the domains' ring pages and binds their event channels through domain 0's platform, and hears of
 * domains that shut down or die by VIRQ_DOM_EXC. Domain 0's own ring is served from the start; the others when the
 * toolstack introduces them. Production code: the host of `pvnet up` uses it, and so do tests.
 * @param dom0 platform and interrupts of domain 0's kernel
 * @throws EEXIST when VIRQ_DOM_EXC of domain 0 is bound
 */
export function startSimXenstored(
  hypervisor: Hypervisor,
  dom0: { platform: Platform; irqs: Irqs },
  options: Partial<Omit<XenStoreServerOptions, 'host'>> = {},
): SimXenstored {
  const { platform, irqs } = dom0;
  /** What lets go of the port of each domain that is served. */
  const bound = new Map<number, () => void>();
  const host: XenStoreHost = {
    introduce(domid, _gfn, port, onEvent) {
      // A domain introduced again may have kept its port, which is free for us only once our old end is closed.
      bound.get(domid)?.();
      const mapping = platform.grants.map(domid, GNTTAB_RESERVED_XENSTORE, false);
      let irq: number;
      let local: number;
      try {
        const name = `xenstored d${domid}`;
        ({ irq, port: local } = irqs.bindInterdomainEvtchnToIrqhandler(domid, port, onEvent, name));
      } catch (error) {
        platform.grants.unmap(mapping);
        throw error;
      }
      let isBound = true;
      const unbind = () => {
        if (!isBound) return;
        isBound = false;
        if (bound.get(domid) === unbind) bound.delete(domid);
        irqs.unbindFromIrqhandler(irq);
      };
      bound.set(domid, unbind);
      return {
        memory: mapping.memory,
        address: mapping.address,
        notify() {
          if (isBound) platform.events.notify(local);
        },
        unmap() {
          unbind();
          platform.grants.unmap(mapping);
        },
      };
    },
    domainState: domid => hypervisor.domainState(domid),
  };
  const server = new XenStoreServer({
    scheduler: platform.scheduler,
    random: () => platform.random(),
    log: line => platform.log(`xenstored: ${line}`),
    ...options,
    host,
  });
  const virq = irqs.bindVirqToIrqhandler(VIRQ.DOM_EXC, 0, () => server.domainsChanged(), 'xenstored virq');
  const self = hypervisor.domain(0);
  if (self !== null) server.introduce(0, platform.memory.gfn(self.storePage), self.storePort);
  return { server, close: () => irqs.unbindFromIrqhandler(virq) };
}
