/*
 * What `wasm/fast-path.ts` and `fast-path.ts` know of a queue, in a page of the backend's own. All are 32-bit words, but for
 * BLOCK_ANSWERED; addresses are byte addresses.
 */
export const BLOCK_DOMID = 0;
/** The two ring pages. */
export const BLOCK_TX_RING = 4;
export const BLOCK_RX_RING = 8;
/** The rings' private indexes: of the requests consumed, and of the responses written. */
export const BLOCK_TX_REQ_CONS = 12;
export const BLOCK_TX_RSP_PVT = 16;
export const BLOCK_RX_REQ_CONS = 20;
export const BLOCK_RX_RSP_PVT = 24;
/** As a target: OFFLOAD_* that its guest takes, and the longest frames that it does, without and with GSO. */
export const BLOCK_OFFLOADS = 28;
export const BLOCK_FRAME_MAX = 32;
export const BLOCK_GSO_MAX = 36;
/** As a target: packets and bytes that were put on its rx ring, since somebody set them to 0. */
export const BLOCK_RX_PACKETS = 40;
export const BLOCK_RX_BYTES = 44;
/** As a source: bytes of the packets that were passed on, and why it ended: STOP_*. */
export const BLOCK_TX_BYTES = 48;
export const BLOCK_STOP = 52;
/** Number of the poll: a route that is not of this poll has to be confirmed. */
export const BLOCK_POLL = 60;
/** With STOP_ROUTE: the addresses of the frame, as they lie in memory. */
export const BLOCK_ADDRESSES = 64;
/** As a source: how many of the packets had fragments, and more than SKB_FRAGS_MAX, since somebody set them to 0. */
export const BLOCK_TX_FRAGMENTED = 76;
export const BLOCK_TX_OVERFLOWED = 80;
/** ROUTES routes of ROUTE_SIZE bytes. */
export const BLOCK_ROUTES = 128;
/** First words of the responses by the slot of the tx ring; see `TxRing.responses` and `TxRing.answered`. */
export const BLOCK_RESPONSES = 512;
export const BLOCK_ANSWERED = 1536;
/** Ids of rx requests and, in the upper half, the bytes for their pages, by the slot of the rx ring. */
export const BLOCK_REQUESTS = 1792;

/** The three words of a frame's addresses, the target's block, the poll that confirmed it, the polls that used it last. */
export const ROUTE_TARGET = 12;
export const ROUTE_POLL = 16;
export const ROUTE_USED = 20;
export const ROUTE_SIZE = 32;
export const ROUTES = 8;

export const OFFLOAD_CSUM_V4 = 1;
export const OFFLOAD_CSUM_V6 = 2;
export const OFFLOAD_TSO_V4 = 4;
export const OFFLOAD_TSO_V6 = 8;

/** Fragments that Linux's packets have at most (MAX_SKB_FRAGS). */
export const SKB_FRAGS_MAX = 17;

/** The ring is empty, or the limit is reached. */
export const STOP_EMPTY = 0;
/** No route of this poll for the next frame's addresses. */
export const STOP_ROUTE = 1;
/** The next packet, or what was met on a ring, is for TypeScript. */
export const STOP_UNUSUAL = 2;
/** The receiver has posted too few requests. */
export const STOP_FULL = 3;
