/** GNTST status codes (xen/include/public/grant_table.h). */
export const GNTST = {
  okay: 0,
  general_error: -1,
  bad_domain: -2,
  bad_gntref: -3,
  bad_handle: -4,
  bad_virt_addr: -5,
  bad_dev_addr: -6,
  no_device_space: -7,
  permission_denied: -8,
  bad_page: -9,
  bad_copy_arg: -10,
  address_too_big: -11,
  eagain: -12,
  no_space: -13,
} as const;

const statusNames = new Map<number, string>(
  Object.entries(GNTST).map(([name, status]) => [status, `GNTST_${name}`]),
);

/** "GNTST_bad_gntref" for -3; "GNTST -99" for a number that is no status. */
export function grantStatusName(status: number): string {
  return statusNames.get(status) ?? `GNTST ${status}`;
}

/** GNTTABOP command numbers. */
export const GNTTABOP = {
  map_grant_ref: 0,
  unmap_grant_ref: 1,
  setup_table: 2,
  dump_table: 3,
  transfer: 4,
  copy: 5,
  query_size: 6,
  unmap_and_replace: 7,
  set_version: 8,
  get_status_frames: 9,
  get_version: 10,
  swap_grant_ref: 11,
  cache_flush: 12,
} as const;

/** The low references belong to the toolstack and are never handed out by the guest. */
export const GNTTAB_NR_RESERVED_ENTRIES = 8;
export const GNTTAB_RESERVED_CONSOLE = 0;
export const GNTTAB_RESERVED_XENSTORE = 1;

/** The entry's type: flags & GTF_type_mask. */
export const GTF_invalid = 0;
export const GTF_permit_access = 1;
export const GTF_accept_transfer = 2;
export const GTF_transitive = 3;
export const GTF_type_mask = 3;
/** Set by the granting domain. */
export const GTF_readonly = 1 << 2;
/** Set by Xen while the page is pinned for reading (v2: in the status array). */
export const GTF_reading = 1 << 3;
/** Set by Xen while the page is pinned for writing (v2: in the status array). */
export const GTF_writing = 1 << 4;
export const GTF_PWT = 1 << 5;
export const GTF_PCD = 1 << 6;
export const GTF_PAT = 1 << 7;
/** v2 only: the grant covers a part of the page and can be copied, not mapped. */
export const GTF_sub_page = 1 << 8;
/** Of an accept_transfer entry. */
export const GTF_transfer_committed = 1 << 2;
export const GTF_transfer_completed = 1 << 3;

/** Byte offsets of grant_entry_v1. `frame` is a u32 guest frame number. */
export const GRANT_ENTRY_V1 = { size: 8, flags: 0, domid: 2, frame: 4 } as const;
export const GRANT_ENTRY_V1_SHIFT = 3;
export const GRANT_ENTRIES_PER_FRAME_V1 = 512;

/** Byte offsets of grant_entry_v2: one header, then full_page, sub_page or transitive. */
export const GRANT_ENTRY_V2 = {
  size: 16,
  flags: 0,
  domid: 2,
  full_page: { frame: 8 },
  sub_page: { page_off: 4, length: 6, frame: 8 },
  transitive: { trans_domid: 4, gref: 8 },
} as const;
export const GRANT_ENTRY_V2_SHIFT = 4;
export const GRANT_ENTRIES_PER_FRAME_V2 = 256;

/** Bytes of grant_status_t: the pins of a v2 entry. */
export const GRANT_STATUS_SIZE = 2;
export const GRANT_STATUS_PER_FRAME = 2048;

/** Flags of GNTTABOP_map_grant_ref. */
export const GNTMAP_device_map = 1;
export const GNTMAP_host_map = 2;
export const GNTMAP_readonly = 4;
export const GNTMAP_application_map = 8;
export const GNTMAP_contains_pte = 16;

/** Flags of GNTTABOP_copy. */
export const GNTCOPY_source_gref = 1;
export const GNTCOPY_dest_gref = 2;

/** Byte offsets of the operations' argument structs for an x86-64 guest. */
export const GNTTAB_MAP_GRANT_REF = {
  size: 32,
  host_addr: 0,
  flags: 8,
  ref: 12,
  dom: 16,
  status: 18,
  handle: 20,
  dev_bus_addr: 24,
} as const;
export const GNTTAB_UNMAP_GRANT_REF = {
  size: 24,
  host_addr: 0,
  dev_bus_addr: 8,
  handle: 16,
  status: 20,
} as const;
export const GNTTAB_SETUP_TABLE = { size: 24, dom: 0, nr_frames: 4, status: 8, frame_list: 16 } as const;
export const GNTTAB_TRANSFER = { size: 24, mfn: 0, domid: 8, ref: 12, status: 16 } as const;
/** `source` and `dest`: u.ref (u32) or u.gmfn (u64) at 0, domid at 8, offset at 10. */
export const GNTTAB_COPY = {
  size: 40,
  source: 0,
  dest: 16,
  len: 32,
  flags: 34,
  status: 36,
  side: { ref: 0, gmfn: 0, domid: 8, offset: 10 },
} as const;
export const GNTTAB_QUERY_SIZE = { size: 16, dom: 0, nr_frames: 4, max_nr_frames: 8, status: 12 } as const;
export const GNTTAB_UNMAP_AND_REPLACE = {
  size: 24,
  host_addr: 0,
  new_addr: 8,
  handle: 16,
  status: 20,
} as const;
export const GNTTAB_SET_VERSION = { size: 4, version: 0 } as const;
export const GNTTAB_GET_STATUS_FRAMES = {
  size: 16,
  nr_frames: 0,
  dom: 4,
  status: 6,
  frame_list: 8,
} as const;
export const GNTTAB_GET_VERSION = { size: 8, dom: 0, version: 4 } as const;
export const GNTTAB_SWAP_GRANT_REF = { size: 12, ref_a: 0, ref_b: 4, status: 8 } as const;
export const GNTTAB_CACHE_FLUSH = { size: 16, a: 0, offset: 8, length: 10, op: 12 } as const;
