/** The Xen that a guest is told of: 4.17. */
export const XEN_VERSION = { major: 4, minor: 17, extra: '.0' } as const;
