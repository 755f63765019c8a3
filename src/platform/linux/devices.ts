import { existsSync, readFileSync } from 'node:fs';
import { errno, errnoName, libc, O_CLOEXEC, O_NONBLOCK, O_RDWR, SystemError } from './libc.js';

/** The kernel's modules behind the device files. */
export const XEN_DEVICES = {
  '/dev/xen/evtchn': 'xen-evtchn',
  '/dev/xen/gntdev': 'xen-gntdev',
  '/dev/xen/gntalloc': 'xen-gntalloc',
} as const;

export type XenDevice = keyof typeof XEN_DEVICES;

/** What a message about a device that cannot be opened depends on. */
export interface MachineFacts {
  /** /sys/hypervisor/type, "" without that file. */
  readonly hypervisor: string;
  readonly deviceExists: boolean;
  readonly isRoot: boolean;
}

/** Says why `device` could not be opened, and what to do about it. */
export function explainDevice(device: XenDevice, code: string, facts: MachineFacts): string {
  if (facts.hypervisor !== 'xen') {
    return `${device}: this machine does not run on Xen (/sys/hypervisor/type is "${facts.hypervisor}", not "xen"); "pvnet up" makes a host of its own`;
  }
  if (!facts.deviceExists) {
    return `there is no ${device}: load the kernel's module with "modprobe ${XEN_DEVICES[device]}"`;
  }
  if ((code === 'EACCES' || code === 'EPERM') && !facts.isRoot) {
    return `this user may not open ${device}: run as root`;
  }
  return `${device} cannot be opened (${code})`;
}

function machineFacts(device: string): MachineFacts {
  let hypervisor = '';
  try {
    hypervisor = readFileSync('/sys/hypervisor/type', 'utf8').trim();
  } catch {
    // A kernel without Xen support does not have the file.
  }
  return { hypervisor, deviceExists: existsSync(device), isRoot: process.getuid?.() === 0 };
}

/** Opens one of Xen's device files, non-blocking. @throws SystemError that says what to do */
export function openXenDevice(device: XenDevice): number {
  const fd = libc().open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0) return fd;
  const code = errnoName(errno());
  const facts = machineFacts(device);
  throw new SystemError(facts.hypervisor === 'xen' ? code : 'ENODEV', explainDevice(device, code, facts));
}

/** Tells early, and in words, when this process cannot reach Xen at all. @throws SystemError that says what to do */
export function checkXen(): void {
  libc().close(openXenDevice('/dev/xen/evtchn'));
}
