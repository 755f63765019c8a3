/** XenbusState (xen/include/public/io/xenbus.h), in xenstore as a decimal string. */
export const XenbusState = {
  Unknown: 0,
  Initialising: 1,
  InitWait: 2,
  Initialised: 3,
  Connected: 4,
  Closing: 5,
  Closed: 6,
  Reconfiguring: 7,
  Reconfigured: 8,
} as const;

export type XenbusState = (typeof XenbusState)[keyof typeof XenbusState];

const names = Object.keys(XenbusState);

/** "Connected" for 4; "state 9" for a number that is no state. */
export function xenbusStateName(state: number): string {
  return names[state] ?? `state ${state}`;
}

/** The state a xenstore value stands for; Unknown when absent or not one of the states. */
export function parseXenbusState(text: string | undefined): XenbusState {
  if (text === undefined || !/^[0-8]$/.test(text)) return XenbusState.Unknown;
  return Number(text) as XenbusState;
}
