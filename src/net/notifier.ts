import { ERRNO } from '../abi/errno.js';
import type { NetDevice } from './device.js';

/** Notifier events (enum netdev_cmd of a modern kernel; 1 … 14 are the numbers of 2.6.38 too). */
export const NETDEV_UP = 1;
export const NETDEV_DOWN = 2;
export const NETDEV_REBOOT = 3;
export const NETDEV_CHANGE = 4;
export const NETDEV_REGISTER = 5;
export const NETDEV_UNREGISTER = 6;
export const NETDEV_CHANGEMTU = 7;
export const NETDEV_CHANGEADDR = 8;
export const NETDEV_PRE_CHANGEADDR = 9;
export const NETDEV_GOING_DOWN = 10;
export const NETDEV_CHANGENAME = 11;
export const NETDEV_FEAT_CHANGE = 12;
export const NETDEV_BONDING_FAILOVER = 13;
export const NETDEV_PRE_UP = 14;
export const NETDEV_PRE_TYPE_CHANGE = 15;
export const NETDEV_POST_TYPE_CHANGE = 16;
export const NETDEV_POST_INIT = 17;
export const NETDEV_PRE_UNINIT = 18;
export const NETDEV_RELEASE = 19;
export const NETDEV_NOTIFY_PEERS = 20;
export const NETDEV_JOIN = 21;
export const NETDEV_CHANGEUPPER = 22;
export const NETDEV_RESEND_IGMP = 23;
export const NETDEV_PRECHANGEMTU = 24;
export const NETDEV_CHANGEINFODATA = 25;
export const NETDEV_BONDING_INFO = 26;
export const NETDEV_PRECHANGEUPPER = 27;
export const NETDEV_CHANGELOWERSTATE = 28;
export const NETDEV_CHANGE_TX_QUEUE_LEN = 32;

const EVENT_NAMES: Readonly<Record<number, string>> = {
  [NETDEV_UP]: 'UP',
  [NETDEV_DOWN]: 'DOWN',
  [NETDEV_REBOOT]: 'REBOOT',
  [NETDEV_CHANGE]: 'CHANGE',
  [NETDEV_REGISTER]: 'REGISTER',
  [NETDEV_UNREGISTER]: 'UNREGISTER',
  [NETDEV_CHANGEMTU]: 'CHANGEMTU',
  [NETDEV_CHANGEADDR]: 'CHANGEADDR',
  [NETDEV_PRE_CHANGEADDR]: 'PRE_CHANGEADDR',
  [NETDEV_GOING_DOWN]: 'GOING_DOWN',
  [NETDEV_CHANGENAME]: 'CHANGENAME',
  [NETDEV_FEAT_CHANGE]: 'FEAT_CHANGE',
  [NETDEV_PRE_UP]: 'PRE_UP',
  [NETDEV_POST_INIT]: 'POST_INIT',
  [NETDEV_PRE_UNINIT]: 'PRE_UNINIT',
  [NETDEV_NOTIFY_PEERS]: 'NOTIFY_PEERS',
  [NETDEV_CHANGEUPPER]: 'CHANGEUPPER',
  [NETDEV_RESEND_IGMP]: 'RESEND_IGMP',
  [NETDEV_PRECHANGEMTU]: 'PRECHANGEMTU',
  [NETDEV_PRECHANGEUPPER]: 'PRECHANGEUPPER',
  [NETDEV_CHANGELOWERSTATE]: 'CHANGELOWERSTATE',
  [NETDEV_CHANGE_TX_QUEUE_LEN]: 'CHANGE_TX_QUEUE_LEN',
};

/** An event's name without its NETDEV_ prefix. */
export function eventName(event: number): string {
  return EVENT_NAMES[event] ?? String(event);
}

/** What a callback answers (linux/notifier.h). */
export const NOTIFY_DONE = 0;
export const NOTIFY_OK = 1;
export const NOTIFY_STOP_MASK = 0x8000;
export const NOTIFY_BAD = 0x8002;
export const NOTIFY_STOP = 0x8001;

/** The answer that stops the chain with an errno (positive), as notifier_from_errno. */
export function notifierFromErrno(errno: number): number {
  return errno === 0 ? NOTIFY_OK : NOTIFY_STOP_MASK | (1 + errno);
}

/** The positive errno that an answer stands for, or 0. NOTIFY_BAD is EPERM. */
export function notifierToErrno(answer: number): number {
  const value = answer & ~NOTIFY_STOP_MASK;
  return value > 1 ? value - 1 : 0;
}

export interface NotifierBlock {
  /**
   * Hears of a device's events.
   * @param detail what belongs to the event: the new MTU before CHANGEMTU, the new address before CHANGEADDR
   * @returns NOTIFY_*; nothing is NOTIFY_DONE
   */
  notifierCall(event: number, device: NetDevice, detail?: unknown): number | void;
  /** Higher is called earlier; equals in the order in which they came. */
  readonly priority?: number;
  /** Who it is, for traces. */
  readonly name?: string;
}

/** The ordered list of who hears of devices (a raw notifier chain). */
export class NotifierChain {
  private readonly blocks: NotifierBlock[] = [];

  get size(): number {
    return this.blocks.length;
  }

  add(block: NotifierBlock): void {
    const priority = block.priority ?? 0;
    let at = this.blocks.length;
    while (at > 0 && (this.blocks[at - 1].priority ?? 0) < priority) at--;
    this.blocks.splice(at, 0, block);
  }

  /** @returns false when it was not there */
  remove(block: NotifierBlock): boolean {
    const at = this.blocks.indexOf(block);
    if (at < 0) return false;
    this.blocks.splice(at, 1);
    return true;
  }

  /** @returns the last answer, after which the chain stopped or ended */
  call(event: number, device: NetDevice, detail?: unknown): number {
    let answer = NOTIFY_DONE;
    // The list may change during the calls: a copy, and control code only.
    for (const block of [...this.blocks]) {
      answer = block.notifierCall(event, device, detail) ?? NOTIFY_DONE;
      if ((answer & NOTIFY_STOP_MASK) !== 0) break;
    }
    return answer;
  }
}

/** The errno name for a number, for errors made from a callback's answer. */
export function errnoName(errno: number): keyof typeof ERRNO {
  for (const [name, value] of Object.entries(ERRNO)) if (value === errno) return name as keyof typeof ERRNO;
  return 'EIO';
}
