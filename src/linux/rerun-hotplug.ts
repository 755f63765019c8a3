import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Kernel } from '../kernel/kernel.js';
import { DEFAULT_SCRIPT } from '../toolstack/vif-config.js';
import { until } from './until.js';

/** How long the new interface may take to appear. */
const INTERFACE_MS = 1000;

/**
 * The interface of a vif that was taken over is a new one, which the toolstack does not know of: does what its script did with the
 * old one. What goes wrong is logged; a vif without its script harms no other.
 * @param dir the backend's directory
 */
export async function rerunHotplug(
  { net, xenbus }: Kernel,
  dir: string,
  vif: string,
  log: (line: string) => void,
): Promise<void> {
  try {
    const script = (await xenbus.xs.readOptional(`${dir}/script`)) ?? DEFAULT_SCRIPT;
    const came = await until(() => net.byName(vif) !== undefined, INTERFACE_MS);
    if (came) await run(script, dir, vif);
    else log(`${vif}: it did not come: ${script} was not run`);
  } catch (error) {
    log(`${vif}: running its script again: ${(error as Error).message}`);
  }
}

/** @throws Error when it cannot be run, or ends with a status */
async function run(script: string, dir: string, vif: string): Promise<void> {
  const env = {
    ...process.env,
    script,
    vif,
    XENBUS_TYPE: 'vif',
    XENBUS_PATH: dir,
    XENBUS_BASE_PATH: 'backend',
  };
  const child = spawn(script, ['online', 'type_if=vif'], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  const [code, signal] = await once(child, 'exit');
  if (code !== 0) throw new Error(`${script} online ended with ${signal ?? `status ${code}`}`);
}
