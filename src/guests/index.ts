import type { DomainConfig } from '../toolstack/domain-config.js';
import { startEcho } from './echo.js';
import type { GuestKind } from './guest.js';
import { createLinuxMachine, type GuestMachine } from './linux/kind.js';
import { startModule } from './module.js';
import { startNetns } from './netns.js';

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
