import type { XenStoreClient } from '../xenstore/index.js';

/** What every domain has in its home, as libxl__domain_make makes it: directories that the guest only reads, … */
const READ_ONLY = ['cpu', 'memory', 'device', 'control', 'hvmloader'];
/** … and nodes of its own. */
const GUEST_OWNED = [
  'control/shutdown',
  'control/feature-poweroff',
  'control/feature-reboot',
  'control/feature-suspend',
  'control/sysrq',
  'device/suspend/event-channel',
  'data',
  'drivers',
  'feature',
  'attr',
  'error',
];

export interface DomainIdentity {
  readonly domid: number;
  readonly name: string;
  readonly uuid: string;
  readonly memoryMib: number;
}

/** Makes a domain's home, and the toolstack's notes of it, in one transaction. */
export async function writeDomain(xs: XenStoreClient, domain: DomainIdentity): Promise<void> {
  const { domid, name, uuid } = domain;
  const home = `/local/domain/${domid}`;
  const vm = `/vm/${uuid}`;
  const readOnly = ['n0', `r${domid}`];
  const owned = [`n${domid}`];
  await xs.transaction(async t => {
    for (const path of [home, vm]) {
      if (await t.exists(path)) await t.rm(path);
      await t.mkdir(path);
      await t.setPerms(path, readOnly);
    }
    if (await t.exists(`/libxl/${domid}`)) await t.rm(`/libxl/${domid}`);
    await t.mkdir(`/libxl/${domid}`);
    await t.write(`${home}/vm`, vm);
    await t.write(`${home}/name`, name);
    await t.write(`${home}/domid`, String(domid));
    for (const node of READ_ONLY) {
      await t.mkdir(`${home}/${node}`);
      await t.setPerms(`${home}/${node}`, readOnly);
    }
    for (const node of GUEST_OWNED) {
      await t.mkdir(`${home}/${node}`);
      await t.setPerms(`${home}/${node}`, owned);
    }
    await t.write(`${home}/control/platform-feature-xs_reset_watches`, '1');
    await t.write(`${home}/control/platform-feature-multiprocessor-suspend`, '1');
    await t.write(`${home}/memory/static-max`, String(domain.memoryMib * 1024));
    await t.write(`${home}/memory/target`, String(domain.memoryMib * 1024));
    await t.write(`${home}/cpu/0/availability`, 'online');
    await t.write(`${vm}/name`, name);
    await t.write(`${vm}/uuid`, uuid);
    await t.write(`/libxl/${domid}/type`, 'pvh');
  });
}

/** Removes all that `writeDomain` made, and whatever the domain and its devices left. */
export async function removeDomain(xs: XenStoreClient, domain: DomainIdentity): Promise<void> {
  await xs.transaction(async t => {
    for (const path of [`/local/domain/${domain.domid}`, `/vm/${domain.uuid}`, `/libxl/${domain.domid}`]) {
      if (await t.exists(path)) await t.rm(path);
    }
  });
}
