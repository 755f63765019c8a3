import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { namespaceObstacle as findObstacle, NetworkNamespace } from '../../src/uplink/namespace.js';

let answer: Promise<string | null> | null = null;

/** What keeps this machine from network namespaces with TAPs, for a test's `skip`; false when nothing does. */
export async function namespaceObstacle(): Promise<string | false> {
  answer ??= findObstacle();
  return (await answer) ?? false;
}

/** What keeps a TAP's interface from being steered to other CPUs, for a test's `skip`; false when nothing does. */
export async function steeringObstacle(): Promise<string | false> {
  const obstacle = await namespaceObstacle();
  if (obstacle !== false) return obstacle;
  if (cpus().length < 2) return 'there is one CPU';
  const namespace = await NetworkNamespace.create();
  const tap = await namespace.openTap('probe0');
  try {
    writeFileSync(`${tap.folder}/queues/rx-0/rps_cpus`, '0', { flag: 'r+' });
    return false;
  } catch (error) {
    return `no interface can be steered here: ${(error as Error).message}`;
  } finally {
    tap.close();
    await namespace.close();
  }
}
