import { XenbusState, xenbusStateName } from '../abi/xenbus-state.js';
import type { XenbusTraceEvent } from '../xenbus/index.js';

/** One line of the story of a handshake: what happened, and what that means in plain words. */
export interface StoryLine {
  readonly domid: number;
  readonly what: string;
  readonly meaning: string;
}

const FRONTEND: Partial<Record<XenbusState, string>> = {
  [XenbusState.Connected]: 'netfront has put its rings and event channels into xenstore',
  [XenbusState.Closing]: 'netfront lets go of the link',
  [XenbusState.Closed]: 'netfront has given everything back',
};
const BACKEND: Partial<Record<XenbusState, string>> = {
  [XenbusState.InitWait]: 'netback has said what it can do, and waits for the frontend',
  [XenbusState.Connected]: 'netback has mapped the rings: the link is up',
  [XenbusState.Closing]: 'netback lets go of the link',
  [XenbusState.Closed]: 'netback has given everything back',
};
/** Keys that netfront publishes, by their last name. */
const PUBLISHED: Readonly<Record<string, string>> = {
  'tx-ring-ref': 'grant of the page with the ring for what the guest sends',
  'rx-ring-ref': 'grant of the page with the ring for what it receives',
  'event-channel': 'port that tells the other side to look at the rings',
  'event-channel-tx': 'port that tells the other side to look at the transmit ring',
  'event-channel-rx': 'port that tells the other side to look at the receive ring',
};
const STEPS: readonly [RegExp, string][] = [
  [/^probe vif-/, 'a new device: its driver gets to know it'],
  [/^(frontend|backend) driver .* registered$/, 'a driver tells its bus which devices are for it'],
];

/** Picks what belongs to the story out of all that the buses do. @returns null for the rest */
export function tellHandshake(event: XenbusTraceEvent): StoryLine | null {
  const { domid } = event;
  switch (event.kind) {
    case 'state': {
      const meanings = event.device.startsWith('backend/') ? BACKEND : FRONTEND;
      const what = `${event.device}  ${xenbusStateName(event.from)} → ${xenbusStateName(event.to)}`;
      return { domid, what, meaning: meanings[event.to] ?? '' };
    }
    case 'write': {
      const key = event.path.slice(event.path.lastIndexOf('/') + 1);
      if (!Object.hasOwn(PUBLISHED, key) || event.error !== undefined) return null;
      const path = event.path.replace(/^\/local\/domain\/\d+\//, '');
      return { domid, what: `${path} = ${event.value}`, meaning: PUBLISHED[key] };
    }
    case 'step': {
      const found = STEPS.find(([pattern]) => pattern.test(event.text));
      return found === undefined ? null : { domid, what: event.text, meaning: found[1] };
    }
    default:
      return null;
  }
}
