/** What `Platform.grants.wasm` has for drivers' modules to import. */

/** GNTTABOP_copy of the copies from `first` on. @returns the number of the first that was not done, or `count` */
export declare function copy(caller: usize, words: usize, first: i32, count: i32): i32;
/** Lets `domid` reach the page with that guest frame number. */
export declare function grant(record: usize, gref: u32, domid: i32, gfn: u32, readonly: bool): void;
/** Revokes a grant. @returns false while the peer has the page mapped or pinned */
export declare function end(record: usize, gref: u32): bool;
