import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { namespaceObstacle as findObstacle, NetworkNamespace } from '../../src/uplink/namespace.js';

/** Names the programs that are not installed, for a test's `skip`; false when all are. */
export function missingPrograms(...programs: string[]): string | false {
  const missing = programs.filter(program => {
    const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` };
    return spawnSync('sh', ['-c', `command -v ${program}`], { env }).status !== 0;
  });
  return missing.length === 0
    ? false
    : `not installed: ${missing.join(', ')} (scripts/install-tools.sh installs them)`;
}

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
