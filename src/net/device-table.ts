import type { NetDevice } from './device.js';
import { NetError } from './error.js';
import { LastingMap } from './lasting-map.js';
import { Names, nameForUnit, nameProblem, templateProblem } from './names.js';

const INT_MAX = 0x7fffffff;

/** A namespace's devices by name and by number, and the names that are taken. */
export class DeviceTable {
  private readonly byIndexMap = new Map<number, NetDevice>();
  private readonly byNameMap = new LastingMap<NetDevice>();
  readonly names = new Names();
  private readonly reserved = new Set<number>();
  private lastIndex = 0;

  get count(): number {
    return this.byIndexMap.size;
  }

  /** In the order in which they were listed. */
  get all(): IterableIterator<NetDevice> {
    return this.byIndexMap.values();
  }

  byName(name: string): NetDevice | undefined {
    return this.byNameMap.get(name);
  }

  byIndex(ifindex: number): NetDevice | undefined {
    return this.byIndexMap.get(ifindex);
  }

  /** list_netdevice */
  list(device: NetDevice): void {
    this.reserved.delete(device.ifindex);
    this.byNameMap.set(device.name, device);
    this.byIndexMap.set(device.ifindex, device);
  }

  /** unlist_netdevice: from now on nobody finds it. */
  unlist(device: NetDevice): void {
    this.byNameMap.delete(device.name);
    this.byIndexMap.delete(device.ifindex);
  }

  /** The device has another name. */
  renamed(device: NetDevice, before: string): void {
    this.byNameMap.delete(before);
    this.byNameMap.set(device.name, device);
  }

  /** dev_get_valid_name: the name, with its %d filled in. @throws NetError EINVAL, EEXIST, ENFILE */
  validName(name: string): string {
    const problem = nameProblem(name);
    if (problem !== null) throw new NetError('EINVAL', `"${name}" is no device name: ${problem}`);
    if (!name.includes('%')) {
      if (this.names.has(name)) throw new NetError('EEXIST', `there is a device "${name}" already`);
      return name;
    }
    const wrong = templateProblem(name);
    if (wrong !== null) throw new NetError('EINVAL', `"${name}" is no device name: ${wrong}`);
    const unit = this.names.lowestUnit(name);
    if (unit < 0) throw new NetError('ENFILE', `every number of "${name}" is taken`);
    const chosen = nameForUnit(name, unit);
    if (this.names.has(chosen)) throw new NetError('ENFILE', `"${name}" has no room for another number`);
    return chosen;
  }

  /**
   * dev_index_reserve: takes an interface number, the asked one or the next free one.
   * @throws NetError EINVAL for a number that is none, EBUSY for one that is taken
   */
  reserveIndex(asked: number): number {
    if (asked !== 0) {
      if (!(Number.isInteger(asked) && asked > 0 && asked <= INT_MAX)) {
        throw new NetError('EINVAL', `${asked} is no interface number: 1 to ${INT_MAX}`);
      }
      if (this.taken(asked)) throw new NetError('EBUSY', `the interface number ${asked} is taken`);
      this.reserved.add(asked);
      return asked;
    }
    do {
      this.lastIndex = this.lastIndex === INT_MAX ? 1 : this.lastIndex + 1;
    } while (this.taken(this.lastIndex));
    this.reserved.add(this.lastIndex);
    return this.lastIndex;
  }

  releaseIndex(ifindex: number): void {
    this.reserved.delete(ifindex);
  }

  taken(ifindex: number): boolean {
    return this.byIndexMap.has(ifindex) || this.reserved.has(ifindex);
  }
}
