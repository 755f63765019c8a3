/**
 * Reads of what another domain may change at any moment: each field once. A test compiles a module with others in their
 * place, which change each byte after it was read.
 */
export function fetch16(at: usize): u32 {
  return load<u16>(at);
}

export function fetch32(at: usize): u32 {
  return load<u32>(at);
}
