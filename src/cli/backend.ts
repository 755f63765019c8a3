import { antispoof, LinuxBackend } from '../linux/index.js';
import { type Command, UsageError } from './command.js';
import { NETBACK_OPTIONS, readNetbackOptions } from './netback-options.js';
import { defaultControlSocket, RpcRegistry, RpcServer } from './rpc.js';
import { registerVifMethods } from './vif-methods.js';

/** `pvnet backend`: serves other domains' vifs on a real Xen host. */
export const BACKEND_COMMAND: Command = {
  usage:
    '[--bridge NAME | --tap] [--match PATTERN]… [--antispoof] [--max-queues N] [--without FEATURE]… [--filter FILE.js]',
  summary: 'Serves the vifs of other domains on a real Xen host, in place of xen-netback.',
  details: [
    'Runs in dom0 or a driver domain, as root, without xen-netback. With --tap (the default) each vif is a TAP',
    'named vif<domid>.<handle>, for the usual hotplug scripts; with --bridge all are ports of a bridge of pvnet’s',
    'own, and guests reach each other without their data touching this domain.',
    '',
    'SIGTERM closes all vifs. SIGUSR2 leaves them to the next "pvnet backend", with the guests connected; one that',
    'was killed is taken over from in the same way.',
  ].join('\n'),
  options: {
    bridge: { type: 'string', value: 'NAME', help: 'a bridge of pvnet’s own, whose uplink is the TAP NAME' },
    tap: { type: 'boolean', help: 'a TAP for each vif (the default)' },
    match: {
      type: 'string',
      multiple: true,
      value: 'PATTERN',
      help: 'only vifs of these domains (web*), of bridge=NAME or named vif=vif3.*',
    },
    antispoof: { type: 'boolean', help: 'guests may send only from the mac and the ip of their vifs' },
    ...NETBACK_OPTIONS,
  },
  arguments: [0, 0],
  async run(invocation) {
    const { flag, option, options, print } = invocation;
    if (flag('tap') && option('bridge') !== undefined) {
      throw new UsageError('a vif is a port of --bridge or has a --tap, not both');
    }
    const netback = await readNetbackOptions(invocation);
    const { prepare } = netback;
    if (flag('antispoof')) {
      netback.prepare = async (vif, device) => {
        await prepare?.(vif, device);
        await antispoof(vif, device);
      };
    }
    const backend = await LinuxBackend.start({
      bridge: option('bridge'),
      match: options('match'),
      netback,
      log: line => void process.stderr.write(`${line}\n`),
    });
    const registry = new RpcRegistry();
    registerMethods(registry, backend);
    const rpc = await RpcServer.listen(registry, option('socket') ?? defaultControlSocket());
    print(`pvnet backend: ready, control socket ${rpc.path}`);
    await backend.run();
    await rpc.close();
    return 0;
  },
};

function registerMethods(registry: RpcRegistry, backend: LinuxBackend): void {
  registry.register('vif-list', ({ domain }) => backend.vifList(domain));
  registerVifMethods(
    registry,
    () => backend.vifs,
    () => [{ vif: 'xen', counters: backend.xenCounters() }],
  );
  registry.register('interrupts', () => ({ text: backend.host.kernel.irqs.interrupts() }));
}
