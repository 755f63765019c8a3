import type { ModuleContext } from '../../src/guests/module.js';

/** A module guest that goes no further before it has its device. */
export default async function waiting({ device, log }: ModuleContext): Promise<void> {
  log('it waits');
  try {
    const { name } = await device();
    log(`it is ${name}`);
    // Nobody hears of it should this one never come.
    void device(9).then(other => log(`and ${other.name}`));
  } catch (error) {
    log(`no device: ${(error as Error).message}`);
  }
}
