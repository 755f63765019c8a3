/**
 * What an HVM guest needs beside the rings: the hypercalls with which a kernel finds its way at boot, and
 * the argument structs in the layout of 32-bit x86 guests.
 */

/** First of Xen's CPUID leaves (xen/include/public/arch-x86/cpuid.h). */
export const XEN_CPUID_FIRST_LEAF = 0x4000_0000;
/** "XenVMMXenVMM" in ebx, ecx, edx. */
export const XEN_CPUID_SIGNATURE = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e] as const;

/** XENVER_* commands and XENFEAT_* bits (xen/include/public/version.h, features.h). */
export const XENVER = {
  version: 0,
  extraversion: 1,
  compile_info: 2,
  capabilities: 3,
  changeset: 4,
  platform_parameters: 5,
  get_features: 6,
  pagesize: 7,
  guest_handle: 8,
} as const;

export const XENFEAT = {
  writable_page_tables: 0,
  auto_translated_physmap: 2,
  hvm_callback_vector: 8,
} as const;

/** xen_compile_info: four strings. */
export const XEN_COMPILE_INFO = {
  compiler: 0,
  compile_by: 64,
  compile_domain: 80,
  compile_date: 112,
} as const;
export const XEN_FEATURE_INFO = { submap_idx: 0, submap: 4 } as const;

/** XENMEM_* (xen/include/public/memory.h). */
export const XENMEM = {
  increase_reservation: 0,
  decrease_reservation: 1,
  maximum_ram_page: 2,
  current_reservation: 3,
  maximum_reservation: 4,
  populate_physmap: 6,
  add_to_physmap: 7,
} as const;

export const XENMAPSPACE = { shared_info: 0, grant_table: 1 } as const;
/** In an index of XENMAPSPACE_grant_table: a frame of the status array. */
export const XENMAPIDX_grant_table_status = 0x8000_0000;

/** struct xen_add_to_physmap, 32-bit. */
export const XEN_ADD_TO_PHYSMAP = { size: 16, domid: 0, space: 4, idx: 8, gpfn: 12 } as const;
/** struct xen_memory_reservation, 32-bit. */
export const XEN_MEMORY_RESERVATION = {
  size: 20,
  extent_start: 0,
  nr_extents: 4,
  extent_order: 8,
  mem_flags: 12,
  domid: 16,
} as const;

/** HVMOP_* and HVM_PARAM_* (xen/include/public/hvm/{hvm_op,params}.h). */
export const HVMOP = { set_param: 0, get_param: 1 } as const;
export const HVM_PARAM = {
  CALLBACK_IRQ: 0,
  STORE_PFN: 1,
  STORE_EVTCHN: 2,
  CONSOLE_PFN: 17,
  CONSOLE_EVTCHN: 18,
} as const;
/** Parameters are numbered below this. */
export const HVM_NR_PARAMS = 39;
/** The type in the top byte of CALLBACK_IRQ: a vector in the low byte. */
export const HVM_PARAM_CALLBACK_TYPE_VECTOR = 2;
/** struct xen_hvm_param. */
export const XEN_HVM_PARAM = { size: 16, domid: 0, index: 4, value: 8 } as const;

/** VCPUOP_* (xen/include/public/vcpu.h). */
export const VCPUOP = {
  stop_periodic_timer: 7,
  register_vcpu_info: 10,
} as const;
/** struct vcpu_register_vcpu_info. */
export const VCPU_REGISTER_VCPU_INFO = { size: 16, mfn: 0, offset: 8 } as const;

/** SCHEDOP_* (xen/include/public/sched.h). */
export const SCHEDOP = { yield: 0, block: 1, shutdown: 2, poll: 3 } as const;

/** CONSOLEIO_* (xen/include/public/xen.h). */
export const CONSOLEIO = { write: 0, read: 1 } as const;

/**
 * GNTTABOP structs of a 32-bit guest where they differ from a 64-bit one's. `source` and `dest`: u.ref or
 * u.gmfn (both u32) at 0, domid at 4, offset at 6.
 */
export const GNTTAB_COPY_32 = {
  size: 24,
  source: 0,
  dest: 8,
  len: 16,
  flags: 18,
  status: 20,
  side: { ref: 0, domid: 4, offset: 6 },
} as const;

/** The xen-platform device (5853:0001) and its ports to take emulated devices away (docs/misc/hvm-emulated-unplug). */
export const XEN_PLATFORM = {
  vendor: 0x5853,
  device: 0x0001,
  /** Reads as the magic; written: what to unplug. */
  unplugPort: 0x10,
  versionPort: 0x12,
  magic: 0x49d2,
} as const;
