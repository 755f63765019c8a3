import { isIP } from 'node:net';
import { parseDomain } from '../toolstack/domain-config.js';
import { ToolstackError } from '../toolstack/error.js';
import type { DomainInfo, Host, VifInfo } from '../toolstack/host.js';
import { parseVif } from '../toolstack/vif-config.js';
import type { RpcRegistry } from './rpc.js';

/** What the methods of a host take and give; the commands and tests use the same types. */
export interface HostMethods {
  list: { params: Record<string, never>; result: DomainInfo[] };
  create: {
    params: { file: string; text: string };
    result: { domid: number; name: string; notes: string[] };
  };
  destroy: { params: { domain: string }; result: null };
  shutdown: { params: { domain: string; reboot?: boolean }; result: null };
  down: { params: Record<string, never>; result: null };
  'vif-list': { params: { domain?: string }; result: VifInfo[] };
  'vif-attach': {
    params: { domain: string; vif: string };
    result: { devid: number; waitingFor: string | null };
  };
  'vif-detach': { params: { domain: string; devid: number; force?: boolean }; result: null };
  exec: { params: { domain: string; argv: string[]; directory: string }; result: { argv: string[] } };
  ping: { params: { domain: string; address: string; timeoutMs?: number }; result: { ms: number } };
  dmesg: { params: { domain: string }; result: { lines: string[] } };
  interrupts: { params: { domain: string }; result: { text: string } };
}

/** Registers what the toolstack's commands call. @param down ends the host */
export function registerHostMethods(registry: RpcRegistry, host: Host, down: () => void): void {
  const register = <N extends keyof HostMethods>(
    name: N,
    method: (
      params: HostMethods[N]['params'],
    ) => HostMethods[N]['result'] | Promise<HostMethods[N]['result']>,
  ): void => registry.register(name, method);

  register('list', () => host.list());
  register('create', async ({ file, text }) => {
    const config = parseDomain(String(text), String(file));
    const hosted = await host.create(config);
    const waiting = await host.settled(hosted);
    const notes = waiting.map(vif => `vif ${vif.devid}: ${host.waitingFor(hosted, vif)}`);
    return { domid: hosted.domain.domid, name: config.name, notes: [...config.ignored, ...notes] };
  });
  register('destroy', async ({ domain }) => {
    await host.destroy(host.find(domain));
    return null;
  });
  register('shutdown', async ({ domain, reboot }) => {
    await host.shutdown(host.find(domain), reboot ? 'reboot' : 'poweroff');
    return null;
  });
  register('down', () => {
    down();
    return null;
  });
  register('vif-list', async ({ domain }) => {
    const domains = domain === undefined ? [...host.domains] : [host.find(domain)];
    return (await Promise.all(domains.map(hosted => host.vifList(hosted)))).flat();
  });
  register('vif-attach', async ({ domain, vif }) => {
    const hosted = host.find(domain);
    const devid = await host.attachVif(hosted, parseVif(String(vif)));
    const attached = hosted.vifs.get(devid)!;
    await host.settled(hosted, { vif: attached });
    host.mustStay(hosted, attached);
    return { devid, waitingFor: host.waitingFor(hosted, attached) };
  });
  register('vif-detach', async ({ domain, devid, force }) => {
    await host.detachVif(host.find(domain), devid, force === true);
    return null;
  });
  register('exec', ({ domain, argv, directory }) => {
    const { booted, config } = host.find(domain);
    const command = booted?.guest.command;
    if (command === undefined) {
      throw new ToolstackError(
        'EOPNOTSUPP',
        `${config.name}: a guest of kind "${config.guest.kind}" runs no programs; guest = "netns" does`,
      );
    }
    return { argv: command(argv, directory) };
  });
  register('ping', async ({ domain, address, timeoutMs }) => {
    const { booted, config } = host.find(domain);
    if (booted?.guest.ping === undefined) {
      throw new ToolstackError(
        'EOPNOTSUPP',
        `${config.name}: a guest of kind "${config.guest.kind}" does not ping by itself; guest = "echo" does`,
      );
    }
    if (isIP(String(address)) === 0) throw new ToolstackError('EINVAL', `"${address}" is no IP address`);
    return { ms: await booted.guest.ping(String(address), timeoutMs) };
  });
  register('dmesg', ({ domain }) => ({ lines: host.kernelOf(domain).domain.dmesg }));
  register('interrupts', ({ domain }) => ({ text: host.kernelOf(domain).kernel.irqs.interrupts() }));
}
