/**
 * The Toeplitz hash of receive-side scaling: for each set bit of the data, from the most significant bit
 * of the first byte on, the result takes the 32 key bits that start at the same position.
 *
 * @param key octets, as if followed by zeros
 * @returns an unsigned 32-bit number
 */
export function toeplitzHash(key: Uint8Array, data: Uint8Array, length = data.length): number {
  let window = 0;
  for (let i = 0; i < 4; i++) window = (window << 8) | (key[i] ?? 0);
  let hash = 0;
  for (let i = 0; i < length; i++) {
    const byte = data[i];
    const nextKey = key[i + 4] ?? 0;
    for (let bit = 7; bit >= 0; bit--) {
      if ((byte >>> bit) & 1) hash ^= window;
      window = (window << 1) | ((nextKey >>> bit) & 1);
    }
  }
  return hash >>> 0;
}
