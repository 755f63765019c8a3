import type { NetDevice } from './device.js';

/** RFC 2863 operational states (linux/if.h). */
export const IF_OPER_UNKNOWN = 0;
export const IF_OPER_NOTPRESENT = 1;
export const IF_OPER_DOWN = 2;
export const IF_OPER_LOWERLAYERDOWN = 3;
export const IF_OPER_TESTING = 4;
export const IF_OPER_DORMANT = 5;
export const IF_OPER_UP = 6;

export const IF_LINK_MODE_DEFAULT = 0;
export const IF_LINK_MODE_DORMANT = 1;
export const IF_LINK_MODE_TESTING = 2;

/** The states' names as sysfs prints them, by number. */
export const OPERSTATES = [
  'unknown',
  'notpresent',
  'down',
  'lowerlayerdown',
  'testing',
  'dormant',
  'up',
] as const;

/** What the operational state of a device should be (rfc2863_policy). */
export function operstateOf(device: NetDevice): number {
  if (!device.carrierOk) return device.ifindex === device.iflink ? IF_OPER_DOWN : IF_OPER_LOWERLAYERDOWN;
  if (device.testing) return IF_OPER_TESTING;
  if (device.dormant) return IF_OPER_DORMANT;
  if (device.linkMode === IF_LINK_MODE_TESTING) return IF_OPER_TESTING;
  if (device.linkMode === IF_LINK_MODE_DORMANT) return IF_OPER_DORMANT;
  return IF_OPER_UP;
}

/** The state that others are shown: what is not open is down. */
export function shownOperstate(device: NetDevice): number {
  return device.running ? device.operstate : IF_OPER_DOWN;
}
