import { seededRandom } from '../../src/platform/sim/index.js';

/** The values that each factor can have. */
export type Factors = Readonly<Record<string, readonly unknown[]>>;

export type Choice<F extends Factors> = { readonly [K in keyof F]: F[K][number] };

/**
 * Combinations in which every two values of two factors meet at least once: each is the best of some that are made
 * at random.
 */
export function pairwise<F extends Factors>(factors: F, seed: number): Choice<F>[] {
  const random = seededRandom(seed);
  const names = Object.keys(factors);
  const missing = new Set<string>();
  const pairsOf = (choice: Record<string, unknown>): string[] =>
    names.flatMap((a, i) => names.slice(i + 1).map(b => `${a}=${choice[a]} ${b}=${choice[b]}`));
  for (const [i, a] of names.entries()) {
    for (const b of names.slice(i + 1)) {
      for (const x of factors[a]) for (const y of factors[b]) missing.add(`${a}=${x} ${b}=${y}`);
    }
  }
  const candidates = 60;
  const choices: Choice<F>[] = [];
  while (missing.size > 0) {
    let best: Record<string, unknown> = {};
    let bestNew = 0;
    for (let i = 0; i < candidates; i++) {
      const choice = Object.fromEntries(
        names.map(name => [name, factors[name][Math.floor(random() * factors[name].length)]]),
      );
      const fresh = pairsOf(choice).filter(pair => missing.has(pair)).length;
      if (fresh > bestNew) [best, bestNew] = [choice, fresh];
    }
    if (bestNew === 0) continue;
    for (const pair of pairsOf(best)) missing.delete(pair);
    choices.push(best as Choice<F>);
  }
  return choices;
}
