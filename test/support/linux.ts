import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { runInShell } from '../../src/guests/linux/console-shell.js';
import { cachedFiles, cacheFolder } from '../../src/guests/linux/files.js';
import { parseDomain } from '../../src/toolstack/domain-config.js';
import { Host, type HostedDomain } from '../../src/toolstack/host.js';

/** Why no Linux guest can boot here, or false. */
export const NO_LINUX =
  cachedFiles() === null
    ? `there is no Linux for guests in ${cacheFolder()}: "pvnet linux fetch" gets it`
    : (false as const);

/** Why a test that takes long is left out, or false. */
export const NO_LONG_LINUX =
  NO_LINUX || (process.env['PVNET_LONG_TESTS'] === undefined ? '"npm run test:linux" runs it' : false);

export async function startHost(t: TestContext): Promise<Host> {
  const host = await Host.start({ memoryBytes: 128 << 20 });
  // Asking each kernel to power off would test nothing more, and take long.
  t.after(async () => {
    for (const hosted of [...host.domains]) await host.destroy(hosted);
    await host.close();
  });
  return host;
}

/** @param lines of a domain file, beside the name */
export function domain(name: string, ...lines: string[]): ReturnType<typeof parseDomain> {
  return parseDomain([`name = "${name}"`, ...lines].join('\n'), `${name}.cfg`);
}

/** What the host holds; the same before and after, or something leaked. */
export function holdings(host: Host): object {
  const { grants, events } = host.dom0.platform;
  return {
    mapped: grants.mapped,
    grants: grants.allocated,
    ports: events.allocated,
    // A pool or a grant table of a domain that stays may have grown: those pages are no loss.
    pagesInSight: host.hypervisor.domains.reduce(
      (sum, { pages, grantTable }) => sum + pages + grantTable.frames.length,
      host.hypervisor.freePages,
    ),
    dying: host.hypervisor.dyingDomains.length,
    devices: [...host.dom0.net.devices].map(device => device.name),
  };
}

/**
 * Runs a command in a Linux guest's shell, at its console.
 * @returns what it printed
 * @throws AssertionError when it fails, with what it printed
 */
export async function sh(hosted: HostedDomain, command: string): Promise<string> {
  const { status, output } = await tryInShell(hosted, command);
  assert.equal(status, 0, `${hosted.config.name}: ${command}: ${output}`);
  return output;
}

export function tryInShell(
  hosted: HostedDomain,
  command: string,
): Promise<{ status: number; output: string }> {
  const { console } = hosted.booted!.guest;
  assert.ok(console !== undefined);
  return runInShell(console, command);
}
