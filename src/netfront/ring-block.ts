/*
 * What `wasm/rings.ts` and `ring-code.ts` know of a frontend's queue, in two pages of its own. All are 32-bit words unless it
 * says otherwise.
 */
/** The domain's record, the backend's domid, and the two ring pages. */
export const RING_RECORD = 0;
export const RING_BACKEND = 4;
export const RING_TX = 8;
export const RING_RX = 12;
/** The rings' private indexes, brought up to date before and taken back after a call. */
export const RING_TX_RSP_CONS = 16;
export const RING_RX_RSP_CONS = 20;
export const RING_RX_REQ_PROD = 24;
/** Extra infos that the backend has not answered, and free ids. */
export const RING_EXTRAS = 28;
export const RING_FREE_IDS = 32;
/** Id of a tx response that is not outstanding, or -1. */
export const RING_BROKEN = 36;
/** Of a received packet of several slots: where it begins, what it is, and the page of its extra info's slot, or -1. */
export const RING_PAGE = 40;
export const RING_OFFSET = 44;
export const RING_BYTES = 48;
export const RING_FRAGMENTS = 52;
export const RING_SIZE = 56;
export const RING_FLAGS = 60;
export const RING_GSO_TYPE = 64;
export const RING_GSO_SIZE = 68;
export const RING_SPARE = 72;
/** As RING_TX_RSP_CONS. */
export const RING_TX_REQ_PROD = 76;
/** By id of a tx slot: SLOT_*, and the id of its packet's first slot. */
export const RING_TX_SLOTS = 128;
/** Halfwords: the free ids; and what was answered, packets by their first ids, frames by their pages' indexes with DONE_FRAME. */
export const RING_FREE_ID = 1152;
export const RING_DONE = 1664;
export const DONE_FRAME = 0x8000;
/** RING_BATCH packets of one slot, in four arrays: index of the page, byte address, bytes, and flags. */
export const RING_BATCH = 64;
export const RING_INDEX = 2176;
export const RING_DATA = 2432;
export const RING_LENGTH = 2688;
export const RING_SHORT_FLAGS = 2944;
/** Grant references of the pages of a packet to send. */
export const RING_SEND = 3200;
/** Halfwords: by id of a tx slot, the index of its frame's page. */
export const RING_FRAME = 3280;
/** The second page, by slot of the rx ring: the index of the page posted there, or -1; its grant reference; its number. */
export const RING_POSTED = 0;
export const RING_GREFS = 1024;
export const RING_PAGES = 2048;
/** RING_BATCH pages to post next: index, guest frame number, page number. */
export const RING_TO_POST = 3072;
/** Bytes of each. */
export const RING_ENTRY = 12;

/**
 * What is known of a tx slot: it is a frame's; it is not answered; one unanswered slot of the packet whose first it is, and all of
 * them; and a packet of one slot.
 */
export const SLOT_FRAME = 1 << 25;
export const SLOT_OUTSTANDING = 1 << 24;
export const SLOT_UNANSWERED = 1 << 16;
export const SLOT_LEFT = 0xff << 16;
export const SLOT_SINGLE = SLOT_OUTSTANDING | SLOT_UNANSWERED;

/** Where the fragments of a packet are, from `Packet.fragmentsAt` on: so many bytes for each of five arrays. */
export const FRAGMENT_BYTES = 80;
