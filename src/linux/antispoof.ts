import { ErrnoError } from '../abi/errno.js';
import type { Vif } from '../netback/vif.js';
import { sourceFilter } from '../toolstack/hotplug.js';
import { parseAddresses, parseMac } from '../toolstack/vif-config.js';
import type { XenbusDevice } from '../xenbus/index.js';

/**
 * Holds the guest of a vif to the addresses in the backend's directory: its `mac` and, if it has any, those in `ip`. libxl writes
 * both, and no key of its own for this. It may be the `prepare` of a netback, or a part of one.
 * @throws ErrnoError EINVAL for addresses that are none: such a vif is not to be served
 */
export async function antispoof(vif: Vif, { xs, nodename }: XenbusDevice): Promise<void> {
  const mac = await xs.readOptional(`${nodename}/mac`);
  const ip = await xs.readOptional(`${nodename}/ip`);
  try {
    const addresses = parseAddresses(ip ?? '').map(({ address }) => address);
    vif.sourceFilter = sourceFilter(parseMac(mac ?? ''), addresses);
  } catch (error) {
    throw new ErrnoError('EINVAL', `${vif.name}: antispoof: ${(error as Error).message}`);
  }
}
