import { XENSTORE_RING as R, XENSTORE_SERVER_FEATURE } from '../abi/xs-wire.js';
import type { Irqs } from '../events/index.js';
import type { ByteStream, Platform } from '../platform/platform.js';
import { Task } from '../platform/scheduler.js';
import { RingStream } from '../xenstore/index.js';

/** The domain's way to its xenstored. */
export interface XenbusComms {
  readonly stream: ByteStream;
  /** Unbinds the IRQ of the store's event channel; the port stays, it is the domain's. */
  close(): void;
}

export interface XenbusCommsOptions {
  /** The first event on the channel: xenstored is there. */
  onFirstEvent?: () => void;
  /**
   * Asks the server to drop what it has of this domain (watches, transactions, requests half read), where it says that
   * it can.
   */
  reconnect?: boolean;
}

/**
 * Sets up the way to xenstored (xb_init_comms): over the ring page, with the store's event channel bound to
 * an IRQ that wakes the xenbus task, which moves the bytes; or over a stream, where the platform has one.
 * @throws ENOSPC when no IRQ is left; what opening the stream throws
 */
export function xbInitComms(platform: Platform, irqs: Irqs, options: XenbusCommsOptions = {}): XenbusComms {
  const access = platform.xenstore;
  if (access.kind === 'stream') {
    const stream = access.open();
    return { stream, close: () => stream.close() };
  }
  const { memory, address, port } = access;
  const get = (field: number) => memory.load(address + field);
  if (get(R.REQ_PROD) !== get(R.REQ_CONS)) {
    // Bytes of an earlier kernel; req_cons is xenstored's, so there is nothing to set right.
    platform.log(`xenbus: request ring is not quiescent (${hex(get(R.REQ_CONS))}:${hex(get(R.REQ_PROD))})`);
  }
  if (get(R.RSP_PROD) !== get(R.RSP_CONS)) {
    platform.log(`xenbus: response ring is not quiescent (${hex(get(R.RSP_CONS))}:${hex(get(R.RSP_PROD))})`);
  }
  const ring = new RingStream({ memory, address, notify: () => platform.events.notify(port) });
  let seen = false;
  const task = new Task('xenbus', () => {
    if (!seen) {
      seen = true;
      options.onFirstEvent?.();
    }
    ring.onEvent();
  });
  const irq = irqs.bindCallerPortToIrqhandler(port, () => platform.scheduler.post(task), 'xenbus', {
    keepPort: true,
  });
  if (options.reconnect && (ring.serverFeatures & XENSTORE_SERVER_FEATURE.RECONNECTION) !== 0)
    ring.reconnect();
  return {
    stream: ring,
    close() {
      irqs.unbindFromIrqhandler(irq);
      ring.close();
    },
  };
}

function hex(index: number): string {
  return index.toString(16).padStart(8, '0');
}
