/**
 * Drivers in a domain of a real Xen host, as a process of its user space: the domain through /dev/xen, and a backend of vifs
 * that `pvnet backend` is the command of.
 */
export {
  checkXen,
  EventCounts,
  GrantCounts,
  LinuxEvents,
  LinuxGrants,
  LinuxMemory,
  LinuxPlatform,
  type LinuxPlatformOptions,
  type ReadinessPoller,
  SystemError,
} from '../platform/linux/index.js';
export * from './antispoof.js';
export * from './backend.js';
export * from './host.js';
export * from './vif-pattern.js';
