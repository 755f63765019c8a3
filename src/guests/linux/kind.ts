import type { Irqs } from '../../events/index.js';
import type { Platform } from '../../platform/index.js';
import type { Domain, DomainOptions } from '../../platform/sim/index.js';
import type { DomainConfig } from '../../toolstack/domain-config.js';
import type { Guest, GuestConsole } from '../guest.js';
import { cachedFiles, readGuestFile, readV86Module, requireFiles } from './files.js';
import { LinuxGuest } from './guest.js';

/** What a driver domain loads: the other drivers, and a bridge to put vifs on. */
const DRIVER_DOMAIN = 'pvnet.modules=xen-netfront,xen-netback,bridge';

/** A guest that is a machine of its own, with its kernel: a domain is created for it, then it starts. */
export interface GuestMachine {
  readonly domainOptions: Partial<DomainOptions>;
  start(domain: Domain, dom0: { platform: Platform; irqs: Irqs }): Guest;
  /** When it is not to start after all. */
  destroy(): Promise<void>;
}

/**
 * Makes the machine of `guest = "linux"`.
 * @throws LinuxGuestError that says which file is missing and how to get it
 */
export async function createLinuxMachine(config: DomainConfig): Promise<GuestMachine> {
  const spec = config.linux ?? { driverDomain: false };
  const cached = cachedFiles();
  const kernel = readGuestFile(spec.kernel ?? requireFiles().kernel, 'the kernel');
  // A kernel of one's own boots with what its file says, not with modules of another.
  const ramdisk = spec.ramdisk ?? (spec.kernel === undefined ? requireFiles().ramdisk : null);
  const linux = await LinuxGuest.create({
    module: readV86Module(),
    kernel,
    ramdisk: ramdisk === null ? undefined : readGuestFile(ramdisk, 'the ramdisk'),
    bios: readGuestFile(spec.bios ?? cached?.bios ?? requireFiles().bios, 'the BIOS'),
    vgaBios: readGuestFile(spec.vgaBios ?? cached?.vgaBios ?? requireFiles().vgaBios, 'the VGA BIOS'),
    memoryMib: config.memory,
    extra: [spec.driverDomain ? DRIVER_DOMAIN : '', spec.extra ?? ''].join(' ').trim(),
  });
  const ours = spec.ramdisk === undefined && spec.kernel === undefined;
  return {
    domainOptions: linux.domainOptions,
    start(domain, dom0) {
      linux.start(domain, dom0);
      const devids = config.vifs.map((vif, index) => vif.devid ?? index);
      return guestOf(linux, ours ? devids : null);
    },
    destroy: () => linux.destroy(),
  };
}

/** @param devids the vifs that our init configures; null for an init that is not ours */
function guestOf(linux: LinuxGuest, devids: number[] | null): Guest & { readonly linux: LinuxGuest } {
  const console: GuestConsole = {
    scrollback: () => linux.scrollback,
    onOutput: listener => linux.onOutput(listener),
    type: text => linux.type(text),
  };
  return {
    kind: 'linux',
    linux,
    console,
    settled: () => (devids === null ? Promise.resolve() : linux.whenUp(devids)),
    stop: () => linux.destroy(),
  };
}
