/**
 * A reproducible source of numbers in [0, 1): a 32-bit counter stepped by an odd constant and mixed, of
 * which every seed gives another sequence.
 */
export function seededRandom(seed: number): () => number {
  let counter = seed | 0;
  return () => {
    counter = (counter + 0x9e3779b9) | 0;
    let x = counter;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    x ^= x >>> 15;
    return (x >>> 0) / 0x1_0000_0000;
  };
}
