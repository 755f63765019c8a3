/** How often is looked. */
const LOOK_MS = 5;

/** Waits for something that nothing tells of. @returns whether it came true in time */
export async function until(done: () => boolean, timeoutMs: number): Promise<boolean> {
  const end = performance.now() + timeoutMs;
  while (!done()) {
    if (performance.now() >= end) return false;
    await new Promise(resolve => setTimeout(resolve, LOOK_MS));
  }
  return true;
}
