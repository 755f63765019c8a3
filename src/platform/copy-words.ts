/*
 * A copy of a batch as words, for TypeScript and AssemblyScript.
 */

/** Marks a side of a copy that is the caller's own memory. */
export const COPY_LOCAL = -1;

/**
 * The words of one copy in `CopyBatch.words`. A side is a domid, or COPY_LOCAL; a grant reference of that domain, or a
 * page number of the caller's memory; and an offset in that page.
 */
export const COPY_SRC_DOMID = 0;
export const COPY_SRC_REF = 1;
export const COPY_SRC_OFFSET = 2;
export const COPY_DST_DOMID = 3;
export const COPY_DST_REF = 4;
export const COPY_DST_OFFSET = 5;
export const COPY_LENGTH = 6;
/** GNTST status; valid after the flush. */
export const COPY_STATUS = 7;
export const COPY_WORDS = 8;
