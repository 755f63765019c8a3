/**
 * What grant copies need to know of a domain, in frames of the hypervisor's own, where `wasm/hypercalls.ts` finds it. All
 * are 32-bit words; addresses are byte addresses in machine memory.
 *
 *     directory   a leaf's address by domid >> 10
 *     leaf        a record's address by the rest of the domid, 0 where there is no domain
 *     record      the words below, in a frame
 *     physmap     a leaf's address by gfn >> 10; in the leaf, frames as `Physmap` has them
 *     pins        two words an entry of the grant table, one frame for each of the table's: readers, writers
 */
export const RECORD_DOMID = 0;
/** Entries of the grant table if it is of version 1, else 0. */
export const RECORD_ENTRIES = 4;
/** Entries that may be checked by plain reads (see `GrantTable.plainEntries`). */
export const RECORD_PLAIN = 8;
/** The physmap's first level. */
export const RECORD_PHYSMAP = 12;
/** 1 when the domain's own pages are in machine memory. */
export const RECORD_IN_MACHINE = 16;
/** Addresses of the grant table's frames, then of their pins. */
export const RECORD_TABLE = 64;
export const RECORD_PINS = 2080;
/** Frames of a grant table that a record has room for. */
export const RECORD_FRAMES_MAX = 504;

/** Words in a leaf of the directory or of a physmap. */
export const LEAF_SHIFT = 10;
export const LEAF_MASK = 1023;
