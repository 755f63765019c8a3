import { NetworkNamespace } from '../../src/uplink/namespace.js';
import { tapObstacle } from '../../src/uplink/tap.js';

let answer: Promise<string | false> | null = null;

async function find(): Promise<string | false> {
  const obstacle = tapObstacle();
  if (obstacle !== null) return obstacle;
  try {
    const namespace = await NetworkNamespace.create();
    try {
      const tap = await namespace.openTap('probe0');
      tap.close();
      await namespace.ip('link set lo up');
    } finally {
      await namespace.close();
    }
    return false;
  } catch (error) {
    return (error as Error).message;
  }
}

/** What keeps this machine from network namespaces with TAPs, for a test's `skip`; false when nothing does. */
export function namespaceObstacle(): Promise<string | false> {
  answer ??= find();
  return answer;
}
