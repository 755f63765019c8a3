import { type BackRing, RING_REQ_EVENT, RING_REQ_PROD, RING_RSP_EVENT, RING_RSP_PROD } from '../abi/ring.js';

/** A ring in a line, for people: the indexes that the page holds, and ours, in hex. */
export function dumpRing(name: string, { memory, address, rspProdPvt, reqCons, size }: BackRing): string {
  const hex = (index: number): string => (index >>> 0).toString(16);
  const at = (field: number): string => hex(memory.load(address + field));
  return (
    `${name}: ${size} slots, req_prod ${at(RING_REQ_PROD)} req_cons ${hex(reqCons)} req_event ${at(RING_REQ_EVENT)}` +
    `, rsp_prod ${at(RING_RSP_PROD)} (private ${hex(rspProdPvt)}) rsp_event ${at(RING_RSP_EVENT)}`
  );
}
