import { existsSync } from 'node:fs';
import type { Irqs } from '../../events/index.js';
import type { Platform } from '../../platform/index.js';
import type { Domain, DomainOptions } from '../../platform/sim/index.js';
import type { DomainConfig, LinuxSpec } from '../../toolstack/domain-config.js';
import type { BootedGuest } from '../boot.js';
import type { Guest, GuestConsole } from '../guest.js';
import {
  cachedFiles,
  readGuestFile,
  readKernel,
  readOurRamdisk,
  readV86Module,
  requireFiles,
} from './files.js';
import { LinuxGuest, type SavedLinux } from './guest.js';
import { readSnapshot, savedAsJson, savedFromJson, snapshotPath, writeSnapshot } from './snapshot.js';
import { spawnNodeWorker } from './spawn-node-worker.js';

/** What a driver domain loads: the other drivers, and a bridge to put vifs on. */
const DRIVER_DOMAIN = 'pvnet.modules=xen-netfront,xen-netback,bridge';

/** A guest that is a machine of its own, with its kernel: a domain is created for it, then it starts. */
export interface GuestMachine {
  readonly domainOptions: Partial<DomainOptions>;
  /** @param state what the guest's `save` gave, to go on from there rather than boot */
  start(domain: Domain, dom0: { platform: Platform; irqs: Irqs }, state: unknown): Promise<BootedGuest>;
  /** When it is not to start after all. */
  destroy(): Promise<void>;
}

/**
 * Makes the machine of `guest = "linux"`. A guest with nothing of its own goes on from the snapshot of one that has
 * just booted, where there is one.
 * @throws LinuxGuestError that says which file is missing and how to get it
 */
export async function createLinuxMachine(config: DomainConfig): Promise<GuestMachine> {
  const spec = config.linux ?? { driverDomain: false };
  const cached = cachedFiles();
  const ours = spec.ramdisk === undefined && spec.kernel === undefined;
  const extra = extraWords(spec);
  const snapshot = ours ? readSnapshot(config.memory, extra) : null;
  const linux = await LinuxGuest.create({
    spawn: spawnNodeWorker,
    module: readV86Module(),
    ...(snapshot === null ? readBootFiles(spec) : {}),
    bios: readGuestFile(spec.bios ?? cached?.bios ?? requireFiles().bios, 'the BIOS'),
    vgaBios: readGuestFile(spec.vgaBios ?? cached?.vgaBios ?? requireFiles().vgaBios, 'the VGA BIOS'),
    memoryMib: config.memory,
    extra,
  });
  const devids = config.vifs.map((vif, index) => vif.devid ?? index);
  return {
    domainOptions: linux.domainOptions,
    async start(domain, dom0, state) {
      await linux.start(domain, dom0, state === undefined ? snapshot : await savedFromJson(state));
      const guest = guestOf(linux, ours ? devids : null);
      return {
        kernel: null,
        guest,
        resume: cancelled => linux.resume(cancelled),
      };
    },
    destroy: () => linux.destroy(),
  };
}

/** Kernel and ramdisk. A kernel of one's own boots with what its file says, not with modules of another. */
function readBootFiles(spec: LinuxSpec): { kernel: Uint8Array; ramdisk?: Uint8Array } {
  const kernel = readKernel(spec.kernel ?? requireFiles().kernel);
  if (spec.ramdisk !== undefined) return { kernel, ramdisk: readGuestFile(spec.ramdisk, 'the ramdisk') };
  return spec.kernel === undefined ? { kernel, ramdisk: readOurRamdisk() } : { kernel };
}

/** The machine of a guest of this kind; null for a guest of another. */
export function linuxOf(guest: Guest): LinuxGuest | null {
  return (guest as Partial<LinuxKindGuest>).linux ?? null;
}

interface LinuxKindGuest extends Guest {
  readonly linux: LinuxGuest;
}

/** Keeps a guest that has just booted, without vifs, for later ones of the same configuration. */
export function keepSnapshot(config: DomainConfig, saved: SavedLinux): void {
  writeSnapshot(config.memory, extraWords(config.linux ?? { driverDomain: false }), saved);
}

/** True when a guest of this configuration would boot, for lack of a snapshot. */
export function lacksSnapshot(config: DomainConfig): boolean {
  const extra = extraWords(config.linux ?? { driverDomain: false });
  return !existsSync(snapshotPath(config.memory, extra));
}

function extraWords(spec: LinuxSpec): string {
  return [spec.driverDomain ? DRIVER_DOMAIN : '', spec.extra ?? ''].join(' ').trim();
}

/** @param devids the vifs that our init configures; null for an init that is not ours */
function guestOf(linux: LinuxGuest, devids: number[] | null): LinuxKindGuest {
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
    save: async () => savedAsJson(await linux.save()),
  };
}
