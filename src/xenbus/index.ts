/** XenBus: the frontend and backend buses of a domain, their drivers and devices, and the XenbusState handshake. */
export { XenbusBus } from './bus.js';
export { XenbusDevice, type XenbusSide } from './device.js';
export type { XenbusDriver } from './driver.js';
export { isGone, XenbusError } from './error.js';
export { formatXenbusTrace, type XenbusTrace, type XenbusTraceEvent } from './trace.js';
export {
  type Gathered,
  integer,
  joinPath,
  shorten,
  text,
  unsigned,
  type XenbusParser,
  xenbusGather,
  xenbusReadUnsigned,
  xenbusScanf,
} from './values.js';
export { Xenbus, type XenbusOptions } from './xenbus.js';
export { Xs, type XsOperations, type XsWatch, type XsWatchOptions } from './xs.js';
