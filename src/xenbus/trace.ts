import type { ErrnoName } from '../abi/errno.js';
import { type XenbusState, xenbusStateName } from '../abi/xenbus-state.js';
import { printable } from '../xenstore/latin1.js';

/** One thing that the bus did or saw. Paths are as the bus used them: relative ones start at the domain's home. */
export type XenbusTraceEvent =
  | {
      /** A request to xenstored that was answered. Those of a transaction appear when it is committed. */
      readonly kind: 'read' | 'write' | 'mkdir' | 'rm' | 'directory' | 'exists' | 'watch' | 'unwatch';
      readonly domid: number;
      readonly path: string;
      /** What was read or written. */
      readonly value?: string;
      /** The errno that was answered instead. */
      readonly error?: ErrnoName;
    }
  | {
      /** A watch fired and its callback starts. */
      readonly kind: 'event';
      readonly domid: number;
      readonly path: string;
    }
  | {
      /** A device's own state was written, or the state of its other end was read and differs from before. */
      readonly kind: 'state' | 'otherend-state';
      readonly domid: number;
      /** The device's nodename, as "backend/vif/5/0". */
      readonly device: string;
      readonly from: XenbusState;
      readonly to: XenbusState;
    }
  | {
      /** The device granted a ring page or mapped one (`gref`), or allocated an event channel (`port`). */
      readonly kind: 'grant' | 'map' | 'evtchn';
      readonly domid: number;
      readonly device: string;
      readonly number: number;
    }
  | {
      /** A step of the bus: "xs_init", "driver vif registered", "probe vif-0", "remove vif-0" … */
      readonly kind: 'step';
      readonly domid: number;
      readonly text: string;
    };

export type XenbusTrace = (event: XenbusTraceEvent) => void;

/** A trace event on one line: "d5 write device/vif/0/state = 4". */
export function formatXenbusTrace(event: XenbusTraceEvent): string {
  const who = `d${event.domid}`;
  switch (event.kind) {
    case 'step':
      return `${who} ${event.text}`;
    case 'event':
      return `${who} watch event ${event.path}`;
    case 'state':
    case 'otherend-state': {
      const whose = event.kind === 'state' ? '' : ' sees its other end';
      return `${who} ${event.device}${whose} ${xenbusStateName(event.from)} -> ${xenbusStateName(event.to)}`;
    }
    case 'grant':
      return `${who} ${event.device} grants ring page as gref ${event.number}`;
    case 'map':
      return `${who} ${event.device} maps ring page gref ${event.number}`;
    case 'evtchn':
      return `${who} ${event.device} allocates event channel ${event.number}`;
    default: {
      // A peer may have written it, and it goes to a terminal.
      const result = event.error ?? (event.value === undefined ? undefined : printable(event.value));
      return `${who} ${event.kind} ${event.path}${result === undefined ? '' : ` = ${result}`}`;
    }
  }
}
