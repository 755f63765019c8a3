/** What `Platform.grants.wasm` has for drivers' modules to import. */

/** GNTTABOP_copy of the copies from `first` on. @returns the number of the first that was not done, or `count` */
export declare function copy(caller: usize, words: usize, first: i32, count: i32): i32;
/**
 * Lets `domid` write to pages.
 * @param grefs address of the references, a word each
 * @param gfns address of the first page's guest frame number, and `stride` bytes from each to the next
 */
export declare function grantAll(
  record: usize,
  domid: i32,
  grefs: usize,
  gfns: usize,
  stride: usize,
  count: i32,
): void;
/** Revokes grants in their order. @returns how many, less than `count` when the peer has the next one mapped or pinned */
export declare function endAll(record: usize, grefs: usize, count: i32): i32;
