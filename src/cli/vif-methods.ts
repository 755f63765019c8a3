import type { Vif } from '../netback/vif.js';
import { CliError, type RpcRegistry } from './rpc.js';

/** What `pvnet stats` tells of a vif. */
export interface VifCounters {
  readonly vif: string;
  readonly counters: Readonly<Record<string, number>>;
}

/** The rings of a vif: the indexes that the page holds, and ours; and how it hashes. */
function dumpOf(vif: Vif): string {
  const carrier = vif.dev.carrierOk ? 'on' : 'off';
  const queues = vif.queues.flatMap((queue, i) => queue.dump().map(line => `  queue ${i} ${line}`));
  const control = vif.dumpControl().map(line => `  ${line}`);
  const { credit } = vif;
  const rate =
    credit === null
      ? ''
      : `, ${credit.rate.bytes} bytes in ${credit.rate.usec} µs may be sent, ${credit.remaining} now`;
  return [
    `${vif.name}: carrier ${carrier}, ${vif.queues.length} queue(s)${rate}`,
    ...queues,
    ...control,
  ].join('\n');
}

/**
 * Registers what the commands that look into vifs call.
 * @param vifs those that there are
 * @param more counters beside theirs
 */
export function registerVifMethods(
  registry: RpcRegistry,
  vifs: () => Iterable<Vif>,
  more: () => VifCounters[] = () => [],
): void {
  registry.register('stats', () => [
    ...Array.from(vifs(), vif => ({ vif: vif.name, counters: vif.counters() })),
    ...more(),
  ]);
  registry.register('dump', () => ({ text: Array.from(vifs(), dumpOf).join('\n') }));
  registry.register('poke', ({ vif: name }) => {
    const vif = [...vifs()].find(each => each.name === name);
    if (vif === undefined) throw new CliError('ENODEV', `there is no vif ${name}`);
    for (const queue of vif.queues) queue.poke();
    return null;
  });
}
