import type { ErrnoName } from './errno.js';

/**
 * The XenStore wire protocol (xen/include/public/io/xs_wire.h): a header of four little-endian u32
 * (type, req_id, tx_id, len), then `len` bytes of payload.
 */
export const XS = {
  CONTROL: 0,
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  INTRODUCE: 8,
  RELEASE: 9,
  GET_DOMAIN_PATH: 10,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  SET_PERMS: 14,
  WATCH_EVENT: 15,
  ERROR: 16,
  IS_DOMAIN_INTRODUCED: 17,
  RESUME: 18,
  SET_TARGET: 19,
  /** Removed from the protocol; answered like an unknown type. */
  RESTRICT: 20,
  RESET_WATCHES: 21,
  DIRECTORY_PART: 22,
  GET_FEATURE: 23,
  SET_FEATURE: 24,
  GET_QUOTA: 25,
  SET_QUOTA: 26,
} as const;

/** Message types are below this. */
export const XS_TYPE_COUNT = 27;

const typeNames = Object.keys(XS);

/** "WATCH_EVENT" for 15; "type 99" for a number that is no message type. */
export function xsTypeName(type: number): string {
  return typeNames[type] ?? `type ${type}`;
}

/** Bytes of a message's header. */
export const XS_HEADER_SIZE = 16;
/** Most bytes of payload, in either direction. */
export const XENSTORE_PAYLOAD_MAX = 4096;
/** Most bytes of an absolute path. */
export const XENSTORE_ABS_PATH_MAX = 3072;
/** Most bytes of a path relative to /local/domain/<domid>. */
export const XENSTORE_REL_PATH_MAX = 2048;

/** The errors that have a name on the wire (xsd_errors). A client takes any other name for EINVAL. */
export const XSD_ERRORS = [
  'EINVAL',
  'EACCES',
  'EEXIST',
  'EISDIR',
  'ENOENT',
  'ENOMEM',
  'ENOSPC',
  'EIO',
  'ENOTEMPTY',
  'ENOSYS',
  'EROFS',
  'EBUSY',
  'EAGAIN',
  'EISCONN',
  'E2BIG',
  'EPERM',
] as const satisfies readonly ErrnoName[];

export type XsdErrorName = (typeof XSD_ERRORS)[number];

/** The errno name in an ERROR payload; EINVAL for a name that the wire does not know. */
export function parseXsdError(name: string): XsdErrorName {
  return (XSD_ERRORS as readonly string[]).includes(name) ? (name as XsdErrorName) : 'EINVAL';
}

/**
 * Byte offsets in the ring page (struct xenstore_domain_interface). Of each ring the consumer's index
 * stands before the producer's.
 */
export const XENSTORE_RING = {
  /** Bytes of each ring; a power of two. Indexes run freely modulo 2^32. */
  SIZE: 1024,
  REQ: 0,
  RSP: 1024,
  REQ_CONS: 2048,
  REQ_PROD: 2052,
  RSP_CONS: 2056,
  RSP_PROD: 2060,
  SERVER_FEATURES: 2064,
  CONNECTION: 2068,
  ERROR: 2072,
  EVTCHN_PORT: 2076,
  /** Bytes of the whole structure. */
  STRUCT_SIZE: 2080,
} as const;

/** Bits of server_features, and of GET_FEATURE and SET_FEATURE. */
export const XENSTORE_SERVER_FEATURE = {
  RECONNECTION: 1,
  ERROR: 2,
  WATCHDEPTH: 4,
  DOMID_ANY: 8,
} as const;

/** Values of the ring page's `connection`. */
export const XENSTORE_CONNECTION = { CONNECTED: 0, RECONNECT: 1 } as const;

/** Values of the ring page's `error`. */
export const XENSTORE_ERROR = { NONE: 0, COMM: 1, RINGIDX: 2, PROTO: 3 } as const;
