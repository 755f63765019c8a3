import type { Host } from '../toolstack/host.js';
import { ethtool } from './ethtool.js';
import { cat, domainTree, ls, write } from './files.js';
import { ip } from './ip.js';
import { monitorHost } from './monitor.js';
import { captureNlmon } from './nlmon.js';
import type { Printed } from './printed.js';
import type { CallContext, RpcRegistry } from './rpc.js';

/** What shows and changes a domain's network as its own user would. */
export interface NetMethods {
  ip: { params: { domain: string; args: string[] }; result: Printed };
  ethtool: { params: { domain: string; args: string[] }; result: Printed };
  ls: { params: { domain: string; path: string; long?: boolean }; result: Printed };
  cat: { params: { domain: string; path: string }; result: Printed };
  write: { params: { domain: string; path: string; value: string }; result: Printed };
  /** Emits a line for each event until the caller hangs up; of every domain, also those that come later, when none is named. */
  monitor: { params: { domain?: string; json?: boolean }; result: null };
  /** Emits the bytes of a capture file, in base64, until the caller hangs up. */
  nlmon: { params: { domain: string }; result: null };
}

/** Registers what `ip`, `ethtool`, `ls`, `cat`, `write`, `monitor` and `nlmon` call. */
export function registerNetMethods(registry: RpcRegistry, host: Host): void {
  const register = <N extends keyof NetMethods>(
    name: N,
    method: (
      params: NetMethods[N]['params'],
      context: CallContext,
    ) => NetMethods[N]['result'] | Promise<NetMethods[N]['result']>,
  ): void => registry.register(name, method);

  const tree = (domain: string) => domainTree(host.kernelOf(domain).kernel);
  register('ip', ({ domain, args }) => ip(host.kernelOf(domain).kernel.net, args.map(String)));
  register('ethtool', ({ domain, args }) => ethtool(host.kernelOf(domain).kernel.net, args.map(String)));
  register('ls', ({ domain, path, long }) => ls(tree(domain), String(path), long === true));
  register('cat', ({ domain, path }) => cat(tree(domain), String(path)));
  register('write', ({ domain, path, value }) => write(tree(domain), String(path), String(value)));
  register('monitor', ({ domain, json }, context) => {
    const only = domain === undefined ? null : host.kernelOf(domain).domain.name;
    return untilHangUp(
      context,
      monitorHost(host, only, { json }, line => context.emit(line)),
    );
  });
  register('nlmon', ({ domain }, context) => {
    const stop = captureNlmon(
      host.kernelOf(domain).kernel.net,
      bytes => context.emit(Buffer.from(bytes).toString('base64')),
      Date.now,
    );
    return untilHangUp(context, stop);
  });
}

function untilHangUp(context: CallContext, stop: () => void): Promise<null> {
  return new Promise(resolve => {
    context.signal.addEventListener('abort', () => {
      stop();
      resolve(null);
    });
  });
}
