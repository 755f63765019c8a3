import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { TestContext } from 'node:test';
import { runInShell } from '../../src/guests/linux/console-shell.js';
import { cachedFiles, cacheFolder } from '../../src/guests/linux/files.js';
import { parseDomain } from '../../src/toolstack/domain-config.js';
import { Host, type HostedDomain } from '../../src/toolstack/host.js';
import { runProgram } from '../../src/uplink/namespace.js';

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
      // Each frame of a table has one with pins.
      (sum, { pages, grantTable }) => sum + pages + 2 * grantTable.frames.length,
      host.hypervisor.freePages,
    ),
    dying: host.hypervisor.dyingDomains.length,
    nodes: host.xenstored.server.store.nodeCount,
    devices: [...host.dom0.net.devices].map(device => device.name),
  };
}

/** The domain of the same name that the toolstack creates after a reboot. */
export async function restarted(host: Host, old: HostedDomain): Promise<HostedDomain> {
  for (;;) {
    const found = [...host.domains].find(({ config }) => config.name === old.config.name);
    if (found !== undefined && found !== old && found.booted !== null) return found;
    await new Promise(resolve => setTimeout(resolve, 20));
  }
}

/** Runs a program in the namespace of a guest of kind "netns", to its end. @returns what it printed */
export async function inNamespace(guest: HostedDomain, ...argv: string[]): Promise<string> {
  const { status, stdout, stderr } = await runProgram(guest.booted!.guest.command!(argv));
  assert.equal(status, 0, `${argv[0]}: ${stderr}`);
  return stdout;
}

/** Starts a program there that runs until the test ends. @returns the first line that it printed */
export async function startIn(t: TestContext, guest: HostedDomain, ...argv: string[]): Promise<string> {
  const [file, ...args] = guest.booted!.guest.command!(argv);
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => void child.kill());
  for await (const line of createInterface({ input: child.stdout })) {
    child.stdout.resume();
    return line;
  }
  throw new Error(`${argv[0]} ended and printed nothing`);
}

/** Takes a driver from its devices, each of which holds the module, and unloads it. */
export const UNLOAD_FRONTEND = unload('xen', 'xen-netfront');
export const UNLOAD_BACKEND = unload('xen-backend', 'xen-netback');

function unload(bus: string, module: string): string {
  const each = `for path in /sys/bus/${bus}/drivers/vif/vif-*; do echo \${path##*/} > $path/driver/unbind; done`;
  return `${each} && rmmod ${module}`;
}

/** Holds what iperf3 says at its end: all was sent, and what was not on its way any more was received. */
export function checkTransfer(json: string, bytes: number, what: string): void {
  const { end } = JSON.parse(json.slice(json.indexOf('{'))) as {
    end: { sum_sent: { bytes: number }; sum_received: { bytes: number } };
  };
  assert.ok(end.sum_sent.bytes >= bytes, `${what}: sent ${end.sum_sent.bytes}`);
  assert.ok(end.sum_received.bytes >= bytes / 2, `${what}: received ${end.sum_received.bytes}`);
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
