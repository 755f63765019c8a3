/** JavaScript has nothing as fast for shared memory. */
export function copy(to: usize, from: usize, length: usize): void {
  memory.copy(to, from, length);
}

export function fill(at: usize, value: u8, length: usize): void {
  memory.fill(at, value, length);
}
