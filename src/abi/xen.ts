/** Special domain identifiers (xen/include/public/xen.h). */
export const DOMID_FIRST_RESERVED = 0x7ff0;
/** The caller itself; the same number as DOMID_FIRST_RESERVED. */
export const DOMID_SELF = 0x7ff0;
export const DOMID_IO = 0x7ff1;
export const DOMID_XEN = 0x7ff2;
export const DOMID_COW = 0x7ff3;
export const DOMID_INVALID = 0x7ff4;
export const DOMID_ANY = 0x7ff5;
export const DOMID_IDLE = 0x7fff;
export const DOMID_MASK = 0x7fff;

/** Virtual interrupts (xen/include/public/xen.h). */
export const VIRQ = {
  TIMER: 0,
  DEBUG: 1,
  CONSOLE: 2,
  DOM_EXC: 3,
  TBUF: 4,
  DEBUGGER: 6,
  XENOPROF: 7,
  CON_RING: 8,
  PCPU_STATE: 9,
  MEM_EVENT: 10,
  ARGO: 11,
  ENOMEM: 12,
  XENPMU: 13,
  ARCH_0: 16,
} as const;

/** VIRQ numbers are below this. */
export const NR_VIRQS = 24;

/** Hypercall numbers (xen/include/public/xen.h, __HYPERVISOR_*) that a network guest makes. */
export const HYPERVISOR = {
  memory_op: 12,
  xen_version: 17,
  console_io: 18,
  grant_table_op: 20,
  vcpu_op: 24,
  sched_op: 29,
  event_channel_op: 32,
  hvm_op: 34,
} as const;

/** Why a domain shut down (xen/include/public/sched.h). */
export const SHUTDOWN = {
  poweroff: 0,
  reboot: 1,
  suspend: 2,
  crash: 3,
  watchdog: 4,
  soft_reset: 5,
} as const;

export type ShutdownReason = keyof typeof SHUTDOWN;

/** Virtual CPUs whose vcpu_info lies in struct shared_info. */
export const XEN_LEGACY_MAX_VCPUS = 32;

/**
 * Byte offsets of struct vcpu_info (xen/include/public/xen.h): 64 bytes on x86, for 64- and 32-bit guests.
 * `evtchn_pending_sel` is a word of the guest's width.
 */
export interface VcpuInfoLayout {
  readonly size: number;
  readonly evtchn_upcall_pending: number;
  readonly evtchn_upcall_mask: number;
  readonly evtchn_pending_sel: number;
  readonly arch: number;
  readonly time: number;
}

/** Byte offsets of struct shared_info (xen/include/public/xen.h). */
export interface SharedInfoLayout {
  /** Bits of a bitmap word: the guest's width. */
  readonly wordBits: 32 | 64;
  readonly vcpu_info: number;
  readonly evtchn_pending: number;
  readonly evtchn_mask: number;
  readonly wc_version: number;
  readonly wc_sec: number;
  readonly wc_nsec: number;
  /** Event channels of the two-level ABI: wordBits squared. */
  readonly nrEventChannels: number;
  readonly vcpu: VcpuInfoLayout;
}

/** struct shared_info of an x86-64 guest. */
export const SHARED_INFO_64: SharedInfoLayout = {
  wordBits: 64,
  vcpu_info: 0,
  evtchn_pending: 2048,
  evtchn_mask: 2560,
  wc_version: 3072,
  wc_sec: 3076,
  wc_nsec: 3080,
  nrEventChannels: 4096,
  vcpu: {
    size: 64,
    evtchn_upcall_pending: 0,
    evtchn_upcall_mask: 1,
    evtchn_pending_sel: 8,
    arch: 16,
    time: 32,
  },
};

/** struct shared_info of a 32-bit x86 guest. */
export const SHARED_INFO_32: SharedInfoLayout = {
  wordBits: 32,
  vcpu_info: 0,
  evtchn_pending: 2048,
  evtchn_mask: 2176,
  wc_version: 2304,
  wc_sec: 2308,
  wc_nsec: 2312,
  nrEventChannels: 1024,
  vcpu: {
    size: 64,
    evtchn_upcall_pending: 0,
    evtchn_upcall_mask: 1,
    evtchn_pending_sel: 4,
    arch: 8,
    time: 32,
  },
};

/** The layout of struct shared_info for a guest of that width. */
export function sharedInfoLayout(wordBits: 32 | 64): SharedInfoLayout {
  return wordBits === 64 ? SHARED_INFO_64 : SHARED_INFO_32;
}
