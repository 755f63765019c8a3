/** EVTCHNOP command numbers (xen/include/public/event_channel.h). */
export const EVTCHNOP = {
  bind_interdomain: 0,
  bind_virq: 1,
  bind_pirq: 2,
  close: 3,
  send: 4,
  status: 5,
  alloc_unbound: 6,
  bind_ipi: 7,
  bind_vcpu: 8,
  unmask: 9,
  reset: 10,
  init_control: 11,
  expand_array: 12,
  set_priority: 13,
} as const;

/** What EVTCHNOP_status tells of a port. */
export const EVTCHNSTAT = {
  closed: 0,
  unbound: 1,
  interdomain: 2,
  pirq: 3,
  virq: 4,
  ipi: 5,
} as const;

const statusNames = Object.keys(EVTCHNSTAT);

/** "interdomain" for 2; "status 9" for a number that is none. */
export function evtchnStatusName(status: number): string {
  return statusNames[status] ?? `status ${status}`;
}

/** Byte offsets of the operations' argument structs (the same for 64- and 32-bit guests but init_control). */
export const EVTCHN_ALLOC_UNBOUND = { size: 8, dom: 0, remote_dom: 2, port: 4 } as const;
export const EVTCHN_BIND_INTERDOMAIN = { size: 12, remote_dom: 0, remote_port: 4, local_port: 8 } as const;
export const EVTCHN_BIND_VIRQ = { size: 12, virq: 0, vcpu: 4, port: 8 } as const;
export const EVTCHN_BIND_PIRQ = { size: 12, pirq: 0, flags: 4, port: 8 } as const;
export const EVTCHN_BIND_IPI = { size: 8, vcpu: 0, port: 4 } as const;
export const EVTCHN_CLOSE = { size: 4, port: 0 } as const;
export const EVTCHN_SEND = { size: 4, port: 0 } as const;
/** `u` holds, by status: unbound dom 16; interdomain dom 16 and port 20; pirq 16; virq 16. */
export const EVTCHN_STATUS = {
  size: 24,
  dom: 0,
  port: 4,
  status: 8,
  vcpu: 12,
  unbound: { dom: 16 },
  interdomain: { dom: 16, port: 20 },
  pirq: 16,
  virq: 16,
} as const;
export const EVTCHN_BIND_VCPU = { size: 8, port: 0, vcpu: 4 } as const;
export const EVTCHN_UNMASK = { size: 4, port: 0 } as const;
export const EVTCHN_RESET = { size: 2, dom: 0 } as const;
export const EVTCHN_INIT_CONTROL = { size: 24, control_gfn: 0, offset: 8, vcpu: 12, link_bits: 16 } as const;
export const EVTCHN_EXPAND_ARRAY = { size: 8, array_gfn: 0 } as const;
export const EVTCHN_SET_PRIORITY = { size: 8, port: 0, priority: 4 } as const;

/** The FIFO ABI's event word: flags in the high bits, the next port of the queue below. */
export const EVTCHN_FIFO = {
  PENDING: 31,
  MASKED: 30,
  LINKED: 29,
  BUSY: 28,
  LINK_BITS: 17,
  NR_CHANNELS: 1 << 17,
  PRIORITY_MAX: 0,
  PRIORITY_DEFAULT: 7,
  PRIORITY_MIN: 15,
  MAX_QUEUES: 16,
  /** struct evtchn_fifo_control_block: a ready bit per queue, then the queues' heads. */
  control_block: { size: 72, ready: 0, head: 8 },
  WORDS_PER_PAGE: 1024,
} as const;
