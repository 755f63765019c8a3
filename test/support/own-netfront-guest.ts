import type { ModuleContext } from '../../src/guests/module.js';
import { registerNetfront } from '../../src/netfront/index.js';

/** A module guest that brings the driver which its domain's kernel is about to register. */
export default async function ownNetfront({ kernel, log }: ModuleContext): Promise<() => void> {
  await registerNetfront(kernel);
  return () => log('stopping');
}
