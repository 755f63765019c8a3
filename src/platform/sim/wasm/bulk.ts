/** What JavaScript has nothing as fast for in shared memory: see `MachineMemory`. */
export function copy(to: usize, from: usize, length: usize): void {
  memory.copy(to, from, length);
}

export function fill(at: usize, value: u8, length: usize): void {
  memory.fill(at, value, length);
}

export function publish(address: usize, index: u32, event: usize): bool {
  const before = load<u32>(address);
  atomic.store<u32>(address, index);
  return index - atomic.load<u32>(event) < index - before;
}

export function storeThenLoad(address: usize, value: u32, other: usize): u32 {
  atomic.store<u32>(address, value);
  return atomic.load<u32>(other);
}
