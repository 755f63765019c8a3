import type { Check } from '../toolstack/checks.js';
import type { DomainConfig } from '../toolstack/domain-config.js';
import { checkEchoState, startEcho } from './echo.js';
import type { GuestKind } from './guest.js';
import { createLinuxMachine, type GuestMachine } from './linux/kind.js';
import { checkSavedLinux } from './linux/snapshot.js';
import { startModule } from './module.js';
import { startNetns } from './netns.js';
import { checkSavedNamespace } from './netns-state.js';

export * from './boot.js';
export * from './echo.js';
export * from './echo-stack.js';
export * from './frames.js';
export * from './guest.js';
export * from './linux/index.js';
export * from './module.js';
export * from './netns.js';

/** The kinds of guests that a domain file can name. */
export const GUEST_KINDS: Readonly<Record<string, GuestKind>> = {
  echo: startEcho,
  netns: startNetns,
  module: startModule,
};

/** Of those, the kinds that are machines with a kernel of their own. */
export const MACHINE_KINDS: Readonly<Record<string, (config: DomainConfig) => Promise<GuestMachine>>> = {
  linux: createLinuxMachine,
};

/** What `save` of a kind gives, read from a file; what a module gives is its own to check. */
export const GUEST_STATE_CHECKS: Readonly<Record<string, Check>> = {
  echo: checkEchoState,
  netns: checkSavedNamespace,
  linux: checkSavedLinux,
};
