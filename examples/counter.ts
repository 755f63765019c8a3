import type { ModuleContext, ModuleResult } from 'pvnet/guests';

/**
 * A guest of our own: guest = "module:./counter.js". It counts what arrives on its first network device by
 * EtherType, and says so in its log once a second (`pvnet dmesg NAME`).
 */
export default async function counter({ name, platform, device, log }: ModuleContext): Promise<ModuleResult> {
  const { scheduler } = platform;
  const counts = new Map<string, number>();
  let reported = '';

  // The device is there once the domain's vif has connected, which is after this function has returned.
  void device(0).then(eth0 => {
    eth0.rxHandler = packet => {
      const { u8 } = packet.memory;
      const type = (u8[packet.data + 12] << 8) | u8[packet.data + 13];
      const key = `0x${type.toString(16).padStart(4, '0')}`;
      counts.set(key, (counts.get(key) ?? 0) + 1);
      packet.release();
    };
    log(`${name}: counting on ${eth0.name}`);
  });

  const report = (): void => {
    const line = [...counts].map(([type, count]) => `${type}: ${count}`).join(', ');
    if (line !== reported) log(line);
    reported = line;
    timer = scheduler.after(1000, report);
  };
  let timer = scheduler.after(1000, report);
  return () => scheduler.cancel(timer);
}
